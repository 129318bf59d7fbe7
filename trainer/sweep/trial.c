#define _POSIX_C_SOURCE 200809L
#include "trainer/sweep/trial.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/base/io.h"
#include "trainer/report/history.h"

enum { MAX_PATH = 4096 };
static const size_t MOST_BYTES = (size_t)1 << 20, MOST_LOG = (size_t)1 << 30;

static const char *const names[TRIAL_STATES] = {"waiting", "running", "paused",
                                                "done",    "failed",  "stopped"};

const char *trial_state_name(int state)
{
    return names[state];
}

void trial_path(const struct sweep_plan *plan, int64_t index, const char *suffix, char *out,
                size_t bytes)
{
    snprintf(out, bytes, "%s/%04lld%s", plan->dir, (long long)index, suffix);
}

void trial_close(struct sweep_trial *trial)
{
    sweep_trial_values_free(&trial->values);
}

/* --- The record --- */

static json_t *number_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

enum status trial_keep(const struct sweep_trial *trial, const struct sweep_plan *plan)
{
    char path[MAX_PATH];
    json_t *values = json_array(), *rungs = json_array();
    for (int i = 0; i < trial->values.count; i++) {
        json_array_append_new(values, json_string(trial->values.text[i]));
    }
    for (int i = 0; i < trial->rungs; i++) {
        json_array_append_new(rungs, number_or_null(trial->rung_value[i]));
    }
    json_t *record =
        json_pack("{s:I, s:s, s:o, s:o, s:o, s:I, s:i, s:s}", "trial", (json_int_t)trial->index,
                  "state", names[trial->state], "values", values, "rungs", rungs, plan->metric,
                  number_or_null(trial->value), "step", (json_int_t)trial->step, "exit",
                  trial->exit_code, "why", trial->why);
    char *text = record != NULL ? json_dumps(record, JSON_INDENT(1)) : NULL;
    json_decref(record);
    trial_path(plan, trial->index, ".json", path, sizeof path);
    const enum status status = text != NULL
                                   ? io_write_file(path, text, strlen(text))
                                   : status_fail(STATUS_INTERNAL, "%s: a value is not UTF-8", path);
    free(text);
    return status;
}

static bool same_values(const struct sweep_trial *trial, json_t *values)
{
    bool same = json_array_size(values) == (size_t)trial->values.count;
    for (int i = 0; i < trial->values.count && same; i++) {
        const char *text = json_string_value(json_array_get(values, (size_t)i));
        same = text != NULL && strcmp(text, trial->values.text[i]) == 0;
    }
    return same;
}

static enum status take_record(struct sweep_trial *trial, const struct sweep_plan *plan,
                               json_t *record, const char *path)
{
    const char *state = json_string_value(json_object_get(record, "state")),
               *why = json_string_value(json_object_get(record, "why"));
    json_t *rungs = json_object_get(record, "rungs"),
           *value = json_object_get(record, plan->metric);
    if (state == NULL) {
        return status_fail(STATUS_DATA, "%s: not the record of a trial: remove it", path);
    }
    if (!same_values(trial, json_object_get(record, "values"))) {
        return status_fail(STATUS_USAGE,
                           "%s: made from another sweep file (other values): give the sweep "
                           "another dir",
                           path);
    }
    for (int s = 0; s < TRIAL_STATES; s++) {
        trial->state = strcmp(names[s], state) == 0 ? s : trial->state;
    }
    trial->rungs = (int)json_array_size(rungs);
    trial->rungs = trial->rungs > plan->rungs ? plan->rungs : trial->rungs;
    for (int i = 0; i < trial->rungs; i++) {
        json_t *at = json_array_get(rungs, (size_t)i);
        trial->rung_value[i] = json_is_number(at) ? json_number_value(at) : (double)NAN;
    }
    /* a record that ends half: what its metrics say counts */
    trial->state = trial->state == TRIAL_PAUSED && trial->rungs == 0 ? TRIAL_RUNNING : trial->state;
    trial->value = json_is_number(value) ? json_number_value(value) : (double)NAN;
    trial->step = json_integer_value(json_object_get(record, "step"));
    trial->exit_code = (int)json_integer_value(json_object_get(record, "exit"));
    snprintf(trial->why, sizeof trial->why, "%.250s", why != NULL ? why : "");
    return STATUS_OK;
}

enum status trial_open(struct sweep_trial *trial, const struct sweep_plan *plan, int64_t index)
{
    char path[MAX_PATH], *text = NULL;
    size_t bytes = 0;
    *trial = (struct sweep_trial){.index = index, .value = (double)NAN};
    TRY(sweep_plan_trial(plan, index, &trial->values));
    trial_path(plan, index, ".json", path, sizeof path);
    if (!io_exists(path)) {
        return STATUS_OK;
    }
    TRY(io_read_file(path, &text, &bytes, MOST_BYTES));
    json_t *record = json_loadb(text, bytes, 0, NULL);
    free(text);
    const enum status status = take_record(trial, plan, record, path);
    if (status == STATUS_OK && json_object_get(record, plan->metric) == NULL) {
        trial_look(trial, plan, 0); /* the sweep file names another metric now */
    }
    json_decref(record);
    return status;
}

