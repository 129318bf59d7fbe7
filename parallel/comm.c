#include "parallel/comm.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/activity.h"
#include "parallel/transports.h"

static int launched_ranks(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);
        if (value != NULL && atoi(value) >= 1) {
            return atoi(value);
        }
    }
    return 0;
}

static enum status open_kind(struct comm *world, const char *kind)
{
    const int launched = launched_ranks();
    const bool mpi = strcmp(kind, "mpi") == 0 || strcmp(kind, "nccl") == 0;
    if (mpi || (strcmp(kind, "auto") == 0 && launched > 0)) {
        return comm_mpi_open(world);
    }
    if (strcmp(kind, "self") != 0 && strcmp(kind, "auto") != 0) {
        return status_fail(STATUS_USAGE, "run.comm %s: use auto, self, mpi or nccl", kind);
    }
    if (launched > 1) {
        return status_fail(STATUS_USAGE,
                           "run.comm self: but %d ranks were launched; use auto or mpi", launched);
    }
    comm_self_open(world);
    return STATUS_OK;
}

enum status comm_open(struct comm *world, const char *kind)
{
    *world = (struct comm){.size = 1, .node_size = 1};
    TRY(open_kind(world, kind));
    world->world_rank = world->rank;
    world->name = "world";
    world->activity = calloc(1, sizeof *world->activity);
    if (world->activity == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    world->activity->layer = -1;
    return STATUS_OK;
}

void comm_close(struct comm *world)
{
    if (world->table != NULL) {
        comm_detach(world);
        world->table->close(world);
    }
    for (struct comm_rows *rows = world->idle, *next; rows != NULL; rows = next) {
        next = rows->next;
        free(rows->requests);
        free(rows);
    }
    free(world->activity);
    *world = (struct comm){0};
}

void comm_free(struct comm *group)
{
    group->activity = NULL; /* the world's */
    comm_close(group);
}

void comm_abort(struct comm *world, int exit_code)
{
    world->table->abort(world, exit_code);
    exit(exit_code);
}

void comm_split(struct comm *comm, int color, int key, struct comm *out)
{
    comm->table->split(comm, color, key, out);
    out->world_rank = comm->world_rank;
    out->name = NULL;
    out->activity = comm->activity;
    out->idle = NULL;
    out->open = NULL;
    out->wire = NULL;
    out->device = NULL;
    out->wire_impl = NULL;
}

void comm_at_layer(struct comm *comm, int64_t layer)
{
    if (comm->activity != NULL) {
        comm->activity->layer = layer;
        comm->activity->done++;
    }
}

/* Of the thread that communicates, so far. */
static int64_t coreless_ns(const struct comm_activity *activity)
{
    return activity->cores != NULL ? core_wait_ns(activity->cores, 0) : 0;
}

static void enter(struct comm *comm, const char *operation, size_t bytes)
{
    struct comm_activity *activity = comm->activity;
    if (activity != NULL) {
        activity->group = comm->name != NULL ? comm->name : "";
        activity->bytes = (int64_t)bytes;
        activity->kind = SPAN_MESSAGE;
        activity->peer = -1;
        activity->operation = operation;
        activity->entered_coreless_ns = coreless_ns(activity);
        activity->entered_ns = spans_clock();
    }
}

/* What is entered is a call of a message that is under way beside what follows, or, peer not -1,
 * one between two ranks, or parts of a sum for one. */
static void enter_as(struct comm *comm, enum span_kind kind, int peer)
{
    if (comm->activity != NULL) {
        comm->activity->kind = kind;
        comm->activity->peer = peer;
    }
}

static void leave(struct comm *comm)
{
    struct comm_activity *activity = comm->activity;
    if (activity == NULL) {
        return;
    }
    const int64_t now = spans_clock(), took = now - activity->entered_ns;
    const char *operation = activity->operation;
    activity->waited_ns += took;
    activity->coreless_ns += coreless_ns(activity) - activity->entered_coreless_ns;
    activity->exchanged_ns +=
        strncmp(operation, "all_to_all", strlen("all_to_all")) == 0 ? took : 0;
    spans_add(activity->spans, (struct span){.name = operation,
                                             .group = activity->group,
                                             .begin_ns = activity->entered_ns,
                                             .end_ns = now,
                                             .bytes = activity->bytes,
                                             .layer = activity->layer,
                                             .ranks = comm->size,
                                             .peer = activity->peer,
                                             .kind = (uint8_t)activity->kind});
    activity->operation = NULL;
    activity->done++;
}

int64_t comm_span_begin(const struct comm *comm)
{
    return comm->activity != NULL ? spans_begin(comm->activity->spans) : 0;
}

void comm_span_end_by(const struct comm *comm, int lane, const char *name, int64_t began)
{
    if (began != 0) {
        spans_add(comm->activity->spans,
                  (struct span){.name = name,
                                .begin_ns = began,
                                .end_ns = spans_clock(),
                                .layer = lane == SPAN_TRAINING ? comm->activity->layer : -1,
                                .peer = -1,
                                .lane = (uint8_t)lane,
                                .kind = SPAN_OPERATION});
    }
}

void comm_span_end(const struct comm *comm, const char *name, int64_t began)
{
    comm_span_end_by(comm, SPAN_TRAINING, name, began);
}

void comm_all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype, enum reduce op)
{
    enter(comm, "all_reduce", (size_t)count * dtype_bytes(dtype));
    comm->table->all_reduce(comm, data, count, dtype, op);
    leave(comm);
}

