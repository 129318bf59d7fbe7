/* expert: every row says where it comes from, so arrival order, rounds and the way back are
 * compared with ==. */
#include "kernels/base/rng.h"
#include "kernels/device.h"
#include "parallel/expert.h"
#include "parallel/mesh.h"
#include "parallel/ranks.h"

enum { MOST_RANKS = 4, MOST_SLOTS = 120, COLUMNS = 3 };

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

static void check_send_order(struct comm *world, const struct expert_plan *plan,
                             const struct layout *layout)
{
    const int me = plan->ep->rank;
    int64_t kept = 0;
    for (int64_t slot = 0; slot < layout->tokens[me] * layout->top_k; slot++) {
        const int32_t row = plan->slot_row[slot];
        CHECK_EQUAL(world, row < 0, layout->expert[me][slot] < 0);
        kept += row >= 0;
        if (row >= 0) {
            CHECK(world, row < plan->sent);
            CHECK_EQUAL(world, plan->send_slot[row], slot);
        }
    }
    CHECK_EQUAL(world, plan->sent, kept);
    for (int64_t row = 1; row < plan->sent; row++) {
        const int32_t a = plan->send_slot[row - 1], b = plan->send_slot[row];
        const int32_t ea = layout->expert[me][a], eb = layout->expert[me][b];
        CHECK(world, ea < eb || (ea == eb && a < b));
    }
}

static int64_t expected_rounds(const struct layout *layout, int64_t bound)
{
    int64_t rounds = 1;
    for (int to = 0; to < layout->ep; to++) {
        struct arrivals arrivals;
        expect_arrivals(&arrivals, layout, to);
        const int64_t needed = (arrivals.count + bound - 1) / bound;
        rounds = needed > rounds ? needed : rounds;
    }
    return rounds;
}

/* One round there and back: what arrives continues at arrivals[*next]; what comes back changes this
 * round's rows of y and no others. */
static void check_round(struct comm *world, struct expert_plan *plan, struct device *device,
                        struct tensor x, struct tensor y, const struct arrivals *arrivals,
                        int64_t *next, void *buffer)
{
    const int64_t local = plan->local_experts, first = plan->ep->rank * local;
    int64_t leaving = 0, changed = 0;
    CHECK(world, plan->received <= plan->bound);
    CHECK_EQUAL(world, plan->offset[local], plan->received);
    struct tensor rows = make(world, x.dtype, plan->received);
    expert_dispatch(plan, device, device_ops(device), rows, x, buffer);
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
        leaving += plan->send_rows[r];
    }
    for (int64_t i = 0; i < plan->sent; i++) {
        put(&y, i, 0, -1);
    }
    expert_combine(plan, device, device_ops(device), y, rows, buffer);
    for (int64_t i = 0; i < plan->sent; i++) {
        changed += get(&y, i, 0) != -1;
    }
    CHECK_EQUAL(world, changed, leaving);
    free(rows.data);
}

static void check_plan(struct comm *world, struct comm *ep, struct device *device,
                       const struct layout *layout, double factor, enum dtype dtype)
{
    static struct arrivals arrivals;
    struct expert_plan plan;
    const int me = ep->rank;
    int64_t next = 0;
    CHECK_EQUAL(world, expert_plan_init(&plan, ep, layout->slots, layout->experts, factor),
                STATUS_OK);
    CHECK(world, plan.bound >= layout->slots && plan.bound <= layout->slots * ep->size);
    expert_plan_make(&plan, layout->expert[me], layout->tokens[me], layout->top_k);
    CHECK_EQUAL(world, plan.rounds, expected_rounds(layout, plan.bound));
    check_send_order(world, &plan, layout);
    struct tensor x = make(world, dtype, plan.sent), y = make(world, dtype, plan.sent),
                  all = make(world, dtype, plan.sent);
    void *buffer = make(world, dtype, plan.bound + plan.slots).data;
    for (int64_t i = 0; i < plan.sent; i++) {
        put(&x, i, 0, me);
        put(&x, i, 1, plan.send_slot[i]);
        put(&x, i, 2, 7);
    }
    expect_arrivals(&arrivals, layout, me);
    for (int64_t round = 0; round < plan.rounds; round++) {
        expert_plan_round(&plan, round);
        check_round(world, &plan, device, x, y, &arrivals, &next, buffer);
        for (int64_t i = 0; i < plan.sent; i++) { /* gathers what each round brought back */
            for (int64_t c = 0; c < COLUMNS && get(&y, i, 0) != -1; c++) {
                put(&all, i, c, get(&y, i, c));
            }
        }
    }
    CHECK_EQUAL(world, next, arrivals.count);
    for (int64_t i = 0; i < plan.sent; i++) {
        CHECK_EQUAL(world, get(&all, i, 0), me);
        CHECK_EQUAL(world, get(&all, i, 1), plan.send_slot[i]);
        CHECK_EQUAL(world, get(&all, i, 2), layout->expert[me][plan.send_slot[i]] + 100);
    }
    free(x.data);
    free(y.data);
    free(all.data);
    free(buffer);
    expert_plan_free(&plan);
    expert_plan_free(&plan);
}

