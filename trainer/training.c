#include "trainer/training.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/describe.h"
#include "trainer/fault.h"
#include "trainer/rollback.h"
#include "trainer/run_dir.h"
#include "trainer/sample_text.h"
#include "trainer/signals.h"
#include "trainer/training_parts.h"
#include "trainer/verify.h"

enum { MAX_PATH = TRAINING_PATH_BYTES };

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
    if (status == STATUS_OK && training_main_rank(t)) {
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
        TRY(training_start_anew(t));
    }
    const int64_t back_at = t->at.position;
    rollback_place(&t->at, &was, trouble, sequences);
    saving_went_back(&t->saving, t->at.step);
    t->replicas.equal = t->at.step;
    TRY(comm_agree(t->world, sources_check(&t->train, t->config, t->at.step, t->at.position),
                   NULL));
    sources_state(&t->train, t->at.position, &t->at.data);
    if (training_main_rank(t)) {
        metrics_say(&t->metrics,
                    "step %lld: %s: back to step %lld, passing over the %lld samples since "
                    "(rollback %lld of the run)",
                    (long long)trouble, t->guard.why, (long long)t->at.step,
                    (long long)(t->at.position - back_at), (long long)t->at.guard.rollbacks);
        metrics_rewind(&t->metrics, t->at.step, training_tokens_left(t));
    }
    return STATUS_OK;
}

