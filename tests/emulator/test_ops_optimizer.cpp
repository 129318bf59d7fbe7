/* adamw, muon's elementwise stages and ema against the CPU device. */
#include "ops_case.h"

/* Around the 1024 elements of a block; first elements of every remainder by 4, past 2^32. */
static const int64_t counts[] = {0, 1, 6, 1024, 1031};

/* Multiples of 1/8 below 4: with beta1 = 1/2 and beta2 = 3/4 the new moments are exact in f32, with
 * and without contraction, so their stochastic rounding must have the CPU's bits. */
static operand &eighths(ops_case &c, const char *name, enum dtype dtype, int64_t count,
                        bool positive)
{
    const uint64_t key = rng_key(9, name);
    return c.fill(name, dtype, 1, count, [=](int64_t i) {
        const double x = floor(rng_uniform(key, (uint64_t)i) * 32) / 8;
        return positive || i % 2 ? x : -x;
    });
}

static bool adamw(struct device *device, enum dtype dtype, int shift)
{
    bool right = true;
    for (int64_t count : counts) {
        for (int exact = 0; exact < 2; exact++) {
            const struct moments kept = {dtype, rng_key(3, "w"),
                                         (1ULL << 34) + (uint64_t)count % 4};
            const struct adamw args = {
                1e-2F, exact ? 0.5F : 0.9F, exact ? 0.75F : 0.95F, 1e-8F, 0.1F, 0.5F, 3, kept};
            ops_case c(device, dtype, shift, "adamw of %d%s", (int)count, exact ? ", exact" : "");
            operand &param = c.random("param", DTYPE_F32, 1, count);
            operand &out = exact ? c.poison("out", DTYPE_BF16, 1, count) : c.none("out");
            operand &m =
                exact ? eighths(c, "m", dtype, count, false) : c.random("m", dtype, 1, count);
            operand &v = exact ? eighths(c, "v", dtype, count, true)
                               : c.fill("v", dtype, 1, count,
                                        [](int64_t i) { return 0.5 + (double)(i % 37) / 37; });
            operand &grad = exact ? eighths(c, "grad", DTYPE_F32, count, false)
                                  : c.random("grad", DTYPE_F32, 1, count);
            c.upload();
            c.ops->adamw(device, param.on_cpu<float>(), m.cpu.data, v.cpu.data, out.cpu.data,
                         grad.on_cpu<float>(), count, args);
            cuda_adamw(nullptr, param.on_cuda<float>(), m.cuda.data, v.cuda.data, out.cuda.data,
                       grad.on_cuda<float>(), count, args);
            c.download();
            c.close(param, 8 * U);
            if (exact) {
                c.exact(m);
                c.exact(v);
                c.close(out, 8 * U);
            } else {
                c.close(m, 4 * U);
                c.close(v, 4 * U);
            }
            right = c.finish() && right;
        }
    }
    return right;
}

static bool muon(struct device *device, enum dtype dtype, int shift)
{
    bool right = true;
    for (int64_t count : counts) {
        const struct moments kept = {dtype, rng_key(4, "w"), (1ULL << 34) + (uint64_t)count % 4};
        const struct muon args = {1e-2F, 0.75F, 0.1F, 0.5F, 0.2F, kept};
        ops_case c(device, dtype, shift, "muon of %d", (int)count);
        operand &grad = eighths(c, "grad", DTYPE_F32, count, false);
        operand &m = eighths(c, "m", dtype, count, false);
        operand &param = c.random("param", DTYPE_F32, 1, count);
        operand &update = c.random("update", DTYPE_F32, 1, count);
        operand &out = c.poison("out", DTYPE_BF16, 1, count);
        operand &average = c.random("average", DTYPE_F32, 1, count);
        c.upload();
        c.ops->muon_momentum(device, grad.on_cpu<float>(), m.cpu.data, count, args);
        c.ops->muon_update(device, param.on_cpu<float>(), out.cpu.data, update.on_cpu<float>(),
                           count, args);
        c.ops->ema(device, average.on_cpu<float>(), update.on_cpu<float>(), count, 0.999);
        cuda_muon_momentum(nullptr, grad.on_cuda<float>(), m.cuda.data, count, args);
        cuda_muon_update(nullptr, param.on_cuda<float>(), out.cuda.data, update.on_cuda<float>(),
                         count, args);
        cuda_ema(nullptr, average.on_cuda<float>(), update.on_cuda<float>(), count, 0.999);
        c.download();
        c.exact(m);
        c.exact(grad);
        c.close(param, 4 * U);
        c.close(out, 4 * U);
        c.close(average, 4 * U);
        right = c.finish() && right;
    }
    return right;
}

static bool test()
{
    return for_kinds(cpu_device(), adamw) & for_kinds(cpu_device(), muon);
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
