#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/blocks.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"
#include "checkpoints/wanted.h"
#include "kernels/base/hash.h"
#include "kernels/base/io.h"
#include "kernels/base/io_queue.h"

enum { MAX_PATH = 4096 };

/* The file being read, and its blocks in memory or on their way: the oldest of the queue is the one
 * that was used last. */
struct reader {
    struct io_file file;
    const struct manifest_file *entry;
    int64_t open;      /* index of file, -1: none */
    int64_t verified;  /* the block at the front whose hash agrees, -1: none */
    int64_t asked;     /* the block asked for last, -1: none */
    int64_t last, run; /* the block used last, -1: none; how many one after another it ends */
    struct io_queue queue;
    char *pack;   /* owned: a block, for runs on their way to a device; or NULL */
    bool made;    /* the queue is open */
    int64_t used; /* when it was last, of several: the largest is the newest */
};

/* Where the file's next block that is wanted comes from: what is left of a list. */
struct outlook {
    const struct wanted *item; /* the one being copied */
    int64_t count;             /* items from it on */
    bool goes_on;              /* blocks behind the last item may be asked for next */
};

static bool ask(struct reader *reader, int64_t block)
{
    struct io_job *job = io_queue_free(&reader->queue);
    const int64_t begin = block * MANIFEST_BLOCK_BYTES, left = reader->entry->bytes - begin;
    if (job == NULL || left <= 0) {
        return false;
    }
    job->file = &reader->file;
    job->write = false;
    job->offset = begin;
    job->bytes = (size_t)(left < MANIFEST_BLOCK_BYTES ? left : MANIFEST_BLOCK_BYTES);
    reader->asked = block;
    io_queue_submit(&reader->queue);
    return true;
}

static void forget_blocks(struct reader *reader)
{
    while (io_queue_wait(&reader->queue) != NULL) {
        io_queue_release(&reader->queue);
    }
    reader->verified = reader->asked = -1;
}

static int64_t front_block(const struct reader *reader)
{
    const struct io_job *job = io_queue_oldest(&reader->queue);
    return job != NULL ? job->offset / MANIFEST_BLOCK_BYTES : -1;
}

