#include <float.h>
#include <math.h>

#include "kernels/cuda/rows.cuh"

/* Warps of a block, one token each; experts a warp can hold: expert 32 i + lane in register i. */
enum { ROUTER_WARPS = 4, MAX_EXPERTS = 4096 };
static constexpr float TINY = 1e-20F; /* in published denominators; changes no normal sum */

struct router_io {
    int32_t *expert;
    float *weight, *score, *lse;
    struct router_counts counts;
    const float *logits, *bias;
};

/* Unsigned numbers in the order of the floats; -0 and 0 are equal. */
DEVICE unsigned order_of(float x)
{
    const unsigned bits = __float_as_uint(x + 0.0F);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

DEVICE float warp_max(float x)
{
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, bits));
    }
    return x;
}

/* Index of the largest of the warp's values, the lowest among equals. */
template <int R> DEVICE int largest(const float (&value)[R])
{
    float best = -INFINITY;
    unsigned at = MAX_EXPERTS;
#pragma unroll
    for (int i = 0; i < R; i++) {
        if (value[i] > best) {
            best = value[i];
            at = 32 * i + threadIdx.x % 32;
        }
    }
    const unsigned own = order_of(best), most = __reduce_max_sync(0xffffffffu, own);
    return (int)__reduce_min_sync(0xffffffffu, own == most ? at : (unsigned)MAX_EXPERTS);
}

template <int R> DEVICE void take(float (&value)[R], int at)
{
#pragma unroll
    for (int i = 0; i < R; i++) {
        value[i] = 32 * i + (int)(threadIdx.x % 32) == at ? -INFINITY : value[i];
    }
}

/* Scores of the token; registers beyond the last expert hold 0. */
template <int R>
DEVICE void scores(float (&score)[R], float *lse, const float *logits, int experts, bool sigmoids)
{
    const int lane = threadIdx.x % 32;
    float most = -INFINITY, sum = 0, logit[R];
#pragma unroll
    for (int i = 0; i < R; i++) {
        logit[i] = 32 * i + lane < experts ? logits[32 * i + lane] : -INFINITY;
        most = fmaxf(most, logit[i]);
    }
    if (!sigmoids || lse != nullptr) {
        most = warp_max(most);
#pragma unroll
        for (int i = 0; i < R; i++) {
            score[i] = 32 * i + lane < experts ? expf(logit[i] - most) : 0;
            sum += score[i];
        }
        sum = warp_sum(sum);
        if (lse != nullptr && lane == 0) {
            *lse = most + logf(sum);
        }
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
        score[i] = 32 * i + lane >= experts ? 0 : sigmoids ? sigmoid(logit[i]) : score[i] / sum;
    }
}

/* What experts compete with: score + bias. NaN stands below every number, so that K different
 * experts always come out; what is no expert, below that. */
template <int R>
DEVICE void candidates(float (&value)[R], const float (&score)[R], const float *bias, int experts)
{
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int e = 32 * i + (int)(threadIdx.x % 32);
        if (e < experts) {
            const float sum = bias != nullptr ? score[i] + bias[e] : score[i];
            value[i] = sum >= -FLT_MAX ? sum : -FLT_MAX;
        } else {
            value[i] = -INFINITY;
        }
    }
}

/* Of experts [begin, end): the largest value, or the sum of the two largest. */
template <int R>
DEVICE float group_score(const float (&value)[R], int begin, int end, bool best_two)
{
    const int lane = threadIdx.x % 32;
    float first = -INFINITY, second = -INFINITY;
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int e = 32 * i + lane;
        const float own = e >= begin && e < end ? value[i] : -INFINITY;
        second = fmaxf(second, fminf(first, own));
        first = fmaxf(first, own);
    }
    const float most = warp_max(first);
    if (!best_two) {
        return most;
    }
    const int owner = __ffs((int)__ballot_sync(0xffffffffu, first == most)) - 1;
    const float score = most + warp_max(lane == owner ? second : first);
    return score >= -FLT_MAX ? score : -FLT_MAX;
}

/* Experts outside the best groups leave the competition. Group g's score is kept like expert g's.
 */
template <int R> DEVICE void keep_groups(float (&value)[R], const struct router_shape &shape)
{
    const int lane = threadIdx.x % 32, size = (int)(shape.experts / shape.groups);
    float group[R];
    unsigned kept[(R + 31) / 32] = {};
#pragma unroll
    for (int i = 0; i < R; i++) {
        group[i] = -INFINITY;
        for (int g = 32 * i; g < min(32 * i + 32, (int)shape.groups); g++) {
            const float score = group_score(value, g * size, g * size + size, shape.sigmoid);
            group[i] = g % 32 == lane ? score : group[i];
        }
    }
    for (int k = 0; k < (int)shape.top_groups; k++) {
        const int best = largest(group);
        take(group, best);
#pragma unroll
        for (int i = 0; i < R; i++) {
            const int e = 32 * i + lane;
            kept[i / 32] |= (unsigned)(e >= best * size && e < best * size + size) << (i % 32);
        }
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
        value[i] = (kept[i / 32] >> (i % 32) & 1u) != 0 ? value[i] : -INFINITY;
    }
}

DEVICE void count(int64_t *at)
{
    atomicAdd((unsigned long long *)at, 1ULL); /* integers: the order does not matter */
}

