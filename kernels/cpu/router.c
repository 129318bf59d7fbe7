#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vector_math.h"

enum { MAX_EXPERTS = 4096, LANES = 16 };
static const float TINY = 1e-20F; /* in published denominators; changes no normal sum */

/* GCC does not make vectors of loops that keep a largest value: these are written as such. */
typedef float floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(LANES * sizeof(int32_t))));

CPU_CLONES static float most_of(const float *x, int64_t count)
{
    float most = x[0];
    int64_t i = 0;
    floats lane = most - (floats){0};
    for (; i + LANES <= count; i += LANES) {
        floats here;
        memcpy(&here, x + i, sizeof here);
        const ints more = here > lane;
        lane = (floats)(((ints)here & more) | ((ints)lane & ~more));
    }
    for (; i < count; i++) {
        most = x[i] > most ? x[i] : most;
    }
    for (int j = 0; j < LANES; j++) {
        most = lane[j] > most ? lane[j] : most;
    }
    return most;
}

/* The sum of exp(x - most) and most itself: log-sum-exp is most + log(sum). */
static float exp_row(float *out, const float *logits, int64_t experts, float *sum)
{
    const float most = most_of(logits, experts);
    *sum = 0;
    for (int64_t e = 0; e < experts; e++) {
        out[e] = expf(logits[e] - most);
        *sum += out[e];
    }
    return most;
}

CPU_CLONES static void sigmoid_row(float *score, const float *logits, int64_t experts)
{
    for (int64_t e = 0; e < experts; e++) {
        score[e] = fast_sigmoid(logits[e]);
    }
}

CPU_CLONES static void divide_row(float *score, float sum, int64_t experts)
{
    for (int64_t e = 0; e < experts; e++) {
        score[e] /= sum;
    }
}

/* Scores of one token; lse may be NULL for sigmoid scores. */
static void score_row(float *score, float *lse, const float *logits,
                      const struct router_shape *shape)
{
    const int64_t experts = shape->experts;
    float sum = 0;
    if (shape->sigmoid && lse == NULL) {
        sigmoid_row(score, logits, experts);
        return;
    }
    const float most = exp_row(score, logits, experts, &sum);
    if (lse != NULL) {
        *lse = most + logf(sum);
    }
    if (shape->sigmoid) {
        sigmoid_row(score, logits, experts);
        return;
    }
    divide_row(score, sum, experts);
}

/* What experts compete with: score + bias. NaN stands below every number, so that K different
 * experts always come out. */
CPU_CLONES static void candidates(float *out, const float *score, const float *bias,
                                  int64_t experts)
{
    for (int64_t e = 0; e < experts; e++) {
        const float value = bias != NULL ? score[e] + bias[e] : score[e];
        out[e] = value >= -FLT_MAX ? value : -FLT_MAX;
    }
}

/* Index of the largest, the lowest among equals; -1 when all are -inf: taken or left out. */
CPU_CLONES static int32_t largest(const float *value, int64_t count)
{
    float best = -INFINITY;
    int32_t i = 0, at = -1;
    floats lane = best - (floats){0};
    ints first = at - (ints){0}, index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (; i + LANES <= count; i += LANES, index += LANES) {
        floats here;
        memcpy(&here, value + i, sizeof here);
        const ints more = here > lane;
        lane = (floats)(((ints)here & more) | ((ints)lane & ~more));
        first = (index & more) | (first & ~more);
    }
    for (int j = 0; j < LANES; j++) {
        at = lane[j] > best || (lane[j] == best && first[j] < at) ? first[j] : at;
        best = lane[j] > best ? lane[j] : best;
    }
    for (; i < count; i++) {
        at = value[i] > best ? i : at;
        best = value[i] > best ? value[i] : best;
    }
    return at;
}

/* Softmax routers (DeepSeek-V2) rate a group by its best expert, sigmoid ones (V3) by its best two.
 */
static float group_score(const float *value, int64_t size, bool best_two)
{
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
        if (value[i] > first) {
            second = first;
            first = value[i];
        } else if (value[i] > second) {
            second = value[i];
        }
    }
    return best_two ? first + second : first;
}

