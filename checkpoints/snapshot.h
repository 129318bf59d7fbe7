/* snapshot: what slices hold at one moment, copied beside them piece by piece, by several threads
 * if there are any.
 *
 * A step of training changes weights and moments only at its very end, so the copy is made while
 * the next step computes; whoever is about to change them calls snapshot_finish first, which copies
 * what is left. Memory: once the slices.
 *
 * A device with memory of its own copies by itself (ops->download_begin), into memory of the host
 * that it may write to; only the thread that runs the device may then call anything but
 * snapshot_copy and snapshot_wait.
 */
#ifndef CHECKPOINTS_SNAPSHOT_H
#define CHECKPOINTS_SNAPSHOT_H

#include <pthread.h>

#include "checkpoints/checkpoint.h"
#include "kernels/device.h"

struct snapshot_piece;

struct snapshot {
    struct checkpoint_slice
        *slice; /* [slices] owned: as given, but of the copies; `name` borrowed */
    int64_t slices;
    struct device *device; /* borrowed: whose memory slices with `read` are, others are the host's;
                              NULL: any thread reads them */
    char *memory;          /* owned */
    size_t bytes;
    struct snapshot_piece *piece; /* [pieces] owned */
    int64_t own, pieces;  /* the first so many are copied by threads, the rest by `device` */
    pthread_mutex_t lock; /* of the counters */
    pthread_cond_t whole;
    int64_t taken, copied; /* pieces */
    bool landed;           /* the device's are among the copied */
    bool made;             /* lock and condition are */
};

/* Bytes of the copy: the slices, each padded to 64, all together to 2 MiB where they are more. */
size_t snapshot_bytes(const struct checkpoint_slice *slices, int64_t count);
/* Local. Memory for what `slices` (borrowed) hold, whose data, or what `read` reads it from, stays
 * where it is; `read` cannot fail. Nothing is copied yet. device: NULL, or the one whose memory
 * the data of slices with `read` is. Errors: STATUS_RESOURCE. */
enum status snapshot_init(struct snapshot *snapshot, const struct checkpoint_slice *slices,
                          int64_t count, struct device *device) __attribute__((warn_unused_result));
void snapshot_free(struct snapshot *snapshot); /* accepts a zeroed one */
/* Any thread, before the first start. Makes the system find the memory, or the first copy would
 * wait for every page of it. */
void snapshot_touch(struct snapshot *snapshot);

/* What the slices hold from here on to snapshot_finish is what the copy will hold. */
void snapshot_start(struct snapshot *snapshot);
/* Any thread. Copies pieces until all are taken; what other threads took may still be under way. */
void snapshot_copy(struct snapshot *snapshot);
/* Any thread. Waits until others have copied everything. */
void snapshot_wait(struct snapshot *snapshot);
/* Any thread, or the device's. Both: at return the copy is whole. */
void snapshot_finish(struct snapshot *snapshot);

#endif
