/* head_wide: head and cross-entropy where the wide kernel (gemm_wide.h) makes the logits: they
 * never are in memory. Sums of the kernel become e^(x - shift), rounded to x's dtype; what these
 * are to be divided by is known when the row is done, so it multiplies what is made of them:
 *
 *   p = e^(x - shift) / sum    dx = scale (p W - W[label])    dW = p^T (scale x) - onehot^T scale x
 *
 * with the label's own p - 1 in f32, apart. The shift may be any that lets no power overflow: the
 * label's logit, or, where another is larger by far, that.
 */
#ifndef KERNELS_CPU_HEAD_WIDE_H
#define KERNELS_CPU_HEAD_WIDE_H

#include "kernels/cpu/cpu.h"

/* Whether it takes a head with weights w for rows of x on this device, however many they are. */
bool head_wide_takes(struct device *device, struct tensor x, struct tensor w);

/* As ops.cross_entropy, of at least one row. */
void head_wide(struct device *device, double *total, struct tensor dx, struct tensor dw,
               struct tensor x, struct tensor w, const int32_t *labels, float loss_scale);

#endif
