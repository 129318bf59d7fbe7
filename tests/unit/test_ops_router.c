/* Router: softmax, choice, weights, and their gradients. */
#include "ops_check.h"

static const struct router_shape shapes[] = {
    {0, 4, 2, true},   {1, 1, 1, true},    {1, 8, 2, true},  {5, 3, 3, true},
    {33, 8, 2, true},  {130, 64, 6, true}, {7, 17, 1, true}, {1, 1, 1, false},
    {33, 8, 2, false}, {65, 40, 5, false}, {7, 17, 1, false}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

struct routing {
    struct tensor expert, weight, prob, lse, count;
};

/* expf, sums over E and divisions; differences of logits are rounded too, and logits reach 10. */
static double router_error(const struct router_shape *s)
{
    return CHECK_U * (12 + sqrt((double)s->experts));
}

static void name_case(struct check *c, const char *op, const struct router_shape *s)
{
    check_name(c, "%s N=%lld E=%lld K=%lld%s", op, (long long)s->tokens, (long long)s->experts,
               (long long)s->top_k, s->normalize ? " normalised" : "");
}

static struct routing forward(struct check *c, struct tensor logits, struct router_shape s)
{
    const struct routing r = {.expert = check_tensor(c, "expert", DTYPE_I32, s.tokens, s.top_k),
                              .weight = check_tensor(c, "weight", DTYPE_F32, s.tokens, s.top_k),
                              .prob = check_tensor(c, "prob", DTYPE_F32, s.tokens, s.experts),
                              .lse = check_tensor(c, "lse", DTYPE_F32, s.tokens, 1),
                              .count = check_tensor(c, "count", DTYPE_I64, 1, s.experts)};
    c->ops->router_forward(c->device, r.expert.data, r.weight.data, r.prob.data, r.lse.data,
                           r.count.data, logits.data, s);
    return r;
}

/* --- reference --- */

static double softmax(const double *logits, double *prob, int64_t count)
{
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < count; i++) {
        most = fmax(most, logits[i]);
    }
    for (int64_t i = 0; i < count; i++) {
        prob[i] = exp(logits[i] - most);
        sum += prob[i];
    }
    for (int64_t i = 0; i < count; i++) {
        prob[i] /= sum;
    }
    return most + log(sum);
}

/* Rank of expert e among the token's: those of larger probability, and equal ones before it. */
static int64_t rank_of(const float *prob, int64_t e, int64_t experts)
{
    int64_t rank = 0;
    for (int64_t i = 0; i < experts; i++) {
        rank += prob[i] > prob[e] || (i < e && prob[i] == prob[e]) ? 1 : 0;
    }
    return rank;
}

/* The choice follows from the op's own probabilities exactly, near-ties included. */
static void check_choice(struct check *c, const struct routing *r, const struct router_shape *s)
{
    const struct tensor expert = check_tensor(c, "expert expected", DTYPE_I32, s->tokens, s->top_k),
                        count = check_tensor(c, "count expected", DTYPE_I64, 1, s->experts);
    int64_t *counted = count.data;
    memset(counted, 0, tensor_bytes(&count));
    for (int64_t i = 0; i < s->tokens * s->experts; i++) {
        const int64_t n = i / s->experts, e = i % s->experts;
        const int64_t rank = rank_of((const float *)r->prob.data + n * s->experts, e, s->experts);
        if (rank < s->top_k) {
            ((int32_t *)expert.data)[n * s->top_k + rank] = (int32_t)e;
            counted[e]++;
        }
    }
    check_exact(c, "expert", r->expert, expert, "not the largest in falling order");
    check_exact(c, "count", r->count, count, "not the number of tokens");
}

static void reference_weights(const double *prob, const int32_t *expert, double *weight,
                              const struct router_shape *s)
{
    for (int64_t n = 0; n < s->tokens; n++) {
        double sum = 0;
        for (int64_t k = n * s->top_k; k < (n + 1) * s->top_k; k++) {
            weight[k] = prob[n * s->experts + expert[k]];
            sum += weight[k];
        }
        for (int64_t k = n * s->top_k; k < (n + 1) * s->top_k && s->normalize; k++) {
            weight[k] /= sum;
        }
    }
}

