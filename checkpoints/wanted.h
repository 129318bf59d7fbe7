/* wanted: where the elements of a slice lie in the files of a checkpoint, whatever layout it was
 * saved on. Private to checkpoints/.
 */
#ifndef CHECKPOINTS_WANTED_H
#define CHECKPOINTS_WANTED_H

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"

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

/* Adds what a slice wants. Every block that an item reaches into, from its first byte to its last,
 * has bytes that are wanted. Errors: STATUS_MISMATCH: no such tensor, or another dtype or shape,
 * which the message names; STATUS_RESOURCE. */
enum status wanted_plan(struct wanted_list *list, const char *path, const struct manifest *manifest,
                        const struct checkpoint_slice *slice) __attribute__((warn_unused_result));
/* By file and place. */
void wanted_sort(struct wanted_list *list);

#endif