void comm_reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                         enum dtype dtype)
{
    enter(comm, "reduce_scatter", (size_t)comm->size * (size_t)count * dtype_bytes(dtype));
    comm->table->reduce_scatter(comm, out, in, count, dtype);
    leave(comm);
}

void comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    enter(comm, "all_gather", bytes);
    comm->table->all_gather(comm, out, in, bytes);
    leave(comm);
}

/* One that is not under way. Want of memory ends the job: the others are in the collective. */
static struct comm_rows *take_rows(struct comm *comm)
{
    struct comm_rows *rows = comm->idle;
    if (rows == NULL) {
        rows = calloc(1, sizeof *rows);
        if (rows == NULL) {
            fprintf(stderr, "switchyard: rank %d: out of memory for an exchange\n", comm->rank);
            comm_abort(comm, status_exit_code(STATUS_RESOURCE));
        }
        return rows;
    }
    comm->idle = rows->next;
    rows->next = NULL;
    return rows;
}

static void give_rows(struct comm *comm, struct comm_rows *rows)
{
    rows->next = comm->idle;
    comm->idle = rows;
}

/* A row of the trace for what is under way from now on; -1: nothing is recorded. */
static int take_row(const struct comm *comm, int64_t began_ns)
{
    int row = 0;
    if (began_ns == 0) {
        return -1;
    }
    while (row < SPAN_ROWS - 1 && (comm->activity->rows >> row & 1U) != 0) {
        row++;
    }
    comm->activity->rows |= 1U << row;
    return row;
}

/* What was under way in the row since began_ns, where it has one. */
static void end_row(const struct comm *comm, int row, struct span span)
{
    if (row >= 0) {
        span.group = comm->name != NULL ? comm->name : "";
        span.end_ns = span.end_ns != 0 ? span.end_ns : spans_clock();
        span.ranks = comm->size;
        span.lane = SPAN_WIRE;
        span.row = (uint8_t)row;
        span.kind = SPAN_MESSAGE;
        spans_add(comm->activity->spans, span);
        comm->activity->rows &= ~(1U << row);
    }
}

/* What a test that began then has moved on, for a trace. NOTE: one that took less has found nothing
 * to do; all of them would fill the trace. */
static void add_progress(const struct comm *comm, int64_t began_ns)
{
    enum { LEAST_NS = 2000 };
    const int64_t now = began_ns != 0 ? spans_clock() : 0;
    if (now - began_ns >= LEAST_NS) {
        spans_add(comm->activity->spans,
                  (struct span){.name = "progress",
                                .group = comm->name != NULL ? comm->name : "",
                                .begin_ns = began_ns,
                                .end_ns = now,
                                .layer = comm->activity->layer,
                                .ranks = comm->size,
                                .peer = -1,
                                .kind = SPAN_CALL});
    }
}

