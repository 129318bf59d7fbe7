/* nccl: device memory by NCCL, one communicator per group.
 *
 * An operation runs on a high-priority stream of the group; events order it after what the compute
 * stream holds when it starts and before what comes there after finish, the host waits for nothing.
 * Communicators are non-blocking: a call that NCCL is still working on (the first message to a peer
 * opens a connection) is polled, with a limit. Every rank issues operations in the same order, and
 * on each an event orders an operation behind the one before it, whosever group's that is: two
 * communicators never wait for each other, however many multiprocessors NCCL takes for each.
 *
 * Sums: NCCL picks algorithm and protocol from its cost table by message size, ranks and topology,
 * not by measuring, and each adds in one order. So runs on the same machines repeat; other machines
 * or another version may give other last bits. NCCL_ALGO=Ring and NCCL_PROTO=Simple in the
 * environment pin it; ncclConfig has no field for either. Gathers and all-to-alls move bytes.
 * Around it: comm_nccl_group.h. */
#include "parallel/comm_nccl_group.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/library.h"
#include "kernels/device.h"
#include "parallel/activity.h"

/* ---- operations ---- */

/* What a non-blocking call comes to. ncclInProgress: not within `limit` seconds. */
static ncclResult_t settle(struct nccl_group *g, ncclResult_t result, double limit)
{
    const double start = nccl_seconds();
    for (int polls = 0; result == ncclInProgress && nccl_seconds() - start < limit; polls++) {
        const ncclResult_t asked = g->nccl.async_error(g->comm, &result);
        result = asked != ncclSuccess ? asked : result;
        if (polls < 100) {
            sched_yield();
        } else {
            nccl_sleep_ms(1);
        }
    }
    return result;
}

/* A trace, which times what the device does. */
static bool recording(const struct comm *comm)
{
    return comm->activity != NULL && comm->activity->spans != NULL;
}

static bool capturing(struct nccl_group *g)
{
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    nccl_cuda(g, cudaStreamIsCapturing(g->stream, &capture), "cudaStreamIsCapturing");
    return capture != cudaStreamCaptureStatusNone;
}

/* Behind what another group has under way: of the same stream it is anyway. In a capture nothing
 * is (comm.h). */
static void take_turn(struct nccl_group *g, const struct comm_activity *activity)
{
    if (activity != NULL && activity->device_end != NULL && activity->device_group != g &&
        !capturing(g)) {
        nccl_cuda(g, cudaStreamWaitEvent(g->stream, activity->device_end, 0),
                  "cudaStreamWaitEvent");
    }
}

static struct nccl_group *begin(struct comm *comm, const char *what, size_t bytes)
{
    struct nccl_group *g = comm->wire_impl;
    pthread_mutex_lock(&g->mutex);
    g->what = what;
    g->bytes = bytes;
    g->number++;
    pthread_mutex_unlock(&g->mutex);
    nccl_cuda(g, cudaEventRecord(g->ready, g->compute), "cudaEventRecord");
    nccl_cuda(g, cudaStreamWaitEvent(g->stream, g->ready, 0), "cudaStreamWaitEvent");
    take_turn(g, comm->activity);
    nccl_times_from(g, NCCL_RUNS, g->stream, recording(comm));
    return g;
}

/* With the mutex held. The event of this operation, and whether the watchdog gets to see it: not
 * in a capture, where it will never be reached and nobody outside may wait for it, and not when the
 * ring is full. */
static cudaEvent_t end_event(struct nccl_group *g, bool *follow)
{
    const bool captured = capturing(g);
    *follow = !captured && g->next - g->first < NCCL_FOLLOWED;
    return *follow ? g->ring[g->next % NCCL_FOLLOWED].done : captured ? g->captured : g->end;
}

