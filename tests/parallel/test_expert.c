/* expert: every row says where it comes from, so arrival order, rounds and the way back are
 * compared with ==. */
#include "kernels/base/rng.h"
#include "kernels/device.h"
#include "parallel/expert.h"
#include "parallel/mesh.h"
#include "parallel/ranks.h"

enum { MOST_RANKS = 4, MOST_SLOTS = 120, COLUMNS = 3 };
enum { PADDED = -1 }; /* in place of a buffer factor */

enum pattern { SPREAD, DROPPED, ONE_EXPERT, OWN_EXPERTS, FIRST_EMPTY, ALL_EMPTY, ALL_DROPPED };
enum { PATTERNS = ALL_DROPPED + 1 };

/* One assignment of slots to experts on every rank of an ep group, known to all. */
struct layout {
    int64_t experts, top_k, slots;
    int ep;
    int64_t tokens[MOST_RANKS];
    int32_t expert[MOST_RANKS][MOST_SLOTS];
};

static int32_t draw(uint64_t key, int64_t index, int64_t below)
{
    uint32_t bits[4];
    rng_bits(key, (uint64_t)index, bits);
    return (int32_t)(bits[0] % (uint64_t)below);
}

static void lay_out(struct layout *layout, enum pattern pattern, int ep, int64_t experts,
                    int64_t top_k)
{
    const int64_t local = experts / ep;
    *layout = (struct layout){.experts = experts, .top_k = top_k, .slots = MOST_SLOTS, .ep = ep};
    for (int r = 0; r < ep; r++) {
        const uint64_t key = (uint64_t)(1000 * (int64_t)pattern + 10 * r + experts);
        const bool empty = pattern == ALL_EMPTY || (pattern == FIRST_EMPTY && r == 0);
        layout->tokens[r] = empty                   ? 0
                            : pattern == ONE_EXPERT ? MOST_SLOTS / top_k
                                                    : MOST_SLOTS / top_k - 7 * r;
        for (int64_t slot = 0; slot < layout->tokens[r] * top_k; slot++) {
            int32_t e = draw(key, slot, experts);
            e = pattern == ONE_EXPERT ? (int32_t)experts - 1 : e;
            e = pattern == OWN_EXPERTS ? (int32_t)(r * local) + draw(key, slot, local) : e;
            e = pattern == DROPPED && draw(key + 1, slot, 3) == 0 ? -1 : e;
            layout->expert[r][slot] = pattern == ALL_DROPPED ? -1 : e;
        }
    }
}

static void put(struct tensor *tensor, int64_t row, int64_t column, int64_t number)
{
    if (tensor->dtype == DTYPE_F32) {
        ((float *)tensor->data)[row * COLUMNS + column] = (float)number;
    } else {
        ((uint16_t *)tensor->data)[row * COLUMNS + column] = bf16_from_float((float)number);
    }
}

static int64_t get(const struct tensor *tensor, int64_t row, int64_t column)
{
    const int64_t at = row * COLUMNS + column;
    return (int64_t)(tensor->dtype == DTYPE_F32
                         ? ((const float *)tensor->data)[at]
                         : bf16_to_float(((const uint16_t *)tensor->data)[at]));
}

static struct tensor make(struct comm *world, enum dtype dtype, int64_t rows)
{
    return tensor_2d(ranks_memory(world, (size_t)(rows * COLUMNS) * dtype_bytes(dtype)), dtype,
                     rows, COLUMNS);
}

/* The rows that rank `me` must receive over all rounds: (expert, source, slot). */
struct arrivals {
    int64_t count;
    int32_t expert[MOST_RANKS * MOST_SLOTS], source[MOST_RANKS * MOST_SLOTS],
        slot[MOST_RANKS * MOST_SLOTS];
};

static void expect_arrivals(struct arrivals *arrivals, const struct layout *layout, int me)
{
    const int64_t local = layout->experts / layout->ep;
    arrivals->count = 0;
    for (int64_t e = me * local; e < (me + 1) * local; e++) {
        for (int source = 0; source < layout->ep; source++) {
            for (int64_t slot = 0; slot < layout->tokens[source] * layout->top_k; slot++) {
                if (layout->expert[source][slot] == e) {
                    const int64_t at = arrivals->count++;
                    arrivals->expert[at] = (int32_t)e;
                    arrivals->source[at] = source;
                    arrivals->slot[at] = (int32_t)slot;
                }
            }
        }
    }
}

