/* See narrow.h. What an octet of FF is elsewhere has 24 bits here, if it is the upper one of two. */
#include "framing.h"
#include "xbee.h"

enum { UPPER = 0xFFFFFF, DATA_LEN_MAX = 32 };

static void check(int holds, int code)
{
    if (!holds) {
        fprintf(stderr, "check %d\n", code);
        exit(code);
    }
}

/* With nothing behind it, so that the sanitizer sees every octet too many. */
static uint8_t *exactly(size_t size)
{
    uint8_t *octets = calloc(size, sizeof *octets);
    check(octets != NULL, 3);
    return octets;
}

/* A length that reaches over the end of all memory is one that does not fit. */
static void xbee_length(int escaped, uint8_t lower)
{
    struct xbee_decoder decoder;
    const uint8_t *data;
    uint8_t *buffer = exactly(DATA_LEN_MAX + XBEE_OVERHEAD);
    xbee_decoder_init(&decoder, escaped, buffer, DATA_LEN_MAX + XBEE_OVERHEAD);
    xbee_push(&decoder, 0x7E);
    xbee_push(&decoder, UPPER);
    xbee_push(&decoder, lower);
    check(xbee_next(&decoder, &data) == 0, 10);
    check(decoder.lost == 1 && decoder.len == 0, 11);
    free(buffer);
}

/* So it is inside of an encapsulation. */
static void encapsulated_length(uint8_t lower)
{
    static const uint8_t head[] = { 3, 0xFE, 0, 1, UPPER };
    struct sn_decoder decoder;
    size_t i;
    uint8_t *buffer = exactly(DATA_LEN_MAX);
    sn_decoder_init(&decoder, SN_LENGTH, buffer, DATA_LEN_MAX);
    for (i = 0; i < sizeof head / sizeof *head; i++)
        check(sn_decoder_octet(&decoder, head[i]) == 0, 20);
    check(sn_decoder_octet(&decoder, lower) == 0 && sn_decoder_octet(&decoder, 0x0C) == 0, 21);
    check(decoder.lost == 1, 22);
    free(buffer);
}

/* The upper octet of a CRC, and one that a CRC is made of. */
static void checksum(void)
{
    static const uint8_t frame[] = { UPPER, 0x16, UPPER, 0x34, 0xC0 };
    struct sn_decoder decoder;
    size_t i;
    uint8_t *buffer = exactly(DATA_LEN_MAX);
    sn_decoder_init(&decoder, SN_SLIP_CRC, buffer, DATA_LEN_MAX);
    for (i = 0; i < sizeof frame / sizeof *frame; i++)
        check(sn_decoder_octet(&decoder, frame[i]) == 0, 30);
    check(decoder.lost == 1, 31);
    free(buffer);
}

int main(void)
{
    uint8_t lower;
    for (lower = 0xE0; lower <= 0xFF; lower++) {
        xbee_length(0, lower);
        xbee_length(1, lower);
        encapsulated_length(lower);
    }
    checksum();
    return 0;
}
