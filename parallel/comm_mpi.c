#include <assert.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/transports.h"

/* MPI counts are int: larger messages go in pieces of this many bytes. */
static const size_t PIECE = COMM_PIECE;
/* Tags: of the pieces of an all-to-all, and of messages that may be under way beside one. */
enum { TAG_EXCHANGE, TAG_MESSAGE, TAG_PASS };

/* What all groups of the process share: scratch of reductions, which grows on first use, then
 * stays, and COMM_EXCHANGE_UNIT bytes as a type. */
struct scratch {
    void *data; /* owned */
    size_t bytes;
    MPI_Datatype unit;      /* owned */
    struct comm_rows parts; /* on their way to be added up */
};

struct mpi_group {
    MPI_Comm comm;
    bool world;
    struct scratch *scratch; /* one for all groups of the process: owned by the world */
};

static MPI_Comm handle(const struct comm *comm)
{
    return ((const struct mpi_group *)comm->impl)->comm;
}

static MPI_Datatype mpi_type(enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F32:
        return MPI_FLOAT;
    case DTYPE_F64:
        return MPI_DOUBLE;
    case DTYPE_I32:
        return MPI_INT32_T;
    case DTYPE_I64:
        return MPI_INT64_T;
    default:
        assert(!"no reduction for this dtype");
        return MPI_DATATYPE_NULL;
    }
}

static int piece_bytes(size_t bytes, size_t at)
{
    return (int)(bytes - at < PIECE ? bytes - at : PIECE);
}

/* Like a transport failure, want of memory here ends the job: the others are in the collective. */
static void no_memory(const struct comm *comm, size_t bytes, const char *what)
{
    fprintf(stderr, "switchyard: rank %d: out of memory for %zu bytes of %s\n", comm->rank, bytes,
            what);
    MPI_Abort(MPI_COMM_WORLD, status_exit_code(STATUS_RESOURCE));
}

static void *scratch(struct comm *comm, size_t bytes)
{
    struct scratch *own = ((struct mpi_group *)comm->impl)->scratch;
    if (own->bytes < bytes) {
        free(own->data);
        own->data = malloc(bytes);
        own->bytes = bytes;
        if (own->data == NULL) {
            no_memory(comm, bytes, "a reduction");
        }
    }
    return own->data;
}

static void all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    const bool in_place = in == (const char *)out + (size_t)comm->rank * bytes;
    if (bytes <= PIECE) {
        MPI_Allgather(in_place ? MPI_IN_PLACE : in, (int)bytes, MPI_BYTE, out, (int)bytes, MPI_BYTE,
                      handle(comm));
        return;
    }
    if (!in_place) {
        memcpy((char *)out + (size_t)comm->rank * bytes, in, bytes);
    }
    for (int r = 0; r < comm->size; r++) {
        for (size_t at = 0; at < bytes; at += PIECE) {
            MPI_Bcast((char *)out + (size_t)r * bytes + at, piece_bytes(bytes, at), MPI_BYTE, r,
                      handle(comm));
        }
    }
}

/* Adds `count` elements of every rank in rank order: the same bits on every rank and every time. */
static void sum_in_rank_order(struct comm *comm, void *data, int64_t count, enum dtype dtype)
{
    const size_t bytes = (size_t)count * dtype_bytes(dtype);
    char *all = scratch(comm, bytes * (size_t)comm->size);
    all_gather(comm, all, data, bytes);
    for (int64_t i = 0; i < count; i++) {
        if (dtype == DTYPE_F64) {
            double sum = 0;
            for (int r = 0; r < comm->size; r++) {
                sum += ((const double *)(void *)all)[r * count + i];
            }
            ((double *)data)[i] = sum;
        } else {
            float sum = 0;
            for (int r = 0; r < comm->size; r++) {
                sum += ((const float *)(void *)all)[r * count + i];
            }
            ((float *)data)[i] = sum;
        }
    }
}

static void all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                       enum reduce op)
{
    const bool real = dtype == DTYPE_F32 || dtype == DTYPE_F64;
    if (real && op == REDUCE_SUM) {
        sum_in_rank_order(comm, data, count, dtype);
        return;
    }
    assert((size_t)count <= PIECE);
    MPI_Allreduce(MPI_IN_PLACE, data, (int)count, mpi_type(dtype),
                  op == REDUCE_SUM ? MPI_SUM : MPI_MAX, handle(comm));
}

