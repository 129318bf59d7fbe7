#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/noise.h"
#include "kernels/cpu/rows.h"

enum { PART = NOISE_MOST, STEPS = 5 };

CPU_CLONES static void momentum(float *grad, float *m, int64_t count, const struct muon *args)
{
    for (int64_t i = 0; i < count; i++) {
        const float g = grad[i] * args->grad_scale;
        m[i] += (1.0F - args->momentum) * (g - m[i]);
        grad[i] = g + args->momentum * (m[i] - g);
    }
}

static void momentum_bf16(float *grad, uint16_t *m, int64_t count, const struct muon *args,
                          uint64_t first)
{
    float new_m[PART];
    uint32_t words[NOISE_WORDS];
    row_load(new_m, m, DTYPE_BF16, 0, count);
    momentum(grad, new_m, count, args);
    const uint32_t *noise = noise_fill(words, args->moments.key, first, count);
    for (int64_t i = 0; i < count; i++) {
        m[i] = bf16_from_float_noise(new_m[i], (uint16_t)noise[i]);
    }
}

void cpu_muon_momentum(struct device *device, float *grad, void *m, int64_t count, struct muon args)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i += PART) {
        const int64_t part = count - i < PART ? count - i : PART;
        if (args.moments.dtype == DTYPE_BF16) {
            momentum_bf16(grad + i, (uint16_t *)m + i, part, &args,
                          args.moments.first + (uint64_t)i);
        } else {
            momentum(grad + i, (float *)m + i, part, &args);
        }
    }
}

CPU_CLONES static void combine_part(float *y, const float *x, int64_t count, float p, float q)
{
    for (int64_t i = 0; i < count; i++) {
        y[i] = p * x[i] + q * y[i];
    }
}

CPU_CLONES static void scale_part(float *y, const float *x, int64_t count, float p)
{
    for (int64_t i = 0; i < count; i++) {
        y[i] = p * x[i];
    }
}

/* y = p x + q y; with q = 0 whatever y holds. */
static void combine(struct device *device, float *y, const float *x, int64_t count, float p,
                    float q)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i += PART) {
        const int64_t part = count - i < PART ? count - i : PART;
        if (q == 0.0F) {
            scale_part(y + i, x + i, part, p);
        } else {
            combine_part(y + i, x + i, part, p, q);
        }
    }
}

/* c[m,n] = (add ? c : 0) + a b, all f32; a_t, b_t: the operand lies transposed. */
static void product(struct device *device, float *c, const float *a, const float *b, int64_t m,
                    int64_t n, int64_t k, bool a_t, bool b_t, bool add)
{
    const struct gemm gemm = {.m = m,
                              .n = n,
                              .k = k,
                              .a = a,
                              .b = b,
                              .c = c,
                              .a_row = a_t ? 1 : k,
                              .a_col = a_t ? m : 1,
                              .b_row = b_t ? 1 : n,
                              .b_col = b_t ? k : 1,
                              .c_row = n,
                              .a_dtype = DTYPE_F32,
                              .b_dtype = DTYPE_F32,
                              .c_dtype = DTYPE_F32,
                              .add = add};
    gemm_run(device, &gemm, 1);
}

/* y = a x + (b A + c A^2) x, A = x x^T [rows,rows]; a tall x the other way round. */
static void newton_schulz(struct device *device, float *y, const float *x, float *gram,
                          float *square, int64_t rows, int64_t cols)
{
    static const float a = 3.4445F, b = -4.7750F, c = 2.0315F; /* Jordan et al. 2024 */
    const bool tall = rows > cols;
    const int64_t side = tall ? cols : rows, length = tall ? rows : cols;
    product(device, gram, x, x, side, side, length, tall, !tall, false);
    product(device, square, gram, gram, side, side, side, false, false, false);
    combine(device, square, gram, side * side, b, c);
    combine(device, y, x, rows * cols, a, 0);
    product(device, y, tall ? x : square, tall ? square : x, rows, cols, side, false, false, true);
}

void cpu_muon_orthogonalize(struct device *device, struct tensor x, float *scratch)
{
    const int64_t rows = x.dim[0], cols = x.dim[1], count = rows * cols;
    const int64_t side = rows < cols ? rows : cols;
    float *from = x.data, *to = scratch, *gram = to + count, *square = gram + side * side;
    assert(tensor_is(&x, DTYPE_F32, rows, cols));
    double squares = 0;
    cpu_sum_squares(device, &squares, from, count);
    const double norm = sqrt(squares);
    combine(device, from, from, count, (float)(1.0 / fmax(norm, 1e-7)), 0);
    for (int step = 0; step < STEPS; step++) {
        newton_schulz(device, to, from, gram, square, rows, cols);
        float *next = from;
        from = to;
        to = next;
    }
    if (from != x.data) {
        memcpy(x.data, from, (size_t)count * sizeof *from);
    }
}

CPU_CLONES static void update(float *param, uint16_t *out, const float *change, int64_t count,
                              float decay, float rate)
{
    for (int64_t i = 0; i < count; i++) {
        param[i] = param[i] * decay - rate * change[i];
    }
    if (out != NULL) {
        for (int64_t i = 0; i < count; i++) {
            out[i] = bf16_from_float(param[i]);
        }
    }
}

void cpu_muon_update(struct device *device, float *param, void *out_bf16, const float *change,
                     int64_t count, struct muon args)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i += PART) {
        uint16_t *out = out_bf16 != NULL ? (uint16_t *)out_bf16 + i : NULL;
        update(param + i, out, change + i, count - i < PART ? count - i : PART,
               1.0F - args.lr * args.weight_decay, args.lr * args.scale);
    }
}
