#define _DEFAULT_SOURCE
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/io.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/report/history.h"
#include "trainer/run_dir.h"
#include "trainer/training.h"
#include "trainer/version.h"

enum { MAX_PATH = 4096 };

/* What of a record decides the bits, and how it is now. */
static enum status check_same(const struct session *session, const char *path)
{
    static const size_t most_bytes = (size_t)1 << 24;
    char *text = NULL;
    size_t bytes = 0;
    TRY(io_read_file(path, &text, &bytes, most_bytes));
    json_t *record = json_loadb(text, bytes, 0, NULL), *start = NULL;
    free(text);
    const int64_t ranks = json_integer_value(json_object_get(record, "ranks"));
    const char *commit = json_string_value(json_object_get(record, "commit")),
               *cpu = json_string_value(json_object_get(record, "cpu"));
    enum status status = STATUS_OK;
    size_t i;
    if (ranks < 1) {
        status = status_fail(STATUS_DATA, "%s: not the record of a run", path);
    }
    json_array_foreach(json_object_get(record, "starts"), i, start)
    {
        const int64_t then = json_integer_value(json_object_get(start, "ranks"));
        if (then != session->world.size && status == STATUS_OK) {
            status = status_fail(STATUS_USAGE,
                                 "%s: ran on %lld ranks, there are %d now: mpirun -np %lld", path,
                                 (long long)then, session->world.size, (long long)then);
        }
    }
    if (status == STATUS_OK && commit != NULL && strcmp(commit, version_commit()) != 0) {
        fprintf(stderr, "switchyard: warning: %s: made by version %s, this is %s\n", path, commit,
                version_commit());
    }
    if (status == STATUS_OK && cpu != NULL && strcmp(cpu, device_info(session->device)->cpu) != 0) {
        fprintf(stderr, "switchyard: warning: %s: ran on %s, this is %s: other bits are likely\n",
                path, cpu, device_info(session->device)->cpu);
    }
    json_decref(record);
    return status;
}

/* A run that never got to a step has nothing to be compared with. */
static enum status check_steps(const char *old_dir)
{
    struct history old;
    enum status status = history_open(&old, old_dir);
    if (status == STATUS_OK && old.count == 0) {
        status =
            status_fail(STATUS_DATA, "%s: no steps in its metrics.jsonl to compare with", old_dir);
    }
    history_close(&old);
    return status;
}

/* Step by step, bit by bit. */
static enum status compare(const char *old_dir, const char *new_dir)
{
    struct history old, new;
    enum status status = history_open(&old, old_dir), opened = history_open(&new, new_dir);
    status = status == STATUS_OK ? opened : status;
    const double *a = history_values(&old, "loss"), *b = history_values(&new, "loss"),
                 *g = history_values(&old, "grad_norm"), *h = history_values(&new, "grad_norm");
    const int64_t count = old.count < new.count ? old.count : new.count;
    if (status == STATUS_OK && (a == NULL || b == NULL || g == NULL || h == NULL)) {
        status = status_fail(STATUS_DATA, "%s: no losses to compare", old_dir);
    }
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 || memcmp(&g[i], &h[i], sizeof *g) != 0) {
            printf("step %lld differs: loss %.17g and %.17g, gradient norm %.17g and %.17g\n",
                   (long long)old.step[i], a[i], b[i], g[i], h[i]);
            status = status_fail(STATUS_DIFFERENT, "%s", "");
        }
    }
    if (status == STATUS_OK) {
        printf("%lld steps, bit for bit the same as %s\n", (long long)count, old_dir);
    }
    history_close(&old);
    history_close(&new);
    return status;
}

/* DIR of DIR/run.json, or of DIR itself. */
static void folder_of(const char *word, char out[MAX_PATH])
{
    const size_t length = strlen(word);
    const bool record = length >= 8 && strcmp(word + length - 8, "run.json") == 0;
    snprintf(out, MAX_PATH, "%.*s", (int)(record ? length - 8 : length), word);
    while (strlen(out) > 1 && out[strlen(out) - 1] == '/') {
        out[strlen(out) - 1] = '\0';
    }
    if (out[0] == '\0') {
        snprintf(out, MAX_PATH, ".");
    }
}

static enum status rerun(struct session *session, const char *old_dir, const char *record)
{
    enum status status = STATUS_OK;
    if (session_main_rank(session)) {
        status = check_same(session, record);
        status = status == STATUS_OK ? check_steps(old_dir) : status;
    }
    TRY(comm_agree(&session->world, status, NULL));
    if (io_exists(session->config.run.dir)) {
        return status_fail(STATUS_USAGE, "%s: is there already: --dir names another",
                           session->config.run.dir);
    }
    TRY(training_run(session, false));
    return comm_agree(
        &session->world,
        session_main_rank(session) ? compare(old_dir, session->config.run.dir) : STATUS_OK, NULL);
}

enum status command_rerun(int argc, char **argv)
{
    struct option_result options;
    struct session session;
    const char *dir = NULL;
    char folder[MAX_PATH], record[MAX_PATH + 16], override[MAX_PATH + 32], *overrides[2];
    const struct option_spec specs[] = {
        {"--dir", OPTION_TEXT, &dir, "NEW_DIR",
         "where the repetition runs (default: RUN_DIR-rerun)"},
        {0},
    };
    TRY(options_parse(&options, argc, argv, specs, "rerun RUN_DIR/run.json [--dir NEW_DIR]",
                      "Repeats a run from its first step with its config, under an mpirun of as "
                      "many ranks, and compares\nloss and gradient norm of every step bit by bit. "
                      "Exit code 1 when one differs.",
                      1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    folder_of(options.words[0], folder);
    snprintf(record, sizeof record, "%s/run.json", folder);
    if (dir != NULL) {
        snprintf(override, sizeof override, "run.dir=%.4000s", dir);
    } else {
        snprintf(override, sizeof override, "run.dir=%.4000s-rerun", folder);
    }
    overrides[0] = override;
    overrides[1] = "run.pause_at=0";
    enum status status = session_open(&session, SESSION_TRAIN, folder, overrides, 2);
    if (status == STATUS_OK) {
        status = rerun(&session, folder, record);
    }
    return session_close(&session, status);
}
