/* fp8_grouped_gemm: C[M, N] = scale * A[M, K] B[g][N, K]^T, e4m3 in, bf16 out, rows sorted by group
 * g.
 *
 * Warp-specialised for Hopper: one warpgroup feeds a ring of STAGES tiles by TMA, two multiply
 * them, 64 rows each. A stage goes round: producer waits for "empty", announces the bytes on "full"
 * and loads; consumers wait for "full", multiply, and every warp of them arrives on "empty" once
 * its own wgmma have read the stage. K a multiple of 128, N of 128; groups of any size, empty ones
 * too. Bound: 2 M N K FLOP at the tensor cores' e4m3 rate.
 */
#include "samples.h"

#include "kernels/cuda/ptx.cuh"

enum { BLOCK_M = 128, BLOCK_N = 128, BLOCK_K = 128, STAGES = 4, CONSUMER_WARPS = 8 };

struct shared_tiles {
    alignas(1024) uint8_t a[STAGES][BLOCK_M * BLOCK_K];
    alignas(1024) uint8_t b[STAGES][BLOCK_N * BLOCK_K];
    uint64_t full[STAGES], empty[STAGES];
};

/* Rows [row, end) of the tile and its group; group = groups when the grid has more tiles than
 * needed. */
struct tile {
    int group, row, end;
};
static __device__ struct tile tile_find(int index, const int *offset, int groups)
{
    struct tile t = {0, 0, 0};
    for (; t.group < groups; t.group++) {
        int first = offset[t.group], tiles = (offset[t.group + 1] - first + BLOCK_M - 1) / BLOCK_M;
        if (index < tiles) {
            t.row = first + index * BLOCK_M;
            t.end = offset[t.group + 1];
            break;
        }
        index -= tiles;
    }
    return t;
}

static __device__ void produce(struct shared_tiles *s, const CUtensorMap *map_a,
                               const CUtensorMap *map_b, int row, int column, int k_tiles)
{
    for (int k = 0; k < k_tiles; k++) {
        int stage = k % STAGES;
#ifndef MUTANT_NO_EMPTY_WAIT
        mbarrier_wait(&s->empty[stage], (k / STAGES & 1) ^ 1);
#endif
#ifdef MUTANT_WRONG_TX
        mbarrier_arrive_expect_tx(&s->full[stage], BLOCK_M * BLOCK_K);
#else
        mbarrier_arrive_expect_tx(&s->full[stage], (BLOCK_M + BLOCK_N) * BLOCK_K);
#endif
        tma_load_2d(s->a[stage], map_a, &s->full[stage], k * BLOCK_K, row);
        tma_load_2d(s->b[stage], map_b, &s->full[stage], k * BLOCK_K, column);
    }
}

static __device__ void release(uint64_t *empty)
{
#ifdef MUTANT_ONE_WARP_ARRIVES
    if (threadIdx.x % 128 == 0)
#else
    if (threadIdx.x % 32 == 0)
#endif
        mbarrier_arrive(empty);
}

static __device__ void consume(struct shared_tiles *s, float (&sum)[BLOCK_N / 2], int half,
                               int k_tiles)
{
    for (int k = 0; k < k_tiles; k++) {
        int stage = k % STAGES;
#ifndef MUTANT_NO_FULL_WAIT
        mbarrier_wait(&s->full[stage], k / STAGES & 1);
#endif
        wgmma_hold(sum);
#ifndef MUTANT_NO_WGMMA_FENCE
        wgmma_fence();
#endif
#pragma unroll
        for (int i = 0; i < BLOCK_K / 32; i++)
            wgmma_e4m3(sum,
                       wgmma_descriptor(s->a[stage] + half * 64 * BLOCK_K + 32 * i, 16, 1024,
                                        SWIZZLE_128B),
                       wgmma_descriptor(s->b[stage] + 32 * i, 16, 1024, SWIZZLE_128B),
                       k > 0 || i > 0);
        wgmma_commit();
        wgmma_hold(sum);
#ifdef MUTANT_EARLY_RELEASE
        release(&s->empty[stage]);
        wgmma_wait<0>();
#else
#ifndef MUTANT_NO_WGMMA_WAIT
        wgmma_wait<0>();
#endif
        release(&s->empty[stage]);
#endif
    }
}

__global__ void __launch_bounds__(384, 1)
    fp8_grouped_gemm_kernel(const __grid_constant__ CUtensorMap map_a,
                            const __grid_constant__ CUtensorMap map_b,
                            __nv_bfloat16 *__restrict__ c, const int *__restrict__ offset,
                            int groups, int n, int k, float scale)
{
    SMEM_DYN(raw);
    struct shared_tiles *s = reinterpret_cast<struct shared_tiles *>(raw);
    struct tile t = tile_find(blockIdx.y, offset, groups);
    if (t.group == groups)
        return;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&s->full[i], 1);
#ifdef MUTANT_ONE_WARP_ARRIVES
            mbarrier_init(&s->empty[i], CONSUMER_WARPS / 4);
#else
            mbarrier_init(&s->empty[i], CONSUMER_WARPS);
#endif
        }
#ifndef MUTANT_NO_INIT_FENCE
        fence_mbarrier_init();
#endif
    }
    __syncthreads();
    int column = blockIdx.x * BLOCK_N, warpgroup = threadIdx.x / 128;
    if (warpgroup == 0) {
        registers_decrease<40>();
        if (threadIdx.x == 0)
            produce(s, &map_a, &map_b, t.row, t.group * n + column, k / BLOCK_K);
        return;
    }
#ifdef MUTANT_TOO_MANY_REGISTERS
    registers_increase<240>();
#else
    registers_increase<232>();
#endif
    float sum[BLOCK_N / 2];
    consume(s, sum, warpgroup - 1, k / BLOCK_K);
    int own = threadIdx.x % 128;
    int row = t.row + (warpgroup - 1) * 64 + own / 32 * 16 + own % 32 / 4;
#pragma unroll
    for (int i = 0; i < BLOCK_N / 2; i += 2) {
        int r = row + (i / 2 % 2) * 8, q = column + i / 4 * 8 + own % 4 * 2;
        if (r < t.end)
            *reinterpret_cast<__nv_bfloat162 *>(c + (size_t)r * n + q) =
                __floats2bfloat162_rn(sum[i] * scale, sum[i + 1] * scale);
    }
}

extern "C" cudaError_t launch_fp8_grouped_gemm(cudaStream_t stream, const CUtensorMap *map_a,
                                               const CUtensorMap *map_b, uint16_t *c,
                                               const int *offset, int groups, int tiles, int n,
                                               int k, float scale)
{
    cudaError_t error = ALLOW_SMEM(fp8_grouped_gemm_kernel, sizeof(struct shared_tiles));
    if (error == cudaSuccess)
        LAUNCH(fp8_grouped_gemm_kernel, dim3(n / BLOCK_N, tiles), 384, sizeof(struct shared_tiles),
               stream, *map_a, *map_b, (__nv_bfloat16 *)c, offset, groups, n, k, scale);
    return error;
}
