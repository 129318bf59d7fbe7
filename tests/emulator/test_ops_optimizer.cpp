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

/* One piece of each count, all in one launch. */
struct adamw_case {
    operand *param, *m, *v, *out, *grad;
    int64_t count;

    struct adamw_piece piece(bool cuda) const
    {
        const auto data = [cuda](const operand *o) { return cuda ? o->cuda.data : o->cpu.data; };
        return {(float *)data(param),
                data(m),
                data(v),
                data(out),
                (const float *)data(grad),
                count,
                0.125F * (float)(count % 3),
                rng_key(3, "w") + (uint64_t)count,
                (1ULL << 34) + (uint64_t)count % 4};
    }
};

static adamw_case make_adamw(ops_case &c, enum dtype dtype, int64_t count, bool exact)
{
    if (exact) {
        return {
            &c.random("param", DTYPE_F32, 1, count),      &eighths(c, "m", dtype, count, false),
            &eighths(c, "v", dtype, count, true),         &c.poison("out", DTYPE_BF16, 1, count),
            &eighths(c, "grad", DTYPE_F32, count, false), count};
    }
    return {&c.random("param", DTYPE_F32, 1, count),
            &c.random("m", dtype, 1, count),
            &c.fill("v", dtype, 1, count, [](int64_t i) { return 0.5 + (double)(i % 37) / 37; }),
            &c.none("out"),
            &c.random("grad", DTYPE_F32, 1, count),
            count};
}

static void run_adamw(ops_case &c, const std::vector<adamw_case> &cases, struct adamw args)
{
    std::vector<struct adamw_piece> cpu, cuda;
    std::vector<int64_t> part(1);
    for (const adamw_case &one : cases) {
        cpu.push_back(one.piece(false));
        cuda.push_back(one.piece(true));
        part.push_back(part.back() + cuda_adamw_parts(one.count));
    }
    const size_t bytes = cuda.size() * sizeof cuda[0], parts = part.size() * sizeof part[0];
    scratch table(bytes), places(parts);
    cudaMemcpy(table.data, cuda.data(), bytes, cudaMemcpyHostToDevice);
    cudaMemcpy(places.data, part.data(), parts, cudaMemcpyHostToDevice);
    c.ops->adamw(c.device, cpu.data(), (int64_t)cpu.size(), args);
    cuda_adamw(nullptr, (struct adamw_piece *)table.data, (int64_t *)places.data,
               (int64_t)cuda.size(), part.back(), args);
    c.download();
}

static bool adamw(struct device *, enum dtype dtype, int shift)
{
    bool right = true;
    for (int exact = 0; exact < 2; exact++) {
        const struct adamw args = {
            1e-2F, exact ? 0.5F : 0.9F, exact ? 0.75F : 0.95F, 1e-8F, 0.5F, 3, dtype};
        ops_case c(cpu_device(), dtype, shift, "adamw%s", exact ? ", exact" : "");
        std::vector<adamw_case> cases;
        for (int64_t count : {(int64_t)0, (int64_t)1, (int64_t)6, (int64_t)4096, (int64_t)4105}) {
            cases.push_back(make_adamw(c, dtype, count, exact != 0));
        }
        c.upload();
        run_adamw(c, cases, args);
        for (const adamw_case &one : cases) {
            c.close(*one.param, 8 * U);
            if (exact) {
                c.exact(*one.m);
                c.exact(*one.v);
                c.close(*one.out, 8 * U);
            } else {
                c.close(*one.m, 4 * U);
                c.close(*one.v, 4 * U);
            }
        }
        right = c.finish() && right;
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
        const auto frozen = [](int64_t i) { return rng_uniform(rng_key(6, "x"), (uint64_t)i); };
        operand &still = c.fill("still", DTYPE_F32, 1, count, frozen);
        operand &same = c.fill("same", DTYPE_F32, 1, count, frozen);
        c.upload();
        c.ops->muon_momentum(device, grad.on_cpu<float>(), m.cpu.data, count, args);
        c.ops->muon_update(device, param.on_cpu<float>(), out.cpu.data, update.on_cpu<float>(),
                           count, args);
        c.ops->ema(device, average.on_cpu<float>(), update.on_cpu<float>(), count, 0.999);
        c.ops->ema(device, still.on_cpu<float>(), same.on_cpu<float>(), count, 0.999);
        cuda_muon_momentum(nullptr, grad.on_cuda<float>(), m.cuda.data, count, args);
        cuda_muon_update(nullptr, param.on_cuda<float>(), out.cuda.data, update.on_cuda<float>(),
                         count, args);
        cuda_ema(nullptr, average.on_cuda<float>(), update.on_cuda<float>(), count, 0.999);
        cuda_ema(nullptr, still.on_cuda<float>(), same.on_cuda<float>(), count, 0.999);
        c.download();
        c.exact(m);
        c.exact(grad);
        c.close(param, 4 * U);
        c.close(out, 4 * U);
        c.close(average, 4 * U);
        c.exact(still); /* the average of what stays is it */
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
