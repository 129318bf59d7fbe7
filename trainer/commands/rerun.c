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
#include "trainer/resume.h"
#include "trainer/run_dir.h"
#include "trainer/training.h"
#include "trainer/version.h"

enum { MAX_PATH = 4096 };

/* What of a record decides the bits, and how it is now; of starts behind step `until` (0: of all)
 * no step is repeated. */
static enum status check_same(const struct session *session, const char *path, int64_t until)
{
    static const size_t most_bytes = (size_t)1 << 24;
    char *text = NULL;
    size_t bytes = 0;
    TRY(io_read_file(path, &text, &bytes, most_bytes));
    json_t *record = json_loadb(text, bytes, 0, NULL), *start = NULL;
    free(text);
    const int64_t ranks = json_integer_value(json_object_get(record, "ranks"));
    int64_t other = 0;
    const char *commit = json_string_value(json_object_get(record, "commit")),
               *cpu = json_string_value(json_object_get(record, "cpu"));
    enum status status = STATUS_OK;
    size_t i;
    if (ranks < 1) {
        status = status_fail(STATUS_DATA, "%s: not the record of a run", path);
    }
    json_array_foreach(json_object_get(record, "starts"), i, start)
    {
        const int64_t then = json_integer_value(json_object_get(start, "ranks")),
                      step = json_integer_value(json_object_get(start, "step"));
        const bool counts = until == 0 || step < until;
        other = step == 0 ? 0 : other; /* it began again */
        other = counts && other == 0 && then != session->world.size ? then : other;
    }
    if (status == STATUS_OK && other > 0) {
        status =
            status_fail(STATUS_USAGE, "%s: ran on %lld ranks, there are %d now: mpirun -np %lld",
                        path, (long long)other, session->world.size, (long long)other);
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

/* Step by step, bit by bit; of a repetition of `until` steps (0: all) that was stopped, nothing. */
static enum status compare(const char *old_dir, const char *new_dir, int64_t until)
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
    if (status == STATUS_OK && new.count < until) {
        status = status_fail(STATUS_PREEMPTED, "%s", "");
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

/* The first step behind which settings were changed, of the run as it began last, and which; 0:
 * none. What is wrong with the record is told later. */
static int64_t first_change(const char *record, char changed[RESUME_NOTE_BYTES])
{
    json_t *json = json_load_file(record, 0, NULL), *start = NULL;
    int64_t first = 0;
    size_t i;
    json_array_foreach(json_object_get(json, "starts"), i, start)
    {
        const int64_t step = json_integer_value(json_object_get(start, "step"));
        const char *list = json_string_value(json_object_get(start, "changed"));
        first = step == 0 ? 0 : first;
        if (list != NULL && (first == 0 || step < first)) {
            first = step;
            snprintf(changed, RESUME_NOTE_BYTES, "%s", list);
        }
    }
    json_decref(json);
    return first;
}

static enum status rerun(struct session *session, const char *old_dir, const char *record,
                         int64_t until)
{
    enum status status = STATUS_OK;
    if (session_main_rank(session)) {
        status = check_same(session, record, until);
        status = status == STATUS_OK ? check_steps(old_dir) : status;
    }
    TRY(comm_agree(&session->world, status, NULL));
    if (io_exists(session->config.run.dir)) {
        return status_fail(STATUS_USAGE, "%s: is there already: --dir names another",
                           session->config.run.dir);
    }
    status = training_run(session, false);
    if (status != STATUS_PREEMPTED || until == 0) {
        TRY(status);
    }
    status =
        session_main_rank(session) ? compare(old_dir, session->config.run.dir, until) : STATUS_OK;
    return comm_agree(&session->world, status, NULL);
}

enum status command_rerun(int argc, char **argv)
{
    struct option_result options;
    struct session session;
    const char *dir = NULL;
    char folder[MAX_PATH], record[MAX_PATH + 16], override[MAX_PATH + 32], pause[64],
        config[MAX_PATH + RUN_DIR_NAME_BYTES], name[RUN_DIR_NAME_BYTES], changed[RESUME_NOTE_BYTES],
        *overrides[] = {override, pause};
    const struct option_spec specs[] = {
        {"--dir", OPTION_TEXT, &dir, "NEW_DIR",
         "where the repetition runs (default: RUN_DIR-rerun)"},
        {0},
    };
    TRY(options_parse(
        &options, argc, argv, specs, "rerun RUN_DIR/run.json [--dir NEW_DIR]",
        "Repeats a run from its first step with its config, under an mpirun of as "
        "many ranks, and compares\nloss and gradient norm of every step bit by bit. "
        "Exit code 1 when one differs.\nOf a run that went on with other settings the "
        "steps before that.",
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
    const int64_t until = first_change(record, changed);
    snprintf(config, sizeof config, "%s", folder);
    if (until > 0) {
        run_dir_earlier(until, name);
        snprintf(config, sizeof config, "%s/%s", folder, name);
    }
    snprintf(pause, sizeof pause, "run.pause_at=%lld", (long long)until);
    enum status status = session_open(&session, SESSION_TRAIN, config, overrides, 2);
    if (status == STATUS_OK && until > 0 && session_main_rank(&session)) {
        printf("%s: settings changed behind step %lld: %s: the steps up to there are repeated\n",
               folder, (long long)until, changed);
    }
    if (status == STATUS_OK) {
        status = rerun(&session, folder, record, until);
    }
    return session_close(&session, status);
}
