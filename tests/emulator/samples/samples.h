/* samples: kernels that test the emulator, each with a launcher callable from C.
 *
 * Built with -DMUTANT_X a sample is the same kernel with one seeded bug; CMakeLists.txt lists them
 * with the mode (plain, asan, tsan) that has to find each.
 */
#ifndef EMULATOR_SAMPLES_H
#define EMULATOR_SAMPLES_H

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
/* *sum += x[0] + ... + x[n - 1] */
void launch_row_sum(cudaStream_t stream, const float *x, float *sum, int n, int blocks);
/* count[experts] += how often each expert occurs in expert[n]; experts <= 64 */
void launch_histogram(cudaStream_t stream, const int *expert, int n, int experts, int *count,
                      int blocks);
/* c[m, n] = a[m, k] b[n, k]^T, bf16 as bits; k a multiple of 32 */
void launch_tile_gemm(cudaStream_t stream, const uint16_t *a, const uint16_t *b, float *c, int m,
                      int n, int k);
/* y[rows, 256] = x[rows, 256] / largest magnitude of the row */
void launch_scale_rows(cudaStream_t stream, const float *x, float *y, int rows);
/* map_a: a[m, k], map_b: b[groups * n, k], boxes of 128 x 128 bytes; c: bf16 as bits; group g has
 * rows offset[g] to offset[g + 1]; tiles >= sum of each group's rows / 128, rounded up */
cudaError_t launch_fp8_grouped_gemm(cudaStream_t stream, const CUtensorMap *map_a,
                                    const CUtensorMap *map_b, uint16_t *c, const int *offset,
                                    int groups, int tiles, int n, int k, float scale);
/* map_x: x[m, n], map_y: y[n, m], float, boxes of 32 x 32; a block does `tiles` tiles */
void launch_tma_transpose(cudaStream_t stream, const CUtensorMap *map_x, const CUtensorMap *map_y,
                          int m, int n, int tiles);
/* map_x: x[pairs * rows, 64] of float, boxes of 1 x 32; block b of sum[2 * pairs, 32] gets, of its pair's rows, the
 * sums of the first halves plus twice the second, times b % 2 + 1 */
void launch_pair_sum(cudaStream_t stream, const CUtensorMap *map_x, float *sum, int pairs, int rows);
/* y[n] = scale x[n] + shift */
void launch_affine(cudaStream_t stream, const float *x, float *y, int n, float scale, float shift);
#ifdef __cplusplus
}
#endif

#endif