/* The K largest, falling, and their weights; one lane per slot keeps both for the other stages. */
template <int R>
DEVICE void choose(int32_t *expert, float *weight, float (&value)[R], const float (&score)[R],
                   const struct router_shape &shape)
{
    const int lane = threadIdx.x % 32;
    float sum = TINY;
    for (int k = 0; k < (int)shape.top_k; k++) {
        const int best = largest(value);
        float own = 0;
#pragma unroll
        for (int i = 0; i < R; i++) {
            own = 32 * i + lane == best ? score[i] : own;
        }
        own = __shfl_sync(0xffffffffu, own, best % 32);
        sum += own;
        take(value, best);
        if (k % 32 == lane) {
            expert[k] = best;
            weight[k] = own;
        }
    }
    for (int k = lane; k < (int)shape.top_k; k += 32) {
        weight[k] = (shape.normalize ? weight[k] / sum : weight[k]) * shape.scale;
    }
    __syncwarp();
}

DEVICE void count_choice(const struct router_counts &counts, const int32_t *expert, int64_t row,
                         const struct router_shape &shape)
{
    const int size = (int)(shape.experts / shape.loss_groups);
    for (int k = threadIdx.x % 32; k < (int)shape.top_k; k += 32) {
        bool first = counts.group != nullptr;
        count(counts.routed + row * shape.experts + expert[k]);
        for (int j = 0; j < k && first; j++) {
            first = expert[j] / size != expert[k] / size;
        }
        if (first) {
            count(counts.group + row * shape.loss_groups + expert[k] / size);
        }
    }
}

/* The choice that bare scores without groups would have made. */
template <int R>
DEVICE void count_scored(int64_t *scored, const float (&score)[R], const struct router_shape &shape)
{
    float value[R];
    candidates(value, score, nullptr, (int)shape.experts);
    for (int k = 0; k < (int)shape.top_k; k++) {
        const int best = largest(value);
        take(value, best);
        if (best % 32 == (int)(threadIdx.x % 32)) {
            count(scored + best);
        }
    }
}

/* One warp per token, its E scores in registers: up to 64 experts in 2, 256 in 8, 1024 in 32; up to
 * 4096 in loops over 128 in local memory. Bytes per token: 4 E of logits in, 4 E of scores and 8 K
 * out. Per token and lane about R (K + groups + top_groups) comparisons and 2 reductions each:
 * bound by them from about E = 64 on, else by memory. */
template <int R>
__global__ void __launch_bounds__(ROUTER_WARPS * 32)
    router_forward_kernel(struct router_io io, struct router_shape shape)
{
    const int64_t n = (int64_t)blockIdx.x * ROUTER_WARPS + threadIdx.x / 32;
    if (n >= shape.tokens) {
        return;
    }
    const int lane = threadIdx.x % 32, experts = (int)shape.experts;
    const int64_t row = n / shape.row_tokens;
    int32_t *expert = io.expert + n * shape.top_k;
    float score[R], value[R];
    scores(score, io.lse != nullptr ? io.lse + n : nullptr, io.logits + n * experts, experts,
           shape.sigmoid);
#pragma unroll
    for (int i = 0; i < R; i++) {
        if (32 * i + lane < experts) {
            io.score[n * experts + 32 * i + lane] = score[i];
        }
    }
    candidates(value, score, io.bias, experts);
    if (shape.groups > 1) {
        keep_groups(value, shape);
    }
    choose(expert, io.weight + n * shape.top_k, value, score, shape);
    count_choice(io.counts, expert, row, shape);
    if (io.counts.scored != nullptr) {
        count_scored(io.counts.scored + row * experts, score, shape);
    }
}

__global__ void __launch_bounds__(FLAT_THREADS) clear_kernel(int64_t *x, int64_t count)
{
    flat<1>(count, [&](auto, int64_t i) { x[i] = 0; });
}

static void clear(void *stream, int64_t *x, int64_t count)
{
    if (x != nullptr && count > 0) {
        LAUNCH(clear_kernel, flat_blocks(count, 1), FLAT_THREADS, 0, (cudaStream_t)stream, x,
               count);
    }
}

void cuda_router_forward(void *stream, int32_t *expert, float *weight, float *score, float *lse,
                         struct router_counts counts, const float *logits, const float *bias,
                         struct router_shape shape)
{
    const int64_t experts = shape.experts, rows = shape.tokens / shape.row_tokens;
    const struct router_io io = {expert, weight, score, lse, counts, logits, bias};
    const unsigned blocks = (unsigned)((shape.tokens + ROUTER_WARPS - 1) / ROUTER_WARPS);
    const cudaStream_t queue = (cudaStream_t)stream;
    assert(shape.top_k >= 1 && experts <= MAX_EXPERTS && experts % shape.groups == 0 &&
           experts % shape.loss_groups == 0);
    assert(shape.top_k <= (shape.groups > 1 ? experts / shape.groups * shape.top_groups : experts));
    clear(stream, counts.routed, rows * experts);
    clear(stream, counts.scored, rows * experts);
    clear(stream, counts.group, rows * shape.loss_groups);
    if (shape.tokens == 0) {
        return;
    }
    if (experts <= 64) {
        LAUNCH(router_forward_kernel<2>, blocks, ROUTER_WARPS * 32, 0, queue, io, shape);
    } else if (experts <= 256) {
        LAUNCH(router_forward_kernel<8>, blocks, ROUTER_WARPS * 32, 0, queue, io, shape);
    } else if (experts <= 1024) {
        LAUNCH(router_forward_kernel<32>, blocks, ROUTER_WARPS * 32, 0, queue, io, shape);
    } else {
        LAUNCH(router_forward_kernel<128>, blocks, ROUTER_WARPS * 32, 0, queue, io, shape);
    }
}
