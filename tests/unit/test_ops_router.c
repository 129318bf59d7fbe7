/* Router, forward: scores, choice of groups and experts, weights, counts, sums. */
#include "unit/router_case.h"

/* --- the choice, from the op's own scores: exact, near-ties included --- */

/* How many of `count` values come before value `at`: larger ones, and equal ones of lower index.
 * Values that are left out are NaN. */
static int64_t rank_of(const float *value, int64_t at, int64_t count)
{
    int64_t rank = 0;
    for (int64_t i = 0; i < count; i++) {
        rank += value[i] > value[at] || (i < at && value[i] == value[at]) ? 1 : 0;
    }
    return rank;
}

/* A group's best, of sigmoid scores its best two together. */
static float group_value(const float *value, int64_t size, bool sigmoid)
{
    float best = 0, second = 0;
    for (int64_t i = 0; i < size; i++) {
        const int64_t rank = rank_of(value, i, size);
        best = rank == 0 ? value[i] : best;
        second = rank == 1 ? value[i] : second;
    }
    return sigmoid ? best + second : best;
}

/* value[E]: score + bias, NaN outside the best groups. */
static void compete(float *value, const float *score, const float *bias,
                    const struct router_shape *s)
{
    const int64_t size = s->experts / s->groups;
    float group[256];
    assert_true(s->groups <= 256);
    for (int64_t e = 0; e < s->experts; e++) {
        value[e] = score[e] + (bias != NULL ? bias[e] : 0);
    }
    for (int64_t g = 0; g < s->groups; g++) {
        group[g] = group_value(value + g * size, size, s->sigmoid);
    }
    for (int64_t e = 0; e < s->experts && s->groups > 1; e++) {
        value[e] = rank_of(group, e / size, s->groups) < s->top_groups ? value[e] : (float)NAN;
    }
}

/* What a choice adds to the counts of its row. */
static void count_token(const int32_t *chosen, int64_t *routed, int64_t *group,
                        const struct router_shape *s)
{
    for (int64_t g = 0; g < s->loss_groups; g++) {
        int64_t inside = 0;
        for (int64_t k = 0; k < s->top_k; k++) {
            inside += chosen[k] * s->loss_groups / s->experts == g;
        }
        group[g] += inside > 0;
    }
    for (int64_t k = 0; k < s->top_k; k++) {
        routed[chosen[k]]++;
    }
}

static void expect_token(const float *score, const float *bias, int32_t *chosen, int64_t *scored,
                         const struct router_shape *s)
{
    float value[512];
    assert_true(s->experts <= 512);
    compete(value, score, bias, s);
    for (int64_t e = 0; e < s->experts; e++) {
        const int64_t rank = rank_of(value, e, s->experts);
        if (!isnan(value[e]) && rank < s->top_k) {
            chosen[rank] = (int32_t)e;
        }
        scored[e] += rank_of(score, e, s->experts) < s->top_k;
    }
}

static void check_choice(struct check *c, const struct routing *r, const float *bias,
                         const struct router_shape *s)
{
    const int64_t rows = router_rows(s);
    const struct tensor expert = check_tensor(c, "expert expected", DTYPE_I32, s->tokens, s->top_k),
                        routed = check_tensor(c, "routed expected", DTYPE_I64, rows, s->experts),
                        scored = check_tensor(c, "scored expected", DTYPE_I64, rows, s->experts),
                        group = check_tensor(c, "group expected", DTYPE_I64, rows, s->loss_groups);
    memset(routed.data, 0, tensor_bytes(&routed));
    memset(scored.data, 0, tensor_bytes(&scored));
    memset(group.data, 0, tensor_bytes(&group));
    for (int64_t n = 0; n < s->tokens; n++) {
        const int64_t row = n / s->row_tokens;
        int32_t *chosen = (int32_t *)expert.data + n * s->top_k;
        expect_token((const float *)r->score.data + n * s->experts, bias, chosen,
                     (int64_t *)scored.data + row * s->experts, s);
        count_token(chosen, (int64_t *)routed.data + row * s->experts,
                    (int64_t *)group.data + row * s->loss_groups, s);
    }
    check_exact(c, "expert", r->expert, expert, "not the largest in falling order");
    check_exact(c, "routed", r->routed, routed, "not the tokens that chose the expert");
    check_exact(c, "scored", r->scored, scored, "not the tokens with it among their best scores");
    check_exact(c, "group", r->group, group, "not the tokens that visit the group");
}

