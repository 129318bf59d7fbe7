#include "kernels/cuda/fp8_code.cuh"

enum { SUM_PARTS = 32, WIDE = FP8_EIGHT };

struct norm_job {
    struct fp8_sink q;
    bf16 *y, *sum; /* y NULL: not wanted */
    float *rstd;
    const bf16 *x, *delta, *w; /* delta NULL: nothing to add */
    float eps;
    bool power_of_two;
    struct fp8_counters *counters;
};

/* norm_forward_kernel (norm.cu), whose sums have the same order, with codes for y. One block per
 * row, read a second time from the cache. Bytes per element: x and delta in, sum, a code and,
 * where wanted, y out, 4 per tile. FLOPs: about 15. Bound by memory. */
__global__ void __launch_bounds__(256) fp8_norm_kernel(const struct norm_job job)
{
    SMEM(float, part, [SUM_PARTS]);
    const int64_t n = blockIdx.x, width = job.q.cols, row = n * width;
    const int64_t own_first = threadIdx.x * WIDE, step = blockDim.x * WIDE;
    float squares = 0;
    for (int64_t i = own_first; i < width; i += step) {
        float a[WIDE];
        load(a, job.x + row + i);
        if (job.delta != nullptr) {
            float b[WIDE];
            load(b, job.delta + row + i);
#pragma unroll
            for (int j = 0; j < WIDE; j++) {
                a[j] = round_to<bf16>(a[j] + b[j]);
            }
            store(job.sum + row + i, a);
        }
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            squares += a[j] * a[j];
        }
    }
    const float r = 1.0F / sqrtf(block_sum(squares, part) / (float)width + job.eps);
    const bf16 *in = job.delta != nullptr ? job.sum : job.x;
    const bool counted = job.counters != nullptr;
    struct fp8_counts own = {0, 0, 0, 0};
    for (int64_t base = 0; base < width; base += step) { /* whole warps: lanes past the end too */
        const int64_t i = base + own_first;
        float a[WIDE] = {}, scale[WIDE] = {};
        if (i < width) {
            load(a, in + row + i);
            load(scale, job.w + i);
        }
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            a[j] = round_to<bf16>(round_to<bf16>(a[j] * r) * scale[j]);
        }
        if (i < width && job.y != nullptr) {
            store(job.y + row + i, a);
        }
        fp8_eight_tile(job.q, a, n, i, i < width, job.power_of_two, counted, own);
    }
    if (threadIdx.x == 0) {
        job.rstd[n] = r;
    }
    if (counted) {
        fp8_count(job.counters, own, n == 0 ? (int64_t)gridDim.x * width : 0);
    }
}

void cuda_fp8_norm_forward(void *stream, struct fp8_rows q, struct tensor y, struct tensor sum,
                           float *rstd, struct tensor x, struct tensor delta, struct tensor w,
                           float eps, const struct fp8_how *how)
{
    const int64_t rows = x.dim[0], width = x.dim[1];
    assert(tensor_count(&w) == width && q.rows == rows && q.cols == width);
    assert(x.dtype == DTYPE_BF16 && w.dtype == DTYPE_BF16 &&
           (delta.data == nullptr || delta.dtype == DTYPE_BF16));
    assert(aligned(x.data) && aligned(w.data) && aligned(y.data) && aligned(delta.data) &&
           (delta.data == nullptr || aligned(sum.data)));
    if (rows > 0) {
        LAUNCH(fp8_norm_kernel, (unsigned)rows, row_threads(width / WIDE), 0, (cudaStream_t)stream,
               norm_job{fp8_sink_of(q), (bf16 *)y.data, (bf16 *)sum.data, rstd,
                        (const bf16 *)x.data, (const bf16 *)delta.data, (const bf16 *)w.data, eps,
                        how->power_of_two, how->counters});
    }
}
