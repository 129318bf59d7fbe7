/* relay: tokens that go once to each machine arrive as those sent to each rank do, byte for byte;
 * as many rows cross the network as there are pairs of a token and a machine, and no more; models
 * train to the same bits. Machines are ranks that stand together by parallel.ranks_per_node.
 */
#include <stddef.h>

#include "kernels/base/rng.h"
#include "kernels/device.h"
#include "parallel/expert.h"
#include "parallel/mesh.h"
#include "ranks.h"
#include "tiny_model.h"

enum { RANKS = 8, TOKENS = 40, TOP_K = 4, COLUMNS = 3 };

/* --- rows --- */

enum pattern { SPREAD, NEIGHBOURS, DROPPED, ONE_MACHINE, FIRST_PLACES, EMPTY };
enum { PATTERNS = EMPTY + 1 };

/* Experts of every rank's slots, known to all. */
struct routing {
    int ranks, per_node;
    int64_t experts, top_k, tokens[RANKS];
    int32_t expert[RANKS][TOKENS * TOP_K];
};

static int64_t draw(int64_t key, int64_t index, int64_t below)
{
    uint32_t bits[4];
    rng_bits((uint64_t)key, (uint64_t)index, bits);
    return (int64_t)(bits[0] % (uint64_t)below);
}

/* The first expert of a token; the others follow it. */
static int64_t first_expert(const struct routing *r, enum pattern pattern, int rank, int64_t token)
{
    const int64_t each = r->experts / r->ranks, machine = each * r->per_node,
                  own = rank / r->per_node * machine,
                  drawn = draw(17 * rank + 1, token, r->experts);
    switch (pattern) {
    case NEIGHBOURS: /* within machines */
        return drawn / machine * machine;
    case ONE_MACHINE:
        return 0;
    case FIRST_PLACES: /* what the first ranks of all machines hand on is all there is */
        return rank % r->per_node == 0 ? 0 : own;
    default:
        return drawn;
    }
}

static void lay_out(struct routing *r, enum pattern pattern)
{
    for (int rank = 0; rank < r->ranks; rank++) {
        r->tokens[rank] = pattern == EMPTY && rank % 3 != 1                   ? 0
                          : pattern == ONE_MACHINE || pattern == FIRST_PLACES ? TOKENS
                                                                              : TOKENS - 3 * rank;
        for (int64_t slot = 0; slot < r->tokens[rank] * r->top_k; slot++) {
            const int64_t step = pattern == SPREAD || pattern == DROPPED ? 3 : 1,
                          e = first_expert(r, pattern, rank, slot / r->top_k) +
                              slot % r->top_k * step;
            const bool drop = pattern == DROPPED && draw(rank, slot, 3) == 0;
            r->expert[rank][slot] = drop ? -1 : (int32_t)(e % r->experts);
        }
    }
}

/* Pairs of a token of `from` and a part of `local` neighbouring experts, where it has one; without
 * the `own`-th part. */
static int64_t pairs(const struct routing *r, int from, int64_t local, int64_t own)
{
    int64_t count = 0;
    for (int64_t n = 0; n < r->tokens[from]; n++) {
        for (int64_t part = 0; part < r->experts / local; part++) {
            bool there = false;
            for (int64_t slot = n * r->top_k; slot < (n + 1) * r->top_k; slot++) {
                const int32_t e = r->expert[from][slot];
                there = there || (e >= 0 && e / local == part);
            }
            count += there && part != own;
        }
    }
    return count;
}

/* What this rank hands to others in rows of row_bytes: all, and those for other machines. */
static struct {
    size_t row_bytes;
    int per_node;                     /* of the group that is counted; 1: every other rank is far */
    int64_t all, rows, far, messages; /* all: those to itself too */
    const struct comm_table *real;
} travel;

static void count_rows(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                       const int64_t *send_rows, size_t row_bytes, struct comm_rows *rows)
{
    for (int to = 0; to < comm->size && row_bytes == travel.row_bytes; to++) {
        const bool far = to / travel.per_node != comm->rank / travel.per_node;
        travel.all += send_rows[to];
        travel.rows += to != comm->rank ? send_rows[to] : 0;
        travel.far += far ? send_rows[to] : 0;
        travel.messages += far && send_rows[to] > 0;
    }
    travel.real->rows_start(comm, recv, recv_rows, send, send_rows, row_bytes, rows);
}

