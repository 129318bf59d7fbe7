/* gemm_fp8_sm90: products of E4M3 codes by Hopper's wgmma, dense or grouped (gemm_fp8.cuh).
 *
 * Persistent blocks of three warpgroups. The first feeds a ring of stages, 128 k of both operands
 * and their scales, by TMA; the other two multiply, WAVES times 64 rows of WIDTH columns each, one
 * above the other or side by side. A step of 128 k is four wgmma into accumulators that begin at 0,
 * since the tensor cores keep some 14 bits only (DeepSeek-V3, arXiv 2412.19437, 3.3.2); the step's
 * sums times the scales are then added to f32 registers. While one warpgroup does that, the other's
 * wgmma run. A stage is given back as soon as nobody reads it; while a tile is stored the ring
 * fills with the next one's.
 *
 * Scales of w, one for 128 x 128, come from global memory one step ahead: all threads read the same
 * one, or two where the columns of a warpgroup lie in two blocks.
 *
 * Layouts of CLUSTER 2 run as pairs of blocks on neighbouring tiles of the same rows. Each loads
 * half of A's codes of a step for both, so that these come from L2 once; a stage is free when the
 * consumers of both blocks have given it back. With an odd number of tiles across, the last pair's
 * second tile lies past the last column: it is zeros, multiplied and not stored.
 *
 * Rows of a tile past its group's last are the next group's: they are multiplied and not stored,
 * for a row of C depends on no other. FLOPs 2 m n k; bytes: codes of A n / cols times (in
 * pairs half of that), of B m / rows times for tiles of rows x cols, mostly from L2; C once
 * (WEIGHT: in f32, read and written). Bound: 1979 TFLOP/s; L2 gives about 47 bytes a cycle and
 * multiprocessor at most, of which 256 x 128 needs 48 (in pairs 32), 128 x 192 53 and smaller tiles
 * more: hence the table of tiles and their cycles.
 */
#include "kernels/cuda/gemm_fp8.cuh"
#include "kernels/cuda/gemm_fp8_cost.cuh"
#include "kernels/cuda/gemm_hopper.cuh"

enum {
    CONSUMERS = 256,
    THREADS = 128 + CONSUMERS,
    SHARED = 232448, /* bytes of a block at most */
    GIVEN = 40,      /* registers of a producer's thread, and of a consumer's: */
    TAKEN = 232,     /* together what the block is launched with, 168 x 384 */
};
static_assert(128 * GIVEN + CONSUMERS * TAKEN <= 65536 / THREADS / 8 * 8 * THREADS,
              "an increase would wait for ever");