/* --- forward --- */

/* Rows of the call alone, and without what nobody asks for: the same bits. */
static void check_parts(struct check *c, const struct routing *r, struct tensor logits,
                        const float *bias, const struct router_shape *s)
{
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(s->tokens, i);
        struct router_shape shape = *s;
        shape.tokens = p.count;
        shape.row_tokens = p.count > 0 ? p.count : 1;
        const struct routing part =
            router_forward(c, tensor_rows(&logits, p.first, p.count), bias, shape);
        check_exact(c, "weight", part.weight, tensor_rows(&r->weight, p.first, p.count), "rows");
        check_exact(c, "expert", part.expert, tensor_rows(&r->expert, p.first, p.count), "rows");
        check_exact(c, "score", part.score, tensor_rows(&r->score, p.first, p.count), "rows");
        check_exact(c, "lse", part.lse, tensor_rows(&r->lse, p.first, p.count), "rows");
    }
    const struct tensor expert = check_tensor(c, "expert", DTYPE_I32, s->tokens, s->top_k),
                        weight = check_tensor(c, "weight", DTYPE_F32, s->tokens, s->top_k),
                        score = check_tensor(c, "score", DTYPE_F32, s->tokens, s->experts),
                        routed = check_tensor(c, "routed", DTYPE_I64, router_rows(s), s->experts);
    c->ops->router_forward(c->device, expert.data, weight.data, score.data, NULL,
                           (struct router_counts){.routed = routed.data}, logits.data, bias, *s);
    check_exact(c, "expert", expert, r->expert, "differs where less is asked for");
    check_exact(c, "weight", weight, r->weight, "differs where less is asked for");
    check_exact(c, "score", score, r->score, "differs where less is asked for");
    check_exact(c, "routed", routed, r->routed, "differs where less is asked for");
}

static void run_forward(struct check *c, const void *args)
{
    const struct router_case *k = args;
    const struct router_shape *s = &k->shape;
    router_name(c, "router_forward", k);
    const struct tensor logits = check_random(c, "logits", DTYPE_F32, s->tokens, s->experts, 2),
                        biases = router_bias(c, k);
    const float *bias = k->bias ? biases.data : NULL;
    const struct routing r = router_forward(c, logits, bias, *s);
    const double *in = check_values(c, logits), error = router_error(s);
    double *score = check_doubles(c, s->tokens * s->experts), *lse = check_doubles(c, s->tokens),
           *weight = check_doubles(c, s->tokens * s->top_k);
    for (int64_t n = 0; n < s->tokens; n++) {
        lse[n] = router_scores(in + n * s->experts, score + n * s->experts, s);
    }
    check_close(c, "score", r.score, score, error);
    check_choice(c, &r, bias, s);
    router_weights(score, r.expert.data, weight, s);
    check_close(c, "weight", r.weight, weight, error);
    c->floor = 1;
    check_close(c, "lse", r.lse, lse, error);
    check_parts(c, &r, logits, bias, s);
}

/* --- corners --- */

/* Expects the experts of tokens whose logits, and one bias, are given. */
static struct routing expect_experts(struct check *c, const float *logits, const float *bias,
                                     const int32_t *experts, struct router_shape shape)
{
    struct tensor in = check_tensor(c, "logits", DTYPE_F32, shape.tokens, shape.experts),
                  expected = check_tensor(c, "expected", DTYPE_I32, shape.tokens, shape.top_k);
    memcpy(in.data, logits, tensor_bytes(&in));
    memcpy(expected.data, experts, tensor_bytes(&expected));
    const struct routing r = router_forward(c, in, bias, shape);
    check_exact(c, "expert", r.expert, expected, "ties go to the lowest index");
    return r;
}

