#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "trainer/sweep/plan.h"

/* Uniform in [0, 1), the same for every run of the file. */
static double draw(const struct sweep_plan *plan, int64_t trial, int parameter)
{
    const uint64_t key = rng_subkey(rng_key(plan->seed, "sweep"), (uint64_t)parameter);
    return rng_uniform(key, (uint64_t)trial);
}

static void range_value(const struct sweep_parameter *p, double u, char out[64])
{
    const double value = p->logarithmic ? p->low * pow(p->high / p->low, u)
                         : p->whole     ? p->low + floor(u * (p->high - p->low + 1))
                                        : p->low + u * (p->high - p->low);
    snprintf(out, 64, p->whole ? "%.0f" : "%.6g", value);
}

static void value_of(const struct sweep_plan *plan, int64_t trial, int parameter, const char **text,
                     char room[64])
{
    const struct sweep_parameter *p = &plan->parameter[parameter];
    *text = room;
    if (plan->method == SWEEP_GRID) {
        int64_t rest = trial;
        for (int i = plan->parameters - 1; i > parameter; i--) {
            rest /= plan->parameter[i].values;
        }
        *text = p->value[rest % p->values];
        return;
    }
    const double u = draw(plan, trial, parameter);
    if (p->values > 0) {
        *text = p->value[(int)(u * p->values)];
    } else {
        range_value(p, u, room);
    }
}

enum status sweep_plan_trial(const struct sweep_plan *plan, int64_t index,
                             struct sweep_trial_values *values)
{
    *values = (struct sweep_trial_values){0};
    for (int i = 0; i < plan->fixed_count; i++) {
        values->text[values->count] = strdup(plan->fixed[i]);
        if (values->text[values->count++] == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory");
        }
    }
    for (int i = 0; i < plan->parameters; i++) {
        const char *text;
        char room[64];
        value_of(plan, index, i, &text, room);
        if (asprintf(&values->text[values->count], "%s=%s", plan->parameter[i].key, text) < 0) {
            values->text[values->count] = NULL;
            return status_fail(STATUS_RESOURCE, "out of memory");
        }
        values->count++;
    }
    return STATUS_OK;
}

void sweep_trial_values_free(struct sweep_trial_values *values)
{
    for (int i = 0; i < values->count; i++) {
        free(values->text[i]);
    }
    *values = (struct sweep_trial_values){0};
}

int64_t sweep_plan_steps(const struct sweep_plan *plan, const struct sweep_trial_values *values)
{
    static const char key[] = "run.steps=";
    int64_t steps = plan->steps;
    for (int i = 0; i < values->count; i++) {
        if (strncmp(values->text[i], key, sizeof key - 1) == 0) {
            steps = (int64_t)strtod(values->text[i] + sizeof key - 1,
                                    NULL); /* good: the config takes it */
        }
    }
    return steps;
}