/* --- What it has done --- */

uint64_t trial_record(const struct sweep_trial *trial, const struct sweep_plan *plan)
{
    char path[MAX_PATH];
    struct stat about;
    trial_path(plan, trial->index, "/run.json", path, sizeof path);
    /* written beside and renamed: another file each time */
    return stat(path, &about) == 0 ? (uint64_t)about.st_ino : 0;
}

/* The last validation up to `count` steps, or the mean loss of the last tenth of them. */
static double metric_of(const struct history *history, const char *metric, int64_t count)
{
    const double *value = history_values(history, metric);
    const bool last = strcmp(metric, "valid_loss") == 0;
    const int64_t tenth = count >= 10 ? count / 10 : 1;
    double sum = 0;
    for (int64_t i = count - 1; value != NULL && i >= 0 && last; i--) {
        if (!isnan(value[i])) {
            return value[i];
        }
    }
    for (int64_t i = count - tenth; value != NULL && i >= 0 && i < count && !last; i++) {
        sum += value[i];
    }
    return value != NULL && !last && count > 0 ? sum / (double)tenth : (double)NAN;
}

/* The first step that is not done yet, for its evaluation was left (trainer/metrics.h). */
static int64_t pending_step(const struct sweep_trial *trial, const struct sweep_plan *plan)
{
    static const char begin[] = "{\"step\":";
    char path[MAX_PATH], *text = NULL;
    size_t bytes = 0;
    trial_path(plan, trial->index, "/metrics.pending", path, sizeof path);
    const bool found = io_exists(path) &&
                       io_read_file(path, &text, &bytes, MOST_BYTES) == STATUS_OK &&
                       strncmp(text, begin, sizeof begin - 1) == 0;
    const int64_t step = found ? strtoll(text + sizeof begin - 1, NULL, 10) : INT64_MAX;
    free(text);
    return step;
}

void trial_look(struct sweep_trial *trial, const struct sweep_plan *plan, int64_t limit)
{
    char dir[MAX_PATH];
    struct history history;
    trial_path(plan, trial->index, "", dir, sizeof dir);
    trial->step = 0;
    trial->value = (double)NAN;
    if (history_open(&history, dir) == STATUS_OK && history.count > 0) {
        const int64_t done = pending_step(trial, plan) - 1;
        const int64_t last = limit > 0 && limit < done ? limit : done;
        int64_t count = history.count;
        while (count > 0 && history.step[count - 1] > last) {
            count--;
        }
        trial->step = count > 0 ? history.step[count - 1] : 0;
        trial->value = metric_of(&history, plan->metric, count);
    }
    history_close(&history);
}

/* Of a log without a line of our program: what mpirun frames with dashes, up to a blank line; else
 * the last line. */
static void launcher_words(const char *text, char *out, size_t bytes)
{
    static const char frame[] = "-----";
    const char *from = NULL, *end = NULL;
    for (const char *line = text; *line != '\0' && end == NULL;) {
        const size_t length = strcspn(line, "\n");
        const bool blank = strspn(line, " \t\r") >= length;
        if (strncmp(line, frame, sizeof frame - 1) == 0) {
            from = line + length + (line[length] == '\n');
            end = strstr(from, "\n\n");
            end = end != NULL ? end : from + strlen(from);
        } else if (!blank) {
            from = line;
        }
        line += length + (line[length] == '\n');
    }
    if (from != NULL) {
        const size_t length = end != NULL ? (size_t)(end - from) : strcspn(from, "\n");
        snprintf(out, bytes, "%.*s", (int)(length < bytes ? length : bytes), from);
    }
    for (char *c = out; (c = strchr(c, '\n')) != NULL;) {
        *c = ' ';
    }
}

void trial_read_why(struct sweep_trial *trial, const struct sweep_plan *plan)
{
    char path[MAX_PATH], *text = NULL, *line = NULL;
    size_t bytes = 0;
    trial_path(plan, trial->index, ".log", path, sizeof path);
    trial->why[0] = '\0';
    if (io_read_file(path, &text, &bytes, MOST_LOG) != STATUS_OK) {
        return;
    }
    char *own = text + ((int64_t)bytes >= trial->log_before ? trial->log_before : 0);
    for (char *at = own; (at = strstr(at, "switchyard: ")) != NULL; at++) {
        line = at; /* the last that our program printed, rather than mpirun */
    }
    if (line != NULL) {
        snprintf(trial->why, sizeof trial->why, "%.*s", (int)strcspn(line + 12, "\n"), line + 12);
    } else if (trial->exit_code > 128) {
        snprintf(trial->why, sizeof trial->why, "signal %d (%s), and no word of why",
                 trial->exit_code - 128, strsignal(trial->exit_code - 128));
    } else {
        launcher_words(own, trial->why, sizeof trial->why);
    }
    status_clean(trial->why);
    free(text);
}
