#include "parallel/expert.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

/* Elements of plan->taken. */
static size_t taken_count(const struct expert_plan *plan)
{
    return (size_t)(plan->experts + 2 * (plan->ep->size + 1)); /* E = local_experts * ep */
}

enum status expert_plan_init(struct expert_plan *plan, struct comm *ep, struct device *device,
                             const struct ops *ops, int64_t slots, int64_t experts,
                             double buffer_factor)
{
    const int64_t most = slots * ep->size, wanted = (int64_t)ceil(buffer_factor * (double)slots);
    const size_t ranks = (size_t)ep->size;
    *plan = (struct expert_plan){.ep = ep,
                                 .device = device,
                                 .ops = ops,
                                 .slots = slots,
                                 .experts = experts,
                                 .local_experts = experts / ep->size,
                                 .bound = ep->size == 1   ? slots
                                          : wanted < most ? wanted
                                                          : most};
    plan->counts = calloc(ranks * ((size_t)experts + ranks), sizeof *plan->counts);
    plan->send_rows = calloc(ranks, sizeof *plan->send_rows);
    plan->recv_rows = calloc(ranks, sizeof *plan->recv_rows);
    plan->send_begin = calloc(ranks, sizeof *plan->send_begin);
    plan->send_tokens = calloc(ranks, sizeof *plan->send_tokens);
    plan->recv_tokens = calloc(ranks, sizeof *plan->recv_tokens);
    plan->bounds = calloc((size_t)experts + ranks + 2, sizeof *plan->bounds);
    plan->taken = calloc(taken_count(plan), sizeof *plan->taken);
    const bool good = plan->counts != NULL && plan->send_rows != NULL && plan->recv_rows != NULL &&
                      plan->send_begin != NULL && plan->send_tokens != NULL &&
                      plan->recv_tokens != NULL && plan->bounds != NULL && plan->taken != NULL;
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "out of memory for the dispatch plan of %lld slots",
                              (long long)slots);
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
    plan->regroup = arena_alloc(arena, bound * sizeof *plan->regroup);
    plan->ungroup = arena_alloc(arena, bound * sizeof *plan->ungroup);
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
    plan->sent = plan->received = slots;
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

void expert_plan_make(struct expert_plan *plan, const int32_t *expert, int64_t tokens,
                      int64_t top_k, bool drops)
{
    const int64_t slots = tokens * top_k, experts = plan->experts;
    const int ranks = plan->ep->size;
    int64_t rows = 0, unique = 0;
    assert(slots <= plan->slots);
    sort_slots(plan, expert, slots, top_k);
    expert_plan_expect(plan, slots);
    plan->once = false;
    if (ranks == 1 && !drops) {
        return;
    }
    count_own(plan);
    comm_all_gather(plan->ep, plan->counts, counts_of(plan, plan->ep->rank),
                    (size_t)(experts + ranks) * sizeof *plan->counts);
    for (int to = 0; to < ranks; to++) {
        const int64_t there = rows_to(plan, to), rounds = (there + plan->bound - 1) / plan->bound;
        plan->rounds = rounds > plan->rounds ? rounds : plan->rounds;
        rows += there;
        for (int from = 0; from < ranks; from++) {
            unique += counts_of(plan, from)[experts + to];
        }
    }
    plan->once = ranks > 1 && plan->rounds == 1 && unique < rows;
}

/* Calls for each (expert of rank `to`, source) in order: how many of its rows fall into [low, high)
 * of the destination's order. */
struct window {
    int64_t low, high, at;
};

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
    struct window window = {.low = round * plan->bound, .high = (round + 1) * plan->bound};
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
    struct window window = {.low = round * plan->bound, .high = (round + 1) * plan->bound};
    plan->received = 0;
    for (int from = 0; from < ranks; from++) {
        plan->recv_rows[from] = 0;
    }
    for (int64_t i = 0; i < local * ranks; i++) {
        const int from = (int)(i % ranks);
        plan->taken[i] = overlap(&window, counts_of(plan, from)[first + i / ranks]);
        plan->recv_rows[from] += plan->taken[i];
        plan->received += plan->taken[i];
    }
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
        return;
    }
    for (int to = 0; to < ranks; to++) {
        plan_send(plan, to, round);
    }
    plan_receive(plan, round);
    plan_tokens(plan);
    plan->ops->upload(plan->device, plan->device_taken, plan->taken,
                      taken_count(plan) * sizeof *plan->taken);
    plan->ops->expert_regroup(plan->device, plan->regroup, plan->ungroup, plan->offset,
                              plan->device_taken, plan->local_experts, ranks);
}

/* Rows of one round stand in runs, one per destination, inside the send order: packed for the
 * exchange where there is more than one round, else already packed. */
