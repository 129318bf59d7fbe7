#include <math.h>

#include "kernels/cuda/rows.cuh"

enum { TOKEN_WARPS = 4, SUMS_ROWS = 64, SUMS_THREADS = 256 };
static constexpr float TINY = 1e-20F; /* in published denominators; changes no normal sum */

/* One token's rows. */
struct router_token {
    float *dlogits;
    const float *dweight, *weight, *score, *aux;
    const int32_t *expert;
};

/* Through softmax: dl_j = p_j (dp_j - sum_i p_i dp_i), for the balance loss and for weights that
 * are not normalised; normalised ones: dl_i = w_i (dw_i - sum_j w_j dw_j / scale) of the chosen. */
DEVICE void softmax_backward(const struct router_token &t, const struct router_shape &shape)
{
    const int lane = threadIdx.x % 32, experts = (int)shape.experts, top_k = (int)shape.top_k;
    float mean = 0, weighted = 0;
    for (int e = lane; e < experts; e += 32) {
        mean += t.score[e] * t.aux[e];
    }
    mean = warp_sum(mean);
    for (int k = 0; k < top_k; k++) {
        weighted += t.dweight[k] * t.weight[k];
    }
    const float all = shape.normalize ? mean : mean + weighted;
    for (int e = lane; e < experts; e += 32) {
        t.dlogits[e] = t.score[e] * (t.aux[e] - all);
    }
    const float chosen = shape.normalize ? weighted / shape.scale : 0;
    for (int k = 0; k < top_k; k++) {
        if (t.expert[k] % 32 == lane) { /* the lane that wrote it */
            t.dlogits[t.expert[k]] += t.weight[k] * (t.dweight[k] - chosen);
        }
    }
}

/* Of one warp; every lane gets it. */
DEVICE float score_sum(const float *score, int experts)
{
    float sum = 0;
    for (int e = threadIdx.x % 32; e < experts; e += 32) {
        sum += score[e];
    }
    return TINY + warp_sum(sum);
}

/* Through sigmoid: dl = ds s (1 - s). Balance: of s' = s / sum s. Weights: w = scale s / Z over the
 * chosen, or scale s. */
DEVICE void sigmoid_backward(const struct router_token &t, const struct router_shape &shape)
{
    const int lane = threadIdx.x % 32, experts = (int)shape.experts, top_k = (int)shape.top_k;
    const float sum = score_sum(t.score, experts);
    float mean = 0, weighted = 0, chosen = TINY;
    for (int e = lane; e < experts; e += 32) {
        mean += t.score[e] / sum * t.aux[e];
    }
    mean = warp_sum(mean);
    for (int k = 0; k < top_k; k++) {
        chosen += t.score[t.expert[k]];
        weighted += t.dweight[k] * t.weight[k] / shape.scale;
    }
    for (int e = lane; e < experts; e += 32) {
        t.dlogits[e] = (t.aux[e] - mean) / sum;
    }
    for (int k = 0; k < top_k; k++) {
        if (t.expert[k] % 32 == lane) {
            t.dlogits[t.expert[k]] +=
                shape.scale * (shape.normalize ? (t.dweight[k] - weighted) / chosen : t.dweight[k]);
        }
    }
    for (int e = lane; e < experts; e += 32) {
        t.dlogits[e] *= t.score[e] * (1.0F - t.score[e]);
    }
}

/* One warp per token; a lane owns every 32nd expert. Bytes per token: 4 E of scores in (logits too
 * with a z-loss) and 4 E out; the later passes hit the cache. FLOPs: about 10 E. Bound by memory.
 */
__global__ void __launch_bounds__(TOKEN_WARPS * 32)
    router_backward_kernel(float *dlogits, const float *__restrict__ dweight,
                           const int32_t *__restrict__ expert, const float *__restrict__ weight,
                           const float *__restrict__ score, const float *__restrict__ logits,
                           const float *__restrict__ lse, const float *__restrict__ aux,
                           float z_scale, struct router_shape shape)
{
    const int64_t n = (int64_t)blockIdx.x * TOKEN_WARPS + threadIdx.x / 32;
    if (n >= shape.tokens) {
        return;
    }
    const int64_t at = n * shape.experts, slot = n * shape.top_k;
    const struct router_token token = {dlogits + at,
                                       dweight + slot,
                                       weight + slot,
                                       score + at,
                                       aux + n / shape.row_tokens * shape.experts,
                                       expert + slot};
    if (shape.sigmoid) {
        sigmoid_backward(token, shape);
    } else {
        softmax_backward(token, shape);
    }
    for (int64_t e = threadIdx.x % 32; e < shape.experts && z_scale != 0; e += 32) {
        token.dlogits[e] += 2.0F * z_scale * lse[n] * expf(logits[at + e] - lse[n]);
    }
}

