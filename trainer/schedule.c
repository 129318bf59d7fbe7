#include "trainer/schedule.h"

#include <math.h>

/* How far down, 0 to 1, at step `at` between `from` and `to`. */
static double progress(double at, double from, double to)
{
    return at <= from ? 0 : at >= to ? 1 : (at - from) / (to - from);
}

/* The rate / optimizer.lr behind the warm-up. */
static double shape(const struct config *config, double at)
{
    const double pi = 3.14159265358979323846, last = config->schedule.final_lr_ratio;
    const double steps = (double)config->run.steps, warmup = (double)config->schedule.warmup_steps;
    const bool wsd = config->schedule.kind == CONFIG_WSD;
    const double from = wsd ? fmax(warmup, config->schedule.decay_start * steps) : warmup;
    const double to = wsd ? config->schedule.decay_end * steps : steps;
    const double done = progress(at, from, to);
    if (config->schedule.kind == CONFIG_COSINE ||
        (wsd && config->schedule.decay_shape == CONFIG_HALF_COSINE)) {
        return last + (1 - last) * 0.5 * (1 + cos(pi * done));
    }
    return wsd ? 1 - (1 - last) * done : 1;
}

double schedule_lr(const struct config *config, int64_t step)
{
    const double at = (double)step, warmup = (double)config->schedule.warmup_steps;
    const struct config_reals *milestones = &config->schedule.milestones;
    double lr = config->optimizer.lr * (at <= warmup ? at / warmup : shape(config, at));
    for (int64_t i = 0; i < milestones->count; i++) {
        /* 0.57 * 100 is a little less than 57 */
        const double until = milestones->item[i] * (double)config->run.steps * (1 + 1e-12);
        lr *= at > until ? config->schedule.milestone_factor : 1;
    }
    return lr;
}

__extension__ typedef __int128 wide;

int64_t schedule_batch(const struct config *config, int64_t position)
{
    const int64_t start = config->train.batch_ramp.start, full = config->train.global_batch,
                  by = config->train.batch_ramp.increment, tokens = config->train.batch_ramp.tokens;
    const wide read = (wide)position * (wide)config->train.sequence_length;
    if (start == 0 || start >= full || read >= (wide)tokens) {
        return full;
    }
    return start + by * (int64_t)(read * (wide)((full - start) / by) / (wide)tokens);
}

/* The first position past `position` whose step may be larger. */
static int64_t ramp_border(const struct config *config, int64_t position, int64_t batch)
{
    const int64_t start = config->train.batch_ramp.start, full = config->train.global_batch,
                  by = config->train.batch_ramp.increment;
    const wide sizes = (wide)((full - start) / by), next = (wide)((batch - start) / by + 1),
               width = (wide)config->train.sequence_length * sizes,
               border = (next * (wide)config->train.batch_ramp.tokens + width - 1) / width;
    return border > (wide)position ? (int64_t)border : position + 1;
}

int64_t schedule_position(const struct config *config, int64_t position, int64_t steps)
{
    while (steps > 0) {
        const int64_t batch = schedule_batch(config, position);
        int64_t count = steps;
        if (batch < config->train.global_batch) { /* steps of this size until the ramp goes on */
            const int64_t border = ramp_border(config, position, batch);
            count = (border - position + batch - 1) / batch;
            count = count < steps ? count : steps;
        }
        position += count * batch;
        steps -= count;
    }
    return position;
}