/* Room for more requests than there are. */
static bool rows_reserve(const struct comm *comm, struct comm_rows *rows)
{
    const int64_t room = rows->room > 0 ? 2 * rows->room : 2 * comm->size;
    void *more = realloc(rows->requests, (size_t)room * sizeof(MPI_Request));
    if (more != NULL) {
        rows->requests = more;
        rows->room = room;
    }
    return more != NULL;
}

/* Room for one more request. */
static MPI_Request *another(struct comm *comm, struct comm_rows *rows)
{
    if (rows->count == rows->room && !rows_reserve(comm, rows)) {
        no_memory(comm, (size_t)(2 * rows->count) * sizeof(MPI_Request), "an exchange");
    }
    return (MPI_Request *)rows->requests + rows->count++;
}

/* Posts a message in pieces. */
static void post(struct comm *comm, bool send, void *data, size_t bytes, int peer,
                 struct comm_rows *rows)
{
    for (size_t at = 0; at < bytes; at += PIECE) {
        const int piece = piece_bytes(bytes, at);
        MPI_Request *request = another(comm, rows);
        if (send) {
            MPI_Isend((char *)data + at, piece, MPI_BYTE, peer, TAG_EXCHANGE, handle(comm),
                      request);
        } else {
            MPI_Irecv((char *)data + at, piece, MPI_BYTE, peer, TAG_EXCHANGE, handle(comm),
                      request);
        }
    }
}

static void rows_start(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes, struct comm_rows *rows)
{
    char *in = recv, *out = (char *)(uintptr_t)send, *own_in = NULL, *own_out = NULL;
    rows->count = 0;
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) {
            own_in = in;
        } else {
            post(comm, false, in, (size_t)recv_rows[r] * row_bytes, r, rows);
        }
        in += (size_t)recv_rows[r] * row_bytes;
    }
    for (int r = 0; r < comm->size; r++) {
        if (r == comm->rank) {
            own_out = out;
        } else {
            post(comm, true, out, (size_t)send_rows[r] * row_bytes, r, rows);
        }
        out += (size_t)send_rows[r] * row_bytes;
    }
    assert(recv_rows[comm->rank] == send_rows[comm->rank]);
    if (send_rows[comm->rank] > 0) {
        memcpy(own_in, own_out, (size_t)send_rows[comm->rank] * row_bytes);
    }
}

static bool rows_test(const struct comm *comm, struct comm_rows *rows)
{
    int done = 0;
    (void)comm;
    MPI_Testall((int)rows->count, rows->requests, &done, MPI_STATUSES_IGNORE);
    return done != 0;
}

static void rows_finish(struct comm *comm, struct comm_rows *rows)
{
    (void)comm;
    MPI_Waitall((int)rows->count, rows->requests, MPI_STATUSES_IGNORE);
    rows->count = 0;
}

static void add_part(void *out, const void *part, int64_t count, enum dtype dtype)
{
    if (dtype == DTYPE_I64) {
        int64_t *sum = out;
        for (int64_t i = 0; i < count; i++) {
            sum[i] += ((const int64_t *)part)[i];
        }
        return;
    }
    float *sum = out;
    for (int64_t i = 0; i < count; i++) {
        sum[i] += ((const float *)part)[i];
    }
}

/* Every rank gets all contributions to its share and adds them in rank order. */
static void reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                           enum dtype dtype)
{
    const size_t ranks = (size_t)comm->size, bytes = (size_t)count * dtype_bytes(dtype);
    int64_t *rows = scratch(comm, ranks * (sizeof *rows + bytes));
    char *parts = (char *)(rows + ranks);
    for (int r = 0; r < comm->size; r++) {
        rows[r] = count;
    }
    struct comm_rows *way = &((struct mpi_group *)comm->impl)->scratch->parts;
    rows_start(comm, parts, rows, in, rows, dtype_bytes(dtype), way);
    rows_finish(comm, way);
    memcpy(out, parts, bytes);
    for (int r = 1; r < comm->size; r++) {
        add_part(out, parts + (size_t)r * bytes, count, dtype);
    }
}

