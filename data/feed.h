/* feed: this rank's batches of a step, those of the next one made by a helper thread meanwhile.
 *
 * Two sets of arrays, allocated once: the step reads one while the thread fills the other. What is
 * in a batch depends on the mixture and the position only, so a batch made ahead and one made on
 * demand are the same; one that nobody asks for is thrown away. Devices copy batches through page-
 * locked memory of their own (ops->upload).
 */
#ifndef DATA_FEED_H
#define DATA_FEED_H

#include <pthread.h>

#include "data/mixture.h"

/* Micro-batches u*ranks + rank of the samples from `position` on. */
struct feed_set {
    int32_t *storage;      /* owned: all arrays of the batches */
    struct batch *batches; /* [most] owned */
    int64_t position, own; /* what is in it; own 0: nothing */
    int64_t labels;        /* that count, of this rank's batches */
};

struct feed {
    const struct mixture *mixture; /* borrowed: it stays as it is from the first feed_take on.
                                      NULL: closed */
    int64_t micro, length;         /* samples of a micro-batch, T */
    int64_t rank, ranks;
    struct feed_set set[2];
    int current; /* the set that feed_take returned last */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool threaded; /* whether there is a thread; without, batches are made on demand */
    bool filling;  /* under lock: the other set is the thread's */
    bool stop;     /* under lock */
};

/* Local. `most` micro-batches of this rank at a time. Errors: STATUS_RESOURCE. Close it either way.
 */
enum status feed_open(struct feed *feed, const struct mixture *mixture, int64_t micro,
                      int64_t length, int64_t rank, int64_t ranks, int64_t most)
    __attribute__((warn_unused_result));
void feed_close(struct feed *feed); /* accepts a zeroed one; may be called twice */

/* The first `own` batches of this rank from sample `position` on, in *batches; waits for the thread
 * where it makes these, else makes them. Valid until the call after the next. *labels: how many
 * count. Local. Errors: mixture_status; what is in the batches is then no data, but has ids that a
 * model knows. */
enum status feed_take(struct feed *feed, int64_t position, int64_t own,
                      const struct batch **batches, int64_t *labels)
    __attribute__((warn_unused_result));
/* Has the thread make what the next feed_take will ask for. These samples must exist. */
void feed_prepare(struct feed *feed, int64_t position, int64_t own);

#endif
