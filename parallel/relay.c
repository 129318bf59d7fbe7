#include "parallel/relay.h"

#include <assert.h>
#include <stdlib.h>

/* Elements of relay->parts. */
static size_t parts_count(const struct nodes *nodes)
{
    return (size_t)(nodes->ranks * nodes->count + 2 * (nodes->count + 1));
}

void relay_init(struct relay_plan *relay, struct nodes *nodes, struct device *device,
                const struct ops *ops, int64_t slots, int64_t room)
{
    *relay = (struct relay_plan){0};
    if (nodes != NULL && nodes_apart(nodes)) {
        *relay = (struct relay_plan){
            .nodes = nodes, .device = device, .ops = ops, .slots = slots, .room = room};
    }
}

enum status relay_reserve(struct relay_plan *relay)
{
    const struct nodes *nodes = relay->nodes;
    if (!relay_there(relay)) {
        return STATUS_OK;
    }
    const size_t machines = (size_t)nodes->count, ranks = (size_t)nodes->ranks;
    relay->send = calloc(machines, sizeof *relay->send);
    relay->recv = calloc(machines, sizeof *relay->recv);
    relay->send_list = calloc(machines, sizeof *relay->send_list);
    relay->recv_list = calloc(machines, sizeof *relay->recv_list);
    relay->send_near = calloc(ranks, sizeof *relay->send_near);
    relay->recv_near = calloc(ranks, sizeof *relay->recv_near);
    relay->parts = calloc(parts_count(nodes), sizeof *relay->parts);
    const bool good = relay->send != NULL && relay->recv != NULL && relay->send_list != NULL &&
                      relay->recv_list != NULL && relay->send_near != NULL &&
                      relay->recv_near != NULL && relay->parts != NULL;
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE, "out of memory for dispatch by %d machines",
                              nodes->count);
}

void relay_layout(struct relay_plan *relay, struct arena *arena)
{
    if (!relay_there(relay)) {
        return;
    }
    const size_t slots = (size_t)relay->slots, room = (size_t)relay->room;
    relay->token = arena_alloc(arena, slots * sizeof *relay->token);
    relay->row = arena_alloc(arena, slots * sizeof *relay->row);
    relay->place = arena_alloc(arena, slots * sizeof *relay->place);
    relay->device_parts =
        arena_alloc(arena, parts_count(relay->nodes) * sizeof *relay->device_parts);
    relay->offset = arena_alloc(arena, ((size_t)relay->nodes->ranks + 1) * sizeof *relay->offset);
    relay->list = arena_alloc(arena, room * sizeof *relay->list);
    relay->regroup = arena_alloc(arena, room * sizeof *relay->regroup);
    relay->ungroup = arena_alloc(arena, room * sizeof *relay->ungroup);
    relay->pick = arena_alloc(arena, room * sizeof *relay->pick);
}

void relay_free(struct relay_plan *relay)
{
    free(relay->send);
    free(relay->recv);
    free(relay->send_list);
    free(relay->recv_list);
    free(relay->send_near);
    free(relay->recv_near);
    free(relay->parts);
    *relay = (struct relay_plan){0};
}

void relay_find(struct relay_plan *relay, const int32_t *expert, const int32_t *slot_row,
                const int64_t *begin, const int32_t *token, struct dispatch_shape shape)
{
    struct dispatch_shape machines = shape;
    machines.ranks = relay->nodes->count;
    relay->ops->expert_unique(relay->device, relay->begin, relay->token, relay->place, expert,
                              slot_row, machines);
    relay->ops->expert_relay(relay->device, relay->row, begin, token, relay->place, expert,
                             slot_row, shape);
}

/* ---- counts ---- */

static int group_size(const struct relay_plan *relay)
{
    return relay->nodes->count * relay->nodes->ranks;
}

/* Tokens of rank `from` for rank `to`. */
static int64_t for_rank(const struct relay_plan *relay, int from, int to)
{
    return relay->sees.line[from * relay->sees.stride + to];
}

static int64_t for_machine(const struct relay_plan *relay, int from, int machine)
{
    return for_rank(relay, from, group_size(relay) + machine);
}

/* Of rank `from`, for all ranks of the machine. */
static int64_t for_its_ranks(const struct relay_plan *relay, int from, int machine)
{
    const int ranks = relay->nodes->ranks;
    int64_t rows = 0;
    for (int to = machine * ranks; to < (machine + 1) * ranks; to++) {
        rows += for_rank(relay, from, to);
    }
    return rows;
}

