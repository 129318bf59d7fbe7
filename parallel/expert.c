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
                                 .by_source = sizes->by_source && ep->size > 1};
    set_rooms(plan, sizes);
}

enum status expert_plan_reserve(struct expert_plan *plan)
{
    const size_t ranks = (size_t)plan->ep->size, slots = (size_t)plan->slots,
                 experts = (size_t)plan->experts;
    plan->counts = calloc(ranks * (experts + ranks), sizeof *plan->counts);
    plan->send_rows = calloc(ranks, sizeof *plan->send_rows);
    plan->recv_rows = calloc(ranks, sizeof *plan->recv_rows);
    plan->send_begin = calloc(ranks, sizeof *plan->send_begin);
    plan->send_tokens = calloc(ranks, sizeof *plan->send_tokens);
    plan->recv_tokens = calloc(ranks, sizeof *plan->recv_tokens);
    plan->bounds = calloc(experts + ranks + 2, sizeof *plan->bounds);
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
    plan->sorted = arena_alloc(arena, (experts + 1 + ranks + 1) * sizeof *plan->sorted);
    if (plan->ep->size == 1) {
        plan->offset = plan->sorted;
        return;
    }
    plan->unique_begin = plan->sorted == NULL ? NULL : plan->sorted + experts + 1;
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
    *plan = (struct expert_plan){0};
}

/* counts of source `from`: [E] rows by expert, [ep] tokens by destination. */
static int64_t *counts_of(const struct expert_plan *plan, int from)
{
    return plan->counts + from * (plan->experts + plan->ep->size);
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
}

