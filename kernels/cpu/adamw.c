#include <math.h>

#include "kernels/cpu/cpu.h"

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

void cpu_adamw(struct device *device, float *param, float *m, float *v, void *out_bf16,
               const float *grad, int64_t count, struct adamw args)
{
    enum { PART = 4096 };
    const double correction1 = 1.0 - pow((double)args.beta1, (double)args.step);
    const double correction2 = 1.0 - pow((double)args.beta2, (double)args.step);
    const struct factors f = {.decay = 1.0F - args.lr * args.weight_decay,
                              .beta1 = args.beta1,
                              .beta2 = args.beta2,
                              .step = (float)((double)args.lr / correction1),
                              .inverse_root2 = (float)(1.0 / sqrt(correction2)),
                              .eps = args.eps,
                              .grad_scale = args.grad_scale};
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i += PART) {
        uint16_t *out = out_bf16 != NULL ? (uint16_t *)out_bf16 + i : NULL;
        update(param + i, m + i, v + i, out, grad + i, count - i < PART ? count - i : PART, &f);
    }
}
