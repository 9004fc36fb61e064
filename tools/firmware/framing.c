/* See framing.h. */
#include "framing.h"

#include <string.h>

enum { SLIP_END = 0xC0, SLIP_ESC = 0xDB, SLIP_ESC_END = 0xDC, SLIP_ESC_ESC = 0xDD };
enum { COBS_DELIMITER = 0x00, COBS_FULL = 0xFF };
enum { LONG_FORM = 0x01, ENCAPSULATED = 0xFE };

static int has_crc(enum sn_framing framing)
{
    return framing == SN_SLIP_CRC || framing == SN_COBS_CRC;
}

static uint16_t crc_octet(uint16_t crc, uint8_t octet)
{
    int bit;
    crc = (uint16_t)(crc ^ (uint16_t)((uint16_t)octet << 8));
    for (bit = 0; bit < 8; bit++)
        crc = (uint16_t)(crc & 0x8000 ? (crc << 1) ^ 0x1021 : crc << 1);
    return crc;
}

uint16_t sn_crc(const uint8_t *octets, size_t len)
{
    uint16_t crc = 0xFFFF;
    size_t i;
    for (i = 0; i < len; i++)
        crc = crc_octet(crc, octets[i]);
    return crc;
}

/* Output that remembers whether it was too much. */
struct out {
    uint8_t *octets;
    size_t size;
    size_t len;
};

static void put(struct out *out, uint8_t octet)
{
    if (out->len < out->size)
        out->octets[out->len] = octet;
    if (out->len <= out->size)
        out->len++;
}

/* Octet i of the frame with its CRC behind it. */
static uint8_t body_octet(const uint8_t *frame, size_t len, uint16_t crc, size_t i)
{
    if (i < len)
        return frame[i];
    return (uint8_t)(i == len ? crc >> 8 : crc & 0xFF);
}

static void slip_put(struct out *out, uint8_t octet)
{
    if (octet == SLIP_END || octet == SLIP_ESC) {
        put(out, SLIP_ESC);
        put(out, octet == SLIP_END ? SLIP_ESC_END : SLIP_ESC_ESC);
    } else {
        put(out, octet);
    }
}

/* One block of COBS that begins at octet i of the body; returns where the next one begins. */
static size_t cobs_put(struct out *out, const uint8_t *frame, size_t len, uint16_t crc, size_t body, size_t i)
{
    size_t end = i, at;
    while (end < body && end - i < 254 && body_octet(frame, len, crc, end) != 0)
        end++;
    put(out, (uint8_t)(end - i + 1));
    for (at = i; at < end; at++)
        put(out, body_octet(frame, len, crc, at));
    /* Behind a full block no zero is meant; behind any other one is, except at the end. */
    return end - i == 254 ? end : end + 1;
}

size_t sn_encode(enum sn_framing framing, const uint8_t *frame, size_t len, uint8_t *buffer, size_t size)
{
    struct out out;
    size_t i, body = len + (has_crc(framing) ? SN_CRC_LEN : 0);
    uint16_t crc = has_crc(framing) ? sn_crc(frame, len) : 0;
    out.octets = buffer;
    out.size = size;
    out.len = 0;
    switch (framing) {
    case SN_LENGTH:
        for (i = 0; i < len; i++)
            put(&out, frame[i]);
        break;
    case SN_SLIP:
    case SN_SLIP_CRC:
        put(&out, SLIP_END);
        for (i = 0; i < body; i++)
            slip_put(&out, body_octet(frame, len, crc, i));
        put(&out, SLIP_END);
        break;
    case SN_COBS:
    case SN_COBS_CRC:
        put(&out, COBS_DELIMITER);
        i = 0;
        do {
            i = cobs_put(&out, frame, len, crc, body, i);
        } while (i < body || (i == body && body > 0 && body_octet(frame, len, crc, body - 1) == 0));
        put(&out, COBS_DELIMITER);
        break;
    }
    return out.len <= size ? out.len : 0;
}

void sn_decoder_init(struct sn_decoder *decoder, enum sn_framing framing, uint8_t *buffer, size_t size)
{
    memset(decoder, 0, sizeof *decoder);
    decoder->framing = framing;
    decoder->buffer = buffer;
    decoder->size = size;
}

