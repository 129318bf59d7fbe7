/* file_map: the bytes of a file, in memory as they are read. */
#ifndef DATA_FILE_MAP_H
#define DATA_FILE_MAP_H

#include <stddef.h>

#include "kernels/base/status.h"

/* A zeroed one is closed. */
struct file_map {
    const char *data; /* [bytes] the mapping, read-only; NULL for an empty file */
    size_t bytes;
};

/* Local. Errors: STATUS_IO naming the file: missing, unreadable; STATUS_DATA for what is no file.
 * Close it either way. */
enum status file_map_open(struct file_map *map, const char *path)
    __attribute__((warn_unused_result));
void file_map_close(struct file_map *map); /* accepts a zeroed one; may be called twice */

#endif
