#include "trainer/training.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer.h"
#include "trainer/dataset.h"
#include "trainer/fault.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/run_dir.h"
#include "trainer/sample.h"
#include "trainer/schedule.h"
#include "trainer/signals.h"
#include "trainer/state.h"

enum { MAX_PATH = 4096 };

/* One `train`, while it runs. */
struct training {
    struct session *session;
    const struct config *config;
    struct comm *world;
    struct model model;
    struct dataset train, valid;
    struct stepper stepper;
    struct metrics metrics; /* rank 0 */
    struct io_file lock;    /* rank 0 */
    struct progress_state at;
    int64_t saved_step; /* of the last checkpoint known good, -1: none */
    double saved_clock;
    char checkpoints[MAX_PATH];
    double first_loss, last_loss, valid_loss;
    int failed_saves; /* in a row */
};

static bool main_rank(const struct training *t)
{
    return t->world->rank == 0;
}

static enum status open_data(struct training *t)
{
    if (t->config->data.train == NULL) {
        return status_fail(
            STATUS_USAGE,
            "key 'data.train': missing: name a token file (switchyard prepare makes one)");
    }
    TRY(dataset_open(&t->train, t->config, t->config->data.train, t->config->data.shuffle));
    if (t->config->data.valid != NULL) {
        TRY(dataset_open(&t->valid, t->config, t->config->data.valid, false));
    }
    return STATUS_OK;
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
        const enum status status = state_load(&t->model, path, &t->at);
        if (status == STATUS_OK && main_rank(t)) {
            printf("resuming at step %lld from %s\n", (long long)t->at.step, path);
        }
        t->saved_step = t->at.step;
        free(path);
        if (!state_try_older(t->world, status)) {
            return status;
        }
        t->at = (struct progress_state){0};
    }
}

static enum status start_weights(struct training *t)
{
    model_initialize(&t->model);
    TRY(resume(t));
    if (t->at.step == 0 && t->config->checkpoint.init_from != NULL) {
        TRY(state_load_newest(&t->model, t->config->checkpoint.init_from, false));
    }
    if (t->at.step == 0) {
        optimizer_start_average(&t->model);
    }
    return STATUS_OK;
}

static enum status open_metrics(struct training *t)
{
    t->metrics.steps = t->config->run.steps;
    t->metrics.every =
        t->config->log.every_steps > 0 ? t->config->log.every_steps : t->config->run.steps;
    t->metrics.first_step = t->at.step + 1;
    t->metrics.flops_per_token =
        architecture_flops_per_token(&t->model.arch, t->config->train.sequence_length);
    t->metrics.tokens =
        t->config->train.sequence_length *
        (schedule_position(t->config, t->at.position, t->config->run.steps - t->at.step) -
         t->at.position);
    return metrics_open(&t->metrics, t->config->run.dir, t->at.step);
}

static void describe(struct training *t)
{
    const char *ignored = t->config->model.hf_ignored, *assumed = t->config->model.hf_assumed;
    if (ignored != NULL && ignored[0] != '\0') {
        metrics_say(&t->metrics, "%s: ignored keys: %s", t->config->model.hf_config, ignored);
    }
    if (assumed != NULL && assumed[0] != '\0') {
        metrics_say(&t->metrics, "%s: not in it, and as transformers has them: %s",
                    t->config->model.hf_config, assumed);
    }
    const struct mesh *mesh = &t->session->mesh;
    metrics_say(
        &t->metrics,
        "%.1fM parameters (%.1fM active), %d ranks x %d threads, ep %d, dp %d; %.0f MiB per rank; "
        "%lld training samples of %lld tokens",
        (double)t->model.params.total / 1e6, (double)t->model.params.active / 1e6, t->world->size,
        t->session->threads, mesh->ep.size, mesh->dp.size,
        (double)model_bytes(&t->model) / 1048576.0, (long long)t->train.loader.samples,
        (long long)t->config->train.sequence_length);
}

static enum status open_training(struct training *t, bool fresh)
{
    const struct config *config = t->config;
    TRY(stepper_check(config, t->session->mesh.dp.size));
    TRY(comm_agree(t->world, open_data(t), NULL));
    enum status status = main_rank(t) ? run_dir_open(t->session, fresh, &t->lock) : STATUS_OK;
    TRY(comm_agree(t->world, status, NULL));
    run_dir_path(t->session, "checkpoints", t->checkpoints, sizeof t->checkpoints);
    TRY(comm_agree(t->world,
                   model_init(&t->model, config, &t->session->mesh, t->session->device,
                              config->train.micro_batch, config->train.sequence_length, true),
                   NULL));
    TRY(comm_agree(t->world, stepper_init(&t->stepper, &t->model, &t->train.loader), NULL));
    TRY(start_weights(t));
    double peak = device_peak_flops(t->session->device, t->model.act);
    comm_all_reduce(t->world, &peak, 1, DTYPE_F64, REDUCE_SUM);
    t->metrics.peak_flops = peak;
    status = main_rank(t) ? run_dir_describe(t->session) : STATUS_OK;
    status = status == STATUS_OK && main_rank(t) ? open_metrics(t) : status;
    TRY(comm_agree(t->world, status, NULL));
    if (main_rank(t)) {
        describe(t);
    }
    return STATUS_OK;
}

static void close_training(struct training *t)
{
    metrics_close(&t->metrics);
    stepper_free(&t->stepper);
    model_free(&t->model);
    dataset_close(&t->train);
    dataset_close(&t->valid);
    io_unlock(&t->lock);
}

