#include "kernels/cuda/fp8_code.cuh"

enum { SUM_PARTS = 32, LANES = 16 /* of a tile */, WIDE = 8 /* numbers of a lane */ };

struct norm_job {
    struct fp8_sink q;
    bf16 *y, *sum; /* y NULL: not wanted */
    float *rstd;
    const bf16 *x, *delta, *w; /* delta NULL: nothing to add */
    float eps;
    bool power_of_two;
    struct fp8_counters *counters;
};

/* Quantises the tile of 16 lanes, whose numbers are bf16 already; writes where `there`. */
DEVICE void norm_tile(const struct norm_job &job, const float (&a)[WIDE], int64_t n, int64_t i,
                      bool there, struct fp8_counts &own)
{
    const bool counted = job.counters != nullptr, lead = there && threadIdx.x % LANES == 0;
    uint32_t most = 0;
#pragma unroll
    for (int j = 0; j < WIDE; j++) {
        most = max(most, fp8_bits(a[j]));
    }
#pragma unroll
    for (int bits = 1; bits < LANES; bits *= 2) {
        most = max(most, __shfl_xor_sync(0xffffffffu, most, bits));
    }
    const struct fp8_scale s = fp8_tile_scale(most, job.power_of_two);
    float b[WIDE];
#pragma unroll
    for (int j = 0; j < WIDE; j++) {
        b[j] = __fmul_rn(a[j], s.inverse);
    }
    const uint2 word = make_uint2(encode4(b[0], b[1], b[2], b[3]), encode4(b[4], b[5], b[6], b[7]));
    if (there) {
        *(uint2 *)(job.q.code + n * job.q.code_row + i) = word;
    }
    if (lead) {
        job.q.scale[n + i / FP8_TILE * job.q.scale_tile] = s.scale;
        fp8_count_tile(own, most);
    }
    if (counted && there && !fp8_is_bad(most)) {
        own.underflows -= fp8_nonzero(word.x) + fp8_nonzero(word.y);
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            own.underflows += fp8_bits(a[j]) != 0;
            own.saturated += !job.power_of_two && fp8_is_saturated(b[j]);
        }
    }
}

/* norm_forward_kernel (norm.cu), whose sums have the same order, with codes for y. One block per
 * row, read a second time from the cache. Bytes per element: x and delta in, sum, a code and,
 * where wanted, y out, 4 per tile. FLOPs: about 15. Bound by memory. */
__global__ void __launch_bounds__(256) norm_kernel(const struct norm_job job)
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
        norm_tile(job, a, n, i, i < width, own);
    }
    if (threadIdx.x == 0) {
        job.rstd[n] = r;
    }
    if (job.counters != nullptr) {
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
        LAUNCH(norm_kernel, (unsigned)rows, row_threads(width / WIDE), 0, (cudaStream_t)stream,
               norm_job{fp8_sink_of(q), (bf16 *)y.data, (bf16 *)sum.data, rstd,
                        (const bf16 *)x.data, (const bf16 *)delta.data, (const bf16 *)w.data, eps,
                        how->power_of_two, how->counters});
    }
}
