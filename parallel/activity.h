/* activity: what this rank's communication is doing and how long it took, for a thread that watches
 * it and for who counts. The groups of a process share one record, which comm_open makes; they
 * write it, anyone reads it. */
#ifndef PARALLEL_ACTIVITY_H
#define PARALLEL_ACTIVITY_H

#include <stdatomic.h>
#include <stdint.h>

#include "kernels/core_wait.h"
#include "parallel/spans.h"

struct comm_activity {
    _Atomic(const char *) operation; /* "all_to_all" while in it, else NULL */
    _Atomic(const char *) group;     /* of it: "ep", or "" */
    _Atomic int64_t bytes;           /* that this rank sends in it */
    _Atomic int64_t done;            /* operations and layers so far */
    _Atomic int64_t layer;           /* being computed, as the model says; -1: none */
    /* Time that this rank's training has spent in operations on host memory so far; what a device
     * does by itself (nccl) is not in it. */
    int64_t waited_ns, exchanged_ns; /* all of them; of these, all-to-alls */
    int64_t entered_ns;
    int32_t peer, kind;            /* of the operation, for spans */
    uint32_t rows;                 /* bits: rows of a trace in which something is under way */
    const struct core_wait *cores; /* borrowed, or NULL: waits for a core are not told apart */
    int64_t coreless_ns, entered_coreless_ns; /* of waited_ns: ready to run, without a core */
    /* The wires' own: the group whose operation was started last on the device, and its end, so
     * that those of other groups come behind it; NULL: none, or all are behind it anyway. */
    const void *device_group;
    void *device_end;
    _Atomic(struct spans *) spans; /* borrowed, or NULL: nothing is recorded */
};

#endif
