/* NCCL's prototypes over MPI: an operation is a stream operation that posts non-blocking MPI calls
 * on host copies of the buffers and is polled until they complete. Operations of one communicator
 * start in order of issue. Several ranks may share the one emulated GPU of their process each. */
#define OMPI_SKIP_MPICXX 1
#include "emulator/nccl_log.h"
#include "emulator/nccl_widen.h"
#include "emulator/stream.h"

#include <atomic>
#include <limits.h>
#include <mpi.h>
#include <nccl.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

static const struct emu_at here = {"nccl", 0};

struct ncclComm {
    MPI_Comm mpi;
    uint64_t id, started;         /* operations so far */
    std::atomic<uint64_t> issued; /* of them */
    int rank, size, splits, device;
    bool blocking;
    std::atomic<int> in_progress; /* a non-blocking call ends after so many polls */
    std::atomic<bool> aborted;
};

struct operation {
    enum nccl_kind kind;
    const void *send;
    void *recv;
    size_t count; /* elements a rank contributes (all-gather), or gets */
    ncclDataType_t type;
    ncclRedOp_t reduction;
    int peer; /* or root */
    struct ncclComm *comm;
    cudaStream_t stream;
};

/* Host copies and requests of a group's operations on one communicator. */
struct flight {
    std::vector<operation> operations;
    std::vector<std::vector<char>> send, recv;
    std::vector<MPI_Request> requests;
    std::vector<MPI_Status> statuses;
    struct ncclComm *comm;
    uint64_t number;
    bool posted, captured; /* captured: of a graph, which alone orders it */
};

static int group_depth;
static std::vector<operation> group;

static size_t type_bytes(ncclDataType_t type)
{
    switch (type) {
    case ncclInt8:
    case ncclUint8:
    case ncclFloat8e4m3:
    case ncclFloat8e5m2:
        return 1;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    default:
        return 8;
    }
}

static MPI_Datatype mpi_type(ncclDataType_t type)
{
    switch (type) {
    case ncclInt8:
        return MPI_INT8_T;
    case ncclUint8:
        return MPI_UINT8_T;
    case ncclInt32:
        return MPI_INT32_T;
    case ncclUint32:
        return MPI_UINT32_T;
    case ncclInt64:
        return MPI_INT64_T;
    case ncclUint64:
        return MPI_UINT64_T;
    case ncclFloat32:
    case ncclBfloat16:
        return MPI_FLOAT; /* bf16 is summed as float */
    case ncclFloat64:
        return MPI_DOUBLE;
    default:
        emu_fail(here, "reduction of NCCL data type %d is not modelled", (int)type);
    }
}

static MPI_Op mpi_op(ncclRedOp_t op)
{
    switch (op) {
    case ncclSum:
    case ncclAvg:
        return MPI_SUM;
    case ncclProd:
        return MPI_PROD;
    case ncclMax:
        return MPI_MAX;
    case ncclMin:
        return MPI_MIN;
    default:
        emu_fail(here, "NCCL reduction %d is not modelled", (int)op);
    }
}

static bool reduces(const operation &o)
{
    return o.kind == NCCL_ALL_REDUCE || o.kind == NCCL_REDUCE_SCATTER || o.kind == NCCL_REDUCE;
}

static size_t send_count(const operation &o)
{
    if (o.kind == NCCL_RECV || (o.kind == NCCL_BROADCAST && o.comm->rank != o.peer))
        return 0;
    return o.count * (o.kind == NCCL_REDUCE_SCATTER ? (size_t)o.comm->size : 1);
}

static size_t recv_count(const operation &o)
{
    if (o.kind == NCCL_SEND || (o.kind == NCCL_REDUCE && o.comm->rank != o.peer))
        return 0;
    return o.count * (o.kind == NCCL_ALL_GATHER ? (size_t)o.comm->size : 1);
}

static void average(std::vector<char> &data, ncclDataType_t type, int size)
{
    for (size_t i = 0; i < data.size() / 4 && (type == ncclFloat32 || type == ncclBfloat16); i++) {
        float x;
        memcpy(&x, &data[4 * i], 4);
        x /= (float)size;
        memcpy(&data[4 * i], &x, 4);
    }
}