/* send_slot[row]: the slot of each row that is sent. */
static void check_send_order(struct comm *world, const struct expert_plan *plan,
                             const struct layout *layout, int32_t *send_slot)
{
    const int me = plan->ep->rank;
    int64_t kept = 0;
    for (int64_t slot = 0; slot < layout->tokens[me] * layout->top_k; slot++) {
        const int32_t row = plan->slot_row[slot];
        CHECK_EQUAL(world, row < 0, layout->expert[me][slot] < 0);
        kept += row >= 0;
        if (row >= 0) {
            CHECK(world, row < plan->sent);
            CHECK_EQUAL(world, plan->token[row], slot / layout->top_k);
            send_slot[row] = (int32_t)slot;
        }
    }
    CHECK_EQUAL(world, plan->sorted[layout->experts], kept);
    CHECK_EQUAL(world, plan->sent, plan->padded ? layout->tokens[me] * layout->top_k : kept);
    for (int64_t row = kept; row < plan->sent; row++) {
        CHECK_EQUAL(world, plan->token[row], -1);
    }
    for (int64_t row = 1; row < kept; row++) {
        const int32_t a = send_slot[row - 1], b = send_slot[row];
        const int32_t ea = layout->expert[me][a], eb = layout->expert[me][b];
        CHECK(world, ea < eb || (ea == eb && a < b));
    }
}

/* Slots of a rank that are not dropped. */
static int64_t kept_slots(const struct layout *layout, int rank)
{
    int64_t kept = 0;
    for (int64_t slot = 0; slot < layout->tokens[rank] * layout->top_k; slot++) {
        kept += layout->expert[rank][slot] >= 0;
    }
    return kept;
}

/* Where the run of arrivals of one expert from one source that begins at `at` ends. */
static int64_t pair_end(const struct arrivals *arrivals, int64_t at)
{
    int64_t end = at;
    while (end < arrivals->count && arrivals->expert[end] == arrivals->expert[at] &&
           arrivals->source[end] == arrivals->source[at]) {
        end++;
    }
    return end;
}

/* As many pairs as fit whole. */
static int64_t whole_rounds(const struct arrivals *arrivals, int64_t bound)
{
    int64_t rounds = 0, end = 0;
    for (int64_t at = 0; at < arrivals->count; rounds++) {
        for (end = at; end < arrivals->count && pair_end(arrivals, end) - at <= bound;) {
            end = pair_end(arrivals, end);
        }
        at = end;
    }
    return rounds;
}

static int64_t expected_rounds(const struct layout *layout, int64_t bound, bool by_source)
{
    int64_t rounds = 1;
    for (int to = 0; to < layout->ep; to++) {
        struct arrivals arrivals;
        expect_arrivals(&arrivals, layout, to);
        const int64_t needed =
            by_source ? whole_rounds(&arrivals, bound) : (arrivals.count + bound - 1) / bound;
        rounds = needed > rounds ? needed : rounds;
    }
    return rounds;
}

/* The round's rows from arrivals[next] on, pair by pair, none of which goes on in the next round.
 */
static void check_sources(struct comm *world, const struct expert_plan *plan,
                          const struct arrivals *arrivals, int64_t next)
{
    const int64_t sources = plan->ep->size, first = plan->ep->rank * plan->local_experts;
    CHECK_EQUAL(world, plan->source_offset[0], 0);
    for (int64_t g = 0; g < plan->local_experts * sources; g++) {
        const int64_t rows = plan->source_offset[g + 1] - plan->source_offset[g];
        if (rows > 0) {
            CHECK_EQUAL(world, arrivals->expert[next], first + g / sources);
            CHECK_EQUAL(world, arrivals->source[next], g % sources);
            CHECK_EQUAL(world, pair_end(arrivals, next), next + rows);
            next += rows;
        }
    }
    CHECK_EQUAL(world, plan->source_offset[plan->local_experts * sources],
                plan->offset[plan->local_experts]);
}

/* One round there and back: what arrives continues at arrivals[*next]; what comes back changes this
 * round's rows of y and no others. */