static constexpr int common_divisor(int a, int b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

/* Two warpgroups, DOWN of them above each other. */
template <enum gemm_pass pass_, int down, int waves, int width, int cluster = 1> struct layout {
    static constexpr enum gemm_pass pass = pass_;
    static constexpr bool WEIGHT = pass == GEMM_WEIGHT;
    static constexpr int DOWN = down, WAVES = waves, WIDTH = width, CLUSTER = cluster;
    static constexpr int TILE_M = 64 * down * waves, TILE_N = width * (2 / down);
    /* Neighbouring columns that always have the same scale of w. */
    static constexpr int SEGMENT = common_divisor(width, FP8_TILE);
    static constexpr int SCALES_B = WEIGHT ? (TILE_N + 31) / 32 * 32 : 0;
    static constexpr int LOADED =
        (TILE_M + TILE_N) * FP8_TILE + (TILE_M + (WEIGHT ? TILE_N : 0)) * (int)sizeof(float);
    static constexpr int STAGE = (TILE_M + TILE_N) * FP8_TILE + (TILE_M + SCALES_B) * 4 + 40;
    static constexpr int OUT = 16 * STAGED; /* floats of a warp's part of C */
    static constexpr int FIT = (SHARED - CONSUMERS / 32 * OUT * 4) / STAGE;
    static constexpr int STAGES = FIT < 8 ? FIT : 8;
    /* With FP8_TILE - SEGMENT before it, it ends in the second block. */
    static_assert(WEIGHT || FP8_TILE - SEGMENT + WIDTH <= 2 * FP8_TILE, "three scales of w");
    static_assert(STAGES >= 3 && TILE_N <= 256, "");
    static constexpr int PART_M = TILE_M / CLUSTER; /* rows of A that a block loads */
    static_assert(CLUSTER == 1 || (CLUSTER == 2 && PART_M % 8 == 0), "swizzled 8 rows at a time");
};

/* A tile of C and the steps of its sum. */
struct work {
    int expert, m, m_end, n; /* rows [m, m_end), columns from n on */
    int first, steps;        /* tiles of 128 k; no steps: no more tiles */
};

template <class L> struct shared_tiles {
    alignas(1024) uint8_t a[L::STAGES][L::TILE_M * FP8_TILE];
    alignas(1024) uint8_t b[L::STAGES][L::TILE_N * FP8_TILE];
    alignas(128) float scale_a[L::STAGES][L::TILE_M];
    alignas(128) float scale_b[L::WEIGHT ? L::STAGES : 1][L::WEIGHT ? L::SCALES_B : 1];
    alignas(16) float out[CONSUMERS / 32][L::OUT];
    struct work work[L::STAGES]; /* of the tile whose first step this is */
    uint64_t full[L::STAGES], empty[L::STAGES];
};

struct maps {
    CUtensorMap a, b, scale_a, scale_b; /* scale_b: WEIGHT only */
};

/* Calls body(work) for each of the block's tiles; a whole warp calls. */
template <class L, class F> DEVICE void for_work(const struct gemm &g, F body)
{
    constexpr unsigned ACROSS = L::TILE_N * L::CLUSTER;
    const unsigned columns = ((unsigned)g.n + ACROSS - 1) / ACROSS;
    const int own = L::CLUSTER > 1 ? (int)cluster_rank() * L::TILE_N : 0;
    const bool grouped = g.offset != nullptr;
    const unsigned rows = grouped && !L::WEIGHT
                              ? warp_sum(lane_tiles<unsigned>(g.offset, g.experts, L::TILE_M))
                              : ((unsigned)g.m + L::TILE_M - 1) / L::TILE_M;
    const unsigned each = rows * columns, count = L::WEIGHT ? each * (unsigned)g.experts : each;
    for (unsigned i = blockIdx.x / L::CLUSTER; i < count; i += gridDim.x / L::CLUSTER) {
        struct work w;
        unsigned row, column;
        w.expert = L::WEIGHT ? g.first + (int)(i / each) : 0;
        tile_order(L::WEIGHT ? i % each : i, rows, columns, &row, &column);
        w.n = (int)(column * ACROSS) + own;
        w.first = 0;
        w.steps = ((int)g.k + FP8_TILE - 1) / FP8_TILE;
        w.m = 0;
        w.m_end = (int)g.m;
        if (grouped && L::WEIGHT) {
            const int tokens = (int)(g.offset[w.expert + 1] - g.offset[w.expert]);
            w.first = warp_sum(lane_tiles<int>(g.offset, w.expert, FP8_TILE));
            w.steps = (tokens + FP8_TILE - 1) / FP8_TILE;
        } else if (grouped) {
            w.expert = find_owner(g.offset, g.experts, &row, L::TILE_M);
            w.m = (int)g.offset[w.expert];
            w.m_end = (int)g.offset[w.expert + 1];
        }
        w.m += (int)row * L::TILE_M;
        if (w.steps > 0) {
            body(w);
        }
        __syncwarp();
    }
}

/* One thread. */
template <class L>
DEVICE void produce(struct shared_tiles<L> *s, const struct maps &maps, const struct work &w,
                    struct ring<L::STAGES> *ring)
{
#pragma unroll 1 /* registers */
    for (int tile = w.first; tile < w.first + w.steps; tile++, ring->used++) {
        const int stage = ring->stage();
        uint64_t *full = &s->full[stage];
        mbarrier_wait(&s->empty[stage], ring->parity() ^ 1);
        s->work[stage] = w;
        mbarrier_arrive_expect_tx(full, L::LOADED);
        if constexpr (L::CLUSTER > 1) {
            const int part = (int)cluster_rank() * L::PART_M;
            tma_load_2d_multicast(s->a[stage] + part * FP8_TILE, &maps.a, full, tile * FP8_TILE,
                                  w.m + part, (1 << L::CLUSTER) - 1);
        } else {
            tma_load_2d(s->a[stage], &maps.a, full, tile * FP8_TILE, w.m);
        }
        tma_load_2d(s->scale_a[stage], &maps.scale_a, full, w.m, tile);
        if constexpr (L::WEIGHT) {
            tma_load_2d(s->b[stage], &maps.b, full, tile * FP8_TILE, w.n);
            tma_load_2d(s->scale_b[stage], &maps.scale_b, full, w.n, tile);
        } else {
            tma_load_3d(s->b[stage], &maps.b, full, tile * FP8_TILE, w.n, w.expert);
        }
    }
}

/* Says that there is no more. */
template <class L> DEVICE void finish(struct shared_tiles<L> *s, struct ring<L::STAGES> *ring)
{
    const int stage = ring->stage();
    mbarrier_wait(&s->empty[stage], ring->parity() ^ 1);
    s->work[stage].steps = 0;
    mbarrier_arrive(&s->full[stage]);
}

/* A warpgroup's part of a tile. */
struct part_of_tile {
    int row, own, column; /* its first row, the first row of this thread, its first column */
};

template <class L> DEVICE struct part_of_tile find_part(int group)
{
    const int thread = (int)threadIdx.x % 128, row = group % L::DOWN * 64 * L::WAVES;
    return {row, row + thread / 32 * 16 + thread % 32 / 4, group / L::DOWN * L::WIDTH};
}

/* Scales of w of the columns from n on, by tiles of k: of their first block and of the next. */
struct block_scales {
    const float *first;
    int next;  /* from a scale of the first block to the one of the next */
    int begin; /* of the columns in the first block */
};

template <class L>
DEVICE struct block_scales find_scales(const struct gemm_fp8 &p, int expert, int n)
{
    const int blocks = ((int)p.g.n + FP8_TILE - 1) / FP8_TILE,
              block = min(n / FP8_TILE, blocks - 1);
    return {p.scale_b + ((int64_t)expert * blocks + block) * p.pitch_b,
            block + 1 < blocks ? (int)p.pitch_b : 0, n % FP8_TILE};
}

/* sum += part x scales. low, high: the scales of rows own and own + 8. */
template <class L>
DEVICE void promote(float (&sum)[L::WIDTH / 2], const float (&part)[L::WIDTH / 2], float low,
                    float high, const float (&w)[2], int begin)
{
#pragma unroll
    for (int i = 0; i < L::WIDTH / 8; i++) {
        const bool second = begin + i * 8 / L::SEGMENT * L::SEGMENT >= FP8_TILE;
        const float scale = L::SEGMENT < L::WIDTH && second ? w[1] : w[0];
        const float scale_low = low * scale, scale_high = high * scale;
        sum[4 * i] += scale_low * part[4 * i];
        sum[4 * i + 1] += scale_low * part[4 * i + 1];
        sum[4 * i + 2] += scale_high * part[4 * i + 2];
        sum[4 * i + 3] += scale_high * part[4 * i + 3];
    }
}

/* The same with a scale for each column, `columns` those of the thread's first two. */
template <class L>
DEVICE void promote(float (&sum)[L::WIDTH / 2], const float (&part)[L::WIDTH / 2], float low,
                    float high, const float *columns)
{
#pragma unroll
    for (int i = 0; i < L::WIDTH / 8; i++) {
        float scale[2];
        load(scale, columns + 8 * i);
        sum[4 * i] += low * scale[0] * part[4 * i];
        sum[4 * i + 1] += low * scale[1] * part[4 * i + 1];
        sum[4 * i + 2] += high * scale[0] * part[4 * i + 2];
        sum[4 * i + 3] += high * scale[1] * part[4 * i + 3];
    }
}

/* part = the products of a stage: rows from `row` on, columns from `column` on. */
template <class L>
DEVICE void multiply(float (&part)[L::WIDTH / 2], const struct shared_tiles<L> *s, int stage,
                     int row, int column)
{
    const uint8_t *a = s->a[stage] + row * FP8_TILE, *b = s->b[stage] + column * FP8_TILE;
    wgmma_hold(part);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < FP8_TILE / 32; i++) {
        wgmma_e4m3(part, wgmma_descriptor(a + 32 * i, 16, 1024, SWIZZLE_128B),
                   wgmma_descriptor(b + 32 * i, 16, 1024, SWIZZLE_128B), i > 0);
    }
    wgmma_commit();
    wgmma_hold(part);
    wgmma_wait<0>();
    wgmma_hold(part);
}

