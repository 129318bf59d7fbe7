#include "parallel/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parallel/transports.h"

static int launched_ranks(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *value = getenv(names[i]);
        if (value != NULL && atoi(value) >= 1) {
            return atoi(value);
        }
    }
    return 0;
}

static enum status open_kind(struct comm *world, const char *kind)
{
    const int launched = launched_ranks();
    const bool mpi = strcmp(kind, "mpi") == 0 || strcmp(kind, "nccl") == 0;
    if (mpi || (strcmp(kind, "auto") == 0 && launched > 0)) {
        return comm_mpi_open(world);
    }
    if (strcmp(kind, "self") != 0 && strcmp(kind, "auto") != 0) {
        return status_fail(STATUS_USAGE, "run.comm %s: use auto, self, mpi or nccl", kind);
    }
    if (launched > 1) {
        return status_fail(STATUS_USAGE,
                           "run.comm self: but %d ranks were launched; use auto or mpi", launched);
    }
    comm_self_open(world);
    return STATUS_OK;
}

enum status comm_open(struct comm *world, const char *kind)
{
    *world = (struct comm){.size = 1, .node_size = 1};
    TRY(open_kind(world, kind));
    world->world_rank = world->rank;
    world->name = "world";
    return STATUS_OK;
}

void comm_close(struct comm *world)
{
    if (world->table != NULL) {
        comm_detach(world);
        world->table->close(world);
    }
    *world = (struct comm){0};
}

void comm_free(struct comm *group)
{
    comm_close(group);
}

void comm_abort(struct comm *world, int exit_code)
{
    world->table->abort(world, exit_code);
    exit(exit_code);
}

void comm_split(struct comm *comm, int color, int key, struct comm *out)
{
    comm->table->split(comm, color, key, out);
    out->world_rank = comm->world_rank;
    out->name = NULL;
    out->wire = NULL;
    out->device = NULL;
    out->wire_impl = NULL;
}

void comm_all_reduce(struct comm *comm, void *data, int64_t count, enum dtype dtype, enum reduce op)
{
    comm->table->all_reduce(comm, data, count, dtype, op);
}

void comm_reduce_scatter(struct comm *comm, float *out, const float *in, int64_t count)
{
    comm->table->reduce_scatter(comm, out, in, count);
}

void comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes)
{
    comm->table->all_gather(comm, out, in, bytes);
}

void comm_all_to_all(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                     const int64_t *send_rows, size_t row_bytes)
{
    comm->table->all_to_all(comm, recv, recv_rows, send, send_rows, row_bytes);
}

void comm_broadcast(struct comm *comm, void *data, size_t bytes, int root)
{
    comm->table->broadcast(comm, data, bytes, root);
}

void comm_barrier(struct comm *comm)
{
    comm->table->barrier(comm);
}

enum status comm_agree(struct comm *comm, enum status status, int *where)
{
    enum { MESSAGE = 2048 };
    char message[MESSAGE];
    int32_t worst[1] = {(int32_t)status}, from[1] = {-1};
    snprintf(message, sizeof message, "%s", status_message());
    comm_all_reduce(comm, worst, 1, DTYPE_I32, REDUCE_MAX);
    if (worst[0] == STATUS_OK) {
        return STATUS_OK;
    }
    from[0] = worst[0] == (int32_t)status ? comm->size - 1 - comm->rank
                                          : -1; /* the lowest rank that has it */
    comm_all_reduce(comm, from, 1, DTYPE_I32, REDUCE_MAX);
    const int rank = comm->size - 1 - from[0];
    comm_broadcast(comm, message, sizeof message, rank);
    if (where != NULL) {
        *where = rank;
    }
    return status_lines((enum status)worst[0], message);
}
