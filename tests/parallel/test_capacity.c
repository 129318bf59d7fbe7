/* Capacities where tp and cp divide sequences: of choices with equal and unequal weights the same
 * slots are dropped as on one rank, and tiny models of every family drop as many and learn the
 * same; so with etp, whose slices are no experts of their own, padded dispatch and FP8.
 */
#include <math.h>

#include "ranks.h"
#include "tiny_model.h"
#include "trainer/model/capacity.h"

enum { EXPERTS = 8, TOP_K = 2, SEQUENCES = 3, MOST = SEQUENCES * 64 * TOP_K };

/* A few weights, so that many are equal; experts that not all have as many slots. */
static float weight_of(int64_t slot)
{
    return (float)(1 + slot * 7 % 5) * 0.125F;
}

static int32_t expert_of(int64_t slot)
{
    return (int32_t)(rng_uniform(3, (uint64_t)slot) * rng_uniform(4, (uint64_t)slot) * EXPERTS);
}

struct setting {
    struct device *device;
    struct comm tp_comm, cp_comm;
    struct tp tp;
    struct cp cp;
    struct capacity capacity;
    struct arena arena;
};

static struct setting open_setting(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct setting s = {0};
    CHECK_EQUAL(world, device_open(&s.device, &options), STATUS_OK);
    return s;
}

/* ways: ranks of tp, those of cp are the others. */
static void open_layout(struct comm *world, struct setting *s, int ways, int64_t groups)
{
    const int others = world->size / ways;
    const int64_t share = 4, part = share * ways, length = part * others;
    const struct ops *ops = device_ops(s->device);
    comm_split(world, world->rank / ways, world->rank, &s->tp_comm);
    comm_split(world, world->rank % ways, world->rank, &s->cp_comm);
    cp_init(&s->cp, &s->cp_comm, s->device, ops, length);
    tp_init(&s->tp, &s->tp_comm, s->device, ops, part, TOP_K);
    s->capacity = (struct capacity){.device = s->device,
                                    .ops = ops,
                                    .tp = &s->tp,
                                    .cp = &s->cp,
                                    .factor = 0.75,
                                    .top_k = TOP_K,
                                    .experts = EXPERTS,
                                    .groups = groups,
                                    .tokens = SEQUENCES * length,
                                    .part = SEQUENCES * part};
    s->arena = (struct arena){
        .source = {.device = s->device, .alloc = ops->memory_alloc, .free = ops->memory_free}};
    for (int pass = 0; pass < 2; pass++) {
        tp_layout(&s->tp, &s->arena);
        capacity_layout(&s->capacity, &s->arena);
        CHECK(world, pass == 1 || arena_reserve(&s->arena, "test") == STATUS_OK);
    }
}

static void close_layout(struct setting *s)
{
    arena_free(&s->arena);
    comm_free(&s->tp_comm);
    comm_free(&s->cp_comm);
}

/* The token of the sequence that this rank's token `own` is. */
static int64_t whole_token(const struct setting *s, int64_t own, int64_t length)
{
    const struct cp_pieces pieces = cp_pieces(&s->cp, length);
    const int64_t at = tp_first(&s->tp) + own;
    const struct cp_piece *piece = &pieces.piece[at >= pieces.piece[0].count ? 1 : 0];
    return piece->first + at - piece->at;
}

/* Sequences of `length` tokens, of which the last rank has fewer where it is not all. */
static void check_length(struct comm *world, struct setting *s, int64_t length)
{
    static int32_t expert[MOST], want[MOST], own[MOST], kept[MOST];
    static float weight[MOST], own_weight[MOST];
    const int64_t slots = SEQUENCES * length * TOP_K, groups = s->capacity.groups,
                  mine = tp_tokens(&s->tp, cp_tokens(&s->cp, length));
    int64_t dropped = 0;
    for (int64_t i = 0; i < slots; i++) {
        expert[i] = expert_of(i);
        weight[i] = weight_of(i);
    }
    device_ops(s->device)->expert_drop(s->device, want, expert, weight, slots, EXPERTS, groups,
                                       (int64_t)ceil(0.75 * (double)slots / (double)groups));
    for (int64_t i = 0; i < SEQUENCES * mine * TOP_K; i++) {
        const int64_t token = whole_token(s, i / TOP_K % mine, length),
                      from = (i / TOP_K / mine * length + token) * TOP_K + i % TOP_K;
        own[i] = expert[from];
        own_weight[i] = weight[from];
    }
    capacity_drop(&s->capacity, kept, own, own_weight, SEQUENCES, mine, length);
    for (int64_t i = 0; i < SEQUENCES * mine * TOP_K; i++) {
        const int64_t token = whole_token(s, i / TOP_K % mine, length),
                      from = (i / TOP_K / mine * length + token) * TOP_K + i % TOP_K;
        CHECK_EQUAL(world, kept[i], want[from]);
        dropped += kept[i] < 0;
    }
    comm_all_reduce(world, &dropped, 1, DTYPE_I64, REDUCE_SUM);
    CHECK(world, dropped > 0 && dropped < slots);
}

