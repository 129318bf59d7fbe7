#include "parallel/expert.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/ops_fixed.h"

/* Elements of plan->taken. */
static size_t taken_count(const struct expert_plan *plan)
{
    return (size_t)(plan->experts + 2 * (plan->ep->size + 1)); /* E = local_experts * ep */
}

/* Rows that one rank may receive, and send. */
static void set_rooms(struct expert_plan *plan, const struct expert_sizes *sizes)
{
    const int64_t ranks = plan->ep->size, most = plan->slots * ranks;
    const int64_t wanted = (int64_t)ceil(sizes->buffer_factor * (double)plan->slots);
    const int64_t whole = sizes->top_k / sizes->slices,
                  choices = whole < plan->local_experts ? whole : plan->local_experts;
    plan->bound = plan->sending = plan->slots;
    if (ranks > 1 && sizes->padded) {
        plan->padded = true;
        plan->pad = (struct padded_shape){.experts = sizes->experts,
                                          .ranks = ranks,
                                          .pair_slots = sizes->tokens * choices,
                                          .pair_tokens = sizes->tokens};
        plan->bound = plan->sending = ranks * plan->pad.pair_slots;
    } else if (ranks > 1) {
        plan->bound = wanted < most ? wanted : most;
    }
    if (sizes->nodes != NULL && nodes_apart(sizes->nodes) && plan->bound > plan->sending) {
        assert(!sizes->padded);
        plan->sending = plan->bound; /* of what others' rows take, as of what arrives */
    }
}

/* Machines that are told apart. */
static int machines(const struct expert_plan *plan)
{
    return relay_there(&plan->relay) ? plan->relay.nodes->count : 0;
}

/* Numbers of a line of counts. */
static int64_t line_of(const struct expert_plan *plan)
{
    return plan->experts + plan->ep->size + machines(plan);
}

/* Boundaries behind each other in `sorted`: of experts, ranks and machines. */
static size_t bounds_count(const struct expert_plan *plan)
{
    const int ranks = plan->ep->size, apart = machines(plan);
    return (size_t)(plan->experts + 1 + (ranks > 1 ? ranks + 1 : 0) + (apart > 0 ? apart + 1 : 0));
}

void expert_plan_init(struct expert_plan *plan, struct comm *ep, struct device *device,
                      const struct ops *ops, const struct expert_sizes *sizes)
{
    const int64_t slots = sizes->tokens * sizes->top_k, experts = sizes->experts;
    *plan = (struct expert_plan){.ep = ep,
                                 .device = device,
                                 .ops = ops,
                                 .slots = slots,
                                 .experts = experts,
                                 .local_experts = experts / ep->size,
                                 .by_source = sizes->by_source && ep->size > 1,
                                 .beside = sizes->beside};
    set_rooms(plan, sizes);
    relay_init(&plan->relay, sizes->nodes, device, ops, slots, plan->bound);
}

enum status expert_plan_reserve(struct expert_plan *plan)
{
    const size_t ranks = (size_t)plan->ep->size, slots = (size_t)plan->slots,
                 experts = (size_t)plan->experts;
    TRY(relay_reserve(&plan->relay));
    plan->counts = calloc(ranks * (size_t)line_of(plan), sizeof *plan->counts);
    plan->relay.sees = (struct relay_counts){plan->counts + experts, line_of(plan)};
    plan->send_rows = calloc(ranks, sizeof *plan->send_rows);
    plan->recv_rows = calloc(ranks, sizeof *plan->recv_rows);
    plan->send_begin = calloc(ranks, sizeof *plan->send_begin);
    plan->send_tokens = calloc(ranks, sizeof *plan->send_tokens);
    plan->recv_tokens = calloc(ranks, sizeof *plan->recv_tokens);
    plan->bounds = calloc(bounds_count(plan), sizeof *plan->bounds);
    plan->taken = calloc(taken_count(plan), sizeof *plan->taken);
    plan->host_pick = calloc(slots, sizeof *plan->host_pick);
    plan->source_begin = calloc(experts + 1, sizeof *plan->source_begin);
    const bool good = plan->counts != NULL && plan->send_rows != NULL && plan->recv_rows != NULL &&
                      plan->send_begin != NULL && plan->send_tokens != NULL &&
                      plan->recv_tokens != NULL && plan->bounds != NULL && plan->taken != NULL &&
                      plan->host_pick != NULL && plan->source_begin != NULL;
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "out of memory for the dispatch plan of %zu slots",
                              slots);
}