static void check_round(struct comm *world, struct expert_plan *plan, struct tensor x,
                        struct tensor y, const struct arrivals *arrivals, int64_t *next,
                        void *buffer)
{
    const int64_t local = plan->local_experts, first = plan->ep->rank * local;
    int64_t leaving = 0, changed = 0;
    const int64_t real = plan->offset[local], kept = plan->sorted[plan->experts];
    CHECK(world, plan->received <= plan->bound);
    CHECK_EQUAL(world, plan->received, plan->padded ? plan->bound : real);
    struct tensor rows = make(world, x.dtype, plan->received);
    if (plan->ep->size == 1) { /* send order is expert order */
        memcpy(rows.data, x.data, tensor_bytes(&rows));
    } else {
        const struct expert_route route = expert_route_slots(plan);
        expert_dispatch_start(plan, &route, x, buffer);
        expert_dispatch_finish(plan, &route, rows, buffer);
    }
    for (int64_t e = 0; e < local; e++) {
        for (int64_t i = plan->offset[e]; i < plan->offset[e + 1]; i++, ++*next) {
            CHECK(world, *next < arrivals->count);
            CHECK_EQUAL(world, arrivals->expert[*next], first + e);
            CHECK_EQUAL(world, get(&rows, i, 0), arrivals->source[*next]);
            CHECK_EQUAL(world, get(&rows, i, 1), arrivals->slot[*next]);
            CHECK_EQUAL(world, get(&rows, i, 2), 7);
            put(&rows, i, 2, first + e + 100); /* the expert's answer */
        }
    }
    for (int r = 0; r < plan->ep->size; r++) {
        leaving += plan->ep->size == 1 || plan->padded ? 0 : plan->send_rows[r];
    }
    leaving = plan->ep->size == 1 || plan->padded ? kept : leaving;
    for (int64_t i = 0; i < kept; i++) {
        put(&y, i, 0, -1);
    }
    if (plan->ep->size == 1) {
        memcpy(y.data, rows.data, tensor_bytes(&rows));
    } else {
        expert_combine_start(plan, y, rows, buffer);
        expert_combine_finish(plan, y, buffer);
    }
    for (int64_t i = 0; i < kept; i++) {
        changed += get(&y, i, 0) != -1;
    }
    CHECK_EQUAL(world, changed, leaving);
    free(rows.data);
}

/* Counts the rows of row_bytes that this rank hands to an exchange, itself included. */
static struct {
    const struct comm_table *real;
    size_t row_bytes;
    int64_t rows, numbers; /* of row_bytes; of an int32 */
} travel;

static void count_rows(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes, struct comm_rows *rows)
{
    for (int to = 0; to < comm->size; to++) {
        travel.rows += row_bytes == travel.row_bytes ? send_rows[to] : 0;
        travel.numbers += row_bytes == sizeof(int32_t) ? send_rows[to] : 0;
    }
    travel.real->rows_start(comm, recv, recv_rows, send, send_rows, row_bytes, rows);
}

/* Pairs (token, destination) of `from`, the least rows that can travel. */
static int64_t tokens_leaving(const struct layout *layout, int from)
{
    const int64_t local = layout->experts / layout->ep;
    int64_t pairs = 0;
    for (int64_t n = 0; n < layout->tokens[from]; n++) {
        for (int to = 0; to < layout->ep; to++) {
            bool there = false;
            for (int64_t slot = n * layout->top_k; slot < (n + 1) * layout->top_k; slot++) {
                const int32_t e = layout->expert[from][slot];
                there = there || (e >= 0 && e / local == to);
            }
            pairs += there;
        }
    }
    return pairs;
}

/* Where one round does and a token of any rank has two slots on one rank, tokens travel once. */
static bool expect_once(const struct layout *layout, const struct expert_plan *plan)
{
    int64_t pairs = 0, slots = 0;
    for (int from = 0; from < layout->ep; from++) {
        pairs += tokens_leaving(layout, from);
        for (int64_t slot = 0; slot < layout->tokens[from] * layout->top_k; slot++) {
            slots += layout->expert[from][slot] >= 0;
        }
    }
    return layout->ep > 1 && (plan->padded || (plan->rounds == 1 && pairs < slots));
}

/* One round of tokens: what arrives continues at arrivals[*next]. x [tokens] says source and token.
 */
static void check_tokens(struct comm *world, struct expert_plan *plan, struct tensor x,
                         const struct layout *layout, const struct arrivals *arrivals,
                         int64_t *next, void *buffer)
{
    struct tensor rows = make(world, x.dtype, plan->received);
    const struct expert_route route = expert_route_tokens(plan);
    expert_dispatch_start(plan, &route, x, buffer);
    expert_dispatch_finish(plan, &route, rows, buffer);
    for (int64_t i = 0; i < plan->offset[plan->local_experts]; i++, ++*next) {
        CHECK(world, *next < arrivals->count);
        CHECK_EQUAL(world, get(&rows, i, 0), arrivals->source[*next]);
        CHECK_EQUAL(world, get(&rows, i, 1), arrivals->slot[*next] / layout->top_k);
        CHECK_EQUAL(world, get(&rows, i, 2), 7);
    }
    free(rows.data);
}

