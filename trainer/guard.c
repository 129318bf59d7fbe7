#include "trainer/guard.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "trainer/figures.h"

static const double LEAST_LOSS = 0.02, LEAST_NORM = 0.1;

static double median(const double *value, int64_t count, double scratch[CONFIG_MOST_WINDOW])
{
    memmove(scratch, value, (size_t)count * sizeof *value);
    figure_sort(scratch, count);
    return (scratch[(count - 1) / 2] + scratch[count / 2]) / 2;
}

double guard_limit(const double *value, int64_t count, double factor, double least)
{
    double scratch[CONFIG_MOST_WINDOW], distance[CONFIG_MOST_WINDOW];
    const double middle = median(value, count, scratch);
    for (int64_t i = 0; i < count; i++) {
        distance[i] = fabs(value[i] - middle);
    }
    return middle + factor * fmax(1.4826 * median(distance, count, scratch), least * fabs(middle));
}

static void keep(struct guard_state *state, int64_t window, double loss, double norm)
{
    const int64_t most = window - 1, drop = state->count > most ? state->count - most : 0;
    const size_t rest = (size_t)(state->count - drop);
    memmove(state->loss, state->loss + drop, rest * sizeof *state->loss);
    memmove(state->norm, state->norm + drop, rest * sizeof *state->norm);
    state->loss[rest] = loss;
    state->norm[rest] = norm;
    state->count = (int64_t)rest + 1;
}

/* Whether the figures are a spike, and in words which. */
static bool is_spike(struct guard *guard, double loss, double norm)
{
    const struct guard_state *state = guard->state;
    const double factor = guard->config->guard.spike_factor;
    const int64_t window = guard->config->guard.spike_window;
    const int64_t count = state->count < window ? state->count : window,
                  first = state->count - count;
    if (guard->config->guard.on_spike == CONFIG_GUARD_OFF || 2 * count < window) {
        return false;
    }
    const double most_loss = guard_limit(state->loss + first, count, factor, LEAST_LOSS),
                 most_norm = guard_limit(state->norm + first, count, factor, LEAST_NORM);
    const bool by_loss = loss > most_loss;
    snprintf(guard->why, sizeof guard->why,
             "%s %.6g is a spike: the last %lld updates make %.6g the most to expect",
             by_loss ? "loss" : "gradient norm", by_loss ? loss : norm, (long long)count,
             by_loss ? most_loss : most_norm);
    return by_loss || norm > most_norm;
}

static enum guard_verdict stop(int64_t step, const char *why, const char *rest)
{
    const enum status status =
        status_fail(STATUS_DIVERGED,
                    "step %lld: %s%s, weights left as they were; resume from the last checkpoint "
                    "with a lower optimizer.lr",
                    (long long)step, why, rest);
    (void)status; /* the verdict says it */
    return GUARD_STOP;
}

static enum guard_verdict act(struct guard *guard, int64_t step, int action)
{
    struct guard_state *state = guard->state;
    const int64_t tries = guard->config->guard.tries;
    const bool skip = action == CONFIG_GUARD_SKIP, back = action == CONFIG_GUARD_ROLLBACK;
    const int64_t before = skip ? state->skips : back ? state->returns : 0;
    char rest[96] = "";
    if ((skip || back) && before >= tries) {
        snprintf(rest, sizeof rest, "; %lld %s did not help (guard.tries)", (long long)before,
                 skip ? "updates left out in a row" : "rollbacks");
    }
    if (rest[0] != '\0' || action == CONFIG_GUARD_STOP) {
        return stop(step, guard->why, rest);
    }
    state->skips += skip;
    state->skipped += skip;
    return skip ? GUARD_SKIP : GUARD_ROLLBACK;
}

enum guard_verdict guard_judge(struct guard *guard, int64_t step, double loss, double norm,
                               const char *why)
{
    if (guard == NULL) {
        return why != NULL ? stop(step, why, "") : GUARD_UPDATE;
    }
    if (why != NULL) {
        snprintf(guard->why, sizeof guard->why, "%s", why);
        return act(guard, step, guard->config->guard.on_nonfinite);
    }
    if (is_spike(guard, loss, norm)) {
        return act(guard, step, guard->config->guard.on_spike);
    }
    struct guard_state *state = guard->state;
    keep(state, guard->config->guard.spike_window, loss, norm);
    state->skips = 0;
    if (step > state->trouble + guard->config->guard.spike_window) {
        state->returns = 0;
    }
    return GUARD_UPDATE;
}

void guard_went_back(struct guard_state *now, const struct guard_state *was, int64_t trouble,
                     int64_t step)
{
    now->rollbacks = was->rollbacks + 1;
    now->returns = was->returns + 1;
    now->trouble = trouble;
    now->passed = was->passed + trouble - step;
}

/* --- in a checkpoint --- */

static json_t *reals_write(const double *value, int64_t count)
{
    json_t *array = json_array();
    for (int64_t i = 0; i < count; i++) {
        json_array_append_new(array, json_real(value[i]));
    }
    return array;
}

static bool reals_read(const json_t *array, double *value, size_t count)
{
    bool good = json_array_size(array) == count;
    for (size_t i = 0; i < count && good; i++) {
        const json_t *one = json_array_get(array, i);
        good = json_is_number(one);
        value[i] = json_number_value(one);
    }
    return good;
}

json_t *guard_write(const struct guard_state *state)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "skipped",
                     (json_int_t)state->skipped, "skips", (json_int_t)state->skips, "passed",
                     (json_int_t)state->passed, "rollbacks", (json_int_t)state->rollbacks,
                     "returns", (json_int_t)state->returns, "trouble", (json_int_t)state->trouble,
                     "loss", reals_write(state->loss, state->count), "grad_norm",
                     reals_write(state->norm, state->count));
}

bool guard_read(const json_t *json, struct guard_state *state)
{
    const struct {
        const char *name;
        int64_t *to;
    } counts[] = {{"skipped", &state->skipped}, {"skips", &state->skips},
                  {"passed", &state->passed},   {"rollbacks", &state->rollbacks},
                  {"returns", &state->returns}, {"trouble", &state->trouble}};
    *state = (struct guard_state){0};
    if (json == NULL) {
        return true;
    }
    bool good = true;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const json_t *one = json_object_get(json, counts[i].name);
        *counts[i].to = json_integer_value(one);
        good = good && json_is_integer(one) && *counts[i].to >= 0;
    }
    const json_t *loss = json_object_get(json, "loss"), *norm = json_object_get(json, "grad_norm");
    const size_t count = json_array_size(loss);
    good = good && json_is_array(loss) && count <= CONFIG_MOST_WINDOW &&
           reals_read(loss, state->loss, count) && reals_read(norm, state->norm, count);
    state->count = (int64_t)count;
    if (!good) {
        *state = (struct guard_state){0};
    }
    return good;
}
