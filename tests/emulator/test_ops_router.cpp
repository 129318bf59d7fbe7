/* Router kernels against the CPU device: choices and counts bit for bit, ties included. */
#include "ops_case.h"

#include <math.h>

struct router_case {
    struct router_shape shape;
    bool bias, all; /* all: with lse and every count */
};

/* tokens, experts, top_k, row_tokens, sigmoid, groups, top_groups, normalize, scale, loss_groups.
 * As Mixtral, DeepSeek-V2 and -V3 route, then shapes for the kernel: one expert, groups of one, all
 * experts chosen, more slots than lanes, every register count. */
static const struct router_case cases[] = {
    {{0, 4, 2, 1, false, 1, 1, true, 1, 1}, false, true},
    {{33, 8, 2, 11, false, 1, 1, true, 1, 1}, false, true},
    {{10, 64, 6, 5, false, 1, 1, false, 16, 8}, false, false},
    {{12, 160, 6, 6, false, 8, 3, false, 16, 8}, false, true},
    {{9, 256, 8, 3, true, 8, 4, true, 2.5F, 8}, true, true},
    {{6, 64, 8, 6, true, 8, 4, true, 2.5F, 8}, false, false},
    {{1, 1, 1, 1, false, 1, 1, true, 1, 1}, false, true},
    {{6, 8, 2, 6, false, 8, 4, false, 1, 8}, false, true},
    {{6, 8, 2, 3, true, 8, 4, false, 1, 8}, true, true},
    {{5, 12, 4, 5, false, 4, 2, true, 2, 4}, true, true},
    {{7, 17, 1, 7, true, 1, 1, true, 1, 1}, true, true},
    {{9, 6, 6, 3, true, 1, 1, true, 2.5F, 2}, true, true},
    {{3, 48, 40, 3, false, 1, 1, true, 1, 6}, false, true},
    {{3, 300, 8, 3, true, 60, 5, true, 2.5F, 20}, true, true},
    {{2, 1100, 5, 1, false, 11, 3, true, 1, 11}, true, true},
};

static void name_of(char (&what)[100], const struct router_shape &s)
{
    snprintf(what, sizeof what, "%s N=%d E=%d K=%d groups=%d/%d", s.sigmoid ? "sigmoid" : "softmax",
             (int)s.tokens, (int)s.experts, (int)s.top_k, (int)s.top_groups, (int)s.groups);
}

/* expf or the CPU's exp, sums over E, divisions. */
static double error_of(const struct router_shape &s)
{
    return U * (12 + sqrt((double)s.experts)) + EXP_ERROR;
}

/* steps > 0: logits and biases are multiples of 1 / steps, so that there are ties. */
static operand &numbers(ops_case &c, const char *name, int64_t rows, int64_t cols, double scale,
                        int steps)
{
    const uint64_t key = rng_key(5, name);
    return c.fill(name, DTYPE_F32, rows, cols, [=](int64_t i) {
        const double x = scale * rng_normal(key, (uint64_t)i);
        return steps > 0 ? round(x * steps) / steps : x;
    });
}

static bool forward(const struct router_case &k, int steps, bool strange)
{
    const struct router_shape &s = k.shape;
    const int64_t rows = s.tokens / s.row_tokens;
    char what[100];
    name_of(what, s);
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "router_forward %s%s", what,
               strange     ? ", strange logits"
               : steps > 0 ? ", ties"
                           : "");
    operand &logits = numbers(c, "logits", s.tokens, s.experts, 2, steps);
    for (int64_t i = 0; strange && i < s.tokens * s.experts; i += 3) {
        logits.on_cpu<float>()[i] = i % 2 ? NAN : i % 4 ? -INFINITY : -200.0F;
    }
    operand &bias = k.bias ? numbers(c, "bias", 1, s.experts, 0.4, steps) : c.none("bias");
    operand &expert = c.poison("expert", DTYPE_I32, s.tokens, s.top_k);
    operand &weight = c.poison("weight", DTYPE_F32, s.tokens, s.top_k);
    operand &score = c.poison("score", DTYPE_F32, s.tokens, s.experts);
    operand &lse = k.all ? c.poison("lse", DTYPE_F32, s.tokens, 1) : c.none("lse");
    operand &routed = c.poison("routed", DTYPE_I64, rows, s.experts);
    operand &scored = k.all ? c.poison("scored", DTYPE_I64, rows, s.experts) : c.none("scored");
    operand &group = k.all ? c.poison("group", DTYPE_I64, rows, s.loss_groups) : c.none("group");
    c.upload();
    c.ops->router_forward(
        c.device, expert.on_cpu<int32_t>(), weight.on_cpu<float>(), score.on_cpu<float>(),
        lse.on_cpu<float>(),
        {routed.on_cpu<int64_t>(), scored.on_cpu<int64_t>(), group.on_cpu<int64_t>()},
        logits.on_cpu<float>(), bias.on_cpu<float>(), s);
    cuda_router_forward(
        nullptr, expert.on_cuda<int32_t>(), weight.on_cuda<float>(), score.on_cuda<float>(),
        lse.on_cuda<float>(),
        {routed.on_cuda<int64_t>(), scored.on_cuda<int64_t>(), group.on_cuda<int64_t>()},
        logits.on_cuda<float>(), bias.on_cuda<float>(), s);
    c.download();
    c.exact(expert);
    c.exact(routed);
    c.exact(scored);
    c.exact(group);
    c.close(score, error_of(s));
    c.close(weight, error_of(s));
    if (k.all) {
        c.close(lse, error_of(s));
    }
    return c.finish();
}

