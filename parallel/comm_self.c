#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/transports.h"

static void all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                       enum reduce op)
{
    (void)comm, (void)data, (void)count, (void)dtype, (void)op;
}

static void copy(void *out, const void *in, size_t bytes)
{
    if (bytes > 0 && out != in) {
        memmove(out, in, bytes);
    }
}

static void reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                           enum dtype dtype)
{
    (void)comm;
    copy(out, in, (size_t)count * dtype_bytes(dtype));
}

static void all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    (void)comm;
    copy(out, in, bytes);
}

static void rows_start(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes, struct comm_rows *rows)
{
    (void)comm, (void)rows;
    assert(recv_rows[0] == send_rows[0]);
    copy(recv, send, (size_t)send_rows[0] * row_bytes);
}

static bool rows_test(const struct comm *comm, struct comm_rows *rows)
{
    (void)comm, (void)rows;
    return true;
}

static void rows_finish(struct comm *comm, struct comm_rows *rows)
{
    (void)comm, (void)rows;
}

static void broadcast(struct comm *comm, void *data, size_t bytes, int root)
{
    (void)comm, (void)data, (void)bytes, (void)root;
}

static void barrier(struct comm *comm)
{
    (void)comm;
}

static void send_start(struct comm *comm, const void *data, size_t bytes, int peer,
                       struct comm_request *request)
{
    (void)comm, (void)data, (void)bytes, (void)peer, (void)request;
    assert(!"a group of one rank has nobody to send to");
}

static void send_finish(struct comm *comm, struct comm_request *request)
{
    (void)comm, (void)request;
    assert(!"a group of one rank has nobody to send to");
}

static void receive(struct comm *comm, void *data, size_t bytes, int peer)
{
    (void)comm, (void)data, (void)bytes, (void)peer;
    assert(!"a group of one rank has nobody to receive from");
}

static void exchange_start(struct comm *comm, void *recv, const void *send, size_t bytes,
                           struct comm_request *request)
{
    (void)comm, (void)request;
    copy(recv, send, bytes);
}

static void gather_start(struct comm *comm, void *data, size_t bytes, struct comm_request *request)
{
    (void)comm, (void)data, (void)bytes, (void)request;
}

static void pass_start(struct comm *comm, void *recv, const void *send, size_t bytes,
                       struct comm_request *request)
{
    (void)comm, (void)request;
    copy(recv, send, bytes);
}

static bool exchange_test(struct comm *comm, struct comm_request *request)
{
    (void)comm, (void)request;
    return true;
}

static void exchange_finish(struct comm *comm, struct comm_request *request)
{
    (void)comm, (void)request;
}

static void split(struct comm *comm, int color, int key, struct comm *out)
{
    (void)color, (void)key;
    *out = *comm;
}

static void end(struct comm *comm, int exit_code)
{
    (void)comm;
    exit(exit_code);
}

static const struct comm_table self_table = {.name = "self",
                                             .all_reduce = all_reduce,
                                             .reduce_scatter = reduce_scatter,
                                             .all_gather = all_gather,
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
                                             .close = barrier,
                                             .abort = end};

void comm_self_open(struct comm *world)
{
    *world = (struct comm){.table = &self_table, .size = 1, .node_size = 1};
}
