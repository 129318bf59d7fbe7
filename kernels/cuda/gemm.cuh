/* gemm: C[m,n] (+)= sum over k of A[m,k] B[n,k], one product or one per expert; what the kernels of
 * gemm_f32.cu, gemm_mma.cu, gemm_sm90.cu and those of FP8 share.
 *
 *   pass      A              B              C
 *   FORWARD   x  [m,k]       w  [n,k]       y  [m,n]    y = x w^T
 *   INPUT     dy [m,k]       w  [k,n]       dx [m,n]    dx = dy w
 *   WEIGHT    dy [k,m]       x  [k,n]       dw [m,n]    dw += dy^T x
 *
 * Groups: rows [offset[e], offset[e+1]) of x and dy are expert e's; offset lies in device memory
 * and is read by the kernel, so the grid is sized by what `rows` allows at most and blocks without
 * a tile return. A WEIGHT product whose expert has no rows leaves its dw alone.
 *
 * Every element of C is one sum over k in ascending order, in steps that depend on nothing but the
 * kernel: not on the tile's place or size, m, or the other rows. No atomics, no split of k.
 */
#ifndef KERNELS_CUDA_GEMM_CUH
#define KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/rows.cuh"

enum gemm_pass { GEMM_FORWARD, GEMM_INPUT, GEMM_WEIGHT };

/* A kernel's parameter. Leading dimensions and strides in elements. */
struct gemm {
    const void *a, *b;
    void *c;
    int64_t m, n, k;       /* grouped: m (WEIGHT: k) is the upper bound of offset[experts] */
    int64_t lda, ldb, ldc; /* from one row of the operand, as it lies, to the next */
    int64_t stride;        /* from an expert's w (WEIGHT: dw) to the next expert's */
    const int64_t *offset; /* [experts + 1], device memory; NULL: one product */
    int experts;
    int first; /* WEIGHT: the number of the first of them, in offset and in strides of C */
    enum dtype a_dtype, b_dtype, c_dtype;
    bool add;                    /* C += instead of C = */
    bool wide_a, wide_b, wide_c; /* set by gemm_widths */
};

/* Whether `width` elements of an operand, from a multiple of `width` on along memory, are aligned
 * for one access of up to 16 bytes, all there or none. */
static inline bool gemm_wide(const void *p, enum dtype dtype, int64_t ld, int64_t stride, int width)
{
    const size_t bytes = (size_t)width * dtype_bytes(dtype);
    return (uintptr_t)p % (bytes < 16 ? bytes : 16) == 0 && ld % width == 0 && stride % width == 0;
}

static inline void gemm_widths(struct gemm *g, enum gemm_pass pass, int ab, int c)
{
    const bool weight = pass == GEMM_WEIGHT;
    g->wide_a = gemm_wide(g->a, g->a_dtype, g->lda, 0, ab);
    g->wide_b = gemm_wide(g->b, g->b_dtype, g->ldb, weight ? 0 : g->stride, ab);
    g->wide_c = gemm_wide(g->c, g->c_dtype, g->ldc, weight ? g->stride : 0, c);
}

/* Enqueue a product; the caller has checked shapes and that m, n and experts are not 0. */
void gemm_f32_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm *g);
void gemm_mma_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm *g);
/* false: not for this GPU or these operands, nothing was enqueued. What it says depends on neither
 * m nor the contents of offset (WEIGHT: on neither k nor them). */
bool gemm_sm90_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm *g);

/* ---- tiles ---- */

/* Fewer blocks than this of large tiles leave multiprocessors idle: take small ones. */
enum { ENOUGH_BLOCKS = 128 };

static inline int64_t tiles_of(int64_t count, int tile)
{
    return (count + tile - 1) / tile;
}

/* The most row tiles that experts can need together. */
static inline int64_t row_tiles(const struct gemm *g, enum gemm_pass pass, int tile)
{
    if (g->offset == nullptr || pass == GEMM_WEIGHT) {
        return tiles_of(g->m, tile);
    }
    const int64_t most = g->experts < g->m ? g->experts : g->m; /* experts with rows */
    return (g->m + most * (tile - 1)) / tile;
}