static void padded_layout(struct expert_plan *plan, struct arena *arena)
{
    const size_t ranks = (size_t)plan->ep->size, slots = (size_t)plan->pad.pair_slots,
                 tokens = (size_t)plan->pad.pair_tokens, line = (size_t)plan->local_experts + slots;
    plan->leaving = arena_alloc(arena, ranks * line * sizeof *plan->leaving);
    plan->arriving = arena_alloc(arena, ranks * line * sizeof *plan->arriving);
    plan->pad_token = arena_alloc(arena, ranks * tokens * sizeof *plan->pad_token);
    plan->pad_row = arena_alloc(arena, ranks * slots * sizeof *plan->pad_row);
    plan->back = arena_alloc(arena, (size_t)plan->slots * sizeof *plan->back);
}

void expert_plan_layout(struct expert_plan *plan, struct arena *arena)
{
    const size_t slots = (size_t)plan->slots, bound = (size_t)plan->bound,
                 experts = (size_t)plan->experts, local = (size_t)plan->local_experts,
                 ranks = (size_t)plan->ep->size;
    plan->token = arena_alloc(arena, slots * sizeof *plan->token);
    plan->slot_row = arena_alloc(arena, slots * sizeof *plan->slot_row);
    plan->sorted = arena_alloc(arena, bounds_count(plan) * sizeof *plan->sorted);
    if (plan->ep->size == 1) {
        plan->offset = plan->sorted;
        return;
    }
    plan->unique_begin = plan->sorted == NULL ? NULL : plan->sorted + experts + 1;
    plan->relay.begin = plan->sorted == NULL ? NULL : plan->unique_begin + ranks + 1;
    relay_layout(&plan->relay, arena);
    plan->unique_token = arena_alloc(arena, slots * sizeof *plan->unique_token);
    plan->place = arena_alloc(arena, slots * sizeof *plan->place);
    plan->fan = arena_alloc(arena, bound * sizeof *plan->fan);
    plan->offset = arena_alloc(arena, (local + 1) * sizeof *plan->offset);
    if (plan->by_source) { /* E = local * ranks */
        plan->source_offset = arena_alloc(arena, (experts + 1) * sizeof *plan->source_offset);
    }
    plan->regroup = arena_alloc(arena, bound * sizeof *plan->regroup);
    plan->ungroup = arena_alloc(arena, bound * sizeof *plan->ungroup);
    if (plan->padded) {
        padded_layout(plan, arena);
        return;
    }
    plan->arrived = arena_alloc(arena, bound * sizeof *plan->arrived);
    plan->pick = arena_alloc(arena, slots * sizeof *plan->pick);
    plan->device_taken = arena_alloc(arena, taken_count(plan) * sizeof *plan->device_taken);
}

void expert_plan_free(struct expert_plan *plan)
{
    free(plan->counts);
    free(plan->send_rows);
    free(plan->recv_rows);
    free(plan->send_begin);
    free(plan->send_tokens);
    free(plan->recv_tokens);
    free(plan->bounds);
    free(plan->taken);
    free(plan->host_pick);
    free(plan->source_begin);
    relay_free(&plan->relay);
    *plan = (struct expert_plan){0};
}

/* counts of source `from`: [E] rows by expert, [ep] tokens by destination, [M] by machine. */
static int64_t *counts_of(const struct expert_plan *plan, int from)
{
    return plan->counts + from * line_of(plan);
}

/* Rows that all ranks send to the experts of rank `to`. */
static int64_t rows_to(const struct expert_plan *plan, int to)
{
    int64_t rows = 0;
    for (int from = 0; from < plan->ep->size; from++) {
        for (int64_t e = to * plan->local_experts; e < (to + 1) * plan->local_experts; e++) {
            rows += counts_of(plan, from)[e];
        }
    }
    return rows;
}

void expert_plan_expect(struct expert_plan *plan, int64_t slots)
{
    plan->rounds = 1;
    plan->sent = slots;
    plan->received = plan->padded ? plan->bound : slots;
}

/* Sorts the slots; where ranks exchange rows, finds each one's tokens too. Then bounds. */
static void sort_slots(struct expert_plan *plan, const int32_t *expert, int64_t slots,
                       int64_t top_k)
{
    const struct dispatch_shape shape = {
        .slots = slots, .top_k = top_k, .experts = plan->experts, .ranks = plan->ep->size};
    plan->ops->expert_sort(plan->device, plan->sorted, plan->token, plan->slot_row, expert, slots,
                           top_k, plan->experts);
    if (plan->ep->size > 1) {
        plan->ops->expert_unique(plan->device, plan->unique_begin, plan->unique_token, plan->place,
                                 expert, plan->slot_row, shape);
    }
    if (relay_there(&plan->relay)) {
        relay_find(&plan->relay, expert, plan->slot_row, plan->unique_begin, plan->unique_token,
                   shape);
    }
}