static void copy_runs(const struct expert_plan *plan, char *packed, char *sent, size_t row,
                      bool pack)
{
    for (int to = 0; to < plan->ep->size; to++) {
        const size_t bytes = (size_t)plan->send_rows[to] * row;
        char *run = sent + (size_t)plan->send_begin[to] * row;
        plan->ops->copy(plan->device, pack ? packed : run, pack ? run : packed, bytes);
        packed += bytes;
    }
}

/* x[n[i]], i < rows, at `out`. */
static void gather(const struct expert_plan *plan, char *out, int64_t rows, struct tensor x,
                   const int32_t *n)
{
    plan->ops->gather_rows(plan->device, tensor_2d(out, x.dtype, rows, x.dim[1]), x, n);
}

/* Each token once to each rank, and fan from where its slots want it. */
static void exchange_tokens(struct expert_plan *plan, char *arrived, char *packed, struct tensor x)
{
    const int ranks = plan->ep->size;
    const size_t row = (size_t)x.dim[1] * dtype_bytes(x.dtype);
    const int64_t *begin = plan->device_taken + plan->experts;
    int32_t *place = (int32_t *)(void *)arrived; /* before the rows arrive there */
    int64_t rows = 0;
    assert(row >= sizeof *place);
    comm_device_all_to_all(plan->ep, place, plan->recv_rows, plan->place, plan->send_rows,
                           sizeof *place);
    plan->ops->expert_fan_out(plan->device, plan->fan, plan->ungroup, place, begin,
                              begin + ranks + 1, ranks, plan->received);
    for (int to = 0; to < ranks; to++) {
        rows += plan->send_tokens[to];
    }
    gather(plan, packed, rows, x, plan->unique_token);
    comm_device_all_to_all(plan->ep, arrived, plan->recv_tokens, packed, plan->send_tokens, row);
}

void expert_dispatch_tokens(struct expert_plan *plan, struct tensor rows, struct tensor x,
                            void *buffer)
{
    const size_t row = (size_t)x.dim[1] * dtype_bytes(x.dtype);
    char *arrived = buffer, *packed = arrived + (size_t)plan->bound * row, *next = packed;
    int64_t there = plan->received;
    assert(rows.dim[0] == plan->received);
    if (plan->once) {
        exchange_tokens(plan, arrived, packed, x);
        there = plan->taken[plan->experts + 2 * plan->ep->size + 1]; /* tokens of all sources */
    } else if (plan->rounds == 1) {
        gather(plan, packed, plan->sent, x, plan->token);
    } else {
        for (int to = 0; to < plan->ep->size; to++) {
            gather(plan, next, plan->send_rows[to], x, plan->token + plan->send_begin[to]);
            next += (size_t)plan->send_rows[to] * row;
        }
    }
    if (!plan->once) {
        comm_device_all_to_all(plan->ep, arrived, plan->recv_rows, packed, plan->send_rows, row);
    }
    plan->ops->gather_rows(plan->device, rows, tensor_2d(arrived, x.dtype, there, x.dim[1]),
                           plan->once ? plan->fan : plan->regroup);
}

void expert_dispatch(struct expert_plan *plan, struct tensor rows, struct tensor x, void *buffer)
{
    const size_t row = (size_t)x.dim[1] * dtype_bytes(x.dtype);
    char *arrived = buffer, *packed = arrived + (size_t)plan->bound * row;
    assert(rows.dim[0] == plan->received && x.dim[0] == plan->sent);
    if (plan->rounds > 1) {
        copy_runs(plan, packed, x.data, row, true);
    }
    comm_device_all_to_all(plan->ep, arrived, plan->recv_rows, plan->rounds > 1 ? packed : x.data,
                           plan->send_rows, row);
    plan->ops->gather_rows(plan->device, rows,
                           tensor_2d(arrived, x.dtype, plan->received, x.dim[1]), plan->regroup);
}

void expert_combine(struct expert_plan *plan, struct tensor x, struct tensor rows, void *buffer)
{
    const size_t row = (size_t)x.dim[1] * dtype_bytes(x.dtype);
    char *leaving = buffer, *packed = leaving + (size_t)plan->bound * row;
    assert(rows.dim[0] == plan->received && x.dim[0] == plan->sent);
    plan->ops->gather_rows(plan->device, tensor_2d(leaving, x.dtype, plan->received, x.dim[1]),
                           rows, plan->ungroup);
    comm_device_all_to_all(plan->ep, plan->rounds > 1 ? packed : x.data, plan->send_rows, leaving,
                           plan->recv_rows, row);
    if (plan->rounds > 1) {
        copy_runs(plan, packed, x.data, row, false);
    }
}