static inline dim3 gemm_grid(const struct gemm *g, enum gemm_pass pass, int tile_m, int tile_n)
{
    const int64_t tiles = row_tiles(g, pass, tile_m) * tiles_of(g->n, tile_n);
    assert(tiles <= INT32_MAX && g->experts <= 65535);
    return dim3((unsigned)tiles, 1, pass == GEMM_WEIGHT ? (unsigned)g->experts : 1);
}

/* A block's part of C: rows [m, m_end), columns from n on, summed over [k, k_end). */
struct gemm_tile {
    int expert;
    int64_t m, m_end, n, k, k_end;
};

template <class I> DEVICE I expert_tiles(const int64_t *__restrict__ offset, int e, int tile)
{
    return ((I)(offset[e + 1] - offset[e]) + tile - 1) / tile;
}

/* Row tiles of every 32nd expert from the lane's on. I: a type that holds the numbers. */
template <class I = int64_t>
DEVICE I lane_tiles(const int64_t *__restrict__ offset, int experts, int tile)
{
    I own = 0;
#pragma unroll 1 /* few registers: gemm_fp8_sm90's producer has not many */
    for (int e = (int)threadIdx.x % 32; e < experts; e += 32) {
        own += expert_tiles<I>(offset, e, tile);
    }
    return own;
}

/* The expert that owns row tile *index, which becomes the number of the tile among the expert's;
 * every lane of the warp calls. -1: there are fewer tiles. */
template <class I>
DEVICE int find_owner(const int64_t *__restrict__ offset, int experts, I *index, int tile)
{
    const int lane = (int)threadIdx.x % 32;
#pragma unroll 1
    for (int e = lane; e - lane < experts; e += 32) {
        const I own = e < experts ? expert_tiles<I>(offset, e, tile) : 0;
        I sum = own; /* of the lanes up to this one */
#pragma unroll
        for (int step = 1; step < 32; step *= 2) {
            const I other = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? other : 0;
        }
        const unsigned holders = __ballot_sync(0xffffffffu, *index < sum);
        if (holders != 0) {
            const int holder = __ffs((int)holders) - 1;
            *index -= __shfl_sync(0xffffffffu, sum - own, holder);
            return e - lane + holder;
        }
        *index -= __shfl_sync(0xffffffffu, sum, 31);
    }
    return -1;
}

/* The expert that owns row tile `index` and the tile's first row; every lane of the warp calls.
 * false: there are fewer tiles. As find_owner, but each lane takes neighbouring experts, which
 * leaves gemm_mma's kernels the registers they need. */
DEVICE bool find_rows(struct gemm_tile *t, const int64_t *__restrict__ offset, int experts,
                      int64_t index, int tile)
{
    const int lane = (int)threadIdx.x % 32, each = (experts + 31) / 32;
    const int first = min(lane * each, experts), last = min(first + each, experts);
    int64_t own = 0;
    for (int e = first; e < last; e++) {
        own += expert_tiles<int64_t>(offset, e, tile);
    }
    int64_t sum = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(0xffffffffu, sum, step);
        sum += lane >= step ? other : 0;
    }
    const unsigned holders = __ballot_sync(0xffffffffu, index < sum);
    if (holders == 0) {
        return false;
    }
    const int holder = __ffs((int)holders) - 1;
    index -= __shfl_sync(0xffffffffu, sum - own, holder);
    int e = holder * each;
    for (int64_t tiles; index >= (tiles = expert_tiles<int64_t>(offset, e, tile)); e++) {
        index -= tiles;
    }
    t->expert = e;
    t->m = offset[e] + index * tile;
    t->m_end = offset[e + 1];
    return true;
}

/* Which tile of C: eight row tiles side by side, then the next column tile, so that blocks that run
 * together share operands in L2. `row_tiles`: of the grid. */
template <class I> DEVICE void tile_order(I index, I row_tiles, I column_tiles, I *row, I *column)
{
    const I band = index / (8 * column_tiles), rest = index % (8 * column_tiles);
    const I high = min(row_tiles - 8 * band, (I)8);
    *row = 8 * band + rest % high;
    *column = rest / high;
}