/* This rank's line of counts, of `sorted` and what stands behind it. */
static void count_own(struct expert_plan *plan)
{
    const int64_t experts = plan->experts;
    const int ranks = plan->ep->size;
    const int64_t *unique = plan->bounds + experts + 1, *apart = unique + ranks + 1;
    int64_t *own = counts_of(plan, plan->ep->rank);
    plan->ops->download(plan->device, plan->bounds, plan->sorted,
                        bounds_count(plan) * sizeof *plan->bounds);
    plan->sent = plan->bounds[experts];
    for (int64_t e = 0; e < experts; e++) {
        own[e] = plan->bounds[e + 1] - plan->bounds[e];
    }
    for (int to = 0; to < ranks && ranks > 1; to++) {
        own[experts + to] = unique[to + 1] - unique[to];
    }
    for (int m = 0; m < machines(plan); m++) {
        own[experts + ranks + m] = apart[m + 1] - apart[m];
    }
}

/* Counts and places to their experts' ranks, and from what arrives the maps of both directions. */
static void exchange_counts(struct expert_plan *plan, int64_t slots)
{
    struct padded_shape shape = plan->pad;
    shape.slots = slots;
    plan->ops->expert_pad(plan->device, plan->leaving, plan->pad_token, plan->pad_row, plan->back,
                          plan->sorted, plan->unique_begin, plan->unique_token, plan->place,
                          &shape);
    comm_device_all_to_all_fixed(plan->ep, plan->arriving, plan->leaving,
                                 plan->local_experts + shape.pair_slots, sizeof *plan->leaving);
    plan->ops->expert_unpad(plan->device, plan->regroup, plan->ungroup, plan->fan, plan->offset,
                            plan->arriving, &shape);
    if (plan->by_source) {
        plan->ops->fixed->expert_sources(plan->device, plan->source_offset, plan->arriving, &shape);
    }
}

/* Which rows of a destination's order a round carries, [low, high); `at`: overlap's. */
struct window {
    int64_t low, high, at;
};

/* Rows that source `from` has for the i-th pair (expert of rank `to`, source). */
static int64_t pair_rows(const struct expert_plan *plan, int to, int64_t i)
{
    const int64_t expert = to * plan->local_experts + i / plan->ep->size;
    return counts_of(plan, (int)(i % plan->ep->size))[expert];
}

/* Round `round` of rows to `to`; past the last one it is empty. */
static struct window window_of(const struct expert_plan *plan, int to, int64_t round)
{
    const int64_t bound = plan->bound;
    struct window window = {.low = round * bound, .high = (round + 1) * bound};
    int64_t at = 0;
    if (!plan->by_source) {
        return window;
    }
    window.low = 0;
    for (int64_t i = 0; i < plan->experts; i++) { /* pairs: local experts * ranks */
        const int64_t rows = pair_rows(plan, to, i);
        assert(rows <= bound);
        if (at + rows - window.low > bound) {
            if (round == 0) {
                break;
            }
            round--;
            window.low = at;
        }
        at += rows;
    }
    window.low = round > 0 ? at : window.low;
    window.high = at;
    return window;
}

static int64_t rounds_to(const struct expert_plan *plan, int to)
{
    const int64_t rows = rows_to(plan, to);
    int64_t rounds = 0;
    while (window_of(plan, to, rounds).low < rows) {
        rounds++;
    }
    return rounds;
}

/* Rows that leave their machine where each slot's does, of all ranks. */
static int64_t far_slots(const struct expert_plan *plan)
{
    const int64_t there = plan->local_experts * plan->relay.nodes->ranks; /* of a machine */
    int64_t rows = 0;
    for (int from = 0; from < plan->ep->size; from++) {
        for (int64_t e = 0; e < plan->experts; e++) {
            rows += e / there != from / plan->relay.nodes->ranks ? counts_of(plan, from)[e] : 0;
        }
    }
    return rows;
}

/* After `once`: whether the network carries fewer rows by machine, and ranks have room to hand them
 * on. */
static bool relays(const struct expert_plan *plan)
{
    const struct relay_plan *relay = &plan->relay;
    return relay_there(relay) && plan->rounds == 1 && relay_fits(relay) &&
           relay_far(relay, false) < (plan->once ? relay_far(relay, true) : far_slots(plan));
}

