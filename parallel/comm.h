/* comm: a group of ranks and what they can do together, as a table with one implementation per
 * transport.
 *
 * Every function is collective over the group, blocking, and called in the same order on every
 * rank. Reductions add in rank order, so results repeat bit for bit. A transport failure ends the
 * job with one message: inside a step there is nobody to return to.
 */
#ifndef PARALLEL_COMM_H
#define PARALLEL_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/status.h"
#include "kernels/base/tensor.h"

enum reduce { REDUCE_SUM, REDUCE_MAX };

struct comm;

struct comm_table {
    const char *name; /* "self", "mpi" */
    void (*all_reduce)(struct comm *, void *data, int64_t count, enum dtype, enum reduce);
    void (*reduce_scatter)(struct comm *, float *out, const float *in, int64_t count);
    void (*all_gather)(struct comm *, void *out, const void *in, size_t bytes);
    void (*all_to_all)(struct comm *, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes);
    void (*broadcast)(struct comm *, void *data, size_t bytes, int root);
    void (*barrier)(struct comm *);
    void (*split)(struct comm *, int color, int key, struct comm *out);
    void (*close)(struct comm *);
    void (*abort)(struct comm *, int exit_code);
};

struct comm {
    const struct comm_table *table;
    int rank, size;           /* in this group */
    int node_rank, node_size; /* among the group's ranks on this machine (shared memory) */
    void *impl;               /* owned by the table */
};

/* kind: "auto" (mpi when started by mpirun/srun, else self), "self", "mpi". Errors: STATUS_USAGE
 * for an unknown or unbuilt kind, or "self" with more than one rank; STATUS_INTERNAL when MPI does
 * not start. Call once per process. */
enum status comm_open(struct comm *world, const char *kind) __attribute__((warn_unused_result));
void comm_close(struct comm *world); /* finalises the transport */
void comm_free(struct comm *group);  /* of comm_split; accepts a zeroed one */
void comm_abort(struct comm *world, int exit_code)
    __attribute__((noreturn)); /* not collective: ends every rank */

void comm_split(struct comm *comm, int color, int key, struct comm *out);

/* data[count] in place; dtype F32, F64, I64, I32. */
void comm_all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                     enum reduce op);
/* out[count] = sum over ranks, in rank order, of in[rank*count ...]; in has size*count elements. */
void comm_reduce_scatter(struct comm *comm, float *out, const float *in, int64_t count);
/* out[size*bytes], every rank's `in` in rank order; in may be out + rank*bytes. */
void comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes);
/* Rows of row_bytes, contiguous by destination in `send`, by source in `recv`. Counts may exceed
 * 2^31 bytes. */
void comm_all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                     const int64_t *send_rows, size_t row_bytes);
void comm_broadcast(struct comm *comm, void *data, size_t bytes, int root);
void comm_barrier(struct comm *comm);

/* Phase border: every rank gets the worst status of all; *where (may be NULL) gets the lowest rank
 * that has it and the message of that rank becomes every rank's status_message(). */
enum status comm_agree(struct comm *comm, enum status status, int *where)
    __attribute__((warn_unused_result));

#endif
