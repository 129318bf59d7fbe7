#define _GNU_SOURCE
#include "checkpoints/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/blocks.h"
#include "checkpoints/manifest.h"
#include "checkpoints/shard.h"
#include "checkpoints/view.h"
#include "kernels/base/folder.h"

enum { MAX_PATH = 4096, STEP_DIGITS = 8 };
static const size_t MOST_STATE = (size_t)64 << 20;

/* One save on its way. */
struct save {
    struct comm *comm;
    const char *root;
    int64_t step;
    char work[MAX_PATH];      /* root/.tmp-STEP-PID, where it is made */
    char place[MAX_PATH];     /* root/STEP, where it will be */
    struct folder *alone;     /* borrowed: how it gets there when it is beside no others; or NULL */
    struct manifest own, all; /* this rank's part; rank 0's whole */
};

static enum status join(char *out, const char *root, const char *name)
{
    return snprintf(out, MAX_PATH, "%s/%s", root, name) < MAX_PATH
               ? STATUS_OK
               : status_fail(STATUS_IO, "path too long: %s/%s", root, name);
}

static int64_t slices_bytes(const struct checkpoint_slice *slices, int64_t count)
{
    int64_t bytes = 0;
    for (int64_t i = 0; i < count; i++) {
        bytes += slices[i].count * (int64_t)dtype_bytes(slices[i].dtype);
    }
    return bytes;
}

/* A full disk is better found before than in the middle of a save. */
static enum status check_space(const char *root, int64_t bytes, const char *elsewhere)
{
    int64_t room = 0;
    TRY(io_free_bytes(root, &room));
    const int64_t needed = bytes + bytes / 5;
    return room >= needed
               ? STATUS_OK
               : status_fail(STATUS_IO,
                             "%s: a checkpoint needs %lld MiB, %lld MiB are free: free space or %s",
                             root, (long long)(needed >> 20), (long long)(room >> 20), elsewhere);
}

static enum status begin(struct save *save, int64_t bytes)
{
    char name[64];
    if (save->alone != NULL) {
        TRY(folder_begin(save->alone));
        snprintf(save->work, sizeof save->work, "%s", save->alone->work);
        return check_space(save->root, bytes, "name a folder elsewhere");
    }
    TRY(io_make_dir(save->root));
    TRY(check_space(save->root, bytes, "set another run.dir"));
    snprintf(name, sizeof name, ".tmp-%0*lld-%ld", STEP_DIGITS, (long long)save->step,
             (long)getpid());
    TRY(join(save->work, save->root, name));
    TRY(io_remove_tree(save->work));
    return io_make_dir(save->work);
}

static enum status write_own(struct save *save, const struct checkpoint_slice *slices,
                             int64_t count)
{
    char name[64];
    snprintf(name, sizeof name, "shard-%05d.h5", save->comm->rank);
    return shard_write(&save->own, save->work, name, slices, count);
}

/* Collective. Every rank's part of the manifest, as text, to rank 0, which merges them in rank
 * order. */
static enum status gather_manifest(struct save *save)
{
    struct comm *comm = save->comm;
    char *text = manifest_print(&save->own), *all = NULL;
    const int64_t own = text != NULL ? (int64_t)strlen(text) + 1 : 0;
    int64_t *bytes =
        calloc(3 * (size_t)comm->size, sizeof *bytes); /* of every rank; to send; to receive */
    int64_t total = 0;
    enum status status =
        text != NULL && bytes != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    TRY(comm_agree(comm, status, NULL));
    int64_t *send = bytes + comm->size, *receive = send + comm->size;
    comm_all_gather(comm, bytes, &own, sizeof own);
    send[0] = own;
    for (int r = 0; r < comm->size; r++) {
        receive[r] = comm->rank == 0 ? bytes[r] : 0;
        total += receive[r];
    }
    all = malloc((size_t)total + 1);
    TRY(comm_agree(comm, all != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory"),
                   NULL));
    comm_all_to_all(comm, all, receive, text, send, 1);
    const char *next = all;
    for (int r = 0; r < comm->size && comm->rank == 0 && status == STATUS_OK; r++) {
        struct manifest part;
        status = manifest_parse_part(&part, next);
        status = status == STATUS_OK ? manifest_merge(&save->all, &part) : status;
        manifest_free(&part);
        next += bytes[r];
    }
    free(all);
    free(bytes);
    free(text);
    return status;
}

/* What has this step's name already is damaged, or it would have been resumed: kept, under a name
 * that nothing has. */
static enum status move_aside(const char *place)
{
    char aside[MAX_PATH + 32];
    if (!io_exists(place)) {
        return STATUS_OK;
    }
    for (int n = 1;; n++) {
        snprintf(aside, sizeof aside, "%s.replaced-%d", place, n);
        if (!io_exists(aside)) {
            return io_rename(place, aside);
        }
    }
}