/* --- forward --- */

static void run_forward(struct check *c, const void *args)
{
    const struct router_shape *s = args;
    name_case(c, "router_forward", s);
    const struct tensor logits = check_random(c, "logits", DTYPE_F32, s->tokens, s->experts, 2);
    const struct routing r = forward(c, logits, *s);
    const double *in = check_values(c, logits), error = router_error(s);
    double *prob = check_doubles(c, s->tokens * s->experts), *lse = check_doubles(c, s->tokens),
           *weight = check_doubles(c, s->tokens * s->top_k);
    for (int64_t n = 0; n < s->tokens; n++) {
        lse[n] = softmax(in + n * s->experts, prob + n * s->experts, s->experts);
    }
    check_close(c, "prob", r.prob, prob, error);
    c->floor = 1;
    check_close(c, "lse", r.lse, lse, error);
    check_choice(c, &r, s);
    reference_weights(prob, r.expert.data, weight, s);
    check_close(c, "weight", r.weight, weight, error);
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->tokens, i);
        const struct router_shape shape = {p.count, s->experts, s->top_k, s->normalize};
        const struct routing part = forward(c, tensor_rows(&logits, p.first, p.count), shape);
        check_exact(c, "weight", part.weight, tensor_rows(&r.weight, p.first, p.count), "rows");
        check_exact(c, "expert", part.expert, tensor_rows(&r.expert, p.first, p.count), "rows");
        check_exact(c, "prob", part.prob, tensor_rows(&r.prob, p.first, p.count), "rows");
        check_exact(c, "lse", part.lse, tensor_rows(&r.lse, p.first, p.count), "rows");
    }
}

/* Equal logits: the lowest index wins; +-1e4 neither overflow nor vanish. */
static void run_ties(struct check *c, const void *args)
{
    (void)args;
    enum { TOKENS = 7, EXPERTS = 5, TOP_K = 3 };
    static const float in[TOKENS][EXPERTS] = {{0, 0, 0, 0, 0},
                                              {1, 2, 2, 1, 2},
                                              {3, 1, 1, 1, 1},
                                              {-1, -1, 5, -1, 5},
                                              {1, 1, 1, 1, 1.5},
                                              {-4, -4, -4, -5, -4},
                                              {-10000, 10000, -10000, 10000, 0}};
    static const int32_t chosen[TOKENS][TOP_K] = {{0, 1, 2}, {1, 2, 4}, {0, 1, 2}, {2, 4, 0},
                                                  {4, 0, 1}, {0, 1, 2}, {1, 3, 0}};
    check_name(c, "router_forward of ties");
    struct tensor logits = check_tensor(c, "logits", DTYPE_F32, TOKENS, EXPERTS),
                  expected = check_tensor(c, "expert expected", DTYPE_I32, TOKENS, TOP_K);
    memcpy(logits.data, in, sizeof in);
    memcpy(expected.data, chosen, sizeof chosen);
    const struct routing r =
        forward(c, logits, (struct router_shape){TOKENS, EXPERTS, TOP_K, true});
    check_exact(c, "expert", r.expert, expected, "ties go to the lowest index");
    const double last[TOP_K] = {0.5, 0.5, 0};
    for (int k = 0; k < TOP_K; k++) {
        assert_true(check_get(&r.weight, (TOKENS - 1) * TOP_K + k) == last[k]);
    }
    assert_true(fabs(check_get(&r.lse, TOKENS - 1) - 10000 - log(2.0)) < 1e-3); /* ulp of 1e4 */
}

