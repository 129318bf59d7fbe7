#include <assert.h>
#include <string.h>

#include "kernels/device.h"
#include "parallel/transports.h"

/* Until finish, or, marked, wait. */
static void keep_open(struct comm *comm, struct comm_rows *rows)
{
    rows->marked = false;
    rows->next = comm->open;
    comm->open = rows;
}

static void finish_rows(struct comm *comm, struct comm_rows *rows)
{
    struct comm_rows **at = &comm->open;
    while (*at != rows) {
        at = &(*at)->next;
    }
    *at = rows->next;
    comm_rows_finish(comm, rows);
}

static void direct_all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows,
                              const void *send, const int64_t *send_rows, size_t row_bytes)
{
    keep_open(comm, comm_rows_start(comm, recv, recv_rows, send, send_rows, row_bytes));
}

static void direct_all_to_all_fixed(struct comm *comm, void *recv, const void *send,
                                    int64_t rows_per_peer, size_t row_bytes)
{
    int64_t rows[COMM_MOST_RANKS];
    assert(comm->size <= COMM_MOST_RANKS);
    for (int r = 0; r < comm->size; r++) {
        rows[r] = rows_per_peer;
    }
    direct_all_to_all(comm, recv, rows, send, rows, row_bytes);
}

static void direct_finish(struct comm *comm)
{
    struct comm_rows *next = NULL;
    for (struct comm_rows *rows = comm->open; rows != NULL; rows = next) {
        next = rows->next;
        if (!rows->marked) {
            finish_rows(comm, rows);
        }
    }
}

/* What was started last is not done, and not marked. */
static bool is_open(const struct comm *comm)
{
    return comm->open != NULL && !comm->open->marked;
}

/* What else there is is done when it has started: it is nothing to be marked. */
static void direct_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                                  enum dtype dtype)
{
    assert(!is_open(comm));
    comm_reduce_scatter(comm, out, in, count, dtype);
}

static void direct_all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    assert(!is_open(comm));
    comm_all_gather(comm, out, in, bytes);
}

static void *direct_mark(struct comm *comm)
{
    if (!is_open(comm)) {
        return NULL;
    }
    comm->open->marked = true;
    return comm->open;
}

static void direct_wait(struct comm *comm, void *end)
{
    finish_rows(comm, end);
}

static void direct_detach(struct comm *comm)
{
    (void)comm;
}

static const struct comm_wire direct = {.name = "direct",
                                        .recordable = true,
                                        .all_reduce = comm_all_reduce,
                                        .reduce_scatter = direct_reduce_scatter,
                                        .all_gather = direct_all_gather,
                                        .all_to_all = direct_all_to_all,
                                        .all_to_all_fixed = direct_all_to_all_fixed,
                                        .finish = direct_finish,
                                        .mark = direct_mark,
                                        .wait = direct_wait,
                                        .detach = direct_detach};

static const struct comm_wire *wire(const struct comm *comm)
{
    return comm->wire != NULL ? comm->wire : &direct;
}

/* Bounds the host memory a group needs: two buffers of it. */
static const size_t STAGE_BYTES = (size_t)16 << 20;

static enum status attach(struct comm *comm, const char *kind)
{
    const struct ops *ops = device_ops(comm->device);
    const bool nccl = strcmp(kind, "nccl") == 0, any = strcmp(kind, "auto") == 0;
    if (!nccl && !any && strcmp(kind, "mpi") != 0 && strcmp(kind, "self") != 0) {
        return status_fail(STATUS_USAGE, "run.comm %s: use auto, self, mpi or nccl", kind);
    }
    if (device_stream(comm->device) == NULL) {
        comm->wire = &direct;
        return nccl ? status_fail(STATUS_USAGE,
                                  "run.comm nccl: carries memory of GPUs, and this device's memory "
                                  "is the host's; use run.comm=mpi, or run.device=cuda")
                    : STATUS_OK;
    }
    if (comm->size == 1) {
        comm_local_attach(comm, ops);
        return STATUS_OK;
    }
    const enum status usable = nccl || any ? comm_nccl_check(comm) : STATUS_OK;
    if (nccl || (any && usable == STATUS_OK)) {
        TRY(usable);
        return comm_nccl_attach(comm, COMM_HANG_SECONDS);
    }
    return comm_staged_attach(comm, ops, STAGE_BYTES);
}

enum status comm_attach(struct comm *comm, struct device *device, const char *kind)
{
    assert(comm->wire == NULL);
    comm->device = device;
    const enum status status = comm_agree(comm, attach(comm, kind), NULL);
    if (status != STATUS_OK) {
        comm_detach(comm);
    }
    return status;
}

