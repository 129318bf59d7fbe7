/* staged: device memory through host buffers and the host's transport, for ranks that share a GPU,
 * for machines without NCCL, and as the oracle of the NCCL wire. Whatever the size of a message,
 * host memory stays within two buffers: large ones go in rounds, the same number on every rank. */
#include <assert.h>
#include <stdlib.h>

#include "parallel/transports.h"

struct staged {
    const struct ops *ops; /* borrowed */
    size_t bytes;          /* of each buffer */
    char *send, *recv;     /* owned */
    /* [size] each, of one exchange; rows owns all three */
    int64_t *rows, *send_bytes, *recv_bytes;
};

static struct staged *staged(const struct comm *comm)
{
    return comm->wire_impl;
}

static void download(struct comm *comm, void *host, const void *from, size_t bytes)
{
    if (bytes > 0) {
        staged(comm)->ops->download(comm->device, host, from, bytes);
    }
}

static void upload(struct comm *comm, void *to, const void *host, size_t bytes)
{
    if (bytes > 0) {
        staged(comm)->ops->upload(comm->device, to, host, bytes);
    }
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Sums are elementwise, in rank order: rounds do not change them. */
static void all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                       enum reduce op)
{
    const size_t size = dtype_bytes(dtype), all = (size_t)count * size;
    const size_t most = staged(comm)->bytes / size * size;
    for (size_t at = 0; at < all; at += most) {
        const size_t bytes = least(most, all - at);
        download(comm, staged(comm)->send, (char *)data + at, bytes);
        comm_all_reduce(comm, staged(comm)->send, (int64_t)(bytes / size), dtype, op);
        upload(comm, (char *)data + at, staged(comm)->send, bytes);
    }
}

static void reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                           enum dtype dtype)
{
    const size_t ranks = (size_t)comm->size, size = dtype_bytes(dtype);
    const int64_t most = (int64_t)(staged(comm)->bytes / ranks / size);
    for (int64_t at = 0; at < count; at += most) {
        const int64_t some = count - at < most ? count - at : most;
        const size_t bytes = (size_t)some * size;
        for (size_t r = 0; r < ranks; r++) {
            download(comm, staged(comm)->send + r * bytes,
                     (const char *)in + (r * (size_t)count + (size_t)at) * size, bytes);
        }
        comm_reduce_scatter(comm, staged(comm)->recv, staged(comm)->send, some, dtype);
        upload(comm, (char *)out + (size_t)at * size, staged(comm)->recv, bytes);
    }
}

static void all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    const size_t ranks = (size_t)comm->size, most = staged(comm)->bytes / ranks;
    for (size_t at = 0; at < bytes; at += most) {
        const size_t some = least(most, bytes - at);
        download(comm, staged(comm)->send, (const char *)in + at, some);
        comm_all_gather(comm, staged(comm)->recv, staged(comm)->send, some);
        for (size_t r = 0; r < ranks; r++) {
            upload(comm, (char *)out + r * bytes + at, staged(comm)->recv + r * some, some);
        }
    }
}

/* Of a message of `bytes`, what goes in the round that starts at `at`. */
static size_t part(size_t bytes, size_t at, size_t most)
{
    return at < bytes ? least(most, bytes - at) : 0;
}

/* Bytes [at, at + most) of every pair's message. */
static void exchange(struct comm *comm, char *recv, const int64_t *recv_rows, const char *send,
                     const int64_t *send_rows, size_t row_bytes, size_t at)
{
    struct staged *s = staged(comm);
    const size_t most = s->bytes / (size_t)comm->size;
    char *host = s->send;
    for (int r = 0; r < comm->size; r++) {
        const size_t some = part((size_t)send_rows[r] * row_bytes, at, most);
        download(comm, host, send + at, some);
        s->send_bytes[r] = (int64_t)some;
        s->recv_bytes[r] = (int64_t)part((size_t)recv_rows[r] * row_bytes, at, most);
        host += some;
        send += (size_t)send_rows[r] * row_bytes;
    }
    comm_all_to_all(comm, s->recv, s->recv_bytes, s->send, s->send_bytes, 1);
    host = s->recv;
    for (int r = 0; r < comm->size; r++) {
        upload(comm, recv + at, host, (size_t)s->recv_bytes[r]);
        host += s->recv_bytes[r];
        recv += (size_t)recv_rows[r] * row_bytes;
    }
}

/* The host waits for the counts of every rank, to know the number of rounds. */
static void all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes)
{
    const size_t most = staged(comm)->bytes / (size_t)comm->size;
    int64_t longest[1] = {0};
    for (int r = 0; r < comm->size; r++) {
        longest[0] = send_rows[r] > longest[0] ? send_rows[r] : longest[0];
    }
    comm_all_reduce(comm, longest, 1, DTYPE_I64, REDUCE_MAX);
    for (size_t at = 0; at < (size_t)longest[0] * row_bytes; at += most) {
        exchange(comm, recv, recv_rows, send, send_rows, row_bytes, at);
    }
}

static void all_to_all_fixed(struct comm *comm, void *recv, const void *send, int64_t rows_per_peer,
                             size_t row_bytes)
{
    const size_t most = staged(comm)->bytes / (size_t)comm->size;
    int64_t *rows = staged(comm)->rows;
    for (int r = 0; r < comm->size; r++) {
        rows[r] = rows_per_peer;
    }
    for (size_t at = 0; at < (size_t)rows_per_peer * row_bytes; at += most) {
        exchange(comm, recv, rows, send, rows, row_bytes, at);
    }
}

static void pass(struct comm *comm, const char *name, void *recv, const void *send, size_t bytes)
{
    struct staged *s = staged(comm);
    for (size_t at = 0; at < bytes; at += s->bytes) {
        const size_t some = least(s->bytes, bytes - at);
        struct comm_request request;
        download(comm, s->send, (const char *)send + at, some);
        comm_pass_start(comm, name, s->recv, s->send, some, &request);
        comm_exchange_finish(comm, &request);
        upload(comm, (char *)recv + at, s->recv, some);
    }
}

static void detach(struct comm *comm)
{
    struct staged *s = comm->wire_impl;
    free(s->send);
    free(s->recv);
    free(s->rows);
    free(s);
}

static const struct comm_wire staged_wire = {.name = "staged",
                                             .all_reduce = all_reduce,
                                             .reduce_scatter = reduce_scatter,
                                             .all_gather = all_gather,
                                             .all_to_all = all_to_all,
                                             .all_to_all_fixed = all_to_all_fixed,
                                             .pass = pass,
                                             .detach = detach};

enum status comm_staged_attach(struct comm *comm, const struct ops *ops, size_t stage_bytes)
{
    struct staged *s = calloc(1, sizeof *s);
    assert(stage_bytes >= (size_t)comm->size * sizeof(double));
    if (s != NULL) {
        *s = (struct staged){.ops = ops,
                             .bytes = stage_bytes,
                             .send = malloc(stage_bytes),
                             .recv = malloc(stage_bytes),
                             .rows = calloc(3 * (size_t)comm->size, sizeof *s->rows)};
    }
    if (s == NULL || s->send == NULL || s->recv == NULL || s->rows == NULL) {
        comm->wire_impl = s;
        if (s != NULL) {
            detach(comm);
        }
        comm->wire_impl = NULL;
        return status_fail(STATUS_RESOURCE,
                           "out of memory for 2 x %zu bytes that stage device memory", stage_bytes);
    }
    s->send_bytes = s->rows + comm->size;
    s->recv_bytes = s->send_bytes + comm->size;
    comm->wire_impl = s;
    comm->wire = &staged_wire;
    return STATUS_OK;
}