static void post(flight *f, size_t i)
{
    const operation &o = f->operations[i];
    MPI_Comm mpi = o.comm->mpi;
    MPI_Request *request = &f->requests[i];
    char *send = f->send[i].data(), *recv = f->recv[i].data();
    int bytes = (int)(o.count * type_bytes(o.type));
    switch (o.kind) {
    case NCCL_SEND:
        MPI_Isend(send, bytes, MPI_BYTE, o.peer, 1, mpi, request);
        break;
    case NCCL_RECV:
        MPI_Irecv(recv, bytes, MPI_BYTE, o.peer, 1, mpi, request);
        break;
    case NCCL_ALL_REDUCE:
        MPI_Iallreduce(send, recv, (int)o.count, mpi_type(o.type), mpi_op(o.reduction), mpi,
                       request);
        break;
    case NCCL_REDUCE_SCATTER:
        MPI_Ireduce_scatter_block(send, recv, (int)o.count, mpi_type(o.type), mpi_op(o.reduction),
                                  mpi, request);
        break;
    case NCCL_REDUCE:
        MPI_Ireduce(send, recv, (int)o.count, mpi_type(o.type), mpi_op(o.reduction), o.peer, mpi,
                    request);
        break;
    case NCCL_ALL_GATHER:
        MPI_Iallgather(send, bytes, MPI_BYTE, recv, bytes, MPI_BYTE, mpi, request);
        break;
    case NCCL_BROADCAST:
        if (o.comm->rank == o.peer)
            f->recv[i] = f->send[i];
        MPI_Ibcast(f->recv[i].data(), bytes, MPI_BYTE, o.peer, mpi, request);
        break;
    }
}

static void flight_post(flight *f)
{
    size_t count = f->operations.size();
    f->send.resize(count);
    f->recv.resize(count);
    f->requests.resize(count, MPI_REQUEST_NULL);
    f->statuses.resize(count);
    for (size_t i = 0; i < count; i++) {
        const operation &o = f->operations[i];
        const char *from = (const char *)o.send;
        f->send[i].assign(from, from + send_count(o) * type_bytes(o.type));
        f->recv[i].resize(recv_count(o) * type_bytes(o.type));
        if (reduces(o) && o.type == ncclBfloat16) {
            f->send[i] = widened(f->send[i]);
            f->recv[i].resize(2 * f->recv[i].size());
        }
        post(f, i);
    }
    f->posted = true;
    if (!f->captured)
        f->comm->started++;
}

static void flight_finish(flight *f)
{
    for (size_t i = 0; i < f->operations.size(); i++) {
        const operation &o = f->operations[i];
        if (o.kind == NCCL_RECV) {
            int bytes;
            MPI_Get_count(&f->statuses[i], MPI_BYTE, &bytes);
            if ((size_t)bytes != o.count * type_bytes(o.type))
                emu_fail(here, "ncclRecv of %zu bytes from rank %d, which sent %d: NCCL would hang",
                         o.count * type_bytes(o.type), o.peer, bytes);
        }
        if (reduces(o) && o.reduction == ncclAvg)
            average(f->recv[i], o.type, o.comm->size);
        if (reduces(o) && o.type == ncclBfloat16)
            f->recv[i] = narrowed(f->recv[i]);
        if (!f->recv[i].empty())
            memcpy(o.recv, f->recv[i].data(), f->recv[i].size());
    }
}

static void check(int code, const flight *f)
{
    if (code != MPI_SUCCESS)
        emu_fail(here,
                 "NCCL would hang: operation %llu of communicator %llx does not match the other "
                 "ranks' (sizes differ)",
                 (unsigned long long)f->number, (unsigned long long)f->comm->id);
}

static bool flight_step(void *state)
{
    flight *f = *(flight **)state;
    if (f->comm->aborted) {
        for (MPI_Request &r : f->requests)
            if (r != MPI_REQUEST_NULL)
                MPI_Request_free(&r);
        return true; /* its host buffers stay: MPI may still write them */
    }
    if (!f->posted && (f->captured || f->comm->started == f->number))
        flight_post(f);
    int done = 0;
    if (f->posted)
        check(MPI_Testall((int)f->requests.size(), f->requests.data(), &done, f->statuses.data()),
              f);
    if (!done) {
        stream_waits_for_others();
        return false;
    }
    flight_finish(f);
    delete f;
    return true;
}

/* What a graph holds: every launch is a flight of its own. */
struct captured {
    flight kept, *now;
};

static bool captured_step(void *state)
{
    captured *c = *(captured **)state;
    if (!c->now)
        c->now = new flight(c->kept);
    if (!flight_step(&c->now))
        return false;
    c->now = nullptr;
    return true;
}