/* Equal logits: the lowest index wins; +-1e4 neither overflow nor vanish. */
static void run_ties(struct check *c, const void *args)
{
    enum { TOKENS = 7, EXPERTS = 5, TOP_K = 3 };
    static const float in[TOKENS * EXPERTS] = {
        0,  0, 0, 0, 0, 1, 2,    2,  1,  2,  3,  1,  1,      1,     1,      -1,    -1, 5,
        -1, 5, 1, 1, 1, 1, 1.5F, -4, -4, -4, -5, -4, -10000, 10000, -10000, 10000, 0};
    static const int32_t chosen[TOKENS * TOP_K] = {0, 1, 2, 1, 2, 4, 0, 1, 2, 2, 4,
                                                   0, 4, 0, 1, 0, 1, 2, 1, 3, 0};
    (void)args;
    check_name(c, "router_forward of ties");
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        /* a sigmoid of 1e4 is 1, of -1e4 0 */
        const struct router_shape shape = {TOKENS, EXPERTS, TOP_K, TOKENS, sigmoid != 0,
                                           1,      1,       true,  1,      1};
        static const int32_t last[2][TOP_K] = {{1, 3, 0}, {1, 3, 4}};
        int32_t expected[TOKENS * TOP_K];
        memcpy(expected, chosen, sizeof expected);
        memcpy(expected + (TOKENS - 1) * TOP_K, last[sigmoid], sizeof last[sigmoid]);
        const struct routing r = expect_experts(c, in, NULL, expected, shape);
        const double weights[2][TOP_K] = {{0.5, 0.5, 0}, {1 / 2.5, 1 / 2.5, 0.5 / 2.5}};
        for (int k = 0; k < TOP_K; k++) {
            assert_true(fabs(check_get(&r.weight, (TOKENS - 1) * TOP_K + k) - weights[sigmoid][k]) <
                        2 * CHECK_U);
        }
        assert_true(fabs(check_get(&r.lse, TOKENS - 1) - 10000 - log(2.0)) < 1e-3); /* ulp of 1e4 */
    }
}

/* More experts than a vector has lanes: ties between lanes, within one, and with those behind the
 * last whole vector. NaN, here of sigmoids, is below all, wherever it stands. */
static void run_ties_of_many(struct check *c, const void *args)
{
    enum { TOKENS = 7, EXPERTS = 40, TOP_K = 3, MARKS = 4 };
    static const struct {
        float value;
        int32_t at[MARKS];
    } marks[TOKENS] = {{2, {20, 33, 7, 7}},          {2, {3, 19, 35, 35}},
                       {2, {5, 37, 36, 36}},         {0, {0, 0, 0, 0}},
                       {1, {1, 17, 33, 39}},         {(float)NAN, {0, 1, 2, 39}},
                       {(float)NAN, {0, 16, 18, 38}}};
    static const int32_t chosen[TOKENS * TOP_K] = {7, 20, 33, 3,  19, 35, 5, 36, 37, 0, 1,
                                                   2, 1,  17, 33, 3,  4,  5, 1,  2,  3};
    (void)args;
    check_name(c, "router_forward of many ties");
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        const int64_t tokens = sigmoid != 0 ? TOKENS : TOKENS - 2;
        const struct router_shape shape = {tokens, EXPERTS, TOP_K, tokens, sigmoid != 0,
                                           1,      1,       true,  1,      1};
        float in[TOKENS * EXPERTS] = {0};
        for (int i = 0; i < TOKENS * MARKS; i++) {
            in[i / MARKS * EXPERTS + marks[i / MARKS].at[i % MARKS]] = marks[i / MARKS].value;
        }
        expect_experts(c, in, NULL, chosen, shape);
    }
}

/* Groups of two, of which two stay. */
static void run_group_ties(struct check *c, const void *args)
{
    enum { TOKENS = 4, EXPERTS = 8, TOP_K = 3 };
    static const float in[TOKENS * EXPERTS] = {
        0, 0, 0, 0, 0, 0, 0, 0, /* groups 0 and 1 */
        1, 0, 2, 0, 2, 0, 1, 0, /* 1 and 2, then their zeros */
        0, 0, 1, 0, 1, 0, 1, 0, /* three groups tie for two places */
        1, 2, 2, 1, 0, 0, 2, 1, /* the same, whatever the order inside */
    };
    static const int32_t chosen[TOKENS * TOP_K] = {0, 1, 2, 2, 4, 3, 2, 4, 3, 1, 2, 0};
    (void)args;
    check_name(c, "router_forward of groups that tie");
    for (int sigmoid = 0; sigmoid < 2; sigmoid++) {
        const struct router_shape shape = {TOKENS, EXPERTS, TOP_K, TOKENS, sigmoid != 0,
                                           4,      2,       true,  1,      4};
        expect_experts(c, in, NULL, chosen, shape);
    }
}

/* All scores are 1/2: the bias alone decides, also where every sum is negative, and no weight knows
 * it. A group is rated by its best two, not its best one. */