static size_t sending(const struct comm *comm, const int64_t *send_rows, size_t row_bytes)
{
    int64_t rows = 0;
    for (int r = 0; r < comm->size; r++) {
        rows += send_rows[r];
    }
    return (size_t)rows * row_bytes;
}

void comm_all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                     const int64_t *send_rows, size_t row_bytes)
{
    struct comm_rows *rows = take_rows(comm);
    rows->root = -1;
    enter(comm, "all_to_all", sending(comm, send_rows, row_bytes));
    comm->table->rows_start(comm, recv, recv_rows, send, send_rows, row_bytes, rows);
    comm->table->rows_finish(comm, rows);
    leave(comm);
    give_rows(comm, rows);
}

/* root: -1, or of parts, which stand in root's trace. */
static struct comm_rows *start_rows(struct comm *comm, int root, void *recv,
                                    const int64_t *recv_rows, const void *send,
                                    const int64_t *send_rows, size_t row_bytes)
{
    const size_t bytes = sending(comm, send_rows, row_bytes);
    struct comm_rows *rows = take_rows(comm);
    rows->root = root;
    rows->began_ns = comm_span_begin(comm);
    rows->done_ns = 0;
    rows->bytes = (int64_t)bytes;
    rows->layer = comm->activity != NULL ? comm->activity->layer : -1;
    rows->row = root < 0 || root == comm->rank ? take_row(comm, rows->began_ns) : -1;
    enter(comm, root >= 0 ? "exchange, start of a reduction" : "all_to_all, start", bytes);
    enter_as(comm, SPAN_CALL, root);
    comm->table->rows_start(comm, recv, recv_rows, send, send_rows, row_bytes, rows);
    leave(comm);
    return rows;
}

enum status comm_rows_reserve(struct comm *comm, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        struct comm_rows *rows = calloc(1, sizeof *rows);
        const bool good = rows != NULL && (comm->table->rows_reserve == NULL ||
                                           comm->table->rows_reserve(comm, rows));
        if (rows != NULL) {
            give_rows(comm, rows);
        }
        if (!good) {
            return status_fail(STATUS_RESOURCE, "out of memory for %lld exchanges at once",
                               (long long)count);
        }
    }
    return STATUS_OK;
}

struct comm_rows *comm_rows_start(struct comm *comm, void *recv, const int64_t *recv_rows,
                                  const void *send, const int64_t *send_rows, size_t row_bytes)
{
    return start_rows(comm, -1, recv, recv_rows, send, send_rows, row_bytes);
}

struct comm_rows *comm_parts_start(struct comm *comm, void *recv, const void *send, size_t bytes,
                                   int root)
{
    int64_t in[COMM_MOST_RANKS], out[COMM_MOST_RANKS];
    assert(comm->size <= COMM_MOST_RANKS);
    for (int r = 0; r < comm->size; r++) {
        in[r] = comm->rank == root && r != root ? (int64_t)bytes : 0;
        out[r] = comm->rank != root && r == root ? (int64_t)bytes : 0;
    }
    struct comm_rows *rows = start_rows(comm, root, recv, in, send, out, 1);
    if (comm->rank == root) {
        rows->bytes = (int64_t)((size_t)(comm->size - 1) * bytes);
    }
    return rows;
}

bool comm_rows_test(const struct comm *comm, struct comm_rows *rows)
{
    const int64_t began_ns = comm_span_begin(comm);
    const bool done = comm->table->rows_test(comm, rows);
    if (done && rows->done_ns == 0) {
        rows->done_ns = spans_clock();
    }
    add_progress(comm, began_ns);
    return done;
}

void comm_rows_finish(struct comm *comm, struct comm_rows *rows)
{
    enter(comm, rows->root >= 0 ? "exchange, finish of a reduction" : "all_to_all, finish",
          (size_t)rows->bytes);
    enter_as(comm, SPAN_WAIT, -1);
    comm->table->rows_finish(comm, rows);
    leave(comm);
    end_row(comm, rows->row,
            (struct span){.name = rows->root >= 0 ? "reduction" : "all_to_all",
                          .begin_ns = rows->began_ns,
                          .end_ns = rows->done_ns,
                          .bytes = rows->bytes,
                          .layer = rows->layer,
                          .peer = rows->root});
    give_rows(comm, rows);
}

