/* gemm_mma: products of bf16 operands on tensor cores by mma.sync, f32 accumulators: sm_80 and on.
 *
 * Large tiles are 128 x 128 by 8 warps of 64 x 32, small ones (where large ones would leave
 * multiprocessors idle) 64 x 64 by 4 warps of 32 x 32; 32 k a stage, 4 stages of cp.async. C's
 * elements are sums of steps of 16 k in ascending order in both. Operands that are not aligned to
 * 16 bytes go through registers, element by element. FLOPs: 2 m n k, bytes at least those of A, B
 * and C; bound by the tensor cores (A100: 312 TFLOP/s) from some 250 rows on. Shared memory: 64
 * KiB, two blocks a multiprocessor.
 */
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/ptx.cuh"

enum { DEPTH = 32, STAGES = 4, CHUNK = 8 };

/* A tile of `rows` x DEPTH elements in chunks of 8, swizzled so that the eight chunks of a
 * ldmatrix, consecutive rows (k-major) or consecutive k's (not), lie in different banks. */
template <int rows, bool k_major> struct operand_tile {
    static constexpr int ROW = k_major ? DEPTH / CHUNK : rows / CHUNK; /* chunks */
    alignas(16) bf16 data[rows * DEPTH];

    /* The chunk with element (row, k). */
    __device__ __forceinline__ bf16 *chunk(int row, int k)
    {
        const int minor = k_major ? row : k, major = (k_major ? k : row) / CHUNK;
        const int at = minor * ROW + (major ^ (k_major ? minor / 2 % 4 : minor % 8));
        return data + at * CHUNK;
    }
};

/* Block of warps ACROSS x DOWN, each with M x N elements of C. */
template <int M, int N, int DOWN, int ACROSS> struct layout {
    static constexpr int WARP_M = M, WARP_N = N, WARPS_ACROSS = ACROSS;
    static constexpr int TILE_M = M * DOWN, TILE_N = N * ACROSS, THREADS = 32 * DOWN * ACROSS;
};
using large_layout = layout<64, 32, 2, 4>;
using small_layout = layout<32, 32, 2, 2>;

template <class L, enum gemm_pass pass>
struct stage {
    struct operand_tile<L::TILE_M, pass != GEMM_WEIGHT> a;
    struct operand_tile<L::TILE_N, pass == GEMM_FORWARD>
        b;
};

/* Starts the copy of a tile. find(row, k): the struct gemm_chunk there. */
template <int THREADS, int rows, bool k_major, class F>
DEVICE void fetch(struct operand_tile<rows, k_major> *tile, const bf16 *from, bool wide, F find)
{
    constexpr int ROW = operand_tile<rows, k_major>::ROW;
#pragma unroll
    for (int i = 0; i < rows * DEPTH / CHUNK / THREADS; i++) {
        const int at = (int)threadIdx.x + i * THREADS;
        const int row = k_major ? at / ROW : at % ROW * CHUNK;
        const int k = k_major ? at % ROW * CHUNK : at / ROW;
        const struct gemm_chunk chunk = find(row, k);
        if (wide) {
            cp_async_16(tile->chunk(row, k), chunk.valid > 0 ? from + chunk.first : from,
                        chunk.valid > 0 ? 16 : 0);
            continue;
        }
        float value[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            value[j] = j < chunk.valid ? to_float(from[chunk.first + j]) : 0.0F;
        }
        store(tile->chunk(row, k), value);
    }
}

/* Fragments of rows [row, row + 16) and k [k, k + 16) of an operand, as ldmatrix gives them: for A
 * the four 8 x 8 blocks (low row, low k), (high, low), (low, high), (high, high); `b`: (low row,
 * low k), (low, high), (high, low), (high, high), two fragments of 8 columns. */
template <bool b, int rows, bool k_major>
DEVICE void fragment(uint32_t (&r)[4], struct operand_tile<rows, k_major> *tile, int row, int k)
{
    const int lane = (int)threadIdx.x % 32, second = lane / 8 % 2 * 8, fourth = lane / 16 * 8;
    const int high_row = b ? fourth : second, high_k = b ? second : fourth;
    if constexpr (k_major) {
        ldmatrix_x4(r, tile->chunk(row + high_row + lane % 8, k + high_k));
    } else {
        ldmatrix_x4_trans(r, tile->chunk(row + high_row, k + high_k + lane % 8));
    }
}