static void broadcast(struct comm *comm, void *data, size_t bytes, int root)
{
    for (size_t at = 0; at < bytes; at += PIECE) {
        MPI_Bcast((char *)data + at, piece_bytes(bytes, at), MPI_BYTE, root, handle(comm));
    }
}

static void barrier(struct comm *comm)
{
    MPI_Barrier(handle(comm));
}

static void send_start(struct comm *comm, const void *data, size_t bytes, int peer,
                       struct comm_request *request)
{
    request->pieces = 0;
    for (size_t at = 0; at < bytes; at += PIECE) {
        MPI_Request piece;
        _Static_assert(sizeof piece <= sizeof request->piece[0], "a handle fits");
        assert(request->pieces < COMM_PIECES);
        MPI_Isend((const char *)data + at, piece_bytes(bytes, at), MPI_BYTE, peer, TAG_MESSAGE,
                  handle(comm), &piece);
        memcpy(&request->piece[request->pieces++], &piece, sizeof piece);
    }
}

static void send_finish(struct comm *comm, struct comm_request *request)
{
    (void)comm;
    for (int i = 0; i < request->pieces; i++) {
        MPI_Request piece;
        memcpy(&piece, &request->piece[i], sizeof piece);
        MPI_Wait(&piece, MPI_STATUS_IGNORE);
    }
    request->pieces = 0;
}

static void receive(struct comm *comm, void *data, size_t bytes, int peer)
{
    for (size_t at = 0; at < bytes; at += PIECE) {
        MPI_Recv((char *)data + at, piece_bytes(bytes, at), MPI_BYTE, peer, TAG_MESSAGE,
                 handle(comm), MPI_STATUS_IGNORE);
    }
}

/* NOTE: counts are int, hence units. MPI's own progress moves it on in whatever call of MPI comes
 * next. */
static void exchange_start(struct comm *comm, void *recv, const void *send, size_t bytes,
                           struct comm_request *request)
{
    MPI_Request whole;
    struct mpi_group *group = comm->impl;
    const int units = (int)(bytes / COMM_EXCHANGE_UNIT);
    assert(bytes % COMM_EXCHANGE_UNIT == 0 && bytes / COMM_EXCHANGE_UNIT <= INT32_MAX);
    MPI_Ialltoall(send, units, group->scratch->unit, recv, units, group->scratch->unit,
                  handle(comm), &whole);
    request->pieces = 1;
    memcpy(&request->piece[0], &whole, sizeof whole);
}

static void gather_start(struct comm *comm, void *data, size_t bytes, struct comm_request *request)
{
    MPI_Request whole;
    struct mpi_group *group = comm->impl;
    const int units = (int)(bytes / COMM_EXCHANGE_UNIT);
    assert(bytes % COMM_EXCHANGE_UNIT == 0 && bytes / COMM_EXCHANGE_UNIT <= INT32_MAX);
    MPI_Iallgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, data, units, group->scratch->unit,
                   handle(comm), &whole);
    request->pieces = 1;
    memcpy(&request->piece[0], &whole, sizeof whole);
}

static void keep(struct comm_request *request, MPI_Request piece)
{
    assert(request->pieces < COMM_PIECES);
    memcpy(&request->piece[request->pieces++], &piece, sizeof piece);
}

static void pass_start(struct comm *comm, void *recv, const void *send, size_t bytes,
                       struct comm_request *request)
{
    const int next = (comm->rank + 1) % comm->size,
              before = (comm->rank + comm->size - 1) % comm->size;
    MPI_Request piece;
    request->pieces = 0;
    for (size_t at = 0; at < bytes; at += PIECE) {
        MPI_Irecv((char *)recv + at, piece_bytes(bytes, at), MPI_BYTE, before, TAG_PASS,
                  handle(comm), &piece);
        keep(request, piece);
        MPI_Isend((const char *)send + at, piece_bytes(bytes, at), MPI_BYTE, next, TAG_PASS,
                  handle(comm), &piece);
        keep(request, piece);
    }
}