void comm_detach(struct comm *comm)
{
    wire(comm)->detach(comm);
    comm->wire = NULL;
    comm->device = NULL;
    comm->wire_impl = NULL;
}

const char *comm_wire_name(const struct comm *comm)
{
    return wire(comm)->name;
}

void comm_device_all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                            enum reduce op)
{
    assert(dtype == DTYPE_F32 || dtype == DTYPE_F64 || dtype == DTYPE_I64);
    wire(comm)->all_reduce(comm, data, count, dtype, op);
    comm_device_finish(comm);
}

void comm_device_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                                enum dtype dtype)
{
    comm_device_reduce_scatter_start(comm, out, in, count, dtype);
    comm_device_finish(comm);
}

void comm_device_all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    comm_device_all_gather_start(comm, out, in, bytes);
    comm_device_finish(comm);
}

void comm_device_all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows,
                            const void *send, const int64_t *send_rows, size_t row_bytes)
{
    if (comm_device_on_host(comm)) {
        comm_all_to_all(comm, recv, recv_rows, send, send_rows, row_bytes);
        return;
    }
    comm_device_all_to_all_start(comm, recv, recv_rows, send, send_rows, row_bytes);
    comm_device_finish(comm);
}

void comm_device_all_to_all_fixed(struct comm *comm, void *recv, const void *send,
                                  int64_t rows_per_peer, size_t row_bytes)
{
    comm_device_all_to_all_fixed_start(comm, recv, send, rows_per_peer, row_bytes);
    comm_device_finish(comm);
}

void comm_device_reduce_scatter_start(struct comm *comm, void *out, const void *in, int64_t count,
                                      enum dtype dtype)
{
    assert(dtype == DTYPE_F32 || dtype == DTYPE_I64);
    wire(comm)->reduce_scatter(comm, out, in, count, dtype);
}

void comm_device_reduce_start(struct comm *comm, void *out, const void *in, int64_t count,
                              enum dtype dtype, int root)
{
    assert(dtype == DTYPE_F32 || dtype == DTYPE_I64);
    wire(comm)->reduce(comm, out, in, count, dtype, root);
}

bool comm_device_reduces(const struct comm *comm)
{
    return wire(comm)->reduce != NULL;
}

void comm_device_all_to_all_start(struct comm *comm, void *recv, const int64_t *recv_rows,
                                  const void *send, const int64_t *send_rows, size_t row_bytes)
{
    assert(recv_rows[comm->rank] == send_rows[comm->rank]);
    wire(comm)->all_to_all(comm, recv, recv_rows, send, send_rows, row_bytes);
}

void comm_device_all_to_all_fixed_start(struct comm *comm, void *recv, const void *send,
                                        int64_t rows_per_peer, size_t row_bytes)
{
    wire(comm)->all_to_all_fixed(comm, recv, send, rows_per_peer, row_bytes);
}

void comm_device_pass_start(struct comm *comm, const char *name, void *recv, const void *send,
                            size_t bytes)
{
    assert(!comm_device_on_host(comm));
    wire(comm)->pass(comm, name, recv, send, bytes);
}

void comm_device_finish(struct comm *comm)
{
    if (wire(comm)->finish != NULL) {
        wire(comm)->finish(comm);
    }
}

void comm_device_progress(const struct comm *comm)
{
    for (struct comm_rows *rows = comm->open; rows != NULL; rows = rows->next) {
        comm_rows_test(comm, rows);
    }
}

void comm_device_all_gather_start(struct comm *comm, void *out, const void *in, size_t bytes)
{
    wire(comm)->all_gather(comm, out, in, bytes);
}

struct comm_mark comm_device_mark(struct comm *comm)
{
    return (struct comm_mark){.end = wire(comm)->mark != NULL ? wire(comm)->mark(comm) : NULL};
}

void comm_device_wait(struct comm *comm, const struct comm_mark *mark)
{
    if (mark->end != NULL) {
        wire(comm)->wait(comm, mark->end);
    }
}

bool comm_device_on_host(const struct comm *comm)
{
    return wire(comm) == &direct;
}

bool comm_device_recordable(const struct comm *comm)
{
    return wire(comm)->recordable;
}

bool comm_device_times(struct comm *comm, double *run_ms, double *waited_ms)
{
    return wire(comm)->times != NULL && wire(comm)->times(comm, run_ms, waited_ms);
}
