/* nccl: device memory by NCCL, one communicator per group.
 *
 * An operation runs on a high-priority stream of the group; events order it after what the compute
 * stream holds when it starts and before what comes there after finish, the host waits for nothing.
 * Communicators are non-blocking: a call that NCCL is still working on (the first message to a peer
 * opens a connection) is polled, with a limit. Every rank issues operations in the same order, and
 * a rank's groups take turns by way of its one compute stream: two communicators never wait for
 * each other.
 *
 * Sums: NCCL picks algorithm and protocol from its cost table by message size, ranks and topology,
 * not by measuring, and each adds in one order. So runs on the same machines repeat; other machines
 * or another version may give other last bits. NCCL_ALGO=Ring and NCCL_PROTO=Simple in the
 * environment pin it; ncclConfig has no field for either. Gathers and all-to-alls move bytes.
 *
 * The watchdog, a thread per group, reads NCCL's errors and each operation's end, and ends the rank
 * with one line when something fails or nothing moves. Operations inside a CUDA graph are not
 * followed one by one; what comes after the graph is. */
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernels/base/library.h"
#include "kernels/device.h"
#include "parallel/transports.h"

enum { POLL_MS = 100, FOLLOWED = 256, OLDEST = NCCL_VERSION(2, 18, 0) };