/* All rounds of tokens, and how many rows and numbers that takes. */
static void check_token_dispatch(struct comm *world, struct expert_plan *plan,
                                 const struct layout *layout, const struct arrivals *arrivals,
                                 enum dtype dtype, void *buffer)
{
    const int me = plan->ep->rank;
    struct comm_table table = *plan->ep->table;
    struct tensor x = make(world, dtype, layout->tokens[me]);
    int64_t next = 0;
    for (int64_t n = 0; n < layout->tokens[me]; n++) {
        put(&x, n, 0, me);
        put(&x, n, 1, n);
        put(&x, n, 2, 7);
    }
    travel.real = plan->ep->table;
    travel.row_bytes = COLUMNS * dtype_bytes(dtype);
    travel.rows = travel.numbers = 0;
    table.rows_start = count_rows;
    plan->ep->table = &table;
    for (int64_t round = 0; round < plan->rounds; round++) {
        expert_plan_round(plan, round);
        check_tokens(world, plan, x, layout, arrivals, &next, buffer);
    }
    plan->ep->table = travel.real;
    CHECK_EQUAL(world, next, arrivals->count);
    CHECK_EQUAL(world, plan->once, expect_once(layout, plan));
    if (plan->padded) {
        CHECK_EQUAL(world, travel.rows, layout->ep * (layout->slots / layout->top_k));
    } else {
        CHECK_EQUAL(world, travel.rows, plan->once ? tokens_leaving(layout, me) : plan->sent);
        CHECK_EQUAL(world, travel.numbers, plan->once ? plan->sent : 0);
    }
    free(x.data);
}

static struct device *open_device(struct comm *world)
{
    struct device *device = NULL;
    const struct device_options options = {.name = "cpu", .threads = 1};
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    return device;
}

static void open_plan(struct comm *world, struct expert_plan *plan, struct arena *arena,
                      struct comm *ep, struct device *device, const struct layout *layout,
                      double factor, bool by_source)
{
    const struct ops *ops = device_ops(device);
    *arena = (struct arena){.source = {device, ops->memory_alloc, ops->memory_free}};
    expert_plan_init(plan, ep, device, ops,
                     &(struct expert_sizes){.tokens = layout->slots / layout->top_k,
                                            .top_k = layout->top_k,
                                            .experts = layout->experts,
                                            .slices = 1,
                                            .padded = factor == PADDED,
                                            .buffer_factor = factor,
                                            .by_source = by_source});
    CHECK_EQUAL(world, expert_plan_reserve(plan), STATUS_OK);
    expert_plan_layout(plan, arena);
    CHECK_EQUAL(world, arena_reserve(arena, "the plan"), STATUS_OK);
    expert_plan_layout(plan, arena);
}

static void check_plan(struct comm *world, struct comm *ep, struct device *device,
                       const struct layout *layout, double factor, bool by_source, enum dtype dtype)
{
    static struct arrivals arrivals;
    static int32_t send_slot[MOST_SLOTS];
    struct expert_plan plan;
    struct arena arena;
    const int me = ep->rank;
    int64_t next = 0;
    open_plan(world, &plan, &arena, ep, device, layout, factor, by_source);
    const int64_t kept = kept_slots(layout, me);
    CHECK_EQUAL(world, plan.padded, factor == PADDED && ep->size > 1);
    CHECK(world, plan.bound >= layout->slots && plan.bound <= layout->slots * ep->size);
    expert_plan_make(&plan, layout->expert[me], layout->tokens[me], layout->top_k, !plan.padded);
    CHECK_EQUAL(world, plan.rounds, expected_rounds(layout, plan.bound, by_source));
    check_send_order(world, &plan, layout, send_slot);
    struct tensor x = make(world, dtype, plan.sent), y = make(world, dtype, plan.sent),
                  all = make(world, dtype, plan.sent);
    void *buffer = make(world, dtype, plan.bound + plan.sending).data;
    for (int64_t i = 0; i < kept; i++) {
        put(&x, i, 0, me);
        put(&x, i, 1, send_slot[i]);
        put(&x, i, 2, 7);
    }
    expect_arrivals(&arrivals, layout, me);
    if (ep->size > 1) {
        check_token_dispatch(world, &plan, layout, &arrivals, dtype, buffer);
    }
    for (int64_t round = 0; round < plan.rounds; round++) {
        expert_plan_round(&plan, round);
        if (plan.by_source) {
            check_sources(world, &plan, &arrivals, next);
        }
        check_round(world, &plan, x, y, &arrivals, &next, buffer);
        for (int64_t i = 0; i < kept; i++) { /* gathers what each round brought back */
            for (int64_t c = 0; c < COLUMNS && get(&y, i, 0) != -1; c++) {
                put(&all, i, c, get(&y, i, c));
            }
        }
    }
    CHECK_EQUAL(world, next, arrivals.count);
    for (int64_t i = 0; i < kept; i++) {
        CHECK_EQUAL(world, get(&all, i, 0), me);
        CHECK_EQUAL(world, get(&all, i, 1), send_slot[i]);
        CHECK_EQUAL(world, get(&all, i, 2), layout->expert[me][send_slot[i]] + 100);
    }
    free(x.data);
    free(y.data);
    free(all.data);
    free(buffer);
    expert_plan_free(&plan);
    expert_plan_free(&plan);
    arena_free(&arena);
}

