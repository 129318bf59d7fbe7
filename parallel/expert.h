/* expert: expert parallelism. Plans and carries the rows of one MoE layer to the experts' ranks and
 * back.
 *
 * Every rank holds N*K slots (token n, choice k). A slot's row goes to the rank of its expert;
 * there, rows stand in (expert, source rank, token) order. Tokens travel once to each rank, however
 * many of their experts live there, and one number per slot (int32) says which row of the message
 * it wants; the receiver fans the rows out. Expert outputs and gradients always travel by slot:
 * sums over a token's slots are made on its own rank, in slot order. Two ways to send them; the
 * experts see the same bytes:
 *
 * exact: one message per pair of ranks with the rows there are. The host learns the counts of all
 * ranks, for which it waits. The receive buffer has a hard bound of `bound` rows: when a
 * destination's rows exceed it, they travel in several rounds, round r carrying rows [r*bound,
 * (r+1)*bound) of that destination's order. All ranks compute the same rounds from the all-gathered
 * counts, so imbalance costs time, never memory, never tokens. `by_source`: a round ends with the
 * last (expert, source) that fits whole. Where tokens sent once save nothing
 * (no token of any rank has two experts on one rank), or there are several rounds, each slot's row
 * travels. On several machines tokens go over the network once to each machine and from there to
 * its ranks (relay.h), where that saves rows, there is one round and room for what ranks hand on:
 * all ranks see the same counts and decide alike, and what arrives is the same.
 *
 * padded: messages of a fixed size, as large as the worst case needs: N tokens to a rank, N *
 * min(K, local experts) slots back. The counts travel in front of the numbers and stay on the
 * device, as all that follows from them does: the host waits for nothing, and a device can record
 * the layer (graph_begin, kernels/ops.h). Nothing overflows; memory and traffic are ep * min(K,
 * local) / K times what balanced routing needs. Counts on the host (sent, received) are upper
 * bounds; maps are -1 past what is there.
 */
#ifndef PARALLEL_EXPERT_H
#define PARALLEL_EXPERT_H

#include "kernels/base/arena.h"
#include "kernels/ops.h"
#include "parallel/comm.h"
#include "parallel/relay.h"

struct expert_sizes {
    int64_t tokens, top_k, experts; /* N, K of the largest call; of all ranks together */
    int64_t slices; /* parts of an expert that K and `experts` count one by one, each on another
                       rank (ops.expert_spread); 1: experts are whole */
    bool padded;
    double buffer_factor; /* exact: bound / (N*K), at least 1 / K */
    bool by_source;       /* source_offset is wanted, and no source's rows for an expert come in two
                             rounds */
    struct nodes *nodes;  /* borrowed: how ep's ranks stand on machines; NULL: on one */
    bool beside;          /* exchanges of other plans of the group may be under way beside one */
};

struct expert_plan {
    /* set by init */
    struct comm *ep;       /* borrowed */
    struct device *device; /* borrowed */
    const struct ops *ops; /* borrowed */
    int64_t slots;         /* N*K, the most this rank can send */
    int64_t experts;       /* E, all ranks together */
    int64_t local_experts; /* E / ep */
    int64_t bound;         /* receive rows per round */
    int64_t sending;       /* rows that a message to all ranks may hold */
    bool padded;           /* and ep has more than one rank */
    bool by_source;        /* and ep has more than one rank */
    bool beside;           /* likewise */
    struct comm_mark mark; /* of what is under way, where `beside` */
    struct padded_shape pad;
    /* set by expert_plan_make, for the current layer and micro-batch */
    int64_t rounds;    /* >= 1, the same on every rank of ep */
    int64_t sent;      /* rows sent = slots - dropped; send order is (expert, token). Where the host
                          does not wait: slots, the upper bound */
    int32_t *token;    /* [slots] device: token of each row to be sent, -1 past the last */
    int32_t *slot_row; /* [slots] device: row, in send order, of each slot, -1 when dropped */
    int64_t *sorted;   /* [E+1] device: expert boundaries in send order */
    int64_t
        *counts;  /* [ep, E + ep + M] owned: rows each source sends to each expert; then, tokens
                     it has for each rank; then for each of M machines, where there are several */
    bool once;    /* tokens travel once to each rank: the same on every rank of ep */
    bool relayed; /* and once to each machine, from there to its ranks: the same on every rank */
    /* set by expert_plan_round */
    int64_t *send_rows, *recv_rows; /* [ep] owned: rows to / from each rank this round */
    int64_t *send_begin; /* [ep] owned: first row, in send order, of each destination's rows this
                            round */
    int64_t received;    /* rows received this round; padded: bound */
    int64_t *offset;     /* [local_experts + 1] device: expert boundaries among the received rows;
                            `sorted` where ep is 1 */
    int64_t *source_offset; /* [local_experts * ep + 1] device: the same of (expert, source);
                               by_source only */
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
    int64_t *bounds; /* [E+1 + ep+1 + M+1] owned: `sorted`, unique_begin and relay.begin on the
                        host */
    struct relay_plan relay;
    int64_t *taken;        /* [local_experts, ep] owned: rows of this round, by expert and source;
                              then [ep+1] where each source's rows begin, [ep+1] its tokens */
    int64_t *device_taken; /* the same, device */
    int64_t *source_begin; /* [local_experts * ep + 1] owned: source_offset on the host */
    /* padded, device: expert_pad's and expert_unpad's */
    int32_t *leaving, *arriving; /* [ep, local_experts + P] messages of counts and places */
    int32_t *pad_token;          /* [ep * U] */
    int32_t *pad_row;            /* [ep * P] */
    int32_t *back;               /* [slots] */
};

