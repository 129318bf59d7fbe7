#include "kernels/cuda/random.cuh"

/* y += x or y = x, V elements per thread. Bytes: x in, y out, for a sum in as well. FLOPs: 1. Bound
 * by memory. */
template <class Y, class X, int V, bool sum>
__global__ void __launch_bounds__(FLAT_THREADS) map_kernel(Y *y, const X *x, int64_t count)
{
    flat<V>(count, [&](auto width, int64_t i) {
        constexpr int W = decltype(width)::value;
        float a[W];
        load(a, x + i);
        if constexpr (sum) {
            float b[W];
            load(b, y + i);
#pragma unroll
            for (int j = 0; j < W; j++) {
                a[j] = b[j] + a[j];
            }
        }
        store(y + i, a);
    });
}

/* Wide: 8 elements per thread, so that a part of either dtype is whole 16-byte words. */
template <class Y, class X, bool sum>
static void map_typed(void *stream, void *y, const void *x, int64_t count)
{
    const cudaStream_t queue = (cudaStream_t)stream;
    if (aligned(y) && aligned(x)) {
        LAUNCH((map_kernel<Y, X, 8, sum>), flat_blocks(count, 8), FLAT_THREADS, 0, queue, (Y *)y,
               (const X *)x, count);
    } else {
        LAUNCH((map_kernel<Y, X, 1, sum>), flat_blocks(count, 1), FLAT_THREADS, 0, queue, (Y *)y,
               (const X *)x, count);
    }
}

template <bool sum> static void map(void *stream, struct tensor y, struct tensor x)
{
    const int64_t count = tensor_count(&y);
    const bool y_f32 = y.dtype == DTYPE_F32, x_f32 = x.dtype == DTYPE_F32;
    assert(tensor_count(&x) == count && (y_f32 || y.dtype == DTYPE_BF16) &&
           (x_f32 || x.dtype == DTYPE_BF16));
    if (count == 0) {
        return;
    }
    if (y_f32) {
        (x_f32 ? map_typed<float, float, sum> : map_typed<float, bf16, sum>)(stream, y.data, x.data,
                                                                             count);
    } else {
        (x_f32 ? map_typed<bf16, float, sum> : map_typed<bf16, bf16, sum>)(stream, y.data, x.data,
                                                                           count);
    }
}

void cuda_add(void *stream, struct tensor y, struct tensor x)
{
    map<true>(stream, y, x);
}

void cuda_cast(void *stream, struct tensor y, struct tensor x)
{
    map<false>(stream, y, x);
}

/* Bytes: 4 out. Bound by memory. */
__global__ void __launch_bounds__(FLAT_THREADS) fill_kernel(float *x, int64_t count, float value)
{
    flat<1>(count, [&](auto, int64_t i) { x[i] = value; });
}

void cuda_fill(void *stream, float *x, int64_t count, float value)
{
    if (count > 0) {
        LAUNCH(fill_kernel, flat_blocks(count, 1), FLAT_THREADS, 0, (cudaStream_t)stream, x, count,
               value);
    }
}

/* Bytes: 4 out. About 100 integer operations and a log, a root and a cosine in f64: bound by
 * arithmetic; run once. */
__global__ void __launch_bounds__(FLAT_THREADS)
    init_normal_kernel(float *x, uint64_t key, uint64_t first, int64_t count, float std)
{
    flat<1>(count,
            [&](auto, int64_t i) { x[i] = std * (float)random_normal(key, first + (uint64_t)i); });
}

void cuda_init_normal(void *stream, float *x, uint64_t key, uint64_t first, int64_t count,
                      float std)
{
    if (count > 0) {
        LAUNCH(init_normal_kernel, flat_blocks(count, 1), FLAT_THREADS, 0, (cudaStream_t)stream, x,
               key, first, count, std);
    }
}

/* Bytes: x in and out. About 100 integer operations per element for the bits: bound by arithmetic.
 * No contraction: the factor has the CPU's bits. */
template <class T>
__global__ void __launch_bounds__(FLAT_THREADS)
    jitter_kernel(T *x, uint64_t key, uint64_t first, int64_t count, float eps)
{
    flat<1>(count, [&](auto, int64_t i) {
        const double u = random_uniform(key, first + (uint64_t)i);
        const float factor = __fadd_rn(1.0F, __fmul_rn(eps, (float)(2.0 * u - 1.0)));
        store_one(x + i, to_float(x[i]) * factor);
    });
}

void cuda_jitter(void *stream, struct tensor x, uint64_t key, uint64_t first, float eps)
{
    const int64_t count = tensor_count(&x);
    if (count == 0) {
        return;
    }
    dispatch(x.dtype, false, [&](auto kind) {
        using T = typename decltype(kind)::type;
        LAUNCH(jitter_kernel<T>, flat_blocks(count, 1), FLAT_THREADS, 0, (cudaStream_t)stream,
               (T *)x.data, key, first, count, eps);
    });
}

enum { SQUARES_BLOCK = 16384 };

/* One partial sum per SQUARES_BLOCK elements, in f64. Bytes: x once. FLOPs: 2 per element, half of
 * an H100's f64 rate would do: bound by memory. */
template <int V>
__global__ void __launch_bounds__(FLAT_THREADS)
    sum_squares_kernel(double *partial, const float *__restrict__ x, int64_t count)
{
    SMEM(double, part, [32]);
    const int64_t first = (int64_t)blockIdx.x * SQUARES_BLOCK;
    const int64_t end = min(first + SQUARES_BLOCK, count);
    double sum = 0;
    for (int64_t i = first + threadIdx.x * V; i < end; i += FLAT_THREADS * V) {
        if (i + V <= end) {
            float a[V];
            load(a, x + i);
#pragma unroll
            for (int j = 0; j < V; j++) {
                sum += (double)a[j] * (double)a[j];
            }
        } else {
            for (int64_t j = i; j < end; j++) {
                sum += (double)x[j] * (double)x[j];
            }
        }
    }
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

/* One block: few elements. */
__global__ void __launch_bounds__(FLAT_THREADS)
    sum_kernel(double *result, const double *__restrict__ x, int64_t count, bool add)
{
    SMEM(double, part, [32]);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += FLAT_THREADS) {
        sum += x[i];
    }
    sum = block_sum(sum, part);
    if (threadIdx.x == 0) {
        *result = add ? *result + sum : sum;
    }
}

void cuda_sum(void *stream, double *sum, const double *x, int64_t count, bool add)
{
    LAUNCH(sum_kernel, 1, FLAT_THREADS, 0, (cudaStream_t)stream, sum, x, count, add);
}

size_t cuda_sum_squares_scratch(int64_t count)
{
    return (size_t)((count + SQUARES_BLOCK - 1) / SQUARES_BLOCK) * sizeof(double);
}

void cuda_sum_squares(void *stream, double *sum, const float *x, int64_t count, void *scratch)
{
    const int64_t blocks = (count + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
    double *partial = (double *)scratch;
    if (count > 0 && aligned(x)) {
        LAUNCH(sum_squares_kernel<4>, (unsigned)blocks, FLAT_THREADS, 0, (cudaStream_t)stream,
               partial, x, count);
    } else if (count > 0) {
        LAUNCH(sum_squares_kernel<1>, (unsigned)blocks, FLAT_THREADS, 0, (cudaStream_t)stream,
               partial, x, count);
    }
    cuda_sum(stream, sum, partial, blocks, true);
}
