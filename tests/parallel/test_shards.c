/* Sharded gradients (parallel.zero 2) and weights (3) of whole runs against whole ones: the same
 * bits where a rank computes one micro-batch a step or sums are of integers, close to it elsewhere,
 * in every layout; checkpoints between them on other numbers of ranks; less memory; and verify
 * finds a reduction that is missing. SWITCHYARD_FULL=1: every family, more layouts.
 */
#include <math.h>

#include "axis_check.h"
#include "trainer/optimizer.h"

enum { MOST = 12, STEPS = 3 };

struct curve {
    double loss[STEPS], aux[STEPS], norm[STEPS], evaluated;
};

static void open_tiny(struct comm *world, struct tiny *tiny, const char *text, int zero,
                      const char *const more[MOST])
{
    const char *overrides[TINY_OVERRIDES] = {0};
    char own[32];
    int count = 0;
    snprintf(own, sizeof own, "parallel.zero=%d", zero);
    overrides[count++] = own;
    overrides[count++] = "optimizer.clip_norm=0";
    if (text == TINY_V3) {
        overrides[count++] = "model.num_nextn_predict_layers=1";
        overrides[count++] = "router.bias_update_speed=0.01";
    }
    for (int i = 0; i < MOST && more[i] != NULL; i++) {
        overrides[count++] = more[i];
    }
    CHECK(world, tiny_open(tiny, world, text, overrides) == STATUS_OK);
}

static void train(struct comm *world, struct tiny *tiny, struct curve *curve)
{
    for (int s = 0; s < STEPS; s++) {
        struct step_result result;
        CHECK(world, stepper_step(&tiny->stepper, s + 1, s * tiny->config.train.global_batch,
                                  &result) == STATUS_OK);
        curve->loss[s] = result.loss;
        curve->aux[s] = result.aux_loss;
        curve->norm[s] = result.grad_norm;
    }
    int64_t labels = 0;
    CHECK(world, step_evaluate(&tiny->model, &tiny->loader, 2, NULL, &curve->evaluated, &labels) ==
                     STATUS_OK);
}

/* What this rank keeps of the weights, as they are used. */
static const char *kept(const struct tiny *tiny, const struct model_group *group, int64_t at)
{
    const size_t width = dtype_bytes(tiny->model.act);
    const int64_t place = zero_place(&group->zero, at);
    return !group->gathered.on ? (const char *)group->weights + (size_t)at * width
           : tiny->model.act == DTYPE_F32
               ? (const char *)(group->master + place)
               : (const char *)group->gathered.kept + (size_t)place * width;
}

/* Weights that differ, of those that b keeps; a has whole ones. */
static int64_t different(const struct tiny *a, const struct tiny *b)
{
    int64_t count = 0;
    for (int64_t p = 0; p < a->model.params.count; p++) {
        const struct param *x = &a->model.params.table[p], *y = &b->model.params.table[p];
        const struct model_group *group = &b->model.group[y->group];
        const size_t width = dtype_bytes(a->model.act);
        const char *one = a->model.group[x->group].weights;
        struct param_piece piece = {y->offset, y->offset + y->count};
        if (group->gathered.on) {
            piece = param_piece(y, &group->zero, group->zero.comm->rank);
        }
        for (int64_t i = piece.first; i < piece.last; i++) {
            count += memcmp(one + (size_t)(x->offset + i - y->offset) * width, kept(b, group, i),
                            width) != 0;
        }
    }
    return count;
}

static void expect_close(struct comm *world, double got, double want, double allowed)
{
    if (!(fabs(got - want) <= allowed * fabs(want))) {
        fprintf(stderr, "%.17g, whole %.17g\n", got, want);
        CHECK(world, false);
    }
}

/* What became of weights on their way to codes, each counted once; and the codes of the blocks that
 * b has in its windows. */
