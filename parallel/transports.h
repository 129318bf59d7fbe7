/* transports: how comm_open and comm_attach reach their implementations. */
#ifndef PARALLEL_TRANSPORTS_H
#define PARALLEL_TRANSPORTS_H

#include "kernels/ops.h"
#include "parallel/comm.h"

void comm_self_open(struct comm *world);
enum status comm_mpi_open(struct comm *world) __attribute__((warn_unused_result));

/* An all-to-all of rows under way. */
struct comm_rows {
    struct comm_rows *next;    /* in one of its group's lists */
    bool marked;               /* comm_device_mark */
    int root;                  /* of comm_parts_start; -1: of rows */
    int64_t began_ns, done_ns; /* for a trace; done: when it was seen to be; 0: not yet */
    int64_t bytes, layer;      /* that this rank sends; being computed at its start */
    int row;                   /* of the trace; -1: it does not stand there */
    void *requests;            /* [room] owned by the group: the transport's own */
    int64_t count, room;
};

/* How device memory travels; meanings in comm.h. Operations are started; finish orders what comes
 * next after them; NULL: they are done when they return. */
struct comm_wire {
    const char *name;
    bool recordable;
    void (*all_reduce)(struct comm *, void *data, int64_t count, enum dtype, enum reduce);
    void (*reduce_scatter)(struct comm *, void *out, const void *in, int64_t count, enum dtype);
    /* NULL: not built */
    void (*reduce)(struct comm *, void *out, const void *in, int64_t count, enum dtype, int root);
    void (*all_gather)(struct comm *, void *out, const void *in, size_t bytes);
    void (*all_to_all)(struct comm *, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes);
    void (*all_to_all_fixed)(struct comm *, void *recv, const void *send, int64_t rows_per_peer,
                             size_t row_bytes);
    /* NULL: the host's functions are the device's */
    void (*pass)(struct comm *, const char *name, void *recv, const void *send, size_t bytes);
    void (*finish)(struct comm *); /* local */
    /* Local; NULL: what can be marked is done when it has started. */
    void *(*mark)(struct comm *);
    void (*wait)(struct comm *, void *end);
    void (*detach)(struct comm *); /* collective */
    /* NULL: the host waits for every operation. Local. */
    bool (*times)(struct comm *, double *run_ms, double *waited_ms);
};

/* A group of one rank: copies inside the device. Needs comm->device. */
void comm_local_attach(struct comm *comm, const struct ops *ops);

/* Through two host buffers of stage_bytes (at least the ranks' number of double) and the group's
 * own functions on host memory, by ops->upload and download alone. Needs comm->device. Every rank
 * gives the same stage_bytes. Local. Errors: STATUS_RESOURCE. */
enum status comm_staged_attach(struct comm *comm, const struct ops *ops, size_t stage_bytes)
    __attribute__((warn_unused_result));

/* NCCL (comm_nccl.c; comm_nccl_none.c in binaries without CUDA).
 * check: whether this group can use it, the same answer on every rank. Collective. Errors:
 * STATUS_USAGE two ranks on one GPU, or not built; STATUS_RESOURCE no NCCL, or too old.
 * attach: after a check that said yes. Makes the group's communicator on the calling thread's
 * current GPU. Collective. Errors: STATUS_INTERNAL what NCCL or CUDA said; STATUS_HANG when the
 * ranks do not find each other in COMM_START_SECONDS. hang_seconds: an operation that has not
 * finished this long after the one before it ends the job. */
enum { COMM_START_SECONDS = 300, COMM_HANG_SECONDS = 600 };
enum status comm_nccl_check(struct comm *comm) __attribute__((warn_unused_result));
enum status comm_nccl_attach(struct comm *comm, int hang_seconds)
    __attribute__((warn_unused_result));

/* Whether every rank of the group has a GPU of its own; gpu: a name of this rank's, unique on its
 * machine. The same answer on every rank. Collective. Errors: STATUS_USAGE with both ranks. */
enum { COMM_GPU_BYTES = 24 };
enum status comm_places_check(struct comm *comm, const char *gpu)
    __attribute__((warn_unused_result));
/* "group ep of 4 ranks (0 1 2 3)", ranks of the world. Collective. */
void comm_label(struct comm *comm, char *text, size_t bytes);

void comm_detach(struct comm *comm); /* collective; accepts one that is not attached */

#endif
