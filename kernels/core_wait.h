/* core_wait: how long the threads of this rank's training were ready to run, and no core ran them:
 * something else had it, or a quota was spent.
 *
 * As Linux counts it for each thread (/proc/thread-self/schedstat, second figure). It tells a rank
 * that is given less of its cores from one that works slower. Where the kernel does not count
 * (CONFIG_SCHED_INFO), nothing is: `threads` is 0.
 */
#ifndef KERNELS_CORE_WAIT_H
#define KERNELS_CORE_WAIT_H

#include <stdint.h>

#include "kernels/base/status.h"

struct core_wait {
    int threads; /* of the training, the one that opened it first; 0: nothing is counted */
    int *fd;     /* [threads] owned */
};

/* Local. Of the calling thread and the others of its OpenMP team of `threads`. Errors:
 * STATUS_RESOURCE. */
enum status core_wait_open(struct core_wait *wait, int threads) __attribute__((warn_unused_result));
void core_wait_close(struct core_wait *wait); /* accepts a zeroed one */

/* Nanoseconds that thread `thread` has waited for a core in its life. Local. */
int64_t core_wait_ns(const struct core_wait *wait, int thread);

#endif