/* One plan of two ways, and what it brought. */
struct way {
    struct expert_plan plan;
    struct arena arena;
    void *buffer; /* owned */
    void *rows;   /* owned, of all rounds */
    int64_t count;
};

static void open_way(struct comm *world, struct way *way, struct mesh *mesh, struct device *device,
                     const struct routing *r, struct nodes *nodes, double factor)
{
    const struct ops *ops = device_ops(device);
    *way = (struct way){.arena.source = {device, ops->memory_alloc, ops->memory_free}};
    const struct expert_sizes sizes = {.tokens = TOKENS,
                                       .top_k = r->top_k,
                                       .experts = r->experts,
                                       .slices = 1,
                                       .buffer_factor = factor,
                                       .nodes = nodes};
    expert_plan_init(&way->plan, &mesh->experts, device, ops, &sizes);
    CHECK(world, expert_plan_reserve(&way->plan) == STATUS_OK);
    expert_plan_layout(&way->plan, &way->arena);
    CHECK(world, arena_reserve(&way->arena, "the plan") == STATUS_OK);
    expert_plan_layout(&way->plan, &way->arena);
    way->buffer =
        ranks_memory(world, (size_t)((way->plan.bound + way->plan.sending) * COLUMNS) * 4);
    way->rows = ranks_memory(world, (size_t)(TOKENS * r->top_k * RANKS * COLUMNS) * 4);
}

static void close_way(struct way *way)
{
    free(way->buffer);
    free(way->rows);
    expert_plan_free(&way->plan);
    arena_free(&way->arena);
}

/* All rounds of tokens to the experts. */
static void dispatch(struct way *way, const struct routing *r, struct tensor x)
{
    struct expert_plan *plan = &way->plan;
    const int me = plan->ep->rank;
    const size_t row = (size_t)x.dim[1] * dtype_bytes(x.dtype);
    expert_plan_make(plan, r->expert[me], r->tokens[me], r->top_k, true);
    for (int64_t round = 0; round < plan->rounds; round++) {
        expert_plan_round(plan, round);
        const struct expert_route route = expert_route_tokens(plan);
        struct tensor rows = tensor_2d((char *)way->rows + (size_t)way->count * row, x.dtype,
                                       plan->received, x.dim[1]);
        expert_dispatch_start(plan, &route, x, way->buffer);
        expert_dispatch_finish(plan, &route, rows, way->buffer);
        way->count += plan->received;
    }
}

/* The same with a table that counts in the group. */
static void watch(struct comm *group, struct comm_table *table, bool on)
{
    if (on) {
        travel.real = group->table;
        *table = *group->table;
        table->rows_start = count_rows;
    }
    group->table = on ? table : travel.real;
}

/* Sets what `group` carried of the dispatch of `way`. */
static void count_in(struct comm *group, int per_node, struct way *way, const struct routing *r,
                     struct tensor x)
{
    struct comm_table table;
    way->count = 0;
    travel.all = travel.rows = travel.far = travel.messages = 0;
    travel.row_bytes = (size_t)x.dim[1] * dtype_bytes(x.dtype);
    travel.per_node = per_node;
    watch(group, &table, true);
    dispatch(way, r, x);
    watch(group, &table, false);
}

/* Of all ranks: rows of the network by machine, by rank and by slot, and whether ranks have room.
 */
struct expected {
    int64_t machine, rank, slot;
    bool once, fits;
};

