/* Frames on a serial line between a sensor and the gateway: what `framing:` in gateway.yaml means, for the sensor's side.
 *
 * C99, no dependencies, no memory of its own, no waiting. Copy framing.h and framing.c into your firmware; for an XBee in API
 * mode take xbee.h and xbee.c instead. The gateway's tests compile both and compare them with its own, octet by octet.
 *
 * To send one MQTT-SN message:
 *
 *     uint8_t line[SN_ENCODED_MAX(64)];
 *     size_t n = sn_encode(SN_SLIP_CRC, message, message_len, line, sizeof line);
 *     uart_write(line, n);                                     // n is 0 if it does not fit
 *
 * To receive, with a buffer for the longest message you want and its CRC:
 *
 *     static uint8_t buffer[64 + SN_CRC_LEN];
 *     static struct sn_decoder decoder;
 *     sn_decoder_init(&decoder, SN_SLIP_CRC, buffer, sizeof buffer);
 *     ...
 *     size_t n = sn_decoder_octet(&decoder, uart_read());      // for every octet
 *     if (n > 0) handle_message(buffer, n);                    // valid until the next octet
 *
 * With SN_LENGTH, tell the decoder when nothing has come for a while (some 50 octets' time, at least 20 ms) with
 * sn_decoder_idle: there is no other way back after damage to a length. Choose a framing with a CRC where you can.
 */
#ifndef SN_FRAMING_H
#define SN_FRAMING_H

#include <stddef.h>
#include <stdint.h>

enum sn_framing {
    SN_LENGTH,   /* length:   the message and nothing else */
    SN_SLIP,     /* slip:     RFC 1055 */
    SN_SLIP_CRC, /* slip+crc */
    SN_COBS,     /* cobs:     00 between frames */
    SN_COBS_CRC  /* cobs+crc */
};

#define SN_CRC_LEN 2

/* Octets that are enough on the line for a frame of len octets. */
#define SN_ENCODED_MAX(len) (2 * ((size_t)(len) + SN_CRC_LEN) + 2)

/* CRC-16: polynomial 0x1021, initial value 0xFFFF, not reflected, no final xor. It follows the frame, high octet first. */
uint16_t sn_crc(const uint8_t *octets, size_t len);

/* Writes what goes on the line for one frame; returns how many octets that is, or 0 if they are more than size. */
size_t sn_encode(enum sn_framing framing, const uint8_t *frame, size_t len, uint8_t *out, size_t size);

struct sn_decoder {
    enum sn_framing framing;
    uint8_t *buffer;
    size_t size;
    size_t len;   /* octets in buffer */
    size_t start; /* length: where the message begins, behind its encapsulation */
    uint8_t code; /* cobs: of this block; slip: ESC if that was the last octet */
    uint8_t left; /* cobs: octets of this block that are still to come */
    uint8_t some; /* anything has come since the last delimiter */
    uint8_t skip; /* this frame is lost */
    uint32_t lost; /* frames dropped since sn_decoder_init, for whatever reason */
};

/* At the beginning of a frame. A frame longer than size, its CRC included, is dropped. */
void sn_decoder_init(struct sn_decoder *decoder, enum sn_framing framing, uint8_t *buffer, size_t size);

/* Takes one octet; returns the length of the frame in buffer if one ends with this octet, else 0. */
size_t sn_decoder_octet(struct sn_decoder *decoder, uint8_t octet);

/* The line has been silent: with SN_LENGTH the next octet begins a message; with the others nothing happens. */
void sn_decoder_idle(struct sn_decoder *decoder);

#endif
