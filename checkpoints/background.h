/* background: a save beside the training, by one thread per rank.
 *
 * At a step edge background_start takes what is to be saved as it is then; training may go on at
 * once, but calls background_hold before it changes any of it. The thread copies (snapshot.h), then
 * writes the shard from the copy. The ranks meet at later step edges: background_poll there asks
 * whether all have written, then rank 0's thread publishes, and a later poll says how it went. Only
 * the caller's thread talks to other ranks. One save at a time. While it is under way nothing else
 * in the process may call HDF5, of which only one build in two allows it.
 */
#ifndef CHECKPOINTS_BACKGROUND_H
#define CHECKPOINTS_BACKGROUND_H

#include <stdatomic.h>

#include "checkpoints/save.h"
#include "checkpoints/snapshot.h"

enum background_phase { BACKGROUND_IDLE, BACKGROUND_WRITING, BACKGROUND_PUBLISHING };

struct background {
    struct comm *comm; /* borrowed */
    struct snapshot snapshot;
    struct save save;
    char *state;                 /* owned: of the save under way */
    bool roams;                  /* it leaves the core that the caller is pinned to */
    enum background_phase phase; /* the same on every rank */
    pthread_t thread;
    bool running;         /* thread is there, to be joined */
    atomic_bool finished; /* it has nothing left to do */
    double seconds;       /* that this rank has worked on the save */
};

/* Local. Memory for a copy of the slices (snapshot_init, which says of `device`). Errors:
 * STATUS_RESOURCE; STATUS_USAGE: HDF5 here is not thread-safe. */
enum status background_init(struct background *background, struct comm *comm,
                            const struct checkpoint_slice *slices, int64_t count,
                            struct device *device, bool roams) __attribute__((warn_unused_result));
/* Local, before the first save. A thread touches the memory from here on, so that the first save
 * costs what others cost. */
void background_touch(struct background *background);
/* Local. Accepts a zeroed one. A save under way is waited for, and lost: background_finish first.
 */
void background_free(struct background *background);

/* Collective. As checkpoint_save, of the slices given to background_init; none is under way.
 * `state`: malloc'ed, taken over. What fails at once (no room on the disk) is returned, and nothing
 * is under way then. */
enum status background_start(struct background *background, const char *root, int64_t step,
                             char *state, int keep_last) __attribute__((warn_unused_result));
/* Local. At return all that the slices hold is copied, or nothing is under way: it may change. */
void background_hold(struct background *background);
/* Collective, never waits for a disk. Whether the save under way has ended, with *status and the
 * message of checkpoint_save. */
bool background_poll(struct background *background, enum status *status);
/* Collective. The end of the save under way, waited for; there is one. */
enum status background_finish(struct background *background) __attribute__((warn_unused_result));

#endif