static struct expected expect(const struct routing *r, int64_t room)
{
    const int64_t each = r->experts / r->ranks, there = each * r->per_node;
    struct expected sum = {.fits = true};
    int64_t all = 0, slots = 0;
    for (int from = 0; from < r->ranks; from++) {
        const int64_t machine = from / r->per_node;
        sum.machine += pairs(r, from, there, machine);
        for (int64_t slot = 0; slot < r->tokens[from] * r->top_k; slot++) {
            const int32_t e = r->expert[from][slot];
            slots += e >= 0;
            sum.slot += e >= 0 && e / there != machine;
        }
        all += pairs(r, from, each, -1);
        for (int own = 0; own < r->per_node; own++) { /* all but those of its machine */
            sum.rank -=
                pairs(r, from, each, -1) - pairs(r, from, each, machine * r->per_node + own);
        }
        sum.rank += pairs(r, from, each, -1);
    }
    sum.once = all < slots;
    for (int by = 0; by < r->ranks; by++) {
        int64_t came = 0, goes = 0;
        const int64_t machine = by / r->per_node;
        for (int from = by % r->per_node; from < r->ranks; from += r->per_node) {
            came += pairs(r, from, there, -1) - pairs(r, from, there, machine);
            for (int to = 0; to < r->per_node; to++) {
                goes += pairs(r, from, each, -1) - pairs(r, from, each, machine * r->per_node + to);
            }
        }
        sum.fits = sum.fits && came <= room && goes <= room;
    }
    return sum;
}

/* By machine, in a layer that goes so: rows and messages of the network, rows within machines. */
static void check_counts(struct comm *world, struct mesh *mesh, struct way *way,
                         const struct routing *r, struct tensor x)
{
    const int me = way->plan.ep->rank, machines = mesh->nodes.count;
    const int64_t there = r->experts / r->ranks * r->per_node;
    int64_t handed_on = 0;
    count_in(&mesh->nodes.across, 1, way, r, x);
    CHECK_EQUAL(world, travel.far, pairs(r, me, there, me / r->per_node));
    CHECK(world, travel.messages <= machines - 1);
    count_in(&mesh->nodes.within, r->per_node, way, r, x);
    CHECK_EQUAL(world, travel.far, 0);
    for (int from = me % r->per_node; from < r->ranks; from += r->per_node) {
        for (int j = 0; j < r->per_node; j++) {
            const int to = me / r->per_node * r->per_node + j;
            handed_on += to == me ? 0
                                  : pairs(r, from, r->experts / r->ranks, -1) -
                                        pairs(r, from, r->experts / r->ranks, to);
        }
    }
    CHECK_EQUAL(world, travel.rows, handed_on);
    count_in(way->plan.ep, r->per_node, way, r, x);
    CHECK_EQUAL(world, travel.rows, 0);
}

static struct tensor tokens_of(struct comm *world, const struct routing *r, int me,
                               enum dtype dtype)
{
    const int64_t n = r->tokens[me];
    struct tensor x = tensor_2d(ranks_memory(world, (size_t)(n * COLUMNS) * dtype_bytes(dtype)),
                                dtype, n, COLUMNS);
    for (int64_t i = 0; i < n * COLUMNS; i++) {
        const float value = (float)(i % COLUMNS == 0 ? me + 1 : i / COLUMNS + i % COLUMNS);
        if (dtype == DTYPE_F32) {
            ((float *)x.data)[i] = value;
        } else {
            ((uint16_t *)x.data)[i] = bf16_from_float(value);
        }
    }
    return x;
}

/* true: went by machines. */
static bool check_ways(struct comm *world, struct mesh *mesh, struct device *device,
                       const struct routing *r, double factor, enum dtype dtype)
{
    struct way flat, way;
    struct tensor x = tokens_of(world, r, mesh->experts.rank, dtype);
    open_way(world, &flat, mesh, device, r, NULL, factor);
    open_way(world, &way, mesh, device, r, &mesh->nodes, factor);
    const struct expected expected = expect(r, way.plan.sending);
    int64_t far = 0;
    CHECK_EQUAL(world, way.plan.sending, way.plan.bound);
    count_in(&mesh->experts, r->per_node, &flat, r, x);
    far = travel.far;
    comm_all_reduce(world, &far, 1, DTYPE_I64, REDUCE_SUM);
    dispatch(&way, r, x);
    CHECK(world, !flat.plan.relayed);
    CHECK_EQUAL(world, way.plan.rounds, flat.plan.rounds);
    CHECK_EQUAL(world, far, flat.plan.rounds == 1 && expected.once ? expected.rank : expected.slot);
    CHECK_EQUAL(world, way.plan.relayed,
                flat.plan.rounds == 1 && expected.fits && expected.machine < far);
    CHECK_EQUAL(world, way.count, flat.count);
    CHECK_EQUAL(world, way.plan.received, flat.plan.received);
    CHECK(world,
          memcmp(way.rows, flat.rows, (size_t)(flat.count * COLUMNS) * dtype_bytes(dtype)) == 0);
    CHECK(world, memcmp(way.plan.offset, flat.plan.offset,
                        (size_t)(flat.plan.local_experts + 1) * sizeof *flat.plan.offset) == 0);
    const bool relayed = way.plan.relayed;
    if (relayed) {
        check_counts(world, mesh, &way, r, x);
    }
    close_way(&flat);
    close_way(&way);
    free(x.data);
    return relayed;
}

