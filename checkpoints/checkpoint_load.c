#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"
#include "kernels/base/hash.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096, SHAPE_TEXT = 96 };

/* Bytes [begin, end) of a file go to memory. */
struct wanted {
    int64_t file, begin, end;
    char *to;
    const char *name; /* tensor, for messages */
};

struct wanted_list {
    struct wanted *item; /* owned */
    int64_t count, room;
};

static void shape_text(char out[SHAPE_TEXT], enum dtype dtype, const int64_t *shape, int ndim)
{
    int used = snprintf(out, SHAPE_TEXT, "%s [", dtype_name(dtype));
    for (int i = 0; i < ndim; i++) {
        used += snprintf(out + used, (size_t)(SHAPE_TEXT - used), "%s%lld", i > 0 ? ", " : "",
                         (long long)shape[i]);
    }
    snprintf(out + used, (size_t)(SHAPE_TEXT - used), "]");
}

static enum status check_kind(const char *path, const struct manifest_tensor *tensor,
                              const struct checkpoint_slice *slice)
{
    char stored[SHAPE_TEXT], wanted[SHAPE_TEXT];
    if (tensor == NULL) {
        return status_fail(STATUS_MISMATCH,
                           "%s: tensor %s is missing: a checkpoint of another model", path,
                           slice->name);
    }
    if (tensor->dtype == slice->dtype && tensor->ndim == slice->ndim &&
        memcmp(tensor->shape, slice->shape, (size_t)slice->ndim * sizeof slice->shape[0]) == 0) {
        return STATUS_OK;
    }
    shape_text(stored, tensor->dtype, tensor->shape, tensor->ndim);
    shape_text(wanted, slice->dtype, slice->shape, slice->ndim);
    return status_fail(STATUS_MISMATCH,
                       "%s: tensor %s is %s, this model has %s: a checkpoint of another model",
                       path, slice->name, stored, wanted);
}

static enum status add(struct wanted_list *list, struct wanted item)
{
    if (list->count == list->room) {
        const int64_t room = list->room > 0 ? 2 * list->room : 256;
        struct wanted *grown = realloc(list->item, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for loading a checkpoint");
        }
        list->item = grown;
        list->room = room;
    }
    list->item[list->count++] = item;
    return STATUS_OK;
}

/* Where the elements of a slice lie. The manifest's pieces cover the tensor without gaps
 * (manifest_seal). */
static enum status plan_slice(struct wanted_list *list, const char *path,
                              const struct manifest *manifest, const struct checkpoint_slice *slice)
{
    const struct manifest_tensor *tensor = manifest_find(manifest, slice->name);
    TRY(check_kind(path, tensor, slice));
    const int64_t width = (int64_t)dtype_bytes(slice->dtype), last = slice->first + slice->count;
    for (int64_t p = 0; p < tensor->pieces; p++) {
        const struct manifest_piece *piece = &tensor->piece[p];
        const int64_t from = piece->first > slice->first ? piece->first : slice->first;
        const int64_t to = piece->first + piece->count < last ? piece->first + piece->count : last;
        if (from >= to) {
            continue;
        }
        const int64_t begin = piece->offset + (from - piece->first) * width;
        TRY(add(list, (struct wanted){.file = piece->file,
                                      .begin = begin,
                                      .end = begin + (to - from) * width,
                                      .to = (char *)slice->data + (from - slice->first) * width,
                                      .name = slice->name}));
    }
    return STATUS_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;
    return x->file != y->file ? (x->file > y->file) - (x->file < y->file)
                              : (x->begin > y->begin) - (x->begin < y->begin);
}

/* The file being read and its block in memory. */
struct reader {
    struct io_file file;
    const struct manifest_file *entry;
    int64_t block; /* in buffer, -1: none */
    char *buffer;  /* [MANIFEST_BLOCK_BYTES] */
};

