/* Elementwise kernels, sums, random numbers and the rows of cross-entropy against the CPU device.
 */
#include "ops_case.h"

/* Around the 2048 elements that a block of the widest kernel takes. */
static const int64_t counts[] = {0, 1, 7, 2048, 2053, 4102};

static bool maps(struct device *device, enum dtype dtype, int shift)
{
    bool right = true;
    for (int64_t count : counts) {
        for (int other = 0; other < 2; other++) {
            const enum dtype from = other ? DTYPE_F32 : DTYPE_BF16;
            ops_case c(device, dtype, shift, "add, cast, jitter of %d, from %s", (int)count,
                       dtype_name(from));
            operand &x = c.random("x", from, 1, count), &y = c.random("y", dtype, 1, count);
            operand &z = c.poison("z", dtype, 1, count), &j = c.random("j", dtype, 1, count);
            const uint64_t key = rng_key(1, "jitter"), first = (1ULL << 33) + 5;
            c.upload();
            c.ops->add(device, y.cpu, x.cpu);
            c.ops->cast(device, z.cpu, x.cpu);
            c.ops->jitter(device, j.cpu, key, first, 0.01F);
            cuda_add(nullptr, y.cuda, x.cuda);
            cuda_cast(nullptr, z.cuda, x.cuda);
            cuda_jitter(nullptr, j.cuda, key, first, 0.01F);
            c.download();
            right = c.finish() && right; /* the same bits everywhere */
        }
    }
    return right;
}

/* Ties of the cast, infinities, overflow, subnormals, both zeros. */
static bool cast_edges()
{
    static const uint32_t bits[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0x7f7fffff,
                                    0xff7fffff, 0x7f800000, 0xff800000, 0x00000001, 0x00008000,
                                    0x00018000, 0x80000000, 0x00000000, 0x807fffff};
    const int64_t count = sizeof bits / sizeof bits[0];
    ops_case c(cpu_device(), DTYPE_BF16, SHIFT_NONE, "cast of edges");
    operand &x = c.poison("x", DTYPE_F32, 1, count), &y = c.poison("y", DTYPE_BF16, 1, count);
    memcpy(x.cpu.data, bits, sizeof bits);
    c.upload();
    c.ops->cast(c.device, y.cpu, x.cpu);
    cuda_cast(nullptr, y.cuda, x.cuda);
    c.download();
    return c.finish();
}

static bool sums(int shift)
{
    bool right = true;
    for (int64_t count : {0, 1, 5, 1023, 16384, 40001}) {
        ops_case c(cpu_device(), DTYPE_F32, shift, "sum_squares of %d", (int)count);
        operand &x = c.random("x", DTYPE_F32, 1, count), &normal = c.poison("n", DTYPE_F32, 1, 99);
        operand &sum = c.fill("sum", DTYPE_F64, 1, 1, [](int64_t) { return 0.5; });
        scratch work(cuda_sum_squares_scratch(count));
        c.upload();
        c.ops->sum_squares(c.device, sum.on_cpu<double>(), x.on_cpu<float>(), count);
        c.ops->init_normal(c.device, normal.on_cpu<float>(), 77, 1ULL << 40, 99, 0.02F);
        cuda_sum_squares(nullptr, sum.on_cuda<double>(), x.on_cuda<float>(), count, work.data);
        cuda_init_normal(nullptr, normal.on_cuda<float>(), 77, 1ULL << 40, 99, 0.02F);
        c.download();
        c.close(sum, 1e-14);         /* 2^-53 sqrt(count) */
        right = c.finish() && right; /* normal: the same log and cos here, so the same bits */
    }
    return right;
}