static void test_there_and_back(struct comm *world)
{
    static const double factors[] = {1, 1.3, 2, 1000, PADDED};
    static struct layout layout;
    struct device *device = open_device(world);
    for (int ep = 1; ep <= world->size; ep++) {
        const struct mesh_shape shape = mesh_shape_of(1, ep);
        struct mesh mesh;
        if (world->size % ep != 0) {
            continue;
        }
        CHECK_EQUAL(world, mesh_init(&mesh, world, &shape, 6 * ep), STATUS_OK);
        for (int pattern = 0; pattern < PATTERNS; pattern++) {
            for (int64_t k = 1; k <= 3; k++) {
                lay_out(&layout, (enum pattern)pattern, ep, 2 * k * ep, k);
                for (int f = 0; f < 10; f++) {
                    check_plan(world, &mesh.ep, device, &layout, factors[f % 5], f >= 5,
                               (f + k) % 2 == 0 ? DTYPE_F32 : DTYPE_BF16);
                }
            }
        }
        mesh_free(&mesh);
    }
    device_close(device);
}

/* One expert takes all: with the smallest buffer, as many rounds as ranks, never more memory. */
static void test_imbalance_costs_rounds(struct comm *world)
{
    static struct layout layout;
    struct device *device = open_device(world);
    struct expert_plan plan;
    struct arena arena;
    lay_out(&layout, ONE_EXPERT, world->size, 2 * world->size, 2);
    layout.slots = MOST_SLOTS;
    open_plan(world, &plan, &arena, world, device, &layout, 1, false);
    CHECK_EQUAL(world, plan.bound, MOST_SLOTS);
    expert_plan_make(&plan, layout.expert[world->rank], layout.tokens[world->rank], 2, false);
    CHECK_EQUAL(world, plan.rounds, world->size);
    for (int64_t round = 0; round < plan.rounds; round++) {
        expert_plan_round(&plan, round);
        const bool last = world->rank == world->size - 1;
        CHECK_EQUAL(world, plan.received, last ? MOST_SLOTS : 0);
        /* Source `round` has its turn: rows stand in (expert, source, token) order. */
        CHECK_EQUAL(world, world->size == 1 ? MOST_SLOTS : plan.send_rows[world->size - 1],
                    round == world->rank ? MOST_SLOTS : 0);
    }
    expert_plan_free(&plan);
    arena_free(&arena);
    device_close(device);
}

/* Both slots of a token on neighbouring experts: of one rank, half of the rows travel; of two, all.
 */
static void test_a_token_travels_once(struct comm *world)
{
    static struct layout layout;
    static struct arrivals arrivals;
    struct device *device = open_device(world);
    void *buffer = make(world, DTYPE_F32, (int64_t)MOST_SLOTS * (MOST_RANKS + 1)).data;
    for (int64_t local = 1; local <= 2 && world->size > 1; local++) {
        struct expert_plan plan;
        struct arena arena;
        lay_out(&layout, SPREAD, world->size, local * world->size, 2);
        for (int r = 0; r < world->size; r++) {
            for (int64_t slot = 0; slot < layout.tokens[r] * 2; slot++) {
                layout.expert[r][slot] = (int32_t)((slot + 2 * r) % layout.experts);
            }
        }
        open_plan(world, &plan, &arena, world, device, &layout, 1000, false);
        expert_plan_make(&plan, layout.expert[world->rank], layout.tokens[world->rank], 2, false);
        CHECK_EQUAL(world, plan.once, local == 2);
        expect_arrivals(&arrivals, &layout, world->rank);
        check_token_dispatch(world, &plan, &layout, &arrivals, DTYPE_F32, buffer);
        CHECK_EQUAL(world, travel.rows * local, plan.sent);
        expert_plan_free(&plan);
        arena_free(&arena);
    }
    free(buffer);
    device_close(device);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_a_token_travels_once),
        RANKS_TEST(test_there_and_back),
        RANKS_TEST(test_imbalance_costs_rounds),
    };
    return RANKS_MAIN(tests);
}
