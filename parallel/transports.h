/* transports: how comm_open and comm_attach reach their implementations. */
#ifndef PARALLEL_TRANSPORTS_H
#define PARALLEL_TRANSPORTS_H

#include "parallel/comm.h"

void comm_self_open(struct comm *world);
enum status comm_mpi_open(struct comm *world) __attribute__((warn_unused_result));

/* How device memory travels; meanings in comm.h. */
struct comm_wire {
    const char *name;
    void (*all_reduce)(struct comm *, void *data, int64_t count, enum dtype, enum reduce);
    void (*reduce_scatter)(struct comm *, float *out, const float *in, int64_t count);
    void (*all_gather)(struct comm *, void *out, const void *in, size_t bytes);
    void (*all_to_all)(struct comm *, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes);
    void (*all_to_all_fixed)(struct comm *, void *recv, const void *send, int64_t rows_per_peer,
                             size_t row_bytes);
    void (*detach)(struct comm *); /* collective */
};

void comm_detach(struct comm *comm); /* collective; accepts one that is not attached */

#endif