/* What cpu_cross_entropy does between its products, through the whole op: logits = x I. */
static bool cross_entropy(struct device *device, enum dtype dtype, int shift)
{
    const int64_t shapes[][2] = {{0, 8}, {1, 1}, {5, 7}, {3, 40}, {2, 4104}};
    const float scale = 0.125F;
    bool right = true;
    for (const int64_t(&s)[2] : shapes) {
        const int64_t rows = s[0], vocab = s[1];
        ops_case c(device, dtype, shift, "cross_entropy N=%d V=%d", (int)rows, (int)vocab);
        operand &logits = c.random("logits", DTYPE_F32, rows, vocab, 3);
        operand &grad = c.poison("grad", dtype, rows, vocab);
        operand &loss = c.poison("loss", DTYPE_F64, rows, 1),
                &sum = c.poison("sum", DTYPE_F64, 1, 1);
        operand &labels = c.integers("labels", rows, 1, -1, (int)vocab + 1);
        c.upload();
        double total = 0;
        for (int64_t n = 0; n < rows; n++) {
            const float *row = logits.on_cpu<float>() + n * vocab;
            const int32_t label = labels.on_cpu<int32_t>()[n];
            double most = -INFINITY, all = 0;
            for (int64_t i = 0; i < vocab; i++) {
                most = fmax(most, (double)row[i]);
            }
            for (int64_t i = 0; i < vocab; i++) {
                all += exp((double)row[i] - most);
            }
            for (int64_t i = 0; i < vocab; i++) {
                const double p = exp((double)row[i] - most) / all - (i == label);
                const float g = label < 0 ? 0 : (float)(p * (double)scale);
                if (dtype == DTYPE_F32) {
                    grad.on_cpu<float>()[n * vocab + i] = g;
                } else {
                    grad.on_cpu<uint16_t>()[n * vocab + i] = bf16_from_float(g);
                }
            }
            total += loss.on_cpu<double>()[n] =
                label < 0 ? 0 : log(all) + most - (double)row[label];
        }
        sum.on_cpu<double>()[0] = 2 * total;
        cuda_cross_entropy_rows(nullptr, loss.on_cuda<double>(), grad.cuda, logits.cuda,
                                labels.on_cuda<int32_t>(), scale);
        cuda_sum(nullptr, sum.on_cuda<double>(), loss.on_cuda<double>(), rows, false);
        cuda_sum(nullptr, sum.on_cuda<double>(), loss.on_cuda<double>(), rows, true);
        c.download();
        c.close(loss, EXP_ERROR + 16 * U);
        c.close(sum, EXP_ERROR + 16 * U);
        c.close(grad, EXP_ERROR + 16 * U); /* p - 1 near p = 1 cancels, on the scale of the row */
        right = c.finish() && right;
    }
    return right;
}

/* The CPU's op as a whole: the gradients in place of the logits, w the identity, so that dx is the
 * gradient and x the logits. */
static bool cross_entropy_op()
{
    const int64_t rows = 6, vocab = 36;
    bool right = true;
    for (int gradient = 0; gradient < 2; gradient++) {
        ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "cross_entropy, the CPU's op");
        operand &x = c.random("x", DTYPE_F32, rows, vocab, 3);
        operand &labels = c.integers("labels", rows, 1, -1, (int)vocab + 1);
        operand &dx = gradient ? c.poison("dx", DTYPE_F32, rows, vocab) : c.none("dx");
        operand &loss = c.poison("loss", DTYPE_F64, rows, 1),
                &sum = c.poison("sum", DTYPE_F64, 1, 1);
        std::vector<float> w((size_t)(vocab * vocab)), dw(w);
        for (int64_t i = 0; i < vocab; i++) {
            w[(size_t)(i * vocab + i)] = 1;
        }
        c.upload();
        sum.on_cpu<double>()[0] = 0;
        c.ops->cross_entropy(
            c.device, sum.on_cpu<double>(), dx.cpu, tensor_2d(dw.data(), DTYPE_F32, vocab, vocab),
            x.cpu, tensor_2d(w.data(), DTYPE_F32, vocab, vocab), labels.on_cpu<int32_t>(), 0.5F);
        struct tensor grad = x.cuda;
        grad.data = gradient ? grad.data : nullptr;
        cuda_cross_entropy_rows(nullptr, loss.on_cuda<double>(), grad, x.cuda,
                                labels.on_cuda<int32_t>(), 0.5F);
        cuda_sum(nullptr, sum.on_cuda<double>(), loss.on_cuda<double>(), rows, false);
        c.download();
        loss.compared = true;
        c.close(sum, EXP_ERROR + 16 * U);
        if (gradient) { /* in place */
            memcpy(x.cpu.data, dx.cpu.data, tensor_bytes(&dx.cpu));
            c.close(x, EXP_ERROR + 16 * U);
            dx.compared = true;
        }
        right = c.finish() && right;
    }
    return right;
}