/* Filled by library_open. */
struct nccl {
    ncclResult_t (*version)(int *);
    ncclResult_t (*unique_id)(ncclUniqueId *);
    ncclResult_t (*init)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *);
    ncclResult_t (*finalize)(ncclComm_t);
    ncclResult_t (*destroy)(ncclComm_t);
    ncclResult_t (*abort)(ncclComm_t);
    ncclResult_t (*async_error)(ncclComm_t, ncclResult_t *);
    const char *(*error_string)(ncclResult_t);
    const char *(*last_error)(ncclComm_t);
    ncclResult_t (*group_start)(void);
    ncclResult_t (*group_end)(void);
    ncclResult_t (*all_reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t,
                               ncclComm_t, cudaStream_t);
    ncclResult_t (*reduce_scatter)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t,
                                   ncclComm_t, cudaStream_t);
    ncclResult_t (*all_gather)(const void *, void *, size_t, ncclDataType_t, ncclComm_t,
                               cudaStream_t);
    ncclResult_t (*send)(const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
    ncclResult_t (*recv)(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
};

/* An operation the watchdog follows: until `done` is reached. */
struct followed {
    cudaEvent_t done; /* owned */
    const char *what;
    uint64_t number; /* of the group's operations, from 1 */
    size_t bytes;    /* this rank hands in */
    double issued;   /* seconds */
};

struct group {
    struct nccl nccl;
    void *library; /* owned */
    ncclComm_t comm;
    cudaStream_t compute, stream; /* borrowed; owned */
    cudaEvent_t ready, end;       /* owned: compute has come here; unfollowed operation done */
    cudaEvent_t started;          /* end of the last operation, until finish; borrowed; or NULL */
    int device, hang_seconds;
    int rank, size, world_rank;
    char label[160];  /* name and members, for messages */
    const char *what; /* the operation being issued */
    uint64_t number;
    size_t bytes;
    /* the watchdog's, behind mutex */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool watched, stop;
    struct followed ring[FOLLOWED]; /* [first, next) of them, modulo FOLLOWED, are pending */
    uint64_t first, next;
    double moved; /* when the last of them ended */
    atomic_flag failing;
};

/* ---- the end of the job ---- */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void sleep_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

/* Says why and ends this process; the launcher ends the others. Called by the watchdog too, so no
 * MPI. NOTE: no ncclCommAbort: it would let the waiting main thread go on, with what never arrived.
 * The end of the process stops NCCL's kernels and shows its peers that it is gone. */
static _Noreturn void fail(struct group *g, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void fail(struct group *g, enum status status, const char *format, ...)
{
    char why[512];
    va_list arguments;
    while (atomic_flag_test_and_set(&g->failing)) {
        sleep_ms(POLL_MS); /* the other thread is at it, and ends this one */
    }
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    status_clean(why);
    fprintf(stderr, "switchyard: rank %d: nccl, %s: %s\n", g->world_rank, g->label, why);
    fflush(stderr);
    _exit(status_exit_code(status));
}

static const char *explain(struct group *g, ncclResult_t result)
{
    const char *detail = g->nccl.last_error(g->comm);
    return detail != NULL && detail[0] != '\0' ? detail : g->nccl.error_string(result);
}

static void cuda(struct group *g, cudaError_t error, const char *call)
{
    if (error != cudaSuccess) {
        fail(g, STATUS_INTERNAL, "%s number %llu: %s: %s", g->what, (unsigned long long)g->number,
             call, cudaGetErrorString(error));
    }
}

/* ---- the watchdog ---- */

/* With the mutex held. Forgets what has ended. */
static void retire(struct group *g)
{
    while (g->first < g->next) {
        const cudaError_t state = cudaEventQuery(g->ring[g->first % FOLLOWED].done);
        if (state == cudaErrorNotReady) {
            return;
        }
        if (state != cudaSuccess) {
            fail(g, STATUS_INTERNAL, "%s number %llu: %s", g->ring[g->first % FOLLOWED].what,
                 (unsigned long long)g->ring[g->first % FOLLOWED].number,
                 cudaGetErrorString(state));
        }
        g->moved = seconds();
        g->first++;
    }
}

/* With the mutex held. */
static void look(struct group *g)
{
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = g->nccl.async_error(g->comm, &state);
    state = asked != ncclSuccess ? asked : state;
    if (state != ncclSuccess && state != ncclInProgress) {
        fail(g, STATUS_INTERNAL, "%s (the last operation issued is %s number %llu)",
             explain(g, state), g->what, (unsigned long long)g->number);
    }
    retire(g);
    if (g->first == g->next) {
        return;
    }
    const struct followed *oldest = &g->ring[g->first % FOLLOWED];
    const double since = oldest->issued > g->moved ? oldest->issued : g->moved;
    if (seconds() - since > (double)g->hang_seconds) {
        fail(g, STATUS_HANG,
             "%s number %llu (%zu bytes from here) has not finished for %d s: a rank of the group "
             "stopped or does something else",
             oldest->what, (unsigned long long)oldest->number, oldest->bytes, g->hang_seconds);
    }
}

static void *watch(void *argument)
{
    struct group *g = argument;
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    /* NOTE: queries of this thread would else spoil the capture of another. */
    (void)cudaSetDevice(g->device);
    (void)cudaThreadExchangeStreamCaptureMode(&mode);
    pthread_mutex_lock(&g->mutex);
    while (!g->stop) {
        struct timespec until;
        look(g);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += POLL_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&g->wake, &g->mutex, &until);
    }
    pthread_mutex_unlock(&g->mutex);
    return NULL;
}

static enum status watch_start(struct group *g)
{
    pthread_condattr_t monotonic;
    pthread_mutex_init(&g->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&g->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    g->watched = pthread_create(&g->thread, NULL, watch, g) == 0;
    return g->watched ? STATUS_OK
                      : status_fail(STATUS_RESOURCE, "run.comm nccl: no thread for the watchdog");
}

static void watch_stop(struct group *g)
{
    if (!g->watched) {
        return;
    }
    pthread_mutex_lock(&g->mutex);
    g->stop = true;
    pthread_cond_signal(&g->wake);
    pthread_mutex_unlock(&g->mutex);
    pthread_join(g->thread, NULL);
    pthread_mutex_destroy(&g->mutex);
    pthread_cond_destroy(&g->wake);
    g->watched = false;
}

/* ---- operations ---- */

/* What a non-blocking call comes to. ncclInProgress: not within `limit` seconds. */
static ncclResult_t settle(struct group *g, ncclResult_t result, double limit)
{
    const double start = seconds();
    for (int polls = 0; result == ncclInProgress && seconds() - start < limit; polls++) {
        const ncclResult_t asked = g->nccl.async_error(g->comm, &result);
        result = asked != ncclSuccess ? asked : result;
        if (polls < 100) {
            sched_yield();
        } else {
            sleep_ms(1);
        }
    }
    return result;
}

static struct group *begin(struct comm *comm, const char *what, size_t bytes)
{
    struct group *g = comm->wire_impl;
    pthread_mutex_lock(&g->mutex);
    g->what = what;
    g->bytes = bytes;
    g->number++;
    pthread_mutex_unlock(&g->mutex);
    cuda(g, cudaEventRecord(g->ready, g->compute), "cudaEventRecord");
    cuda(g, cudaStreamWaitEvent(g->stream, g->ready, 0), "cudaStreamWaitEvent");
    return g;
}

/* With the mutex held. The event of this operation, and whether the watchdog gets to see it: not
 * in a capture, where it will never be reached, and not when the ring is full. */
static cudaEvent_t end_event(struct group *g, bool *follow)
{
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cuda(g, cudaStreamIsCapturing(g->stream, &capture), "cudaStreamIsCapturing");
    *follow = capture == cudaStreamCaptureStatusNone && g->next - g->first < FOLLOWED;
    return *follow ? g->ring[g->next % FOLLOWED].done : g->end;
}

/* `result`: of issuing. */
static void end(struct group *g, ncclResult_t result)
{
    bool follow = false;
    result = settle(g, result, (double)g->hang_seconds);
    if (result != ncclSuccess) {
        fail(g, result == ncclInProgress ? STATUS_HANG : STATUS_INTERNAL, "%s number %llu: %s",
             g->what, (unsigned long long)g->number,
             result == ncclInProgress ? "NCCL does not come back from issuing it: a rank of the "
                                        "group stopped or does something else"
                                      : explain(g, result));
    }
    pthread_mutex_lock(&g->mutex);
    const cudaEvent_t done = end_event(g, &follow);
    cuda(g, cudaEventRecord(done, g->stream), "cudaEventRecord");
    if (follow) {
        g->ring[g->next++ % FOLLOWED] = (struct followed){.done = done,
                                                          .what = g->what,
                                                          .number = g->number,
                                                          .bytes = g->bytes,
                                                          .issued = seconds()};
    }
    pthread_mutex_unlock(&g->mutex);
    g->started = done;
}

/* The compute stream waits for what was started last, and so for all before it. */
static void finish(struct comm *comm)
{
    struct group *g = comm->wire_impl;
    if (g->started != NULL) {
        cuda(g, cudaStreamWaitEvent(g->compute, g->started, 0), "cudaStreamWaitEvent");
        g->started = NULL;
    }
}

static void all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype,
                       enum reduce op)
{
    const ncclDataType_t type = dtype == DTYPE_F32   ? ncclFloat32
                                : dtype == DTYPE_F64 ? ncclFloat64
                                                     : ncclInt64;
    if (count > 0) {
        struct group *g = begin(comm, "all-reduce", (size_t)count * dtype_bytes(dtype));
        end(g, g->nccl.all_reduce(data, data, (size_t)count, type,
                                  op == REDUCE_SUM ? ncclSum : ncclMax, g->comm, g->stream));
    }
}

static void reduce_scatter(struct comm *comm, void *out, const void *in, int64_t count,
                           enum dtype dtype)
{
    if (count > 0) {
        struct group *g =
            begin(comm, "reduce-scatter", (size_t)count * (size_t)comm->size * dtype_bytes(dtype));
        end(g, g->nccl.reduce_scatter(in, out, (size_t)count,
                                      dtype == DTYPE_I64 ? ncclInt64 : ncclFloat32, ncclSum,
                                      g->comm, g->stream));
    }
}

static void all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    if (bytes > 0) {
        struct group *g = begin(comm, "all-gather", bytes);
        end(g, g->nccl.all_gather(in, out, bytes, ncclUint8, g->comm, g->stream));
    }
}

