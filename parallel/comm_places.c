#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parallel/transports.h"

enum { NAMED_RANKS = 32 };

/* Where a rank runs. */
struct place {
    char machine[40]; /* boot id: containers of one machine share it, host names need not */
    char host[64];
    char gpu[COMM_GPU_BYTES];
    int32_t world_rank;
};

static struct place place_here(const struct comm *comm, const char *gpu)
{
    struct place place = {.world_rank = comm->world_rank};
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (gethostname(place.host, sizeof place.host - 1) != 0) {
        snprintf(place.host, sizeof place.host, "a host without a name");
    }
    if (file == NULL || fscanf(file, "%39s", place.machine) != 1) {
        snprintf(place.machine, sizeof place.machine, "%.39s", place.host);
    }
    if (file != NULL) {
        fclose(file);
    }
    snprintf(place.gpu, sizeof place.gpu, "%s", gpu);
    return place;
}

/* The same answer on every rank: all see the same places. */
static enum status check(const struct place *places, int size)
{
    for (int a = 0; a < size; a++) {
        for (int b = a + 1; b < size; b++) {
            if (strcmp(places[a].machine, places[b].machine) == 0 &&
                strcmp(places[a].gpu, places[b].gpu) == 0) {
                return status_fail(STATUS_USAGE,
                                   "run.comm nccl: ranks %d and %d share GPU %s of %s, which NCCL "
                                   "does not allow; use run.comm=mpi, or fewer ranks",
                                   places[a].world_rank, places[b].world_rank, places[a].gpu,
                                   places[a].host);
            }
        }
    }
    return STATUS_OK;
}

enum status comm_places_check(struct comm *comm, const char *gpu)
{
    const struct place here = place_here(comm, gpu);
    struct place *places = calloc((size_t)comm->size, sizeof *places);
    enum status status = places == NULL ? status_fail(STATUS_RESOURCE, "out of memory") : STATUS_OK;
    status = comm_agree(comm, status, NULL);
    if (status == STATUS_OK) {
        comm_all_gather(comm, places, &here, sizeof here);
        status = check(places, comm->size);
    }
    free(places);
    return status;
}

void comm_label(struct comm *comm, char *text, size_t bytes)
{
    int32_t ranks[NAMED_RANKS] = {0};
    const int32_t own = comm->world_rank;
    int used = snprintf(text, bytes, "group %s of %d ranks",
                        comm->name != NULL ? comm->name : "without a name", comm->size);
    if (comm->size > NAMED_RANKS) {
        return;
    }
    comm_all_gather(comm, ranks, &own, sizeof own);
    for (int r = 0; r < comm->size && used < (int)bytes; r++) {
        used += snprintf(text + used, bytes - (size_t)used, "%s%d%s", r == 0 ? " (" : " ", ranks[r],
                         r + 1 == comm->size ? ")" : "");
    }
}
