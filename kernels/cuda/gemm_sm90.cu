/* gemm_sm90: products of bf16 operands by Hopper's wgmma, f32 accumulators; dense or grouped.
 *
 * Persistent blocks of three warpgroups. The first feeds a ring of STAGES tiles of 64 k by TMA; the
 * other two multiply them, 64 rows of C each, 256 columns (128 where C is narrow, or, of one
 * product, has few tiles). A stage goes round: the producer waits for "empty", announces the bytes
 * on "full" and loads; consumers wait for "full", multiply, and every warp of them arrives on
 * "empty" once the wgmma that read the stage are complete: those of the next stage are issued
 * before. While consumers store a tile the ring fills with the next one's.
 *
 * An expert's w is a plane of a 3-D map, so that boxes do not reach into the next expert's. Rows of
 * x and dy past an expert's last are the next expert's: FORWARD and INPUT do not store them; the
 * WEIGHT pass, which sums over rows, zeroes them in shared memory in its last stage, both operands,
 * since what lies there may be no number.
 *
 * FLOPs 2 m n k; bytes of A, B and C, each A tile read n / 256 times and B tile m / 128 times,
 * mostly from L2 (see tile_order); WEIGHT reads and writes C in f32. Bound: 989 TFLOP/s from some
 * 300 rows of an expert on.
 */
#include "kernels/cuda/gemm_hopper.cuh"

enum {
    DEPTH = 64,
    STAGES = 4,
    TILE_M = 128,
    CONSUMERS = 256,
    THREADS = 128 + CONSUMERS,
    BLOCK = 64 * DEPTH, /* elements of 64 rows of a tile: 8 KiB, 128 bytes a row or k */
    GIVEN = 56,         /* registers of a producer's thread, and of a consumer's: */
    TAKEN = 224,        /* together what the block is launched with, 168 x 384 */
};
static_assert(128 * GIVEN + CONSUMERS * TAKEN <= 65536 / THREADS / 8 * 8 * THREADS,
              "an increase would wait for ever");

template <int TILE_N> struct shared_tiles {
    alignas(1024) bf16 a[STAGES][TILE_M / 64 * BLOCK];
    alignas(1024) bf16 b[STAGES][TILE_N / 64 * BLOCK];
    alignas(16) float out[CONSUMERS / 32][16 * STAGED];
    uint64_t full[STAGES], empty[STAGES];
};

/* Calls body(tile) for each of the block's tiles; whole warps call. */
template <enum gemm_pass pass, int TILE_N, class F>
DEVICE void for_tiles(const struct gemm &g, F body)
{
    const int64_t columns = (g.n + TILE_N - 1) / TILE_N;
    int64_t rows = (g.m + TILE_M - 1) / TILE_M;
    if (pass != GEMM_WEIGHT && g.offset != nullptr) {
        rows = warp_sum(lane_tiles(g.offset, g.experts, TILE_M));
    }
    const int64_t each = rows * columns, count = pass == GEMM_WEIGHT ? each * g.experts : each;
    for (int64_t i = blockIdx.x; i < count; i += gridDim.x) {
        struct gemm_tile t;
        int64_t row, column;
        t.expert = pass == GEMM_WEIGHT ? (int)(i / each) : 0;
        tile_order(pass == GEMM_WEIGHT ? i % each : i, rows, columns, &row, &column);
        t.m = row * TILE_M;
        t.m_end = g.m;
        t.n = column * TILE_N;
        t.k = 0;
        t.k_end = g.k;
        if (g.offset != nullptr && pass == GEMM_WEIGHT) {
            t.k = g.offset[t.expert];
            t.k_end = g.offset[t.expert + 1];
        } else if (g.offset != nullptr) {
            find_rows(&t, g.offset, g.experts, row, TILE_M);
        }
        if (t.k < t.k_end) {
            body(t);
        }
        __syncwarp();
    }
}

template <enum gemm_pass pass, int TILE_N>
DEVICE void produce(struct shared_tiles<TILE_N> *s, const CUtensorMap *map_a,
                    const CUtensorMap *map_b, const struct gemm_tile &t, struct ring<STAGES> *ring)
{
    for (int64_t k = t.k; k < t.k_end; k += DEPTH, ring->used++) {
        const int stage = ring->stage(), at = (int)k;
        uint64_t *full = &s->full[stage];
        mbarrier_wait(&s->empty[stage], ring->parity() ^ 1);
        mbarrier_arrive_expect_tx(full, (TILE_M + TILE_N) * DEPTH * (int)sizeof(bf16));
        if constexpr (pass == GEMM_WEIGHT) {
            for (int i = 0; i < TILE_M / 64; i++) {
                tma_load_2d(s->a[stage] + i * BLOCK, map_a, full, (int)t.m + 64 * i, at);
            }
        } else {
            tma_load_2d(s->a[stage], map_a, full, at, (int)t.m);
        }
        if constexpr (pass == GEMM_FORWARD) {
            tma_load_3d(s->b[stage], map_b, full, at, (int)t.n, t.expert);
        } else {
            for (int i = 0; i < TILE_N / 64; i++) {
                tma_load_3d(s->b[stage] + i * BLOCK, map_b, full, (int)t.n + 64 * i, at,
                            pass == GEMM_WEIGHT ? 0 : t.expert);
            }
        }
    }
}

