/* Router, backward: gradients of weights, balance losses and z-loss by closed forms in float64 and
 * by finite differences.
 */
#include "unit/router_case.h"

/* The loss of a case: <dweight, weight> + sum over tokens of <aux[row], P> + z_scale sum of lse^2,
 * P the scores, of sigmoid ones s / sum s. The choice stays as it is. */
struct objective {
    const struct router_shape *shape;
    const int32_t *expert;
    double *logits, *dweight, *aux, z_scale;
};

/* The part of the loss that one token's scores make. */
static double balance_term(const struct objective *r, int64_t n, const double *score)
{
    const struct router_shape *s = r->shape;
    const double *aux = r->aux + n / s->row_tokens * s->experts;
    double sum = 0, total = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        sum += aux[e] * score[e];
        total += score[e];
    }
    return s->sigmoid ? sum / total : sum;
}

static double router_loss(const void *args)
{
    const struct objective *r = args;
    const struct router_shape *s = r->shape;
    double *score = calloc((size_t)(s->tokens * s->experts) + 1, sizeof *score),
           *weight = calloc((size_t)(s->tokens * s->top_k) + 1, sizeof *weight), sum = 0;
    assert_true(score != NULL && weight != NULL);
    for (int64_t n = 0; n < s->tokens; n++) {
        double *own = score + n * s->experts;
        const double lse = router_scores(r->logits + n * s->experts, own, s);
        sum += r->z_scale * lse * lse + balance_term(r, n, own);
    }
    router_weights(score, r->expert, weight, s);
    for (int64_t i = 0; i < s->tokens * s->top_k; i++) {
        sum += r->dweight[i] * weight[i];
    }
    free(score);
    free(weight);
    return sum;
}

/* ds[E] of one token: of w = scale s / Z, Z the sum over the chosen (or 1), and of the balance
 * term: aux, or of s / sum s (aux - sum aux s / sum s) / sum s. */
static void score_gradient(const struct objective *r, int64_t n, const double *s, double *ds)
{
    const struct router_shape *shape = r->shape;
    const int32_t *expert = r->expert + n * shape->top_k;
    const double *dweight = r->dweight + n * shape->top_k,
                 *aux = r->aux + n / shape->row_tokens * shape->experts,
                 scale = (double)shape->scale, mean = balance_term(r, n, s);
    double total = 0, chosen = 1e-20, weighted = 0;
    for (int64_t e = 0; e < shape->experts; e++) {
        total += s[e];
    }
    for (int64_t e = 0; e < shape->experts; e++) {
        ds[e] = shape->sigmoid ? (aux[e] - mean) / total : aux[e];
    }
    for (int64_t k = 0; k < shape->top_k; k++) {
        chosen += s[expert[k]];
        weighted += dweight[k] * s[expert[k]];
    }
    for (int64_t k = 0; k < shape->top_k; k++) {
        ds[expert[k]] +=
            scale * (shape->normalize ? (dweight[k] - weighted / chosen) / chosen : dweight[k]);
    }
}

/* dl = J^T ds of the softmax or the sigmoid, and of the log-sum-exp. */
static void reference_backward(const struct objective *r, double *dlogits)
{
    const struct router_shape *s = r->shape;
    const struct router_shape softmax = {.experts = s->experts};
    double *score = malloc((size_t)s->experts * 3 * sizeof *score), *ds = score + s->experts,
           *p = ds + s->experts;
    assert_non_null(score);
    for (int64_t n = 0; n < s->tokens; n++) {
        const double *logits = r->logits + n * s->experts;
        double mean = 0;
        const double lse = router_scores(logits, p, &softmax);
        router_scores(logits, score, s);
        score_gradient(r, n, score, ds);
        for (int64_t e = 0; e < s->experts; e++) {
            mean += p[e] * ds[e];
        }
        for (int64_t e = 0; e < s->experts; e++) {
            dlogits[n * s->experts + e] =
                (s->sigmoid ? score[e] * (1 - score[e]) * ds[e] : p[e] * (ds[e] - mean)) +
                2 * r->z_scale * lse * p[e];
        }
    }
    free(score);
}