static void test_slots(struct comm *world)
{
    for (int ways = 1; ways <= world->size; ways *= 2) {
        for (int64_t groups = EXPERTS; groups >= EXPERTS / 4; groups /= 4) {
            struct setting s = open_setting(world);
            open_layout(world, &s, ways, groups);
            check_length(world, &s, s.capacity.tokens / SEQUENCES);
            check_length(world, &s, s.capacity.tokens / SEQUENCES - 1);
            close_layout(&s);
            device_close(s.device);
        }
    }
}

/* --- models --- */

enum { MORE = 8 };

static struct step_result train(struct comm *world, const char *text, const char *axis,
                                const char *const more[MORE], int steps)
{
    static struct tiny tiny;
    struct step_result result;
    const char *overrides[TINY_OVERRIDES] = {
        "router.capacity_factor=1", "model.num_attention_heads=4", "model.num_key_value_heads=4",
        "model.initializer_range=0.1"};
    int count = 4;
    for (int i = 0; i < MORE && more[i] != NULL; i++) {
        overrides[count++] = more[i];
    }
    overrides[count] = axis;
    CHECK(world, tiny_open(&tiny, world, text, overrides) == STATUS_OK);
    for (int s = 0; s < steps; s++) {
        CHECK(world, stepper_step(&tiny.stepper, s + 1, s * tiny.config.train.global_batch,
                                  &result) == STATUS_OK);
    }
    tiny_close(&tiny);
    return result;
}

static void expect_close(struct comm *world, double got, double want, double allowed)
{
    CHECK(world, fabs(got - want) <= allowed * fabs(want));
}

/* What is dropped is counted in slots: equal, where nothing is rounded that chooses experts. */
static void test_models(struct comm *world)
{
    static const char tp[] = "parallel.tp=2", cp[] = "parallel.cp=2", ep[] = "parallel.ep=2",
                      etp[] = "parallel.etp=2", fp8[] = "train.precision=fp8",
                      padded[] = "router.dispatch=padded", wide[] = "model.hidden_size=64",
                      head[] = "model.head_dim=64", inner[] = "model.intermediate_size=256";
    static const struct {
        const char *text, *more[MORE], *axes[4];
        int steps;
        double loss, norm, dropped; /* relative; dropped: of all slots */
    } kinds[] = {
        {TINY_MIXTRAL, {NULL}, {tp, cp, etp}, 2, 1e-5, 1e-5, 0},
        {TINY_V2, {NULL}, {tp, cp}, 2, 1e-5, 1e-5, 0}, /* groups have a capacity together */
        {TINY_V3, {"model.num_nextn_predict_layers=1"}, {tp, cp, etp}, 2, 1e-5, 1e-5, 0},
        {TINY_MIXTRAL, {"train.recompute=block"}, {tp, cp}, 2, 1e-5, 1e-5, 0},
        {TINY_MIXTRAL, {padded}, {tp, cp, ep, etp}, 2, 1e-5, 1e-5, 0},
        {TINY_V2, {padded}, {ep}, 2, 1e-5, 1e-5, 0},
        {TINY_MIXTRAL, {fp8, wide, head, inner}, {tp, ep, etp}, 1, 5e-3, 2e-2, 0.01},
        {TINY_MIXTRAL, {fp8, wide, head, inner, padded}, {etp}, 1, 5e-3, 2e-2, 0.01},
    };
    struct comm alone = {0};
    comm_split(world, world->rank, 0, &alone);
    for (size_t k = 0; world->size % 2 == 0 && k < sizeof kinds / sizeof kinds[0]; k++) {
        const struct step_result one =
            train(&alone, kinds[k].text, NULL, kinds[k].more, kinds[k].steps);
        CHECK(world, one.dropped_fraction > 0);
        for (size_t a = 0; a < 4 && kinds[k].axes[a] != NULL; a++) {
            const struct step_result own =
                train(world, kinds[k].text, kinds[k].axes[a], kinds[k].more, kinds[k].steps);
            CHECK(world, fabs(own.dropped_fraction - one.dropped_fraction) <= kinds[k].dropped);
            expect_close(world, own.loss, one.loss, kinds[k].loss);
            expect_close(world, own.grad_norm, one.grad_norm, kinds[k].norm);
        }
    }
    comm_free(&alone);
}

int main(void)
{
    static const struct ranks_test tests[] = {RANKS_TEST(test_slots), RANKS_TEST(test_models)};
    return RANKS_MAIN(tests);
}
