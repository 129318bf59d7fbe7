#include "checkpoints/wanted.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/boxes.h"

enum { SHAPE_TEXT = 96 };

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

/* Columns that lie so far apart that there are blocks between them: run by run. */
static enum status add_runs(struct wanted_list *list, struct wanted item)
{
    if (item.from_stride - item.run < MANIFEST_BLOCK_BYTES) {
        return add(list, item);
    }
    for (int64_t begin = item.begin; begin < item.end; begin += item.from_stride) {
        struct wanted one = item;
        one.begin = begin;
        one.end = begin + item.run;
        one.from_stride = one.to_stride = item.run;
        TRY(add(list, one));
        item.to += item.to_stride;
    }
    return STATUS_OK;
}

/* Elements before box `of` of a part, and before the first that it has in common with `both`. */
static int64_t elements_before(const struct box *boxes, int of, const struct box *both)
{
    int64_t before =
        (both->row - boxes[of].row) * boxes[of].columns + (both->column - boxes[of].column);
    for (int i = 0; i < of; i++) {
        before += boxes[i].rows * boxes[i].columns;
    }
    return before;
}

/* What a slice wants of a piece, where one of them is columns of a matrix. */
static enum status plan_boxes(struct wanted_list *list, const struct manifest_piece *piece,
                              const struct checkpoint_slice *slice)
{
    const int64_t size = (int64_t)dtype_bytes(slice->dtype), width = slice->shape[slice->ndim - 1];
    const struct part stored = {piece->first, piece->count, piece->run, piece->stride},
                      asked = {slice->first, slice->count, slice->run, slice->stride};
    struct box from[BOXES_OF_PART], to[BOXES_OF_PART], both;
    const int sources = boxes_of(from, &stored, width), targets = boxes_of(to, &asked, width);
    for (int i = 0; i < sources * targets; i++) {
        const int s = i / targets, t = i % targets;
        if (!boxes_meet(&both, &from[s], &to[t])) {
            continue;
        }
        struct wanted item = {.file = piece->file,
                              .begin = piece->offset + elements_before(from, s, &both) * size,
                              .run = both.columns * size,
                              .from_stride = from[s].columns * size,
                              .to_stride = to[t].columns * size,
                              .to = (char *)slice->data + elements_before(to, t, &both) * size,
                              .slice = slice};
        if (both.rows == 1 || (item.run == item.from_stride && item.run == item.to_stride)) {
            item.run = item.from_stride = item.to_stride = both.rows * item.run;
        }
        item.end = item.begin +
                   (both.rows * both.columns * size / item.run - 1) * item.from_stride + item.run;
        TRY(add_runs(list, item));
    }
    return STATUS_OK;
}

enum status wanted_plan(struct wanted_list *list, const char *path, const struct manifest *manifest,
                        const struct checkpoint_slice *slice)
{
    const struct manifest_tensor *tensor = manifest_find(manifest, slice->name);
    const struct part part = {slice->first, slice->count, slice->run, slice->stride};
    TRY(check_kind(path, tensor, slice));
    assert(slice->run == 0 ||
           boxes_fit(&part, manifest_elements(tensor), slice->shape[slice->ndim - 1]));
    const int64_t width = (int64_t)dtype_bytes(slice->dtype), last = slice->first + slice->count;
    for (int64_t p = 0; p < tensor->pieces; p++) {
        const struct manifest_piece *piece = &tensor->piece[p];
        if (piece->run != 0 || slice->run != 0) {
            TRY(plan_boxes(list, piece, slice));
            continue;
        }
        const int64_t from = piece->first > slice->first ? piece->first : slice->first;
        const int64_t to = piece->first + piece->count < last ? piece->first + piece->count : last;
        if (from >= to) {
            continue;
        }
        const int64_t begin = piece->offset + (from - piece->first) * width,
                      bytes = (to - from) * width;
        TRY(add(list, (struct wanted){.file = piece->file,
                                      .begin = begin,
                                      .end = begin + bytes,
                                      .run = bytes,
                                      .from_stride = bytes,
                                      .to_stride = bytes,
                                      .to = (char *)slice->data + (from - slice->first) * width,
                                      .slice = slice}));
    }
    return STATUS_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;
    return x->file != y->file ? (x->file > y->file) - (x->file < y->file)
                              : (x->begin > y->begin) - (x->begin < y->begin);
}

void wanted_sort(struct wanted_list *list)
{
    if (list->count > 0) {
        qsort(list->item, (size_t)list->count, sizeof *list->item, by_place);
    }
}
