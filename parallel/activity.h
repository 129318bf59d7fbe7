/* activity: what this rank's communication is doing, for a thread that watches it. The groups of a
 * process share one record, which comm_open makes; they write it, anyone reads it. */
#ifndef PARALLEL_ACTIVITY_H
#define PARALLEL_ACTIVITY_H

#include <stdatomic.h>
#include <stdint.h>

struct comm_activity {
    _Atomic(const char *) operation; /* "all_to_all" while in it, else NULL */
    _Atomic(const char *) group;     /* of it: "ep", or "" */
    _Atomic int64_t bytes;           /* that this rank sends in it */
    _Atomic int64_t done;            /* operations and layers so far */
    _Atomic int64_t layer;           /* being computed, as the model says; -1: none */
};

#endif
