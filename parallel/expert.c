#include "parallel/expert.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum status expert_plan_init(struct expert_plan *plan, struct comm *ep, int64_t slots,
                             int64_t experts, double buffer_factor)
{
    const int64_t most = slots * ep->size, wanted = (int64_t)ceil(buffer_factor * (double)slots);
    const size_t ranks = (size_t)ep->size;
    *plan = (struct expert_plan){.ep = ep,
                                 .slots = slots,
                                 .experts = experts,
                                 .local_experts = experts / ep->size,
                                 .bound = ep->size == 1   ? slots
                                          : wanted < most ? wanted
                                                          : most};
    plan->counts = calloc(ranks * (size_t)experts, sizeof *plan->counts);
    plan->send_slot = calloc((size_t)slots, sizeof *plan->send_slot);
    plan->slot_row = calloc((size_t)slots, sizeof *plan->slot_row);
    plan->send_rows = calloc(ranks, sizeof *plan->send_rows);
    plan->recv_rows = calloc(ranks, sizeof *plan->recv_rows);
    plan->send_begin = calloc(ranks, sizeof *plan->send_begin);
    plan->offset = calloc((size_t)plan->local_experts + 1, sizeof *plan->offset);
    plan->regroup = calloc((size_t)plan->bound, sizeof *plan->regroup);
    plan->ungroup = calloc((size_t)plan->bound, sizeof *plan->ungroup);
    plan->next = calloc((size_t)experts, sizeof *plan->next);
    plan->taken = calloc((size_t)experts, sizeof *plan->taken); /* E = local_experts * ep */
    plan->arrival = calloc(ranks, sizeof *plan->arrival);
    const bool good = plan->counts != NULL && plan->send_slot != NULL && plan->slot_row != NULL &&
                      plan->send_rows != NULL && plan->recv_rows != NULL &&
                      plan->send_begin != NULL && plan->offset != NULL && plan->regroup != NULL &&
                      plan->ungroup != NULL && plan->next != NULL && plan->taken != NULL &&
                      plan->arrival != NULL;
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "out of memory for the dispatch plan of %lld slots",
                              (long long)slots);
}