static bool same_codes(const struct tiny *a, const struct tiny *b)
{
    const struct linears *one = &a->model.linears, *own = &b->model.linears;
    bool same = true;
    if (one->counters == NULL) {
        return own->counters == NULL;
    }
    same = memcmp(&one->counters[LINEAR_WEIGHTS], &own->counters[LINEAR_WEIGHTS],
                  sizeof *one->counters) == 0;
    for (int64_t l = own->first; l < own->end; l++) {
        for (int name = 0; name < LINEARS; name++) {
            const struct linear *x = linears_at(one, l, (enum linear_name)name),
                                *y = linears_at(own, l, (enum linear_name)name);
            const bool there = x->out > 0 && linears_has(own, y, l);
            const size_t bytes = (size_t)(x->matrices * x->out * x->in);
            same = same && (!there || (memcmp(x->w.code, y->w.code, bytes) == 0 &&
                                       memcmp(x->t.code, y->t.code, bytes) == 0));
        }
    }
    return same;
}

static void compare_one(struct comm *world, const struct tiny *whole, const struct curve *one,
                        const char *text, int zero, bool exact, const char *const more[MOST])
{
    static struct tiny sharded;
    struct curve own = {0};
    open_tiny(world, &sharded, text, zero, more);
    train(world, &sharded, &own);
    const bool integers = whole->model.gradients.fixed;
    for (int s = 0; s < STEPS; s++) {
        expect_close(world, own.loss[s], one->loss[s], exact ? 0 : 1e-5);
        expect_close(world, own.aux[s], one->aux[s], exact ? 0 : 1e-5);
        expect_close(world, own.norm[s], one->norm[s], integers ? 0 : exact ? 1e-12 : 1e-5);
    }
    expect_close(world, own.evaluated, one->evaluated, exact ? 0 : 1e-5);
    CHECK(world, !exact || different(whole, &sharded) == 0);
    CHECK(world, !exact || same_codes(whole, &sharded));
    const struct model_group *group = &sharded.model.group[PARAM_DENSE];
    CHECK_EQUAL(world, group->shards.on, group->zero.comm->size > 1);
    CHECK_EQUAL(world, group->gathered.on, zero == 3 && group->zero.comm->size > 1);
    tiny_close(&sharded);
}

/* exact: weights of the same bits, norms where they are summed as integers. most: of zero. */
static void compare(struct comm *world, const char *text, bool exact, int most,
                    const char *const more[MOST])
{
    static struct tiny whole;
    struct curve one = {0};
    if (world->rank == 0) {
        fprintf(stderr, "%s", text == TINY_V3 ? "v3" : text == TINY_V2 ? "v2" : "mixtral");
        for (int i = 0; i < MOST && more[i] != NULL; i++) {
            fprintf(stderr, " %s", more[i]);
        }
        fprintf(stderr, "\n");
    }
    open_tiny(world, &whole, text, 1, more);
    train(world, &whole, &one);
    for (int zero = 2; zero <= most; zero++) {
        compare_one(world, &whole, &one, text, zero, exact, more);
    }
    tiny_close(&whole);
}

/* Of a model with many layers: a share, two blocks and, for what is on its way, one more of
 * embedding or head. */
static void test_memory(struct comm *world)
{
    static const char *const overrides[] = {"parallel.zero=1", "model.num_hidden_layers=40",
                                            "parallel.zero=2"};
    static struct tiny tiny;
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        const char *const more[TINY_OVERRIDES] = {overrides[2 * i], overrides[1]};
        CHECK(world, tiny_open(&tiny, world, TINY_V3, more) == STATUS_OK);
        const struct zero *zero = &tiny.model.group[PARAM_DENSE].zero;
        const size_t experts = (size_t)(tiny.model.group[PARAM_EXPERT].zero.count +
                                        tiny.model.group[PARAM_EXPERT].zero.share) *
                               sizeof(float);
        int64_t window[3] = {0}, room = 0; /* of even parts, odd ones, embedding and head */
        bytes[i] = tiny.model.memory[MODEL_GRADIENTS] - experts;
        for (int64_t p = 0; p < zero->parts; p++) {
            const bool end = p == PARAM_PART_EMBED || p == params_part_head(&tiny.model.arch);
            const int64_t count = zero->part[p].count, w = end ? 2 : p % 2;
            window[w] = count > window[w] ? count : window[w];
            room = count > room ? count : room;
        }
        if (i == 1 && world->size > 1) {
            CHECK_EQUAL(world, bytes[i],
                        (size_t)(zero->share + window[0] + window[1] + window[2] + room) *
                            sizeof(float));
        }
        tiny_close(&tiny);
    }
    CHECK(world, world->size == 1 || 3 * bytes[1] < 2 * bytes[0]);
}

