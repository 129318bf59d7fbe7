#define _DEFAULT_SOURCE
#include "trainer/report/history.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/base/io.h"

enum { MAX_PATH = 4096, FIRST_ROOM = 256 };

static void forget(struct history *history)
{
    for (int i = 0; i < history->series_count; i++) {
        free(history->series[i].value);
    }
    free(history->step);
    free(history->load);
    *history = (struct history){.path = history->path};
}

void history_close(struct history *history)
{
    forget(history);
    free(history->path);
    *history = (struct history){0};
}

static enum status no_memory(const struct history *history)
{
    return status_fail(STATUS_RESOURCE, "%s: out of memory for %lld steps", history->path,
                       (long long)history->count);
}

static bool resize(void *pointer, size_t bytes)
{
    void **at = pointer;
    void *grown = realloc(*at, bytes);
    *at = grown != NULL ? grown : *at;
    return grown != NULL;
}

/* Room for one step more. */
static enum status grow(struct history *history)
{
    if (history->count < history->room) {
        return STATUS_OK;
    }
    const int64_t room = history->room > 0 ? 2 * history->room : FIRST_ROOM;
    bool good = resize(&history->step, (size_t)room * sizeof *history->step);
    for (int i = 0; i < history->series_count; i++) {
        good = good && resize(&history->series[i].value, (size_t)room * sizeof(double));
    }
    if (history->blocks > 0) {
        good = good && resize(&history->load, (size_t)(room * history->blocks) * sizeof(float));
    }
    history->room = good ? room : history->room;
    return good ? STATUS_OK : no_memory(history);
}

static struct history_series *find(struct history *history, const char *name)
{
    for (int i = 0; i < history->series_count; i++) {
        if (strcmp(history->series[i].name, name) == 0) {
            return &history->series[i];
        }
    }
    return NULL;
}

/* A number of the step being read; more series than there is room for are left out. */
static enum status put(struct history *history, const char *name, double value)
{
    struct history_series *series = find(history, name);
    if (series == NULL) {
        if (history->series_count == HISTORY_SERIES) {
            return STATUS_OK;
        }
        series = &history->series[history->series_count];
        series->value = malloc((size_t)history->room * sizeof(double));
        if (series->value == NULL) {
            return no_memory(history);
        }
        snprintf(series->name, sizeof series->name, "%s", name);
        for (int64_t i = 0; i < history->count; i++) {
            series->value[i] = (double)NAN;
        }
        history->series_count++;
    }
    series->value[history->count] = value;
    return STATUS_OK;
}

static enum status put_load(struct history *history, json_t *load)
{
    if (history->blocks == 0 && json_array_size(load) > 0) {
        history->blocks = (int64_t)json_array_size(load);
        history->load = calloc((size_t)(history->room * history->blocks), sizeof(float));
        if (history->load == NULL) {
            history->blocks = 0;
            return no_memory(history);
        }
    }
    for (int64_t b = 0; b < history->blocks; b++) {
        history->load[history->count * history->blocks + b] =
            (float)json_number_value(json_array_get(load, (size_t)b));
    }
    return STATUS_OK;
}

static enum status put_all(struct history *history, json_t *object, const char *before)
{
    const char *key;
    json_t *value;
    enum status status = STATUS_OK;
    json_object_foreach(object, key, value)
    {
        char name[HISTORY_NAME_BYTES];
        snprintf(name, sizeof name, "%s%s", before, key);
        if (json_is_number(value) && status == STATUS_OK) {
            status = put(history, name, json_number_value(value));
        } else if (json_is_object(value) && before[0] == '\0' && status == STATUS_OK) {
            char inner[HISTORY_NAME_BYTES];
            snprintf(inner, sizeof inner, "%.46s.", key);
            status = put_all(history, value, inner);
        }
    }
    return status;
}

static enum status add_line(struct history *history, const char *line, size_t bytes)
{
    json_t *object = json_loadb(line, bytes, 0, NULL);
    json_t *step = json_object_get(object, "step");
    if (!json_is_integer(step)) {
        json_decref(object);
        return status_fail(STATUS_DATA, "%s:%lld: not an object with a step", history->path,
                           (long long)history->count + 1);
    }
    enum status status = grow(history);
    if (status == STATUS_OK) {
        history->step[history->count] = json_integer_value(step);
        for (int i = 0; i < history->series_count; i++) {
            history->series[i].value[history->count] = (double)NAN;
        }
        status = put_all(history, object, "");
    }
    status =
        status == STATUS_OK ? put_load(history, json_object_get(object, "expert_load")) : status;
    history->count += status == STATUS_OK;
    json_decref(object);
    return status;
}

/* Lines that end; the rest is still being written. */
static enum status add_lines(struct history *history, const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        if (end == NULL) {
            break;
        }
        const size_t length = (size_t)(end - text) - at;
        TRY(add_line(history, text + at, length));
        at += length + 1;
        history->offset += (int64_t)length + 1;
    }
    return STATUS_OK;
}

static enum status read_new(struct history *history, struct io_file *file)
{
    int64_t bytes = 0;
    struct stat about = {0};
    TRY(io_size(file, &bytes));
    if (fstat(file->fd, &about) == 0 &&
        (bytes < history->offset || (uint64_t)about.st_ino != history->inode)) {
        forget(history);
        history->inode = (uint64_t)about.st_ino;
    }
    const size_t count = (size_t)(bytes - history->offset);
    char *text = malloc(count + 1);
    if (text == NULL) {
        return no_memory(history);
    }
    enum status status = io_pread(file, text, count, history->offset);
    status = status == STATUS_OK ? add_lines(history, text, count) : status;
    free(text);
    return status;
}

enum status history_follow(struct history *history)
{
    struct io_file file;
    TRY(io_open_read(&file, history->path));
    const enum status status = read_new(history, &file);
    const enum status closed = io_close(&file);
    return status != STATUS_OK ? status : closed;
}

enum status history_open(struct history *history, const char *run_dir)
{
    char path[MAX_PATH];
    *history = (struct history){0};
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    history->path = strdup(path);
    if (history->path == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory", path);
    }
    if (!io_exists(path)) {
        return status_fail(STATUS_IO,
                           "%s: no such file: name the directory of a run that has begun", path);
    }
    return history_follow(history);
}

const double *history_values(const struct history *history, const char *name)
{
    struct history_series *series = find((struct history *)history, name);
    return series != NULL ? series->value : NULL;
}

double history_last(const struct history *history, const char *name)
{
    const double *value = history_values(history, name);
    for (int64_t i = history->count - 1; value != NULL && i >= 0; i--) {
        if (!isnan(value[i])) {
            return value[i];
        }
    }
    return (double)NAN;
}
