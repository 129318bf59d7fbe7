#include "trainer/training_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/describe.h"
#include "trainer/fault.h"
#include "trainer/optimizer.h"
#include "trainer/run_dir.h"
#include "trainer/run_tokenizer.h"
#include "trainer/schedule.h"
#include "trainer/state.h"

enum { MAX_PATH = TRAINING_PATH_BYTES };

static enum status open_data(struct training *t)
{
    TRY(sources_open(&t->train, t->config, t->world));
    if (t->config->data.valid != NULL) {
        TRY(dataset_open(&t->valid, t->config, t->config->data.valid, false, t->world));
        TRY(token_store_match(t->train.store, &t->valid.store));
    }
    if (t->config->sample.every_steps == 0) {
        return STATUS_OK;
    }
    const enum status status =
        run_tokenizer_of_data(&t->tokenizer, t->train.store, t->config->model.vocab_size);
    return status != STATUS_USAGE
               ? status
               : status_fail(STATUS_USAGE,
                             "sample.every_steps: samples are text and need data of a tokenizer: "
                             "%s: set it to 0",
                             status_message());
}

/* What the checkpoint's settings say is advice: where it can't be read, a note says so, and the
 * data goes on where a run with the settings of now would be. */
static enum status compare_settings(struct training *t, const char *path)
{
    const struct progress_state saved = t->at;
    bool alarm = false;
    const enum status status = comm_agree(
        t->world, resume_settings(path, t->config, &t->train, &t->at, t->resumed, &alarm), NULL);
    if (status != STATUS_OK) {
        t->at = saved;
        t->at.data = t->train.origin;
        snprintf(t->resumed, sizeof t->resumed, "cannot compare settings with those saved: %s",
                 status_message());
    }
    if (alarm && training_main_rank(t)) {
        fprintf(stderr, "switchyard: warning: %s\n", t->resumed);
    }
    return comm_agree(t->world, sources_start(&t->train, t->config, &t->at.data), NULL);
}

/* The newest checkpoint that loads; damaged ones are passed over with a warning, each rank alike.
 */
static enum status resume(struct training *t)
{
    for (int64_t step = INT64_MAX;;) {
        char *path = NULL;
        TRY(state_newest(t->world, t->checkpoints, step, &path, &step));
        if (path == NULL) {
            return STATUS_OK;
        }
        enum status status = state_load(&t->model, path, &t->at);
        if (status == STATUS_OK) {
            status = run_tokenizer_match(t->session, path, t->train.store);
        }
        if (status == STATUS_OK) {
            status = run_tokenizer_carry(t->session, path, t->ids_of);
        }
        if (status == STATUS_OK && training_main_rank(t)) {
            printf("resuming at step %lld from %s\n", (long long)t->at.step, path);
        }
        if (status == STATUS_OK) {
            t->resumed_whole = true;
            snprintf(t->from, sizeof t->from, "%s", path);
            watchdog_saved(t->watchdog, t->at.step);
            const enum status compared = compare_settings(t, path);
            free(path);
            return compared;
        }
        free(path);
        if (!state_try_older(t->world, status)) {
            return status;
        }
        /* part of it may have been read */
        model_initialize(&t->model);
        t->at = (struct progress_state){0};
    }
}

/* The same shapes may be meant with other maths: what the weights were made with is told. */
static void tell_differences(const char *from, const struct config *to)
{
    struct config *saved = malloc(sizeof *saved);
    char list[2048] = "";
    if (saved == NULL) {
        return; /* a note less */
    }
    config_init(saved);
    saved->stored = true;
    if (session_read_config(saved, from, NULL, 0) == STATUS_OK) {
        config_differences(saved, to, "model.", list, sizeof list);
    }
    if (list[0] != '\0') {
        printf("weights from %s; other than there: %s\n", from, list);
    }
    config_free(saved);
    free(saved);
}

enum status training_start_anew(struct training *t)
{
    if (t->at.step == 0 && t->config->checkpoint.init_from != NULL) {
        TRY(state_load_newest(&t->model, t->config->checkpoint.init_from, false));
        TRY(run_tokenizer_carry(t->session, t->config->checkpoint.init_from, t->ids_of));
        if (training_main_rank(t)) {
            tell_differences(t->config->checkpoint.init_from, t->config);
        }
    }
    if (t->at.step == 0) {
        optimizer_start_average(&t->model);
    }
    return STATUS_OK;
}

static enum status start_weights(struct training *t)
{
    model_initialize(&t->model);
    run_tokenizer_describe(t->train.store, t->ids_of);
    TRY(resume(t));
    t->guard = (struct guard){.config = t->config, .state = &t->at.guard};
    t->stepper.guard = &t->guard;
    t->replicas = (struct replicas){.model = &t->model, .equal = t->at.step};
    return training_start_anew(t);
}

enum status training_compare_replicas(void *context, int64_t step)
{
    struct training *t = context;
    return t->config->guard.replicas_every_steps > 0 && t->replicas.equal < step
               ? replicas_check(&t->replicas, step)
               : STATUS_OK;
}