/* Zeroes k's from `there` on in both operands of a stage, where each k has a row of 128 bytes in
 * every block. All consumers call; swizzling moves bytes within rows only. */
template <int TILE_N> DEVICE void zero_tail(struct shared_tiles<TILE_N> *s, int stage, int there)
{
    const int row_parts = 128 / (int)sizeof(uint4), parts = (DEPTH - there) * row_parts;
    for (int i = (int)threadIdx.x - 128; i < parts * (TILE_M + TILE_N) / 64; i += CONSUMERS) {
        const int block = i / parts, at = there * row_parts + i % parts;
        bf16 *base = block < TILE_M / 64 ? s->a[stage] + block * BLOCK
                                         : s->b[stage] + (block - TILE_M / 64) * BLOCK;
        ((uint4 *)base)[at] = make_uint4(0, 0, 0, 0);
    }
    fence_proxy_async();
    named_barrier_sync(1, CONSUMERS);
}

/* The wgmma of a stage for rows [64 group, 64 group + 64) of the tile. Along k a k-major operand
 * goes on 32 bytes in its rows, another 16 rows. */
template <enum gemm_pass pass, int TILE_N>
DEVICE void multiply(float (&sum)[TILE_N / 2], struct shared_tiles<TILE_N> *s, int stage, int group,
                     bool accumulate)
{
    constexpr int a_mn = pass == GEMM_WEIGHT, b_mn = pass != GEMM_FORWARD;
    constexpr int a_step = a_mn ? 16 * 64 : 16, b_step = b_mn ? 16 * 64 : 16;
    constexpr uint32_t across = BLOCK * sizeof(bf16); /* from 64 rows of an operand to the next */
    const bf16 *a = s->a[stage] + group * BLOCK, *b = s->b[stage];
    wgmma_hold(sum);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++) {
        wgmma_bf16<a_mn, b_mn>(sum, wgmma_descriptor(a + i * a_step, across, 1024, SWIZZLE_128B),
                               wgmma_descriptor(b + i * b_step, across, 1024, SWIZZLE_128B),
                               accumulate || i > 0);
    }
    wgmma_commit();
    wgmma_hold(sum);
}

template <int TILE_N> DEVICE void release(struct shared_tiles<TILE_N> *s, int stage)
{
    if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(&s->empty[stage]);
    }
}

template <enum gemm_pass pass, int TILE_N>
DEVICE void consume(float (&sum)[TILE_N / 2], struct shared_tiles<TILE_N> *s,
                    const struct gemm_tile &t, int group, struct ring<STAGES> *ring)
{
    int before = -1;
    for (int64_t k = t.k; k < t.k_end; k += DEPTH, ring->used++) {
        const int stage = ring->stage();
        mbarrier_wait(&s->full[stage], ring->parity());
        if (pass == GEMM_WEIGHT && t.k_end - k < DEPTH) {
            zero_tail(s, stage, (int)(t.k_end - k));
        }
        multiply<pass, TILE_N>(sum, s, stage, group, k > t.k);
        if (before >= 0) {
            wgmma_wait<1>();
            release(s, before);
        }
        before = stage;
    }
    wgmma_wait<0>();
    wgmma_hold(sum);
    release(s, before);
}

