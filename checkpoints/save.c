#define _GNU_SOURCE
#include "checkpoints/save.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/blocks.h"
#include "checkpoints/shard.h"
#include "checkpoints/view.h"
#include "kernels/base/folder.h"
#include "kernels/base/io_queue.h"

enum { MAX_PATH = STEPS_PATH_BYTES };

/* --- phases and their status --- */

/* What a phase ends with, and its words, for whichever thread asks. */
static void conclude(struct save *save, enum status status)
{
    save->status = status;
    if (status != STATUS_OK) {
        snprintf(save->message, sizeof save->message, "%s", status_message());
    }
}

/* Collective. */
static void agree(struct save *save)
{
    enum status status = save->status;
    if (status != STATUS_OK) {
        status = status_lines(status, save->message);
    }
    conclude(save, comm_agree(save->comm, status, NULL));
}

/* --- begin --- */

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

/* Rank 0. */
static enum status begin(struct save *save, int64_t bytes)
{
    char step[STEPS_NAME_BYTES], name[STEPS_NAME_BYTES + 32];
    if (save->alone != NULL) {
        TRY(folder_begin(save->alone));
        snprintf(save->work, sizeof save->work, "%s", save->alone->work);
        return check_space(save->root, bytes, "name a folder elsewhere");
    }
    TRY(io_make_dir(save->root));
    TRY(check_space(save->root, bytes, "set another run.dir"));
    steps_name(step, save->step);
    snprintf(name, sizeof name, ".tmp-%s-%ld", step, (long)getpid());
    TRY(steps_join(save->work, save->root, name));
    return io_remove_tree(save->work);
}

/* The other fields are set. */
static void begin_all(struct save *save)
{
    int64_t bytes = slices_bytes(save->slices, save->slice_count);
    comm_all_reduce(save->comm, &bytes, 1, DTYPE_I64, REDUCE_SUM);
    if (save->comm->rank == 0 && save->status == STATUS_OK) {
        conclude(save, begin(save, bytes));
    }
    agree(save);
    comm_broadcast(save->comm, save->work, sizeof save->work, 0);
}

void save_begin(struct save *save, struct comm *comm, const char *root, int64_t step,
                const char *state, const struct checkpoint_slice *slices, int64_t slice_count,
                int keep_last)
{
    *save = (struct save){.comm = comm,
                          .step = step,
                          .keep = keep_last,
                          .state = state,
                          .slices = slices,
                          .slice_count = slice_count};
    snprintf(save->root, sizeof save->root, "%s", root);
    conclude(save, steps_path(save->place, root, step));
    begin_all(save);
}

void save_begin_alone(struct save *save, struct comm *comm, struct folder *folder, int64_t step,
                      const char *state, const struct checkpoint_slice *slices, int64_t slice_count)
{
    *save = (struct save){.comm = comm,
                          .step = step,
                          .state = state,
                          .slices = slices,
                          .slice_count = slice_count,
                          .alone = folder};
    snprintf(save->root, sizeof save->root, "%s", folder->parent);
    snprintf(save->place, sizeof save->place, "%s", folder->place);
    begin_all(save);
}

/* --- write --- */

size_t save_block_bytes(size_t bytes)
{
    const size_t blocks = bytes / (size_t)MANIFEST_BLOCK_BYTES + 1;
    return (blocks < IO_QUEUE_DEPTH ? blocks : IO_QUEUE_DEPTH) * (size_t)MANIFEST_BLOCK_BYTES;
}

/* What does not read back whole never gets a checkpoint's name, nor do older ones go for it. */
static enum status write_own(struct save *save)
{
    char name[64];
    if (save->alone == NULL) {
        TRY(io_make_dir(save->work)); /* whoever is first */
    }
    snprintf(name, sizeof name, "shard-%05d.h5", save->comm->rank);
    TRY(shard_write(&save->own, save->work, name, save->slices, save->slice_count));
    TRY(blocks_verify(&save->own, 0, save->work));
    save->text = manifest_print(&save->own);
    return save->text != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
}

void save_write(struct save *save)
{
    if (save->status == STATUS_OK) {
        conclude(save, write_own(save));
    }
}

/* --- gather --- */

/* Collective. Every rank's part of the manifest, as text, to rank 0. */
static enum status gather(struct save *save)
{
    struct comm *comm = save->comm;
    const int64_t own = (int64_t)strlen(save->text) + 1;
    int64_t *bytes =
        calloc(3 * (size_t)comm->size, sizeof *bytes); /* of every rank; to send; to receive */
    int64_t total = 0;
    enum status status = bytes != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    status = comm_agree(comm, status, NULL);
    if (status == STATUS_OK) {
        int64_t *send = bytes + comm->size, *receive = send + comm->size;
        comm_all_gather(comm, bytes, &own, sizeof own);
        send[0] = own;
        for (int r = 0; r < comm->size; r++) {
            receive[r] = comm->rank == 0 ? bytes[r] : 0;
            total += receive[r];
        }
        save->parts = malloc((size_t)total + 1);
        status = save->parts != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
        status = comm_agree(comm, status, NULL);
        if (status == STATUS_OK) {
            comm_all_to_all(comm, save->parts, receive, save->text, send, 1);
        }
    }
    free(bytes);
    return status;
}