/* Brings `block` to the front: it is there, on its way, or asked for now. */
static void bring(struct reader *reader, int64_t block)
{
    while (front_block(reader) >= 0 && front_block(reader) < block) {
        (void)io_queue_wait(&reader->queue);
        io_queue_release(&reader->queue);
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
    if (io_queue_free(&reader->queue) == NULL) {
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
    const struct io_job *job = io_queue_wait(&reader->queue);
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
    TRY(io_queue_open(&reader->queue, (size_t)MANIFEST_BLOCK_BYTES, IO_QUEUE_DEPTH));
    reader->made = true;
    return STATUS_OK;
}

static void reader_free(struct reader *reader)
{
    io_queue_close(&reader->queue);
    free(reader->pack);
    reader->pack = NULL;
    reader->made = false;
}

static enum status read_all(const char *path, const struct manifest *manifest,
                            struct wanted_list *list)
{
    struct reader reader;
    TRY(reader_init(&reader));
    wanted_sort(list);
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
        status = wanted_plan(&list, path, &manifest, &slices[i]);
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

/* A reader per file where a call takes of several, the columns that ranks held: each keeps its
 * block for the next call, one or two of 4 MiB. Of a tensor in more files than that the first ones
 * keep theirs. */
enum { MOST_READERS = 64 };

struct checkpoint_reader {
    struct manifest manifest;
    struct reader reader[MOST_READERS]; /* `made` ones are there */
    int64_t uses, call, before; /* uses: of readers; at the begin of this call, of the one before */
    struct wanted_list list;    /* of one call */
    char path[MAX_PATH];
};

static void drop_others(struct checkpoint_reader *reader, const struct reader *kept)
{
    for (int i = 0; i < MOST_READERS; i++) {
        struct reader *one = &reader->reader[i];
        if (one != kept && one->made) {
            const enum status ignored = close_file(one); /* it was only read */
            (void)ignored;
            reader_free(one);
        }
    }
}

/* Whose file is given up. Calls take of the same files in the same order: what was used longest ago
 * is what comes next. So one that this call and the one before had no use for, or the one that was
 * used last. */
static struct reader *spare_reader(struct checkpoint_reader *reader)
{
    struct reader *oldest = NULL, *newest = NULL;
    for (int i = 0; i < MOST_READERS; i++) {
        struct reader *one = &reader->reader[i];
        if (one->made) {
            oldest = oldest == NULL || one->used < oldest->used ? one : oldest;
            newest = newest == NULL || one->used > newest->used ? one : newest;
        }
    }
    return oldest != NULL && oldest->used <= reader->before ? oldest : newest;
}

/* The reader of a file: it has that open, or is new, or is spared. */
static enum status take_reader(struct checkpoint_reader *reader, int64_t file,
                               struct reader **taken)
{
    struct reader *free_one = NULL;
    for (int i = 0; i < MOST_READERS; i++) {
        struct reader *one = &reader->reader[i];
        if (one->made && one->open == file) {
            *taken = one;
            return STATUS_OK;
        }
        free_one = free_one == NULL && !one->made ? one : free_one;
    }
    struct reader *spare = spare_reader(reader);
    if (free_one != NULL && (reader_init(free_one) == STATUS_OK || spare == NULL)) {
        *taken = free_one;
        return free_one->made ? STATUS_OK : status_fail(STATUS_RESOURCE, "%s", status_message());
    }
    *taken = spare;
    return STATUS_OK;
}

enum status checkpoint_open(struct checkpoint_reader **reader, const char *path)
{
    struct checkpoint_reader *made = calloc(1, sizeof *made);
    *reader = NULL;
    if (made == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for reading a checkpoint");
    }
    enum status status = manifest_read(&made->manifest, path);
    status = status == STATUS_OK ? reader_init(&made->reader[0]) : status;
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
        drop_others(reader, NULL);
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
static bool continues(const struct reader *reader, const struct wanted *first)
{
    const int64_t front = front_block(reader), block = first->begin / MANIFEST_BLOCK_BYTES;
    return reader->open == first->file && front >= 0 && (block == front || block == front + 1);
}

/* A call that takes of one file alone: it has all of the memory for blocks, and guesses on. */
static enum status read_one_file(struct checkpoint_reader *reader)
{
    struct reader *one = NULL;
    const struct wanted *first = reader->list.item;
    for (int i = 0; i < MOST_READERS; i++) {
        struct reader *other = &reader->reader[i];
        one = other->made && (one == NULL || other->open == first->file) ? other : one;
    }
    drop_others(reader, one);
    if (one == NULL) {
        TRY(take_reader(reader, first->file, &one));
    }
    return read_list(one, reader->path, &reader->manifest, &reader->list, continues(one, first));
}

static enum status read_files(struct checkpoint_reader *reader)
{
    const struct wanted_list *list = &reader->list;
    reader->before = reader->call;
    reader->call = reader->uses;
    for (int64_t i = 0; i < list->count; i++) {
        const struct outlook outlook = {&list->item[i], list->count - i, false};
        struct reader *one = NULL;
        TRY(take_reader(reader, list->item[i].file, &one));
        one->used = ++reader->uses;
        TRY(open_file(one, reader->path, &reader->manifest, &list->item[i]));
        TRY(copy_wanted(one, &outlook));
    }
    return STATUS_OK;
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
    struct wanted_list *list = &reader->list;
    list->count = 0;
    TRY(wanted_plan(list, reader->path, &reader->manifest, &slice));
    wanted_sort(list);
    if (list->count == 0) {
        return STATUS_OK;
    }
    return list->item[0].file == list->item[list->count - 1].file ? read_one_file(reader)
                                                                  : read_files(reader);
}
