#include "trainer/schedule.h"

#include <math.h>

double schedule_lr(const struct config *config, int64_t step)
{
    const double lr = config->optimizer.lr, last = config->schedule.final_lr_ratio,
                 pi = 3.14159265358979323846;
    const double warmup = (double)config->schedule.warmup_steps, steps = (double)config->run.steps,
                 at = (double)step;
    if (at <= warmup) {
        return lr * at / warmup;
    }
    const double decay_from =
        config->schedule.kind == CONFIG_WSD ? fmax(warmup, 0.8 * steps) : warmup;
    const double done = at <= decay_from ? 0 : fmin(1.0, (at - decay_from) / (steps - decay_from));
    switch (config->schedule.kind) {
    case CONFIG_COSINE:
        return lr * (last + (1 - last) * 0.5 * (1 + cos(pi * done)));
    case CONFIG_WSD:
        return lr * (1 - (1 - last) * done);
    default:
        return lr;
    }
}
