/* Gradients of router logits that are those of the chosen experts, alone or above small ones of the
 * others, which may be rounded to act.
 */
#include "ops_check.h"

struct chosen_case {
    int64_t tokens, width, experts, top_k;
    bool rest;
    int64_t far; /* every expert chosen is this one's or a later one's: some have many tokens */
};

/* Up to 4 experts for each chosen one are one product, as if nothing were said. */
static const struct chosen_case cases[] = {
    {0, 8, 12, 2, false, 0},      {1, 5, 9, 2, false, 0},      {37, 30, 18, 4, true, 0},
    {37, 30, 17, 4, false, 0},    {29, 530, 40, 3, true, 0},   {130, 520, 64, 6, false, 0},
    {1301, 24, 33, 1, false, 32}, {1301, 24, 33, 1, true, 31}, {20, 16, 8, 2, true, 0},
    {20, 16, 8, 2, false, 0},
};
enum { CASES = sizeof cases / sizeof cases[0] };
/* Of the others' gradients; what these may be rounded by, beside. */
static const double SMALL = 0x1p-6, ROUNDED = 0x1p-9;

static double sum_error(int64_t k)
{
    return CHECK_U * (2 + sqrt((double)k));
}

/* K different ones, from `far` on where there are as many. */
static void choose(const struct check *c, const struct chosen_case *k, int32_t *expert)
{
    const int64_t far = k->experts - k->far >= k->top_k ? k->far : 0, room = k->experts - far;
    for (int64_t n = 0; n < k->tokens; n++) {
        const int64_t first = (int64_t)(rng_uniform(c->seed, (uint64_t)n) * (double)room);
        for (int64_t i = 0; i < k->top_k; i++) {
            expert[n * k->top_k + i] = (int32_t)(far + (first + i * i + i) % room);
        }
    }
}

static bool is_chosen(const struct chosen_case *k, const int32_t *expert, int64_t n, int64_t e)
{
    bool chosen = false;
    for (int64_t i = 0; i < k->top_k; i++) {
        chosen = chosen || expert[n * k->top_k + i] == e;
    }
    return chosen;
}

/* Those of the others: small, or none. */
static void shrink(const struct chosen_case *k, const int32_t *expert, float *dlogits)
{
    for (int64_t n = 0; n < k->tokens; n++) {
        for (int64_t e = 0; e < k->experts; e++) {
            dlogits[n * k->experts + e] *=
                is_chosen(k, expert, n, e) ? 1.0F : (k->rest ? (float)SMALL : 0.0F);
        }
    }
}

/* dx += dlogits w and dw += dlogits^T x; of each the sum of the others' terms, absolute. */
struct expected {
    double *dx, *dw, *dx_rest, *dw_rest;
};

static void reference(const struct chosen_case *k, const int32_t *expert, const double *dlogits,
                      const double *x, const double *w, const struct expected *to)
{
    for (int64_t n = 0; n < k->tokens; n++) {
        for (int64_t e = 0; e < k->experts; e++) {
            const double slope = dlogits[n * k->experts + e];
            const bool chosen = is_chosen(k, expert, n, e);
            for (int64_t i = 0; i < k->width; i++) {
                const double by_w = slope * w[e * k->width + i], by_x = slope * x[n * k->width + i];
                to->dx[n * k->width + i] += by_w;
                to->dw[e * k->width + i] += by_x;
                to->dx_rest[n * k->width + i] += chosen ? 0 : fabs(by_w);
                to->dw_rest[e * k->width + i] += chosen ? 0 : fabs(by_x);
            }
        }
    }
}

/* What rounding the others adds to the relative error of a sum of `count` elements. */
static double rest_error(const struct check *c, const double *rest, const double *expected,
                         int64_t count)
{
    double squares = 0;
    for (int64_t i = 0; i < count; i++) {
        squares += rest[i] * rest[i];
    }
    return count == 0 ? 0
                      : ROUNDED * sqrt(squares / (double)count) / check_scale(c, expected, count);
}

/* The part of tokens that the others are not in: the same rows of dx. */
static void check_rows(struct check *c, const struct chosen_case *k, struct tensor expert,
                       struct tensor dlogits, struct tensor x, struct tensor w,
                       struct tensor before, struct tensor dx)
{
    for (int i = 0; i < CHECK_PARTS; i++) {
        const struct check_part p = check_part(k->tokens, i);
        const struct tensor part = check_copy(c, "dx part", tensor_rows(&before, p.first, p.count)),
                            sink = check_random(c, "dw", DTYPE_F32, k->experts, k->width, 1);
        const struct router_chosen chosen = {tensor_rows(&expert, p.first, p.count).data, k->top_k,
                                             k->rest};
        c->ops->router_logits_backward(c->device, part, sink,
                                       tensor_rows(&dlogits, p.first, p.count),
                                       tensor_rows(&x, p.first, p.count), w, chosen);
        check_exact(c, "dx", part, tensor_rows(&dx, p.first, p.count), "depends on other rows");
    }
}

static void run_chosen(struct check *c, const void *args)
{
    const struct chosen_case *k = args;
    c->floor = 1;
    check_name(c, "router_logits_backward N=%lld C=%lld E=%lld K=%lld%s", (long long)k->tokens,
               (long long)k->width, (long long)k->experts, (long long)k->top_k,
               k->rest ? " and the rest" : "");
    const struct tensor x = check_random(c, "x", c->dtype, k->tokens, k->width, 1),
                        w = check_random(c, "w", c->dtype, k->experts, k->width, 1),
                        dlogits = check_random(c, "dlogits", DTYPE_F32, k->tokens, k->experts, 1),
                        before = check_random(c, "dx", c->dtype, k->tokens, k->width, 3),
                        expert = check_tensor(c, "expert", DTYPE_I32, k->tokens, k->top_k),
                        dx = check_copy(c, "dx", before),
                        dw = check_random(c, "dw", DTYPE_F32, k->experts, k->width, 3);
    const int64_t in = k->tokens * k->width, out = k->experts * k->width;
    choose(c, k, expert.data);
    shrink(k, expert.data, dlogits.data);
    const struct expected want = {check_values(c, dx), check_values(c, dw), check_doubles(c, in),
                                  check_doubles(c, out)};
    const double *old = check_values(c, before);
    reference(k, expert.data, check_values(c, dlogits), check_values(c, x), check_values(c, w),
              &want);
    c->ops->router_logits_backward(c->device, dx, dw, dlogits, x, w,
                                   (struct router_chosen){expert.data, k->top_k, k->rest});
    const bool rounds = k->rest && c->dtype == DTYPE_BF16 && k->experts > 4 * k->top_k &&
                        k->experts % 2 == 0 && cpu_device_of(c->device)->wide == CPU_WIDE_PAIRS;
    c->mass = rounds ? want.dw_rest : NULL;
    check_close(c, "dw", dw, want.dw,
                sum_error(k->tokens) + (rounds ? rest_error(c, want.dw_rest, want.dw, out) : 0));
    for (int64_t i = 0; i < in; i++) { /* dx is stored once more in between */
        want.dx_rest[i] += fabs(old[i]);
    }
    c->mass = rounds ? want.dx_rest : NULL;
    check_close(c, "dx", dx, want.dx, sum_error(k->experts));
    check_rows(c, k, expert, dlogits, x, w, before, dx);
}

static void test_chosen(void **state)
{
    for (int i = 0; i < CASES; i++) {
        check_run(*state, run_chosen, &cases[i], CHECK_BF16 | CHECK_KERNELS | CHECK_VECTORS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_chosen)};
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