/* Scales of the thread's two rows, 64 of which lie between waves. */
template <class L>
DEVICE void row_scales(float (&low)[L::WAVES], float (&high)[L::WAVES], const float *scale)
{
#pragma unroll
    for (int i = 0; i < L::WAVES; i++) {
        low[i] = scale[64 * i];
        high[i] = scale[64 * i + 8];
    }
}

template <class L> DEVICE void release(struct shared_tiles<L> *s, int stage)
{
    __syncwarp(); /* all lanes have read their scales */
    if (threadIdx.x % 32 == 0) {
        mbarrier_arrive(&s->empty[stage]);
    }
    if (L::CLUSTER > 1 && threadIdx.x % 32 == 1) {
        mbarrier_arrive_at(&s->empty[stage], cluster_rank() ^ 1);
    }
}

/* A tile of FORWARD. Scales of w are fetched while the step before is multiplied. */
template <class L>
DEVICE void consume_blocks(float (&sum)[L::WAVES][L::WIDTH / 2], struct shared_tiles<L> *s,
                           const struct gemm_fp8 &p, const struct work &work,
                           const struct part_of_tile &own, struct ring<L::STAGES> *ring)
{
    float part[L::WIDTH / 2], low[L::WAVES], high[L::WAVES];
    const struct block_scales w = find_scales<L>(p, work.expert, work.n + own.column);
    float next[2] = {w.first[0], w.first[w.next]};
    for (int tile = 0; tile < work.steps; tile++, ring->used++) {
        const int stage = ring->stage();
        const float now[2] = {next[0], next[1]};
        if (tile + 1 < work.steps) {
            next[0] = w.first[tile + 1];
            next[1] = w.first[tile + 1 + w.next];
        }
        mbarrier_wait(&s->full[stage], ring->parity());
        row_scales<L>(low, high, s->scale_a[stage] + own.own);
#pragma unroll
        for (int i = 0; i < L::WAVES; i++) {
            multiply(part, s, stage, own.row + 64 * i, own.column);
            if (i + 1 == L::WAVES) {
                release(s, stage);
            }
            promote<L>(sum[i], part, low[i], high[i], now, w.begin);
        }
    }
}

