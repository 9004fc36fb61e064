/* API frames of Digi's XBee radios, for a sensor whose radio is in API mode (AP=1 plain, AP=2 escaped).
 *
 * C99, no dependencies, no memory of its own, no waiting. In transparent mode (AP=0) use framing.h instead.
 *
 * To send one MQTT-SN message to the gateway's radio, here the coordinator, and be told what became of it (frame id not 0):
 *
 *     static const uint8_t coordinator[8] = { 0 };
 *     uint8_t data[XBEE_TRANSMIT_OVERHEAD + 64], line[XBEE_ENCODED_MAX(sizeof data)];
 *     size_t n = xbee_transmit(1, coordinator, message, message_len, data, sizeof data);
 *     n = xbee_encode(1, data, n, line, sizeof line);
 *     uart_write(line, n);                                     // n is 0 if something does not fit
 *
 * To receive, with a buffer for the longest frame you want, at least 4 octets more than its data:
 *
 *     static uint8_t buffer[XBEE_OVERHEAD + 128];
 *     static struct xbee_decoder decoder;
 *     xbee_decoder_init(&decoder, 1, buffer, sizeof buffer);
 *     ...
 *     xbee_push(&decoder, uart_read());                        // for every octet
 *     while ((n = xbee_next(&decoder, &data)) > 0)             // valid until the next call of either
 *         if (xbee_received(data, n, &received)) handle_message(received.payload, received.len);
 *         else if (data[0] == 0x8B && n >= 7) sent(data[1], data[5] == 0);   // frame id, delivered
 */
#ifndef SN_XBEE_H
#define SN_XBEE_H

#include <stddef.h>
#include <stdint.h>

/* Start delimiter, length and checksum. */
#define XBEE_OVERHEAD 4

/* What a transmit request has before its payload. */
#define XBEE_TRANSMIT_OVERHEAD 14

/* Octets that are enough on the line for len octets of frame data. */
#define XBEE_ENCODED_MAX(len) (1 + 2 * ((size_t)(len) + 3))

/* Writes a frame with these data, which begin with the frame type; returns its octets, or 0 if they are more than size. */
size_t xbee_encode(int escaped, const uint8_t *data, size_t len, uint8_t *out, size_t size);

/* Writes the data of a transmit request (10) to a 64-bit address; returns their octets, or 0 if they are more than size. */
size_t xbee_transmit(uint8_t frame_id, const uint8_t to[8], const uint8_t *payload, size_t len, uint8_t *data, size_t size);

/* Writes the data of an AT command (08), such as "NP"; returns their octets, or 0 if they are more than size. */
size_t xbee_at(uint8_t frame_id, const char command[2], const uint8_t *value, size_t len, uint8_t *data, size_t size);

struct xbee_received {
    uint8_t from[8];        /* where there is a short address only, it is in the last two octets */
    int broadcast;          /* was sent to everybody */
    const uint8_t *payload; /* inside the data */
    size_t len;
};

/* Reads data of type 90, 91, 80 or 81; returns 0 if they are of another type or cut short. */
int xbee_received(const uint8_t *data, size_t len, struct xbee_received *received);

struct xbee_decoder {
    int escaped;
    uint8_t *buffer;
    size_t size;
    size_t len;      /* octets in buffer, from a start delimiter on */
    size_t taken;    /* octets of the frame that was given out last */
    uint8_t escape;  /* the last octet was the escape */
    uint8_t idle;    /* nothing more will come of what is unfinished */
    uint32_t lost;   /* starts of frames that led to nothing since xbee_decoder_init */
};

/* Between frames. A frame that does not fit into size is dropped. */
void xbee_decoder_init(struct xbee_decoder *decoder, int escaped, uint8_t *buffer, size_t size);

/* Takes one octet; call xbee_next until 0 after each. */
void xbee_push(struct xbee_decoder *decoder, uint8_t octet);

/* The data of the next frame: how many octets, and where; 0 if there is none yet. */
size_t xbee_next(struct xbee_decoder *decoder, const uint8_t **data);

/* The line has been silent for long: plain, what is unfinished is dropped; call xbee_next. Escaped, nothing happens. */
void xbee_idle(struct xbee_decoder *decoder);

#endif
