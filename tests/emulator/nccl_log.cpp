#define OMPI_SKIP_MPICXX 1
#include "emulator/nccl_log.h"

#include "emulator/emulator.h"

#include <algorithm>
#include <map>
#include <set>
#include <stdio.h>
#include <unistd.h>
#include <vector>

struct entry {
    uint64_t comm, sequence, kind, bytes;
    bool operator==(const entry &o) const
    {
        return comm == o.comm && sequence == o.sequence && kind == o.kind && bytes == o.bytes;
    }
};
struct traffic {
    uint64_t sent = 0, sent_bytes = 0, received = 0, received_bytes = 0;
};

static std::vector<entry> collectives; /* of all communicators, in order of issue */
static std::map<uint64_t, uint64_t> sequences;
static std::map<uint64_t, std::map<int, traffic>> messages; /* by communicator and peer */

static const char *const kinds[] = {"send",   "recv",       "all-reduce", "reduce-scatter",
                                    "reduce", "all-gather", "broadcast"};

void nccl_log_collective(uint64_t comm, enum nccl_kind kind, uint64_t bytes)
{
    collectives.push_back({comm, sequences[comm]++, (uint64_t)kind, bytes});
}

/* EMU_COUNTS=1: what was sent, at the end. */
static std::map<uint64_t, uint64_t> &sent_by_size()
{
    /* Bytes of a message: how many. Never freed: what ends last reads it. */
    static std::map<uint64_t, uint64_t> *const sizes = new std::map<uint64_t, uint64_t>;
    return *sizes;
}

__attribute__((destructor)) static void print_sent()
{
    const char *wanted = getenv("EMU_COUNTS");
    if (!wanted || wanted[0] != '1')
        return;
    for (const auto &size : sent_by_size())
        fprintf(stderr, "emulator: sent %llu messages of %llu bytes\n",
                (unsigned long long)size.second, (unsigned long long)size.first);
}

void nccl_log_message(uint64_t comm, int peer, bool send, uint64_t bytes)
{
    sent_by_size()[bytes] += send;
    traffic &t = messages[comm][peer];
    (send ? t.sent : t.received)++;
    (send ? t.sent_bytes : t.received_bytes) += bytes;
}

static void print(const char *who, int rank, const std::vector<entry> &log, size_t at)
{
    if (at < log.size())
        fprintf(stderr, "  %s rank %d: %s of %llu bytes, number %llu on communicator %llx\n", who,
                rank, kinds[log[at].kind], (unsigned long long)log[at].bytes,
                (unsigned long long)log[at].sequence, (unsigned long long)log[at].comm);
    else
        fprintf(stderr, "  %s rank %d: nothing\n", who, rank);
}

[[noreturn]] static void stop()
{
    fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, EMU_EXIT);
    _exit(EMU_EXIT);
}

/* The entries of communicators that both ranks are members of. */
static std::vector<entry> shared(const std::vector<entry> &log, const std::vector<entry> &other)
{
    std::set<uint64_t> comms;
    for (const entry &e : other)
        comms.insert(e.comm);
    std::vector<entry> kept;
    for (const entry &e : log)
        if (comms.count(e.comm))
            kept.push_back(e);
    return kept;
}

static void compare_with_first(uint64_t comm, MPI_Comm mpi, int rank)
{
    uint64_t words = collectives.size() * sizeof(entry) / 8;
    MPI_Bcast(&words, 1, MPI_UINT64_T, 0, mpi);
    std::vector<entry> first(words * 8 / sizeof(entry));
    if (rank == 0)
        first = collectives;
    MPI_Bcast(first.data(), (int)words, MPI_UINT64_T, 0, mpi);
    std::vector<entry> theirs = shared(first, collectives), ours = shared(collectives, first);
    for (size_t i = 0; i < std::max(theirs.size(), ours.size()); i++)
        if (i >= theirs.size() || i >= ours.size() || !(theirs[i] == ours[i])) {
            fprintf(stderr,
                    "emulator: NCCL would deadlock: ranks issue different collectives (seen when "
                    "communicator %llx ends)\n",
                    (unsigned long long)comm);
            print("this", rank, ours, i);
            print("but ", 0, theirs, i);
            stop();
        }
}

static void compare_messages(uint64_t comm, MPI_Comm mpi, int rank, int size)
{
    std::vector<uint64_t> sent(2 * (size_t)size), arrived(2 * (size_t)size);
    for (int p = 0; p < size; p++) {
        const traffic &t = messages[comm][p];
        sent[2 * (size_t)p] = t.sent;
        sent[2 * (size_t)p + 1] = t.sent_bytes;
    }
    MPI_Alltoall(sent.data(), 2, MPI_UINT64_T, arrived.data(), 2, MPI_UINT64_T, mpi);
    for (int p = 0; p < size; p++) {
        const traffic &t = messages[comm][p];
        if (arrived[2 * (size_t)p] != t.received ||
            arrived[2 * (size_t)p + 1] != t.received_bytes) {
            fprintf(stderr,
                    "emulator: NCCL would deadlock: rank %d sent %llu messages (%llu bytes), rank "
                    "%d received %llu (%llu bytes)\n",
                    p, (unsigned long long)arrived[2 * (size_t)p],
                    (unsigned long long)arrived[2 * (size_t)p + 1], rank,
                    (unsigned long long)t.received, (unsigned long long)t.received_bytes);
            stop();
        }
    }
}

void nccl_log_compare(uint64_t comm, MPI_Comm mpi)
{
    int rank, size;
    MPI_Comm_rank(mpi, &rank);
    MPI_Comm_size(mpi, &size);
    compare_messages(comm, mpi, rank, size);
    compare_with_first(comm, mpi, rank);
    messages.erase(comm);
    /* Communicators end one after another; what is compared must not run away from the others'. */
}