void comm_broadcast(struct comm *comm, void *data, size_t bytes, int root)
{
    enter(comm, "broadcast", bytes);
    comm->table->broadcast(comm, data, bytes, root);
    leave(comm);
}

void comm_barrier(struct comm *comm)
{
    enter(comm, "barrier", 0);
    comm->table->barrier(comm);
    leave(comm);
}

void comm_send_start(struct comm *comm, const void *data, size_t bytes, int peer,
                     struct comm_request *request)
{
    enter(comm, "send", bytes);
    enter_as(comm, SPAN_CALL, peer);
    request->peer = peer;
    comm->table->send_start(comm, data, bytes, peer, request);
    leave(comm);
}

void comm_send_finish(struct comm *comm, struct comm_request *request)
{
    enter(comm, "send, finish", 0);
    enter_as(comm, SPAN_WAIT, request->peer);
    comm->table->send_finish(comm, request);
    leave(comm);
}

void comm_receive(struct comm *comm, void *data, size_t bytes, int peer)
{
    enter(comm, "receive", bytes);
    enter_as(comm, SPAN_MESSAGE, peer);
    comm->table->receive(comm, data, bytes, peer);
    leave(comm);
}

static void begin_exchange(struct comm *comm, const char *call, const char *name, size_t bytes,
                           struct comm_request *request)
{
    *request = (struct comm_request){
        .name = name, .began_ns = comm_span_begin(comm), .bytes = (int64_t)bytes};
    request->row = take_row(comm, request->began_ns);
    enter(comm, call, bytes);
    enter_as(comm, SPAN_CALL, -1);
}

void comm_exchange_start(struct comm *comm, void *recv, const void *send, size_t bytes,
                         struct comm_request *request)
{
    begin_exchange(comm, "exchange, start", "exchange", (size_t)comm->size * bytes, request);
    comm->table->exchange_start(comm, recv, send, bytes, request);
    leave(comm);
}

void comm_gather_start(struct comm *comm, void *data, size_t bytes, struct comm_request *request)
{
    begin_exchange(comm, "exchange, start of a gather", "gather", bytes, request);
    comm->table->gather_start(comm, data, bytes, request);
    leave(comm);
}

void comm_pass_start(struct comm *comm, const char *name, void *recv, const void *send,
                     size_t bytes, struct comm_request *request)
{
    begin_exchange(comm, "exchange, start of a pass", name, bytes, request);
    comm->table->pass_start(comm, recv, send, bytes, request);
    leave(comm);
}

void comm_exchange_test(struct comm *comm, struct comm_request *request)
{
    const int64_t began_ns = comm_span_begin(comm);
    if (comm->table->exchange_test(comm, request) && request->done_ns == 0) {
        request->done_ns = spans_clock();
    }
    add_progress(comm, began_ns);
}

void comm_exchange_finish(struct comm *comm, struct comm_request *request)
{
    enter(comm, "exchange, finish", 0);
    enter_as(comm, SPAN_WAIT, -1);
    comm->table->exchange_finish(comm, request);
    leave(comm);
    end_row(comm, request->row,
            (struct span){.name = request->name,
                          .begin_ns = request->began_ns,
                          .end_ns = request->done_ns,
                          .bytes = request->bytes,
                          .layer = -1,
                          .peer = -1});
}

enum status comm_agree(struct comm *comm, enum status status, int *where)
{
    enum { MESSAGE = 2048 };
    char message[MESSAGE];
    int32_t worst[1] = {(int32_t)status}, from[1] = {-1};
    snprintf(message, sizeof message, "%s", status_message());
    comm_all_reduce(comm, worst, 1, DTYPE_I32, REDUCE_MAX);
    if (worst[0] == STATUS_OK) {
        return STATUS_OK;
    }
    from[0] = worst[0] == (int32_t)status ? comm->size - 1 - comm->rank
                                          : -1; /* the lowest rank that has it */
    comm_all_reduce(comm, from, 1, DTYPE_I32, REDUCE_MAX);
    const int rank = comm->size - 1 - from[0];
    comm_broadcast(comm, message, sizeof message, rank);
    if (where != NULL) {
        *where = rank;
    }
    return status_lines((enum status)worst[0], message);
}
