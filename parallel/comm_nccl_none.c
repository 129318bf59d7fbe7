/* The NCCL wire of binaries without CUDA; comm_nccl.c is the other one. */
#include <assert.h>

#include "parallel/transports.h"

const char *comm_nccl_built(void)
{
    return "";
}

enum status comm_nccl_check(struct comm *comm)
{
    (void)comm;
    return status_fail(STATUS_USAGE, "run.comm nccl: not built in this binary (no CUDA or NCCL "
                                     "headers were found); use run.comm=mpi");
}

enum status comm_nccl_attach(struct comm *comm, int hang_seconds)
{
    (void)comm, (void)hang_seconds;
    assert(!"comm_nccl_check refuses");
    return STATUS_INTERNAL;
}
