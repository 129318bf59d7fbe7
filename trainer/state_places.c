#define _XOPEN_SOURCE 700 /* realpath */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/tokenizer.h"
#include "kernels/base/io.h"
#include "trainer/state.h"

/* Where checkpoints lie: the newest of a run, what to start from. */

enum { MAX_PATH = 4096 };

static void warn(void *context, const char *message)
{
    (void)context;
    fprintf(stderr, "switchyard: warning: %s\n", message);
}

static void say_nothing(void *context, const char *message)
{
    (void)context;
    (void)message;
}

bool state_is_place(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

enum status state_newest(struct comm *world, const char *root, int64_t before, char **found,
                         int64_t *step)
{
    return checkpoint_newest(world, root, before, found, step, warn, NULL);
}

bool state_try_older(const struct comm *world, enum status status)
{
    if (status != STATUS_DATA) {
        return false;
    }
    if (world->rank == 0) {
        fprintf(stderr, "switchyard: warning: %s; trying an older checkpoint\n", status_message());
    }
    return true;
}

/* --- readers --- */

enum { MOST_REASON = 1024 };

/* Of the newest checkpoint that failed: the first of them. */
static void keep_reason(void *reason, const char *message)
{
    char *text = reason;
    if (text[0] == '\0') {
        snprintf(text, MOST_REASON, "%s", message);
    }
}

static enum status no_checkpoint(const char *path, const char *reason)
{
    char name[MAX_PATH];
    if (reason[0] != '\0') {
        return status_fail(STATUS_DATA, "%s: no checkpoint here can be read; the newest: %s", path,
                           reason);
    }
    if (snprintf(name, sizeof name, "%s/config.json", path) < MAX_PATH && io_exists(name)) {
        return status_fail(STATUS_DATA,
                           "%s: a Hugging Face folder, not a checkpoint: import it first", path);
    }
    return status_fail(io_exists(path) ? STATUS_DATA : STATUS_IO,
                       "%s: no checkpoint here: name a run or a checkpoint folder", path);
}

/* Collective. Whether the checkpoint is there no more. */
static bool is_gone(struct comm *world, const char *checkpoint)
{
    char name[MAX_PATH];
    snprintf(name, sizeof name, "%s/manifest.json", checkpoint);
    int32_t gone = world->rank == 0 && !io_exists(name);
    comm_all_reduce(world, &gone, 1, DTYPE_I32, REDUCE_MAX);
    return gone != 0;
}

static enum status use_of_run(struct comm *world, const char *path,
                              enum status (*use)(void *, const char *), void *context)
{
    enum { TRIES = 100 };
    char root[MAX_PATH], reason[MOST_REASON] = "";
    int64_t before = INT64_MAX, step = 0;
    snprintf(root, sizeof root, "%s/checkpoints", path);
    for (int tries = 0; tries < TRIES;) {
        char *found = NULL;
        enum status status =
            checkpoint_newest(world, root, before, &found, &step, keep_reason, reason);
        if (status == STATUS_DATA || (status == STATUS_OK && found == NULL)) {
            return comm_agree(world, world->rank == 0 ? no_checkpoint(path, reason) : STATUS_OK,
                              NULL);
        }
        TRY(status);
        status = use(context, found);
        const bool again = status != STATUS_OK && is_gone(world, found);
        free(found);
        if (status == STATUS_OK && reason[0] != '\0' && world->rank == 0) {
            fprintf(stderr, "switchyard: warning: %s; step %lld was taken\n", reason,
                    (long long)step);
        }
        if (!again && status != STATUS_DATA) {
            return status;
        }
        if (!again) {
            keep_reason(reason, status_message());
        }
        tries += again;
        before = again ? INT64_MAX : step;
    }
    return status_fail(STATUS_DATA, "%s: its checkpoints are pruned faster than they are read",
                       path);
}

enum status state_use_newest(struct comm *world, const char *path,
                             enum status (*use)(void *context, const char *checkpoint),
                             void *context)
{
    char name[MAX_PATH];
    snprintf(name, sizeof name, "%s/manifest.json", path);
    return io_exists(name) ? use(context, path) : use_of_run(world, path, use, context);
}

/* Whether `path` is the folder `outer` or in it. */
static bool lies_in(const char *path, const char *outer)
{
    char *inner_real = realpath(path, NULL), *outer_real = realpath(outer, NULL);
    const size_t length = outer_real != NULL ? strlen(outer_real) : 0;
    const bool in = inner_real != NULL && outer_real != NULL &&
                    strncmp(inner_real, outer_real, length) == 0 &&
                    (inner_real[length] == '/' || inner_real[length] == '\0');
    free(inner_real);
    free(outer_real);
    return in;
}

static enum status nothing_to_start_from(const char *path)
{
    const enum status status = no_checkpoint(path, "");
    return status == STATUS_OK ? status : status_lines(STATUS_DATA, status_message());
}

static enum status check_place(const char *path, const char *moved)
{
    char name[MAX_PATH];
    if (moved != NULL && lies_in(path, moved)) {
        return status_fail(STATUS_USAGE,
                           "checkpoint.init_from %s lies in run.dir %s, which --fresh renames: set "
                           "another run.dir",
                           path, moved);
    }
    snprintf(name, sizeof name, "%s/manifest.json", path);
    if (io_exists(name)) {
        return STATUS_OK;
    }
    snprintf(name, sizeof name, "%s/checkpoints", path);
    return io_exists(name) ? STATUS_OK : nothing_to_start_from(path);
}

enum status state_check_start(struct comm *world, const char *path, const char *moved)
{
    char name[MAX_PATH], *found = NULL;
    int64_t step = 0;
    TRY(comm_agree(world, check_place(path, moved), NULL));
    snprintf(name, sizeof name, "%s/manifest.json", path);
    if (io_exists(name)) {
        return STATUS_OK;
    }
    snprintf(name, sizeof name, "%s/checkpoints", path);
    TRY(checkpoint_newest(world, name, INT64_MAX, &found, &step, say_nothing, NULL));
    const bool any = found != NULL;
    free(found);
    return any ? STATUS_OK : nothing_to_start_from(path);
}

static enum status read_tokenizer(const char *path, char name[STATE_TOKENIZER_BYTES])
{
    char *text = NULL;
    TRY(checkpoint_state(path, &text));
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    const char *said = json_string_value(json_object_get(json, "tokenizer"));
    if (said != NULL) {
        snprintf(name, STATE_TOKENIZER_BYTES, "%s", said);
    }
    json_decref(json);
    free(text);
    return STATUS_OK;
}

/* Whatever is skipped here, the load that follows warns of. */
enum status state_tokenizer(struct comm *world, const char *path, int64_t vocab,
                            char name[STATE_TOKENIZER_BYTES])
{
    char place[MAX_PATH];
    snprintf(name, STATE_TOKENIZER_BYTES, "%s",
             vocab == TOKENIZER_BYTES_VOCAB ? "bytes" : "unknown");
    snprintf(place, sizeof place, "%s/manifest.json", path);
    if (io_exists(place)) {
        return comm_agree(world, read_tokenizer(path, name), NULL);
    }
    snprintf(place, sizeof place, "%s/checkpoints", path);
    for (int64_t before = INT64_MAX;;) {
        char *found = NULL;
        int64_t step = 0;
        TRY(checkpoint_newest(world, place, before, &found, &step, say_nothing, NULL));
        if (found == NULL) {
            return STATUS_OK; /* the load will say so */
        }
        const enum status status = comm_agree(world, read_tokenizer(found, name), NULL);
        const bool gone = status != STATUS_OK && is_gone(world, found);
        free(found);
        if (status != STATUS_DATA && !gone) {
            return status;
        }
        before = step;
    }
}
