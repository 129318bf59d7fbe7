/* muon: Newton-Schulz orthogonalisation by the f32 products of gemm_f32.cu. Nothing is read back:
 * the norm stays in device memory.
 *
 * Per step and matrix [r, c], s = min(r, c): FLOPs 2 s^2 (2 max(r, c) + s), bytes of the
 * elementwise kernels 4 (3 s^2 + 2 r c); bound by the f32 rate of the products.
 */
#include "kernels/cuda/gemm.cuh"

enum { STEPS = 5 };

/* y = x / max(sqrt(*squares), 1e-7), V elements per thread. Bytes: x in, y out. Bound by memory. */
template <int V>
__global__ void __launch_bounds__(FLAT_THREADS)
    normalize_kernel(float *y, const float *__restrict__ x, int64_t count,
                     const double *__restrict__ squares)
{
    const float factor = (float)(1.0 / fmax(sqrt(*squares), 1e-7));
    flat<V>(count, [&](auto width, int64_t i) {
        constexpr int W = decltype(width)::value;
        float own[W];
        load(own, x + i);
#pragma unroll
        for (int j = 0; j < W; j++) {
            own[j] *= factor;
        }
        store(y + i, own);
    });
}

/* y = p x + q y; q 0: whatever y holds. Bytes: x in, y out and in. Bound by memory. */
template <int V>
__global__ void __launch_bounds__(FLAT_THREADS)
    combine_kernel(float *y, const float *__restrict__ x, int64_t count, float p, float q)
{
    flat<V>(count, [&](auto width, int64_t i) {
        constexpr int W = decltype(width)::value;
        float own[W], old[W] = {};
        load(own, x + i);
        if (q != 0.0F) {
            load(old, y + i);
        }
#pragma unroll
        for (int j = 0; j < W; j++) {
            own[j] = p * own[j] + q * old[j];
        }
        store(y + i, own);
    });
}

static void combine(cudaStream_t stream, float *y, const float *x, int64_t count, float p, float q)
{
    if (aligned(y) && aligned(x)) {
        LAUNCH(combine_kernel<4>, flat_blocks(count, 4), FLAT_THREADS, 0, stream, y, x, count, p,
               q);
    } else {
        LAUNCH(combine_kernel<1>, flat_blocks(count, 1), FLAT_THREADS, 0, stream, y, x, count, p,
               q);
    }
}

/* c[m,n] = (add ? c : 0) + the product of the pass: FORWARD a[m,k] b[n,k]^T, INPUT a[m,k] b[k,n],
 * WEIGHT a[k,m]^T b[k,n]. */
static void product(cudaStream_t stream, enum gemm_pass pass, float *c, const float *a,
                    const float *b, int64_t m, int64_t n, int64_t k, bool add)
{
    struct gemm g = {};
    g.a = a, g.b = b, g.c = c;
    g.m = m, g.n = n, g.k = k;
    g.lda = pass == GEMM_WEIGHT ? m : k, g.ldb = pass == GEMM_FORWARD ? k : n, g.ldc = n;
    g.a_dtype = g.b_dtype = g.c_dtype = DTYPE_F32;
    g.experts = 1;
    g.add = add;
    gemm_f32_launch(stream, pass, &g);
}

/* y = a x + (b A + c A^2) x, A = x x^T [rows,rows]; a tall x the other way round. */
static void newton_schulz(cudaStream_t stream, float *y, const float *x, float *gram, float *square,
                          int64_t rows, int64_t cols)
{
    static const float a = 3.4445F, b = -4.7750F, c = 2.0315F; /* Jordan et al. 2024 */
    const bool tall = rows > cols;
    const int64_t side = tall ? cols : rows, length = tall ? rows : cols;
    product(stream, tall ? GEMM_WEIGHT : GEMM_FORWARD, gram, x, x, side, side, length, false);
    product(stream, GEMM_INPUT, square, gram, gram, side, side, side, false);
    combine(stream, square, gram, side * side, b, c);
    combine(stream, y, x, rows * cols, a, 0);
    product(stream, GEMM_INPUT, y, tall ? x : square, tall ? square : x, rows, cols, side, true);
}

static size_t align(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static size_t matrix_bytes(int64_t rows, int64_t cols)
{
    return align((size_t)rows * (size_t)cols * sizeof(float));
}

size_t cuda_muon_orthogonalize_scratch(int64_t rows, int64_t cols)
{
    const int64_t side = rows < cols ? rows : cols;
    return matrix_bytes(rows, cols) + 2 * matrix_bytes(side, side) + align(sizeof(double)) +
           cuda_sum_squares_scratch(rows * cols);
}

void cuda_muon_orthogonalize(void *stream, struct tensor x, void *scratch)
{
    const int64_t rows = x.dim[0], cols = x.dim[1], count = rows * cols;
    const int64_t side = rows < cols ? rows : cols;
    const cudaStream_t queue = (cudaStream_t)stream;
    char *at = (char *)scratch;
    float *from = (float *)at, *to = (float *)x.data;
    float *gram = (float *)(at += matrix_bytes(rows, cols));
    float *square = (float *)(at += matrix_bytes(side, side));
    double *squares = (double *)(at += matrix_bytes(side, side));
    assert(tensor_is(&x, DTYPE_F32, rows, cols));
    if (count == 0) {
        return;
    }
    cuda_fill(stream, (float *)squares, sizeof *squares / sizeof(float), 0); /* sums are added */
    cuda_sum_squares(stream, squares, to, count, at + align(sizeof(double)));
    if (aligned(to) && aligned(from)) {
        LAUNCH(normalize_kernel<4>, flat_blocks(count, 4), FLAT_THREADS, 0, queue, from, to, count,
               squares);
    } else {
        LAUNCH(normalize_kernel<1>, flat_blocks(count, 1), FLAT_THREADS, 0, queue, from, to, count,
               squares);
    }
    static_assert(STEPS % 2 == 1, "an odd number of steps ends in x");
    for (int step = 0; step < STEPS; step++) {
        newton_schulz(queue, to, from, gram, square, rows, cols);
        float *next = from;
        from = to;
        to = next;
    }
}