static void reset(struct sn_decoder *decoder)
{
    decoder->len = 0;
    decoder->start = 0;
    decoder->code = 0;
    decoder->left = 0;
    decoder->some = 0;
    decoder->skip = 0;
}

static size_t lose(struct sn_decoder *decoder)
{
    decoder->lost++;
    decoder->skip = 1;
    return 0;
}

static size_t keep(struct sn_decoder *decoder, uint8_t octet)
{
    if (decoder->len == decoder->size)
        return lose(decoder);
    decoder->buffer[decoder->len++] = octet;
    return 0;
}

/* A delimiter has come. */
static size_t finish(struct sn_decoder *decoder, int whole)
{
    size_t len = decoder->len, sum = has_crc(decoder->framing) ? SN_CRC_LEN : 0;
    int some = decoder->some && !decoder->skip;
    const uint8_t *buffer = decoder->buffer;
    reset(decoder);
    if (!some)
        return 0;
    if (!whole || len <= sum ||
        (sum && sn_crc(buffer, len - sum) != (uint16_t)((uint16_t)buffer[len - 2] << 8 | buffer[len - 1]))) {
        decoder->lost++;
        return 0;
    }
    return len - sum;
}

static size_t slip_octet(struct sn_decoder *decoder, uint8_t octet)
{
    uint8_t before = decoder->code;
    if (octet == SLIP_END)
        return finish(decoder, before != SLIP_ESC);
    decoder->some = 1;
    if (decoder->skip)
        return 0;
    decoder->code = 0;
    if (before == SLIP_ESC) {
        if (octet == SLIP_ESC_END)
            return keep(decoder, SLIP_END);
        if (octet == SLIP_ESC_ESC)
            return keep(decoder, SLIP_ESC);
        return lose(decoder);
    }
    if (octet == SLIP_ESC) {
        decoder->code = SLIP_ESC;
        return 0;
    }
    return keep(decoder, octet);
}

static size_t cobs_octet(struct sn_decoder *decoder, uint8_t octet)
{
    uint8_t before = decoder->code;
    if (octet == COBS_DELIMITER)
        return finish(decoder, decoder->left == 0);
    decoder->some = 1;
    if (decoder->skip)
        return 0;
    if (decoder->left > 0) {
        decoder->left--;
        return keep(decoder, octet);
    }
    decoder->code = octet;
    decoder->left = (uint8_t)(octet - 1);
    return before != 0 && before != COBS_FULL ? keep(decoder, 0) : 0;
}

static size_t length_octet(struct sn_decoder *decoder, uint8_t octet)
{
    const uint8_t *message;
    size_t have, len;
    uint8_t kind;
    if (decoder->skip)
        return 0;
    keep(decoder, octet);
    if (decoder->skip)
        return 0;
    message = decoder->buffer + decoder->start;
    have = decoder->len - decoder->start;
    if (message[0] == 0)
        return lose(decoder);
    if (message[0] == LONG_FORM) {
        if (have < 4)
            return 0;
        len = (size_t)message[1] << 8 | message[2];
        kind = message[3];
        if (kind == ENCAPSULATED || len < 4)
            return lose(decoder);
    } else {
        if (have < 2)
            return 0;
        len = message[0];
        kind = message[1];
        if (kind == ENCAPSULATED && (len < 3 || decoder->start > 0))
            return lose(decoder);
    }
    /* Message types that are reserved: no message begins here. */
    if (kind == 0x11 || kind == 0x19 || (kind > 0x1D && kind != ENCAPSULATED) || len > decoder->size - decoder->start)
        return lose(decoder);
    if (have < len)
        return 0;
    if (kind == ENCAPSULATED) {
        decoder->start = decoder->len;
        return 0;
    }
    len += decoder->start;
    reset(decoder);
    return len;
}

size_t sn_decoder_octet(struct sn_decoder *decoder, uint8_t octet)
{
    switch (decoder->framing) {
    case SN_SLIP:
    case SN_SLIP_CRC:
        return slip_octet(decoder, octet);
    case SN_COBS:
    case SN_COBS_CRC:
        return cobs_octet(decoder, octet);
    case SN_LENGTH:
        break;
    }
    return length_octet(decoder, octet);
}

void sn_decoder_idle(struct sn_decoder *decoder)
{
    if (decoder->framing != SN_LENGTH)
        return;
    if (decoder->len > 0 && !decoder->skip)
        decoder->lost++;
    reset(decoder);
}