static bool backward(const struct router_case &k, float z_scale)
{
    const struct router_shape &s = k.shape;
    const int64_t rows = s.tokens / s.row_tokens;
    char what[100];
    name_of(what, s);
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "router_backward and _sums %s z=%g", what,
               (double)z_scale);
    operand &logits = numbers(c, "logits", s.tokens, s.experts, 2, 0);
    operand &expert = c.poison("expert", DTYPE_I32, s.tokens, s.top_k);
    operand &weight = c.poison("weight", DTYPE_F32, s.tokens, s.top_k);
    operand &score = c.poison("score", DTYPE_F32, s.tokens, s.experts);
    operand &lse = c.poison("lse", DTYPE_F32, s.tokens, 1);
    operand &routed = c.poison("routed", DTYPE_I64, rows, s.experts);
    operand &dweight = c.random("dweight", DTYPE_F32, s.tokens, s.top_k);
    operand &aux = c.random("aux", DTYPE_F32, rows, s.experts, 0.1);
    operand &dlogits = c.poison("dlogits", DTYPE_F32, s.tokens, s.experts);
    operand &sums = c.poison("sums", DTYPE_F64, rows, s.experts);
    scratch work(cuda_router_sums_scratch(s));
    /* The CPU's routing is the input of both. */
    c.ops->router_forward(c.device, expert.on_cpu<int32_t>(), weight.on_cpu<float>(),
                          score.on_cpu<float>(), lse.on_cpu<float>(),
                          {routed.on_cpu<int64_t>(), nullptr, nullptr}, logits.on_cpu<float>(),
                          nullptr, s);
    c.upload();
    c.ops->router_backward(c.device, dlogits.on_cpu<float>(), dweight.on_cpu<float>(),
                           expert.on_cpu<int32_t>(), weight.on_cpu<float>(), score.on_cpu<float>(),
                           logits.on_cpu<float>(), lse.on_cpu<float>(), aux.on_cpu<float>(),
                           z_scale, s);
    c.ops->router_sums(c.device, sums.on_cpu<double>(), score.on_cpu<float>(), s);
    cuda_router_backward(nullptr, dlogits.on_cuda<float>(), dweight.on_cuda<float>(),
                         expert.on_cuda<int32_t>(), weight.on_cuda<float>(), score.on_cuda<float>(),
                         logits.on_cuda<float>(), lse.on_cuda<float>(), aux.on_cuda<float>(),
                         z_scale, s);
    cuda_router_sums(nullptr, sums.on_cuda<double>(), score.on_cuda<float>(), s, work.data);
    c.download();
    c.close(dlogits, error_of(s));
    c.close(sums, s.sigmoid ? U * (2 + sqrt((double)s.experts)) : 1e-14);
    return c.finish();
}

static bool test()
{
    bool right = true;
    for (const struct router_case &k : cases) {
        right = forward(k, 0, false) && right;
        right = forward(k, 4, false) && right;
        right = forward(k, 0, true) && right;
        right = backward(k, 0) && right;
        right = backward(k, 0.01F) && right;
    }
    /* More tokens of a row than one block sums. */
    const struct router_case sums[] = {{{150, 8, 2, 150, true, 1, 1, true, 1, 1}, false, false},
                                       {{134, 5, 2, 67, false, 1, 1, true, 1, 1}, false, false}};
    for (const struct router_case &k : sums) {
        right = backward(k, 0) && right;
    }
    return right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