/* bound: slots when ep is 1; exact: min(ceil(buffer_factor * slots), slots * ep); padded: ep * N *
 * min(K, local experts). sending: exact: slots, on several machines no less than bound. Machines
 * are of exact dispatch only: nodes is NULL or of one machine where `padded`. */
void expert_plan_init(struct expert_plan *plan, struct comm *ep, struct device *device,
                      const struct ops *ops, const struct expert_sizes *sizes);
/* What is host memory: before rows travel. Errors: STATUS_RESOURCE. */
enum status expert_plan_reserve(struct expert_plan *plan) __attribute__((warn_unused_result));
/* What is device memory. Measures, then hands out (arena twice). */
void expert_plan_layout(struct expert_plan *plan, struct arena *arena);
void expert_plan_free(struct expert_plan *plan); /* what reserve made */

/* Collective over ep. expert int32 [tokens*top_k], device (< 0: dropped slot), those of a token
 * different ones; tokens*top_k <= slots. exact: where ranks exchange rows, or slots may be dropped
 * (`drops`), the host waits for the counts; else it does not. */
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
    int64_t sent;         /* <= plan->sending */
    const int32_t *place; /* [received] device: arrived row of each row in (expert, source, token)
                             order */
    int64_t arrived;      /* <= bound */
    const int64_t *send_rows, *recv_rows; /* [ep] borrowed: of each message; padded: NULL */
    int64_t pair_rows;                    /* padded: of every message */
    bool relayed; /* messages are to machines, send_rows and recv_rows [M]; rows are handed on */
};

/* Routes of the round, valid until the next expert_plan_round; of ep of more than one rank.
 * tokens: activations, x[N, C] this rank's tokens. Collective over ep.
 * slots: output gradients, x[sent, C] in send order. Local. */
struct expert_route expert_route_tokens(struct expert_plan *plan);
struct expert_route expert_route_slots(struct expert_plan *plan);
/* Local. The route of tokens once more, of the same round, where plan->once: nothing travels for
 * it.
 */
struct expert_route expert_route_again(const struct expert_plan *plan);
/* Collective over ep. One number for each slot of the round, not padded: rows[received] in (expert,
 * source, token) order <- sent[sent] in send order; arrived: room for as many. */
void expert_carry_numbers(struct expert_plan *plan, float *rows, float *arrived, const float *sent);
/* What travels does so between a start and its finish, beside what is called between them: that
 * may neither touch the memory named here nor communicate (comm_device_finish). One at a time.
 *
 * Collective over ep. arrived[route->arrived] <- sending[route->sent], rows of row_bytes. relayed:
 * the network's part is under way between both; `sending` is written to, has room for
 * plan->sending rows as arrived has for plan->bound, and row_bytes is even. */
void expert_exchange_start(struct expert_plan *plan, const struct expert_route *route,
                           void *arrived, void *sending, int64_t row_bytes);
void expert_exchange_finish(struct expert_plan *plan);

/* Collective over ep. rows[received, C] <- x along `route`, as it is. `buffer` has room for bound +
 * sending rows. */
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