void expert_plan_free(struct expert_plan *plan)
{
    free(plan->counts);
    free(plan->send_slot);
    free(plan->slot_row);
    free(plan->send_rows);
    free(plan->recv_rows);
    free(plan->send_begin);
    free(plan->offset);
    free(plan->regroup);
    free(plan->ungroup);
    free(plan->next);
    free(plan->taken);
    free(plan->arrival);
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

void expert_plan_make(struct expert_plan *plan, const int32_t *expert, int64_t tokens,
                      int64_t top_k)
{
    const int64_t slots = tokens * top_k, experts = plan->experts;
    int64_t *own = plan->counts + plan->ep->rank * experts;
    int64_t *next = plan->next;
    assert(slots <= plan->slots);
    memset(own, 0, (size_t)experts * sizeof *own);
    for (int64_t slot = 0; slot < slots; slot++) {
        if (expert[slot] >= 0) {
            own[expert[slot]]++;
        }
    }
    plan->sent = 0;
    for (int64_t e = 0; e < experts; e++) {
        next[e] = plan->sent;
        plan->sent += own[e];
    }
    for (int64_t slot = 0; slot < slots;
         slot++) { /* slots ascend, so rows of an expert stand in token order */
        plan->slot_row[slot] = -1;
        if (expert[slot] >= 0) {
            const int64_t row = next[expert[slot]]++;
            plan->send_slot[row] = (int32_t)slot;
            plan->slot_row[slot] = (int32_t)row;
        }
    }
    comm_all_gather(plan->ep, plan->counts, own, (size_t)experts * sizeof *own);
    plan->rounds = 1;
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

void expert_plan_round(struct expert_plan *plan, int64_t round)
{
    const int ranks = plan->ep->size, me = plan->ep->rank;
    const int64_t local = plan->local_experts;
    struct window window = {.low = round * plan->bound, .high = (round + 1) * plan->bound};
    int64_t *taken = plan->taken, *arrival = plan->arrival;
    int64_t row = 0, first = 0;
    assert(round < plan->rounds);
    for (int to = 0; to < ranks; to++) {
        plan_send(plan, to, round);
        plan->recv_rows[to] = 0;
    }
    for (int64_t e = 0; e < local; e++) {
        plan->offset[e] = row;
        for (int from = 0; from < ranks; from++) {
            taken[e * ranks + from] =
                overlap(&window, plan->counts[from * plan->experts + me * local + e]);
            plan->recv_rows[from] += taken[e * ranks + from];
            row += taken[e * ranks + from];
        }
    }
    plan->offset[local] = plan->received = row;
    for (int from = 0; from < ranks; from++) {
        arrival[from] = first;
        first += plan->recv_rows[from];
    }
    row = 0;
    for (int64_t i = 0; i < local * ranks; i++) {
        for (int64_t j = 0; j < taken[i]; j++, row++) {
            const int64_t from = arrival[i % ranks]++;
            plan->regroup[row] = (int32_t)from;
            plan->ungroup[from] = (int32_t)row;
        }
    }
}

/* Rows of one round stand in runs, one per destination, inside the send order: packed for the
 * exchange where there is more than one round, else already packed. */
static void copy_runs(const struct expert_plan *plan, char *packed, char *sent, size_t row,
                      bool pack)
{
    for (int to = 0; to < plan->ep->size; to++) {
        const size_t bytes = (size_t)plan->send_rows[to] * row;
        char *run = sent + (size_t)plan->send_begin[to] * row;
        memcpy(pack ? packed : run, pack ? run : packed, bytes);
        packed += bytes;
    }
}

void expert_dispatch(struct expert_plan *plan, struct device *device, const struct ops *ops,
                     struct tensor rows, struct tensor x, void *buffer)
{
    const size_t row = (size_t)x.dim[1] * dtype_bytes(x.dtype);
    char *arrived = buffer, *packed = arrived + (size_t)plan->bound * row;
    assert(rows.dim[0] == plan->received && x.dim[0] == plan->sent);
    if (plan->rounds > 1) {
        copy_runs(plan, packed, x.data, row, true);
    }
    comm_all_to_all(plan->ep, arrived, plan->recv_rows, plan->rounds > 1 ? packed : x.data,
                    plan->send_rows, row);
    ops->gather_rows(device, rows, tensor_2d(arrived, x.dtype, plan->received, x.dim[1]),
                     plan->regroup);
}

void expert_combine(struct expert_plan *plan, struct device *device, const struct ops *ops,
                    struct tensor x, struct tensor rows, void *buffer)
{
    const size_t row = (size_t)x.dim[1] * dtype_bytes(x.dtype);
    char *leaving = buffer, *packed = leaving + (size_t)plan->bound * row;
    assert(rows.dim[0] == plan->received && x.dim[0] == plan->sent);
    ops->gather_rows(device, tensor_2d(leaving, x.dtype, plan->received, x.dim[1]), rows,
                     plan->ungroup);
    comm_all_to_all(plan->ep, plan->rounds > 1 ? packed : x.data, plan->send_rows, leaving,
                    plan->recv_rows, row);
    if (plan->rounds > 1) {
        copy_runs(plan, packed, x.data, row, false);
    }
}

static int by_falling_weight(const void *a, const void *b)
{
    const struct expert_ranked *x = a, *y = b;
    if (x->weight != y->weight) {
        return x->weight < y->weight ? 1 : -1;
    }
    return (x->slot > y->slot) - (x->slot < y->slot);
}

int64_t expert_drop(int32_t *expert, struct expert_ranked *scratch, const float *weight,
                    int64_t tokens, int64_t top_k, int64_t experts, int64_t groups,
                    int64_t capacity)
{
    const int64_t size = experts / groups;
    struct expert_ranked *list = scratch;
    int64_t dropped = 0;
    for (int64_t group = 0; group < groups; group++) {
        int64_t count = 0;
        for (int64_t slot = 0; slot < tokens * top_k; slot++) {
            if (expert[slot] >= 0 && expert[slot] / size == group) {
                list[count++] = (struct expert_ranked){.weight = weight[slot], .slot = slot};
            }
        }
        if (count > capacity) {
            qsort(list, (size_t)count, sizeof *list, by_falling_weight);
        }
        for (int64_t i = capacity; i < count; i++) {
            expert[list[i].slot] = -1;
            dropped++;
        }
    }
    return dropped;
}