void save_gather(struct save *save)
{
    agree(save);
    if (save->status == STATUS_OK) {
        conclude(save, gather(save));
    }
}

/* --- publish --- */

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

/* The parts, in rank order. */
static enum status merge_parts(struct save *save)
{
    const char *next = save->parts;
    enum status status = STATUS_OK;
    for (int r = 0; r < save->comm->size && status == STATUS_OK; r++) {
        struct manifest part;
        status = manifest_parse_part(&part, next);
        status = status == STATUS_OK ? manifest_merge(&save->all, &part) : status;
        manifest_free(&part);
        next += strlen(next) + 1;
    }
    save->all.step = save->step;
    save->all.ranks = save->comm->size;
    return status == STATUS_OK ? manifest_seal(&save->all) : status;
}

/* Rank 0: state.json, model.h5 and, last, the manifest; then the folder gets its name. */
static enum status publish(struct save *save)
{
    char name[MAX_PATH];
    TRY(merge_parts(save));
    const int64_t shards = save->all.files;
    TRY(blocks_write_text(&save->all, save->work, "state.json", save->state));
    TRY(view_write(&save->all, save->work));
    for (int64_t i = shards; i < save->all.files; i++) {
        TRY(blocks_verify(&save->all, i, save->work));
    }
    char *text = manifest_print(&save->all);
    if (text == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the checkpoint's manifest");
    }
    TRY(steps_join(name, save->work, "manifest.json"));
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
    char name[MAX_PATH], step[STEPS_NAME_BYTES], text[STEPS_NAME_BYTES + 1];
    TRY(steps_join(name, save->root, "LATEST"));
    steps_name(step, save->step);
    const int length = snprintf(text, sizeof text, "%s\n", step);
    TRY(io_write_file(name, text, (size_t)length));
    return io_sync_dir(save->root);
}

/* Older ones beyond those kept; one that an earlier save could not take away is tried again. */
static enum status prune(const struct save *save)
{
    int64_t *steps = NULL, count = 0;
    TRY(steps_discard_again(save->root));
    TRY(steps_list(save->root, &steps, &count));
    enum status status = STATUS_OK;
    int kept = 0;
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        if (steps[i] <= save->step && ++kept > save->keep) {
            status = steps_discard(save->root, steps[i]);
        }
    }
    free(steps);
    return status;
}

/* The checkpoint is there, whatever becomes of this. */
static void tidy(struct save *save)
{
    const enum status hint = write_hint(save);
    if (hint != STATUS_OK) {
        snprintf(save->note, sizeof save->note, "%s", status_message());
    }
    if (prune(save) != STATUS_OK) {
        snprintf(save->note, sizeof save->note, "%s", status_message());
    }
}

void save_publish(struct save *save)
{
    if (save->status != STATUS_OK || save->comm->rank != 0) {
        return;
    }
    conclude(save, publish(save));
    if (save->status == STATUS_OK && save->keep > 0) {
        tidy(save);
    }
}

/* --- end --- */

/* Rank 0, after a failed save; what can't be removed now goes at the next start. */
static void drop_work(const struct save *save)
{
    if (save->alone != NULL) {
        folder_drop(save->alone);
    } else if (save->work[0] != '\0') {
        const enum status ignored = io_remove_tree(save->work);
        (void)ignored;
    }
}

enum status save_end(struct save *save)
{
    agree(save);
    const enum status status = save->status;
    if (status != STATUS_OK && save->comm->rank == 0) {
        drop_work(save);
    }
    if (save->note[0] != '\0') {
        fprintf(stderr, "switchyard: warning: checkpoint of step %lld is saved, but: %s\n",
                (long long)save->step, save->note);
    }
    manifest_free(&save->own);
    manifest_free(&save->all);
    free(save->text);
    free(save->parts);
    save->text = save->parts = NULL;
    return status == STATUS_OK ? STATUS_OK : status_lines(status, save->message);
}

/* --- all in a row --- */

static enum status run(struct save *save)
{
    save_write(save);
    save_gather(save);
    save_publish(save);
    return save_end(save);
}

/* Collective. */
static enum status alloc(struct comm *comm, struct save **save)
{
    *save = calloc(1, sizeof **save);
    return comm_agree(
        comm, *save != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory"), NULL);
}

enum status checkpoint_save(struct comm *comm, const char *root, int64_t step, const char *state,
                            const struct checkpoint_slice *slices, int64_t slice_count,
                            const struct checkpoint_options *options)
{
    struct save *save = NULL;
    enum status status = alloc(comm, &save);
    if (status == STATUS_OK) {
        save_begin(save, comm, root, step, state, slices, slice_count, options->keep_last);
        status = run(save);
    }
    free(save);
    return status;
}

enum status checkpoint_write(struct comm *comm, const char *place, int64_t step, const char *state,
                             const struct checkpoint_slice *slices, int64_t slice_count)
{
    struct folder folder;
    struct save *save = NULL;
    TRY(comm_agree(comm, folder_name(&folder, place), NULL));
    enum status status = alloc(comm, &save);
    if (status == STATUS_OK) {
        save_begin_alone(save, comm, &folder, step, state, slices, slice_count);
        status = run(save);
    }
    free(save);
    return status;
}
