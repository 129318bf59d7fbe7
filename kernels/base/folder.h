/* folder: a new folder that appears under its name whole, or not at all.
 *
 * It is made beside its place, as .tmp-NAME, under the lock .tmp-NAME.lock, and renamed at the end.
 * A process that is killed leaves both; the next one with the same place takes the lock over and
 * clears what lies there.
 */
#ifndef KERNELS_BASE_FOLDER_H
#define KERNELS_BASE_FOLDER_H

#include "kernels/base/io.h"

enum { FOLDER_PATH_BYTES = 4096 };

struct folder {
    char parent[FOLDER_PATH_BYTES]; /* "." when the place names none */
    char place[FOLDER_PATH_BYTES];  /* without slashes at its end */
    char work[FOLDER_PATH_BYTES];
    struct io_file lock;
    bool begun; /* the lock is held, `work` is there */
};

/* Parts of the name; nothing is touched. Errors: STATUS_USAGE for a name that no new folder can
 * have ("", "x/..", "/"), or what is there already: anything but an empty folder. */
enum status folder_name(struct folder *folder, const char *place) IO_CHECKED;
/* Makes `work`, empty, and the parents. Errors: STATUS_USAGE when another process makes the same
 * place; STATUS_IO. */
enum status folder_begin(struct folder *folder) IO_CHECKED;
/* `work`, which is complete and synced, gets its name. */
enum status folder_publish(struct folder *folder) IO_CHECKED;
/* Removes `work` unless it was published, lets go of the lock; keeps status_message(). Accepts a
 * zeroed one. */
void folder_drop(struct folder *folder);

#endif