/* Tokens of a call alone, each its own row of statistics: the same bits. */
static void check_parts(struct check *c, const struct routing *r, struct tensor logits,
                        struct tensor dweight, struct tensor aux, float z_scale,
                        struct tensor dlogits, const struct router_shape *s)
{
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->tokens, i);
        struct router_shape shape = *s;
        shape.tokens = p.count;
        shape.row_tokens = 1;
        const struct tensor part = check_tensor(c, "part", DTYPE_F32, p.count, s->experts),
                            own = check_tensor(c, "aux", DTYPE_F32, p.count, s->experts);
        for (int64_t n = 0; n < p.count; n++) {
            memcpy((float *)own.data + n * s->experts,
                   (const float *)aux.data + (p.first + n) / s->row_tokens * s->experts,
                   (size_t)s->experts * sizeof(float));
        }
        c->ops->router_backward(c->device, part.data, tensor_rows(&dweight, p.first, p.count).data,
                                tensor_rows(&r->expert, p.first, p.count).data,
                                tensor_rows(&r->weight, p.first, p.count).data,
                                tensor_rows(&r->score, p.first, p.count).data,
                                tensor_rows(&logits, p.first, p.count).data,
                                tensor_rows(&r->lse, p.first, p.count).data, own.data, z_scale,
                                shape);
        check_exact(c, "dlogits", part, tensor_rows(&dlogits, p.first, p.count), "rows");
    }
}

static void check_backward(struct check *c, const struct router_case *k, float z_scale)
{
    const struct router_shape *s = &k->shape;
    const struct tensor logits = check_random(c, "logits", DTYPE_F32, s->tokens, s->experts, 2),
                        biases = router_bias(c, k),
                        aux = check_random(c, "aux", DTYPE_F32, router_rows(s), s->experts, 0.5),
                        dlogits = check_tensor(c, "dlogits", DTYPE_F32, s->tokens, s->experts);
    struct tensor dweight = check_random(c, "dweight", DTYPE_F32, s->tokens, s->top_k, 1);
    for (int64_t i = 2; i < s->tokens * s->top_k; i += 5) {
        check_set(&dweight, i, 0); /* dropped */
    }
    const struct routing r = router_forward(c, logits, k->bias ? biases.data : NULL, *s);
    const struct objective o = {s,
                                r.expert.data,
                                check_values(c, logits),
                                check_values(c, dweight),
                                check_values(c, aux),
                                (double)z_scale};
    double *expected = check_doubles(c, s->tokens * s->experts);
    reference_backward(&o, expected);
    /* One expert only: what is left of the weights' gradient is 0. */
    c->floor = 0.1 * (double)s->scale;
    c->ops->router_backward(c->device, dlogits.data, dweight.data, r.expert.data, r.weight.data,
                            r.score.data, z_scale != 0 ? logits.data : NULL,
                            z_scale != 0 ? r.lse.data : NULL, aux.data, z_scale, *s);
    check_close(c, "dlogits", dlogits, expected, router_error(s));
    check_gradient(c, "dlogits", dlogits, NULL, o.logits, router_loss, &o, router_error(s));
    check_parts(c, &r, logits, dweight, aux, z_scale, dlogits, s);
}

static void run_backward(struct check *c, const void *args)
{
    router_name(c, "router_backward", args);
    check_backward(c, args, 0);
    router_name(c, "router_backward with z-loss", args);
    check_backward(c, args, 0.05F);
}

/* A weight without a balance loss: of normalised and of sigmoid weights the logits that were not
 * chosen get exactly nothing; through a softmax all do. */
static void run_unchosen(struct check *c, const void *args)
{
    const struct router_case *k = args;
    const struct router_shape *s = &k->shape;
    router_name(c, "router_backward of weights alone", k);
    const struct tensor logits = check_random(c, "logits", DTYPE_F32, s->tokens, s->experts, 2),
                        aux = check_tensor(c, "aux", DTYPE_F32, router_rows(s), s->experts),
                        dweight = check_random(c, "dweight", DTYPE_F32, s->tokens, s->top_k, 1),
                        dlogits = check_tensor(c, "dlogits", DTYPE_F32, s->tokens, s->experts);
    memset(aux.data, 0, tensor_bytes(&aux));
    const struct routing r = router_forward(c, logits, NULL, *s);
    c->ops->router_backward(c->device, dlogits.data, dweight.data, r.expert.data, r.weight.data,
                            r.score.data, NULL, NULL, aux.data, 0, *s);
    const bool sparse = s->sigmoid || s->normalize;
    for (int64_t i = 0; i < s->tokens * s->experts; i++) {
        bool chosen = false;
        for (int64_t j = 0; j < s->top_k; j++) {
            const int64_t n = i / s->experts;
            chosen = chosen || ((const int32_t *)r.expert.data)[n * s->top_k + j] == i % s->experts;
        }
        const double value = check_get(&dlogits, i);
        if (!chosen && (value == 0) != sparse) {
            check_fail(c, "dlogits", &dlogits, i, value, 0, "of a logit that was not chosen");
        }
    }
}

static void test_backward(void **state)
{
    for (int i = 0; i < ROUTER_CASES; i++) {
        check_run(*state, run_backward, &router_cases[i], 0);
    }
}

static void test_unchosen(void **state)
{
    for (int i = 0; i < ROUTER_CASES; i++) {
        check_run(*state, run_unchosen, &router_cases[i], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backward),
        cmocka_unit_test(test_unchosen),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
