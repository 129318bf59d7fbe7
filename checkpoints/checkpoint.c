#define _GNU_SOURCE
#include "checkpoints/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/blocks.h"
#include "checkpoints/manifest.h"
#include "checkpoints/steps.h"
#include "kernels/base/io.h"

enum { MAX_PATH = STEPS_PATH_BYTES };

/* Manifest whole and every file there with its size. */
static enum status look(const char *path, struct manifest *manifest)
{
    char name[MAX_PATH];
    TRY(manifest_read(manifest, path));
    for (int64_t i = 0; i < manifest->files; i++) {
        struct io_file file;
        int64_t bytes = 0;
        TRY(steps_join(name, path, manifest->file[i].name));
        if (io_open_read(&file, name) != STATUS_OK) {
            return status_fail(STATUS_DATA, "%s: missing; the checkpoint is not whole", name);
        }
        const enum status status = io_size(&file, &bytes), closed = io_close(&file);
        TRY(status);
        TRY(closed);
        if (bytes != manifest->file[i].bytes) {
            return status_fail(STATUS_DATA, "%s: %lld bytes, the manifest says %lld", name,
                               (long long)bytes, (long long)manifest->file[i].bytes);
        }
    }
    return STATUS_OK;
}

/* The first of the steps before `before` that looks whole: its index, -1: none, -2: one is gone, so
 * that the list is old; once more for the `last` time, what is not there is passed over. */
static int64_t first_whole(const char *root, const int64_t *steps, int64_t count, int64_t before,
                           bool last, void (*warn)(void *, const char *), void *context)
{
    for (int64_t i = 0; i < count; i++) {
        char path[MAX_PATH];
        struct manifest manifest = {0};
        if (steps[i] >= before) {
            continue;
        }
        enum status status = steps_path(path, root, steps[i]);
        status = status == STATUS_OK ? look(path, &manifest) : status;
        manifest_free(&manifest);
        if (status == STATUS_OK) {
            return i;
        }
        if (!last && !io_exists(path)) {
            return -2;
        }
        warn(context, status_message());
    }
    return -1;
}

static enum status find_newest(const char *root, int64_t before, char path[MAX_PATH], int64_t *step,
                               void (*warn)(void *, const char *), void *context)
{
    enum { TRIES = 100 };
    int64_t *steps = NULL, count = 0, at = -2;
    for (int i = 0; i < TRIES && at == -2; i++) {
        free(steps);
        TRY(steps_list(root, &steps, &count));
        at = first_whole(root, steps, count, before, i == TRIES - 1, warn, context);
    }
    enum status status = STATUS_OK;
    path[0] = '\0';
    if (at >= 0) {
        *step = steps[at];
        status = steps_path(path, root, *step);
    } else if (count > 0) {
        status = status_fail(
            STATUS_DATA,
            "%s: %lld checkpoints, none of them usable: restore one from a copy, or start anew "
            "with --fresh (nothing is deleted)",
            root, (long long)count);
    }
    free(steps);
    return status;
}

static enum status forget(const char *root, int64_t step)
{
    int64_t *steps = NULL, count = 0;
    TRY(steps_list(root, &steps, &count));
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        status = steps[i] > step ? steps_discard(root, steps[i]) : STATUS_OK;
    }
    free(steps);
    return status;
}

enum status checkpoint_forget(struct comm *comm, const char *root, int64_t step)
{
    return comm_agree(comm, comm->rank == 0 ? forget(root, step) : STATUS_OK, NULL);
}

enum status checkpoint_newest(struct comm *comm, const char *root, int64_t before, char **path,
                              int64_t *step, void (*warn)(void *context, const char *message),
                              void *context)
{
    char found[MAX_PATH] = "";
    *path = NULL;
    enum status status =
        comm->rank == 0 ? find_newest(root, before, found, step, warn, context) : STATUS_OK;
    TRY(comm_agree(comm, status, NULL));
    comm_broadcast(comm, found, sizeof found, 0);
    comm_broadcast(comm, step, sizeof *step, 0);
    if (found[0] != '\0') {
        *path = strdup(found);
        status = *path != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    }
    return comm_agree(comm, status, NULL);
}