static void hand_in(struct group *g, ncclResult_t result)
{
    if (result != ncclSuccess && result != ncclInProgress) {
        fail(g, STATUS_INTERNAL, "%s number %llu: %s", g->what, (unsigned long long)g->number,
             explain(g, result));
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
    struct group *g = begin(comm, "all-to-all", all);
    hand_in(g, g->nccl.group_start());
    for (int r = 0; r < comm->size; r++) {
        const size_t out = message(send_rows, uniform, r, row_bytes);
        const size_t in = message(recv_rows, uniform, r, row_bytes);
        if (r == comm->rank && out > 0) {
            cuda(g, cudaMemcpyAsync(recv, send, out, cudaMemcpyDeviceToDevice, g->stream),
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
    end(g, g->nccl.group_end());
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

/* ---- start and end ---- */

static enum status load(struct nccl *nccl, void **library)
{
    static const char *const names[] = {"libnccl.so.2", "libnccl.so", NULL};
#define SYMBOL(name, field)                                                                        \
    {                                                                                              \
        name, (void (**)(void)) & nccl->field                                                      \
    }
    const struct library_symbol symbols[] = {
        SYMBOL("ncclGetVersion", version),
        SYMBOL("ncclGetUniqueId", unique_id),
        SYMBOL("ncclCommInitRankConfig", init),
        SYMBOL("ncclCommFinalize", finalize),
        SYMBOL("ncclCommDestroy", destroy),
        SYMBOL("ncclCommAbort", abort),
        SYMBOL("ncclCommGetAsyncError", async_error),
        SYMBOL("ncclGetErrorString", error_string),
        SYMBOL("ncclGetLastError", last_error),
        SYMBOL("ncclGroupStart", group_start),
        SYMBOL("ncclGroupEnd", group_end),
        SYMBOL("ncclAllReduce", all_reduce),
        SYMBOL("ncclReduceScatter", reduce_scatter),
        SYMBOL("ncclAllGather", all_gather),
        SYMBOL("ncclSend", send),
        SYMBOL("ncclRecv", recv),
    };
    int version = 0;
    const enum status opened =
        library_open(library, names, symbols, sizeof symbols / sizeof symbols[0]);
    if (opened != STATUS_OK) {
        char why[512];
        snprintf(why, sizeof why, "%s", status_message());
        return status_fail(opened,
                           "run.comm nccl: %s; put NCCL on LD_LIBRARY_PATH, or use "
                           "run.comm=mpi",
                           why);
    }
    if (nccl->version(&version) != ncclSuccess || version < OLDEST) {
        library_close(*library);
        *library = NULL;
        return status_fail(STATUS_RESOURCE,
                           "run.comm nccl: the NCCL found is %d.%d.%d, 2.18 or newer is needed; or "
                           "use run.comm=mpi",
                           version / 10000, version / 100 % 100, version % 100);
    }
    return STATUS_OK;
}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

const char *comm_nccl_built(void)
{
    return "nccl " TEXT(NCCL_MAJOR) "." TEXT(NCCL_MINOR) "." TEXT(NCCL_PATCH);
}

enum status comm_nccl_check(struct comm *comm)
{
    struct nccl nccl;
    void *library = NULL;
    char gpu[COMM_GPU_BYTES];
    int device = 0;
    const enum status status = load(&nccl, &library);
    library_close(library);
    TRY(comm_agree(comm, status, NULL));
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetPCIBusId(gpu, sizeof gpu, device) != cudaSuccess) {
        snprintf(gpu, sizeof gpu, "of rank %d",
                 comm->world_rank); /* attach will say what is wrong */
    }
    return comm_places_check(comm, gpu);
}

static enum status streams_open(struct group *g)
{
    int least = 0, greatest = 0;
    cudaError_t error = cudaGetDevice(&g->device);
    error = error != cudaSuccess ? error : cudaDeviceGetStreamPriorityRange(&least, &greatest);
    error = error != cudaSuccess
                ? error
                : cudaStreamCreateWithPriority(&g->stream, cudaStreamNonBlocking, greatest);
    cudaEvent_t *const events[] = {&g->ready, &g->end};
    for (size_t i = 0; i < 2 + FOLLOWED && error == cudaSuccess; i++) {
        error = cudaEventCreateWithFlags(i < 2 ? events[i] : &g->ring[i - 2].done,
                                         cudaEventDisableTiming);
    }
    return error == cudaSuccess
               ? STATUS_OK
               : status_fail(STATUS_INTERNAL, "run.comm nccl: no stream or events: %s",
                             cudaGetErrorString(error));
}

static enum status communicator_open(struct group *g, const ncclUniqueId *id)
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
                                               g->label, explain(g, result));
}

static void free_group(struct group *g)
{
    for (size_t i = 0; i < FOLLOWED; i++) {
        if (g->ring[i].done != NULL) {
            (void)cudaEventDestroy(g->ring[i].done);
        }
    }
    if (g->ready != NULL) {
        (void)cudaEventDestroy(g->ready);
    }
    if (g->end != NULL) {
        (void)cudaEventDestroy(g->end);
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
    struct group *g = comm->wire_impl;
    if (g->number > 0) {
        cuda(g, cudaStreamSynchronize(g->stream), "cudaStreamSynchronize"); /* under watch */
    }
    watch_stop(g);
    if (g->comm != NULL && g->number == 0) {
        (void)g->nccl.abort(g->comm);
    } else if (g->comm != NULL) {
        const ncclResult_t result = settle(g, g->nccl.finalize(g->comm), COMM_START_SECONDS);
        if (result != ncclSuccess) {
            fail(g, result == ncclInProgress ? STATUS_HANG : STATUS_INTERNAL, "does not end: %s",
                 explain(g, result));
        }
        (void)g->nccl.destroy(g->comm);
    }
    free_group(g);
}

static const struct comm_wire nccl_wire = {.name = "nccl",
                                           .recordable = true,
                                           .all_reduce = all_reduce,
                                           .reduce_scatter = reduce_scatter,
                                           .all_gather = all_gather,
                                           .all_to_all = all_to_all,
                                           .all_to_all_fixed = all_to_all_fixed,
                                           .finish = finish,
                                           .detach = detach};

enum status comm_nccl_attach(struct comm *comm, int hang_seconds)
{
    ncclUniqueId id;
    struct group *g = calloc(1, sizeof *g);
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
        status = load(&g->nccl, &g->library);
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
    return watch_start(g);
}
