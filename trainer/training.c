#include "trainer/training.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/dataset.h"
#include "trainer/deadline.h"
#include "trainer/describe.h"
#include "trainer/fault.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/profile.h"
#include "trainer/replicas.h"
#include "trainer/resume.h"
#include "trainer/rollback.h"
#include "trainer/run_dir.h"
#include "trainer/run_tokenizer.h"
#include "trainer/sample_text.h"
#include "trainer/saving.h"
#include "trainer/schedule.h"
#include "trainer/signals.h"
#include "trainer/sources.h"
#include "trainer/state.h"
#include "trainer/straggler.h"
#include "trainer/trace.h"
#include "trainer/verify.h"
#include "trainer/watchdog.h"

enum { MAX_PATH = 4096 };

/* One `train`, while it runs. */
struct training {
    struct session *session;
    const struct config *config;
    struct comm *world;
    struct model model;
    struct sources train;
    struct dataset valid;
    struct tokenizer tokenizer;         /* of samples; zeroed without */
    char ids_of[STATE_TOKENIZER_BYTES]; /* the tokenizer that checkpoints name */
    struct stepper stepper;
    struct trace trace;        /* of debug.trace */
    struct metrics metrics;    /* rank 0 */
    struct io_file lock;       /* rank 0 */
    struct watchdog *watchdog; /* owned, or NULL */
    double began;              /* step_clock */
    struct deadline deadline;
    struct saving saving;
    struct progress_state at;
    struct guard guard; /* of at.guard */
    struct replicas replicas;
    struct straggler straggler;
    struct profile profile;
    bool resumed_whole;                         /* the run goes on from a checkpoint, `from` */
    bool given_up;                              /* checkpoints of steps given up are still there */
    char checkpoints[MAX_PATH], from[MAX_PATH]; /* from: the checkpoint it goes on from, or "" */
    char resumed[RESUME_NOTE_BYTES];            /* what changed since the checkpoint */
    double first_loss, last_loss, valid_loss;
};