static void run_bias(struct check *c, const void *args)
{
    enum { EXPERTS = 8, TOP_K = 3, BIASES = 4 };
    static const float in[EXPERTS] = {0};
    static const float bias[BIASES][EXPERTS] = {
        {0.25F, 0.25F, 0, 0.5F, 0, 0, 0.125F, 0.25F}, /* groups: 1.5, 1.5, 1, 1.375 */
        {-1, -2, -1, -1, -3, -3, -4, -1.5F},          /* 0 has -2, 1 has -1, 3 has -4.5 */
        {0, 0.75F, 0.5F, 0.5F, 0.5F, 0.5F, 1, -1},    /* 1.75, 2, 2, 1: not the group of the best */
        {0.5F, 0, 0, 0.5F, 0.5F, 0, 0, 0.5F},         /* all tie */
    };
    static const int32_t chosen[BIASES][TOP_K] = {{3, 0, 1}, {0, 2, 3}, {2, 3, 4}, {0, 3, 1}};
    static const struct router_shape shape = {1, EXPERTS, TOP_K, 1, true, 4, 2, true, 3, 4};
    (void)args;
    check_name(c, "router_forward of equal scores with a bias");
    for (int i = 0; i < BIASES; i++) {
        const struct routing r = expect_experts(c, in, bias[i], chosen[i], shape);
        for (int k = 0; k < TOP_K; k++) {
            assert_true(check_get(&r.weight, k) == 1);
            assert_true(((const int64_t *)r.scored.data)[k] == 1); /* bare scores: 0, 1, 2 */
        }
    }
}

/* Sums of scores that vanish divide by 1e-20, not by 0. */
static void run_vanishing(struct check *c, const void *args)
{
    static const float in[4] = {-10000, -10000, -10000, -10000};
    static const int32_t chosen[2] = {0, 1};
    static const struct router_shape shape = {1, 4, 2, 1, true, 1, 1, true, 1, 1};
    (void)args;
    check_name(c, "router_forward of vanishing scores");
    const struct routing r = expect_experts(c, in, NULL, chosen, shape);
    assert_true(fabs(check_get(&r.weight, 0)) < 1e-15 && fabs(check_get(&r.weight, 1)) < 1e-15);
}

/* A diverged token still names K different experts of groups it may use: counts stay consistent,
 * and the weights are NaN. */
static void run_nan(struct check *c, const void *args)
{
    enum { EXPERTS = 8, TOP_K = 4 };
    (void)args;
    for (int kind = 0; kind < 4; kind++) {
        const struct router_shape shape = {
            2,    EXPERTS, TOP_K, 2, kind / 2 == 1, kind % 2 == 0 ? 1 : 4, kind % 2 == 0 ? 1 : 2,
            true, 1,       4};
        check_name(c, "router_forward of NaN, kind %d", kind);
        struct tensor logits = check_random(c, "logits", DTYPE_F32, 2, EXPERTS, 1);
        for (int e = 0; e < EXPERTS; e++) { /* one poisons a softmax, not a sigmoid */
            check_set(&logits, e, shape.sigmoid || e == (int)c->seed ? (double)NAN : 0.5 * e);
        }
        const struct routing r = router_forward(c, logits, NULL, shape);
        const int32_t *expert = r.expert.data;
        int64_t total = 0, visits = 0;
        for (int i = 0; i < TOP_K; i++) {
            assert_true(expert[i] >= 0 && expert[i] < EXPERTS);
            for (int j = 0; j < i; j++) {
                assert_true(expert[i] != expert[j]);
            }
            assert_true(isnan(check_get(&r.weight, i)) && !isnan(check_get(&r.weight, TOP_K + i)));
        }
        for (int e = 0; e < EXPERTS; e++) {
            total += ((const int64_t *)r.routed.data)[e];
            visits += e < 4 ? ((const int64_t *)r.group.data)[e] : 0;
        }
        assert_int_equal(total, 2 * TOP_K);
        assert_true(visits <= (kind % 2 == 0 ? 8 : 4) && visits >= 4);
    }
}

/* One expert's NaN stands below every number. */
static void run_one_nan(struct check *c, const void *args)
{
    static const float in[6] = {0, (float)NAN, 1, 2, (float)NAN, (float)NAN};
    static const struct router_shape shape = {1, 6, 3, 1, true, 3, 2, false, 1, 3};
    (void)args;
    check_name(c, "router_forward of one NaN");
    /* groups: NaN, 1 and 2, NaN: the lower of the two with NaN */
    static const int32_t chosen[3] = {3, 2, 0};
    expect_experts(c, in, NULL, chosen, shape);
}