/* A tile of WEIGHT. */
template <class L>
DEVICE void consume_columns(float (&sum)[L::WAVES][L::WIDTH / 2], struct shared_tiles<L> *s,
                            int steps, const struct part_of_tile &own, struct ring<L::STAGES> *ring)
{
    float part[L::WIDTH / 2], low[L::WAVES], high[L::WAVES];
    const int column = own.column + (int)threadIdx.x % 4 * 2;
    for (; steps > 0; steps--, ring->used++) {
        const int stage = ring->stage();
        mbarrier_wait(&s->full[stage], ring->parity());
        row_scales<L>(low, high, s->scale_a[stage] + own.own);
#pragma unroll
        for (int i = 0; i < L::WAVES; i++) {
            multiply(part, s, stage, own.row + 64 * i, own.column);
            promote<L>(sum[i], part, low[i], high[i], s->scale_b[stage] + column);
        }
        release(s, stage);
    }
}

/* Sixteen rows of y, 64 columns at a time turned in shared memory, whole lines out. What is added
 * to, or is not aligned to 8 elements: store_tile. */
template <class L>
DEVICE void store_lines(const struct gemm &g, const struct gemm_tile &t,
                        const float (&sum)[L::WIDTH / 2], float *out, int64_t m, int64_t first_n)
{
    const int lane = (int)threadIdx.x % 32, row = lane / 8, chunk = lane % 8;
    const int put_row = lane % 16, put_chunk = lane / 16;
    unsigned char *turned = (unsigned char *)out; /* 16 rows of 128 bytes, swizzled */
    bf16 *y = (bf16 *)g.c + (m + row) * g.ldc;
#pragma unroll
    for (int first = 0; first < L::WIDTH; first += 64) {
        const int64_t n = first_n + first + 8 * chunk;
        const bool there = n < g.n && 8 * chunk < L::WIDTH - first;
#pragma unroll
        for (int i = 0; i < 8 && 8 * i < L::WIDTH - first; i += 2) {
            const float *from = sum + first / 2 + 4 * i;
            const uint32_t four[4] = {pack(from), pack(from + 2), pack(from + 4), pack(from + 6)};
            stmatrix_x4(turned + put_row * 128 + ((i + put_chunk) ^ put_row % 8) * 16, four);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 16; i += 4) {
            const int at = row + i;
            const uint4 line = *(const uint4 *)(turned + at * 128 + (chunk ^ at % 8) * 16);
            if (there && m + at < t.m_end) {
                *(uint4 *)(y + i * g.ldc + n) = line;
            }
        }
        __syncwarp();
    }
}

