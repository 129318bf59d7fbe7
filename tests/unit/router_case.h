/* router_case: routers of every kind as tests of their ops use them, and scores and weights in
 * float64.
 */
#ifndef TESTS_UNIT_ROUTER_CASE_H
#define TESTS_UNIT_ROUTER_CASE_H

#include "ops_check.h"

struct router_case {
    struct router_shape shape;
    bool bias;
};

/* tokens, experts, top_k, row_tokens, sigmoid, groups, top_groups, normalize, scale, loss_groups */
static const struct router_case router_cases[] = {
    /* Mixtral */
    {{0, 4, 2, 1, false, 1, 1, true, 1, 1}, false},
    {{1, 1, 1, 1, false, 1, 1, true, 1, 1}, false},
    {{5, 3, 3, 5, false, 1, 1, true, 1, 1}, false},
    {{33, 8, 2, 11, false, 1, 1, true, 1, 1}, false},
    {{130, 64, 6, 65, false, 1, 1, true, 1, 1}, false},
    {{7, 17, 1, 7, false, 1, 1, true, 1, 1}, false},
    /* DeepSeek-V2: greedy, group-limited, groups of one expert */
    {{1, 1, 1, 1, false, 1, 1, false, 16, 1}, false},
    {{65, 40, 5, 13, false, 1, 1, false, 16, 8}, false},
    {{66, 40, 6, 33, false, 8, 3, false, 16, 8}, false},
    {{6, 8, 2, 6, false, 8, 4, false, 1, 8}, false},
    {{33, 12, 4, 3, false, 4, 2, true, 2, 4}, false},
    /* DeepSeek-V3 */
    {{0, 8, 3, 4, true, 4, 2, true, 2.5F, 4}, true},
    {{33, 8, 3, 11, true, 4, 2, true, 2.5F, 4}, true},
    {{16, 256, 8, 4, true, 8, 4, true, 2.5F, 8}, true},
    {{130, 64, 8, 65, true, 8, 4, true, 2.5F, 8}, false},
    {{24, 12, 4, 8, true, 3, 2, false, 1.5F, 3}, true},
    {{21, 17, 1, 7, true, 1, 1, true, 1, 1}, false},
    {{9, 6, 6, 3, true, 1, 1, true, 2.5F, 2}, true},
};
enum { ROUTER_CASES = sizeof router_cases / sizeof router_cases[0] };

/* What the op writes. */
struct routing {
    struct tensor expert, weight, score, lse, routed, scored, group;
};

static inline int64_t router_rows(const struct router_shape *s)
{
    return s->tokens / s->row_tokens;
}

/* expf (the fast exp of sigmoids is off by 3e-7), sums over E and divisions; differences of logits
 * are rounded too, and logits reach 10. */
static inline double router_error(const struct router_shape *s)
{
    return CHECK_U * (12 + sqrt((double)s->experts)) + (s->sigmoid ? 3e-7 : 0);
}

static inline void router_name(struct check *c, const char *op, const struct router_case *k)
{
    const struct router_shape *s = &k->shape;
    check_name(c, "%s %s N=%lld (rows of %lld) E=%lld K=%lld groups=%lld/%lld%s scale=%g%s", op,
               s->sigmoid ? "sigmoid" : "softmax", (long long)s->tokens, (long long)s->row_tokens,
               (long long)s->experts, (long long)s->top_k, (long long)s->top_groups,
               (long long)s->groups, s->normalize ? " normalised" : "", (double)s->scale,
               k->bias ? " bias" : "");
}

/* Wide enough that score + bias is negative now and then. */
static inline struct tensor router_bias(struct check *c, const struct router_case *k)
{
    return check_random(c, "bias", DTYPE_F32, 1, k->shape.experts, 0.4);
}

static inline struct routing router_forward(struct check *c, struct tensor logits,
                                            const float *bias, struct router_shape s)
{
    const int64_t rows = router_rows(&s);
    const struct routing r = {.expert = check_tensor(c, "expert", DTYPE_I32, s.tokens, s.top_k),
                              .weight = check_tensor(c, "weight", DTYPE_F32, s.tokens, s.top_k),
                              .score = check_tensor(c, "score", DTYPE_F32, s.tokens, s.experts),
                              .lse = check_tensor(c, "lse", DTYPE_F32, s.tokens, 1),
                              .routed = check_tensor(c, "routed", DTYPE_I64, rows, s.experts),
                              .scored = check_tensor(c, "scored", DTYPE_I64, rows, s.experts),
                              .group = check_tensor(c, "group", DTYPE_I64, rows, s.loss_groups)};
    const struct router_counts counts = {r.routed.data, r.scored.data, r.group.data};
    c->ops->router_forward(c->device, r.expert.data, r.weight.data, r.score.data, r.lse.data,
                           counts, logits.data, bias, s);
    return r;
}

/* --- float64 --- */

/* Scores of one token; returns the log-sum-exp of its logits. */
static inline double router_scores(const double *logits, double *score,
                                   const struct router_shape *s)
{
    double most = -INFINITY, sum = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        most = fmax(most, logits[e]);
    }
    for (int64_t e = 0; e < s->experts; e++) {
        sum += exp(logits[e] - most);
    }
    for (int64_t e = 0; e < s->experts; e++) {
        score[e] = s->sigmoid ? 1 / (1 + exp(-logits[e])) : exp(logits[e] - most) / sum;
    }
    return most + log(sum);
}

static inline void router_weights(const double *score, const int32_t *expert, double *weight,
                                  const struct router_shape *s)
{
    for (int64_t n = 0; n < s->tokens; n++) {
        double sum = 1e-20;
        for (int64_t k = n * s->top_k; k < (n + 1) * s->top_k; k++) {
            weight[k] = score[n * s->experts + expert[k]];
            sum += weight[k];
        }
        for (int64_t k = n * s->top_k; k < (n + 1) * s->top_k; k++) {
            weight[k] *= (double)s->scale / (s->normalize ? sum : 1);
        }
    }
}

#endif