static void tell_skip(struct training *t, int64_t step)
{
    if (training_main_rank(t)) {
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
    return due(step, every, -1) ? training_compare_replicas(t, step) : STATUS_OK;
}

/* A resume would take what was given up: goes before anything is saved. */
static void forget_given_up(struct training *t)
{
    t->given_up = t->given_up && !rollback_forget(t->world, t->checkpoints, t->at.step, false);
}

/* Saves what is due, unless that was done before the evaluation. A run's last step is saved before
 * its evaluation, too. */
static enum status save_edge(struct training *t, double step_seconds, bool before_evaluation)
{
    if (t->edge_saved) {
        return STATUS_OK;
    }
    const int64_t saves = comm_span_begin(t->world);
    const bool last = before_evaluation && t->at.step == t->config->run.steps;
    TRY(last ? saving_last(&t->saving, &t->at) : saving_edge(&t->saving, &t->at, step_seconds));
    comm_span_end(t->world, "step edge: saves", saves);
    t->edge_saved = before_evaluation;
    return STATUS_OK;
}

/* Whether an evaluation is left (struct step_ask). A save that is under way goes on meanwhile. */
static enum status ask(void *context)
{
    struct training *t = context;
    deadline_step(&t->deadline, step_clock() - t->asked);
    t->asked = step_clock();
    TRY(saving_look(&t->saving));
    const int signal = signals_agreed(t->world);
    const bool late = deadline_due(&t->deadline, t->world);
    return signal == 0 && !late ? STATUS_OK : status_fail(STATUS_PREEMPTED, "%s", "");
}

static bool evaluates(const struct training *t)
{
    return t->config->data.valid != NULL &&
           due(t->at.step, t->config->eval.every_steps, t->config->run.steps);
}

/* t->left: a signal came, or the time limit is near. */
static enum status evaluate(struct training *t, double *valid)
{
    int64_t labels = 0;
    const struct step_ask asking = {.call = ask, .context = t};
    watchdog_enter(t->watchdog, WATCHDOG_EVALUATE, t->at.step);
    t->asked = step_clock();
    const enum status status = step_evaluate(&t->model, &t->valid.loader, t->config->eval.batches,
                                             &asking, valid, &labels);
    t->left = status == STATUS_PREEMPTED;
    t->valid_loss = status == STATUS_OK ? *valid : t->valid_loss;
    *valid = status == STATUS_OK ? *valid : (double)NAN;
    return t->left ? STATUS_OK : status;
}

/* With the save first: an evaluation may be long, and break off. */
static enum status save_and_evaluate(struct training *t, const struct step_result *result,
                                     double *valid)
{
    const double began = step_clock();
    if (training_main_rank(t)) {
        metrics_begin_evaluation(&t->metrics, t->at.step, result, &t->stepper);
    }
    forget_given_up(t);
    TRY(save_edge(t, result->step_ms / 1e3, true));
    TRY(evaluate(t, valid));
    t->evaluated = step_clock() - began;
    return STATUS_OK;
}

static void tell_left(struct training *t)
{
    metrics_say(&t->metrics,
                "step %lld: its evaluation is left, and made first when the run resumes",
                (long long)t->at.step);
}

/* Rank 0. */
static void tell_step(struct training *t, const struct step_result *result, double valid)
{
    metrics_step(&t->metrics, t->at.step, result, valid, &t->stepper);
    if (t->left) {
        tell_left(t);
    } else if (evaluates(t)) {
        metrics_end_evaluation(&t->metrics);
    }
}

/* One that is due, but behind an evaluation that was left. */
static enum status sample(struct training *t)
{
    if (t->left || !due(t->at.step, t->config->sample.every_steps, t->config->run.steps)) {
        return STATUS_OK;
    }
    watchdog_enter(t->watchdog, WATCHDOG_SAMPLE, t->at.step);
    return show_sample(t);
}

static enum status one_step(struct training *t, double *seconds)
{
    const struct config *config = t->config;
    struct step_result result;
    const int64_t step = t->at.step + 1;
    double valid = NAN;
    watchdog_enter(t->watchdog, WATCHDOG_STEP, step);
    t->evaluated = 0;
    t->edge_saved = false;
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
    t->first_loss = step == t->metrics.first_step ? result.loss : t->first_loss;
    t->last_loss = result.loss;
    TRY(comm_agree(t->world, stepper_updated(step, &result), NULL));
    deadline_step(&t->deadline, *seconds); /* already in the first evaluation */
    if (evaluates(t)) {
        TRY(save_and_evaluate(t, &result, &valid));
    }
    if (training_main_rank(t)) {
        tell_step(t, &result, valid);
    }
    return sample(t);
}

/* A signal, the time limit or run.pause_at, which a step has come to, not a rollback: saves, and
 * STATUS_PREEMPTED. */
static enum status stop_early(struct training *t, bool advanced)
{
    const int signal = signals_agreed(t->world);
    const bool late = deadline_due(&t->deadline, t->world);
    const bool pauses = advanced && t->at.step == t->config->run.pause_at;
    char why[128];
    const bool done = t->at.step >= t->config->run.steps && !t->left;
    if ((signal == 0 && !late && !pauses) || done) {
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
    if (training_main_rank(t)) {
        metrics_say(&t->metrics, "%s: saved step %lld in %s; the same command resumes", why,
                    (long long)t->at.step, t->checkpoints);
    }
    return status_fail(STATUS_PREEMPTED, "%s", "");
}

/* The evaluation, and the sample behind it, of the step that the run resumes at. */
static enum status make_up(struct training *t)
{
    double valid = NAN;
    int32_t pending = training_main_rank(t) && t->metrics.pending != NULL;
    comm_broadcast(t->world, &pending, sizeof pending, 0);
    if (pending == 0) {
        return STATUS_OK;
    }
    if (evaluates(t)) {
        TRY(evaluate(t, &valid));
    }
    if (training_main_rank(t)) {
        if (t->left) {
            tell_left(t);
        } else {
            metrics_make_up(&t->metrics, valid);
        }
    }
    TRY(sample(t));
    return stop_early(t, true);
}

static enum status loop(struct training *t)
{
    double step_seconds = 0;
    TRY(fault_arm(t->config->debug.fault));
    TRY(make_up(t));
    t->metrics.started = step_clock();
    while (t->at.step < t->config->run.steps) {
        const double began = step_clock();
        const int64_t behind = t->at.step;
        TRY(one_step(t, &step_seconds));
        deadline_step(&t->deadline, step_clock() - began - t->evaluated);
        forget_given_up(t);
        TRY(stop_early(t, t->at.step > behind));
        TRY(save_edge(t, step_seconds, false));
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
    const enum status written =
        training_main_rank(t) ? metrics_finish(&t->metrics, done) : STATUS_OK;
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
    enum status status = training_open(t, fresh);
    if (status == STATUS_OK) {
        status = end_profile(t, loop(t));
    }
    if (status == STATUS_OK && training_main_rank(t)) {
        summary(t);
    }
    if (status == STATUS_OK || status == STATUS_PREEMPTED) {
        status = finish_metrics(t, status);
    }
    training_close(t);
    free(t);
    return status;
}