/* A diverged token still names K different experts: the counts stay consistent. */
static void run_nan(struct check *c, const void *args)
{
    (void)args;
    enum { EXPERTS = 6, TOP_K = 3 };
    check_name(c, "router_forward of NaN");
    struct tensor logits = check_random(c, "logits", DTYPE_F32, 2, EXPERTS, 1);
    check_set(&logits, (int64_t)c->seed, (double)NAN);
    const struct routing r = forward(c, logits, (struct router_shape){2, EXPERTS, TOP_K, true});
    const int32_t *expert = r.expert.data;
    int64_t total = 0;
    for (int i = 0; i < TOP_K; i++) {
        assert_true(expert[i] >= 0 && expert[i] < EXPERTS);
        assert_true(expert[i] != expert[(i + 1) % TOP_K]);
        assert_true(isnan(check_get(&r.weight, i)) && !isnan(check_get(&r.weight, TOP_K + i)));
    }
    for (int e = 0; e < EXPERTS; e++) {
        total += ((const int64_t *)r.count.data)[e];
    }
    assert_int_equal(total, 2 * TOP_K);
}

/* Computed by an independent float64 program. */
static void run_golden(struct check *c, const void *args)
{
    (void)args;
    enum { EXPERTS = 8 };
    static const float in[EXPERTS] = {0.9F, -0.3F, 0.4F, 1.1F, -1.0F, 0.2F, 0.7F, -0.6F};
    static const double prob[EXPERTS] = {0.20759195,  0.062525494, 0.125910883, 0.253553381,
                                         0.031049241, 0.103087112, 0.169961914, 0.046320025};
    static const double pair[2] = {0.549833997, 0.450166003};
    static const double triple[3] = {4.056854093 / 16, 3.321471207 / 16, 2.719390622 / 16};
    check_name(c, "router_forward of the golden token");
    struct tensor logits = check_tensor(c, "logits", DTYPE_F32, 1, EXPERTS);
    memcpy(logits.data, in, sizeof in);
    const struct routing two = forward(c, logits, (struct router_shape){1, EXPERTS, 2, true}),
                         three = forward(c, logits, (struct router_shape){1, EXPERTS, 3, false});
    check_close(c, "prob", two.prob, prob, router_error(&(struct router_shape){1, 8, 2, true}));
    check_close(c, "weight", two.weight, pair, router_error(&(struct router_shape){1, 8, 2, true}));
    check_close(c, "weight", three.weight, triple,
                router_error(&(struct router_shape){1, 8, 3, false}));
    static const int32_t experts[3] = {3, 0, 6};
    assert_memory_equal(two.expert.data, experts, 2 * sizeof experts[0]);
    assert_memory_equal(three.expert.data, experts, sizeof experts);
}

/* --- backward --- */

struct objective {
    const struct router_shape *shape;
    const int32_t *expert; /* the choice stays as it is */
    double *logits, *dweight, *aux, z_scale;
};

/* <dweight, weight> + sum over tokens of <aux, prob> + z_scale sum of lse^2 */
static double router_loss(const void *args)
{
    const struct objective *r = args;
    const struct router_shape *s = r->shape;
    double *prob = calloc((size_t)(s->tokens * s->experts) + 1, sizeof *prob),
           *weight = calloc((size_t)(s->tokens * s->top_k) + 1, sizeof *weight), sum = 0;
    assert_true(prob != NULL && weight != NULL);
    for (int64_t n = 0; n < s->tokens; n++) {
        const double lse = softmax(r->logits + n * s->experts, prob + n * s->experts, s->experts);
        sum += r->z_scale * lse * lse;
    }
    reference_weights(prob, r->expert, weight, s);
    for (int64_t i = 0; i < s->tokens * s->top_k; i++) {
        sum += r->dweight[i] * weight[i];
    }
    for (int64_t i = 0; i < s->tokens * s->experts; i++) {
        sum += r->aux[i % s->experts] * prob[i];
    }
    free(prob);
    free(weight);
    return sum;
}