/* Local. */
static enum status open_saving(struct training *t)
{
    t->stepper.hold = saving_hold;
    t->stepper.hold_context = &t->saving;
    const enum status status = saving_init(&t->saving, &t->model, &t->metrics, t->checkpoints,
                                           t->ids_of, &t->at, t->resumed_whole);
    t->saving.watchdog = t->watchdog;
    t->saving.deadline = &t->deadline;
    t->saving.check = training_compare_replicas;
    t->saving.check_context = t;
    return status;
}

int64_t training_tokens_left(const struct training *t)
{
    const int64_t steps = t->config->run.steps - t->at.step;
    return t->config->train.sequence_length *
           (schedule_position(t->config, t->at.position, steps) - t->at.position);
}

static enum status open_metrics(struct training *t)
{
    t->metrics.device = t->session->device;
    t->metrics.tensorboard = t->config->log.tensorboard;
    t->metrics.steps = t->config->run.steps;
    t->metrics.every =
        t->config->log.every_steps > 0 ? t->config->log.every_steps : t->config->run.steps;
    t->metrics.first_step = t->at.step + 1;
    t->metrics.flops_per_token =
        architecture_flops_per_token(&t->model.whole, t->config->train.sequence_length);
    t->metrics.tokens = training_tokens_left(t);
    return metrics_open(&t->metrics, t->config->run.dir, t->at.step);
}

static bool has_checkpoints(const struct training *t)
{
    char path[MAX_PATH];
    run_dir_path(t->session, "checkpoints", path, sizeof path);
    return io_exists(path);
}

/* Whether the run starts from checkpoint.init_from. */
static bool starts_anew(const struct training *t, bool fresh)
{
    return t->config->checkpoint.init_from != NULL && (fresh || !has_checkpoints(t));
}

/* Whatever config and data can be refused for, before a folder is made or an old run set aside. */
static enum status check(struct training *t, bool fresh)
{
    const struct config *config = t->config;
    TRY(stepper_check(config, t->session->mesh.dp.size));
    TRY(comm_agree(t->world, stages_check(config), NULL));
    TRY(fault_check(config->debug.fault, mesh_last_stage(&t->session->mesh)));
    TRY(deadline_init(&t->deadline, config->run.time_limit));
    t->deadline.started = t->began;
    TRY(comm_agree(t->world, optimizer_check(config), NULL));
    TRY(comm_agree(t->world, open_data(t), NULL));
    if (fresh || !has_checkpoints(t)) {
        TRY(comm_agree(t->world, sources_check(&t->train, config, 0, 0), NULL));
    }
    return starts_anew(t, fresh) ? state_check_start(t->world, config->checkpoint.init_from,
                                                     fresh ? config->run.dir : NULL)
                                 : STATUS_OK;
}

enum status training_open(struct training *t, bool fresh)
{
    const struct config *config = t->config;
    TRY(check(t, fresh));
    enum status status =
        training_main_rank(t) ? run_dir_open(t->session, fresh, &t->lock) : STATUS_OK;
    TRY(comm_agree(t->world, status, NULL));
    TRY(watchdog_start(&t->watchdog, t->session));
    run_dir_path(t->session, "checkpoints", t->checkpoints, sizeof t->checkpoints);
    TRY(comm_agree(t->world,
                   model_init(&t->model, config, &t->session->mesh, t->session->device,
                              config->train.micro_batch, config->train.sequence_length, true),
                   NULL));
    TRY(comm_agree(t->world, stepper_init(&t->stepper, &t->model, &t->train.mixture), NULL));
    TRY(start_weights(t));
    if (config->debug.trace != NULL) {
        TRY(trace_open(&t->trace, &t->model, t->at.step));
        t->stepper.trace = &t->trace;
    }
    TRY(comm_agree(t->world, open_saving(t), NULL));
    TRY(comm_agree(t->world, sources_check(&t->train, config, t->at.step, t->at.position), NULL));
    double peak = device_peak_flops(t->session->device, t->model.act);
    comm_all_reduce(t->world, &peak, 1, DTYPE_F64, REDUCE_SUM);
    t->metrics.peak_flops = peak;
    TRY(straggler_init(&t->straggler, &t->stepper, t->session->threads, &t->metrics));
    TRY(profile_open(&t->profile, &t->session->mesh, config));
    watchdog_before_end(t->watchdog, profile_alone, &t->profile);
    status = training_main_rank(t) ? run_dir_describe(t->session, t->at.step, t->from) : STATUS_OK;
    status = status == STATUS_OK && training_main_rank(t)
                 ? run_tokenizer_keep(t->session, t->train.store)
                 : status;
    status = status == STATUS_OK && training_main_rank(t) ? open_metrics(t) : status;
    TRY(comm_agree(t->world, status, NULL));
    if (training_main_rank(t)) {
        describe_run(t->session, &t->model, &t->train, &t->saving, t->resumed, &t->metrics);
    }
    return STATUS_OK;
}

void training_close(struct training *t)
{
    saving_close(&t->saving);
    watchdog_stop(t->watchdog);
    profile_close(&t->profile);
    straggler_free(&t->straggler);
    metrics_close(&t->metrics);
    trace_close(&t->trace);
    stepper_free(&t->stepper);
    model_free(&t->model);
    tokenizer_close(&t->tokenizer);
    sources_close(&t->train);
    dataset_close(&t->valid);
    io_unlock(&t->lock);
}
