/* cuda_ops_fp8: the launchers of struct fp8_ops (kernels/ops_fp8.h says what each computes), by the
 * rules of cuda_ops.h: a stream in place of the device, nothing but enqueued, scratch handed over.
 */
#ifndef KERNELS_CUDA_CUDA_OPS_FP8_H
#define KERNELS_CUDA_CUDA_OPS_FP8_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/ops_fp8.h"

/* ---- gemm_fp8.cu, gemm_fp8_sm90.cu, gemm_fp8_mma.cu ----
 * Hopper: tensor cores at 8 bits, promoted to f32 every 128 of K; elsewhere the codes as bfloat16,
 * which is exact. An element of y depends on nothing but its row, its group's w and the GPU: not on
 * the tile, the number of rows or what stands in them. */
void cuda_fp8_linear(void *stream, struct tensor y, struct fp8_rows x, struct fp8_weights w,
                     const int64_t *offset, bool add);
void cuda_fp8_linear_weight(void *stream, float *dw, int64_t stride, struct fp8_rows dyt,
                            struct fp8_rows xt, const int64_t *offset, int64_t groups,
                            int64_t tokens);

/* Hopper's tiles of C. Every one gives the same bits of linear; the launchers above take the one
 * of least predicted time. */
struct cuda_fp8_tile {
    int rows, cols, stages; /* of the ring, 128 of K each */
    int shared_bytes;
};
struct cuda_fp8_shape {
    int64_t rows, out, in; /* y[rows,out] = x[rows,in] w^T; dw[out,in] from `rows` tokens */
    int64_t groups;
    int multiprocessors;
};
/* How many there are; *out: tile `tile`, where there is one. */
int cuda_fp8_tiles(bool weight, int tile, struct cuda_fp8_tile *out);
/* Predicted cycles of tile `tile`, and the tile with the least. */
double cuda_fp8_tile_cycles(bool weight, int tile, const struct cuda_fp8_shape *shape);
int cuda_fp8_tile_choice(bool weight, const struct cuda_fp8_shape *shape);
/* cuda_fp8_linear and cuda_fp8_linear_weight by that tile and at most so many blocks (0: one for
 * each multiprocessor), for tests and benchmarks. false: this GPU has no such kernels. */
struct cuda_fp8_by {
    int tile, blocks;
};
bool cuda_fp8_linear_by(void *stream, struct cuda_fp8_by by, struct tensor y, struct fp8_rows x,
                        struct fp8_weights w, const int64_t *offset, bool add);
bool cuda_fp8_linear_weight_by(void *stream, struct cuda_fp8_by by, float *dw, int64_t stride,
                               struct fp8_rows dyt, struct fp8_rows xt, const int64_t *offset,
                               int64_t groups, int64_t tokens);

#ifdef __cplusplus
}
#endif

#endif
