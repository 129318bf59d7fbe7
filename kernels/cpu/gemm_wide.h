/* gemm_wide: products by vectors of 512 bits (AVX-512): of pairs of bf16 (AVX512_BF16), of bf16
 * widened to f32, and of f32 (by bf16, too): gemm.way says which. Only where tile_has_wide; pairs:
 * tile_has_pairs.
 *
 * Every element of C is one chain over k in ascending order, f32, in steps of one or of a pair,
 * whatever M, N, the other rows, or the number of threads; what is added to joins at the end.
 * B is packed to panels on the way, phase by phase, beside the products of the phase before, or,
 * where A has few rows, by each task for itself. A is read where it stands (widened a few rows at a
 * time), or packed where its rows are not contiguous (gradients of weights).
 */
#ifndef KERNELS_CPU_GEMM_WIDE_H
#define KERNELS_CPU_GEMM_WIDE_H

#include "kernels/cpu/gemm.h"

/* Whether this product's dtypes and strides are ones it has kernels for, by its way. */
bool gemm_wide_takes(const struct gemm *gemm);

/* B in panels as the kernel reads it: gemm.packed. Only where A is read as it stands, else 0
 * floats. out[gemm_wide_packed_floats(gemm)]. */
size_t gemm_wide_packed_floats(const struct gemm *gemm);
void gemm_wide_pack(struct device *device, float *out, const struct gemm *gemm);

/* Runs `count` products, none of them empty, which gemm_wide_takes. */
void gemm_wide_run(struct device *device, const struct gemm *batch, int64_t count);

#endif