/* A warp's rows of C from m on, columns from n on. */
template <class L>
DEVICE void store_part(const struct gemm_fp8 &p, const struct work &w,
                       const float (&sum)[L::WIDTH / 2], float *out, int m, int n)
{
    struct gemm_tile t = {};
    t.expert = w.expert;
    t.m_end = w.m_end;
    if constexpr (L::WEIGHT) {
        store_tile<GEMM_WEIGHT, float>(p.g, t, sum, out, m, n);
    } else if (p.g.c_dtype == DTYPE_F32) {
        store_tile<GEMM_FORWARD, float>(p.g, t, sum, out, m, n);
    } else if (p.wide_y && !p.g.add) {
        store_lines<L>(p.g, t, sum, out, m, n);
    } else {
        store_tile<GEMM_FORWARD, bf16>(p.g, t, sum, out, m, n);
    }
}

/* All threads of the block, or of the pair. */
template <class L> DEVICE void all_sync()
{
    if constexpr (L::CLUSTER > 1) {
        cluster_sync();
    } else {
        __syncthreads();
    }
}

/* The other block may still write here, and arrive. */
template <class L> DEVICE void leave()
{
    if constexpr (L::CLUSTER > 1) {
        cluster_sync();
    }
}

template <class L>
__global__ void __launch_bounds__(THREADS, 1)
    gemm_fp8_sm90_kernel(const __grid_constant__ struct maps maps,
                         const __grid_constant__ struct gemm_fp8 p)
{
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
    __trap(); /* the launcher asks for compute capability 9 */
#else
    SMEM_DYN(raw);
    struct shared_tiles<L> *s = (struct shared_tiles<L> *)raw;
    const int warp = (int)threadIdx.x / 32;
    struct ring<L::STAGES> ring = {
    };
    ring_init(s->full, s->empty, L::CLUSTER * (CONSUMERS / 32));
    all_sync<L>();
    if (warp < 4) {
        registers_decrease<GIVEN>();
        if (warp == 0) {
            for_work<L>(p.g, [&](const struct work &w) {
                if (threadIdx.x == 0) {
                    produce(s, maps, w, &ring);
                }
            });
            if (threadIdx.x == 0) {
                finish(s, &ring);
            }
        }
        leave<L>();
        return;
    }
    registers_increase<TAKEN>();
    const struct part_of_tile own = find_part<L>(warp / 4 - 1);
    for (;;) {
        mbarrier_wait(&s->full[ring.stage()], ring.parity());
        const struct work w = s->work[ring.stage()];
        if (w.steps == 0) {
            leave<L>();
            return;
        }
        float sum[L::WAVES][L::WIDTH / 2] = {};
        if constexpr (L::WEIGHT) {
            consume_columns<L>(sum, s, w.steps, own, &ring);
        } else {
            consume_blocks<L>(sum, s, p, w, own, &ring);
        }
        const int m = w.m + own.row + warp % 4 * 16, n = w.n + own.column;
        store_part<L>(p, w, sum[0], s->out[warp - 4], m, n);
        if constexpr (L::WAVES == 2) {
            store_part<L>(p, w, sum[1], s->out[warp - 4], m + 64, n);
        }
    }
#endif
}