/* Rank 0: state.json, model.h5 and, last, the manifest; then the folder gets its name. */
static enum status publish(struct save *save, const char *state)
{
    char name[MAX_PATH];
    save->all.step = save->step;
    save->all.ranks = save->comm->size;
    TRY(manifest_seal(&save->all));
    const int64_t shards = save->all.files;
    TRY(blocks_write_text(&save->all, save->work, "state.json", state));
    TRY(view_write(&save->all, save->work));
    for (int64_t i = shards; i < save->all.files; i++) {
        TRY(blocks_verify(&save->all, i, save->work));
    }
    char *text = manifest_print(&save->all);
    if (text == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the checkpoint's manifest");
    }
    TRY(join(name, save->work, "manifest.json"));
    const enum status status = io_write_file(name, text, strlen(text));
    free(text);
    TRY(status);
    if (save->alone != NULL) {
        return folder_publish(save->alone);
    }
    TRY(io_sync_dir(save->work));
    TRY(move_aside(save->place));
    TRY(io_rename(save->work, save->place));
    return io_sync_dir(save->root);
}

/* LATEST is a hint for people; nothing reads it back. */
static enum status write_hint(const struct save *save)
{
    char name[MAX_PATH], text[64];
    TRY(join(name, save->root, "LATEST"));
    const int length = snprintf(text, sizeof text, "%0*lld\n", STEP_DIGITS, (long long)save->step);
    TRY(io_write_file(name, text, (size_t)length));
    return io_sync_dir(save->root);
}

static bool is_step(const char *name)
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
    if (!is_step(name)) {
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

/* Step numbers of the folders under root, newest first; *steps owned by caller. No root: none. */
static enum status list_steps(const char *root, int64_t **steps, int64_t *count)
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

static enum status step_path(char *out, const char *root, int64_t step)
{
    char name[32];
    snprintf(name, sizeof name, "%0*lld", STEP_DIGITS, (long long)step);
    return join(out, root, name);
}

/* Out of sight by one rename, then deleted, manifest first: a half-deleted checkpoint is never
 * mistaken for one. */
static enum status discard(const char *root, int64_t step)
{
    char path[MAX_PATH], name[64], trash[MAX_PATH], manifest[MAX_PATH];
    TRY(step_path(path, root, step));
    snprintf(name, sizeof name, ".trash-%0*lld-%ld", STEP_DIGITS, (long long)step, (long)getpid());
    TRY(join(trash, root, name));
    TRY(io_rename(path, trash));
    TRY(io_sync_dir(root));
    TRY(join(manifest, trash, "manifest.json"));
    TRY(io_remove(manifest));
    return io_remove_tree(trash);
}

static enum status prune(const struct save *save, int keep)
{
    int64_t *steps = NULL, count = 0;
    TRY(list_steps(save->root, &steps, &count));
    enum status status = STATUS_OK;
    int kept = 0;
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        if (steps[i] <= save->step && ++kept > keep) {
            status = discard(save->root, steps[i]);
        }
    }
    free(steps);
    return status;
}

/* After a failed save; what can't be removed now goes at the next start. Keeps the message of the
 * failure. */
static enum status drop_work(const struct save *save, enum status failure)
{
    char message[2048];
    snprintf(message, sizeof message, "%s", status_message());
    if (save->alone != NULL) {
        folder_drop(save->alone);
    } else if (save->work[0] != '\0') {
        const enum status ignored = io_remove_tree(save->work);
        (void)ignored;
    }
    return status_lines(failure, message);
}

/* keep 0: one checkpoint beside no others. */
static enum status run_save(struct save *save, const char *state,
                            const struct checkpoint_slice *slices, int64_t count, int keep)
{
    struct comm *comm = save->comm;
    int64_t bytes = slices_bytes(slices, count);
    comm_all_reduce(comm, &bytes, 1, DTYPE_I64, REDUCE_SUM);
    TRY(comm_agree(comm, comm->rank == 0 ? begin(save, bytes) : STATUS_OK, NULL));
    comm_broadcast(comm, save->work, sizeof save->work, 0);
    TRY(comm_agree(comm, write_own(save, slices, count), NULL));
    TRY(comm_agree(comm, gather_manifest(save), NULL));
    /* What does not read back whole never gets a checkpoint's name, nor do older ones go for it. */
    TRY(comm_agree(comm, blocks_verify(&save->own, 0, save->work), NULL));
    TRY(comm_agree(comm, comm->rank == 0 ? publish(save, state) : STATUS_OK, NULL));
    enum status status = STATUS_OK;
    if (comm->rank == 0 && keep > 0) {
        status = write_hint(save);
        status = status == STATUS_OK ? prune(save, keep) : status;
    }
    return comm_agree(comm, status, NULL);
}