enum status checkpoint_state(const char *path, char **state)
{
    struct manifest manifest;
    int64_t at = 0;
    *state = NULL;
    TRY(manifest_read(&manifest, path));
    while (at < manifest.files && strcmp(manifest.file[at].name, "state.json") != 0) {
        at++;
    }
    const enum status status =
        at < manifest.files
            ? blocks_read_text(&manifest, at, path, state)
            : status_fail(STATUS_DATA, "%s: the manifest names no state.json", path);
    manifest_free(&manifest);
    return status;
}

static enum status clean_one(void *context, const char *name)
{
    const char *root = context;
    char path[MAX_PATH];
    if (strncmp(name, ".tmp-", 5) != 0 && strncmp(name, ".trash-", 7) != 0 &&
        strcmp(name, "LATEST.tmp") != 0) {
        return STATUS_OK;
    }
    TRY(steps_join(path, root, name));
    return io_remove_tree(path);
}

enum status checkpoint_clean(const char *root)
{
    bool there = false;
    return io_list(root, &there, clean_one, (void *)(uintptr_t)root);
}

enum status checkpoint_remove(const char *root, int64_t step)
{
    char path[MAX_PATH];
    TRY(steps_path(path, root, step));
    return io_exists(path)
               ? steps_discard(root, step)
               : status_fail(STATUS_USAGE, "%s: no checkpoint of step %lld", root, (long long)step);
}

struct replaced {
    const char *root;
    int64_t count;
};

static enum status remove_replaced(void *context, const char *name)
{
    struct replaced *replaced = context;
    char path[MAX_PATH];
    char step[STEPS_NAME_BYTES];
    const char *end = strstr(name, ".replaced-");
    snprintf(step, sizeof step, "%.*s", end != NULL ? (int)(end - name) : 0, name);
    if (!steps_is_name(step)) {
        return STATUS_OK;
    }
    TRY(steps_join(path, replaced->root, name));
    replaced->count++;
    return io_remove_tree(path);
}

enum status checkpoint_remove_replaced(const char *root, int64_t *count)
{
    struct replaced replaced = {.root = root};
    bool there = false;
    const enum status status = io_list(root, &there, remove_replaced, &replaced);
    *count = replaced.count;
    return status;
}

static void free_entry(struct checkpoint_entry *entry)
{
    free(entry->path);
    free(entry->why);
    *entry = (struct checkpoint_entry){0};
}

static enum status describe(const char *root, int64_t step, struct checkpoint_entry *entry)
{
    char path[MAX_PATH];
    struct manifest manifest = {0};
    TRY(steps_path(path, root, step));
    *entry = (struct checkpoint_entry){.path = strdup(path), .step = step};
    const enum status status = look(path, &manifest);
    entry->valid = status == STATUS_OK;
    entry->why = entry->valid ? NULL : strdup(status_message());
    if (entry->path == NULL || (!entry->valid && entry->why == NULL)) {
        free_entry(entry);
        manifest_free(&manifest);
        return status_fail(STATUS_RESOURCE, "out of memory for the list of checkpoints");
    }
    entry->tensors = manifest.tensors;
    entry->ranks = manifest.ranks;
    for (int64_t i = 0; i < manifest.files; i++) {
        entry->bytes += manifest.file[i].bytes;
    }
    manifest_free(&manifest);
    return STATUS_OK;
}

enum status checkpoint_list(const char *root, struct checkpoint_entry **entries, int64_t *count)
{
    int64_t *steps = NULL;
    TRY(steps_list(root, &steps, count));
    *entries = calloc((size_t)*count + 1, sizeof **entries);
    enum status status =
        *entries != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    int64_t there = 0;
    for (int64_t i = 0; i < *count && status == STATUS_OK; i++) {
        struct checkpoint_entry *entry = &(*entries)[there];
        status = describe(root, steps[i], entry);
        if (status == STATUS_OK && !entry->valid && !io_exists(entry->path)) {
            free_entry(entry); /* a run that goes on has pruned it */
        } else if (status == STATUS_OK) {
            there++;
        }
    }
    *count = there;
    free(steps);
    return status;
}

void checkpoint_list_free(struct checkpoint_entry *entries, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        free_entry(&entries[i]);
    }
    free(entries);
}
