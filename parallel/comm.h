/* comm: a group of ranks and what they can do together, as a table with one implementation per
 * transport.
 *
 * Two halves. comm_x works on host memory, for counts, losses and agreement: blocking, reductions
 * in rank order, so that results repeat bit for bit. comm_device_x works on bulk memory of the
 * device given to comm_attach: in the order of the device's compute stream, by the wire that
 * comm_attach chose. Every function is collective over the group and called in the same order on
 * every rank. A transport failure ends the job with one message: inside a step there is nobody to
 * return to.
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
struct comm_activity; /* activity.h */
struct comm_rows;     /* an all-to-all under way: transports.h */
struct comm_wire;     /* how device memory travels: transports.h */
struct device;

/* Larger groups than all-to-alls and parts of sums serve. */
enum { COMM_MOST_RANKS = 2048 };

/* A message under way, in pieces of at most COMM_PIECE bytes. */
#define COMM_PIECE ((size_t)1 << 30)
enum { COMM_PIECES = 8 };
struct comm_request {
    int pieces;
    uint64_t piece[COMM_PIECES]; /* the transport's */
    /* of an exchange or gather, for a trace: */
    const char *name;
    int64_t began_ns, done_ns, bytes; /* done: when it was seen to be; 0: not yet */
    int row;
    int peer; /* of a message to one rank */
};

struct comm_table {
    const char *name; /* "self", "mpi" */
    void (*all_reduce)(struct comm *, void *data, int64_t count, enum dtype, enum reduce);
    void (*reduce_scatter)(struct comm *, void *out, const void *in, int64_t count, enum dtype);
    void (*all_gather)(struct comm *, void *out, const void *in, size_t bytes);
    bool (*rows_reserve)(const struct comm *, struct comm_rows *rows); /* NULL: nothing to */
    void (*rows_start)(struct comm *, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes, struct comm_rows *rows);
    bool (*rows_test)(const struct comm *, struct comm_rows *rows);
    void (*rows_finish)(struct comm *, struct comm_rows *rows);
    void (*broadcast)(struct comm *, void *data, size_t bytes, int root);
    void (*barrier)(struct comm *);
    void (*send_start)(struct comm *, const void *data, size_t bytes, int peer,
                       struct comm_request *request);
    void (*send_finish)(struct comm *, struct comm_request *request);
    void (*receive)(struct comm *, void *data, size_t bytes, int peer);
    void (*exchange_start)(struct comm *, void *recv, const void *send, size_t bytes,
                           struct comm_request *request);
    void (*gather_start)(struct comm *, void *data, size_t bytes, struct comm_request *request);
    void (*pass_start)(struct comm *, void *recv, const void *send, size_t bytes,
                       struct comm_request *request);
    bool (*exchange_test)(struct comm *, struct comm_request *request); /* whether it is done */
    void (*exchange_finish)(struct comm *, struct comm_request *request);
    void (*split)(struct comm *, int color, int key, struct comm *out);
    void (*close)(struct comm *);
    void (*abort)(struct comm *, int exit_code);
};

struct comm {
    const struct comm_table *table;
    int rank, size;           /* in this group */
    int node_rank, node_size; /* among the group's ranks on this machine (shared memory) */
    int world_rank;           /* of this process, among the ranks of comm_open */
    const char *name;         /* for messages: "world", "dp", "ep", "edp"; borrowed; or NULL */
    void *impl;               /* owned by the table */
    struct comm_activity *activity; /* owned by the group of comm_open, borrowed by the others */
    struct comm_rows *idle;         /* owned: those that are not under way */
    /* of comm_attach; zero without */
    const struct comm_wire *wire;
    struct device *device;  /* borrowed */
    void *wire_impl;        /* owned by the wire */
    struct comm_rows *open; /* of the direct wire: started and not finished, last first */
};

/* kind: "auto" (mpi when started by mpirun/srun, else self), "self", "mpi", "nccl" (mpi on the
 * host; see comm_attach). Errors: STATUS_USAGE for an unknown kind, or "self" with more than one
 * rank; STATUS_INTERNAL when MPI does not start. Call once per process. */
enum status comm_open(struct comm *world, const char *kind) __attribute__((warn_unused_result));
void comm_close(struct comm *world); /* detaches, finalises the transport */
void comm_free(struct comm *group);  /* of comm_split; detaches; accepts a zeroed one. Collective */
void comm_abort(struct comm *world, int exit_code)
    __attribute__((noreturn)); /* not collective: ends every rank */

/* Local. For who watches (activity.h): the layer being computed, -1: none. */
void comm_at_layer(struct comm *comm, int64_t layer);

/* Local. An operation of this rank for a trace (spans.h), from comm_span_begin on; name: a literal.
 * A branch each where none is made. */
int64_t comm_span_begin(const struct comm *comm);
void comm_span_end(const struct comm *comm, const char *name, int64_t began);
/* The same of another thread than the one that trains: enum span_lane. */
void comm_span_end_by(const struct comm *comm, int lane, const char *name, int64_t began);