/* --- golden numbers, computed by an independent float64 program --- */

struct golden {
    struct router_shape shape;
    bool bias;
    int32_t expert[3];
    double weight[3];
};

static const float golden_logits[8] = {0.9F, -0.3F, 0.4F, 1.1F, -1.0F, 0.2F, 0.7F, -0.6F},
                   golden_bias[8] = {0, 0.05F, -0.02F, -0.3F, 0.4F, 0, 0.1F, 0};

static const struct golden goldens[] = {
    {{1, 8, 2, 1, false, 1, 1, true, 1, 1}, false, {3, 0}, {0.549833997, 0.450166003}},
    {{1, 8, 3, 1, false, 1, 1, false, 16, 1},
     false,
     {3, 0, 6},
     {4.056854093, 3.321471207, 2.719390622}},
    {{1, 8, 3, 1, false, 4, 2, false, 16, 4},
     false,
     {3, 0, 2},
     {4.056854093, 3.321471207, 2.014574122}},
    {{1, 8, 3, 1, true, 4, 2, true, 2.5F, 4},
     true,
     {0, 4, 5},
     {1.16189109, 0.439525789, 0.89858312}},
};

static void run_golden(struct check *c, const void *args)
{
    static const double prob[8] = {0.20759195,  0.062525494, 0.125910883, 0.253553381,
                                   0.031049241, 0.103087112, 0.169961914, 0.046320025};
    const struct golden *g = args;
    const struct router_case k = {g->shape, g->bias};
    router_name(c, "router_forward of the golden token", &k);
    const struct routing r =
        expect_experts(c, golden_logits, g->bias ? golden_bias : NULL, g->expert, g->shape);
    check_close(c, "weight", r.weight, g->weight, router_error(&g->shape));
    if (!g->shape.sigmoid) {
        check_close(c, "score", r.score, prob, router_error(&g->shape));
    }
}

/* --- sums --- */

/* Of softmax scores in token order, in double: exact. Of sigmoid scores each divided by the f32
 * sum of its token. */
static void run_sums(struct check *c, const void *args)
{
    const struct router_case *k = args;
    const struct router_shape *s = &k->shape;
    router_name(c, "router_sums", k);
    const struct tensor logits = check_random(c, "logits", DTYPE_F32, s->tokens, s->experts, 2);
    const struct routing r = router_forward(c, logits, NULL, *s);
    const struct tensor sums = check_tensor(c, "sums", DTYPE_F64, router_rows(s), s->experts),
                        exact = check_tensor(c, "exact", DTYPE_F64, router_rows(s), s->experts);
    double *expected = exact.data;
    memset(expected, 0, tensor_bytes(&exact));
    for (int64_t i = 0; i < s->tokens * s->experts; i++) {
        const int64_t n = i / s->experts;
        double total = 1e-20;
        for (int64_t e = 0; e < s->experts; e++) {
            total += check_get(&r.score, n * s->experts + e);
        }
        expected[n / s->row_tokens * s->experts + i % s->experts] +=
            check_get(&r.score, i) / (s->sigmoid ? total : 1);
    }
    c->ops->router_sums(c->device, sums.data, r.score.data, *s);
    if (s->sigmoid) {
        check_close(c, "sums", sums, expected, CHECK_U * (2 + sqrt((double)s->experts)));
    } else {
        check_exact(c, "sums", sums, exact, "not the sum in token order in double");
    }
}

/* --- tests --- */

static void test_forward(void **state)
{
    for (int i = 0; i < ROUTER_CASES; i++) {
        check_run(*state, run_forward, &router_cases[i], 0);
    }
}

static void test_corners(void **state)
{
    check_run(*state, run_ties, NULL, 0);
    check_run(*state, run_group_ties, NULL, 0);
    check_run(*state, run_bias, NULL, 0);
    check_run(*state, run_vanishing, NULL, 0);
    check_run(*state, run_ties_of_many, NULL, 0);
    check_run(*state, run_nan, NULL, 0);
    check_run(*state, run_one_nan, NULL, 0);
}

static void test_golden(void **state)
{
    for (size_t i = 0; i < sizeof goldens / sizeof goldens[0]; i++) {
        check_run(*state, run_golden, &goldens[i], 0);
    }
}

static void test_sums(void **state)
{
    for (int i = 0; i < ROUTER_CASES; i++) {
        check_run(*state, run_sums, &router_cases[i], 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),
        cmocka_unit_test(test_corners),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_sums),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