/* dl = J^T dp of the softmax; normalised weights are a softmax over the chosen logits. */
static void reference_backward(const struct objective *r, double *dlogits)
{
    const struct router_shape *s = r->shape;
    double *p = malloc((size_t)s->experts * 2 * sizeof *p), *dp = p + s->experts;
    assert_non_null(p);
    for (int64_t n = 0; n < s->tokens; n++) {
        const double lse = softmax(r->logits + n * s->experts, p, s->experts);
        const int32_t *expert = r->expert + n * s->top_k;
        const double *dweight = r->dweight + n * s->top_k;
        double chosen = 0, mean = 0, weighted = 0;
        for (int64_t e = 0; e < s->experts; e++) {
            dp[e] = r->aux[e];
        }
        for (int64_t k = 0; k < s->top_k; k++) {
            chosen += p[expert[k]];
            weighted += dweight[k] * p[expert[k]];
        }
        for (int64_t k = 0; k < s->top_k; k++) {
            dp[expert[k]] +=
                s->normalize ? dweight[k] / chosen - weighted / (chosen * chosen) : dweight[k];
        }
        for (int64_t e = 0; e < s->experts; e++) {
            mean += p[e] * dp[e];
        }
        for (int64_t e = 0; e < s->experts; e++) {
            dlogits[n * s->experts + e] = p[e] * (dp[e] - mean + 2 * r->z_scale * lse);
        }
    }
    free(p);
}

static void run_backward(struct check *c, const void *args)
{
    const struct router_shape *s = args;
    const float z_scale = 0.05F;
    name_case(c, "router_backward", s);
    const struct tensor logits = check_random(c, "logits", DTYPE_F32, s->tokens, s->experts, 2),
                        aux = check_random(c, "aux", DTYPE_F32, 1, s->experts, 0.5),
                        dlogits = check_tensor(c, "dlogits", DTYPE_F32, s->tokens, s->experts);
    struct tensor dweight = check_random(c, "dweight", DTYPE_F32, s->tokens, s->top_k, 1);
    for (int64_t i = 2; i < s->tokens * s->top_k; i += 5) {
        check_set(&dweight, i, 0); /* dropped */
    }
    const struct routing r = forward(c, logits, *s);
    const struct objective o = {s,
                                r.expert.data,
                                check_values(c, logits),
                                check_values(c, dweight),
                                check_values(c, aux),
                                (double)z_scale};
    double *expected = check_doubles(c, s->tokens * s->experts);
    reference_backward(&o, expected);
    c->floor = 0.1; /* one expert only: what is left of the weights' gradient is 0 */
    c->ops->router_backward(c->device, dlogits.data, dweight.data, r.expert.data, r.weight.data,
                            r.prob.data, r.lse.data, aux.data, z_scale, *s);
    check_close(c, "dlogits", dlogits, expected, router_error(s));
    check_gradient(c, "dlogits", dlogits, NULL, o.logits, router_loss, &o, router_error(s));
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->tokens, i);
        const struct router_shape shape = {p.count, s->experts, s->top_k, s->normalize};
        const struct tensor part = check_tensor(c, "part", DTYPE_F32, p.count, s->experts);
        c->ops->router_backward(c->device, part.data, tensor_rows(&dweight, p.first, p.count).data,
                                tensor_rows(&r.expert, p.first, p.count).data,
                                tensor_rows(&r.weight, p.first, p.count).data,
                                tensor_rows(&r.prob, p.first, p.count).data,
                                tensor_rows(&r.lse, p.first, p.count).data, aux.data, z_scale,
                                shape);
        check_exact(c, "dlogits", part, tensor_rows(&dlogits, p.first, p.count), "rows");
    }
}

/* --- tests --- */

static void test_forward(void **state)
{
    for (int i = 0; i < SHAPES; i++) {
        check_run(*state, run_forward, &shapes[i], 0);
    }
}

static void test_corners(void **state)
{
    check_run(*state, run_ties, NULL, 0);
    check_run(*state, run_nan, NULL, 0);
    check_run(*state, run_golden, NULL, 0);
}

static void test_backward(void **state)
{
    for (int i = 0; i < SHAPES; i++) {
        check_run(*state, run_backward, &shapes[i], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),
        cmocka_unit_test(test_corners),
        cmocka_unit_test(test_backward),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
