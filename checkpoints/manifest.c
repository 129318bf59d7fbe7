#include "checkpoints/manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/boxes.h"

int64_t manifest_blocks(int64_t bytes)
{
    return bytes / MANIFEST_BLOCK_BYTES + (bytes % MANIFEST_BLOCK_BYTES != 0);
}

int64_t manifest_elements(const struct manifest_tensor *tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensor->ndim; i++) {
        if (tensor->shape[i] != 0 && count > INT64_MAX / tensor->shape[i]) {
            return INT64_MAX; /* no such tensor is */
        }
        count *= tensor->shape[i];
    }
    return count;
}

void manifest_free(struct manifest *manifest)
{
    for (int64_t i = 0; i < manifest->files; i++) {
        free(manifest->file[i].block);
    }
    for (int64_t i = 0; i < manifest->tensors; i++) {
        free(manifest->tensor[i].piece);
    }
    free(manifest->file);
    free(manifest->tensor);
    *manifest = (struct manifest){0};
}

/* Room for one more in an array that doubles. */
static bool grow(void **array, int64_t count, size_t bytes)
{
    if (count > 0 && (count & (count - 1)) != 0) {
        return true;
    }
    void *grown = realloc(*array, (size_t)(count > 0 ? 2 * count : 1) * bytes);
    *array = grown != NULL ? grown : *array;
    return grown != NULL;
}

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE, "out of memory for the checkpoint's manifest");
}

enum status manifest_add_file(struct manifest *manifest, const char *name, int64_t bytes,
                              const uint64_t *block)
{
    const size_t hash_bytes_ = (size_t)manifest_blocks(bytes) * sizeof *block;
    void *array = manifest->file;
    if (!grow(&array, manifest->files, sizeof *manifest->file)) {
        return no_memory();
    }
    manifest->file = array;
    struct manifest_file *file = &manifest->file[manifest->files];
    *file =
        (struct manifest_file){.bytes = bytes, .block = malloc(hash_bytes_ > 0 ? hash_bytes_ : 1)};
    if (file->block == NULL) {
        return no_memory();
    }
    snprintf(file->name, sizeof file->name, "%s", name);
    memcpy(file->block, block, hash_bytes_);
    manifest->files++;
    return STATUS_OK;
}

static bool same_kind(const struct manifest_tensor *a, const struct manifest_tensor *b)
{
    return a->dtype == b->dtype && a->ndim == b->ndim &&
           memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof a->shape[0]) == 0;
}

static enum status add_tensor(struct manifest *manifest, const struct manifest_tensor *like)
{
    void *array = manifest->tensor;
    if (!grow(&array, manifest->tensors, sizeof *manifest->tensor)) {
        return no_memory();
    }
    manifest->tensor = array;
    struct manifest_tensor *tensor = &manifest->tensor[manifest->tensors++];
    *tensor = *like;
    tensor->piece = NULL;
    tensor->pieces = 0;
    tensor->hashed = false;
    tensor->hash = 0;
    return STATUS_OK;
}

/* Pieces come grouped by tensor within a rank, so looking at the last one is enough; seal joins the
 * ranks'. */
enum status manifest_add_piece(struct manifest *manifest, const struct manifest_tensor *like,
                               struct manifest_piece piece)
{
    struct manifest_tensor *last =
        manifest->tensors > 0 ? &manifest->tensor[manifest->tensors - 1] : NULL;
    if (last == NULL || strcmp(last->name, like->name) != 0) {
        TRY(add_tensor(manifest, like));
        last = &manifest->tensor[manifest->tensors - 1];
    }
    if (!same_kind(last, like)) {
        return status_fail(STATUS_INTERNAL, "tensor %s: ranks disagree about its shape or dtype",
                           like->name);
    }
    void *array = last->piece;
    if (!grow(&array, last->pieces, sizeof *last->piece)) {
        return no_memory();
    }
    last->piece = array;
    last->piece[last->pieces++] = piece;
    return STATUS_OK;
}

void manifest_add_hash(struct manifest *manifest, uint64_t hash)
{
    struct manifest_tensor *last = &manifest->tensor[manifest->tensors - 1];
    last->hash += hash;
    last->hashed = true;
}

enum status manifest_merge(struct manifest *manifest, const struct manifest *part)
{
    const int64_t shift = manifest->files;
    for (int64_t i = 0; i < part->files; i++) {
        TRY(manifest_add_file(manifest, part->file[i].name, part->file[i].bytes,
                              part->file[i].block));
    }
    for (int64_t i = 0; i < part->tensors; i++) {
        for (int64_t p = 0; p < part->tensor[i].pieces; p++) {
            struct manifest_piece piece = part->tensor[i].piece[p];
            piece.file += shift;
            TRY(manifest_add_piece(manifest, &part->tensor[i], piece));
        }
        if (part->tensor[i].hashed) {
            manifest_add_hash(manifest, part->tensor[i].hash);
        }
    }
    return STATUS_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct manifest_tensor *)a)->name,
                  ((const struct manifest_tensor *)b)->name);
}

static int by_first(const void *a, const void *b)
{
    const int64_t x = ((const struct manifest_piece *)a)->first,
                  y = ((const struct manifest_piece *)b)->first;
    return (x > y) - (x < y);
}