template <enum gemm_pass pass, int TILE_N>
__global__ void __launch_bounds__(THREADS, 1)
    gemm_sm90_kernel(const __grid_constant__ CUtensorMap map_a,
                     const __grid_constant__ CUtensorMap map_b,
                     const __grid_constant__ struct gemm g)
{
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
    __trap(); /* the launcher asks for compute capability 9 */
#else
    SMEM_DYN(raw);
    struct shared_tiles<TILE_N> *s = (struct shared_tiles<TILE_N> *)raw;
    const int warp = (int)threadIdx.x / 32;
    struct ring<STAGES> ring = {
        0
    };
    ring_init(s->full, s->empty, CONSUMERS / 32);
    __syncthreads();
    if (warp < 4) {
        registers_decrease<GIVEN>();
        if (warp == 0) {
            for_tiles<pass, TILE_N>(g, [&](const struct gemm_tile &t) {
                if (threadIdx.x == 0) {
                    produce<pass, TILE_N>(s, &map_a, &map_b, t, &ring);
                }
            });
        }
        return;
    }
    registers_increase<TAKEN>();
    const int group = warp / 4 - 1;
    for_tiles<pass, TILE_N>(g, [&](const struct gemm_tile &t) {
        float sum[TILE_N / 2];
        consume<pass, TILE_N>(sum, s, t, group, &ring);
        const int64_t m = t.m + 64 * group + warp % 4 * 16;
        if (pass == GEMM_WEIGHT || g.c_dtype == DTYPE_F32) {
            store_tile<pass, float>(g, t, sum, s->out[warp - 4], m, t.n);
        } else {
            store_tile<pass, bf16>(g, t, sum, s->out[warp - 4], m, t.n);
        }
    });
#endif
}

/* ---- launch ---- */

/* A matrix of `rows` rows, or `planes` of them, in boxes of 64 columns and box_rows rows. */
static bool encode(CUtensorMap *map, const void *data, int rank, int64_t cols, int64_t rows,
                   int64_t ld, int64_t planes, int64_t plane, int box_rows)
{
    const struct matrix_map m = {data,
                                 CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                 (int)sizeof(bf16),
                                 rank,
                                 cols,
                                 rows,
                                 ld,
                                 planes,
                                 plane,
                                 64,
                                 box_rows,
                                 CU_TENSOR_MAP_SWIZZLE_128B};
    return encode(map, m);
}

template <enum gemm_pass pass, int TILE_N>
static bool launch_tiles(cudaStream_t stream, const struct gemm &g, int multiprocessors)
{
    constexpr int BYTES = (int)sizeof(struct shared_tiles<TILE_N>);
    constexpr bool weight = pass == GEMM_WEIGHT;
    const int64_t tiles =
        row_tiles(&g, pass, TILE_M) * tiles_of(g.n, TILE_N) * (weight ? g.experts : 1);
    const unsigned grid = (unsigned)(tiles < multiprocessors ? tiles : multiprocessors);
    CUtensorMap map_a, map_b;
    const bool encoded =
        (weight ? encode(&map_a, g.a, 2, g.m, g.k, g.lda, 1, 0, DEPTH)
                : encode(&map_a, g.a, 2, g.k, g.m, g.lda, 1, 0, TILE_M)) &&
        (pass == GEMM_FORWARD
             ? encode(&map_b, g.b, 3, g.k, g.n, g.ldb, g.experts, g.stride, TILE_N)
             : encode(&map_b, g.b, 3, g.n, g.k, g.ldb, weight ? 1 : g.experts, g.stride, DEPTH));
    if (!encoded || ALLOW_SMEM((gemm_sm90_kernel<pass, TILE_N>), BYTES) != cudaSuccess) {
        (void)cudaGetLastError(); /* the caller has another kernel: no error of its launch */
        return false;
    }
    LAUNCH((gemm_sm90_kernel<pass, TILE_N>), grid, THREADS, BYTES, stream, map_a, map_b, g);
    return true;
}

template <enum gemm_pass pass> static bool launch_pass(cudaStream_t stream, struct gemm g)
{
    const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
    const int64_t rows = row_tiles(&g, pass, TILE_M) * (pass == GEMM_WEIGHT ? g.experts : 1);
    gemm_widths(&g, pass, 8, 4);
    assert(pass != GEMM_WEIGHT || g.c_dtype == DTYPE_F32);
    if (!g.wide_a || !g.wide_b || g.k == 0 || g.m > INT32_MAX || g.n > INT32_MAX ||
        g.k > INT32_MAX || attribute(cudaDevAttrComputeCapabilityMajor) != 9) {
        return false;
    }
    /* Rows of experts come from the routing and the layout of ranks, which must not decide. */
    const bool few = g.offset != nullptr && pass != GEMM_WEIGHT
                         ? g.n <= 128
                         : rows * tiles_of(g.n, 256) < multiprocessors;
    return (few ? launch_tiles<pass, 128> : launch_tiles<pass, 256>)(stream, g, multiprocessors);
}

bool gemm_sm90_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm *g)
{
    assert(g->a_dtype == DTYPE_BF16 && g->b_dtype == DTYPE_BF16);
    return (pass == GEMM_FORWARD ? launch_pass<GEMM_FORWARD>
            : pass == GEMM_INPUT ? launch_pass<GEMM_INPUT>
                                 : launch_pass<GEMM_WEIGHT>)(stream, *g);
}
