/* nodes: the machines that a group's ranks stand on, and the groups in which rows travel first
 * across machines, then within one (relay.h).
 *
 * M machines with P of the group's ranks each, one machine behind the other: rank r is the r % P-th
 * on machine r / P. Where ranks stand otherwise, or P or M is 1, machines are not told apart.
 */
#ifndef PARALLEL_NODES_H
#define PARALLEL_NODES_H

#include "parallel/comm.h"

enum nodes_wish { NODES_FLAT, NODES_AUTO, NODES_HIERARCHICAL };

struct nodes {
    int count;          /* M; 0, 1: not told apart, and both groups are zeroed */
    int ranks;          /* P */
    struct comm across; /* the ranks with this one's place on their machines, M of them */
    struct comm within; /* the ranks of this one's machine, P of them */
};

static inline bool nodes_apart(const struct nodes *nodes)
{
    return nodes->count > 1;
}

/* Local. How a group of `ranks` stands on machines of per_node, the first rank of the group the
 * first of a machine. The groups stay zeroed. */
struct nodes nodes_expect(int ranks, int per_node);

/* Machines are those of MPI_COMM_TYPE_SHARED, or with per_node > 0 of per_node ranks of the world
 * each. Errors, the same on every rank of the group: STATUS_USAGE where NODES_HIERARCHICAL asks for
 * what there is not; NODES_AUTO takes what there is. Collective over group. */
enum status nodes_init(struct nodes *nodes, struct comm *group, enum nodes_wish wish, int per_node)
    __attribute__((warn_unused_result));
void nodes_free(struct nodes *nodes); /* accepts a zeroed one. Collective over both groups */

#endif
