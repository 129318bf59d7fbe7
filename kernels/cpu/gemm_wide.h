/* gemm_wide: products by vectors of 512 bits (AVX-512): of pairs of bf16 (AVX512_BF16), of bf16
 * widened to f32, and of f32 (by bf16, too): gemm.way says which. Only where tile_has_wide; pairs:
 * tile_has_pairs.
 *
 * Every element of C is a sum, in ascending order, of chains over 512 of k, or 512 pairs, each f32
 * in steps of one or of a pair, whatever M, N, the other rows, or the number of threads; what is
 * added to joins at the end. So roundings grow as 512 + k / 512, not as k (Higham, Accuracy and
 * Stability of Numerical Algorithms, 2002, section 4.2).
 * A thread packs B's columns for itself, as many as its second cache holds, then multiplies rows
 * with them: no thread waits for another, nor reads what it wrote. A is read where it stands (a few
 * rows at a time are copied where they are widened or 4 KiB apart), or packed, a tile at a time,
 * where its rows are not contiguous (gradients of weights). Products with sums so long that the
 * columns would leave that cache (gradients of weights over many tokens, of a head's inputs) are
 * deep: 512 words of k of all columns and rows of a task are packed and multiplied, then the next.
 */
#ifndef KERNELS_CPU_GEMM_WIDE_H
#define KERNELS_CPU_GEMM_WIDE_H

#include "kernels/cpu/gemm.h"

/* Whether this product's dtypes and strides are ones it has kernels for, by its way. */
bool gemm_wide_takes(const struct gemm *gemm);

/* Runs `count` products, none of them empty, which gemm_wide_takes. */
void gemm_wide_run(struct device *device, const struct gemm *batch, int64_t count);

#endif
