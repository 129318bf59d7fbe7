/* io: every file operation of checkpoints, token files and run directories, with fault points for
 * tests.
 *
 * Each call names its file in the error message and handles EINTR and short transfers. Tests make
 * the k-th operation fail, tear, or kill the process (io_fault.h).
 */
#ifndef KERNELS_BASE_IO_H
#define KERNELS_BASE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/io_fault.h"
#include "kernels/base/status.h"

#define IO_CHECKED __attribute__((warn_unused_result))

struct io_file {
    int fd;     /* -1 when closed */
    char *path; /* owned, for messages */
    bool writes, direct;
};

enum { IO_ALIGNMENT = 4096 }; /* of memory, offset and length, for transfers past the page cache */

enum status io_create(struct io_file *file,
                      const char *path) IO_CHECKED; /* new or truncated, for writing */
enum status io_open_write(struct io_file *file,
                          const char *path) IO_CHECKED; /* existing, for pwrite */
enum status io_open_append(struct io_file *file,
                           const char *path) IO_CHECKED; /* created when missing */
enum status io_open_read(struct io_file *file,
                         const char *path) IO_CHECKED; /* missing: STATUS_IO */
/* The same past the page cache where the file system can: transfers that are not aligned to
 * IO_ALIGNMENT go through it. */
enum status io_create_direct(struct io_file *file, const char *path) IO_CHECKED;
enum status io_open_read_direct(struct io_file *file, const char *path) IO_CHECKED;
/* At least `bytes` of memory that such transfers want: aligned, and of few large pages, since from
 * many small ones they take two to three times as long. free(); NULL: out of memory. */
void *io_buffer(size_t bytes);
enum status io_write(struct io_file *file, const void *data, size_t bytes) IO_CHECKED;
enum status io_pwrite(struct io_file *file, const void *data, size_t bytes,
                      int64_t offset) IO_CHECKED;
enum status io_pread(struct io_file *file, void *data, size_t bytes,
                     int64_t offset) IO_CHECKED; /* short: STATUS_DATA */
enum status io_size(struct io_file *file, int64_t *bytes) IO_CHECKED;
enum status io_truncate(struct io_file *file, int64_t bytes) IO_CHECKED;
enum status io_sync(struct io_file *file) IO_CHECKED;  /* fsync */
enum status io_close(struct io_file *file) IO_CHECKED; /* error of close counts; twice is fine */

/* And its parents, each synced where it was made; existing is fine. */
enum status io_make_dir(const char *path) IO_CHECKED;
enum status io_sync_dir(const char *path) IO_CHECKED;
/* Never in place of a pipe or a device: as root /dev/null would become a file. */
enum status io_rename(const char *from, const char *to) IO_CHECKED;
enum status io_remove(const char *path) IO_CHECKED; /* a file; missing is fine */
/* The same of what is in nobody's way if it stays; keeps status_message(). */
void io_discard(const char *path);
enum status
io_remove_tree(const char *path) IO_CHECKED; /* a folder and all in it, links themselves, not what
                                                they point to; missing is fine */
bool io_exists(const char *path);
/* Calls `each` with every name in a folder but . and .., in no order, until one fails; *there:
 * whether there is such a folder at all (none is no error). */
enum status io_list(const char *path, bool *there,
                    enum status (*each)(void *context, const char *name), void *context) IO_CHECKED;
/* That it is a file, which ends and opens at once: no folder, pipe or device. STATUS_DATA. */
enum status io_check_regular(const char *path) IO_CHECKED;
/* That a file may come to stand there: nothing does, or a file. STATUS_USAGE. */
enum status io_check_output(const char *path) IO_CHECKED;
enum status io_free_bytes(const char *path,
                          int64_t *bytes) IO_CHECKED; /* of the file system that holds path */
/* Whole file, NUL-terminated; *data owned by caller (free). Larger than `limit`: STATUS_DATA. */
enum status io_read_file(const char *path, char **data, size_t *bytes, size_t limit) IO_CHECKED;
/* Written beside, synced, renamed: readers see the old or the new, never a part. */
enum status io_write_file(const char *path, const void *data, size_t bytes) IO_CHECKED;
/* Exclusive lock held by the process until io_unlock or exit; taken: STATUS_USAGE naming host and
 * pid of the holder. */
enum status io_lock(struct io_file *lock, const char *path) IO_CHECKED;
void io_unlock(struct io_file *lock);

#endif