/* ---- launch ---- */

static bool encode_codes(CUtensorMap *map, const void *codes, int64_t rows, int64_t cols,
                         int64_t planes, int box_rows)
{
    const struct matrix_map m = {codes,       CU_TENSOR_MAP_DATA_TYPE_UINT8,
                                 1,           planes > 0 ? 3 : 2,
                                 cols,        rows,
                                 cols,        planes,
                                 rows * cols, FP8_TILE,
                                 box_rows,    CU_TENSOR_MAP_SWIZZLE_128B};
    return encode(map, m);
}

static bool encode_scales(CUtensorMap *map, const float *scale, int64_t rows, int64_t cols,
                          int64_t pitch, int box)
{
    const struct matrix_map m = {scale,
                                 CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                 (int)sizeof(float),
                                 2,
                                 rows,
                                 fp8_tiles(cols),
                                 pitch,
                                 0,
                                 0,
                                 box,
                                 1,
                                 CU_TENSOR_MAP_SWIZZLE_NONE};
    return encode(map, m);
}

template <class L> static bool launch(cudaStream_t stream, const struct gemm_fp8 &p, int blocks)
{
    constexpr int BYTES = (int)sizeof(struct shared_tiles<L>);
    static_assert(BYTES <= SHARED, "");
    const struct gemm &g = p.g;
    const int64_t tiles = row_tiles(&g, L::pass, L::TILE_M) *
                          tiles_of(g.n, L::TILE_N * L::CLUSTER) * (L::WEIGHT ? g.experts : 1);
    const int64_t most = blocks / L::CLUSTER > 0 ? blocks / L::CLUSTER : 1;
    assert(tiles <= INT32_MAX);
    const unsigned grid = (unsigned)(tiles < most ? tiles : most) * L::CLUSTER;
    struct maps maps;
    const bool encoded =
        encode_codes(&maps.a, g.a, g.m, g.lda, 0, L::PART_M) &&
        encode_scales(&maps.scale_a, p.scale_a, g.m, g.lda, p.pitch_a, L::TILE_M) &&
        encode_codes(&maps.b, g.b, g.n, g.ldb, L::WEIGHT ? 0 : g.experts, L::TILE_N) &&
        (!L::WEIGHT || encode_scales(&maps.scale_b, p.scale_b, g.n, g.ldb, p.pitch_b, L::TILE_N));
    if (!encoded || ALLOW_SMEM(gemm_fp8_sm90_kernel<L>, BYTES) != cudaSuccess) {
        (void)cudaGetLastError(); /* of a launch that is not made */
        return false;
    }
    if constexpr (L::CLUSTER > 1) {
        LAUNCH_CLUSTER(gemm_fp8_sm90_kernel<L>, L::CLUSTER, grid, THREADS, BYTES, stream, maps, p);
    } else {
        LAUNCH(gemm_fp8_sm90_kernel<L>, grid, THREADS, BYTES, stream, maps, p);
    }
    return true;
}

struct entry {
    struct cuda_fp8_tile tile;
    bool (*launch)(cudaStream_t stream, const struct gemm_fp8 &p, int blocks);
};

template <class L> static constexpr struct entry entry_of()
{
    return {{L::TILE_M, L::TILE_N, L::STAGES, (int)sizeof(struct shared_tiles<L>), L::CLUSTER},
            launch<L>};
}

