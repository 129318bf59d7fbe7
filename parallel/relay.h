/* relay: tokens that go over the network once to each machine that has one of their experts, and
 * from there to its ranks.
 *
 * Machines m of M, ranks i of P on each (nodes.h). A token of rank (m, i) for experts on machine n
 * goes to (n, i), which hands it on to each rank (n, j) that has one of them. All that (n, i) must
 * know comes with it: for each row that flat dispatch would send to (n, 0), (n, 1), ..., which row
 * of the message to (n, i) it is. Rows arrive as flat's do, byte for byte, but in the order of (i,
 * m) instead of sources (m, i); the receiver's map of rows takes that in (expert_fan_out).
 *
 *   (m, i) --- across, tokens by machine ---> (n, i) --- within, tokens by rank ---> (n, j)
 */
#ifndef PARALLEL_RELAY_H
#define PARALLEL_RELAY_H

#include "kernels/base/arena.h"
#include "kernels/ops.h"
#include "parallel/nodes.h"

/* What all ranks of the group know of each other: a line of `stride` numbers each, tokens for each
 * of the M*P ranks, then for each of the M machines. */
struct relay_counts {
    const int64_t *line; /* borrowed: of the first rank */
    int64_t stride;
};

struct relay_plan {
    /* set by init */
    struct nodes *nodes;      /* borrowed; NULL: there is none, and nothing else is set */
    struct device *device;    /* borrowed */
    const struct ops *ops;    /* borrowed */
    int64_t slots, room;      /* this rank's at most; rows that it may hold for others */
    struct relay_counts sees; /* of this layer and micro-batch, once they are gathered */
    /* set by relay_find, device */
    int64_t *begin; /* [M+1] borrowed: tokens of each machine, */
    int32_t *token; /* [slots] in (machine, token) order, -1 past the last */
    int32_t *row;   /* [slots] the row of its machine's message that each row by rank is */
    /* set by relay_route */
    int64_t *send, *recv; /* [M] owned: rows across */
    /* scratch */
    int32_t *place;                 /* [slots] device: expert_unique's, of machines */
    int64_t *send_list, *recv_list; /* [M] owned: numbers across */
    int64_t *send_near, *recv_near; /* [P] owned: rows within */
    int64_t *parts;                 /* [P*M + 2*(M+1)] owned: rows by (rank, machine), then where
                                       each machine's numbers, and its rows, begin */
    int64_t *device_parts;          /* the same, device */
    int64_t *offset;                /* [P+1] device */
    int32_t *list;                  /* [room] device: numbers as they come */
    int32_t *regroup, *ungroup;     /* [room] device */
    int32_t *pick;                  /* [room] device: row that came, of each that goes on */
    /* between start and finish */
    char *arrived, *sending; /* borrowed, NULL: nothing is under way */
    int64_t row_bytes;
};

/* nodes NULL, or of one machine: there is none. */
void relay_init(struct relay_plan *relay, struct nodes *nodes, struct device *device,
                const struct ops *ops, int64_t slots, int64_t room);
/* What is host memory. Errors: STATUS_RESOURCE. */
enum status relay_reserve(struct relay_plan *relay) __attribute__((warn_unused_result));
void relay_layout(struct relay_plan *relay, struct arena *arena); /* measures, then hands out */
void relay_free(struct relay_plan *relay);

static inline bool relay_there(const struct relay_plan *relay)
{
    return relay->nodes != NULL;
}

/* Local, on the device. Tokens by machine, of expert and what expert_sort (slot_row) and
 * expert_unique (begin, token) made of it. shape: of the ranks. */
void relay_find(struct relay_plan *relay, const int32_t *expert, const int32_t *slot_row,
                const int64_t *begin, const int32_t *token, struct dispatch_shape shape);
/* Local, the same answer on every rank: whether every rank has room for what it hands on. */
bool relay_fits(const struct relay_plan *relay);
/* Local, of all ranks: rows that leave their machine by machine, and by rank. */
int64_t relay_far(const struct relay_plan *relay, bool by_rank);

/* Where the k-th part of what arrives comes from. */
static inline int relay_source(const struct relay_plan *relay, int k)
{
    return k % relay->nodes->count * relay->nodes->ranks + k / relay->nodes->count;
}

/* Collective over the group. Numbers across, and the maps of what goes on. */
void relay_route(struct relay_plan *relay);
/* Collective over the group. arrived <- sending, rows of row_bytes, even; both are written: room
 * for `room` rows in each. Rows go across between start and what comes next, the rest of the way in
 * finish. */
void relay_start(struct relay_plan *relay, void *arrived, void *sending, int64_t row_bytes);
void relay_finish(struct relay_plan *relay);
static inline bool relay_under_way(const struct relay_plan *relay)
{
    return relay->arrived != NULL;
}

#endif
