/* Put before the code of tools/firmware: a machine on which two octets fill an int, as on an AVR or an MSP430, where int and size_t
 * have 16 bits. Ours have 32 and octets of 24: sums of lengths wrap, and what is shifted too far as an int is seen. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define size_t uint32_t
#define uint16_t uint32_t
#define uint8_t int
