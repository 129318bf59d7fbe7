/* blocks: files written and read back in blocks of the manifest, each with its hash. Private to
 * checkpoints/.
 */
#ifndef CHECKPOINTS_BLOCKS_H
#define CHECKPOINTS_BLOCKS_H

#include "checkpoints/manifest.h"

/* Fills `to` with bytes [begin, begin + bytes) of the file; called in rising order, each byte
 * once. */
typedef enum status (*blocks_source)(void *context, int64_t begin, void *to, size_t bytes);

/* Memory of one block, aligned for direct I/O; free(). NULL: out of memory. */
void *blocks_buffer(void);

/* Local. Writes and syncs path/name, `bytes` long, past the page cache where it can, and adds it to
 * `manifest`. Errors: STATUS_IO, STATUS_RESOURCE, those of the source. */
enum status blocks_write(struct manifest *manifest, const char *path, const char *name,
                         int64_t bytes, blocks_source source, void *context)
    __attribute__((warn_unused_result));
/* The same of a short text, which must be valid until then: beside, synced, renamed. */
enum status blocks_write_text(struct manifest *manifest, const char *path, const char *name,
                              const char *text) __attribute__((warn_unused_result));

/* Local. A short text, whose hashes agree; *text owned by the caller. Errors: STATUS_DATA names
 * file and block; STATUS_IO, STATUS_RESOURCE. */
enum status blocks_read_text(const struct manifest *manifest, int64_t file, const char *path,
                             char **text) __attribute__((warn_unused_result));

/* Local. Reads a file back, from the disk where it can, and compares every block with the manifest.
 * Errors: STATUS_DATA names file and block. */
enum status blocks_verify(const struct manifest *manifest, int64_t file, const char *path)
    __attribute__((warn_unused_result));
/* The same to the end of the file: `bad` is called for each damaged or unreadable block, which is
 * no error here. */
enum status blocks_verify_all(const struct manifest *manifest, int64_t file, const char *path,
                              void (*bad)(void *context, int64_t file, int64_t block),
                              void *context) __attribute__((warn_unused_result));

#endif