bool relay_fits(const struct relay_plan *relay)
{
    const int ranks = relay->nodes->ranks;
    for (int by = 0; by < group_size(relay); by++) {
        int64_t came = 0, goes = 0;
        for (int m = 0; m < relay->nodes->count; m++) {
            came += for_machine(relay, m * ranks + by % ranks, by / ranks);
            goes += for_its_ranks(relay, m * ranks + by % ranks, by / ranks);
        }
        if (came > relay->room || goes > relay->room) {
            return false;
        }
    }
    return true;
}

int64_t relay_far(const struct relay_plan *relay, bool by_rank)
{
    int64_t rows = 0;
    for (int from = 0; from < group_size(relay); from++) {
        for (int m = 0; m < relay->nodes->count; m++) {
            if (m != from / relay->nodes->ranks) {
                rows += by_rank ? for_its_ranks(relay, from, m) : for_machine(relay, from, m);
            }
        }
    }
    return rows;
}

/* Of every machine: this rank's rows and numbers for it, and those from its rank of the same
 * place. */
static void count_across(struct relay_plan *relay)
{
    const struct nodes *nodes = relay->nodes;
    const int machine = nodes->across.rank, place = nodes->within.rank,
              me = machine * nodes->ranks + place;
    int64_t *numbers = relay->parts + nodes->ranks * nodes->count,
            *rows = numbers + nodes->count + 1;
    for (int m = 0; m < nodes->count; m++) {
        const int other = m * nodes->ranks + place;
        relay->send[m] = for_machine(relay, me, m);
        relay->send_list[m] = for_its_ranks(relay, me, m);
        relay->recv[m] = for_machine(relay, other, machine);
        relay->recv_list[m] = for_its_ranks(relay, other, machine);
        numbers[m + 1] = numbers[m] + relay->recv_list[m];
        rows[m + 1] = rows[m] + relay->recv[m];
    }
}

/* Of every rank of this machine: rows for it, by the machine they come from, and those from it. */
static void count_within(struct relay_plan *relay)
{
    const struct nodes *nodes = relay->nodes;
    const int first = nodes->across.rank * nodes->ranks, place = nodes->within.rank;
    for (int j = 0; j < nodes->ranks; j++) {
        relay->send_near[j] = relay->recv_near[j] = 0;
        for (int m = 0; m < nodes->count; m++) {
            const int64_t rows = for_rank(relay, m * nodes->ranks + place, first + j);
            relay->parts[j * nodes->count + m] = rows;
            relay->send_near[j] += rows;
            relay->recv_near[j] += for_rank(relay, m * nodes->ranks + j, first + place);
        }
    }
}

/* ---- the way ---- */

void relay_route(struct relay_plan *relay)
{
    struct nodes *nodes = relay->nodes;
    const int64_t *numbers = relay->device_parts + nodes->ranks * nodes->count;
    count_across(relay);
    count_within(relay);
    const int64_t rows = relay->parts[nodes->ranks * nodes->count + nodes->count];
    assert(rows <= relay->room);
    comm_device_all_to_all(&nodes->across, relay->list, relay->recv_list, relay->row,
                           relay->send_list, sizeof *relay->list);
    relay->ops->upload(relay->device, relay->device_parts, relay->parts,
                       parts_count(nodes) * sizeof *relay->parts);
    /* From (machine, rank) order to (rank, machine) order. */
    relay->ops->expert_regroup(relay->device, relay->regroup, relay->ungroup, relay->offset,
                               relay->device_parts, nodes->ranks, nodes->count);
    relay->ops->expert_fan_out(relay->device, relay->pick, relay->ungroup, relay->list, numbers,
                               numbers + nodes->count + 1, nodes->count, rows);
}

void relay_start(struct relay_plan *relay, void *arrived, void *sending, int64_t row_bytes)
{
    assert(relay->arrived == NULL && row_bytes % 2 == 0);
    relay->arrived = arrived;
    relay->sending = sending;
    relay->row_bytes = row_bytes;
    comm_device_all_to_all_start(&relay->nodes->across, arrived, relay->recv, sending, relay->send,
                                 (size_t)row_bytes);
}

void relay_finish(struct relay_plan *relay)
{
    const int machines = relay->nodes->count, ranks = relay->nodes->ranks;
    const int64_t *numbers = relay->parts + ranks * machines, *rows = numbers + machines + 1,
                  halves = relay->row_bytes / 2; /* moved as if of two bytes */
    relay->ops->gather_rows(
        relay->device, tensor_2d(relay->sending, DTYPE_BF16, numbers[machines], halves),
        tensor_2d(relay->arrived, DTYPE_BF16, rows[machines], halves), relay->pick);
    comm_device_all_to_all(&relay->nodes->within, relay->arrived, relay->recv_near, relay->sending,
                           relay->send_near, (size_t)relay->row_bytes);
    relay->arrived = NULL;
}
