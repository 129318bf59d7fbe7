/* gemm_f32: products on CUDA cores, exact f32: operands are f32 or bf16 read as f32, every element
 * of C is a chain of multiply-adds over k in ascending order.
 *
 * A block of 256 threads makes 128 x 128 elements of C, 8 x 8 each (64 x 64, 4 x 4 each, where the
 * larger tiles would leave multiprocessors idle: same chains, same bits), 8 k (16) at a time
 * through shared memory, the next on their way to registers meanwhile. FLOPs: 2 m n k, bytes at
 * least those of A, B and C; bound by the f32 rate (67 TFLOP/s on H100) from some 64 rows on.
 */
#include "kernels/cuda/gemm.cuh"

enum { THREADS = 256, CHUNK = 4 };

/* This thread's chunk of a TILE x DEPTH tile on its way from global to shared memory, where k is
 * the slow dimension. k_major: the operand lies so, a chunk is four k's of one row; else four rows.
 */
template <class T, int TILE, bool k_major> struct mover {
    static constexpr int DEPTH = 1024 / TILE;
    const T *p; /* the chunk in the next tile */
    int64_t ld;
    int valid; /* rows of the chunk that are there */
    bool wide;
    float value[CHUNK];

    static __device__ __forceinline__ int row()
    {
        return k_major ? (int)threadIdx.x / (DEPTH / CHUNK)
                       : (int)threadIdx.x % (TILE / CHUNK) * CHUNK;
    }
    static __device__ __forceinline__ int depth()
    {
        return k_major ? (int)threadIdx.x % (DEPTH / CHUNK) * CHUNK
                       : (int)threadIdx.x / (TILE / CHUNK);
    }
    /* Of the tile of rows [first, end) from k on. */
    __device__ __forceinline__ void begin(const T *from, int64_t stride, int64_t first, int64_t end,
                                          int64_t k, bool aligned)
    {
        ld = stride;
        p = from +
            (k_major ? (first + row()) * ld + k + depth() : (k + depth()) * ld + first + row());
        valid = (int)max((int64_t)0, min(end - first - row(), (int64_t)(k_major ? 1 : CHUNK)));
        wide = aligned;
    }
    /* `left` k's are there. */
    __device__ __forceinline__ void fetch(int left)
    {
        const int here = left - depth(),
                  count = k_major ? (valid > 0 ? here : 0) : (here > 0 ? valid : 0);
        if (wide && count >= CHUNK) {
            load(value, p);
        } else {
#pragma unroll
            for (int j = 0; j < CHUNK; j++) {
                value[j] = j < count ? to_float(p[j]) : 0.0F;
            }
        }
        p += k_major ? DEPTH : DEPTH * ld;
    }
    __device__ __forceinline__ void put(float (&tile)[DEPTH][TILE + 4]) const
    {
        if constexpr (k_major) {
#pragma unroll
            for (int j = 0; j < CHUNK; j++) {
                tile[depth() + j][row()] = value[j];
            }
        } else {
            store(&tile[depth()][row()], value);
        }
    }
};

/* Rows of a thread: four from 4 y on and, of a large tile, four from 64 + 4 y on; columns alike. */
template <int EACH> DEVICE void fragment(float (&x)[EACH], const float *row, int first)
{
#pragma unroll
    for (int i = 0; i < EACH; i += 4) {
        float part[4];
        load(part, row + first + 16 * i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            x[i + j] = part[j];
        }
    }
}

template <int EACH, int DEPTH>
DEVICE void multiply(float (&sum)[EACH][EACH], const float (&a)[DEPTH][16 * EACH + 4],
                     const float (&b)[DEPTH][16 * EACH + 4], int y, int x)
{
#pragma unroll 2 /* more would take more than the 128 registers of two blocks */
    for (int k = 0; k < DEPTH; k++) {
        float p[EACH], q[EACH];
        fragment(p, a[k], y);
        fragment(q, b[k], x);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                sum[i][j] += p[i] * q[j];
            }
        }
    }
}

template <class TA, class TB, enum gemm_pass pass, int EACH>
__global__ void __launch_bounds__(THREADS, EACH == 8 ? 2 : 3)
    gemm_f32_kernel(const __grid_constant__ struct gemm g)
{
    constexpr int TILE = 16 * EACH, DEPTH = 1024 / TILE;
    SMEM(float, tile_a, [DEPTH][TILE + 4]);
    SMEM(float, tile_b, [DEPTH][TILE + 4]);
    struct gemm_tile t;
    if (!find_tile<pass>(&t, g, TILE, TILE)) {
        return;
    }
    const TA *a = (const TA *)g.a;
    const TB *b = (const TB *)g.b + (pass == GEMM_WEIGHT ? 0 : t.expert * g.stride);
    struct mover<TA, TILE, pass != GEMM_WEIGHT> move_a;
    struct mover<TB, TILE, pass == GEMM_FORWARD> move_b;
    move_a.begin(a, g.lda, t.m, t.m_end, t.k, g.wide_a);
    move_b.begin(b, g.ldb, t.n, g.n, t.k, g.wide_b);
    const int y = (int)threadIdx.x / 16 * 4, x = (int)threadIdx.x % 16 * 4;
    float sum[EACH][EACH] = {};
    const int64_t steps = (t.k_end - t.k + DEPTH - 1) / DEPTH;
    for (int64_t i = 0; i <= steps; i++) {
        if (i > 0) {
            __syncthreads(); /* everybody has read the tile before this one */
            move_a.put(tile_a);
            move_b.put(tile_b);
            __syncthreads();
        }
        if (i < steps) {
            const int left = (int)min(t.k_end - t.k - i * DEPTH, (int64_t)DEPTH);
            move_a.fetch(left);
            move_b.fetch(left);
        }
        if (i > 0) {
            multiply(sum, tile_a, tile_b, y, x);
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
#pragma unroll
        for (int j = 0; j < EACH; j += 4) {
            const float part[4] = {sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]};
            store_c<pass>(g, t, t.m + y + i % 4 + i / 4 * 64, t.n + x + j / 4 * 64, part);
        }
    }
}

template <class TA, class TB, enum gemm_pass pass>
static void launch(cudaStream_t stream, struct gemm g)
{
    gemm_widths(&g, pass, CHUNK, CHUNK);
    const dim3 large = gemm_grid(&g, pass, 128, 128), small = gemm_grid(&g, pass, 64, 64);
    if (large.x * large.z >= ENOUGH_BLOCKS) {
        LAUNCH((gemm_f32_kernel<TA, TB, pass, 8>), large, THREADS, 0, stream, g);
    } else {
        LAUNCH((gemm_f32_kernel<TA, TB, pass, 4>), small, THREADS, 0, stream, g);
    }
}

template <enum gemm_pass pass> static void launch_pass(cudaStream_t stream, const struct gemm *g)
{
    const bool a_f32 = g->a_dtype == DTYPE_F32, b_f32 = g->b_dtype == DTYPE_F32;
    assert(a_f32 || g->a_dtype == DTYPE_BF16);
    assert(b_f32 || g->b_dtype == DTYPE_BF16);
    if (a_f32) {
        (b_f32 ? launch<float, float, pass> : launch<float, bf16, pass>)(stream, *g);
    } else {
        (b_f32 ? launch<bf16, float, pass> : launch<bf16, bf16, pass>)(stream, *g);
    }
}

void gemm_f32_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm *g)
{
    (pass == GEMM_FORWARD ? launch_pass<GEMM_FORWARD>
     : pass == GEMM_INPUT ? launch_pass<GEMM_INPUT>
                          : launch_pass<GEMM_WEIGHT>)(stream, g);
}
