/* share: the tasks of a loop shared out to threads so that each has neighbours.
 *
 * A thread takes tasks of its own range, from the first on, and when that is empty, one at a time
 * the last of the ranges of others. So what it has of a task's neighbours in its caches, or packed,
 * serves again: cores of different chiplets have no cache in common, and a line that the other
 * wrote is as far as memory (docs/benchmarks.md). In a parallel region: every thread sets its
 * share, all meet at a barrier, then take; shares may be set again when all are past the next
 * barrier.
 */
#ifndef KERNELS_CPU_SHARE_H
#define KERNELS_CPU_SHARE_H

#include <stdatomic.h>
#include <stdint.h>

/* What is left of a thread's: the number of the first task in the lower half, behind the last in
 * the upper. Two lines, as some processors fetch them. */
struct share {
    _Atomic uint64_t left;
    char apart[128 - sizeof(uint64_t)];
};

/* The thread's part of `tasks`, fewer than 2^31, in order of threads. */
struct share share_even(int64_t tasks, int threads, int self);

/* A task of the thread's own, else of another's; < 0: none is left. shares[threads] */
int64_t share_take(struct share *shares, int threads, int self);

#endif
