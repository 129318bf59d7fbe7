#include "checkpoints/blocks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/hash.h"
#include "kernels/base/io.h"
#include "kernels/base/io_queue.h"

enum { MAX_PATH = 4096 };
static const size_t MOST_TEXT = (size_t)64 << 20;

void *blocks_buffer(void)
{
    return io_buffer((size_t)MANIFEST_BLOCK_BYTES);
}

static int64_t block_size(int64_t bytes, int64_t block)
{
    const int64_t left = bytes - block * MANIFEST_BLOCK_BYTES;
    return left < MANIFEST_BLOCK_BYTES ? left : MANIFEST_BLOCK_BYTES;
}

static enum status join(char out[MAX_PATH], const char *path, const char *name)
{
    return snprintf(out, MAX_PATH, "%s/%s", path, name) < MAX_PATH
               ? STATUS_OK
               : status_fail(STATUS_IO, "path too long: %s/%s", path, name);
}

/* One block is filled and hashed while those before it are written. */
static enum status queue_blocks(struct io_queue *queue, struct io_file *file, int64_t bytes,
                                blocks_source source, void *context, uint64_t *hash)
{
    for (int64_t b = 0; b < manifest_blocks(bytes); b++) {
        struct io_job *job = NULL;
        TRY(io_queue_next(queue, &job));
        job->file = file;
        job->write = true;
        job->offset = b * MANIFEST_BLOCK_BYTES;
        job->bytes = (size_t)block_size(bytes, b);
        TRY(source(context, job->offset, job->buffer, job->bytes));
        hash[b] = hash_bytes(job->buffer, job->bytes);
        io_queue_submit(queue);
    }
    return io_queue_finish(queue);
}

static enum status write_blocks(struct io_file *file, int64_t bytes, blocks_source source,
                                void *context, uint64_t *hash)
{
    struct io_queue queue;
    TRY(io_queue_open(&queue, (size_t)MANIFEST_BLOCK_BYTES, IO_QUEUE_DEPTH));
    const enum status status = queue_blocks(&queue, file, bytes, source, context, hash);
    io_queue_close(&queue);
    return status;
}