static enum status append_pieces(struct manifest_tensor *to, const struct manifest_tensor *from)
{
    const size_t count = (size_t)(to->pieces + from->pieces);
    size_t room = 1; /* as `grow` would have it */
    while (room < count) {
        room *= 2;
    }
    struct manifest_piece *grown = realloc(to->piece, room * sizeof *grown);
    if (grown == NULL) {
        return no_memory();
    }
    memcpy(grown + to->pieces, from->piece, (size_t)from->pieces * sizeof *grown);
    to->piece = grown;
    to->pieces = (int64_t)count;
    to->hash += from->hash;
    to->hashed = to->hashed && from->hashed;
    return STATUS_OK;
}

/* Entries of the same name, from several ranks, become one. */
static enum status join_tensors(struct manifest *manifest)
{
    int64_t kept = 0;
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < manifest->tensors; i++) {
        struct manifest_tensor *last = kept > 0 ? &manifest->tensor[kept - 1] : NULL;
        struct manifest_tensor *next = &manifest->tensor[i];
        if (last == NULL || strcmp(last->name, next->name) != 0) {
            manifest->tensor[kept++] = *next;
            continue;
        }
        if (status == STATUS_OK) {
            status = same_kind(last, next)
                         ? append_pieces(last, next)
                         : status_fail(STATUS_INTERNAL,
                                       "tensor %s: ranks disagree about its shape or "
                                       "dtype",
                                       next->name);
        }
        free(next->piece);
    }
    manifest->tensors = kept;
    return status;
}

static struct part part_of(const struct manifest_piece *piece)
{
    return (struct part){piece->first, piece->count, piece->run, piece->stride};
}

static int64_t row_elements(const struct manifest_tensor *tensor)
{
    return tensor->shape[tensor->ndim - 1];
}

/* Whether it has pieces in runs. */
static bool in_runs(const struct manifest_tensor *tensor)
{
    for (int64_t p = 0; p < tensor->pieces; p++) {
        if (tensor->piece[p].run != 0) {
            return true;
        }
    }
    return false;
}

static bool fits(const struct manifest_tensor *tensor, const struct manifest_piece *piece)
{
    const int64_t elements = manifest_elements(tensor);
    const struct part part = part_of(piece);
    return elements < INT64_MAX &&
           (piece->run != 0 ? boxes_fit(&part, elements, row_elements(tensor))
                            : piece->first <= elements && piece->count <= elements - piece->first);
}

static enum status cover_boxes(const struct manifest_tensor *tensor, bool *whole)
{
    const size_t most = (size_t)tensor->pieces * BOXES_OF_PART;
    struct box *boxes = calloc(most, sizeof *boxes);
    int64_t *scratch = calloc(4 * most + 2, sizeof *scratch), count = 0;
    const enum status status = boxes != NULL && scratch != NULL ? STATUS_OK : no_memory();
    bool good = status == STATUS_OK;
    for (int64_t p = 0; p < tensor->pieces && good; p++) {
        const struct part part = part_of(&tensor->piece[p]);
        good = fits(tensor, &tensor->piece[p]);
        count += good ? boxes_of(boxes + count, &part, row_elements(tensor)) : 0;
    }
    *whole = good && boxes_cover(boxes, count, manifest_elements(tensor) / row_elements(tensor),
                                 row_elements(tensor), scratch);
    free(boxes);
    free(scratch);
    return status;
}

/* Of pieces that are all in one. */
static bool covered(const struct manifest_tensor *tensor)
{
    int64_t next = 0;
    for (int64_t p = 0; p < tensor->pieces; p++) {
        if (tensor->piece[p].first != next) {
            return false;
        }
        next += tensor->piece[p].count;
    }
    return next == manifest_elements(tensor);
}

enum status manifest_seal(struct manifest *manifest)
{
    if (manifest->tensors > 0) {
        qsort(manifest->tensor, (size_t)manifest->tensors, sizeof *manifest->tensor, by_name);
    }
    TRY(join_tensors(manifest));
    for (int64_t i = 0; i < manifest->tensors; i++) {
        struct manifest_tensor *tensor = &manifest->tensor[i];
        qsort(tensor->piece, (size_t)tensor->pieces, sizeof *tensor->piece, by_first);
        bool whole = true;
        if (in_runs(tensor)) {
            TRY(cover_boxes(tensor, &whole));
        } else {
            whole = covered(tensor);
        }
        if (!whole) {
            return status_fail(STATUS_INTERNAL, "tensor %s: its pieces have a gap or overlap",
                               tensor->name);
        }
    }
    return STATUS_OK;
}

void manifest_dataset(char out[MANIFEST_DATASET_BYTES], const char *tensor, int64_t first,
                      bool is_first)
{
    char place[32] = "";
    if (!is_first) {
        snprintf(place, sizeof place, "@%lld", (long long)first);
    }
    snprintf(out, MANIFEST_DATASET_BYTES, "%s%s", tensor, place);
}

const struct manifest_tensor *manifest_find(const struct manifest *manifest, const char *name)
{
    struct manifest_tensor key = {0};
    if (strlen(name) >= sizeof key.name || manifest->tensors == 0) {
        return NULL;
    }
    snprintf(key.name, sizeof key.name, "%s", name);
    return bsearch(&key, manifest->tensor, (size_t)manifest->tensors, sizeof key, by_name);
}
