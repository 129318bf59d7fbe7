#define _GNU_SOURCE
#include "checkpoints/steps.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/io.h"

enum { STEP_DIGITS = 8 };

enum status steps_join(char out[STEPS_PATH_BYTES], const char *root, const char *name)
{
    return snprintf(out, STEPS_PATH_BYTES, "%s/%s", root, name) < STEPS_PATH_BYTES
               ? STATUS_OK
               : status_fail(STATUS_IO, "path too long: %s/%s", root, name);
}

void steps_name(char name[STEPS_NAME_BYTES], int64_t step)
{
    snprintf(name, STEPS_NAME_BYTES, "%0*lld", STEP_DIGITS, (long long)step);
}

bool steps_is_name(const char *name)
{
    return strlen(name) >= STEP_DIGITS && strspn(name, "0123456789") == strlen(name);
}

static int newest_first(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

struct step_list {
    int64_t *step; /* owned by the caller */
    int64_t count, room;
};

static enum status add_step(void *context, const char *name)
{
    struct step_list *list = context;
    if (!steps_is_name(name)) {
        return STATUS_OK;
    }
    if (list->count == list->room) {
        const int64_t room = list->room > 0 ? 2 * list->room : 16;
        int64_t *grown = realloc(list->step, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for a list of checkpoints");
        }
        list->step = grown;
        list->room = room;
    }
    list->step[list->count++] = strtoll(name, NULL, 10);
    return STATUS_OK;
}

enum status steps_list(const char *root, int64_t **steps, int64_t *count)
{
    struct step_list list = {0};
    bool there = false;
    const enum status status = io_list(root, &there, add_step, &list);
    *steps = NULL;
    *count = 0;
    if (status != STATUS_OK) {
        free(list.step);
        return status;
    }
    if (list.count > 0) {
        qsort(list.step, (size_t)list.count, sizeof *list.step, newest_first);
    }
    *steps = list.step;
    *count = list.count;
    return STATUS_OK;
}

enum status steps_path(char out[STEPS_PATH_BYTES], const char *root, int64_t step)
{
    char name[STEPS_NAME_BYTES];
    steps_name(name, step);
    return steps_join(out, root, name);
}

/* .trash-STEP-PID, by this process. */
static bool is_own_trash(const char *name)
{
    char end[32];
    const int length = snprintf(end, sizeof end, "-%ld", (long)getpid());
    const size_t bytes = strlen(name);
    return strncmp(name, ".trash-", 7) == 0 && bytes > (size_t)length &&
           strcmp(name + bytes - (size_t)length, end) == 0;
}

static enum status discard_one(void *context, const char *name)
{
    char path[STEPS_PATH_BYTES];
    if (!is_own_trash(name)) {
        return STATUS_OK;
    }
    TRY(steps_join(path, context, name));
    return io_remove_tree(path);
}

enum status steps_discard_again(const char *root)
{
    bool there = false;
    return io_list(root, &there, discard_one, (void *)(uintptr_t)root);
}

enum status steps_discard(const char *root, int64_t step)
{
    char path[STEPS_PATH_BYTES], name[64], trash[STEPS_PATH_BYTES], manifest[STEPS_PATH_BYTES];
    TRY(steps_path(path, root, step));
    snprintf(name, sizeof name, ".trash-%0*lld-%ld", STEP_DIGITS, (long long)step, (long)getpid());
    TRY(steps_join(trash, root, name));
    TRY(io_remove_tree(trash)); /* what an earlier try could not delete */
    TRY(io_rename(path, trash));
    TRY(io_sync_dir(root));
    TRY(steps_join(manifest, trash, "manifest.json"));
    TRY(io_remove(manifest));
    return io_remove_tree(trash);
}
