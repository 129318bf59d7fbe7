#include "parallel/expert.h"

#include <assert.h>

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

/* Each token once to each rank, or machine, and fan from where its slots want it. */
static void find_fan(struct expert_plan *plan)
{
    const int ranks = plan->ep->size;
    const int64_t *begin = plan->device_taken + plan->experts;
    comm_device_all_to_all(plan->ep, plan->arrived, plan->recv_rows, plan->place, plan->send_rows,
                           sizeof *plan->place);
    plan->ops->expert_fan_out(plan->device, plan->fan, plan->ungroup, plan->arrived, begin,
                              begin + ranks + 1, ranks, plan->received);
    if (plan->relayed) {
        relay_route(&plan->relay);
    }
}

struct expert_route expert_route_again(const struct expert_plan *plan)
{
    const int ranks = plan->ep->size;
    const struct relay_plan *relay = &plan->relay;
    assert(plan->once && !plan->padded);
    if (plan->relayed) {
        return (struct expert_route){.pick = relay->token,
                                     .sent = sum(relay->send, relay->nodes->count),
                                     .place = plan->fan,
                                     .arrived = sum(plan->recv_tokens, ranks),
                                     .send_rows = relay->send,
                                     .recv_rows = relay->recv,
                                     .relayed = true};
    }
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
        find_fan(plan);
        return expert_route_again(plan);
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

void expert_carry_numbers(struct expert_plan *plan, float *rows, float *arrived, const float *sent)
{
    assert(!plan->padded && plan->rounds == 1);
    comm_device_all_to_all(plan->ep, arrived, plan->recv_rows, sent, plan->send_rows, sizeof *sent);
    plan->ops->gather_rows(plan->device, tensor_2d(rows, DTYPE_F32, plan->received, 1),
                           tensor_2d(arrived, DTYPE_F32, plan->received, 1), plan->regroup);
}

/* ---- there and back ---- */

/* Who carries what is under way. */
static struct comm *carrier(const struct expert_plan *plan)
{
    return relay_under_way(&plan->relay) ? &plan->relay.nodes->across : plan->ep;
}

static void started(struct expert_plan *plan)
{
    if (plan->beside) {
        plan->mark = comm_device_mark(carrier(plan));
    }
}

static void arrive(struct expert_plan *plan)
{
    if (plan->beside) {
        comm_device_wait(carrier(plan), &plan->mark);
    } else {
        comm_device_finish(carrier(plan));
    }
}

void expert_exchange_start(struct expert_plan *plan, const struct expert_route *route,
                           void *arrived, void *sending, int64_t row_bytes)
{
    if (route->relayed) {
        relay_start(&plan->relay, arrived, sending, row_bytes);
    } else if (plan->padded) {
        comm_device_all_to_all_fixed_start(plan->ep, arrived, sending, route->pair_rows,
                                           (size_t)row_bytes);
    } else {
        comm_device_all_to_all_start(plan->ep, arrived, route->recv_rows, sending, route->send_rows,
                                     (size_t)row_bytes);
    }
    started(plan);
}

void expert_exchange_finish(struct expert_plan *plan)
{
    arrive(plan);
    if (relay_under_way(&plan->relay)) {
        relay_finish(&plan->relay);
    }
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
    started(plan);
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