/* Columns of a part of the vocabulary, and their gradients with the numbers of three ranks. */
static bool divided_loss(struct device *device, enum dtype dtype, int shift)
{
    const int64_t shapes[][2] = {{0, 8}, {1, 1}, {5, 7}, {3, 40}, {2, 4104}};
    bool right = true;
    for (const int64_t(&s)[2] : shapes) {
        const int64_t rows = s[0], vocab = s[1], first = 5;
        ops_case c(device, dtype, shift, "loss in parts N=%d V=%d", (int)rows, (int)vocab);
        operand &logits = c.random("logits", DTYPE_F32, rows, vocab, 3);
        operand &stats = c.poison("stats", DTYPE_F64, rows, 3),
                &all = c.poison("all", DTYPE_F64, 3 * rows, 3),
                &grad = c.poison("grad", dtype, rows, vocab),
                &sum = c.poison("sum", DTYPE_F64, 1, 1), &loss = c.poison("loss", DTYPE_F64, rows, 1);
        operand &labels = c.integers("labels", rows, 1, -1, (int)vocab + 10);
        std::vector<float> scratch(logits.on_cpu<float>(),
                                   logits.on_cpu<float>() + rows * vocab);
        std::vector<double> own((size_t)(3 * rows));
        c.ops->loss_stats(c.device, own.data(),
                          tensor_2d(scratch.data(), DTYPE_F32, rows, vocab),
                          labels.on_cpu<int32_t>(), first);
        for (int64_t i = 0; i < 9 * rows; i++) { /* beside it two, one with a larger logit */
            const int64_t rank = i / (3 * rows), at = i % (3 * rows), which = i % 3;
            const bool counted = labels.on_cpu<int32_t>()[at / 3] >= 0;
            const double mine = own[(size_t)at],
                         other = which == 0 ? mine + (double)rank - 0.5 : which == 1 ? 2.5 : 0;
            all.on_cpu<double>()[i] = rank == 1 ? mine : counted ? other : 0;
        }
        c.upload();
        sum.on_cpu<double>()[0] = 0;
        struct loss_parts parts = {all.on_cpu<double>(), 3, 1, first};
        cuda_loss_stats(nullptr, stats.on_cuda<double>(), logits.cuda, labels.on_cuda<int32_t>(),
                        first);
        c.ops->loss_stats(c.device, stats.on_cpu<double>(), logits.cpu, labels.on_cpu<int32_t>(),
                          first);
        c.ops->loss_gradient(c.device, sum.on_cpu<double>(), grad.cpu, logits.cpu, &parts,
                             labels.on_cpu<int32_t>(), 0.125F);
        parts.stats = all.on_cuda<double>();
        cuda_loss_gradient(nullptr, loss.on_cuda<double>(), grad.cuda, logits.cuda, &parts,
                           labels.on_cuda<int32_t>(), 0.125F);
        cuda_sum(nullptr, sum.on_cuda<double>(), loss.on_cuda<double>(), rows, false);
        c.download();
        logits.compared = loss.compared = true;
        c.close(stats, EXP_ERROR + 16 * U);
        c.close(sum, EXP_ERROR + 16 * U);
        c.close(grad, EXP_ERROR + 16 * U);
        right = c.finish() && right;
    }
    return right;
}

static bool test()
{
    bool right = cast_edges() & sums(SHIFT_NONE) & sums(SHIFT_ALL) & cross_entropy_op();
    right = for_kinds(cpu_device(), maps) && right;
    right = for_kinds(cpu_device(), divided_loss) && right;
    return for_kinds(cpu_device(), cross_entropy) && right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