static bool exchange_test(struct comm *comm, struct comm_request *request)
{
    bool all = true;
    (void)comm;
    for (int i = 0; i < request->pieces; i++) {
        MPI_Request piece;
        int done = 0;
        memcpy(&piece, &request->piece[i], sizeof piece);
        MPI_Test(&piece, &done, MPI_STATUS_IGNORE); /* one that was done stays so */
        memcpy(&request->piece[i], &piece, sizeof piece);
        all = all && done != 0;
    }
    return all;
}

static void exchange_finish(struct comm *comm, struct comm_request *request)
{
    send_finish(comm, request);
}

static void describe(struct comm *comm)
{
    MPI_Comm node;
    MPI_Comm_rank(handle(comm), &comm->rank);
    MPI_Comm_size(handle(comm), &comm->size);
    MPI_Comm_split_type(handle(comm), MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL, &node);
    MPI_Comm_rank(node, &comm->node_rank);
    MPI_Comm_size(node, &comm->node_size);
    MPI_Comm_free(&node);
}

static void split(struct comm *comm, int color, int key, struct comm *out)
{
    struct mpi_group *group = calloc(1, sizeof *group);
    assert(group != NULL);
    MPI_Comm_split(handle(comm), color, key, &group->comm);
    group->scratch = ((const struct mpi_group *)comm->impl)->scratch;
    *out = (struct comm){.table = comm->table, .impl = group};
    describe(out);
}

static void close_group(struct comm *comm)
{
    struct mpi_group *group = comm->impl;
    if (group->world) {
        MPI_Type_free(&group->scratch->unit);
        free(group->scratch->data);
        free(group->scratch->parts.requests);
        free(group->scratch);
        MPI_Finalize();
    } else {
        MPI_Comm_free(&group->comm);
    }
    free(group);
}

static void end(struct comm *comm, int exit_code)
{
    MPI_Abort(handle(comm), exit_code);
}

static const struct comm_table mpi_table = {.name = "mpi",
                                            .all_reduce = all_reduce,
                                            .reduce_scatter = reduce_scatter,
                                            .all_gather = all_gather,
                                            .rows_reserve = rows_reserve,
                                            .rows_start = rows_start,
                                            .rows_test = rows_test,
                                            .rows_finish = rows_finish,
                                            .broadcast = broadcast,
                                            .barrier = barrier,
                                            .send_start = send_start,
                                            .send_finish = send_finish,
                                            .receive = receive,
                                            .exchange_start = exchange_start,
                                            .gather_start = gather_start,
                                            .pass_start = pass_start,
                                            .exchange_test = exchange_test,
                                            .exchange_finish = exchange_finish,
                                            .split = split,
                                            .close = close_group,
                                            .abort = end};

/* Whether this process sees only a part of the user ids, as in unprivileged containers. */
static bool in_user_namespace(void)
{
    unsigned long inside = 0, outside = 0, count = 0xffffffffUL;
    FILE *map = fopen("/proc/self/uid_map", "r");
    if (map != NULL) {
        const bool read = fscanf(map, "%lu %lu %lu", &inside, &outside, &count) == 3;
        fclose(map);
        return read && count < 0xffffffffUL;
    }
    return false;
}

enum status comm_mpi_open(struct comm *world)
{
    /* NOTE: there, Open MPI's copies between processes are forbidden and each attempt prints a
     * line; the way through shared memory works. An own setting of the user stays. */
    if (in_user_namespace()) {
        (void)setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
    }
    int provided = 0;
    struct mpi_group *group = calloc(1, sizeof *group);
    struct scratch *shared = calloc(1, sizeof *shared);
    if (group == NULL || shared == NULL ||
        MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
        free(group);
        free(shared);
        return status_fail(STATUS_INTERNAL, "MPI did not start");
    }
    MPI_Type_contiguous(COMM_EXCHANGE_UNIT, MPI_BYTE, &shared->unit);
    MPI_Type_commit(&shared->unit);
    *group = (struct mpi_group){.comm = MPI_COMM_WORLD, .world = true, .scratch = shared};
    *world = (struct comm){.table = &mpi_table, .impl = group};
    describe(world);
    return STATUS_OK;
}
