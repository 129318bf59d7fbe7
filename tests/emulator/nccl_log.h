/* nccl_log: what every rank did on every communicator, compared when one is destroyed.
 *
 * MPI matches operations that NCCL would deadlock on: collectives issued in different orders on two
 * communicators, sends nobody receives. So each rank logs collectives in order of issue, and counts
 * messages per peer; nccl_log_compare reports the first difference with both sides' entries.
 */
#ifndef EMULATOR_NCCL_LOG_H
#define EMULATOR_NCCL_LOG_H

#include <mpi.h>
#include <stdint.h>

enum nccl_kind {
    NCCL_SEND,
    NCCL_RECV,
    NCCL_ALL_REDUCE,
    NCCL_REDUCE_SCATTER,
    NCCL_REDUCE,
    NCCL_ALL_GATHER,
    NCCL_BROADCAST
};

void nccl_log_collective(uint64_t comm, enum nccl_kind kind, uint64_t bytes);
void nccl_log_message(uint64_t comm, int peer, bool send, uint64_t bytes);
/* Collective over `mpi`, the ranks of `comm`. Ends the process on a difference. */
void nccl_log_compare(uint64_t comm, MPI_Comm mpi);

#endif