static constexpr struct entry forward_tiles[] = {
    entry_of<layout<GEMM_FORWARD, 1, 1, 32>>(),     entry_of<layout<GEMM_FORWARD, 1, 1, 64>>(),
    entry_of<layout<GEMM_FORWARD, 1, 1, 128>>(),    entry_of<layout<GEMM_FORWARD, 2, 1, 96>>(),
    entry_of<layout<GEMM_FORWARD, 2, 1, 112>>(),    entry_of<layout<GEMM_FORWARD, 2, 1, 128>>(),
    entry_of<layout<GEMM_FORWARD, 2, 1, 160>>(),    entry_of<layout<GEMM_FORWARD, 2, 1, 192>>(),
    entry_of<layout<GEMM_FORWARD, 2, 2, 128>>(),    entry_of<layout<GEMM_FORWARD, 2, 1, 128, 2>>(),
    entry_of<layout<GEMM_FORWARD, 2, 2, 128, 2>>(),
};
static constexpr struct entry weight_tiles[] = {
    entry_of<layout<GEMM_WEIGHT, 1, 1, 64>>(),     entry_of<layout<GEMM_WEIGHT, 2, 1, 96>>(),
    entry_of<layout<GEMM_WEIGHT, 2, 1, 128>>(),    entry_of<layout<GEMM_WEIGHT, 2, 1, 160>>(),
    entry_of<layout<GEMM_WEIGHT, 2, 1, 192>>(),    entry_of<layout<GEMM_WEIGHT, 2, 2, 128>>(),
    entry_of<layout<GEMM_WEIGHT, 2, 2, 128, 2>>(),
};

static int table(bool weight, const struct entry **entries)
{
    *entries = weight ? weight_tiles : forward_tiles;
    return (int)(weight ? sizeof weight_tiles / sizeof weight_tiles[0]
                        : sizeof forward_tiles / sizeof forward_tiles[0]);
}

extern "C" {

double cuda_fp8_tile_cycles(bool weight, int tile, const struct cuda_fp8_shape *shape)
{
    const struct entry *entries;
    assert(tile >= 0 && tile < table(weight, &entries));
    return fp8_tile_cycles(weight, entries[tile].tile, *shape);
}

int cuda_fp8_tile_choice(bool weight, const struct cuda_fp8_shape *shape)
{
    const struct entry *entries;
    const int count = table(weight, &entries);
    int best = 0;
    for (int i = 1; i < count; i++) {
        best = fp8_tile_cycles(weight, entries[i].tile, *shape) <
                       fp8_tile_cycles(weight, entries[best].tile, *shape)
                   ? i
                   : best;
    }
    return best;
}

double cuda_fp8_seconds(bool weight, int64_t rows, int64_t out, int64_t in, int64_t groups,
                        struct cuda_fp8_tile *tile)
{
    const double clock = 1.83e9; /* at which 132 multiprocessors reach 1979 TFLOP/s */
    const struct cuda_fp8_shape shape = {rows, out, in, groups, 132};
    const int choice = cuda_fp8_tile_choice(weight, &shape);
    cuda_fp8_tiles(weight, choice, tile);
    return cuda_fp8_tile_cycles(weight, choice, &shape) / clock;
}

int cuda_fp8_tiles(bool weight, int tile, struct cuda_fp8_tile *out)
{
    const struct entry *entries;
    const int count = table(weight, &entries);
    if (tile >= 0 && tile < count) {
        *out = entries[tile].tile;
    }
    return count;
}
}

bool gemm_fp8_sm90_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm_fp8 *p,
                          struct cuda_fp8_by by)
{
    const bool weight = pass == GEMM_WEIGHT;
    const struct gemm &g = p->g;
    struct gemm_fp8 own = *p;
    struct cuda_fp8_shape shape = {g.m, g.n, g.k, g.experts,
                                   attribute(cudaDevAttrMultiProcessorCount)};
    if (weight) {
        shape.rows = g.k, shape.out = g.m, shape.in = g.n;
    }
    if (by.rows > 0) {
        shape.rows = by.rows * g.experts;
    }
    assert(pass != GEMM_INPUT);
    own.g.wide_c = gemm_wide(g.c, g.c_dtype, g.ldc, weight ? g.stride : 0, 4);
    own.wide_y = !weight && g.c_dtype == DTYPE_BF16 && gemm_wide(g.c, g.c_dtype, g.ldc, 0, 8);
    if (g.k == 0 || g.m > INT32_MAX || g.n > INT32_MAX || g.k > INT32_MAX || g.lda > INT32_MAX ||
        attribute(cudaDevAttrComputeCapabilityMajor) != 9) {
        return false;
    }
    const struct entry *entries;
    const int count = table(weight, &entries);
    const int choice = by.tile >= 0 ? by.tile : cuda_fp8_tile_choice(weight, &shape);
    assert(choice < count);
    return entries[choice].launch(stream, own, by.blocks > 0 ? by.blocks : shape.multiprocessors);
}
