#include "parallel/comm_nccl_group.h"

#include <stdio.h>

#include "kernels/base/library.h"

enum { OLDEST = NCCL_VERSION(2, 18, 0) };

enum status nccl_load(struct nccl *nccl, void **library)
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
        SYMBOL("ncclReduce", reduce),
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
