#include "parallel/nodes.h"

#include <stdlib.h>

struct nodes nodes_expect(int ranks, int per_node)
{
    const bool apart = per_node > 1 && ranks > per_node && ranks % per_node == 0;
    return (struct nodes){.count = apart ? ranks / per_node : 1, .ranks = apart ? per_node : ranks};
}

/* Where a rank stands among the group's ranks on its machine. */
struct place {
    int32_t rank, size;
};

static struct place place_of(struct comm *group, int per_node, int32_t *machine)
{
    struct place place = {group->node_rank, group->node_size};
    if (per_node == 0) {
        return place;
    }
    const int32_t own = group->world_rank / per_node;
    comm_all_gather(group, machine, &own, sizeof own);
    place = (struct place){0, 0};
    for (int r = 0; r < group->size; r++) {
        place.rank += machine[r] == own && r < group->rank;
        place.size += machine[r] == own;
    }
    return place;
}

/* Ranks on each machine, 0 where they do not stand one machine behind the other. NOTE: that places
 * count 0 .. P-1 over and over is enough: the rank with place k has k ranks before it on its
 * machine, and all machines before the last begun are full. */
static int ranks_of_each(const struct place *place, int ranks)
{
    for (int r = 0; r < ranks; r++) {
        if (place[r].size != place[0].size || place[r].rank != r % place[0].size) {
            return 0;
        }
    }
    return place[0].size;
}

static enum status refuse(const struct comm *group, int each)
{
    if (each == group->size) {
        return status_fail(STATUS_USAGE,
                           "parallel.node_dispatch hierarchical: the %d ranks of an ep group are "
                           "on one machine; use auto",
                           group->size);
    }
    return status_fail(STATUS_USAGE,
                       "parallel.node_dispatch hierarchical: the %d ranks of an ep group do not "
                       "stand on several machines, two or more on each and as many on all, one "
                       "machine behind the other (mpirun --map-by slot); use auto",
                       group->size);
}

enum status nodes_init(struct nodes *nodes, struct comm *group, enum nodes_wish wish, int per_node)
{
    const size_t ranks = (size_t)group->size;
    *nodes = (struct nodes){.count = 1, .ranks = group->size};
    if (wish == NODES_FLAT) {
        return STATUS_OK;
    }
    struct place *place = calloc(ranks, sizeof *place);
    int32_t *machine = calloc(ranks, sizeof *machine);
    enum status status = place == NULL || machine == NULL
                             ? status_fail(STATUS_RESOURCE, "out of memory")
                             : STATUS_OK;
    status = comm_agree(group, status, NULL);
    if (status == STATUS_OK) {
        const struct place own = place_of(group, per_node, machine);
        comm_all_gather(group, place, &own, sizeof own);
        const int each = ranks_of_each(place, group->size);
        *nodes = nodes_expect(group->size, each);
        status = wish == NODES_HIERARCHICAL && !nodes_apart(nodes) ? refuse(group, each) : status;
    }
    free(place);
    free(machine);
    if (status == STATUS_OK && nodes_apart(nodes)) {
        comm_split(group, group->rank % nodes->ranks, group->rank, &nodes->across);
        comm_split(group, group->rank / nodes->ranks, group->rank, &nodes->within);
        nodes->across.name = "ep across nodes";
        nodes->within.name = "ep within a node";
    }
    return status;
}

void nodes_free(struct nodes *nodes)
{
    comm_free(&nodes->across);
    comm_free(&nodes->within);
    *nodes = (struct nodes){0};
}
