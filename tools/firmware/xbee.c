/* See xbee.h. */
#include "xbee.h"

#include <string.h>

enum { START = 0x7E, ESCAPE = 0x7D, XON = 0x11, XOFF = 0x13, ESCAPED = 0x20 };

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

static void put_escaped(struct out *out, int escaped, uint8_t octet)
{
    if (escaped && (octet == START || octet == ESCAPE || octet == XON || octet == XOFF)) {
        put(out, ESCAPE);
        octet ^= ESCAPED;
    }
    put(out, octet);
}

static uint8_t sum(const uint8_t *data, size_t len)
{
    uint8_t sum = 0;
    size_t i;
    for (i = 0; i < len; i++)
        sum = (uint8_t)(sum + data[i]);
    return sum;
}

size_t xbee_encode(int escaped, const uint8_t *data, size_t len, uint8_t *buffer, size_t size)
{
    struct out out;
    size_t i;
    if (len == 0 || len > 0xFFFF)
        return 0;
    out.octets = buffer;
    out.size = size;
    out.len = 0;
    put(&out, START);
    put_escaped(&out, escaped, (uint8_t)(len >> 8));
    put_escaped(&out, escaped, (uint8_t)len);
    for (i = 0; i < len; i++)
        put_escaped(&out, escaped, data[i]);
    put_escaped(&out, escaped, (uint8_t)(0xFF - sum(data, len)));
    return out.len <= size ? out.len : 0;
}

size_t xbee_transmit(uint8_t frame_id, const uint8_t to[8], const uint8_t *payload, size_t len, uint8_t *data, size_t size)
{
    if (size < XBEE_TRANSMIT_OVERHEAD || len > size - XBEE_TRANSMIT_OVERHEAD)
        return 0;
    data[0] = 0x10;
    data[1] = frame_id;
    memcpy(data + 2, to, 8);
    data[10] = 0xFF; /* the short address is unknown */
    data[11] = 0xFE;
    data[12] = 0; /* radius: as far as it goes */
    data[13] = 0; /* options */
    if (len > 0)
        memcpy(data + XBEE_TRANSMIT_OVERHEAD, payload, len);
    return XBEE_TRANSMIT_OVERHEAD + len;
}

size_t xbee_at(uint8_t frame_id, const char command[2], const uint8_t *value, size_t len, uint8_t *data, size_t size)
{
    if (size < 4 || len > size - 4)
        return 0;
    data[0] = 0x08;
    data[1] = frame_id;
    data[2] = (uint8_t)command[0];
    data[3] = (uint8_t)command[1];
    if (len > 0)
        memcpy(data + 4, value, len);
    return 4 + len;
}

int xbee_received(const uint8_t *data, size_t len, struct xbee_received *received)
{
    size_t address, options, header;
    if (len == 0)
        return 0;
    switch (data[0]) {
    case 0x80: address = 8; options = 10; header = 11; break;
    case 0x81: address = 2; options = 4; header = 5; break;
    case 0x90: address = 8; options = 11; header = 12; break;
    case 0x91: address = 8; options = 17; header = 18; break;
    default: return 0;
    }
    if (len < header)
        return 0;
    memset(received->from, 0, sizeof received->from);
    memcpy(received->from + 8 - address, data + 1, address);
    received->broadcast = (data[options] & 0x02) != 0;
    received->payload = data + header;
    received->len = len - header;
    return 1;
}

void xbee_decoder_init(struct xbee_decoder *decoder, int escaped, uint8_t *buffer, size_t size)
{
    memset(decoder, 0, sizeof *decoder);
    decoder->escaped = escaped;
    decoder->buffer = buffer;
    decoder->size = size;
}

static void drop(struct xbee_decoder *decoder, size_t octets)
{
    decoder->len -= octets;
    memmove(decoder->buffer, decoder->buffer + octets, decoder->len);
}

/* What begins here is no frame. Plain, another may begin inside; escaped, a start delimiter would have been seen. */
static void drop_start(struct xbee_decoder *decoder)
{
    decoder->lost++;
    drop(decoder, decoder->escaped ? decoder->len : 1);
}

static void give_back(struct xbee_decoder *decoder)
{
    drop(decoder, decoder->taken);
    decoder->taken = 0;
}

void xbee_push(struct xbee_decoder *decoder, uint8_t octet)
{
    give_back(decoder);
    decoder->idle = 0;
    if (decoder->escaped) {
        if (octet == START) {
            decoder->escape = 0;
            if (decoder->len > 0)
                drop_start(decoder);
        } else if (octet == ESCAPE && !decoder->escape) {
            decoder->escape = 1;
            return;
        } else if (decoder->escape) {
            decoder->escape = 0;
            octet ^= ESCAPED;
            if (decoder->len == 0)
                return; /* not a start, whatever it is */
        }
    }
    if (decoder->len == 0 && octet != START)
        return;
    if (decoder->len == decoder->size)
        drop_start(decoder);
    if (decoder->len < decoder->size)
        decoder->buffer[decoder->len++] = octet;
}

/* Whether a frame with so many octets of data is within size. Their sum may be too much for a size_t of 16 bits. */
static int has_room(size_t size, size_t len)
{
    return size >= XBEE_OVERHEAD && len <= size - XBEE_OVERHEAD;
}

size_t xbee_next(struct xbee_decoder *decoder, const uint8_t **data)
{
    size_t len, noise;
    give_back(decoder);
    for (;;) {
        for (noise = 0; noise < decoder->len && decoder->buffer[noise] != START; noise++)
            ;
        drop(decoder, noise);
        if (decoder->len == 0)
            decoder->idle = 0;
        len = decoder->len < 3 ? 0 : (size_t)decoder->buffer[1] << 8 | decoder->buffer[2];
        if (decoder->len >= 3 && (len == 0 || !has_room(decoder->size, len))) {
            drop_start(decoder);
            continue;
        }
        if (decoder->len < 3 || !has_room(decoder->len, len)) {
            if (!decoder->idle)
                return 0;
            drop_start(decoder);
            continue;
        }
        if (sum(decoder->buffer + 3, len + 1) != 0xFF) {
            drop_start(decoder);
            continue;
        }
        decoder->taken = len + XBEE_OVERHEAD;
        *data = decoder->buffer + 3;
        return len;
    }
}

void xbee_idle(struct xbee_decoder *decoder)
{
    give_back(decoder);
    decoder->idle = !decoder->escaped && decoder->len > 0;
}
