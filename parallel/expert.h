/* expert: expert parallelism. Plans and carries the rows of one MoE layer to the experts' ranks and
 * back.
 *
 * Every rank holds N*K slots (token n, choice k). A slot's row goes to the rank of its expert;
 * there, rows stand in (expert, source rank, token) order. The receive buffer has a hard bound of
 * `bound` rows: when a destination's rows exceed it, they travel in several rounds, round r
 * carrying rows [r*bound, (r+1)*bound) of that destination's order. All ranks compute the same
 * rounds from the all-gathered counts, so imbalance costs time, never memory, never tokens.
 *
 * Tokens travel once to each rank (plan->once), however many of their experts live there: one
 * packed message per pair of ranks, and before it one number per slot (int32) that says which row
 * of the message it wants; the receiver fans the rows out. Where that saves nothing (no token of
 * any rank has two experts on one rank), or there are several rounds, each slot's row travels.
 * Either way the experts see the same bytes. Expert outputs and gradients always travel by slot:
 * sums over a token's slots are made on its own rank, in slot order.
 */
#ifndef PARALLEL_EXPERT_H
#define PARALLEL_EXPERT_H

#include "kernels/base/arena.h"
#include "kernels/ops.h"
#include "parallel/comm.h"

struct expert_plan {
    /* set by init */
    struct comm *ep;       /* borrowed */
    struct device *device; /* borrowed */
    const struct ops *ops; /* borrowed */
    int64_t slots;         /* N*K, the most this rank can send */
    int64_t experts;       /* E, all ranks together */
    int64_t local_experts; /* E / ep */
    int64_t bound;         /* receive rows per round */
    /* set by expert_plan_make, for the current layer and micro-batch */
    int64_t rounds;    /* >= 1, the same on every rank of ep */
    int64_t sent;      /* rows sent = slots - dropped; send order is (expert, token) */
    int32_t *token;    /* [slots] device: token of each row to be sent, -1 past the last */
    int32_t *slot_row; /* [slots] device: row, in send order, of each slot, -1 when dropped */
    int64_t *sorted;   /* [E+1] device: expert boundaries in send order */
    int64_t *counts;   /* [ep, E + ep] owned: rows each source sends to each expert; then, tokens
                          it has for each rank */
    bool once;         /* tokens travel once to each rank: the same on every rank of ep */
    /* set by expert_plan_round */
    int64_t *send_rows, *recv_rows; /* [ep] owned: rows to / from each rank this round */
    int64_t *send_begin; /* [ep] owned: first row, in send order, of each destination's rows this
                            round */
    int64_t received;    /* rows received this round */
    int64_t *offset;     /* [local_experts + 1] device: expert boundaries among the received rows;
                            `sorted` where ep is 1 */
    int32_t *regroup; /* [bound] device: regroup[i] = arrival position (source, expert, token order)
                         of row i of (expert, source, token) order; NULL where ep is 1 */
    int32_t *ungroup; /* [bound] device: its inverse */
    int64_t *send_tokens, *recv_tokens; /* [ep] owned: rows that travel where `once` */
    /* scratch of expert_plan_make, expert_plan_round and the routes */
    int64_t *unique_begin; /* [ep+1] device, behind `sorted`: expert_unique's */
    int32_t *unique_token; /* [slots] device */
    int32_t *place;        /* [slots] device: row of its message that each sent slot wants */
    int32_t *arrived;      /* [bound] device: the same of the slots that arrived */
    int32_t *fan;          /* [bound] device: expert_fan_out's */
    int32_t *pick;         /* [slots] device: of a round among several */
    int32_t *host_pick;    /* [slots] owned */
    int64_t *bounds;       /* [E+1 + ep+1] owned: `sorted` and unique_begin on the host */
    int64_t *taken;        /* [local_experts, ep] owned: rows of this round, by expert and source;
                              then [ep+1] where each source's rows begin, [ep+1] its tokens */
    int64_t *device_taken; /* the same, device */
};

/* bound = min(ceil(buffer_factor * slots), slots * ep), and slots when ep is 1. */
enum status expert_plan_init(struct expert_plan *plan, struct comm *ep, struct device *device,
                             const struct ops *ops, int64_t slots, int64_t experts,
                             double buffer_factor) __attribute__((warn_unused_result));
/* What is device memory. Measures, then hands out (arena twice). */
void expert_plan_layout(struct expert_plan *plan, struct arena *arena);
void expert_plan_free(struct expert_plan *plan); /* what init made */

/* Collective over ep. expert int32 [tokens*top_k], device (< 0: dropped slot); tokens*top_k <=
 * slots. Where ranks exchange rows, or slots may be dropped (`drops`), the host waits for the
 * counts; else it does not. */
void expert_plan_make(struct expert_plan *plan, const int32_t *expert, int64_t tokens,
                      int64_t top_k, bool drops);
/* Local. What expert_plan_make and _round of `slots` slots set on the host where they do not wait.
 */
void expert_plan_expect(struct expert_plan *plan, int64_t slots);
/* Local. Fills the fields of round `round`. */
void expert_plan_round(struct expert_plan *plan, int64_t round);

/* How rows travel to their experts: the caller gathers them for the messages, expert_exchange
 * carries them, the caller puts what arrived into expert order; on both sides it may convert on the
 * way (FP8). */
struct expert_route {
    const int32_t *pick;  /* [sent] device: row of x each travelling row is, NULL: in order */
    int64_t sent;         /* <= slots */
    const int32_t *place; /* [received] device: arrived row of each row in (expert, source, token)
                             order */
    int64_t arrived;      /* <= bound */
    const int64_t *send_rows, *recv_rows; /* [ep] borrowed: of each message */
};

/* Routes of the round, valid until the next expert_plan_round; of ep of more than one rank.
 * tokens: activations, x[N, C] this rank's tokens. Collective over ep.
 * slots: output gradients, x[sent, C] in send order. Local. */
struct expert_route expert_route_tokens(struct expert_plan *plan);
struct expert_route expert_route_slots(struct expert_plan *plan);
/* What travels does so between a start and its finish, beside what is called between them: that
 * may neither touch the memory named here nor communicate (comm_device_finish). One at a time.
 *
 * Collective over ep. arrived[route->arrived] <- sending[route->sent], rows of row_bytes. */
void expert_exchange_start(struct expert_plan *plan, const struct expert_route *route,
                           void *arrived, const void *sending, int64_t row_bytes);
void expert_exchange_finish(struct expert_plan *plan);

/* Collective over ep. rows[received, C] <- x along `route`, as it is. `buffer` has room for bound +
 * slots rows. */
void expert_dispatch_start(struct expert_plan *plan, const struct expert_route *route,
                           struct tensor x, void *buffer);
void expert_dispatch_finish(struct expert_plan *plan, const struct expert_route *route,
                            struct tensor rows, void *buffer);
/* Collective over ep. The way back: x[sent, C] in send order, this round's rows of it, <-
 * rows[received, C]; `rows` is free after start. */
void expert_combine_start(struct expert_plan *plan, struct tensor x, struct tensor rows,
                          void *buffer);
void expert_combine_finish(struct expert_plan *plan, struct tensor x, void *buffer);

#endif