static struct mesh open_mesh(struct comm *world, int per_node)
{
    struct mesh_shape shape = mesh_shape_of(1, world->size);
    struct mesh mesh;
    shape.node_dispatch = NODES_HIERARCHICAL;
    shape.ranks_per_node = per_node;
    CHECK_EQUAL(world, mesh_init(&mesh, world, &shape, world->size), STATUS_OK);
    CHECK_EQUAL(world, mesh.nodes.count, world->size / per_node);
    CHECK_EQUAL(world, mesh.nodes.ranks, per_node);
    CHECK_EQUAL(world, mesh.nodes.across.size, world->size / per_node);
    CHECK_EQUAL(world, mesh.nodes.across.rank, world->rank / per_node);
    CHECK_EQUAL(world, mesh.nodes.within.size, per_node);
    CHECK_EQUAL(world, mesh.nodes.within.rank, world->rank % per_node);
    return mesh;
}

static void test_rows(struct comm *world)
{
    static const double factors[] = {1, 1.4, 1000};
    static struct routing r;
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    for (int per_node = 2; per_node <= world->size / 2; per_node *= 2) {
        struct mesh mesh = open_mesh(world, per_node);
        int relayed = 0, flat = 0;
        for (int pattern = 0; pattern < PATTERNS; pattern++) {
            for (int64_t k = 1; k <= TOP_K; k++) {
                r = (struct routing){.ranks = world->size,
                                     .per_node = per_node,
                                     .experts =
                                         (pattern + k) % 2 == 0 ? world->size : 3 * world->size,
                                     .top_k = k};
                lay_out(&r, (enum pattern)pattern);
                for (int f = 0; f < 3; f++) {
                    const bool went = check_ways(world, &mesh, device, &r, factors[f],
                                                 (f + k) % 2 == 0 ? DTYPE_F32 : DTYPE_BF16);
                    relayed += went;
                    flat += !went;
                }
            }
        }
        CHECK(world, relayed >= 12 && flat >= 12); /* both happen */
        mesh_free(&mesh);
    }
    device_close(device);
}

/* No room to hand on: the first rank of each machine would have to for all. */
static void test_no_room(struct comm *world)
{
    static struct routing r;
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    struct mesh mesh = open_mesh(world, 2);
    struct way way;
    r = (struct routing){.ranks = world->size, .per_node = 2, .experts = world->size, .top_k = 2};
    lay_out(&r, FIRST_PLACES);
    for (int rank = 0; rank < world->size; rank++) {
        r.tokens[rank] = rank % 2 == 0 ? TOKENS : 0;
    }
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    const double all = world->size / 2; /* of TOKENS to each rank of a machine */
    CHECK(world, !check_ways(world, &mesh, device, &r, all / 2, DTYPE_F32));
    CHECK(world, check_ways(world, &mesh, device, &r, all, DTYPE_F32));
    open_way(world, &way, &mesh, device, &r, &mesh.nodes, all / 2);
    expert_plan_make(&way.plan, r.expert[world->rank], r.tokens[world->rank], 2, true);
    CHECK_EQUAL(world, way.plan.rounds, 1);
    close_way(&way);
    mesh_free(&mesh);
    device_close(device);
}

/* --- machines --- */

