#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/noise.h"
#include "kernels/cpu/rows.h"

enum { PART = NOISE_MOST };

/* Folded constants of one call: torch's order of operations. */
struct factors {
    float decay, beta1, beta2, step, inverse_root2, eps, grad_scale;
};

CPU_CLONES static void update(float *param, float *m, float *v, uint16_t *out, const float *grad,
                              int64_t count, const struct factors *f)
{
    for (int64_t i = 0; i < count; i++) {
        const float g = grad[i] * f->grad_scale;
        m[i] = f->beta1 * m[i] + (1.0F - f->beta1) * g;
        v[i] = f->beta2 * v[i] + (1.0F - f->beta2) * g * g;
        param[i] = param[i] * f->decay - f->step * m[i] / (sqrtf(v[i]) * f->inverse_root2 + f->eps);
    }
    if (out != NULL) {
        for (int64_t i = 0; i < count; i++) {
            out[i] = bf16_from_float(param[i]);
        }
    }
}

/* One random word serves both moments of an element. */
CPU_CLONES static void store(uint16_t *m, uint16_t *v, const float *new_m, const float *new_v,
                             const uint32_t *noise, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        m[i] = bf16_from_float_noise(new_m[i], (uint16_t)noise[i]);
        v[i] = bf16_from_float_noise(new_v[i], (uint16_t)(noise[i] >> 16));
    }
}

/* The same with moments in bf16; `first`: of the parameter's elements. */
static void update_bf16(float *param, uint16_t *m, uint16_t *v, uint16_t *out, const float *grad,
                        int64_t count, const struct factors *f, uint64_t key, uint64_t first)
{
    float new_m[PART], new_v[PART];
    uint32_t words[NOISE_WORDS];
    row_load(new_m, m, DTYPE_BF16, 0, count);
    row_load(new_v, v, DTYPE_BF16, 0, count);
    update(param, new_m, new_v, out, grad, count, f);
    store(m, v, new_m, new_v, noise_fill(words, key, first, count), count);
}

/* Elements [first, first + count) of the piece's gradient; room[PART]: for them, decoded. */
static const float *gradient(const struct adamw_piece *piece, int64_t first, int64_t count,
                             float quantum, float *room)
{
    if (piece->sum == NULL) {
        return piece->grad + first;
    }
    cpu_fixed_decode(room, piece->sum + first, count, quantum);
    return room;
}

static void update_piece(const struct device *device, const struct adamw_piece *piece,
                         const struct adamw *args, const struct factors *f)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < piece->count; i += PART) {
        uint16_t *out = piece->out != NULL ? (uint16_t *)piece->out + i : NULL;
        const int64_t part = piece->count - i < PART ? piece->count - i : PART;
        float room[PART];
        const float *grad = gradient(piece, i, part, args->quantum, room);
        if (args->moments == DTYPE_BF16) {
            update_bf16(piece->param + i, (uint16_t *)piece->m + i, (uint16_t *)piece->v + i, out,
                        grad, part, f, piece->key, piece->first + (uint64_t)i);
        } else {
            update(piece->param + i, (float *)piece->m + i, (float *)piece->v + i, out, grad, part,
                   f);
        }
    }
}

void cpu_adamw(struct device *device, const struct adamw_piece *piece, int64_t pieces,
               struct adamw args)
{
    const double correction1 = 1.0 - pow((double)args.beta1, (double)args.step);
    const double correction2 = 1.0 - pow((double)args.beta2, (double)args.step);
    struct factors f = {.beta1 = args.beta1,
                        .beta2 = args.beta2,
                        .step = (float)((double)args.lr / correction1),
                        .inverse_root2 = (float)(1.0 / sqrt(correction2)),
                        .eps = args.eps,
                        .grad_scale = args.grad_scale};
    for (int64_t i = 0; i < pieces; i++) {
        f.decay = 1.0F - args.lr * piece[i].weight_decay;
        update_piece(device, &piece[i], &args, &f);
    }
}

/* Not decay ema + rest x: the two factors, each rounded, need not add up to one, and the average of
 * what never moves would drift away from it. */
CPU_CLONES static void average(float *ema, const float *x, int64_t count, float rest)
{
    for (int64_t i = 0; i < count; i++) {
        ema[i] += rest * (x[i] - ema[i]);
    }
}

void cpu_ema(struct device *device, float *ema, const float *x, int64_t count, double decay)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i += PART) {
        average(ema + i, x + i, count - i < PART ? count - i : PART, (float)(1 - decay));
    }
}
