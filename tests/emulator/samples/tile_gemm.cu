/* tile_gemm: C[M, N] = A[M, K] B[N, K]^T of bf16 on CUDA cores: 64 x 64 tiles, 256 threads, 4 x 4
 * each. K a multiple of 32; M, N any. */
#include "samples.h"

#include "kernels/cuda/simt.cuh"

enum { TILE = 64, DEPTH = 32, EACH = 4 };

/* Eight neighbours of row `row`, or zeros past the end, into a transposed tile. */
static __device__ void load_eight(float (&tile)[DEPTH][TILE + 4], const __nv_bfloat16 *x, int row,
                                  int rows, int stride, int first, int r, int column)
{
    uint4 packed = make_uint4(0, 0, 0, 0);
    if (row < rows)
        packed = *reinterpret_cast<const uint4 *>(x + (size_t)row * stride + first + column);
    const __nv_bfloat162 *pairs = reinterpret_cast<const __nv_bfloat162 *>(&packed);
    for (int i = 0; i < 4; i++) {
        float2 two = __bfloat1622float2(pairs[i]);
        tile[column + 2 * i][r] = two.x;
        tile[column + 2 * i + 1][r] = two.y;
    }
}

__global__ void __launch_bounds__(256)
    tile_gemm_kernel(const __nv_bfloat16 *__restrict__ a, const __nv_bfloat16 *__restrict__ b,
                     float *__restrict__ c, int m, int n, int k)
{
    SMEM(float, tile_a, [DEPTH][TILE + 4]);
    SMEM(float, tile_b, [DEPTH][TILE + 4]);
    int x = threadIdx.x % 16 * EACH, y = threadIdx.x / 16 * EACH;
    int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    int r = threadIdx.x / 4, column = threadIdx.x % 4 * 8;
    float sum[EACH][EACH] = {};
    for (int first = 0; first < k; first += DEPTH) {
        load_eight(tile_a, a, m0 + r, m, k, first, r, column);
        load_eight(tile_b, b, n0 + r, n, k, first, r, column);
        __syncthreads();
        for (int i = 0; i < DEPTH; i++)
            for (int p = 0; p < EACH; p++)
                for (int q = 0; q < EACH; q++)
                    sum[p][q] += tile_a[i][y + p] * tile_b[i][x + q];
#ifndef MUTANT_NO_TRAILING_SYNC
        __syncthreads();
#endif
    }
    for (int p = 0; p < EACH; p++)
        for (int q = 0; q < EACH; q++)
            if (m0 + y + p < m && n0 + x + q < n)
                c[(size_t)(m0 + y + p) * n + n0 + x + q] = sum[p][q];
}

extern "C" void launch_tile_gemm(cudaStream_t stream, const uint16_t *a, const uint16_t *b,
                                 float *c, int m, int n, int k)
{
    LAUNCH(tile_gemm_kernel, dim3((n + TILE - 1) / TILE, (m + TILE - 1) / TILE), 256, 0, stream,
           (const __nv_bfloat16 *)a, (const __nv_bfloat16 *)b, c, m, n, k);
}
