/* cuda_ops_fp8: the CUDA device's own kernels of struct fp8_ops (kernels/ops_fp8.h says what each
 * computes), with a stream in place of the device; the rules of cuda_ops.h hold. Codes, scales and
 * counters have the CPU device's bytes, but where sums, exp or the contraction of a * b + c come
 * before the codes (norm_forward, swiglu_*): there they are those of the same kernels' numbers in
 * cuda_ops.h, quantised.
 */
#ifndef KERNELS_CUDA_CUDA_OPS_FP8_H
#define KERNELS_CUDA_CUDA_OPS_FP8_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/ops_fp8.h"

/* ---- movers. Tensors 16-byte aligned; at most 1024 groups, whose offsets the kernels read. ----
 */

/* ---- fp8_quantize.cu ---- */
void cuda_fp8_quantize(void *stream, struct fp8_rows q, struct fp8_rows t, struct tensor x,
                       const int32_t *row, int64_t rows, const int64_t *offset, int64_t groups,
                       const struct fp8_how *how);
void cuda_fp8_transpose(void *stream, struct fp8_rows t, struct fp8_rows q, const int64_t *offset,
                        int64_t groups, const struct fp8_how *how);

/* ---- fp8_pack.cu ---- */
void cuda_fp8_pack(void *stream, uint8_t *packed, struct tensor x, const int32_t *row, int64_t rows,
                   const struct fp8_how *how);
void cuda_fp8_unpack(void *stream, struct fp8_rows q, const uint8_t *packed, int64_t rows,
                     const int32_t *row);
void cuda_fp8_e5m6_pack(void *stream, uint8_t *packed, struct tensor x);
void cuda_fp8_e5m6_unpack(void *stream, struct tensor x, const uint8_t *packed);

/* ---- fp8_weights.cu. The transpose wants rows to be a multiple of 16 too. ---- */
void cuda_fp8_quantize_weights(void *stream, struct fp8_weights w, struct fp8_weights t,
                               const void *src, int64_t stride, const struct fp8_how *how);

/* ---- fp8_norm.cu ---- */
void cuda_fp8_norm_forward(void *stream, struct fp8_rows q, struct tensor y, struct tensor sum,
                           float *rstd, struct tensor x, struct tensor delta, struct tensor w,
                           float eps, const struct fp8_how *how);

/* ---- fp8_swiglu.cu, fp8_swiglu_backward.cu ---- */
void cuda_fp8_swiglu_forward(void *stream, struct fp8_rows h, struct fp8_rows kept,
                             struct tensor gate_up, const int64_t *offset, int64_t groups,
                             const struct fp8_how *how);
void cuda_fp8_swiglu_backward(void *stream, struct fp8_rows d, struct fp8_rows dt,
                              struct fp8_rows ht, struct tensor dh, struct tensor gate_up,
                              struct fp8_rows kept, const int64_t *offset, int64_t groups,
                              const struct fp8_how *how);

/* ---- fp8_combine.cu ---- */
void cuda_fp8_combine_rows_backward(void *stream, struct fp8_rows q, uint8_t *packed,
                                    float *dweight, struct tensor dy, struct tensor x,
                                    const int32_t *slot_row, const float *weight, int64_t top_k,
                                    const struct fp8_how *how);

/* ---- gemm_fp8.cu, gemm_fp8_sm90.cu, gemm_fp8_mma.cu ----
 * Hopper: tensor cores at 8 bits, promoted to f32 every 128 of K; elsewhere, and where no map of
 * the operands can be made, the codes as bfloat16, which is exact. An element of y depends on
 * nothing but its row, its group's w and the GPU: not on the tile, the number of rows or what
 * stands in them. */
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
    int cluster; /* blocks that load A together: 2 side by side, or 1 */
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
/* Seconds of the best tile, *tile, on an H100: kernels/device.h, device_fp8_product. */
double cuda_fp8_seconds(bool weight, int64_t rows, int64_t out, int64_t in, int64_t groups,
                        struct cuda_fp8_tile *tile);
/* A usual number of rows of a group, where none may decide. */
enum { CUDA_FP8_ANY_ROWS = 512 };
/* cuda_fp8_linear and cuda_fp8_linear_weight by that tile and at most so many blocks (0: one for
 * each multiprocessor), for tests and benchmarks. false: this GPU has no such kernels, or no
 * map of the operands can be made. */
struct cuda_fp8_by {
    int tile, blocks;
    int64_t rows; /* tile -1: the best for groups of so many, 0: for those there are */
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