/* In bf16, of a model without modules of prediction: weights are a share and three windows. */
static void test_weight_memory(struct comm *world)
{
    static struct tiny tiny;
    const char *const more[TINY_OVERRIDES] = {"parallel.zero=3", "model.num_hidden_layers=40",
                                              "train.precision=bf16"};
    CHECK(world, tiny_open(&tiny, world, TINY_V2, more) == STATUS_OK);
    const struct zero *zero = &tiny.model.group[PARAM_DENSE].zero;
    const size_t rest = (size_t)tiny.model.group[PARAM_EXPERT].zero.count * sizeof(uint16_t),
                 bytes = tiny.model.memory[MODEL_WEIGHTS] - rest;
    int64_t window[3] = {0};
    for (int64_t p = 0; p < zero->parts; p++) {
        const bool end = p == PARAM_PART_EMBED || p == params_part_head(&tiny.model.arch);
        const int64_t count = zero->part[p].count, w = end ? 2 : p % 2;
        window[w] = count > window[w] ? count : window[w];
    }
    const int64_t expected = zero->share + window[0] + window[1] + window[2];
    CHECK(world, world->size == 1 || bytes == (size_t)expected * sizeof(uint16_t));
    CHECK(world, world->size == 1 || bytes < (size_t)zero->count * sizeof(uint16_t));
    tiny_close(&tiny);
}

#define WITH(...) ((const char *const[MOST]){__VA_ARGS__})

/* One micro-batch of one sequence on each rank. */
static void test_one_each(struct comm *world)
{
    char batch[40], ep[40];
    snprintf(batch, sizeof batch, "train.global_batch=%d", world->size);
    snprintf(ep, sizeof ep, "parallel.ep=%d", world->size);
    compare(world, TINY_MIXTRAL, true, 3, WITH("train.micro_batch=1", batch));
    compare(world, TINY_MIXTRAL, true, 3, WITH("train.micro_batch=1", batch, ep));
    compare(world, TINY_V2, true, 3, WITH("train.micro_batch=1", batch, "train.precision=bf16"));
    compare(world, TINY_V3, true, 3,
            WITH("train.micro_batch=1", batch, ep, "train.recompute=block",
                 "optimizer.freeze=*embed*,*q_a_proj*,*layers.1.*norm*"));
    compare(world, TINY_V3, true, 3,
            WITH("train.micro_batch=1", batch, "optimizer.name=muon", "optimizer.moments=bf16",
                 "train.precision=bf16"));
}

/* Several micro-batches on each: sums of integers have no order. */
static void test_integers(struct comm *world)
{
    char ep[40];
    snprintf(ep, sizeof ep, "parallel.ep=%d", world->size);
    compare(world, TINY_V3, true, 3,
            WITH("run.deterministic=layout", ep, "train.micro_batch=1",
                 "optimizer.freeze=*embed*,*q_a_proj*,*layers.1.*norm*"));
    compare(world, TINY_MIXTRAL, true, 3, WITH("run.deterministic=layout", "optimizer.name=muon"));
    if (world->size % 2 == 0) {
        compare(world, TINY_V3, true, 3,
                WITH("run.deterministic=layout", "parallel.pp=2", "train.micro_batch=1",
                     "optimizer.freeze=*q_a_proj*,*layers.1.*norm*"));
    }
}

static void test_accumulated(struct comm *world)
{
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V2, TINY_V3};
    for (int i = 0; i < 3; i++) {
        compare(world, texts[i], false, 3, WITH("train.micro_batch=1", "optimizer.lr=1e-5"));
    }
    compare(world, TINY_MIXTRAL, false, 3,
            WITH("train.micro_batch=1", "optimizer.lr=1e-5", "train.batch_ramp.start=4",
                 "train.batch_ramp.increment=4", "train.batch_ramp.tokens=64",
                 "optimizer.clip_norm=0.01"));
}