/* `result`: of issuing. */
static void end(struct comm *comm, ncclResult_t result)
{
    struct nccl_group *g = comm->wire_impl;
    bool follow = false;
    result = settle(g, result, (double)g->hang_seconds);
    if (result != ncclSuccess) {
        nccl_fail(g, result == ncclInProgress ? STATUS_HANG : STATUS_INTERNAL, "%s number %llu: %s",
                  g->what, (unsigned long long)g->number,
                  result == ncclInProgress
                      ? "NCCL does not come back from issuing it: a rank of the "
                        "group stopped or does something else"
                      : nccl_explain(g, result));
    }
    nccl_times_to(g, NCCL_RUNS, g->stream);
    pthread_mutex_lock(&g->mutex);
    const cudaEvent_t done = end_event(g, &follow);
    nccl_cuda(g, cudaEventRecord(done, g->stream), "cudaEventRecord");
    if (follow) {
        g->ring[g->next++ % NCCL_FOLLOWED] = (struct nccl_followed){.done = done,
                                                                    .what = g->what,
                                                                    .number = g->number,
                                                                    .bytes = g->bytes,
                                                                    .issued = nccl_seconds()};
    }
    pthread_mutex_unlock(&g->mutex);
    g->started = done;
    if (comm->activity != NULL && !capturing(g)) {
        comm->activity->device_group = g;
        comm->activity->device_end = done;
    }
}

/* The compute stream waits. An event that was used again since is of a later operation. */
static void wait_for_end(struct comm *comm, void *end)
{
    struct nccl_group *g = comm->wire_impl;
    nccl_times_from(g, NCCL_WAITS, g->compute, recording(comm));
    nccl_cuda(g, cudaStreamWaitEvent(g->compute, end, 0), "cudaStreamWaitEvent");
    nccl_times_to(g, NCCL_WAITS, g->compute);
}

/* For what was started last, and so for all before it. */
static void finish(struct comm *comm)
{
    struct nccl_group *g = comm->wire_impl;
    if (g->started != NULL) {
        wait_for_end(comm, g->started);
        g->started = NULL;
    }
}

static void *mark(struct comm *comm)
{
    struct nccl_group *g = comm->wire_impl;
    const cudaEvent_t end = g->started;
    g->started = NULL;
    return end;
}

static void all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                       enum reduce op)
{
    const ncclDataType_t type = dtype == DTYPE_F32   ? ncclFloat32
                                : dtype == DTYPE_F64 ? ncclFloat64
                                                     : ncclInt64;
    if (count > 0) {
        struct nccl_group *g = begin(comm, "all-reduce", (size_t)count * dtype_bytes(dtype));
        end(comm, g->nccl.all_reduce(data, data, (size_t)count, type,
                                     op == REDUCE_SUM ? ncclSum : ncclMax, g->comm, g->stream));
    }
}

static void reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                           enum dtype dtype)
{
    if (count > 0) {
        struct nccl_group *g =
            begin(comm, "reduce-scatter", (size_t)count * (size_t)comm->size * dtype_bytes(dtype));
        end(comm, g->nccl.reduce_scatter(in, out, (size_t)count,
                                         dtype == DTYPE_I64 ? ncclInt64 : ncclFloat32, ncclSum,
                                         g->comm, g->stream));
    }
}

static void reduce(struct comm *comm, void *out, const void *in, int64_t count, enum dtype dtype,
                   int root)
{
    if (count > 0) {
        struct nccl_group *g = begin(comm, "reduce", (size_t)count * dtype_bytes(dtype));
        end(comm,
            g->nccl.reduce(in, out, (size_t)count, dtype == DTYPE_I64 ? ncclInt64 : ncclFloat32,
                           ncclSum, root, g->comm, g->stream));
    }
}

static void all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    if (bytes > 0) {
        struct nccl_group *g = begin(comm, "all-gather", bytes);
        end(comm, g->nccl.all_gather(in, out, bytes, ncclUint8, g->comm, g->stream));
    }
}

static bool times(struct comm *comm, double *run_ms, double *waited_ms)
{
    double ms[NCCL_TIMES];
    const bool all = nccl_times_read(comm->wire_impl, ms);
    *run_ms += ms[NCCL_RUNS];
    *waited_ms += ms[NCCL_WAITS];
    return all;
}

static void hand_in(struct nccl_group *g, ncclResult_t result)
{
    if (result != ncclSuccess && result != ncclInProgress) {
        nccl_fail(g, STATUS_INTERNAL, "%s number %llu: %s", g->what, (unsigned long long)g->number,
                  nccl_explain(g, result));
    }
}

