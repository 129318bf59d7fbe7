#include "data/block_file.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum status block_file_open(struct block_file *file, const char *path)
{
    *file = (struct block_file){.file = {.fd = -1}};
    TRY(io_check_regular(path));
    TRY(io_open_read(&file->file, path));
    TRY(io_size(&file->file, &file->bytes));
    file->memory = malloc((size_t)BLOCK_FILE_SLOTS * BLOCK_FILE_BYTES);
    for (int i = 0; i < BLOCK_FILE_SLOTS && file->memory != NULL; i++) {
        file->slot[i].data = file->memory + (size_t)i * BLOCK_FILE_BYTES;
        file->slot[i].block = -1;
    }
    return file->memory != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for reading %s", path);
}

void block_file_close(struct block_file *file)
{
    if (file->file.path != NULL) {
        const enum status ignored = io_close(&file->file); /* it was only read */
        (void)ignored;
    }
    free(file->memory);
    *file = (struct block_file){.file = {.fd = -1}};
}

void block_file_fail(struct block_file *file, enum status status, const char *format, ...)
{
    if (file->status == STATUS_OK) {
        va_list args;
        file->status = status;
        va_start(args, format);
        vsnprintf(file->message, sizeof file->message, format, args);
        va_end(args);
    }
}

enum status block_file_status(const struct block_file *file)
{
    return file->status == STATUS_OK ? STATUS_OK : status_fail(file->status, "%s", file->message);
}

void block_file_read_through(struct block_file *file, int64_t offset, void *to, size_t bytes)
{
    const enum status status =
        file->status == STATUS_OK ? io_pread(&file->file, to, bytes, offset) : file->status;
    if (status != STATUS_OK) {
        memset(to, 0, bytes);
        block_file_fail(file, status, "%s", status_message());
    }
}

/* The slot of the oldest use takes the block. */
static int load(struct block_file *file, int64_t block)
{
    const int64_t begin = block * BLOCK_FILE_BYTES, left = file->bytes - begin;
    int oldest = 0;
    for (int i = 0; i < BLOCK_FILE_SLOTS; i++) {
        if (file->slot[i].block == block) {
            return i;
        }
        oldest = file->slot[i].used < file->slot[oldest].used ? i : oldest;
    }
    file->slot[oldest].block = block;
    block_file_read_through(file, begin, file->slot[oldest].data,
                            (size_t)(left < BLOCK_FILE_BYTES ? left : BLOCK_FILE_BYTES));
    return oldest;
}

static const char *block_data(struct block_file *file, int64_t block)
{
    if (file->slot[file->newest].block != block) {
        file->newest = load(file, block);
        file->slot[file->newest].used = ++file->uses;
    }
    return file->slot[file->newest].data;
}

void block_file_read(struct block_file *file, int64_t offset, void *to, size_t bytes)
{
    for (char *out = to; bytes > 0;) {
        const int64_t block = offset / BLOCK_FILE_BYTES, at = offset % BLOCK_FILE_BYTES;
        const size_t left = (size_t)(BLOCK_FILE_BYTES - at), piece = bytes < left ? bytes : left;
        memcpy(out, block_data(file, block) + at, piece);
        out += piece;
        offset += (int64_t)piece;
        bytes -= piece;
    }
}