/* alone NULL: root/STEP. */
static enum status save_as(struct comm *comm, const char *root, struct folder *alone, int64_t step,
                           const char *state, const struct checkpoint_slice *slices, int64_t count,
                           int keep)
{
    struct save *save = calloc(1, sizeof *save);
    TRY(comm_agree(comm, save != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory"),
                   NULL));
    *save = (struct save){.comm = comm, .root = root, .step = step, .alone = alone};
    enum status status = STATUS_OK;
    if (alone == NULL) {
        status = step_path(save->place, root, step);
    } else {
        snprintf(save->place, sizeof save->place, "%s", alone->place);
    }
    if (status == STATUS_OK) {
        status = run_save(save, state, slices, count, keep);
    }
    if (status != STATUS_OK && comm->rank == 0) {
        status = drop_work(save, status);
    }
    manifest_free(&save->own);
    manifest_free(&save->all);
    free(save);
    return status;
}

enum status checkpoint_save(struct comm *comm, const char *root, int64_t step, const char *state,
                            const struct checkpoint_slice *slices, int64_t slice_count,
                            const struct checkpoint_options *options)
{
    return save_as(comm, root, NULL, step, state, slices, slice_count, options->keep_last);
}

enum status checkpoint_write(struct comm *comm, const char *place, int64_t step, const char *state,
                             const struct checkpoint_slice *slices, int64_t slice_count)
{
    struct folder folder;
    TRY(comm_agree(comm, folder_name(&folder, place), NULL));
    return save_as(comm, folder.parent, &folder, step, state, slices, slice_count, 0);
}

/* Manifest whole and every file there with its size. */
static enum status look(const char *path, struct manifest *manifest)
{
    char name[MAX_PATH];
    TRY(manifest_read(manifest, path));
    for (int64_t i = 0; i < manifest->files; i++) {
        struct io_file file;
        int64_t bytes = 0;
        TRY(join(name, path, manifest->file[i].name));
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

/* The first of the steps before `before` that looks whole: its index, -1: none, -2: one was pruned
 * meanwhile, so that the list is old. */
static int64_t first_whole(const char *root, const int64_t *steps, int64_t count, int64_t before,
                           void (*warn)(void *, const char *), void *context)
{
    for (int64_t i = 0; i < count; i++) {
        char path[MAX_PATH];
        struct manifest manifest = {0};
        if (steps[i] >= before) {
            continue;
        }
        enum status status = step_path(path, root, steps[i]);
        status = status == STATUS_OK ? look(path, &manifest) : status;
        manifest_free(&manifest);
        if (status == STATUS_OK) {
            return i;
        }
        if (!io_exists(path)) {
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
        TRY(list_steps(root, &steps, &count));
        at = first_whole(root, steps, count, before, warn, context);
    }
    enum status status = STATUS_OK;
    path[0] = '\0';
    if (at >= 0) {
        *step = steps[at];
        status = step_path(path, root, *step);
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
    char name[MAX_PATH];
    struct manifest manifest;
    size_t bytes = 0;
    *state = NULL;
    TRY(manifest_read(&manifest, path));
    enum status status = status_fail(STATUS_DATA, "%s: the manifest names no state.json", path);
    for (int64_t i = 0; i < manifest.files; i++) {
        if (strcmp(manifest.file[i].name, "state.json") == 0) {
            status = blocks_verify(&manifest, i, path);
        }
    }
    manifest_free(&manifest);
    TRY(status);
    TRY(join(name, path, "state.json"));
    return io_read_file(name, state, &bytes, MOST_STATE);
}

static enum status clean_one(void *context, const char *name)
{
    const char *root = context;
    char path[MAX_PATH];
    if (strncmp(name, ".tmp-", 5) != 0 && strncmp(name, ".trash-", 7) != 0 &&
        strcmp(name, "LATEST.tmp") != 0) {
        return STATUS_OK;
    }
    TRY(join(path, root, name));
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
    TRY(step_path(path, root, step));
    return io_exists(path)
               ? discard(root, step)
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
    if (strspn(name, "0123456789") < STEP_DIGITS || strstr(name, ".replaced-") == NULL) {
        return STATUS_OK;
    }
    TRY(join(path, replaced->root, name));
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

static enum status describe(const char *root, int64_t step, struct checkpoint_entry *entry)
{
    char path[MAX_PATH];
    struct manifest manifest = {0};
    TRY(step_path(path, root, step));
    *entry = (struct checkpoint_entry){.path = strdup(path), .step = step};
    const enum status status = look(path, &manifest);
    entry->valid = status == STATUS_OK;
    entry->why = entry->valid ? NULL : strdup(status_message());
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
    TRY(list_steps(root, &steps, count));
    *entries = calloc((size_t)*count + 1, sizeof **entries);
    enum status status =
        *entries != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    for (int64_t i = 0; i < *count && status == STATUS_OK; i++) {
        status = describe(root, steps[i], &(*entries)[i]);
    }
    free(steps);
    return status;
}

void checkpoint_list_free(struct checkpoint_entry *entries, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        free(entries[i].path);
        free(entries[i].why);
    }
    free(entries);
}