static enum status write_file(const char *name, int64_t bytes, blocks_source source, void *context,
                              uint64_t *hash)
{
    struct io_file file;
    TRY(io_create_direct(&file, name));
    enum status status = io_truncate(&file, bytes);
    status = status == STATUS_OK ? write_blocks(&file, bytes, source, context, hash) : status;
    status = status == STATUS_OK ? io_sync(&file) : status;
    const enum status closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

enum status blocks_write(struct manifest *manifest, const char *path, const char *name,
                         int64_t bytes, blocks_source source, void *context)
{
    char full[MAX_PATH];
    TRY(join(full, path, name));
    uint64_t *hash = calloc((size_t)manifest_blocks(bytes) + 1, sizeof *hash);
    enum status status = hash != NULL ? write_file(full, bytes, source, context, hash)
                                      : status_fail(STATUS_RESOURCE, "out of memory for hashes");
    status = status == STATUS_OK ? manifest_add_file(manifest, name, bytes, hash) : status;
    free(hash);
    return status;
}

static enum status wrong_size(const char *name, int64_t bytes, int64_t said)
{
    return status_fail(STATUS_DATA, "%s: %lld bytes, the manifest says %lld", name,
                       (long long)bytes, (long long)said);
}

static enum status damaged(const char *name, int64_t block)
{
    return status_fail(STATUS_DATA, "%s: damaged in block %lld (bytes from %lld)", name,
                       (long long)block, (long long)(block * MANIFEST_BLOCK_BYTES));
}

static enum status missing(const char *name)
{
    return status_fail(STATUS_DATA, "%s: missing; the checkpoint is not whole", name);
}

enum status blocks_read_text(const struct manifest *manifest, int64_t index, const char *path,
                             char **text)
{
    const struct manifest_file *entry = &manifest->file[index];
    char full[MAX_PATH];
    size_t bytes = 0;
    *text = NULL;
    TRY(join(full, path, entry->name));
    if (!io_exists(full)) {
        return missing(full);
    }
    TRY(io_read_file(full, text, &bytes, MOST_TEXT));
    enum status status =
        (int64_t)bytes == entry->bytes ? STATUS_OK : wrong_size(full, (int64_t)bytes, entry->bytes);
    for (int64_t b = 0; b < manifest_blocks(entry->bytes) && status == STATUS_OK; b++) {
        const uint64_t hash =
            hash_bytes(*text + b * MANIFEST_BLOCK_BYTES, (size_t)block_size(entry->bytes, b));
        status = hash == entry->block[b] ? STATUS_OK : damaged(full, b);
    }
    if (status != STATUS_OK) {
        free(*text);
        *text = NULL;
    }
    return status;
}

enum status blocks_write_text(struct manifest *manifest, const char *path, const char *name,
                              const char *text)
{
    char full[MAX_PATH];
    const int64_t bytes = (int64_t)strlen(text);
    TRY(join(full, path, name));
    TRY(io_write_file(full, text, (size_t)bytes));
    uint64_t *hash = calloc((size_t)manifest_blocks(bytes) + 1, sizeof *hash);
    if (hash == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for hashes");
    }
    for (int64_t b = 0; b < manifest_blocks(bytes); b++) {
        hash[b] = hash_bytes(text + b * MANIFEST_BLOCK_BYTES, (size_t)block_size(bytes, b));
    }
    const enum status status = manifest_add_file(manifest, name, bytes, hash);
    free(hash);
    return status;
}

/* What is done about damaged blocks: told; or, without `bad`, the first is an error. */
struct check {
    void (*bad)(void *, int64_t, int64_t);
    void *context;
};

/* A block that was read. */
static enum status check_block(const struct manifest_file *entry, int64_t index, int64_t block,
                               const struct io_job *job, const struct check *check)
{
    enum status status =
        job->status == STATUS_OK ? STATUS_OK : status_lines(job->status, job->message);
    if (status == STATUS_OK && hash_bytes(job->buffer, job->bytes) != entry->block[block]) {
        status = damaged(job->file->path, block);
    }
    if (status != STATUS_OK && check->bad != NULL) {
        check->bad(check->context, index, block);
        return STATUS_OK;
    }
    return status;
}

static void read_ahead(struct io_queue *queue, struct io_file *file, int64_t bytes, int64_t *next)
{
    for (struct io_job *job = io_queue_free(queue); job != NULL && *next < manifest_blocks(bytes);
         job = io_queue_free(queue)) {
        job->file = file;
        job->write = false;
        job->offset = *next * MANIFEST_BLOCK_BYTES;
        job->bytes = (size_t)block_size(bytes, (*next)++);
        io_queue_submit(queue);
    }
}

/* Blocks are read while those before them are hashed. */
static enum status compare(struct io_file *file, const struct manifest *manifest, int64_t index,
                           const struct check *check)
{
    const struct manifest_file *entry = &manifest->file[index];
    struct io_queue queue;
    int64_t bytes = 0, next = 0;
    TRY(io_size(file, &bytes));
    if (bytes != entry->bytes) {
        return wrong_size(file->path, bytes, entry->bytes);
    }
    TRY(io_queue_open(&queue, (size_t)MANIFEST_BLOCK_BYTES, IO_QUEUE_DEPTH));
    enum status status = STATUS_OK;
    for (int64_t b = 0; b < manifest_blocks(bytes) && status == STATUS_OK; b++) {
        read_ahead(&queue, file, bytes, &next);
        status = check_block(entry, index, b, io_queue_wait(&queue), check);
        io_queue_release(&queue);
    }
    io_queue_close(&queue);
    return status;
}

static enum status verify(const struct manifest *manifest, int64_t index, const char *path,
                          const struct check *check)
{
    char full[MAX_PATH];
    struct io_file file;
    TRY(join(full, path, manifest->file[index].name));
    if (!io_exists(full)) {
        return missing(full);
    }
    TRY(io_open_read_direct(&file, full));
    const enum status status = compare(&file, manifest, index, check), closed = io_close(&file);
    return status == STATUS_OK ? closed : status;
}

enum status blocks_verify(const struct manifest *manifest, int64_t index, const char *path)
{
    return verify(manifest, index, path, &(struct check){0});
}

enum status blocks_verify_all(const struct manifest *manifest, int64_t index, const char *path,
                              void (*bad)(void *, int64_t, int64_t), void *context)
{
    return verify(manifest, index, path, &(struct check){.bad = bad, .context = context});
}