/* This rank's line of counts, of `sorted` and unique_begin. */
static void count_own(struct expert_plan *plan)
{
    const int64_t experts = plan->experts;
    const int ranks = plan->ep->size;
    const size_t bounds = (size_t)(experts + 1 + (ranks > 1 ? ranks + 1 : 0));
    const int64_t *unique = plan->bounds + experts + 1;
    int64_t *own = counts_of(plan, plan->ep->rank);
    plan->ops->download(plan->device, plan->bounds, plan->sorted, bounds * sizeof *plan->bounds);
    plan->sent = plan->bounds[experts];
    for (int64_t e = 0; e < experts; e++) {
        own[e] = plan->bounds[e + 1] - plan->bounds[e];
    }
    for (int to = 0; to < ranks && ranks > 1; to++) {
        own[experts + to] = unique[to + 1] - unique[to];
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
    if (plan->padded) {
        exchange_counts(plan, slots);
    }
    if (plan->padded || (ranks == 1 && !drops)) {
        return;
    }
    count_own(plan);
    comm_all_gather(plan->ep, plan->counts, counts_of(plan, plan->ep->rank),
                    (size_t)(experts + ranks) * sizeof *plan->counts);
    for (int to = 0; to < ranks; to++) {
        const int64_t there = rows_to(plan, to), rounds = rounds_to(plan, to);
        plan->rounds = rounds > plan->rounds ? rounds : plan->rounds;
        rows += there;
        for (int from = 0; from < ranks; from++) {
            unique += counts_of(plan, from)[experts + to];
        }
    }
    plan->once = ranks > 1 && plan->rounds == 1 && unique < rows;
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

/* Tokens there and back, and where each source's rows and tokens begin (behind taken). */
static void plan_tokens(struct expert_plan *plan)
{
    const int ranks = plan->ep->size, me = plan->ep->rank;
    int64_t *arrived = plan->taken + plan->experts, *unique = arrived + ranks + 1;
    for (int r = 0; r < ranks; r++) {
        plan->send_tokens[r] = counts_of(plan, me)[plan->experts + r];
        plan->recv_tokens[r] = counts_of(plan, r)[plan->experts + me];
        arrived[r + 1] = arrived[r] + plan->recv_rows[r];
        unique[r + 1] = unique[r] + plan->recv_tokens[r];
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

/* ---- routes ---- */

static int64_t sum(const int64_t *rows, int count)
{
    int64_t all = 0;
    for (int i = 0; i < count; i++) {
        all += rows[i];
    }
    return all;
}

/* A route of padded messages of pair_rows rows. */
static struct expert_route padded(const struct expert_plan *plan, const int32_t *pick,
                                  const int32_t *place, int64_t pair_rows)
{
    const int64_t rows = plan->ep->size * pair_rows;
    return (struct expert_route){
        .pick = pick, .sent = rows, .place = place, .arrived = rows, .pair_rows = pair_rows};
}

/* The route of slots, each with its own row; pick NULL. */
static struct expert_route by_slot(const struct expert_plan *plan)
{
    return (struct expert_route){.sent = sum(plan->send_rows, plan->ep->size),
                                 .place = plan->regroup,
                                 .arrived = plan->received,
                                 .send_rows = plan->send_rows,
                                 .recv_rows = plan->recv_rows};
}

/* Each token once to each rank, and fan from where its slots want it. */
static struct expert_route once(struct expert_plan *plan)
{
    const int ranks = plan->ep->size;
    const int64_t *begin = plan->device_taken + plan->experts;
    comm_device_all_to_all(plan->ep, plan->arrived, plan->recv_rows, plan->place, plan->send_rows,
                           sizeof *plan->place);
    plan->ops->expert_fan_out(plan->device, plan->fan, plan->ungroup, plan->arrived, begin,
                              begin + ranks + 1, ranks, plan->received);
    return (struct expert_route){.pick = plan->unique_token,
                                 .sent = sum(plan->send_tokens, ranks),
                                 .place = plan->fan,
                                 .arrived = sum(plan->recv_tokens, ranks),
                                 .send_rows = plan->send_tokens,
                                 .recv_rows = plan->recv_tokens};
}

struct expert_route expert_route_tokens(struct expert_plan *plan)
{
    if (plan->padded) {
        return padded(plan, plan->pad_token, plan->fan, plan->pad.pair_tokens);
    }
    if (plan->once) {
        return once(plan);
    }
    struct expert_route route = by_slot(plan);
    route.pick = plan->token;
    if (plan->rounds > 1) { /* runs of the send order, one per destination */
        int32_t *next = plan->pick;
        for (int to = 0; to < plan->ep->size; to++) {
            plan->ops->copy(plan->device, next, plan->token + plan->send_begin[to],
                            (size_t)plan->send_rows[to] * sizeof *next);
            next += plan->send_rows[to];
        }
        route.pick = plan->pick;
    }
    return route;
}

struct expert_route expert_route_slots(struct expert_plan *plan)
{
    if (plan->padded) {
        return padded(plan, plan->pad_row, plan->regroup, plan->pad.pair_slots);
    }
    struct expert_route route = by_slot(plan);
    if (plan->rounds > 1) {
        int64_t row = 0;
        for (int to = 0; to < plan->ep->size; to++) {
            for (int64_t i = 0; i < plan->send_rows[to]; i++) {
                plan->host_pick[row++] = (int32_t)(plan->send_begin[to] + i);
            }
        }
        plan->ops->upload(plan->device, plan->pick, plan->host_pick,
                          (size_t)row * sizeof *plan->pick);
        route.pick = plan->pick;
    }
    return route;
}

/* ---- there and back ---- */

void expert_exchange_start(struct expert_plan *plan, const struct expert_route *route,
                           void *arrived, const void *sending, int64_t row_bytes)
{
    if (plan->padded) {
        comm_device_all_to_all_fixed_start(plan->ep, arrived, sending, route->pair_rows,
                                           (size_t)row_bytes);
    } else {
        comm_device_all_to_all_start(plan->ep, arrived, route->recv_rows, sending, route->send_rows,
                                     (size_t)row_bytes);
    }
}

void expert_exchange_finish(struct expert_plan *plan)
{
    comm_device_finish(plan->ep);
}

static int64_t row_bytes(struct tensor x)
{
    return x.dim[1] * (int64_t)dtype_bytes(x.dtype);
}

void expert_dispatch_start(struct expert_plan *plan, const struct expert_route *route,
                           struct tensor x, void *buffer)
{
    char *arrived = buffer, *sending = arrived + plan->bound * row_bytes(x);
    if (route->pick != NULL) {
        plan->ops->gather_rows(plan->device, tensor_2d(sending, x.dtype, route->sent, x.dim[1]), x,
                               route->pick);
    }
    expert_exchange_start(plan, route, arrived, route->pick != NULL ? sending : x.data,
                          row_bytes(x));
}

void expert_dispatch_finish(struct expert_plan *plan, const struct expert_route *route,
                            struct tensor rows, void *buffer)
{
    assert(rows.dim[0] == plan->received);
    expert_exchange_finish(plan);
    plan->ops->gather_rows(plan->device, rows,
                           tensor_2d(buffer, rows.dtype, route->arrived, rows.dim[1]),
                           route->place);
}

/* The rows of one round among several back into their runs of the send order. */
static void copy_runs(const struct expert_plan *plan, char *sent, const char *packed, int64_t row)
{
    for (int to = 0; to < plan->ep->size; to++) {
        const size_t bytes = (size_t)(plan->send_rows[to] * row);
        plan->ops->copy(plan->device, sent + plan->send_begin[to] * row, packed, bytes);
        packed += bytes;
    }
}

/* Whether combined rows arrive apart from where they belong. */
static bool lands_apart(const struct expert_plan *plan)
{
    return plan->padded || plan->rounds > 1;
}

void expert_combine_start(struct expert_plan *plan, struct tensor x, struct tensor rows,
                          void *buffer)
{
    char *leaving = buffer, *landing = leaving + plan->bound * row_bytes(x);
    const size_t row = (size_t)row_bytes(x);
    void *back = lands_apart(plan) ? landing : x.data;
    assert(rows.dim[0] == plan->received && x.dim[0] == plan->sent);
    plan->ops->gather_rows(plan->device, tensor_2d(leaving, x.dtype, plan->received, x.dim[1]),
                           rows, plan->ungroup);
    if (plan->padded) {
        comm_device_all_to_all_fixed_start(plan->ep, back, leaving, plan->pad.pair_slots, row);
    } else {
        comm_device_all_to_all_start(plan->ep, back, plan->send_rows, leaving, plan->recv_rows,
                                     row);
    }
}

void expert_combine_finish(struct expert_plan *plan, struct tensor x, void *buffer)
{
    char *landing = (char *)buffer + plan->bound * row_bytes(x);
    expert_exchange_finish(plan);
    if (plan->padded) {
        plan->ops->gather_rows(plan->device, x,
                               tensor_2d(landing, x.dtype, plan->sending, x.dim[1]), plan->back);
    } else if (plan->rounds > 1) {
        copy_runs(plan, x.data, landing, row_bytes(x));
    }
}
