#include "parallel/expert.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

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
    plan->counts = calloc(ranks * (size_t)experts, sizeof *plan->counts);
    plan->send_rows = calloc(ranks, sizeof *plan->send_rows);
    plan->recv_rows = calloc(ranks, sizeof *plan->recv_rows);
    plan->send_begin = calloc(ranks, sizeof *plan->send_begin);
    plan->bounds = calloc((size_t)experts + 1, sizeof *plan->bounds);
    plan->taken = calloc((size_t)experts, sizeof *plan->taken); /* E = local_experts * ep */
    const bool good = plan->counts != NULL && plan->send_rows != NULL && plan->recv_rows != NULL &&
                      plan->send_begin != NULL && plan->bounds != NULL && plan->taken != NULL;
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "out of memory for the dispatch plan of %lld slots",
                              (long long)slots);
}

void expert_plan_layout(struct expert_plan *plan, struct arena *arena)
{
    const size_t slots = (size_t)plan->slots, bound = (size_t)plan->bound,
                 experts = (size_t)plan->experts, local = (size_t)plan->local_experts;
    plan->token = arena_alloc(arena, slots * sizeof *plan->token);
    plan->slot_row = arena_alloc(arena, slots * sizeof *plan->slot_row);
    plan->sorted = arena_alloc(arena, (experts + 1) * sizeof *plan->sorted);
    if (plan->ep->size == 1) {
        plan->offset = plan->sorted;
        return;
    }
    plan->offset = arena_alloc(arena, (local + 1) * sizeof *plan->offset);
    plan->regroup = arena_alloc(arena, bound * sizeof *plan->regroup);
    plan->ungroup = arena_alloc(arena, bound * sizeof *plan->ungroup);
    plan->device_taken = arena_alloc(arena, experts * sizeof *plan->device_taken);
}

void expert_plan_free(struct expert_plan *plan)
{
    free(plan->counts);
    free(plan->send_rows);
    free(plan->recv_rows);
    free(plan->send_begin);
    free(plan->bounds);
    free(plan->taken);
    *plan = (struct expert_plan){0};
}

/* Rows that all ranks send to the experts of rank `to`. */
static int64_t rows_to(const struct expert_plan *plan, int to)
{
    int64_t rows = 0;
    for (int from = 0; from < plan->ep->size; from++) {
        for (int64_t e = to * plan->local_experts; e < (to + 1) * plan->local_experts; e++) {
            rows += plan->counts[from * plan->experts + e];
        }
    }
    return rows;
}

void expert_plan_expect(struct expert_plan *plan, int64_t slots)
{
    plan->rounds = 1;
    plan->sent = plan->received = slots;
}

void expert_plan_make(struct expert_plan *plan, const int32_t *expert, int64_t tokens,
                      int64_t top_k, bool drops)
{
    const int64_t slots = tokens * top_k, experts = plan->experts;
    int64_t *own = plan->counts + plan->ep->rank * experts;
    assert(slots <= plan->slots);
    plan->ops->expert_sort(plan->device, plan->sorted, plan->token, plan->slot_row, expert, slots,
                           top_k, experts);
    expert_plan_expect(plan, slots);
    if (plan->ep->size == 1 && !drops) {
        return;
    }
    plan->ops->download(plan->device, plan->bounds, plan->sorted,
                        (size_t)(experts + 1) * sizeof *plan->bounds);
    plan->sent = plan->bounds[experts];
    for (int64_t e = 0; e < experts; e++) {
        own[e] = plan->bounds[e + 1] - plan->bounds[e];
    }
    comm_all_gather(plan->ep, plan->counts, own, (size_t)experts * sizeof *own);
    for (int to = 0; to < plan->ep->size; to++) {
        const int64_t rounds = (rows_to(plan, to) + plan->bound - 1) / plan->bound;
        plan->rounds = rounds > plan->rounds ? rounds : plan->rounds;
    }
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
        before += plan->counts[plan->ep->rank * plan->experts + e];
    }
    for (int64_t e = to * plan->local_experts; e < (to + 1) * plan->local_experts; e++) {
        for (int from = 0; from < plan->ep->size; from++) {
            const int64_t count = plan->counts[from * plan->experts + e], start = window.at;
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
        const int64_t from = i % ranks;
        plan->taken[i] = overlap(&window, plan->counts[from * plan->experts + first + i / ranks]);
        plan->recv_rows[from] += plan->taken[i];
        plan->received += plan->taken[i];
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
    plan->ops->upload(plan->device, plan->device_taken, plan->taken,
                      (size_t)plan->experts * sizeof *plan->taken);
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
