#include "trainer/saving.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_FAILURES = 3, FIRST_STEPS = 10, MESSAGE_BYTES = 2048 };

static bool saves_at_edges(const struct config *config)
{
    return config->checkpoint.every_steps > 0 || config->checkpoint.every_minutes > 0 ||
           config->checkpoint.mtbf_hours > 0;
}

static bool has_copy(const struct config *config)
{
    return config->checkpoint.async && saves_at_edges(config);
}

/* Whether a run of so many steps comes to save beside the training. */
static bool saves_beside(const struct config *config)
{
    const bool by_time = config->checkpoint.every_minutes > 0 || config->checkpoint.mtbf_hours > 0;
    return by_time || config->checkpoint.every_steps < config->run.steps;
}

enum status saving_measure(struct saving_size *size, const struct model *model)
{
    const struct config *config = model->config;
    struct state_slices slices = {0};
    *size = (struct saving_size){0};
    if (!has_copy(config)) {
        return STATUS_OK;
    }
    const enum status status = state_slices_init(&slices, model);
    if (status == STATUS_OK) {
        size->bytes = snapshot_bytes(slices.slice, slices.count);
        size->tensors = slices.names;
        size->beside = saves_beside(config);
    }
    state_slices_free(&slices);
    return status;
}

static enum status init_async(struct saving *saving)
{
    const struct model *model = saving->model;
    /* Memory of a device that has its own is copied by that. */
    struct device *device = device_info(model->device)->memory_bytes > 0 ? model->device : NULL;
    TRY(state_slices_init(&saving->slices, model));
    const enum status status =
        background_init(&saving->background, saving->world, saving->slices.slice,
                        saving->slices.count, device, saving->config->run.pin);
    saving->async = status == STATUS_OK;
    if (saving->async && saves_beside(saving->config)) {
        background_touch(&saving->background);
    }
    return status == STATUS_OK
               ? STATUS_OK
               : status_fail(status, "%s: set checkpoint.async: false", status_message());
}

enum status saving_init(struct saving *saving, const struct model *model, struct metrics *metrics,
                        const char *root, const char *tokenizer, const struct progress_state *at,
                        bool saved)
{
    *saving = (struct saving){.model = model,
                              .config = model->config,
                              .world = model->mesh->world,
                              .metrics = metrics,
                              .root = root,
                              .saved_step = saved ? at->step : -1,
                              .step = at->step,
                              .ended = step_clock()};
    snprintf(saving->tokenizer, sizeof saving->tokenizer, "%s", tokenizer);
    return has_copy(saving->config) ? init_async(saving) : STATUS_OK;
}

size_t saving_bytes(const struct saving *saving)
{
    return saving->background.snapshot.bytes;
}

double saving_held_up(struct saving *saving)
{
    const double seconds = saving->held_up;
    saving->held_up = 0;
    return seconds;
}

/* --- how saves end --- */

/* Collective. */
static void count_cost(struct saving *saving)
{
    const double hours = saving->config->checkpoint.mtbf_hours;
    double took = saving->took, cost = fmax(saving->cost, 0);
    if (hours <= 0) {
        return;
    }
    comm_all_reduce(saving->world, &took, 1, DTYPE_F64, REDUCE_MAX);
    comm_all_reduce(saving->world, &cost, 1, DTYPE_F64, REDUCE_MAX);
    saving->costs += cost;
    saving->saves++;
    const double mean = saving->costs / (double)saving->saves;
    saving->interval = fmax(sqrt(2 * mean * hours * 3600), took);
    if (saving->world->rank == 0) {
        metrics_say(saving->metrics,
                    "saved step %lld in %.2f s, which cost %.2f s of training; the next in %.1f s: "
                    "sqrt(2 x %.2f s x %g h)%s",
                    (long long)saving->step, took, cost, saving->interval, mean, hours,
                    saving->interval > took ? "" : ", but not sooner than a save takes");
    }
}

/* Collective. What becomes of a save that ended; `status` is passed on where it ends the run. */
static enum status conclude(struct saving *saving, enum status status, bool last)
{
    saving->ended = step_clock();
    if (status == STATUS_OK) {
        saving->saved_step = saving->step;
        saving->failures = 0;
        watchdog_saved(saving->watchdog, saving->step);
        if (saving->deadline != NULL) {
            deadline_save(saving->deadline, saving->took);
        }
        count_cost(saving);
        return STATUS_OK;
    }
    saving->failures++;
    if (last || saving->failures == MOST_FAILURES) {
        return status;
    }
    if (saving->world->rank == 0) {
        fprintf(stderr,
                "switchyard: warning: checkpoint of step %lld not saved: %s; training goes on\n",
                (long long)saving->step, status_message());
    }
    return STATUS_OK;
}

static void add_held_up(struct saving *saving, double seconds)
{
    saving->held_up += seconds;
    saving->cost += seconds;
}

static bool under_way(const struct saving *saving)
{
    return saving->background.phase != BACKGROUND_IDLE;
}