/* How many polls a call of a non-blocking communicator takes. */
static ncclResult_t progress(struct ncclComm *comm)
{
    if (comm->blocking)
        return ncclSuccess;
    comm->in_progress = emu_seed() ? (int)(emu_random() % 4) : 2;
    return comm->in_progress ? ncclInProgress : ncclSuccess;
}

static ncclResult_t group_issue()
{
    ncclResult_t result = ncclSuccess;
    while (!group.empty()) {
        struct ncclComm *comm = group[0].comm;
        flight *f = new flight();
        std::vector<operation> rest;
        for (const operation &o : group) {
            if (o.comm == comm && o.stream != group[0].stream)
                emu_fail(here, "one group, one communicator, two streams: not modelled");
            (o.comm == comm ? f->operations : rest).push_back(o);
        }
        f->comm = comm;
        f->captured = stream_capture(group[0].stream) != nullptr;
        if (f->captured) { /* it stays, as graphs do */
            captured *c = new captured{*f, nullptr};
            stream_push(group[0].stream, STREAM_MESSAGE, captured_step, &c, sizeof c);
            delete f;
        } else {
            f->number = comm->issued++;
            stream_push(group[0].stream, STREAM_MESSAGE, flight_step, &f, sizeof f);
        }
        if (progress(comm) != ncclSuccess)
            result = ncclInProgress;
        group.swap(rest);
    }
    return result;
}

static ncclResult_t issue(const operation &o)
{
    if (!o.comm || o.peer < 0 || o.peer >= o.comm->size)
        return ncclInvalidArgument;
    if (o.comm->in_progress)
        emu_fail(here, "NCCL operation %d on a communicator whose last call is still in progress",
                 (int)o.kind);
    size_t bytes = o.count * type_bytes(o.type);
    if (bytes > INT_MAX)
        emu_fail(here, "an NCCL operation of %zu bytes: the model ends at %d", bytes, INT_MAX);
    if (send_count(o) && !memory_is_device(o.send))
        emu_fail(here, "NCCL operation %d: the send buffer is not device memory", (int)o.kind);
    if (recv_count(o) && !memory_is_device(o.recv))
        emu_fail(here, "NCCL operation %d: the receive buffer is not device memory", (int)o.kind);
    memory_check(o.send, send_count(o) * type_bytes(o.type), "NCCL send buffer");
    memory_check(o.recv, recv_count(o) * type_bytes(o.type), "NCCL receive buffer");
    if (o.kind == NCCL_SEND || o.kind == NCCL_RECV)
        nccl_log_message(o.comm->id, o.peer, o.kind == NCCL_SEND, bytes);
    else
        nccl_log_collective(o.comm->id, o.kind, bytes);
    group.push_back(o);
    return group_depth == 0 ? group_issue() : ncclSuccess;
}

static struct ncclComm *comm_new(MPI_Comm mpi, uint64_t id, bool blocking)
{
    struct ncclComm *comm = new ncclComm();
    comm->blocking = blocking;
    comm->mpi = mpi;
    comm->id = id;
    MPI_Comm_set_errhandler(mpi, MPI_ERRORS_RETURN); /* mismatches are ours to report */
    MPI_Comm_rank(mpi, &comm->rank);
    MPI_Comm_size(mpi, &comm->size);
    comm->device = stream_device();
    return comm;
}

/* What an ncclUniqueId holds here: who made it. Members find each other through its maker. */
struct unique {
    int maker, number;
};

