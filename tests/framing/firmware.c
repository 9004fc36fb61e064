/* The code of tools/firmware as a filter for the tests: records in, records out. A record is its length, four octets, high first,
 * and as many octets. `encode` and `decode` take a framing's number, `xbee-…` 0 for plain and 1 for escaped. `decode` answers a
 * record of octets with how many frames were in it, a record for each, and what is counted as lost as four octets; after the
 * octets the line is silent. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "framing.h"
#include "xbee.h"

enum { FRAME_LEN_MAX = 2048, DATA_LEN_MAX = 512, RECORD_LEN_MAX = 1 << 20 };

static uint8_t in[RECORD_LEN_MAX];
static uint8_t found[8 * RECORD_LEN_MAX];
static size_t found_len, frames;

static void put_number(uint8_t *at, size_t number)
{
    at[0] = (uint8_t)(number >> 24);
    at[1] = (uint8_t)(number >> 16);
    at[2] = (uint8_t)(number >> 8);
    at[3] = (uint8_t)number;
}

static void write_number(size_t number)
{
    uint8_t octets[4];
    put_number(octets, number);
    fwrite(octets, 1, 4, stdout);
}

static int read_record(size_t *len)
{
    uint8_t octets[4];
    if (fread(octets, 1, 4, stdin) != 4)
        return 0;
    *len = (size_t)octets[0] << 24 | (size_t)octets[1] << 16 | (size_t)octets[2] << 8 | octets[3];
    return *len <= sizeof in && fread(in, 1, *len, stdin) == *len;
}

static void find(const uint8_t *frame, size_t len)
{
    put_number(found + found_len, len);
    memcpy(found + found_len + 4, frame, len);
    found_len += 4 + len;
    frames++;
}

static void write_found(uint32_t lost)
{
    write_number(frames);
    fwrite(found, 1, found_len, stdout);
    write_number(lost);
    found_len = 0;
    frames = 0;
}

/* A buffer with nothing behind it, so that the sanitizer sees every octet too many. */
static uint8_t *exactly(size_t size)
{
    uint8_t *buffer = malloc(size ? size : 1);
    if (buffer == NULL)
        exit(3);
    return buffer;
}

static void encode(int op, int number, size_t len)
{
    size_t size = op == 'e' ? SN_ENCODED_MAX(len) : XBEE_ENCODED_MAX(len), n, less;
    uint8_t *out = exactly(size);
    n = op == 'e' ? sn_encode((enum sn_framing)number, in, len, out, size) : xbee_encode(number, in, len, out, size);
    write_number(n);
    fwrite(out, 1, n, stdout);
    free(out);
    /* One octet less than it takes is refused. */
    less = n > 0 ? n - 1 : 0;
    out = exactly(less);
    if ((op == 'e' ? sn_encode((enum sn_framing)number, in, len, out, less) : xbee_encode(number, in, len, out, less)) != 0)
        exit(4);
    free(out);
}

static void decode(int number, size_t len)
{
    struct sn_decoder decoder;
    size_t i, n, size = FRAME_LEN_MAX + (number == SN_SLIP_CRC || number == SN_COBS_CRC ? SN_CRC_LEN : 0);
    uint8_t *buffer = exactly(size);
    sn_decoder_init(&decoder, (enum sn_framing)number, buffer, size);
    for (i = 0; i < len; i++) {
        n = sn_decoder_octet(&decoder, in[i]);
        if (n > 0)
            find(buffer, n);
    }
    sn_decoder_idle(&decoder);
    write_found(decoder.lost);
    free(buffer);
}

static void xbee_decode(int escaped, size_t len)
{
    struct xbee_decoder decoder;
    struct xbee_received received;
    const uint8_t *data;
    size_t i, n;
    uint8_t *buffer = exactly(DATA_LEN_MAX + XBEE_OVERHEAD);
    xbee_decoder_init(&decoder, escaped, buffer, DATA_LEN_MAX + XBEE_OVERHEAD);
    for (i = 0; i <= len; i++) {
        if (i < len)
            xbee_push(&decoder, in[i]);
        else
            xbee_idle(&decoder);
        while ((n = xbee_next(&decoder, &data)) > 0) {
            find(data, n);
            if (xbee_received(data, n, &received) && received.payload + received.len != data + n)
                exit(5);
        }
    }
    write_found(decoder.lost);
    free(buffer);
}

/* A record is frame id, 8 octets of address, payload. */
static void transmit(size_t len)
{
    size_t size = XBEE_TRANSMIT_OVERHEAD + len - 9, n;
    uint8_t *data = exactly(size);
    n = xbee_transmit(in[0], in + 1, in + 9, len - 9, data, size);
    write_number(n);
    fwrite(data, 1, n, stdout);
    if (xbee_transmit(in[0], in + 1, in + 9, len - 9, data, size - 1) != 0)
        exit(4);
    free(data);
}

/* Answers with the payload, or a record of nothing. */
static void receive(size_t len)
{
    struct xbee_received received;
    if (!xbee_received(in, len, &received)) {
        write_number(0);
        return;
    }
    write_number(8 + 1 + received.len);
    fwrite(received.from, 1, 8, stdout);
    putchar(received.broadcast);
    fwrite(received.payload, 1, received.len, stdout);
}

int main(int argc, char **argv)
{
    size_t len;
    int number = argc == 3 ? atoi(argv[2]) : 0;
    if (argc < 2)
        return 2;
    while (read_record(&len)) {
        if (strcmp(argv[1], "encode") == 0)
            encode('e', number, len);
        else if (strcmp(argv[1], "decode") == 0)
            decode(number, len);
        else if (strcmp(argv[1], "xbee-encode") == 0)
            encode('x', number, len);
        else if (strcmp(argv[1], "xbee-decode") == 0)
            xbee_decode(number, len);
        else if (strcmp(argv[1], "xbee-transmit") == 0)
            transmit(len);
        else
            receive(len);
    }
    return 0;
}