/* `out` is not attached, whatever `comm` is. */
void comm_split(struct comm *comm, int color, int key, struct comm *out);

/* data[count] in place; dtype F32, F64, I64, I32. */
void comm_all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                     enum reduce op);
/* out[count] = sum over ranks, in rank order, of in[rank*count ...]; in has size*count elements;
 * dtype F32 or I64. */
void comm_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                         enum dtype dtype);
/* out[size*bytes], every rank's `in` in rank order; in may be out + rank*bytes. */
void comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes);
/* Rows of row_bytes, contiguous by destination in `send`, by source in `recv`. Counts may exceed
 * 2^31 bytes. */
void comm_all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                     const int64_t *send_rows, size_t row_bytes);
/* The same beside what follows, operations of this group and of others included: start waits for
 * nobody, counts are free at its return; recv and send are not touched until finish, which waits
 * until all has come and all has been taken. Several of a group may be under way; they are started
 * in the same order on every rank and finished in any. test, which says whether that is so by now,
 * as that of an exchange (below). */
struct comm_rows *comm_rows_start(struct comm *comm, void *recv, const int64_t *recv_rows,
                                  const void *send, const int64_t *send_rows, size_t row_bytes);
/* The same of parts of a sum: `bytes` at `send` of all ranks but `root` come together in `recv` at
 * root, in rank order; elsewhere recv is not looked at, and a trace shows no message. Started in
 * the same order on every rank that sends, and of those that a rank is root of by that too: not
 * collective otherwise. */
struct comm_rows *comm_parts_start(struct comm *comm, void *recv, const void *send, size_t bytes,
                                   int root);
/* Local. So many of these may be under way without any memory being asked for. Errors:
 * STATUS_RESOURCE. */
enum status comm_rows_reserve(struct comm *comm, int64_t count) __attribute__((warn_unused_result));
bool comm_rows_test(const struct comm *comm, struct comm_rows *rows);
void comm_rows_finish(struct comm *comm, struct comm_rows *rows);
void comm_broadcast(struct comm *comm, void *data, size_t bytes, int root);
void comm_barrier(struct comm *comm);

/* From one rank of the group to another, `peer`, which is not this one; not collective. Messages
 * between two ranks arrive in the order they were sent, and the receiver knows their size, at most
 * COMM_PIECES x COMM_PIECE. start begins one and waits for nobody; `data` stays as it is until
 * finish, which waits until it has been taken. */
void comm_send_start(struct comm *comm, const void *data, size_t bytes, int peer,
                     struct comm_request *request);
void comm_send_finish(struct comm *comm, struct comm_request *request);
void comm_receive(struct comm *comm, void *data, size_t bytes, int peer);

/* Collective. An all-to-all of equal pieces of `bytes`, a multiple of COMM_EXCHANGE_UNIT, that goes
 * on beside what follows, other operations of this group and of others included: piece r of `send`
 * goes to rank r, `recv` has every rank's in rank order. start waits for nobody; neither is touched
 * until finish, which waits until all has come and all has been taken. Several that are under way
 * in a group finish in any order. Where the transport wants to be called to move on, any operation
 * does it, and test, which waits for nothing. */
enum { COMM_EXCHANGE_UNIT = 128 };
void comm_exchange_start(struct comm *comm, void *recv, const void *send, size_t bytes,
                         struct comm_request *request);
/* The same of an all-gather in place: data[size * bytes] has this rank's `bytes` in its place; and
 * of a step of a ring: `send` goes to the next rank of the group, `recv` is the one before's, the
 * last rank's the first one's; any `bytes` up to COMM_PIECES / 2 x COMM_PIECE; name, a literal, is
 * what it carries, for a trace. All three are finished by comm_exchange_finish. */
void comm_gather_start(struct comm *comm, void *data, size_t bytes, struct comm_request *request);
void comm_pass_start(struct comm *comm, const char *name, void *recv, const void *send,
                     size_t bytes, struct comm_request *request);
void comm_exchange_test(struct comm *comm, struct comm_request *request);
void comm_exchange_finish(struct comm *comm, struct comm_request *request);

/* Phase border: every rank gets the worst status of all; *where (may be NULL) gets the lowest rank
 * that has it and the message of that rank becomes every rank's status_message(). */
enum status comm_agree(struct comm *comm, enum status status, int *where)
    __attribute__((warn_unused_result));

/* How memory of `device` travels in this group from now on; a group attaches once.
 * A device whose memory is the host's: "direct", the functions above, no copies. Else a group of
 * one rank: "local", copies inside the device. Else by `kind` (run.comm, the same on every rank):
 * "nccl"; "mpi" and "self": "staged", through host buffers and the functions above; "auto": nccl
 * where this binary has it, the library is there and no two ranks of the group share a GPU, else
 * staged. The calling thread's current GPU must be the device's.
 * Errors, the same on every rank: STATUS_USAGE for an unknown kind, or nccl for memory of the host,
 * in a binary without it, or for a GPU shared by two ranks; STATUS_RESOURCE where nccl's library is
 * missing or too old; STATUS_INTERNAL or STATUS_HANG where nccl does not start. Collective over the
 * group. */