static MPI_Comm members(const struct unique *id, int size, int rank)
{
    int own, tag = 1000 + id->number;
    MPI_Comm_rank(MPI_COMM_WORLD, &own);
    std::vector<int> world((size_t)size, -1);
    world[(size_t)rank] = own;
    if (own == id->maker) {
        for (int i = 1; i < size; i++) {
            int who[2]; /* rank in the communicator, in the world */
            MPI_Recv(who, 2, MPI_INT, MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            world[(size_t)who[0]] = who[1];
        }
        for (int w : world)
            if (w != own)
                MPI_Send(world.data(), size, MPI_INT, w, tag, MPI_COMM_WORLD);
    } else {
        int who[2] = {rank, own};
        MPI_Send(who, 2, MPI_INT, id->maker, tag, MPI_COMM_WORLD);
        MPI_Recv(world.data(), size, MPI_INT, id->maker, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    MPI_Group all, some;
    MPI_Comm mpi;
    MPI_Comm_group(MPI_COMM_WORLD, &all);
    MPI_Group_incl(all, size, world.data(), &some);
    MPI_Comm_create_group(MPI_COMM_WORLD, some, tag, &mpi);
    MPI_Group_free(&all);
    MPI_Group_free(&some);
    return mpi;
}

extern "C" {

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *out)
{
    static int made;
    struct unique id = {0, made++};
    MPI_Comm_rank(MPI_COMM_WORLD, &id.maker);
    memset(out, 0, sizeof *out);
    memcpy(out, &id, sizeof id);
    return ncclSuccess;
}

/* The maker of the id must be a member. */
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId unique_id, int rank,
                                    ncclConfig_t *config)
{
    struct unique id;
    memcpy(&id, &unique_id, sizeof id);
    if (size < 1 || rank < 0 || rank >= size)
        return ncclInvalidArgument;
    *comm = comm_new(members(&id, size, rank),
                     (uint64_t)(id.maker + 1) << 32 | (uint64_t)id.number << 16,
                     !config || config->blocking != 0);
    return progress(*comm);
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int size, ncclUniqueId id, int rank)
{
    return ncclCommInitRankConfig(comm, size, id, rank, nullptr);
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *out,
                           ncclConfig_t *config)
{
    MPI_Comm mpi;
    *out = nullptr;
    MPI_Comm_split(comm->mpi, color == NCCL_SPLIT_NOCOLOR ? MPI_UNDEFINED : color, key, &mpi);
    uint64_t id =
        comm->id * 0x9E3779B97F4A7C15u + (uint64_t)++comm->splits * 4099 + (uint64_t)color;
    if (mpi == MPI_COMM_NULL)
        return ncclSuccess;
    *out = comm_new(mpi, id, config ? config->blocking != 0 : comm->blocking);
    return progress(comm);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    return progress(comm);
}

/* Collective here: the logs are compared. */
ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (!comm)
        return ncclSuccess;
    stream_synchronize_all();
    if (!comm->aborted)
        nccl_log_compare(comm->id, comm->mpi);
    MPI_Comm_free(&comm->mpi);
    delete comm;
    return ncclSuccess;
}

/* Local: what is in flight is given up. The communicator's memory stays, operations point at it.
 * By another thread than the one that runs operations: at their next step. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    comm->aborted = true;
    if (stream_thread())
        stream_synchronize_all();
    return ncclSuccess;
}

/* EMU_NCCL_FAILS=N: the N-th operation of a communicator, from 1, and what follows it, fails. */
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    const char *fails = getenv("EMU_NCCL_FAILS");
    int left = comm->in_progress;
    *error = left ? ncclInProgress : ncclSuccess;
    if (left) /* polls of two threads count once */
        comm->in_progress.compare_exchange_strong(left, left - 1);
    if (fails && comm->issued >= strtoull(fails, nullptr, 10))
        *error = ncclRemoteError;
    return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count)
{
    *count = comm->size;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank)
{
    *rank = comm->rank;
    return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device)
{
    *device = comm->device;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclSuccess       ? "no error"
           : result == ncclInProgress  ? "in progress"
           : result == ncclRemoteError ? "remote process exited or there was a network error"
                                       : "error (emulated)";
}

const char *ncclGetLastError(ncclComm_t)
{
    return "";
}

ncclResult_t ncclMemAlloc(void **p, size_t bytes)
{
    return cudaMalloc(p, bytes) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

ncclResult_t ncclMemFree(void *p)
{
    cudaFree(p);
    return ncclSuccess;
}

ncclResult_t ncclCommRegister(const ncclComm_t, void *, size_t, void **handle)
{
    *handle = nullptr;
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t, void *)
{
    return ncclSuccess;
}

ncclResult_t ncclGroupStart()
{
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd()
{
    if (group_depth == 0)
        return ncclInvalidUsage;
    return --group_depth == 0 ? group_issue() : ncclSuccess;
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    return issue({NCCL_SEND, send, nullptr, count, type, ncclSum, peer, comm, stream});
}

ncclResult_t ncclRecv(void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return issue({NCCL_RECV, nullptr, recv, count, type, ncclSum, peer, comm, stream});
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    return issue({NCCL_ALL_REDUCE, send, recv, count, type, op, 0, comm, stream});
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    return issue({NCCL_REDUCE_SCATTER, send, recv, count, type, op, 0, comm, stream});
}

ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream)
{
    return issue({NCCL_REDUCE, send, recv, count, type, op, root, comm, stream});
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    return issue({NCCL_ALL_GATHER, send, recv, count, type, ncclSum, 0, comm, stream});
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream)
{
    return issue({NCCL_BROADCAST, send, recv, count, type, ncclSum, root, comm, stream});
}
}