void cuda_router_backward(void *stream, float *dlogits, const float *dweight, const int32_t *expert,
                          const float *weight, const float *score, const float *logits,
                          const float *lse, const float *aux, float z_scale,
                          struct router_shape shape)
{
    if (shape.tokens == 0) {
        return;
    }
    LAUNCH(router_backward_kernel, (unsigned)((shape.tokens + TOKEN_WARPS - 1) / TOKEN_WARPS),
           TOKEN_WARPS * 32, 0, (cudaStream_t)stream, dlogits, dweight, expert, weight, score,
           logits, lse, aux, z_scale, shape);
}

/* Tokens [SUMS_ROWS b, SUMS_ROWS (b + 1)) of statistics row blockIdx.y, summed per expert in token
 * order. Bytes: 4 E per token in, for sigmoid scores again from the cache. Bound by memory. */
__global__ void __launch_bounds__(SUMS_THREADS)
    router_sums_kernel(double *partial, const float *__restrict__ score, struct router_shape shape)
{
    SMEM(double, divisor, [SUMS_ROWS]);
    const int experts = (int)shape.experts;
    const int64_t first = (int64_t)blockIdx.x * SUMS_ROWS;
    const int count = (int)min((int64_t)SUMS_ROWS, shape.row_tokens - first);
    const float *own = score + (blockIdx.y * shape.row_tokens + first) * experts;
    for (int i = threadIdx.x / 32; i < count; i += SUMS_THREADS / 32) {
        const float sum = shape.sigmoid ? score_sum(own + (int64_t)i * experts, experts) : 1.0F;
        if (threadIdx.x % 32 == 0) {
            divisor[i] = (double)sum;
        }
    }
    __syncthreads();
    double *out = partial + ((int64_t)blockIdx.y * gridDim.x + blockIdx.x) * experts;
    for (int e = threadIdx.x; e < experts; e += SUMS_THREADS) {
        double sum = 0;
        for (int i = 0; i < count; i++) {
            sum += (double)own[(int64_t)i * experts + e] / divisor[i];
        }
        out[e] = sum;
    }
}

/* sums[row][e] over the parts of a row, in order. Few bytes: bound by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    router_sums_end_kernel(double *sums, const double *__restrict__ partial, int64_t parts,
                           int64_t experts, int64_t count)
{
    flat<1>(count, [&](auto, int64_t i) {
        const double *own = partial + i / experts * parts * experts + i % experts;
        double sum = 0;
        for (int64_t part = 0; part < parts; part++) {
            sum += own[part * experts];
        }
        sums[i] = sum;
    });
}

static int64_t sums_parts(struct router_shape shape)
{
    return (shape.row_tokens + SUMS_ROWS - 1) / SUMS_ROWS;
}

size_t cuda_router_sums_scratch(struct router_shape shape)
{
    return (size_t)(shape.tokens / shape.row_tokens * sums_parts(shape) * shape.experts) *
           sizeof(double);
}

void cuda_router_sums(void *stream, double *sums, const float *score, struct router_shape shape,
                      void *scratch)
{
    const int64_t rows = shape.tokens / shape.row_tokens, count = rows * shape.experts;
    double *partial = (double *)scratch;
    if (count == 0) {
        return;
    }
    assert(rows <= 65535);
    LAUNCH(router_sums_kernel, dim3((unsigned)sums_parts(shape), (unsigned)rows), SUMS_THREADS, 0,
           (cudaStream_t)stream, partial, score, shape);
    LAUNCH(router_sums_end_kernel, flat_blocks(count, 1), FLAT_THREADS, 0, (cudaStream_t)stream,
           sums, partial, sums_parts(shape), shape.experts, count);
}