/* Collective. Waits. */
static enum status finish(struct saving *saving)
{
    const double began = step_clock();
    watchdog_enter(saving->watchdog, WATCHDOG_SAVE, saving->step);
    const enum status status = background_finish(&saving->background);
    saving->took = saving->background.seconds;
    add_held_up(saving, step_clock() - began);
    return conclude(saving, status, false);
}

/* --- how they begin --- */

static void begin(struct saving *saving, const struct progress_state *at)
{
    watchdog_enter(saving->watchdog, WATCHDOG_SAVE, at->step);
    saving->step = at->step;
    saving->began = step_clock();
    saving->cost = 0;
}

static enum status save_now(struct saving *saving, const struct progress_state *at, bool last)
{
    begin(saving, at);
    const enum status status = state_save(saving->model, saving->root, at, saving->tokenizer);
    saving->took = step_clock() - saving->began;
    add_held_up(saving, saving->took);
    return conclude(saving, status, last);
}

static enum status start(struct saving *saving, const struct progress_state *at)
{
    begin(saving, at);
    char *text = state_text(saving->model, at, saving->tokenizer);
    enum status status =
        text != NULL ? STATUS_OK
                     : status_fail(STATUS_RESOURCE, "out of memory for the checkpoint's state");
    status = comm_agree(saving->world, status, NULL);
    if (status == STATUS_OK) {
        status = background_start(&saving->background, saving->root, at->step, text,
                                  (int)saving->config->checkpoint.keep_last);
    } else {
        free(text);
    }
    add_held_up(saving, step_clock() - saving->began);
    return status == STATUS_OK ? STATUS_OK : conclude(saving, status, false);
}

/* --- step edges --- */

/* Collective. */
static bool is_due(struct saving *saving, int64_t step)
{
    const struct config *config = saving->config;
    const double minutes = config->checkpoint.every_minutes, past = step_clock() - saving->ended;
    const bool automatic = config->checkpoint.mtbf_hours > 0;
    if (automatic && saving->interval <= 0) {
        return step - saving->step >= FIRST_STEPS;
    }
    int32_t late = automatic ? past > saving->interval : minutes > 0 && past > 60 * minutes;
    if (automatic || minutes > 0) {
        comm_all_reduce(saving->world, &late, 1, DTYPE_I32, REDUCE_MAX);
    }
    const int64_t every = automatic ? 0 : config->checkpoint.every_steps;
    return late != 0 || (every > 0 && step % every == 0);
}

/* What a step took longer beside a save is part of its cost; one step, the first, is warm-up. */
static void count_step(struct saving *saving, double seconds)
{
    enum { MOST = 20 };
    if (under_way(saving)) {
        saving->cost += saving->steps > 1 ? seconds - saving->step_seconds : 0;
    } else if (saving->steps++ > 0) {
        const int64_t of = saving->steps > MOST ? MOST : saving->steps - 1;
        saving->step_seconds += (seconds - saving->step_seconds) / (double)of;
    }
}

void saving_hold(void *context)
{
    struct saving *saving = context;
    background_hold(&saving->background);
}

enum status saving_look(struct saving *saving)
{
    enum status status = STATUS_OK;
    const double began = step_clock();
    if (!background_poll(&saving->background, &status)) {
        add_held_up(saving, under_way(saving) ? step_clock() - began : 0);
        return STATUS_OK;
    }
    add_held_up(saving, step_clock() - began);
    saving->took = saving->background.seconds;
    return conclude(saving, status, false);
}

static enum status check(const struct saving *saving, int64_t step)
{
    return saving->check != NULL ? saving->check(saving->check_context, step) : STATUS_OK;
}

enum status saving_settle(struct saving *saving)
{
    return under_way(saving) ? finish(saving) : STATUS_OK;
}

void saving_went_back(struct saving *saving, int64_t step)
{
    saving->saved_step = step;
    saving->step = step;
}

enum status saving_edge(struct saving *saving, const struct progress_state *at, double step_seconds)
{
    count_step(saving, step_seconds);
    TRY(saving_look(saving));
    if (!is_due(saving, at->step) || saving->saved_step == at->step) {
        return STATUS_OK;
    }
    TRY(saving_settle(saving));
    TRY(check(saving, at->step));
    const bool goes_on = at->step < saving->config->run.steps;
    return saving->async && goes_on ? start(saving, at) : save_now(saving, at, false);
}

enum status saving_last(struct saving *saving, const struct progress_state *at)
{
    if (under_way(saving)) {
        const enum status earlier = finish(saving);
        (void)earlier; /* one more try, the last, says how the run ends */
    }
    if (saving->saved_step == at->step) {
        return STATUS_OK;
    }
    TRY(check(saving, at->step));
    return save_now(saving, at, true);
}

void saving_close(struct saving *saving)
{
    char message[MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", status_message());
    if (under_way(saving)) {
        const enum status ignored = finish(saving);
        (void)ignored;
    }
    background_free(&saving->background);
    state_slices_free(&saving->slices);
    const enum status kept = status_lines(STATUS_OK, message);
    (void)kept;
    *saving = (struct saving){0};
}