static void test_machines(struct comm *world)
{
    static const struct {
        int wish, per_node, count; /* 0: refused */
        const char *message;
    } cases[] = {
        {NODES_AUTO, 0, 1, NULL}, /* all share memory here */
        {NODES_AUTO, 1, 1, NULL},
        {NODES_AUTO, 3, 1, NULL},
        {NODES_AUTO, 100, 1, NULL},
        {NODES_FLAT, 2, 1, NULL},
        {NODES_AUTO, 2, 2, NULL},
        {NODES_HIERARCHICAL, 0, 0, "on one machine"},
        {NODES_HIERARCHICAL, 1, 0, "two or more on each"},
        {NODES_HIERARCHICAL, 3, 0, "as many on all"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct mesh_shape shape = mesh_shape_of(1, world->size);
        struct mesh mesh;
        shape.node_dispatch = (enum nodes_wish)cases[i].wish;
        shape.ranks_per_node = cases[i].per_node;
        const enum status status = mesh_init(&mesh, world, &shape, world->size);
        CHECK_EQUAL(world, status, cases[i].count > 0 ? STATUS_OK : STATUS_USAGE);
        if (status == STATUS_OK) {
            CHECK_EQUAL(world, mesh.nodes.count,
                        cases[i].count > 1 ? world->size / 2 : cases[i].count);
            CHECK_EQUAL(world, nodes_apart(&mesh.nodes), mesh.nodes.across.table != NULL);
        } else {
            CHECK_MESSAGE(world, cases[i].message);
        }
        mesh_free(&mesh);
    }
}

/* --- training --- */

enum { STEPS = 3 };

struct curve {
    double loss[STEPS], aux[STEPS], norm[STEPS];
    int relayed; /* layers whose last dispatch went by machines */
};

/* FP8 wants multiples of 16. */
static const char *const wide[] = {"model.intermediate_size=32", "model.moe_intermediate_size=16",
                                   "model.q_lora_rank=16",       "model.kv_lora_rank=16",
                                   "model.qk_nope_head_dim=16",  "model.qk_rope_head_dim=16",
                                   "model.v_head_dim=16"};

static bool in_fp8(const char *const *more)
{
    return more[1] != NULL && strcmp(more[1], "train.precision=fp8") == 0;
}

static struct curve train(struct comm *world, const char *text, const char *const *more, bool apart)
{
    static struct tiny tiny;
    const char *overrides[TINY_OVERRIDES] = {apart ? "parallel.node_dispatch=hierarchical"
                                                   : "parallel.node_dispatch=flat"};
    struct curve curve = {0};
    int count = 1;
    overrides[count] = "parallel.ranks_per_node=2";
    count += apart;
    for (int i = 0; more[i] != NULL; i++) {
        overrides[count++] = more[i];
    }
    for (int i = 0; i < 7 && in_fp8(more) && (i == 0 || text == TINY_V3); i++) {
        overrides[count++] = wide[i];
    }
    CHECK(world, tiny_open(&tiny, world, text, overrides) == STATUS_OK);
    CHECK_EQUAL(world, nodes_apart(&tiny.mesh.nodes), apart);
    for (int64_t s = 1; s <= STEPS; s++) {
        struct step_result result;
        const int64_t first = (s - 1) * tiny.config.train.global_batch;
        CHECK(world, stepper_step(&tiny.stepper, s, first, &result) == STATUS_OK);
        curve.loss[s - 1] = result.loss;
        curve.aux[s - 1] = result.aux_loss;
        curve.norm[s - 1] = result.grad_norm;
    }
    for (int64_t s = 0; s < tiny.model.slots; s++) {
        const struct stage *part = &tiny.model.slice.part[tiny.model.slot[s].part];
        for (int64_t b = part->first; b < part->first + part->blocks; b++) {
            curve.relayed += tiny.model.slot[s].blocks[b].moe.plan.relayed;
        }
    }
    tiny_close(&tiny);
    return curve;
}

/* Everything that dispatch goes with: the same bits, step by step. */
static void test_training(struct comm *world)
{
    static const char *const cases[][8] = {
        /* of 8 ranks: four machines; pipelines of two stages, two machines in each */
        {"parallel.ep=8", "train.micro_batch=1", NULL},
        {"parallel.ep=4", "parallel.pp=2", "parallel.schedule=zero_bubble", "train.precision=bf16",
         "train.micro_batch=1", NULL},
        {"parallel.ep=4", "parallel.pp=2", "parallel.schedule=dualpipe_v", "train.micro_batch=1",
         "train.global_batch=16", "model.num_hidden_layers=4", NULL},
        /* of 4 */
        {"parallel.ep=4", NULL},
        {"parallel.ep=4", "train.precision=bf16", "train.recompute=experts", NULL},
        {"parallel.ep=4", "train.precision=fp8", "train.recompute=block", NULL},
        {"parallel.ep=4", "router.capacity_factor=1", "router.buffer_factor=1", NULL},
        {"parallel.ep=4", "run.deterministic=layout", NULL},
        {"parallel.ep=2", "parallel.etp=2", "train.precision=bf16", NULL},
        {"parallel.ep=4", "parallel.tp=2", NULL},
        {"parallel.ep=4", "parallel.cp=2", "parallel.zero=3", NULL},
    };
    enum { CASES = sizeof cases / sizeof cases[0], EIGHT = 3 };
    const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    const size_t first = world->size == 8 ? 0 : EIGHT, end = world->size == 8 ? EIGHT : CASES;
    for (size_t i = 2 * first; i < 2 * end; i++) {
        const char *const *more = cases[i / 2];
        const struct curve flat = train(world, texts[i % 2], more, false),
                           apart = train(world, texts[i % 2], more, true);
        CHECK(world, memcmp(flat.loss, apart.loss, sizeof flat.loss) == 0);
        CHECK(world, memcmp(flat.aux, apart.aux, sizeof flat.aux) == 0);
        CHECK(world, memcmp(flat.norm, apart.norm, sizeof flat.norm) == 0);
        CHECK_EQUAL(world, flat.relayed, 0);
        CHECK(world, apart.relayed > 0 ||
                         strcmp(more[1] != NULL ? more[1] : "", "router.capacity_factor=1") == 0);
    }
}

/* Rows that leave this rank in the mesh's group at `group`, itself included, in one step of f32. */
static int64_t count_step(struct comm *world, const char *text, bool apart, size_t group)
{
    static struct tiny tiny;
    const char *overrides[TINY_OVERRIDES] = {
        "parallel.ep=4", apart ? "parallel.ranks_per_node=2" : "parallel.node_dispatch=flat"};
    struct step_result result;
    struct comm_table table;
    CHECK(world, tiny_open(&tiny, world, text, overrides) == STATUS_OK);
    struct comm *watched = (struct comm *)(void *)((char *)&tiny.mesh + group);
    travel.all = 0;
    travel.per_node = 1;
    travel.row_bytes = (size_t)tiny.config.model.hidden_size * sizeof(float);
    watch(watched, &table, true);
    CHECK(world, stepper_step(&tiny.stepper, 1, 0, &result) == STATUS_OK);
    watch(watched, &table, false);
    int64_t rows = travel.all;
    comm_all_reduce(world, &rows, 1, DTYPE_I64, REDUCE_SUM);
    tiny_close(&tiny);
    return rows;
}

/* What a step carries: flat, tokens by rank and three times slots; by machines, tokens and
 * gradients of outputs alike, and twice slots as before. */
static void test_rows_of_a_step(struct comm *world)
{
    const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    const int64_t slots[] = {8 * 8 * 2 * 3, 8 * 8 * 3 * 2}; /* tokens, choices, layers */
    for (int i = 0; i < 2 && world->size == 4; i++) {
        const int64_t flat = count_step(world, texts[i], false, offsetof(struct mesh, experts)),
                      beside = count_step(world, texts[i], true, offsetof(struct mesh, experts)),
                      across =
                          count_step(world, texts[i], true, offsetof(struct mesh, nodes.across));
        CHECK(world, flat > 3 * slots[i] && flat < 4 * slots[i]);
        CHECK_EQUAL(world, beside, 2 * slots[i]);
        CHECK(world, across % 2 == 0 && across / 2 < flat - 3 * slots[i]);
    }
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_machines), RANKS_TEST(test_rows),           RANKS_TEST(test_no_room),
        RANKS_TEST(test_training), RANKS_TEST(test_rows_of_a_step),
    };
    return RANKS_MAIN(tests);
}
