/* block_file: the bytes of a file, read through io in blocks of which the last few are kept.
 *
 * Readers take bytes at any place and look at the status behind many of them: the first read that
 * fails (an error of the disk, a file that was cut since it was opened) is kept with its words, and
 * all bytes are zeros from there on. One thread at a time.
 */
#ifndef DATA_BLOCK_FILE_H
#define DATA_BLOCK_FILE_H

#include "kernels/base/io.h"

enum { BLOCK_FILE_SLOTS = 8, BLOCK_FILE_BYTES = 1 << 15 };

struct block_file {
    struct io_file file;
    int64_t bytes; /* of the file, when it was opened */
    struct {
        char *data;    /* [BLOCK_FILE_BYTES] in `memory` */
        int64_t block; /* which one of the file; -1: none */
        int64_t used;  /* when it was last: the largest is the newest */
    } slot[BLOCK_FILE_SLOTS];
    char *memory; /* owned: all slots */
    int newest;   /* slot that was used last */
    int64_t uses;
    enum status status; /* of the first read that failed */
    char message[1024]; /* and its words */
};

/* Local. Errors: STATUS_IO naming the file (missing, unreadable), STATUS_DATA for what is no file,
 * STATUS_RESOURCE. Close it either way. */
enum status block_file_open(struct block_file *file, const char *path) IO_CHECKED;
void block_file_close(struct block_file *file); /* accepts a zeroed one; may be called twice */
/* Bytes [offset, offset + bytes) of the file, which has them. */
void block_file_read(struct block_file *file, int64_t offset, void *to, size_t bytes);
/* The same past the blocks, for large pieces. */
void block_file_read_through(struct block_file *file, int64_t offset, void *to, size_t bytes);
/* Counts what was read as a failure: file->status and its words. */
void block_file_fail(struct block_file *file, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* That of the first read that failed, with its words. */
enum status block_file_status(const struct block_file *file) IO_CHECKED;

#endif
