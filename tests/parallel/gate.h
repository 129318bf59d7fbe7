/* gate: holds a thread up in its first file operation, so that tests can look around meanwhile. */
#ifndef TESTS_PARALLEL_GATE_H
#define TESTS_PARALLEL_GATE_H

#include <stdatomic.h>
#include <time.h>

#include "kernels/base/io_fault.h"

static atomic_bool gate_closed;

static inline void gate_wait(void *context, const struct io_event *event)
{
    (void)context;
    (void)event;
    while (atomic_load(&gate_closed)) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

/* While no other thread has operations under way. */
static inline void gate_close(void)
{
    atomic_store(&gate_closed, true);
    io_observe(gate_wait, NULL);
}

static inline void gate_open(void)
{
    atomic_store(&gate_closed, false);
}

#endif