static bool main_rank(const struct training *t)
{
    return t->world->rank == 0;
}

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
    if (alarm && main_rank(t)) {
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
        if (status == STATUS_OK && main_rank(t)) {
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

/* What a run that is not resumed starts from; keeps what a resumed one has. */
static enum status start_anew(struct training *t)
{
    if (t->at.step == 0 && t->config->checkpoint.init_from != NULL) {
        TRY(state_load_newest(&t->model, t->config->checkpoint.init_from, false));
        TRY(run_tokenizer_carry(t->session, t->config->checkpoint.init_from, t->ids_of));
        if (main_rank(t)) {
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
    return start_anew(t);
}

static enum status compare_replicas(void *context, int64_t step)
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
    t->saving.check = compare_replicas;
    t->saving.check_context = t;
    return status;
}

static int64_t tokens_left(const struct training *t)
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
    t->metrics.tokens = tokens_left(t);
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

static enum status open_training(struct training *t, bool fresh)
{
    const struct config *config = t->config;
    TRY(check(t, fresh));
    enum status status = main_rank(t) ? run_dir_open(t->session, fresh, &t->lock) : STATUS_OK;
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
    status = main_rank(t) ? run_dir_describe(t->session, t->at.step, t->from) : STATUS_OK;
    status = status == STATUS_OK && main_rank(t) ? run_tokenizer_keep(t->session, t->train.store)
                                                 : status;
    status = status == STATUS_OK && main_rank(t) ? open_metrics(t) : status;
    TRY(comm_agree(t->world, status, NULL));
    if (main_rank(t)) {
        describe_run(t->session, &t->model, &t->train, &t->saving, t->resumed, &t->metrics);
    }
    return STATUS_OK;
}

static void close_training(struct training *t)
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

/* Rank 0: printed and appended to samples.txt; log.txt has it too. */
static void tell_sample(struct training *t, const char *text)
{
    char path[MAX_PATH];
    metrics_say(&t->metrics, "--- sample at step %lld ---\n%s\n---", (long long)t->at.step, text);
    events_text(&t->metrics.events, "sample", t->at.step, text);
    run_dir_path(t->session, "samples.txt", path, sizeof path);
    if (sample_append(path, t->at.step, text) != STATUS_OK) {
        fprintf(stderr, "switchyard: warning: %s; training goes on\n", status_message());
    }
}

/* A sample of text as training goes. */
static enum status show_sample(struct training *t)
{
    struct byte_list text = {0};
    enum status status = sample_text(&t->model, &t->tokenizer, &text);
    if (status == STATUS_OK && main_rank(t)) {
        tell_sample(t, text.data);
    }
    byte_list_free(&text);
    return comm_agree(t->world, status, NULL);
}

static bool due(int64_t step, int64_t every, int64_t last)
{
    return every > 0 && (step % every == 0 || step == last);
}

/* Back to an older checkpoint, or the start, and on behind the batch of step `trouble`. */
static enum status roll_back(struct training *t, int64_t trouble, int64_t sequences)
{
    const struct progress_state was = t->at;
    bool found = false;
    watchdog_enter(t->watchdog, WATCHDOG_SETUP, trouble);
    TRY(saving_settle(&t->saving));
    t->at = (struct progress_state){0};
    TRY(rollback_load(&t->model, t->checkpoints, trouble, &t->at, &found));
    t->given_up = !rollback_forget(t->world, t->checkpoints, found ? t->at.step : 0, true);
    if (!found) {
        t->at = (struct progress_state){0};
        model_initialize(&t->model);
        TRY(start_anew(t));
    }
    const int64_t back_at = t->at.position;
    rollback_place(&t->at, &was, trouble, sequences);
    saving_went_back(&t->saving, t->at.step);
    t->replicas.equal = t->at.step;
    TRY(comm_agree(t->world, sources_check(&t->train, t->config, t->at.step, t->at.position),
                   NULL));
    sources_state(&t->train, t->at.position, &t->at.data);
    if (main_rank(t)) {
        metrics_say(&t->metrics,
                    "step %lld: %s: back to step %lld, passing over the %lld samples since "
                    "(rollback %lld of the run)",
                    (long long)trouble, t->guard.why, (long long)t->at.step,
                    (long long)(t->at.position - back_at), (long long)t->at.guard.rollbacks);
        metrics_rewind(&t->metrics, t->at.step, tokens_left(t));
    }
    return STATUS_OK;
}

static void tell_skip(struct training *t, int64_t step)
{
    if (main_rank(t)) {
        metrics_say(&t->metrics,
                    "step %lld: %s: its update is left out (%lld in a row, %lld of the run)",
                    (long long)step, t->guard.why, (long long)t->at.guard.skips,
                    (long long)t->at.guard.skipped);
    }
}

/* What is watched behind an update. */
static enum status look_after(struct training *t, const struct step_result *result)
{
    const int64_t step = t->at.step, every = t->config->guard.replicas_every_steps;
    const enum fault_flip flip = fault_flips(t->config->debug.fault, step, t->world->rank);
    if (flip != FAULT_NO_FLIP) {
        replicas_flip(&t->model, flip);
    }
    straggler_step(&t->straggler, result);
    return due(step, every, -1) ? compare_replicas(t, step) : STATUS_OK;
}

static enum status one_step(struct training *t, double *seconds)
{
    const struct config *config = t->config;
    struct step_result result;
    const int64_t step = t->at.step + 1;
    double valid = NAN;
    int64_t labels = 0;
    watchdog_enter(t->watchdog, WATCHDOG_STEP, step);
    TRY(profile_step(&t->profile, step));
    describe_profile(t->session, &t->profile, &t->metrics);
    fault_step(config->debug.fault, step, t->world->rank);
    straggler_begin(&t->straggler);
    TRY(stepper_step(&t->stepper, step, t->at.position, &result));
    *seconds = result.step_ms / 1e3;
    if (result.verdict == GUARD_ROLLBACK) {
        return roll_back(t, step, result.sequences);
    }
    if (result.verdict == GUARD_SKIP) {
        tell_skip(t, step);
    }
    result.phase_ms.save += 1e3 * saving_held_up(&t->saving);
    t->at.step = step;
    t->at.position += result.sequences;
    sources_state(&t->train, t->at.position, &t->at.data);
    TRY(look_after(t, &result));
    if (config->data.valid != NULL && due(step, config->eval.every_steps, config->run.steps)) {
        watchdog_enter(t->watchdog, WATCHDOG_EVALUATE, step);
        TRY(step_evaluate(&t->model, &t->valid.loader, config->eval.batches, &valid, &labels));
        t->valid_loss = valid;
    }
    t->first_loss = step == t->metrics.first_step ? result.loss : t->first_loss;
    t->last_loss = result.loss;
    TRY(comm_agree(t->world, stepper_updated(step, &result), NULL));
    if (main_rank(t)) {
        metrics_step(&t->metrics, step, &result, valid, &t->stepper);
    }
    if (due(step, config->sample.every_steps, config->run.steps)) {
        watchdog_enter(t->watchdog, WATCHDOG_SAMPLE, step);
        TRY(show_sample(t));
    }
    return STATUS_OK;
}

/* A signal, the time limit or run.pause_at, which a step has come to, not a rollback: saves, and
 * STATUS_PREEMPTED. */
static enum status stop_early(struct training *t, bool advanced)
{
    const int signal = signals_agreed(t->world);
    const bool late = deadline_due(&t->deadline, t->world);
    const bool pauses = advanced && t->at.step == t->config->run.pause_at;
    char why[128];
    if ((signal == 0 && !late && !pauses) || t->at.step >= t->config->run.steps) {
        return STATUS_OK; /* after the last step the run is done, whoever wants it to end */
    }
    TRY(saving_last(&t->saving, &t->at));
    if (signal != 0) {
        snprintf(why, sizeof why, "signal %d", signal);
    } else if (pauses) {
        snprintf(why, sizeof why, "run.pause_at");
    } else {
        snprintf(why, sizeof why, "run.time_limit %.64s", t->config->run.time_limit);
    }
    if (main_rank(t)) {
        metrics_say(&t->metrics, "%s: saved step %lld in %s; the same command resumes", why,
                    (long long)t->at.step, t->checkpoints);
    }
    return status_fail(STATUS_PREEMPTED, "%s", "");
}

static enum status loop(struct training *t)
{
    double step_seconds = 0;
    t->metrics.started = step_clock();
    TRY(fault_arm(t->config->debug.fault));
    while (t->at.step < t->config->run.steps) {
        const double began = step_clock();
        const int64_t behind = t->at.step;
        TRY(one_step(t, &step_seconds));
        deadline_step(&t->deadline, step_clock() - began);
        t->given_up = t->given_up && !rollback_forget(t->world, t->checkpoints, t->at.step, false);
        TRY(stop_early(t, t->at.step > behind)); /* a resume would take what was given up */
        const int64_t saves = comm_span_begin(t->world);
        TRY(saving_edge(&t->saving, &t->at, step_seconds));
        comm_span_end(t->world, "step edge: saves", saves);
    }
    return saving_last(&t->saving, &t->at);
}

static void summary(struct training *t)
{
    char loss[64] = "nothing left to do", valid[64] = "";
    if (t->at.step >= t->metrics.first_step) {
        snprintf(loss, sizeof loss, "loss %.4f -> %.4f", t->first_loss, t->last_loss);
    }
    if (t->valid_loss > 0) {
        snprintf(valid, sizeof valid, ", validation loss %.4f", t->valid_loss);
    }
    metrics_say(&t->metrics,
                "done: step %lld, %s%s\n  checkpoints  %s\n  metrics      %s/metrics.jsonl\n"
                "  log          %s/log.txt",
                (long long)t->at.step, loss, valid, t->checkpoints, t->config->run.dir,
                t->config->run.dir);
}

/* Collective. A run that is done, but whose metrics.jsonl is not whole, says so by its status. */
static enum status finish_metrics(struct training *t, enum status status)
{
    const bool done = status == STATUS_OK;
    const enum status written = main_rank(t) ? metrics_finish(&t->metrics, done) : STATUS_OK;
    return done ? comm_agree(t->world, written, NULL) : status_fail(status, "%s", "");
}

/* run.verify: nothing is trained on a layout that computes something else. */
static enum status verify_first(const struct session *session)
{
    struct verify_report *report = calloc(1, sizeof *report);
    enum status status = report != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    status = comm_agree((struct comm *)&session->world, status, NULL);
    status = status == STATUS_OK ? verify_run(session, report) : status;
    if (status == STATUS_OK && session_main_rank(session)) {
        verify_print(stdout, report);
        fflush(stdout);
        status = report->good ? STATUS_OK
                              : status_fail(STATUS_DIFFERENT, "run.verify: this layout does not "
                                                              "compute what one rank does");
    }
    free(report);
    return comm_agree((struct comm *)&session->world, status, NULL);
}

/* However the loop ended, the same on every rank; a message it left is the one that counts. */
static enum status end_profile(struct training *t, enum status status)
{
    char message[4096];
    snprintf(message, sizeof message, "%s", status_message());
    const enum status written = profile_end(&t->profile);
    describe_profile(t->session, &t->profile, &t->metrics);
    return status == STATUS_OK ? written : status_lines(status, message);
}

enum status training_run(struct session *session, bool fresh)
{
    const double began = step_clock();
    signals_install(); /* one that comes while it verifies counts behind the first step */
    if (session->config.run.verify) {
        TRY(verify_first(session));
    }
    struct training *t = calloc(1, sizeof *t);
    if (t == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    *t = (struct training){.session = session,
                           .config = &session->config,
                           .world = &session->world,
                           .began = began,
                           .lock = {.fd = -1}};
    enum status status = open_training(t, fresh);
    if (status == STATUS_OK) {
        status = end_profile(t, loop(t));
    }
    if (status == STATUS_OK && main_rank(t)) {
        summary(t);
    }
    if (status == STATUS_OK || status == STATUS_PREEMPTED) {
        status = finish_metrics(t, status);
    }
    close_training(t);
    free(t);
    return status;
}