static void test_layouts(struct comm *world)
{
    if (world->size % 2 != 0) {
        return;
    }
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    static const char *const axes[] = {"parallel.pp=2", "parallel.tp=2", "parallel.cp=2"};
    for (int i = 0; i < 6; i++) {
        compare(world, texts[i / 3], false, 3,
                WITH("train.micro_batch=1", "optimizer.lr=1e-5", axes[i % 3],
                     i % 3 == 0 && world->size == 2 ? "parallel.ep=1" : "parallel.ep=2"));
    }
    for (int i = 0; i < 6; i++) {
        static const char *const schedules[] = {"parallel.virtual_stages=2",
                                                "parallel.schedule=zero_bubble",
                                                "parallel.schedule=dualpipe_v"};
        compare(world, texts[i / 3], false, 3,
                WITH("train.micro_batch=1", "optimizer.lr=1e-5", "parallel.pp=2",
                     "train.global_batch=16", schedules[i % 3], "model.num_hidden_layers=4"));
    }
}

/* Widths of multiples of 16. */
#define CODED_V3                                                                                   \
    "train.precision=fp8", "model.intermediate_size=32", "model.moe_intermediate_size=16",         \
        "model.q_lora_rank=16", "model.kv_lora_rank=16", "model.qk_nope_head_dim=16",              \
        "model.qk_rope_head_dim=16", "model.v_head_dim=16"

/* Codes are the same bytes, whenever they are made: of the update, and of what is gathered. */
static void test_fp8(struct comm *world)
{
    char batch[40];
    snprintf(batch, sizeof batch, "train.global_batch=%d", world->size);
    compare(world, TINY_MIXTRAL, true, 3,
            WITH("train.micro_batch=1", batch, "train.precision=fp8", "model.hidden_size=32",
                 "model.intermediate_size=48", "model.head_dim=16", "model.num_hidden_layers=5"));
    compare(
        world, TINY_V3, true, 3,
        WITH(CODED_V3, "train.micro_batch=1", batch, "train.recompute=block", "fp8.first_bf16=1"));
    if (world->size % 2 == 0) { /* sums of integers have no order: several micro-batches */
        compare(world, TINY_V3, true, 3,
                WITH(CODED_V3, "train.micro_batch=1", "run.deterministic=layout", "parallel.pp=2",
                     "parallel.schedule=zero_bubble"));
    }
}

/* The same sums again, of weights that are whole and gathered: the same bits. */
static void test_repeats(struct comm *world)
{
    static struct tiny a, b;
    struct curve one = {0}, own = {0};
    open_tiny(world, &a, TINY_V3, 2, WITH("train.micro_batch=1"));
    train(world, &a, &one);
    open_tiny(world, &b, TINY_V3, 3, WITH("train.micro_batch=1"));
    train(world, &b, &own);
    CHECK(world, memcmp(&one, &own, sizeof one) == 0);
    CHECK_EQUAL(world, different(&a, &b), 0);
    tiny_close(&a);
    tiny_close(&b);
}

/* Saved by one, loaded by the other and saved again: on all ranks and on one. */
static void between(struct comm *world, const char *folder, const char *text, int from, int to,
                    const char *const more[MOST])
{
    static struct tiny a, b;
    struct comm self = {0};
    struct step_result own, other;
    struct progress_state at;
    char name[3][40], path[3][160];
    for (int i = 0; i < 3; i++) {
        snprintf(name[i], sizeof name[i], "%d-%d-%s-%d", from, to, text == TINY_V3 ? "v3" : "m", i);
    }
    open_tiny(world, &a, text, from, more);
    CHECK(world, stepper_step(&a.stepper, 1, 0, &own) == STATUS_OK);
    axis_save(world, &a, folder, name[0], path[0], sizeof path[0]);
    open_tiny(world, &b, text, to, more);
    CHECK(world, state_load(&b.model, path[0], &at) == STATUS_OK);
    axis_save(world, &b, folder, name[1], path[1], sizeof path[1]);
    if (world->rank == 0) {
        axis_same(world, path[0], path[1]);
    }
    CHECK(world, stepper_step(&a.stepper, 2, 8, &own) == STATUS_OK);
    CHECK(world, stepper_step(&b.stepper, 2, 8, &other) == STATUS_OK);
    CHECK(world, own.loss == other.loss);
    tiny_close(&b);
    tiny_close(&a);
    comm_split(world, world->rank, 0, &self);
    if (world->rank == 0) {
        open_tiny(&self, &b, text, to, more);
        CHECK(world, state_load(&b.model, path[0], &at) == STATUS_OK);
        axis_save(&self, &b, folder, name[2], path[2], sizeof path[2]);
        axis_same(world, path[0], path[2]);
        tiny_close(&b);
    }
    comm_barrier(world);
    comm_free(&self);
}