/* rows NULL: `uniform` of them. */
static size_t message(const int64_t *rows, int64_t uniform, int rank, size_t row_bytes)
{
    return (size_t)(rows != NULL ? rows[rank] : uniform) * row_bytes;
}

/* One message per peer, all in one NCCL group; empty ones, which both sides know, are left out. */
static void exchange(struct comm *comm, char *recv, const int64_t *recv_rows, const char *send,
                     const int64_t *send_rows, int64_t uniform, size_t row_bytes)
{
    size_t all = 0;
    for (int r = 0; r < comm->size; r++) {
        all += message(send_rows, uniform, r, row_bytes);
    }
    struct nccl_group *g = begin(comm, "all-to-all", all);
    hand_in(g, g->nccl.group_start());
    for (int r = 0; r < comm->size; r++) {
        const size_t out = message(send_rows, uniform, r, row_bytes);
        const size_t in = message(recv_rows, uniform, r, row_bytes);
        if (r == comm->rank && out > 0) {
            nccl_cuda(g, cudaMemcpyAsync(recv, send, out, cudaMemcpyDeviceToDevice, g->stream),
                      "cudaMemcpyAsync");
        }
        if (r != comm->rank && out > 0) {
            hand_in(g, g->nccl.send(send, out, ncclUint8, r, g->comm, g->stream));
        }
        if (r != comm->rank && in > 0) {
            hand_in(g, g->nccl.recv(recv, in, ncclUint8, r, g->comm, g->stream));
        }
        send += out;
        recv += in;
    }
    end(comm, g->nccl.group_end());
}

static void all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes)
{
    exchange(comm, recv, recv_rows, send, send_rows, 0, row_bytes);
}

static void all_to_all_fixed(struct comm *comm, void *recv, const void *send, int64_t rows_per_peer,
                             size_t row_bytes)
{
    if (rows_per_peer > 0) {
        exchange(comm, recv, NULL, send, NULL, rows_per_peer, row_bytes);
    }
}

static void pass(struct comm *comm, const char *name, void *recv, const void *send, size_t bytes)
{
    if (bytes > 0) {
        struct nccl_group *g = begin(comm, name, bytes);
        const int next = (comm->rank + 1) % comm->size,
                  before = (comm->rank + comm->size - 1) % comm->size;
        hand_in(g, g->nccl.group_start());
        hand_in(g, g->nccl.send(send, bytes, ncclUint8, next, g->comm, g->stream));
        hand_in(g, g->nccl.recv(recv, bytes, ncclUint8, before, g->comm, g->stream));
        end(comm, g->nccl.group_end());
    }
}

/* ---- start and end ---- */

enum status comm_nccl_check(struct comm *comm)
{
    struct nccl nccl;
    void *library = NULL;
    char gpu[COMM_GPU_BYTES];
    int device = 0;
    const enum status status = nccl_load(&nccl, &library);
    library_close(library);
    TRY(comm_agree(comm, status, NULL));
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetPCIBusId(gpu, sizeof gpu, device) != cudaSuccess) {
        snprintf(gpu, sizeof gpu, "of rank %d",
                 comm->world_rank); /* attach will say what is wrong */
    }
    return comm_places_check(comm, gpu);
}

static enum status streams_open(struct nccl_group *g)
{
    int least = 0, greatest = 0;
    cudaError_t error = cudaGetDevice(&g->device);
    error = error != cudaSuccess ? error : cudaDeviceGetStreamPriorityRange(&least, &greatest);
    error = error != cudaSuccess
                ? error
                : cudaStreamCreateWithPriority(&g->stream, cudaStreamNonBlocking, greatest);
    cudaEvent_t *const events[] = {&g->ready, &g->end, &g->captured};
    const size_t own = sizeof events / sizeof events[0];
    for (size_t i = 0; i < own + NCCL_FOLLOWED && error == cudaSuccess; i++) {
        error = cudaEventCreateWithFlags(i < own ? events[i] : &g->ring[i - own].done,
                                         cudaEventDisableTiming);
    }
    return error == cudaSuccess
               ? STATUS_OK
               : status_fail(STATUS_INTERNAL, "run.comm nccl: no stream or events: %s",
                             cudaGetErrorString(error));
}