template <class L, enum gemm_pass pass>
DEVICE void multiply(float (&sum)[L::WARP_M / 16][L::WARP_N / 8][4], struct stage<L, pass> *s,
                     int row, int column)
{
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t a[L::WARP_M / 16][4];
#pragma unroll
        for (int i = 0; i < L::WARP_M / 16; i++) {
            fragment<false>(a[i], &s->a, row + 16 * i, k);
        }
#pragma unroll
        for (int j = 0; j < L::WARP_N / 8; j += 2) {
            uint32_t b[4];
            fragment<true>(b, &s->b, column + 8 * j, k);
            const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
            for (int i = 0; i < L::WARP_M / 16; i++) {
                mma_m16n8k16_bf16(sum[i][j], a[i], left);
                mma_m16n8k16_bf16(sum[i][j + 1], a[i], right);
            }
        }
    }
}

template <class L, enum gemm_pass pass>
__global__ void __launch_bounds__(L::THREADS, 2)
    gemm_mma_kernel(const __grid_constant__ struct gemm g)
{
    SMEM_DYN(raw);
    struct stage<L, pass> *stages = (struct stage<L, pass> *)raw;
    struct gemm_tile t;
    if (!find_tile<pass>(&t, g, L::TILE_M, L::TILE_N)) {
        return;
    }
    const bf16 *a = (const bf16 *)g.a;
    const bf16 *b = (const bf16 *)g.b + (pass == GEMM_WEIGHT ? 0 : t.expert * g.stride);
    auto start = [&](int64_t i) {
        const int64_t k = t.k + i * DEPTH;
        struct stage<L, pass> *s = &stages[i % STAGES];
        if (k < t.k_end) {
            fetch<L::THREADS>(&s->a, a, g.wide_a,
                              [&](int m, int d) { return chunk_a<pass>(g, t, m, k + d, CHUNK); });
            fetch<L::THREADS>(&s->b, b, g.wide_b,
                              [&](int n, int d) { return chunk_b<pass>(g, t, n, k + d, CHUNK); });
        }
        cp_async_commit();
    };
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int row = warp / L::WARPS_ACROSS * L::WARP_M, column = warp % L::WARPS_ACROSS * L::WARP_N;
    const int64_t steps = (t.k_end - t.k + DEPTH - 1) / DEPTH;
    float sum[L::WARP_M / 16][L::WARP_N / 8][4] = {};
    for (int i = 0; i < STAGES - 1; i++) {
        start(i);
    }
    for (int64_t i = 0; i < steps; i++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads(); /* all of stage i is there, and nobody reads stage i - 1 any more */
        start(i + STAGES - 1);
        multiply<L, pass>(sum, &stages[i % STAGES], row, column);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int i = 0; i < L::WARP_M / 16; i++) {
#pragma unroll
        for (int j = 0; j < L::WARP_N / 8; j++) {
            const int64_t m = t.m + row + 16 * i + lane / 4;
            const int64_t n = t.n + column + 8 * j + lane % 4 * 2;
            const float low[2] = {sum[i][j][0], sum[i][j][1]};
            const float high[2] = {sum[i][j][2], sum[i][j][3]};
            store_c<pass>(g, t, m, n, low);
            store_c<pass>(g, t, m + 8, n, high);
        }
    }
}

template <class L, enum gemm_pass pass>
static void launch_layout(cudaStream_t stream, const struct gemm &g)
{
    constexpr int BYTES = STAGES * (int)sizeof(struct stage<L, pass>);
    if (ALLOW_SMEM((gemm_mma_kernel<L, pass>), BYTES) == cudaSuccess) {
        LAUNCH((gemm_mma_kernel<L, pass>), gemm_grid(&g, pass, L::TILE_M, L::TILE_N), L::THREADS,
               BYTES, stream, g);
    }
}

template <enum gemm_pass pass> static void launch_pass(cudaStream_t stream, struct gemm g)
{
    const dim3 large = gemm_grid(&g, pass, large_layout::TILE_M, large_layout::TILE_N);
    gemm_widths(&g, pass, CHUNK, 2);
    (large.x * large.z >= ENOUGH_BLOCKS ? launch_layout<large_layout, pass>
                                        : launch_layout<small_layout, pass>)(stream, g);
}

void gemm_mma_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm *g)
{
    assert(g->a_dtype == DTYPE_BF16 && g->b_dtype == DTYPE_BF16);
    (pass == GEMM_FORWARD ? launch_pass<GEMM_FORWARD>
     : pass == GEMM_INPUT ? launch_pass<GEMM_INPUT>
                          : launch_pass<GEMM_WEIGHT>)(stream, *g);
}