/* A save that fails leaves the run going, warned; the last one, and three in a row, end it. */
static enum status save(struct training *t, bool last)
{
    enum { MOST_FAILURES = 3 };
    if (t->saved_step == t->at.step) {
        return STATUS_OK;
    }
    const enum status status = state_save(&t->model, t->checkpoints, &t->at);
    t->saved_clock = step_clock();
    if (status == STATUS_OK) {
        t->saved_step = t->at.step;
        t->failed_saves = 0;
        return STATUS_OK;
    }
    t->failed_saves++;
    if (last || t->failed_saves == MOST_FAILURES) {
        return status;
    }
    if (main_rank(t)) {
        fprintf(stderr,
                "switchyard: warning: checkpoint of step %lld not saved: %s; training goes on\n",
                (long long)t->at.step, status_message());
    }
    return STATUS_OK;
}

/* A sample of text as training goes: printed and appended to samples.txt. */
static enum status show_sample(struct training *t)
{
    const struct config *config = t->config;
    const int64_t prompt = (int64_t)strlen(config->sample.prompt),
                  room = prompt + 1 + config->sample.tokens;
    int32_t *ids = calloc((size_t)room, sizeof *ids);
    char *text = malloc((size_t)room * 5 + 1);
    char path[MAX_PATH];
    if (ids == NULL || text == NULL) {
        free(ids);
        free(text);
        return status_fail(STATUS_RESOURCE, "out of memory for a sample");
    }
    int64_t count = tokenizer_bytes_encode(ids, config->sample.prompt, prompt);
    if (count == 0) { /* as at the start of a document */
        ids[count++] = TOKENIZER_BYTES_EOS;
    }
    const struct sample_options options = {.temperature = config->sample.temperature,
                                           .top_p = 1,
                                           .seed = config->run.seed,
                                           .eos_id = TOKENIZER_BYTES_EOS,
                                           .context = config->train.sequence_length};
    struct sample_sequence sequence = {ids, count};
    enum status status = sample_tokens(&t->model, &sequence, 1, config->sample.tokens, &options);
    if (status == STATUS_OK && main_rank(t)) {
        tokenizer_bytes_decode(text, ids, sequence.count);
        metrics_say(&t->metrics, "--- sample at step %lld ---\n%s\n---", (long long)t->at.step,
                    text);
        run_dir_path(t->session, "samples.txt", path, sizeof path);
        FILE *out = fopen(path, "a");
        if (out == NULL ||
            fprintf(out, "=== step %lld ===\n%s\n", (long long)t->at.step, text) < 0) {
            status = status_fail(STATUS_IO, "%s: cannot append the sample", path);
        }
        if (out != NULL) {
            fclose(out);
        }
    }
    free(ids);
    free(text);
    return comm_agree(t->world, status, NULL);
}

static bool due(int64_t step, int64_t every, int64_t last)
{
    return every > 0 && (step % every == 0 || step == last);
}

static enum status one_step(struct training *t)
{
    const struct config *config = t->config;
    struct step_result result;
    const int64_t step = t->at.step + 1;
    double valid = NAN;
    int64_t labels = 0;
    TRY(stepper_step(&t->stepper, step, t->at.position, &result));
    t->at = (struct progress_state){.step = step, .position = t->at.position + result.sequences};
    if (config->data.valid != NULL && due(step, config->eval.every_steps, config->run.steps)) {
        TRY(step_evaluate(&t->model, &t->valid.loader, config->eval.batches, &valid, &labels));
        t->valid_loss = valid;
    }
    t->first_loss = step == t->metrics.first_step ? result.loss : t->first_loss;
    t->last_loss = result.loss;
    enum status status = main_rank(t) ? metrics_step(&t->metrics, step, &result, valid,
                                                     t->stepper.expert_load, t->stepper.moe_blocks)
                                      : STATUS_OK;
    TRY(comm_agree(t->world, status, NULL));
    if (due(step, config->sample.every_steps, config->run.steps)) {
        TRY(show_sample(t));
    }
    return STATUS_OK;
}

static bool save_due(struct training *t)
{
    const struct config *config = t->config;
    int32_t late = config->checkpoint.every_minutes > 0 &&
                   step_clock() - t->saved_clock > 60 * config->checkpoint.every_minutes;
    comm_all_reduce(t->world, &late, 1, DTYPE_I32, REDUCE_MAX);
    return late != 0 ||
           (config->checkpoint.every_steps > 0 && t->at.step % config->checkpoint.every_steps == 0);
}

static enum status loop(struct training *t)
{
    t->metrics.started = t->saved_clock = step_clock();
    TRY(fault_arm(t->config->debug.fault));
    while (t->at.step < t->config->run.steps) {
        TRY(one_step(t));
        const int signal = signals_agreed(t->world);
        if (signal != 0) {
            TRY(save(t, true));
            if (main_rank(t)) {
                metrics_say(&t->metrics,
                            "signal %d: saved step %lld in %s; the same command resumes", signal,
                            (long long)t->at.step, t->checkpoints);
            }
            return status_fail(STATUS_PREEMPTED, "%s", "");
        }
        if (save_due(t)) {
            TRY(save(t, false));
        }
    }
    return save(t, true);
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

enum status training_run(struct session *session, bool fresh)
{
    struct training *t = calloc(1, sizeof *t);
    if (t == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    *t = (struct training){.session = session,
                           .config = &session->config,
                           .world = &session->world,
                           .saved_step = -1,
                           .lock = {.fd = -1}};
    signals_install();
    enum status status = open_training(t, fresh);
    if (status == STATUS_OK) {
        status = loop(t);
    }
    if (status == STATUS_OK && main_rank(t)) {
        summary(t);
    }
    close_training(t);
    free(t);
    return status;
}
