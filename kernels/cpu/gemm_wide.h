/* gemm_wide: products by vectors of 512 bits: of pairs of bf16 (AVX512_BF16), and of f32.
 *
 * Every element of C is one chain over k in ascending order, f32, in steps of one (f32) or of a
 * pair (bf16), whatever M, N, the other rows, or the number of threads; what is added to joins at
 * the end. B is packed to panels on the way, slab by slab, beside the products of the slab before;
 * A is read where it stands, or packed where its rows are not contiguous (gradients of weights).
 */
#ifndef KERNELS_CPU_GEMM_WIDE_H
#define KERNELS_CPU_GEMM_WIDE_H

#include "kernels/cpu/gemm.h"

/* Whether this product's dtypes and strides are ones it has kernels for. */
bool gemm_wide_takes(const struct gemm *gemm);

/* B in panels as the kernel reads it, for as many products with it as there are: gemm.packed. Only
 * where A is read as it stands. out[gemm_wide_packed_floats(gemm)]. */
size_t gemm_wide_packed_floats(const struct gemm *gemm);
void gemm_wide_pack(struct device *device, float *out, const struct gemm *gemm);

/* Runs `count` products, none of them empty, which gemm_wide_takes. Only where tile_has_pairs. */
void gemm_wide_run(struct device *device, const struct gemm *const *batch, int64_t count);

#endif
