#include "kernels/cuda/fp8_code.cuh"

enum { SLOT_WARPS = 8, WIDE = FP8_EIGHT };

struct combine_job {
    struct fp8_sink q;
    float *dweight;
    const bf16 *dy, *x;
    const int32_t *slot_row;
    const float *weight;
    int64_t slots;
    int top_k;
    bool power_of_two;
    struct fp8_counters *counters;
};

/* combine_rows_backward_kernel (permute.cu), whose sums have the same order, with codes for dx: one
 * warp per slot, a token's slots in one block or two neighbours, so dy comes from memory once.
 * Bytes per slot and column: 2 of x in, 1 out, 2 / K of dy. FLOPs: about 15. Bound by memory. */
__global__ void __launch_bounds__(SLOT_WARPS * 32) fp8_combine_kernel(const struct combine_job job)
{
    const int lane = threadIdx.x % 32;
    const int64_t slot = (int64_t)blockIdx.x * SLOT_WARPS + threadIdx.x / 32, width = job.q.cols;
    const int64_t row = slot < job.slots ? job.slot_row[slot] : -1;
    const bool counted = job.counters != nullptr;
    struct fp8_counts own = {0, 0, 0, 0};
    float sum = 0;
    if (row >= 0) { /* all of the warp */
        const float scale = job.weight[slot];
        const int64_t from = (int64_t)((int)slot / job.top_k) * width;
        for (int64_t base = 0; base < width; base += 32 * WIDE) {
            const int64_t i = base + lane * WIDE;
            float grad[WIDE] = {}, in[WIDE] = {};
            if (i < width) {
                load(grad, job.dy + from + i);
                load(in, job.x + row * width + i);
            }
#pragma unroll
            for (int j = 0; j < WIDE; j++) {
                sum += grad[j] * in[j];
                grad[j] = round_to<bf16>(grad[j] * scale);
            }
            fp8_eight_tile(job.q, grad, row, i, i < width, job.power_of_two, counted, own);
        }
        sum = warp_sum(sum);
    }
    if (lane == 0 && slot < job.slots) {
        job.dweight[slot] = sum;
    }
    if (counted) {
        const int slots = __syncthreads_count(lane == 0 && row >= 0);
        fp8_count(job.counters, own, slots * width);
    }
}

void cuda_fp8_combine_rows_backward(void *stream, struct fp8_rows q, uint8_t *packed,
                                    float *dweight, struct tensor dy, struct tensor x,
                                    const int32_t *slot_row, const float *weight, int64_t top_k,
                                    const struct fp8_how *how)
{
    const int64_t slots = dy.dim[0] * top_k, width = dy.dim[1];
    const struct fp8_sink sink =
        q.code != nullptr ? fp8_sink_of(q) : fp8_sink_packed(packed, width);
    assert(dy.dtype == DTYPE_BF16 && x.dtype == DTYPE_BF16 && x.dim[1] == width);
    assert(sink.cols == width && aligned(dy.data) && aligned(x.data) && slots <= INT32_MAX);
    if (slots > 0) {
        LAUNCH(fp8_combine_kernel, (unsigned)((slots + SLOT_WARPS - 1) / SLOT_WARPS),
               SLOT_WARPS * 32, 0, (cudaStream_t)stream,
               combine_job{sink, dweight, (const bf16 *)dy.data, (const bf16 *)x.data, slot_row,
                           weight, slots, (int)top_k, how->power_of_two, how->counters});
    }
}
