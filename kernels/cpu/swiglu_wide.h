/* swiglu_wide: SwiGLU (swiglu.c) in vectors of AVX-512, only where tile_has_wide. Rows of bf16
 * never become rows of f32 on their way, and give the bits that f32 rounded to bf16 does. dgate
 * may be gate and dup up; else no two arrays overlap.
 */
#ifndef KERNELS_CPU_SWIGLU_WIDE_H
#define KERNELS_CPU_SWIGLU_WIDE_H

#include <stdint.h>

/* h[count] = gate sigmoid(gate) up */
void swiglu_wide_forward(float *h, const float *gate, const float *up, int64_t count);
void swiglu_wide_forward_bf16(uint16_t *h, const uint16_t *gate, const uint16_t *up, int64_t count);
/* dgate[count], dup[count], and h[count] again, or NULL. */
void swiglu_wide_backward(float *dgate, float *dup, float *h, const float *dh, const float *gate,
                          const float *up, int64_t count);
void swiglu_wide_backward_bf16(uint16_t *dgate, uint16_t *dup, uint16_t *h, const uint16_t *dh,
                               const uint16_t *gate, const uint16_t *up, int64_t count);

#endif
