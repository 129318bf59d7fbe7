#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/block_queue.h"
#include "checkpoints/blocks.h"
#include "checkpoints/boxes.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"
#include "kernels/base/hash.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096, SHAPE_TEXT = 96 };

/* Bytes of a file go to memory: runs of `run` bytes, which begin `from_stride` bytes apart in
 * [begin, end) of the file and `to_stride` apart in memory. One run: all three are its length. */
struct wanted {
    int64_t file, begin, end;
    int64_t run, from_stride, to_stride;
    char *to;
    const struct checkpoint_slice *slice; /* borrowed */
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

/* Where the elements of a slice lie. The manifest's pieces cover the tensor without gaps
 * (manifest_seal). */
static enum status plan_slice(struct wanted_list *list, const char *path,
                              const struct manifest *manifest, const struct checkpoint_slice *slice)
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

static void sort(struct wanted_list *list)
{
    if (list->count > 0) {
        qsort(list->item, (size_t)list->count, sizeof *list->item, by_place);
    }
}

/* The file being read, and its blocks in memory or on their way: the oldest of the queue is the one
 * that was used last. */
struct reader {
    struct io_file file;
    const struct manifest_file *entry;
    int64_t open;      /* index of file, -1: none */
    int64_t verified;  /* the block at the front whose hash agrees, -1: none */
    int64_t asked;     /* the block asked for last, -1: none */
    int64_t last, run; /* the block used last, -1: none; how many one after another it ends */
    struct block_queue queue;
    char *pack; /* owned: a block, for runs on their way to a device; or NULL */
};

/* Where the file's next block that is wanted comes from: what is left of a list. */
struct outlook {
    const struct wanted *item; /* the one being copied */
    int64_t count;             /* items from it on */
    bool goes_on;              /* blocks behind the last item may be asked for next */
};

static bool ask(struct reader *reader, int64_t block)
{
    struct block_job *job = block_queue_free(&reader->queue);
    const int64_t begin = block * MANIFEST_BLOCK_BYTES, left = reader->entry->bytes - begin;
    if (job == NULL || left <= 0) {
        return false;
    }
    job->file = &reader->file;
    job->write = false;
    job->offset = begin;
    job->bytes = (size_t)(left < MANIFEST_BLOCK_BYTES ? left : MANIFEST_BLOCK_BYTES);
    reader->asked = block;
    block_queue_submit(&reader->queue);
    return true;
}

static void forget_blocks(struct reader *reader)
{
    while (block_queue_wait(&reader->queue) != NULL) {
        block_queue_release(&reader->queue);
    }
    reader->verified = reader->asked = -1;
}

static int64_t front_block(const struct reader *reader)
{
    const struct block_job *job = block_queue_oldest(&reader->queue);
    return job != NULL ? job->offset / MANIFEST_BLOCK_BYTES : -1;
}

/* Brings `block` to the front: it is there, on its way, or asked for now. */
static void bring(struct reader *reader, int64_t block)
{
    while (front_block(reader) >= 0 && front_block(reader) < block) {
        (void)block_queue_wait(&reader->queue);
        block_queue_release(&reader->queue);
    }
    if (front_block(reader) != block) {
        forget_blocks(reader);
        ask(reader, block);
    }
}

/* Asks for the blocks behind `block` that the list wants of this file, as many as fit. */
static void look_ahead(struct reader *reader, int64_t block, const struct outlook *outlook)
{
    int64_t next = reader->asked > block ? reader->asked + 1 : block + 1;
    if (block_queue_free(&reader->queue) == NULL) {
        return;
    }
    for (int64_t i = 0; i < outlook->count && outlook->item[i].file == reader->open; i++) {
        const int64_t first = outlook->item[i].begin / MANIFEST_BLOCK_BYTES,
                      last = (outlook->item[i].end - 1) / MANIFEST_BLOCK_BYTES;
        for (next = next > first ? next : first; next <= last; next++) {
            if (!ask(reader, next)) {
                return;
            }
        }
    }
    /* A guess costs at most as much again as what was right before it. */
    while (outlook->goes_on && next - block <= reader->run && ask(reader, next)) {
        next++;
    }
}

/* The block, verified, in *data until the next call. */
static enum status load_block(struct reader *reader, int64_t block, const struct outlook *outlook,
                              const char **data)
{
    const char *tensor = outlook->item->slice->name;
    bring(reader, block);
    reader->run = block == reader->last + 1 ? reader->run + 1
                  : block == reader->last   ? reader->run
                                            : 1;
    reader->last = block;
    look_ahead(reader, block, outlook);
    const struct block_job *job = block_queue_wait(&reader->queue);
    *data = job->buffer;
    if (job->status != STATUS_OK) {
        char message[sizeof job->message];
        memcpy(message, job->message, sizeof message);
        forget_blocks(reader);
        return status_fail(STATUS_DATA, "%s, tensor %s", message, tensor);
    }
    if (reader->verified == block) {
        return STATUS_OK;
    }
    if (hash_bytes(job->buffer, job->bytes) != reader->entry->block[block]) {
        return status_fail(STATUS_DATA, "%s: damaged in block %lld (bytes from %lld), tensor %s",
                           reader->file.path, (long long)block, (long long)job->offset, tensor);
    }
    reader->verified = block;
    return STATUS_OK;
}

static void put(const struct checkpoint_slice *slice, char *to, const char *from, int64_t bytes)
{
    if (slice->write != NULL) {
        slice->write(slice, to, from, (size_t)bytes);
    } else {
        memcpy(to, from, (size_t)bytes);
    }
}

/* What of an item lies in [at, border) of the file goes to memory, `at` being wanted and `data`
 * what stands there; the next place that is wanted. Runs that are neighbours in memory go there
 * together, by way of `pack`: a device takes each piece at a price. */
static int64_t copy_block(const struct wanted *wanted, int64_t at, int64_t border, const char *data,
                          char *pack)
{
    const bool packs = wanted->slice->write != NULL && wanted->run < wanted->from_stride &&
                       wanted->run == wanted->to_stride && pack != NULL;
    const int64_t began = at, rows = (at - wanted->begin) / wanted->from_stride;
    char *const begin =
        wanted->to + rows * wanted->to_stride + (at - wanted->begin - rows * wanted->from_stride);
    int64_t packed = 0;
    while (at < border && at < wanted->end) {
        const int64_t row = (at - wanted->begin) / wanted->from_stride,
                      first = wanted->begin + row * wanted->from_stride, last = first + wanted->run,
                      to = border < last ? border : last;
        if (packs) {
            memcpy(pack + packed, data + (at - began), (size_t)(to - at));
            packed += to - at;
        } else {
            put(wanted->slice, wanted->to + row * wanted->to_stride + (at - first),
                data + (at - began), to - at);
        }
        at = to < last ? to : first + wanted->from_stride;
    }
    if (packed > 0) {
        put(wanted->slice, begin, pack, packed);
    }
    return at;
}

static enum status copy_wanted(struct reader *reader, const struct outlook *outlook)
{
    const struct wanted *wanted = outlook->item;
    const bool runs = wanted->run < wanted->from_stride;
    if (runs && wanted->slice->write != NULL && reader->pack == NULL) {
        reader->pack = blocks_buffer(); /* without it each run goes alone */
    }
    for (int64_t at = wanted->begin; at < wanted->end;) {
        const int64_t block = at / MANIFEST_BLOCK_BYTES, begin = block * MANIFEST_BLOCK_BYTES;
        const char *data = NULL;
        TRY(load_block(reader, block, outlook, &data));
        at =
            copy_block(wanted, at, begin + MANIFEST_BLOCK_BYTES, data + (at - begin), reader->pack);
    }
    return STATUS_OK;
}

static enum status close_file(struct reader *reader)
{
    if (reader->open < 0) {
        return STATUS_OK;
    }
    forget_blocks(reader);
    reader->open = reader->last = -1;
    reader->run = 0;
    return io_close(&reader->file);
}

static enum status open_file(struct reader *reader, const char *path,
                             const struct manifest *manifest, const struct wanted *wanted)
{
    char name[MAX_PATH];
    if (reader->open == wanted->file) {
        return STATUS_OK;
    }
    TRY(close_file(reader));
    reader->entry = &manifest->file[wanted->file];
    if (snprintf(name, sizeof name, "%s/%s", path, reader->entry->name) >= MAX_PATH) {
        return status_fail(STATUS_DATA, "path too long: %s", path);
    }
    if (!io_exists(name)) {
        return status_fail(STATUS_DATA, "%s: missing; the checkpoint is not whole, tensor %s", name,
                           wanted->slice->name);
    }
    if (io_open_read_direct(&reader->file, name) != STATUS_OK) { /* as good as damaged */
        return status_fail(STATUS_DATA, "%s, tensor %s", status_message(), wanted->slice->name);
    }
    reader->open = wanted->file;
    return STATUS_OK;
}

static enum status read_list(struct reader *reader, const char *path,
                             const struct manifest *manifest, const struct wanted_list *list,
                             bool goes_on)
{
    for (int64_t i = 0; i < list->count; i++) {
        const struct outlook outlook = {&list->item[i], list->count - i, goes_on};
        TRY(open_file(reader, path, manifest, &list->item[i]));
        TRY(copy_wanted(reader, &outlook));
    }
    return STATUS_OK;
}

static enum status reader_init(struct reader *reader)
{
    *reader = (struct reader){.open = -1, .verified = -1, .asked = -1, .last = -1};
    return block_queue_open(&reader->queue);
}

static void reader_free(struct reader *reader)
{
    block_queue_close(&reader->queue);
    free(reader->pack);
    reader->pack = NULL;
}

static enum status read_all(const char *path, const struct manifest *manifest,
                            struct wanted_list *list)
{
    struct reader reader;
    TRY(reader_init(&reader));
    sort(list);
    const enum status status = read_list(&reader, path, manifest, list, false),
                      closed = close_file(&reader);
    reader_free(&reader);
    return status == STATUS_OK ? closed : status;
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

struct checkpoint_reader {
    struct manifest manifest;
    struct reader reader;
    struct wanted_list list; /* of one call */
    char path[MAX_PATH];
};

enum status checkpoint_open(struct checkpoint_reader **reader, const char *path)
{
    struct checkpoint_reader *made = calloc(1, sizeof *made);
    *reader = NULL;
    if (made == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for reading a checkpoint");
    }
    made->reader.open = -1;
    enum status status = manifest_read(&made->manifest, path);
    status = status == STATUS_OK ? reader_init(&made->reader) : status;
    if (status != STATUS_OK) {
        checkpoint_close(made);
        return status;
    }
    snprintf(made->path, sizeof made->path, "%s", path); /* manifest_read found it short enough */
    *reader = made;
    return STATUS_OK;
}

void checkpoint_close(struct checkpoint_reader *reader)
{
    if (reader != NULL) {
        const enum status ignored = close_file(&reader->reader); /* it was only read */
        (void)ignored;
        reader_free(&reader->reader);
        free(reader->list.item);
        manifest_free(&reader->manifest);
        free(reader);
    }
}

const struct manifest *checkpoint_contents(const struct checkpoint_reader *reader)
{
    return &reader->manifest;
}

/* Whether a call begins where the one before ended: the next one may do so, too. */
static bool continues(const struct checkpoint_reader *reader)
{
    const struct reader *of = &reader->reader;
    const struct wanted *first = reader->list.item;
    const int64_t front = front_block(of);
    const int64_t block = reader->list.count > 0 ? first->begin / MANIFEST_BLOCK_BYTES : -1;
    return reader->list.count > 0 && of->open == first->file && front >= 0 &&
           (block == front || block == front + 1);
}

enum status checkpoint_read(struct checkpoint_reader *reader, const char *name, int64_t first,
                            int64_t count, void *to)
{
    const struct manifest_tensor *tensor = manifest_find(&reader->manifest, name);
    struct checkpoint_slice slice = {.name = name, .first = first, .count = count, .data = to};
    if (tensor != NULL) {
        slice.dtype = tensor->dtype;
        slice.ndim = tensor->ndim;
        memcpy(slice.shape, tensor->shape, sizeof slice.shape);
    }
    reader->list.count = 0;
    TRY(plan_slice(&reader->list, reader->path, &reader->manifest, &slice));
    sort(&reader->list);
    const bool goes_on = continues(reader);
    return read_list(&reader->reader, reader->path, &reader->manifest, &reader->list, goes_on);
}