/* The block's tile; false: none. */
template <enum gemm_pass pass>
DEVICE bool find_tile(struct gemm_tile *t, const struct gemm &g, int tile_m, int tile_n)
{
    const int64_t columns = (g.n + tile_n - 1) / tile_n;
    int64_t row, column;
    tile_order<int64_t>(blockIdx.x, gridDim.x / columns, columns, &row, &column);
    t->expert = pass == GEMM_WEIGHT ? g.first + (int)blockIdx.z : 0;
    t->m = row * tile_m;
    t->m_end = g.m;
    t->n = column * tile_n;
    t->k = 0;
    t->k_end = g.k;
    if (g.offset == nullptr) {
        return true;
    }
    if (pass == GEMM_WEIGHT) {
        t->k = g.offset[t->expert];
        t->k_end = g.offset[t->expert + 1];
        return t->k < t->k_end;
    }
    return find_rows(t, g.offset, g.experts, row, tile_m);
}

/* ---- operands ---- */

/* The chunk of `width` elements of an operand in a block's tile: `major` along memory, `minor`
 * across; how many of its elements are there, and where it begins. */
struct gemm_chunk {
    int64_t first; /* element */
    int valid;     /* 0 ... width */
};

DEVICE struct gemm_chunk chunk_of(int64_t major, int64_t major_end, int64_t minor,
                                  int64_t minor_end, int64_t ld, int width)
{
    const int64_t left = minor < minor_end ? major_end - major : 0;
    return {minor * ld + major, (int)max((int64_t)0, min(left, (int64_t)width))};
}

/* A[m.., k..] of a tile; the operand lies m-major in the WEIGHT pass. */
template <enum gemm_pass pass>
DEVICE struct gemm_chunk chunk_a(const struct gemm &g, const struct gemm_tile &t, int m, int64_t k,
                                 int width)
{
    return pass == GEMM_WEIGHT ? chunk_of(t.m + m, t.m_end, k, t.k_end, g.lda, width)
                               : chunk_of(k, t.k_end, t.m + m, t.m_end, g.lda, width);
}

/* B[n.., k..] of a tile, without the expert's stride; k-major in the FORWARD pass only. */
template <enum gemm_pass pass>
DEVICE struct gemm_chunk chunk_b(const struct gemm &g, const struct gemm_tile &t, int n, int64_t k,
                                 int width)
{
    return pass == GEMM_FORWARD ? chunk_of(k, t.k_end, t.n + n, g.n, g.ldb, width)
                                : chunk_of(t.n + n, g.n, k, t.k_end, g.ldb, width);
}

/* Writes `count` of `width` neighbours of row m of C from column n on. */
template <int width, class T>
DEVICE void store_part(const struct gemm &g, T *c, const float (&sum)[width], int count, bool wide)
{
    float out[width];
    if (wide && count >= width) {
        if (g.add) {
            load(out, c);
        }
#pragma unroll
        for (int i = 0; i < width; i++) {
            out[i] = g.add ? out[i] + sum[i] : sum[i];
        }
        store(c, out);
        return;
    }
#pragma unroll
    for (int i = 0; i < width; i++) {
        if (i < count) {
            store_one(c + i, g.add ? to_float(c[i]) + sum[i] : sum[i]);
        }
    }
}

template <enum gemm_pass pass, int width>
DEVICE void store_c(const struct gemm &g, const struct gemm_tile &t, int64_t m, int64_t n,
                    const float (&sum)[width])
{
    if (m >= t.m_end || n >= g.n) {
        return;
    }
    const int64_t at = m * g.ldc + n + (pass == GEMM_WEIGHT ? t.expert * g.stride : 0);
    const int count = (int)min(g.n - n, (int64_t)width);
    if (g.c_dtype == DTYPE_F32) {
        store_part(g, (float *)g.c + at, sum, count, g.wide_c);
    } else {
        store_part(g, (bf16 *)g.c + at, sum, count, g.wide_c);
    }
}

#endif
