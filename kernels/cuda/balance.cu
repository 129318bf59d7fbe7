#include "kernels/cuda/rows.cuh"

enum { BALANCE_THREADS = 512 };

/* Bytes: 8 in per row and expert. Bound by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    router_count_kernel(int64_t *count, const int64_t *__restrict__ routed, int64_t rows,
                        int64_t experts)
{
    flat<1>(experts, [&](auto, int64_t e) {
        int64_t sum = count[e];
        for (int64_t row = 0; row < rows; row++) {
            sum += routed[row * experts + e];
        }
        count[e] = sum;
    });
}

void cuda_router_count(void *stream, int64_t *count, const int64_t *routed, int64_t rows,
                       int64_t experts)
{
    LAUNCH(router_count_kernel, flat_blocks(experts, 1), FLAT_THREADS, 0, (cudaStream_t)stream,
           count, routed, rows, experts);
}

/* How many of the first `slots` slots go to expert e. */
DEVICE int64_t even_slots(int64_t slots, int64_t e, int64_t experts)
{
    return (slots + experts - 1 - e) / experts;
}

/* Bytes: 8 out per slot, 8 per count. Bound by memory. */
__global__ void __launch_bounds__(FLAT_THREADS)
    router_even_kernel(int32_t *expert, float *weight, int64_t *routed, int64_t slots, int64_t rows,
                       int64_t experts, float each)
{
    flat<1>(max(slots, rows * experts), [&](auto, int64_t i) {
        if (i < slots) {
            expert[i] = (int32_t)(i % experts);
            weight[i] = each;
        }
        if (i < rows * experts) {
            const int64_t row = i / experts, e = i % experts, own = slots / rows;
            routed[i] = even_slots((row + 1) * own, e, experts) - even_slots(row * own, e, experts);
        }
    });
}

void cuda_router_even(void *stream, int32_t *expert, float *weight, struct router_counts counts,
                      struct router_shape shape)
{
    const int64_t slots = shape.tokens * shape.top_k, rows = shape.tokens / shape.row_tokens;
    const int64_t count = slots > rows * shape.experts ? slots : rows * shape.experts;
    if (count > 0) {
        LAUNCH(router_even_kernel, flat_blocks(count, 1), FLAT_THREADS, 0, (cudaStream_t)stream,
               expert, weight, counts.routed, slots, rows, shape.experts,
               1.0F / (float)shape.top_k);
    }
}

struct balance_input {
    const double *sums;
    struct router_counts counts;
    const int64_t *chosen;
    const float *lse;
    struct router_shape shape;
    struct balance_terms terms;
};

/* The device and communication losses weigh the P of a whole group. */
DEVICE double group_weight(const struct balance_input &in, int64_t row, int64_t group)
{
    const int64_t groups = in.shape.loss_groups, size = in.shape.experts / groups;
    double weight = 0;
    if (in.terms.device > 0) {
        int64_t slots = 0;
        for (int64_t e = group * size; e < (group + 1) * size; e++) {
            slots += in.counts.routed[row * in.shape.experts + e];
        }
        weight += in.terms.device *
                  ((double)groups / (double)(in.shape.top_k * in.shape.row_tokens)) * (double)slots;
    }
    if (in.terms.communication > 0) {
        weight += in.terms.communication * (double)groups /
                  (double)(in.terms.top_groups * in.shape.row_tokens) *
                  (double)in.counts.group[row * groups + group];
    }
    return weight;
}

/* Weight of the sum of row's scores of e. */
DEVICE double balance_weight(const struct balance_input &in, int64_t row, int64_t e)
{
    const struct balance_terms &terms = in.terms;
    const int64_t experts = in.shape.experts;
    const int64_t *count = terms.score_counts ? in.counts.scored : in.counts.routed;
    double weight = 0;
    if (terms.sequence > 0) {
        weight += terms.sequence * (double)experts /
                  (double)(in.shape.top_k * in.shape.row_tokens) * (double)count[row * experts + e];
    }
    if (terms.device > 0 || terms.communication > 0) {
        weight += group_weight(in, row, e * in.shape.loss_groups / experts);
    }
    weight /= (double)in.shape.tokens;
    if (terms.batch_weight > 0) {
        weight += terms.batch_weight * (double)in.chosen[e] * terms.batch_share;
    }
    return weight;
}

/* One block: few elements. Bytes: 8 to 24 in, 4 out per row and expert, 4 in per token. Bound by
 * latency. */
__global__ void __launch_bounds__(BALANCE_THREADS)
    balance_kernel(double *loss, float *gradient, struct balance_input in)
{
    SMEM(double, part, [32]);
    const int64_t experts = in.shape.experts;
    const int64_t count = in.shape.tokens / in.shape.row_tokens * experts;
    double total = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < count; i += BALANCE_THREADS) {
        const double weight = balance_weight(in, i / experts, i % experts);
        total += weight * in.sums[i];
        gradient[i] = (float)(weight * in.terms.unit);
    }
    for (int64_t n = threadIdx.x; in.terms.z > 0 && n < in.shape.tokens; n += BALANCE_THREADS) {
        squares += (double)in.lse[n] * (double)in.lse[n];
    }
    total = block_sum(total, part);
    squares = block_sum(squares, part);
    if (threadIdx.x == 0) {
        *loss += total + (in.terms.z > 0 ? in.terms.z * squares / (double)in.shape.tokens : 0);
    }
}

void cuda_balance(void *stream, double *loss, float *gradient, const double *sums,
                  struct router_counts counts, const int64_t *chosen, const float *lse,
                  struct router_shape shape, const struct balance_terms *terms)
{
    if (shape.tokens > 0) {
        const struct balance_input in = {sums, counts, chosen, lse, shape, *terms};
        LAUNCH(balance_kernel, 1, BALANCE_THREADS, 0, (cudaStream_t)stream, loss, gradient, in);
    }
}