enum status comm_attach(struct comm *comm, struct device *device, const char *kind)
    __attribute__((warn_unused_result));
const char *comm_wire_name(const struct comm *comm); /* "direct", "local", "staged" or "nccl" */
const char *comm_nccl_built(void); /* "nccl 2.28.9", or "" where this binary has none */

/* The same operations on device memory; pointers, and nothing else, are the device's. What was
 * enqueued on the compute stream before comes before, what is enqueued after comes after; the host
 * may go on at once (nccl) or waits (staged). Not attached: direct.
 * direct and staged add in rank order; nccl in an order fixed by its algorithm and the topology, so
 * sums repeat on the same machines, and equal direct's where they are exact. */
void comm_device_all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                            enum reduce op); /* dtype F32, F64 or I64 */
void comm_device_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                                enum dtype dtype); /* F32 or I64 */
void comm_device_all_gather(struct comm *comm, void *out, const void *in, size_t bytes);
/* recv_rows, send_rows: host memory, exact counts; free to reuse at return. One message per pair
 * of ranks, rows to oneself are copied. recv and send do not overlap. */
void comm_device_all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows,
                            const void *send, const int64_t *send_rows, size_t row_bytes);
/* The same, rows_per_peer rows to and from every rank: no counts on the host, so nothing waits for
 * them, and a CUDA graph can hold it (nccl, which wants the same call once outside of a capture
 * first: it opens connections then). Rows padded to a capacity travel so, and the counts
 * that say how many of them are real. */
void comm_device_all_to_all_fixed(struct comm *comm, void *recv, const void *send,
                                  int64_t rows_per_peer, size_t row_bytes);

/* The same in two halves: start comes after what was enqueued on the compute stream before it, what
 * is enqueued after finish comes after everything the group has started. What is enqueued between
 * them may run beside the operation (nccl; an all-to-all of direct; all else is done when start
 * returns), and leaves `recv`, `send`, `out` and `in` alone. Between them no other group of this
 * rank starts anything but what is marked. */
void comm_device_all_to_all_start(struct comm *comm, void *recv, const int64_t *recv_rows,
                                  const void *send, const int64_t *send_rows, size_t row_bytes);
void comm_device_all_to_all_fixed_start(struct comm *comm, void *recv, const void *send,
                                        int64_t rows_per_peer, size_t row_bytes);
void comm_device_reduce_scatter_start(struct comm *comm, void *out, const void *in, int64_t count,
                                      enum dtype dtype);
/* out[count] at `root` = sum over ranks of in[count]; F32 or I64. Of wires that
 * comm_device_reduces. */
void comm_device_reduce_start(struct comm *comm, void *out, const void *in, int64_t count,
                              enum dtype dtype, int root);
bool comm_device_reduces(const struct comm *comm); /* local */
/* As comm_pass_start; of a wire: where memory is the host's that is the one to call. */
void comm_device_pass_start(struct comm *comm, const char *name, void *recv, const void *send,
                            size_t bytes);
void comm_device_all_gather_start(struct comm *comm, void *out, const void *in, size_t bytes);
void comm_device_finish(struct comm *comm);
/* Local, waits for nothing. Where memory is the host's, what the group has under way may move on.
 */
void comm_device_progress(const struct comm *comm);

/* An operation that goes on beside what follows, operations of this group and of others included:
 * mark, called behind its start, takes what the group started last; finish does not wait for it any
 * more, wait does, as finish would have. Of all groups of a rank operations run one behind the
 * other, in the order in which they were started, which is the same on every rank: two
 * communicators never wait for each other, but what is started beside an operation waits for its
 * end. None is under way where a device records (graph_begin) operations of any group. */
struct comm_mark {
    void *end; /* the wire's; NULL: done */
};
struct comm_mark comm_device_mark(struct comm *comm);
void comm_device_wait(struct comm *comm, const struct comm_mark *mark);
/* Local. Whether the device's memory is the host's, so that comm_x above serve it. */
bool comm_device_on_host(const struct comm *comm);
/* Local. Whether the wire needs nothing of the host while an operation runs, so that a device can
 * record it (graph_begin, kernels/ops.h). */
bool comm_device_recordable(const struct comm *comm);
/* Local, waits for the device. Adds how long the group's operations ran while spans were recorded
 * (spans.h), and for how much of that the compute stream waited, by the device's clock. False: not
 * of all of them (some are in a CUDA graph), or of none, where the host waits for each. */
bool comm_device_times(struct comm *comm, double *run_ms, double *waited_ms);

#endif
