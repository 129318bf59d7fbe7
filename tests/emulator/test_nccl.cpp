/* All-to-all of kernels' results on a stream of its own, and each collective, on small integers:
 * exact. */
#define OMPI_SKIP_MPICXX 1
#include "check.h"
#include "samples/samples.h"

#include <mpi.h>
#include <nccl.h>

static int rank, size;

/* The communicator is non-blocking: a call may still be in progress. */
static void settle(ncclComm_t comm, ncclResult_t result)
{
#ifdef MUTANT_NO_POLL
    if (result == ncclInProgress)
        return;
#endif
    while (result == ncclInProgress)
        ncclCommGetAsyncError(comm, &result);
    if (result != ncclSuccess) {
        fprintf(stderr, "WRONG: NCCL says %s\n", ncclGetErrorString(result));
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
}

static ncclComm_t comm_of_all()
{
    ncclUniqueId id;
    ncclComm_t comm;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (rank == 0)
        ncclGetUniqueId(&id);
    MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, MPI_COMM_WORLD);
    ncclResult_t result = ncclCommInitRankConfig(&comm, size, id, rank, &config);
    settle(comm, result);
    return comm;
}

static bool all_to_all(ncclComm_t comm)
{
    const int n = 100;
    cudaStream_t compute, transport;
    cudaEvent_t ready, arrived;
    std::vector<float> x((size_t)(n * size)), zero((size_t)(n * size), 0.0f);
    for (int i = 0; i < n * size; i++)
        x[(size_t)i] = (float)(1000 * rank + i);
    device_vector<float> in(x), mine(zero), theirs(zero);
    cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&transport, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&ready, cudaEventDisableTiming);
    cudaEventCreateWithFlags(&arrived, cudaEventDisableTiming);
    launch_affine(compute, in.data, mine.data, n * size, 2.0f, 0.0f);
    cudaEventRecord(ready, compute);
#ifndef MUTANT_NO_WAIT_EVENT
    cudaStreamWaitEvent(transport, ready, 0);
#endif
    ncclGroupStart();
    for (int p = 0; p < size; p++) {
        ncclSend(mine.data + p * n, n, ncclFloat, p, comm, transport);
#ifdef MUTANT_SIZES_DIFFER
        ncclRecv(theirs.data + p * n, rank == 0 && p == size - 1 ? n - 1 : n, ncclFloat, p, comm,
                 transport);
#else
        ncclRecv(theirs.data + p * n, n, ncclFloat, p, comm, transport);
#endif
    }
    settle(comm, ncclGroupEnd());
    cudaEventRecord(arrived, transport);
    cudaStreamWaitEvent(compute, arrived, 0);
    launch_affine(compute, theirs.data, theirs.data, n * size, 1.0f, 1.0f);
    cudaStreamSynchronize(compute);
    std::vector<double> want((size_t)(n * size));
    for (int p = 0; p < size; p++)
        for (int i = 0; i < n; i++)
            want[(size_t)(p * n + i)] = 2.0 * (1000 * p + rank * n + i) + 1;
    bool right = same("all-to-all", theirs.get().data(), want.data(), want.size(), 0);
    cudaStreamDestroy(compute);
    cudaStreamDestroy(transport);
    return right;
}

static bool collectives(ncclComm_t comm, ncclComm_t half)
{
    const size_t n = 64;
    size_t all = (size_t)size;
    std::vector<float> x(n * all), none(n * all, -1.0f);
    for (size_t i = 0; i < x.size(); i++)
        x[i] = (float)((int)i + rank);
    device_vector<float> in(x), summed(none), scattered(none), gathered(none), sent(none),
        halves(none), rooted(none);
    cudaStream_t beside; /* the half's collective need not wait for the others */
    cudaStreamCreateWithFlags(&beside, cudaStreamNonBlocking);
    std::vector<uint16_t> small(n, bf16_bits((float)(rank + 1)));
    device_vector<uint16_t> bf(small);
#ifdef MUTANT_ORDER_DIFFERS
    if (rank == 0) /* MPI forgives it: both are non-blocking */
        settle(half, ncclAllReduce(in.data, halves.data, n, ncclFloat, ncclMax, half, beside));
#endif
    settle(comm, ncclAllReduce(in.data, summed.data, n * all, ncclFloat, ncclSum, comm, nullptr));
    settle(comm, ncclReduceScatter(in.data, scattered.data, n, ncclFloat, ncclSum, comm, nullptr));
    settle(comm, ncclReduce(in.data, rooted.data, n, ncclFloat, ncclSum, size - 1, comm, nullptr));
    settle(comm, ncclAllGather(in.data, gathered.data, n, ncclFloat, comm, nullptr));
    settle(comm, ncclBroadcast(in.data, sent.data, n, ncclFloat, size - 1, comm, nullptr));
    settle(comm, ncclAllReduce(bf.data, bf.data, n, ncclBfloat16, ncclSum, comm, nullptr));
#ifdef MUTANT_ORDER_DIFFERS
    if (rank != 0)
#endif
        settle(half, ncclAllReduce(in.data, halves.data, n, ncclFloat, ncclMax, half, beside));
    cudaStreamSynchronize(beside);
    cudaStreamDestroy(beside);
    std::vector<double> want(n * all);
    bool right = true;
    double ranks = size * (size - 1) / 2.0;
    for (size_t i = 0; i < n * all; i++)
        want[i] = (double)size * (double)i + ranks;
    right = same("all-reduce", summed.get().data(), want.data(), n * all, 0) && right;
    const std::vector<double> untouched(n, -1);
    right = same("reduce", rooted.get().data(), rank == size - 1 ? want.data() : untouched.data(),
                 n, 0) &&
            right;
    right = same("reduce-scatter", scattered.get().data(), &want[n * (size_t)rank], n, 0) && right;
    for (size_t i = 0; i < n * all; i++)
        want[i] = (double)(i % n + i / n);
    right = same("all-gather", gathered.get().data(), want.data(), n * all, 0) && right;
    for (size_t i = 0; i < n; i++)
        want[i] = (double)i + size - 1;
    right = same("broadcast", sent.get().data(), want.data(), n, 0) && right;
    for (size_t i = 0; i < n; i++) /* ranks of one parity: the largest is the last of them */
        want[i] = (double)i + (rank % 2 == (size - 1) % 2 ? size - 1 : size - 2);
    right = same("all-reduce of a half", halves.get().data(), want.data(), n, 0) && right;
    std::vector<float> got(n);
    for (size_t i = 0; i < n; i++) {
        got[i] = bf16_value(bf.get()[i]);
        want[i] = ranks + size;
    }
    return same("all-reduce of bf16", got.data(), want.data(), n, 0) && right;
}

static bool test()
{
    emu_set_seed(emu_seed() ? emu_seed() + 100 * (uint64_t)rank : 0);
    ncclComm_t comm = comm_of_all(), half;
    settle(comm, ncclCommSplit(comm, rank % 2, rank, &half, nullptr));
    bool right = all_to_all(comm);
    right = collectives(comm, half) && right;
    ncclCommDestroy(half);
    ncclCommDestroy(comm);
    return right;
}

int main(int argc, char **argv)
{
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int code = for_seeds(argc, argv, test);
    MPI_Finalize();
    return code;
}