/* Experts outside the best groups leave the competition. */
static void keep_groups(float *value, const struct router_shape *shape)
{
    const int64_t size = shape->experts / shape->groups;
    float score[MAX_EXPERTS];
    bool kept[MAX_EXPERTS] = {false};
    for (int64_t g = 0; g < shape->groups; g++) {
        score[g] = group_score(value + g * size, size, shape->sigmoid);
        score[g] = score[g] >= -FLT_MAX ? score[g] : -FLT_MAX;
    }
    for (int64_t k = 0; k < shape->top_groups; k++) {
        const int32_t best = largest(score, shape->groups);
        kept[best] = true;
        score[best] = -INFINITY;
    }
    for (int64_t e = 0; e < shape->experts; e++) {
        value[e] = kept[e / size] ? value[e] : -INFINITY;
    }
}

/* The K largest, falling; the values chosen become -inf. */
static void choose(int32_t *expert, float *value, const struct router_shape *shape)
{
    for (int64_t k = 0; k < shape->top_k; k++) {
        expert[k] = largest(value, shape->experts);
        value[expert[k]] = -INFINITY;
    }
}

static void weigh(float *weight, const int32_t *expert, const float *score,
                  const struct router_shape *shape)
{
    float sum = TINY;
    for (int64_t k = 0; k < shape->top_k; k++) {
        weight[k] = score[expert[k]];
        sum += weight[k];
    }
    for (int64_t k = 0; k < shape->top_k; k++) {
        weight[k] = (shape->normalize ? weight[k] / sum : weight[k]) * shape->scale;
    }
}

/* Counts are integers: the order of the additions does not matter. */
static void count(int64_t *at)
{
#pragma omp atomic
    ++*at;
}

static void count_choice(struct router_counts counts, const int32_t *expert, int64_t row,
                         const struct router_shape *shape)
{
    const int64_t size = shape->experts / shape->loss_groups;
    for (int64_t k = 0; k < shape->top_k; k++) {
        bool first = true;
        count(counts.routed + row * shape->experts + expert[k]);
        for (int64_t j = 0; j < k; j++) {
            first = first && expert[j] / size != expert[k] / size;
        }
        if (first && counts.group != NULL) {
            count(counts.group + row * shape->loss_groups + expert[k] / size);
        }
    }
}

/* The choice that bare scores without groups would have made: what DeepSeek-V3's sequence loss
 * counts (its equation 18). */
static void count_scored(int64_t *scored, const float *score, int32_t *expert, float *value,
                         const struct router_shape *shape)
{
    candidates(value, score, NULL, shape->experts);
    choose(expert, value, shape);
    for (int64_t k = 0; k < shape->top_k; k++) {
        count(scored + expert[k]);
    }
}

static void clear_counts(struct router_counts counts, int64_t rows,
                         const struct router_shape *shape)
{
    const size_t experts = (size_t)(rows * shape->experts) * sizeof(int64_t);
    memset(counts.routed, 0, experts);
    if (counts.scored != NULL) {
        memset(counts.scored, 0, experts);
    }
    if (counts.group != NULL) {
        memset(counts.group, 0, (size_t)(rows * shape->loss_groups) * sizeof(int64_t));
    }
}

void cpu_router_forward(struct device *device, int32_t *expert, float *weight, float *score,
                        float *lse, struct router_counts counts, const float *logits,
                        const float *bias, struct router_shape shape)
{
    const int64_t experts = shape.experts, top_k = shape.top_k;
    assert(top_k >= 1 && top_k <= experts && experts <= MAX_EXPERTS && shape.row_tokens > 0);
    assert(experts % shape.groups == 0 && experts % shape.loss_groups == 0);
    clear_counts(counts, shape.tokens / shape.row_tokens, &shape);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < shape.tokens; n++) {
        float *own = score + n * experts, value[MAX_EXPERTS];
        int32_t bare[MAX_EXPERTS];
        const int64_t row = n / shape.row_tokens;
        score_row(own, lse != NULL ? lse + n : NULL, logits + n * experts, &shape);
        candidates(value, own, bias, experts);
        if (shape.groups > 1) {
            keep_groups(value, &shape);
        }
        choose(expert + n * top_k, value, &shape);
        weigh(weight + n * top_k, expert + n * top_k, own, &shape);
        count_choice(counts, expert + n * top_k, row, &shape);
        if (counts.scored != NULL) {
            count_scored(counts.scored + row * experts, own, bare, value, &shape);
        }
    }
}

