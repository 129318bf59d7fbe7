#define _DEFAULT_SOURCE /* madvise */
#include "checkpoints/blocks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checkpoints/block_queue.h"
#include "kernels/base/hash.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096 };
static const size_t MOST_TEXT = (size_t)64 << 20;

/* Of few large pages: direct I/O to 1,024 small ones takes two to three times as long. */
void *blocks_buffer(void)
{
    enum { PAGE_BYTES = 2 << 20 };
    void *buffer = aligned_alloc(PAGE_BYTES, (size_t)MANIFEST_BLOCK_BYTES);
    if (buffer != NULL) {
        (void)madvise(buffer, (size_t)MANIFEST_BLOCK_BYTES, MADV_HUGEPAGE); /* advice only */
    }
    return buffer;
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

/* The result of the oldest job, which is released. */
static enum status finish_oldest(struct block_queue *queue)
{
    const struct block_job *job = block_queue_wait(queue);
    const enum status status =
        job->status == STATUS_OK ? STATUS_OK : status_lines(job->status, job->message);
    block_queue_release(queue);
    return status;
}

static enum status finish_all(struct block_queue *queue)
{
    while (block_queue_oldest(queue) != NULL) {
        TRY(finish_oldest(queue));
    }
    return STATUS_OK;
}

/* One block is filled and hashed while those before it are written. */
static enum status queue_blocks(struct block_queue *queue, struct io_file *file, int64_t bytes,
                                blocks_source source, void *context, uint64_t *hash)
{
    for (int64_t b = 0; b < manifest_blocks(bytes); b++) {
        struct block_job *job = block_queue_free(queue);
        while (job == NULL) {
            TRY(finish_oldest(queue));
            job = block_queue_free(queue);
        }
        job->file = file;
        job->write = true;
        job->offset = b * MANIFEST_BLOCK_BYTES;
        job->bytes = (size_t)block_size(bytes, b);
        TRY(source(context, job->offset, job->buffer, job->bytes));
        hash[b] = hash_bytes(job->buffer, job->bytes);
        block_queue_submit(queue);
    }
    return finish_all(queue);
}

static enum status write_blocks(struct io_file *file, int64_t bytes, blocks_source source,
                                void *context, uint64_t *hash)
{
    struct block_queue queue;
    TRY(block_queue_open(&queue));
    const enum status status = queue_blocks(&queue, file, bytes, source, context, hash);
    block_queue_close(&queue);
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
                               const struct block_job *job, const struct check *check)
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

static void read_ahead(struct block_queue *queue, struct io_file *file, int64_t bytes,
                       int64_t *next)
{
    for (struct block_job *job = block_queue_free(queue);
         job != NULL && *next < manifest_blocks(bytes); job = block_queue_free(queue)) {
        job->file = file;
        job->write = false;
        job->offset = *next * MANIFEST_BLOCK_BYTES;
        job->bytes = (size_t)block_size(bytes, (*next)++);
        block_queue_submit(queue);
    }
}

/* Blocks are read while those before them are hashed. */
static enum status compare(struct io_file *file, const struct manifest *manifest, int64_t index,
                           const struct check *check)
{
    const struct manifest_file *entry = &manifest->file[index];
    struct block_queue queue;
    int64_t bytes = 0, next = 0;
    TRY(io_size(file, &bytes));
    if (bytes != entry->bytes) {
        return wrong_size(file->path, bytes, entry->bytes);
    }
    TRY(block_queue_open(&queue));
    enum status status = STATUS_OK;
    for (int64_t b = 0; b < manifest_blocks(bytes) && status == STATUS_OK; b++) {
        read_ahead(&queue, file, bytes, &next);
        status = check_block(entry, index, b, block_queue_wait(&queue), check);
        block_queue_release(&queue);
    }
    block_queue_close(&queue);
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