static enum status load_block(struct reader *reader, int64_t block, const char *tensor)
{
    const int64_t begin = block * MANIFEST_BLOCK_BYTES, left = reader->entry->bytes - begin;
    const size_t bytes = (size_t)(left < MANIFEST_BLOCK_BYTES ? left : MANIFEST_BLOCK_BYTES);
    if (reader->block == block) {
        return STATUS_OK;
    }
    reader->block = -1;
    const enum status status = io_pread(&reader->file, reader->buffer, bytes, begin);
    if (status != STATUS_OK) {
        return status_fail(status, "%s, tensor %s", status_message(), tensor);
    }
    if (hash_bytes(reader->buffer, bytes) != reader->entry->block[block]) {
        return status_fail(STATUS_DATA, "%s: damaged in block %lld (bytes from %lld), tensor %s",
                           reader->file.path, (long long)block, (long long)begin, tensor);
    }
    reader->block = block;
    return STATUS_OK;
}

static enum status copy_wanted(struct reader *reader, const struct wanted *wanted)
{
    for (int64_t at = wanted->begin; at < wanted->end;) {
        const int64_t block = at / MANIFEST_BLOCK_BYTES,
                      border = (block + 1) * MANIFEST_BLOCK_BYTES;
        const int64_t to = border < wanted->end ? border : wanted->end;
        TRY(load_block(reader, block, wanted->name));
        memcpy(wanted->to + (at - wanted->begin),
               reader->buffer + (at - block * MANIFEST_BLOCK_BYTES), (size_t)(to - at));
        at = to;
    }
    return STATUS_OK;
}

/* All that is wanted of one file; returns how many items were done in *done. */
static enum status read_file(struct reader *reader, const char *path,
                             const struct manifest *manifest, const struct wanted *items,
                             int64_t count, int64_t *done)
{
    char name[MAX_PATH];
    reader->entry = &manifest->file[items[0].file];
    reader->block = -1;
    if (snprintf(name, sizeof name, "%s/%s", path, reader->entry->name) >= MAX_PATH) {
        return status_fail(STATUS_DATA, "path too long: %s", path);
    }
    if (!io_exists(name)) {
        return status_fail(STATUS_DATA, "%s: missing; the checkpoint is not whole, tensor %s", name,
                           items[0].name);
    }
    TRY(io_open_read(&reader->file, name));
    enum status status = STATUS_OK;
    for (*done = 0; *done < count && items[*done].file == items[0].file && status == STATUS_OK;
         ++*done) {
        status = copy_wanted(reader, &items[*done]);
    }
    const enum status closed = io_close(&reader->file);
    return status == STATUS_OK ? closed : status;
}

static enum status read_all(const char *path, const struct manifest *manifest,
                            struct wanted_list *list)
{
    struct reader reader = {.buffer = malloc((size_t)MANIFEST_BLOCK_BYTES)};
    enum status status =
        reader.buffer != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    if (list->count > 0) {
        qsort(list->item, (size_t)list->count, sizeof *list->item, by_place);
    }
    for (int64_t i = 0, done = 0; i < list->count && status == STATUS_OK; i += done) {
        status = read_file(&reader, path, manifest, list->item + i, list->count - i, &done);
    }
    free(reader.buffer);
    return status;
}

static enum status load_own(const char *path, const struct checkpoint_slice *slices, int64_t count)
{
    struct manifest manifest;
    struct wanted_list list = {0};
    TRY(manifest_read(&manifest, path));
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        status = plan_slice(&list, path, &manifest, &slices[i]);
    }
    status = status == STATUS_OK ? read_all(path, &manifest, &list) : status;
    free(list.item);
    manifest_free(&manifest);
    return status;
}

enum status checkpoint_dtype(const char *path, const char *name, enum dtype *dtype)
{
    struct manifest manifest;
    TRY(manifest_read(&manifest, path));
    const struct manifest_tensor *tensor = manifest_find(&manifest, name);
    *dtype = tensor != NULL ? tensor->dtype : DTYPE_COUNT;
    manifest_free(&manifest);
    return STATUS_OK;
}

enum status checkpoint_holds(const char *path, const char *name, bool *holds)
{
    enum dtype dtype = DTYPE_COUNT;
    TRY(checkpoint_dtype(path, name, &dtype));
    *holds = dtype != DTYPE_COUNT;
    return STATUS_OK;
}

enum status checkpoint_load(struct comm *comm, const char *path,
                            const struct checkpoint_slice *slices, int64_t slice_count)
{
    return comm_agree(comm, load_own(path, slices, slice_count), NULL);
}