void expert_plan_make(struct expert_plan *plan, const int32_t *expert, int64_t tokens,
                      int64_t top_k, bool drops)
{
    const int64_t slots = tokens * top_k, experts = plan->experts;
    const int ranks = plan->ep->size;
    int64_t rows = 0, unique = 0;
    assert(slots <= plan->slots);
    sort_slots(plan, expert, slots, top_k);
    expert_plan_expect(plan, slots);
    plan->once = plan->padded;
    plan->relayed = false;
    if (plan->padded) {
        exchange_counts(plan, slots);
    }
    if (plan->padded || (ranks == 1 && !drops)) {
        return;
    }
    count_own(plan);
    comm_all_gather(plan->ep, plan->counts, counts_of(plan, plan->ep->rank),
                    (size_t)line_of(plan) * sizeof *plan->counts);
    for (int to = 0; to < ranks; to++) {
        const int64_t there = rows_to(plan, to), rounds = rounds_to(plan, to);
        plan->rounds = rounds > plan->rounds ? rounds : plan->rounds;
        rows += there;
        for (int from = 0; from < ranks; from++) {
            unique += counts_of(plan, from)[experts + to];
        }
    }
    plan->once = ranks > 1 && plan->rounds == 1 && unique < rows;
    plan->relayed = relays(plan);
    plan->once = plan->once || plan->relayed;
}

/* Calls for each pair (expert of the destination, source) in order: how many of its rows fall into
 * the window. */
static int64_t overlap(struct window *window, int64_t rows)
{
    const int64_t begin = window->at > window->low ? window->at : window->low;
    const int64_t end = window->at + rows < window->high ? window->at + rows : window->high;
    window->at += rows;
    return end > begin ? end - begin : 0;
}

/* What this rank sends to `to` in this round: its rows are in expert order, so they are one run. */
static void plan_send(struct expert_plan *plan, int to, int64_t round)
{
    struct window window = window_of(plan, to, round);
    int64_t before = 0, rows = 0;
    for (int64_t e = 0; e < to * plan->local_experts; e++) {
        before += counts_of(plan, plan->ep->rank)[e];
    }
    for (int64_t e = to * plan->local_experts; e < (to + 1) * plan->local_experts; e++) {
        for (int from = 0; from < plan->ep->size; from++) {
            const int64_t count = counts_of(plan, from)[e], start = window.at;
            const int64_t taken = overlap(&window, count);
            if (from == plan->ep->rank) {
                rows += taken;
                before +=
                    taken == 0 && start < window.low ? count : 0; /* went in an earlier round */
                before += taken > 0 && start < window.low ? window.low - start : 0;
            }
        }
    }
    plan->send_rows[to] = rows;
    plan->send_begin[to] = before;
}

/* This rank's rows of the round, by expert and source. */
static void plan_receive(struct expert_plan *plan, int64_t round)
{
    const int ranks = plan->ep->size;
    const int64_t local = plan->local_experts, first = plan->ep->rank * local;
    struct window window = window_of(plan, plan->ep->rank, round);
    plan->received = 0;
    for (int from = 0; from < ranks; from++) {
        plan->recv_rows[from] = 0;
    }
    for (int64_t i = 0; i < local * ranks; i++) {
        const int from = (int)(i % ranks);
        plan->taken[i] = overlap(&window, counts_of(plan, from)[first + i / ranks]);
        plan->recv_rows[from] += plan->taken[i];
        plan->source_begin[i] = plan->received;
        plan->received += plan->taken[i];
    }
    plan->source_begin[local * ranks] = plan->received;
}

/* Tokens there and back, and where each source's rows and tokens begin (behind taken): tokens
 * handed on arrive in another order of sources. */
static void plan_tokens(struct expert_plan *plan)
{
    const int ranks = plan->ep->size, me = plan->ep->rank;
    int64_t *arrived = plan->taken + plan->experts, *unique = arrived + ranks + 1;
    for (int r = 0; r < ranks; r++) {
        plan->send_tokens[r] = counts_of(plan, me)[plan->experts + r];
        plan->recv_tokens[r] = counts_of(plan, r)[plan->experts + me];
        arrived[r + 1] = arrived[r] + plan->recv_rows[r];
    }
    unique[ranks] = 0;
    for (int k = 0; k < ranks; k++) {
        const int from = plan->relayed ? relay_source(&plan->relay, k) : k;
        unique[from] = unique[ranks];
        unique[ranks] += plan->recv_tokens[from];
    }
}

void expert_plan_round(struct expert_plan *plan, int64_t round)
{
    const int ranks = plan->ep->size;
    assert(round < plan->rounds);
    if (ranks == 1) {
        plan->received = plan->sent;
    }
    if (ranks == 1 || plan->padded) {
        return;
    }
    for (int to = 0; to < ranks; to++) {
        plan_send(plan, to, round);
    }
    plan_receive(plan, round);
    plan_tokens(plan);
    plan->ops->upload(plan->device, plan->device_taken, plan->taken,
                      taken_count(plan) * sizeof *plan->taken);
    if (plan->by_source) {
        plan->ops->upload(plan->device, plan->source_offset, plan->source_begin,
                          (size_t)(plan->experts + 1) * sizeof *plan->source_begin);
    }
    plan->ops->expert_regroup(plan->device, plan->regroup, plan->ungroup, plan->offset,
                              plan->device_taken, plan->local_experts, ranks);
}