static struct device *open_device(struct comm *world)
{
    struct device *device = NULL;
    const struct device_options options = {.name = "cpu", .threads = 1};
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    return device;
}

static void test_there_and_back(struct comm *world)
{
    static const double factors[] = {1, 1.3, 2, 1000};
    static struct layout layout;
    struct device *device = open_device(world);
    for (int ep = 1; ep <= world->size; ep++) {
        struct mesh mesh;
        if (world->size % ep != 0) {
            continue;
        }
        CHECK_EQUAL(world, mesh_init(&mesh, world, ep, 6 * ep), STATUS_OK);
        for (int pattern = 0; pattern < PATTERNS; pattern++) {
            for (int64_t k = 1; k <= 3; k++) {
                lay_out(&layout, (enum pattern)pattern, ep, 2 * k * ep, k);
                for (int f = 0; f < 4; f++) {
                    check_plan(world, &mesh.ep, device, &layout, factors[f],
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
    struct expert_plan plan;
    lay_out(&layout, ONE_EXPERT, world->size, 2 * world->size, 2);
    CHECK_EQUAL(world, expert_plan_init(&plan, world, MOST_SLOTS, layout.experts, 1), STATUS_OK);
    CHECK_EQUAL(world, plan.bound, MOST_SLOTS);
    expert_plan_make(&plan, layout.expert[world->rank], layout.tokens[world->rank], 2);
    CHECK_EQUAL(world, plan.rounds, world->size);
    for (int64_t round = 0; round < plan.rounds; round++) {
        expert_plan_round(&plan, round);
        const bool last = world->rank == world->size - 1;
        CHECK_EQUAL(world, plan.received, last ? MOST_SLOTS : 0);
        /* Source `round` has its turn: rows stand in (expert, source, token) order. */
        CHECK_EQUAL(world, plan.send_rows[world->size - 1], round == world->rank ? MOST_SLOTS : 0);
    }
    expert_plan_free(&plan);
}

/* --- capacity --- */

/* Calls it with the arguments of a case of K choices and checks what is left. */
static void expect_drop(struct comm *world, int32_t *expert, const float *weight, int64_t slots,
                        int64_t experts, int64_t groups, int64_t capacity, const int32_t *left)
{
    enum { K = 2, MOST = 8 };
    struct expert_ranked scratch[MOST];
    int64_t dropped = 0;
    CHECK(world, slots <= MOST);
    for (int64_t i = 0; i < slots; i++) {
        dropped += expert[i] != left[i];
    }
    CHECK_EQUAL(world,
                expert_drop(expert, scratch, weight, slots / K, K, experts, groups, capacity),
                dropped);
    CHECK(world, memcmp(expert, left, (size_t)slots * sizeof *left) == 0);
    CHECK_EQUAL(world,
                expert_drop(expert, scratch, weight, slots / K, K, experts, groups, capacity), 0);
}

static void test_drop_lowest_weights(struct comm *world)
{
    int32_t expert[] = {0, 1, 0, 1, 0, 1, 0, 2};
    const float weight[] = {0.5F, 0.5F, 0.7F, 0.3F, 0.5F, 0.5F, 0.1F, 0.9F};
    /* expert 0: keeps 0.7 and the earlier 0.5; expert 1: the two 0.5 */
    static const int32_t expected[] = {0, 1, 0, -1, -1, 1, -1, 2};
    static const int32_t none[] = {-1, -1, -1, -1, -1, -1, -1, -1};
    expect_drop(world, expert, weight, 8, 3, 3, 2, expected);
    expect_drop(world, expert, weight, 8, 3, 3, 100, expected);
    CHECK_EQUAL(world, expert_drop(expert, NULL, weight, 0, 2, 3, 3, 1), 0);
    expect_drop(world, expert, weight, 8, 3, 3, 0, none);
}

/* Experts 0, 1 and 2, 3: what counts is the group's slots together, whichever expert they are of.
 */
static void test_drop_by_group(struct comm *world)
{
    static const int32_t before[] = {0, 1, 0, 2, 1, 3, 0, 1};
    static const float weight[] = {0.5F, 0.25F, 0.75F, 0.5F, 0.5F, 0.125F, 0.25F, 0.25F};
    /* group 0 holds six slots; the weights 0.25 of three of them tie: earlier ones stay */
    static const int32_t five[] = {0, 1, 0, 2, 1, 3, 0, -1}, four[] = {0, 1, 0, 2, 1, 3, -1, -1},
                         two[] = {0, -1, 0, 2, -1, 3, -1, -1},
                         one[] = {-1, -1, 0, 2, -1, -1, -1, -1},
                         /* all experts one group: 0.75, then the first of the 0.5 */
        all[] = {0, -1, 0, -1, -1, -1, -1, -1},
                         /* each expert alone */
        each[] = {-1, -1, 0, 2, 1, 3, -1, -1};
    int32_t expert[8];
    memcpy(expert, before, sizeof expert);
    expect_drop(world, expert, weight, 8, 4, 2, 6, before);
    expect_drop(world, expert, weight, 8, 4, 2, 5, five);
    expect_drop(world, expert, weight, 8, 4, 2, 4, four);
    expect_drop(world, expert, weight, 8, 4, 2, 2, two);
    expect_drop(world, expert, weight, 8, 4, 2, 1, one);
    memcpy(expert, before, sizeof expert);
    expect_drop(world, expert, weight, 8, 4, 1, 2, all);
    memcpy(expert, before, sizeof expert);
    expect_drop(world, expert, weight, 8, 4, 4, 1, each);
}

/* A slot stays exactly when fewer than `capacity` slots of its group come before it. */
static void check_drop_by_rank(struct comm *world, uint64_t key, int64_t groups)
{
    enum { TOKENS = 60, K = 2, SLOTS = TOKENS * K, EXPERTS = 6 };
    const int64_t size = EXPERTS / groups, capacity = draw(key + 50, groups, SLOTS / groups + 5);
    struct expert_ranked scratch[SLOTS];
    int32_t before[SLOTS], after[SLOTS];
    float weight[SLOTS];
    int64_t dropped = 0;
    for (int64_t i = 0; i < SLOTS; i++) {
        before[i] = after[i] = draw(key, i, EXPERTS + 1) - 1; /* some dropped already */
        weight[i] = (float)draw(key + 100, i, 8) / 8;         /* many ties */
    }
    const int64_t said = expert_drop(after, scratch, weight, TOKENS, K, EXPERTS, groups, capacity);
    for (int64_t i = 0; i < SLOTS; i++) {
        int64_t ahead = 0;
        for (int64_t j = 0; j < SLOTS; j++) {
            ahead += before[j] >= 0 && before[j] / size == before[i] / size &&
                     (weight[j] > weight[i] || (weight[j] == weight[i] && j < i));
        }
        CHECK_EQUAL(world, after[i], ahead < capacity ? before[i] : -1);
        dropped += before[i] >= 0 && ahead >= capacity;
    }
    CHECK_EQUAL(world, said, dropped);
}

static void test_drop_by_rank_of_weight(struct comm *world)
{
    for (uint64_t key = 0; key < 20; key++) {
        for (int64_t groups = 1; groups <= 3; groups++) {
            check_drop_by_rank(world, key, groups);
        }
        check_drop_by_rank(world, key, 6);
    }
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_there_and_back),         RANKS_TEST(test_imbalance_costs_rounds),
        RANKS_TEST(test_drop_lowest_weights),    RANKS_TEST(test_drop_by_group),
        RANKS_TEST(test_drop_by_rank_of_weight),
    };
    return RANKS_MAIN(tests);
}