static void test_checkpoints(struct comm *world)
{
    char folder[64];
    axis_folder(world, folder, sizeof folder);
    between(world, folder, TINY_MIXTRAL, 1, 2, WITH("optimizer.ema=0.5"));
    between(world, folder, TINY_V3, 2, 1, WITH("train.precision=bf16", "optimizer.moments=bf16"));
    between(world, folder, TINY_V3, 2, 3, WITH("optimizer.ema=0.5"));
    between(world, folder, TINY_MIXTRAL, 1, 3, WITH("train.precision=bf16"));
    between(world, folder, TINY_V3, 3, 1, WITH("train.precision=bf16"));
    between(world, folder, TINY_MIXTRAL, 3, 3, WITH("optimizer.name=muon"));
    axis_folder_end(world, folder);
}

/* Moments kept otherwise are converted on the way. */
static void test_moments(struct comm *world)
{
    static struct tiny a, b, c;
    struct step_result result;
    struct progress_state at;
    char folder[64], path[2][160];
    axis_folder(world, folder, sizeof folder);
    open_tiny(world, &a, TINY_V3, 1, WITH("optimizer.moments=bf16"));
    CHECK(world, stepper_step(&a.stepper, 1, 0, &result) == STATUS_OK);
    axis_save(world, &a, folder, "bf16", path[0], sizeof path[0]);
    open_tiny(world, &b, TINY_V3, 2, WITH("optimizer.moments=fp32"));
    CHECK(world, state_load(&b.model, path[0], &at) == STATUS_OK);
    axis_save(world, &b, folder, "fp32", path[1], sizeof path[1]);
    open_tiny(world, &c, TINY_V3, 2, WITH("optimizer.moments=bf16", "run.deterministic=layout"));
    CHECK(world, state_load(&c.model, path[1], &at) == STATUS_OK);
    axis_save(world, &c, folder, "back", path[1], sizeof path[1]);
    if (world->rank == 0) {
        axis_same(world, path[0], path[1]);
    }
    tiny_close(&c);
    tiny_close(&b);
    tiny_close(&a);
    axis_folder_end(world, folder);
}

static void test_verify(struct comm *world)
{
    static struct tiny tiny;
    char folder[64];
    bool good[2];
    if (world->size == 1) {
        return;
    }
    axis_folder(world, folder, sizeof folder);
    for (int lies = 0; lies < 2; lies++) {
        open_tiny(world, &tiny, TINY_V3, 3 - lies,
                  WITH("model.initializer_range=0.1", "parallel.ep=2"));
        good[lies] = axis_verified(world, &tiny, folder, offsetof(struct mesh, stage), lies == 1);
    }
    CHECK(world, world->rank != 0 || (good[0] && !good[1]));
    axis_folder_end(world, folder);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_memory),   RANKS_TEST(test_weight_memory), RANKS_TEST(test_one_each),
        RANKS_TEST(test_integers), RANKS_TEST(test_accumulated),   RANKS_TEST(test_layouts),
        RANKS_TEST(test_fp8),      RANKS_TEST(test_repeats),       RANKS_TEST(test_checkpoints),
        RANKS_TEST(test_moments),  RANKS_TEST(test_verify),
    };
    return RANKS_MAIN(tests);
}
