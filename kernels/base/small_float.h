/* small_float: IEEE half (f16) and float8 e4m3fn, exactly, one value at a time.
 *
 * e4m3fn: 4 bits of exponent (bias 7), 3 of mantissa, no infinities, NaN = 0x7f and 0xff, largest
 * value 448, smallest 2^-9. Rounding is to nearest even. bfloat16 is in tensor.h.
 */
#ifndef KERNELS_BASE_SMALL_FLOAT_H
#define KERNELS_BASE_SMALL_FLOAT_H

#include <stdint.h>

float f16_to_float(uint16_t bits);
/* Beyond 65504 (rounded): infinity. NaN stays NaN. */
uint16_t f16_from_float(float number);

float e4m3_to_float(uint8_t code);
/* Beyond 448: 448 of that sign (infinities too). NaN becomes 0x7f or 0xff. */
uint8_t e4m3_from_float(float number);

#endif