static enum status communicator_open(struct nccl_group *g, const ncclUniqueId *id)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t result =
        settle(g, g->nccl.init(&g->comm, g->size, *id, g->rank, &config), COMM_START_SECONDS);
    if (result == ncclInProgress) {
        return status_fail(STATUS_HANG,
                           "nccl, %s: the ranks did not find each other in %d s (network "
                           "interface? NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO)",
                           g->label, COMM_START_SECONDS);
    }
    return result == ncclSuccess ? STATUS_OK
                                 : status_fail(STATUS_INTERNAL,
                                               "nccl, %s: does not start: %s (NCCL_DEBUG=INFO says "
                                               "more; run.comm=mpi does without)",
                                               g->label, nccl_explain(g, result));
}

static void free_group(struct nccl_group *g)
{
    nccl_times_free(g);
    for (size_t i = 0; i < NCCL_FOLLOWED; i++) {
        if (g->ring[i].done != NULL) {
            (void)cudaEventDestroy(g->ring[i].done);
        }
    }
    const cudaEvent_t events[] = {g->ready, g->end, g->captured};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++) {
        if (events[i] != NULL) {
            (void)cudaEventDestroy(events[i]);
        }
    }
    if (g->stream != NULL) {
        (void)cudaStreamDestroy(g->stream);
    }
    library_close(g->library);
    free(g);
}

/* A communicator that carried nothing is given up: its peers may have failed to start. */
static void detach(struct comm *comm)
{
    struct nccl_group *g = comm->wire_impl;
    if (g->number > 0) {
        nccl_cuda(g, cudaStreamSynchronize(g->stream), "cudaStreamSynchronize"); /* under watch */
    }
    if (comm->activity != NULL && comm->activity->device_group == g) {
        comm->activity->device_end = NULL;
    }
    nccl_watch_stop(g);
    if (g->comm != NULL && g->number == 0) {
        (void)g->nccl.abort(g->comm);
    } else if (g->comm != NULL) {
        const ncclResult_t result = settle(g, g->nccl.finalize(g->comm), COMM_START_SECONDS);
        if (result != ncclSuccess) {
            nccl_fail(g, result == ncclInProgress ? STATUS_HANG : STATUS_INTERNAL,
                      "does not end: %s", nccl_explain(g, result));
        }
        (void)g->nccl.destroy(g->comm);
    }
    free_group(g);
}

static const struct comm_wire nccl_wire = {.name = "nccl",
                                           .recordable = true,
                                           .all_reduce = all_reduce,
                                           .reduce_scatter = reduce_scatter,
                                           .reduce = reduce,
                                           .all_gather = all_gather,
                                           .all_to_all = all_to_all,
                                           .all_to_all_fixed = all_to_all_fixed,
                                           .pass = pass,
                                           .finish = finish,
                                           .mark = mark,
                                           .wait = wait_for_end,
                                           .times = times,
                                           .detach = detach};

enum status comm_nccl_attach(struct comm *comm, int hang_seconds)
{
    ncclUniqueId id;
    struct nccl_group *g = calloc(1, sizeof *g);
    enum status status = g == NULL ? status_fail(STATUS_RESOURCE, "out of memory") : STATUS_OK;
    memset(&id, 0, sizeof id);
    if (status == STATUS_OK) {
        atomic_flag_clear(&g->failing);
        g->compute = device_stream(comm->device);
        g->hang_seconds = hang_seconds;
        g->rank = comm->rank;
        g->size = comm->size;
        g->world_rank = comm->world_rank;
        g->what = "start,";
        comm->wire_impl = g;
        comm->wire = &nccl_wire;
        status = nccl_load(&g->nccl, &g->library);
    }
    if (status == STATUS_OK) {
        status = streams_open(g);
    }
    if (status == STATUS_OK && comm->rank == 0 && g->nccl.unique_id(&id) != ncclSuccess) {
        status = status_fail(STATUS_INTERNAL, "run.comm nccl: ncclGetUniqueId: %s",
                             g->nccl.last_error(NULL));
    }
    TRY(comm_agree(comm, status, NULL)); /* before anyone waits inside NCCL */
    comm_label(comm, g->label, sizeof g->label);
    comm_broadcast(comm, &id, sizeof id, 0);
    TRY(communicator_open(g, &id));
    return nccl_watch_start(g);
}