static float row_sum(const float *score, int64_t experts)
{
    float sum = TINY;
    for (int64_t e = 0; e < experts; e++) {
        sum += score[e];
    }
    return sum;
}

/* Through softmax: dl_j = p_j (dp_j - sum_i p_i dp_i), for the balance loss (dp = aux) and for
 * weights that are not normalised (w = scale * p, so p dp = w dw). Normalised weights depend on the
 * chosen logits only: dl_i = w_i (dw_i - sum_j w_j dw_j / scale). */
static void softmax_backward(float *dlogits, const float *dweight, const int32_t *expert,
                             const float *weight, const float *p, const float *aux,
                             const struct router_shape *shape)
{
    float mean = 0, weighted = 0;
    for (int64_t e = 0; e < shape->experts; e++) {
        mean += p[e] * aux[e];
    }
    for (int64_t k = 0; k < shape->top_k; k++) {
        weighted += dweight[k] * weight[k];
    }
    const float all = shape->normalize ? mean : mean + weighted;
    for (int64_t e = 0; e < shape->experts; e++) {
        dlogits[e] = p[e] * (aux[e] - all);
    }
    const float chosen = shape->normalize ? weighted / shape->scale : 0;
    for (int64_t k = 0; k < shape->top_k; k++) {
        dlogits[expert[k]] += weight[k] * (dweight[k] - chosen);
    }
}

/* Through sigmoid: dl = ds s (1 - s). Balance: of s' = s / sum s. Weights: w = scale s / Z over the
 * chosen, or scale s. */
static void sigmoid_backward(float *dlogits, const float *dweight, const int32_t *expert,
                             const float *weight, const float *s, const float *aux,
                             const struct router_shape *shape)
{
    const float sum = row_sum(s, shape->experts);
    float mean = 0, weighted = 0, chosen = TINY;
    for (int64_t e = 0; e < shape->experts; e++) {
        mean += s[e] / sum * aux[e];
    }
    for (int64_t e = 0; e < shape->experts; e++) {
        dlogits[e] = (aux[e] - mean) / sum;
    }
    for (int64_t k = 0; k < shape->top_k; k++) {
        chosen += s[expert[k]];
        weighted += dweight[k] * weight[k] / shape->scale;
    }
    for (int64_t k = 0; k < shape->top_k; k++) {
        dlogits[expert[k]] +=
            shape->scale * (shape->normalize ? (dweight[k] - weighted) / chosen : dweight[k]);
    }
    for (int64_t e = 0; e < shape->experts; e++) {
        dlogits[e] *= s[e] * (1.0F - s[e]);
    }
}

void cpu_router_backward(struct device *device, float *dlogits, const float *dweight,
                         const int32_t *expert, const float *weight, const float *score,
                         const float *logits, const float *lse, const float *aux, float z_scale,
                         struct router_shape shape)
{
    const int64_t experts = shape.experts, top_k = shape.top_k;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < shape.tokens; n++) {
        float *out = dlogits + n * experts;
        (shape.sigmoid ? sigmoid_backward : softmax_backward)(
            out, dweight + n * top_k, expert + n * top_k, weight + n * top_k, score + n * experts,
            aux + n / shape.row_tokens * experts, &shape);
        for (int64_t e = 0; e < experts && z_scale != 0; e++) {
            out[e] += 2.0F * z_scale * lse[n] * expf(logits[n * experts + e] - lse[n]);
        }
    }
}

/* One thread sums a row of statistics: the order is fixed. */
void cpu_router_sums(struct device *device, double *sums, const float *score,
                     struct router_shape shape)
{
    const int64_t experts = shape.experts, rows = shape.tokens / shape.row_tokens;
    memset(sums, 0, (size_t)(rows * experts) * sizeof *sums);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        double *out = sums + row * experts;
        for (int64_t n = row * shape.row_tokens; n < (row + 1) * shape.row_tokens; n++) {
            const float *own = score + n * experts;
            const double divisor = shape.sigmoid ? (double)row_sum(own, experts) : 1;
            for (int64_t e = 0; e < experts; e++) {
                out[e] += (double)own[e] / divisor;
            }
        }
    }
}
