/* lane: passes side by side, in dualpipe_v's pairs and without stages, and one behind the other,
 * have the same bits, whatever is exchanged and kept; exchanges of two passes are under way at
 * once.
 */
#include <string.h>

#include "ranks.h"
#include "tiny_model.h"

enum { STEPS = 2 };

/* What is under way in the group of the experts. */
static struct {
    const struct comm_table *real;
    int now, most;
} way;

static void count_start(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                        const int64_t *send_rows, size_t row_bytes, struct comm_rows *rows)
{
    way.most = ++way.now > way.most ? way.now : way.most;
    way.real->rows_start(comm, recv, recv_rows, send, send_rows, row_bytes, rows);
}

static void count_finish(struct comm *comm, struct comm_rows *rows)
{
    way.now--;
    way.real->rows_finish(comm, rows);
}

struct outcome {
    double loss[STEPS], mtp[STEPS], aux[STEPS], norm[STEPS];
    int64_t rounds;
    size_t bytes;
    int most;
};

/* With stages, and without. */
enum { STAGED, WHOLE };
static const char *const bases[2][3] = {
    [STAGED] = {"parallel.pp=2", "parallel.schedule=dualpipe_v", "model.num_hidden_layers=8"},
    [WHOLE] = {"parallel.pp=1", "parallel.schedule=auto", "model.num_hidden_layers=3"}};

static void train(struct comm *world, const char *const *base, const char *text,
                  const char *const *more, const char *overlap, struct outcome *out)
{
    static struct tiny tiny;
    const char *list[TINY_OVERRIDES] = {
        base[0], base[1], base[2], "train.micro_batch=1", "model.initializer_range=0.1", overlap};
    int count = 6;
    for (int i = 0; more[i] != NULL; i++) {
        CHECK(world, count < TINY_OVERRIDES);
        list[count++] = more[i];
    }
    if (tiny_open(&tiny, world, text, list) != STATUS_OK) {
        fprintf(stderr, "%s\n", status_message());
        CHECK(world, false);
    }
    struct comm *group = &tiny.mesh.experts;
    struct comm_table table = *group->table;
    *out = (struct outcome){.bytes = tiny.model.memory[MODEL_EXCHANGE]};
    way.real = group->table;
    way.now = way.most = 0;
    table.rows_start = count_start;
    table.rows_finish = count_finish;
    group->table = &table;
    for (int s = 0; s < STEPS; s++) {
        struct step_result result;
        CHECK(world, stepper_step(&tiny.stepper, s + 1, s * tiny.config.train.global_batch,
                                  &result) == STATUS_OK);
        out->loss[s] = result.loss;
        out->mtp[s] = result.mtp_loss;
        out->aux[s] = result.aux_loss;
        out->norm[s] = result.grad_norm;
        out->rounds += result.extra_rounds;
    }
    group->table = way.real;
    out->most = way.most;
    CHECK_EQUAL(world, way.now, 0);
    tiny_close(&tiny);
}

static void compare(struct comm *world, const char *const *base, const char *text,
                    const char *const *more, bool rounds)
{
    struct outcome beside, behind;
    train(world, base, text, more, "parallel.overlap=on", &beside);
    train(world, base, text, more, "parallel.overlap=off", &behind);
    CHECK(world, memcmp(beside.loss, behind.loss, sizeof beside.loss) == 0);
    CHECK(world, memcmp(beside.mtp, behind.mtp, sizeof beside.mtp) == 0);
    CHECK(world, memcmp(beside.aux, behind.aux, sizeof beside.aux) == 0);
    CHECK(world, memcmp(beside.norm, behind.norm, sizeof beside.norm) == 0);
    CHECK_EQUAL(world, beside.rounds, behind.rounds);
    CHECK_EQUAL(world, beside.rounds > 0, rounds);
    CHECK_EQUAL(world, behind.most, 1);
    CHECK_EQUAL(world, beside.most, 2);
    CHECK(world, beside.bytes > behind.bytes && beside.bytes < 2 * behind.bytes);
}

#define V3                                                                                         \
    "model.num_nextn_predict_layers=1", "router.bias_update_speed=0.01",                           \
        "router.sequence_loss_coef=0.01"
#define MIXTRAL                                                                                    \
    "router.batch_loss_coef=0.02", "model.num_attention_heads=4", "model.num_key_value_heads=2"
#define CODED                                                                                      \
    "train.precision=fp8", "model.hidden_size=32", "model.intermediate_size=48", "model.head_dim=16"

struct lanes_case {
    const char *text, *more[14];
    bool rounds; /* more than one, somewhere */
};

#define CODED_V3                                                                                   \
    "train.precision=fp8", "model.intermediate_size=32", "model.moe_intermediate_size=16",         \
        "model.q_lora_rank=16", "model.kv_lora_rank=32", "model.qk_nope_head_dim=16",              \
        "model.qk_rope_head_dim=16", "model.v_head_dim=16"

static void test_stages(struct comm *world)
{
    static const struct lanes_case cases[] = {
        {.text = TINY_V3, .more = {V3, "parallel.ep=2"}},
        {.text = TINY_V3, .more = {V3, "parallel.ep=2", "train.recompute=block"}},
        {.text = TINY_V3,
         .more = {V3, "parallel.ep=2", "train.recompute=norms", "train.precision=bf16"}},
        {.text = TINY_V3,
         .more = {V3, "parallel.ep=2", "train.recompute=experts", "parallel.zero=2"}},
        {.text = TINY_V3, .more = {V3, "parallel.ep=2", "router.dispatch=padded"}},
        {.text = TINY_V3, .more = {V3, "parallel.ep=2", "router.capacity_factor=1"}},
        {.text = TINY_V3, .more = {V3, "parallel.ep=2", "parallel.tp=2"}},
        {.text = TINY_V3, .more = {V3, "parallel.etp=2"}},
        {.text = TINY_MIXTRAL,
         .more = {MIXTRAL, "parallel.ep=2", "router.buffer_factor=1"},
         .rounds = true},
        {.text = TINY_MIXTRAL, .more = {MIXTRAL, "parallel.ep=2", "parallel.cp=2"}},
        {.text = TINY_MIXTRAL, .more = {CODED, "parallel.ep=2", "train.recompute=norms"}}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (world->size == 4) {
            compare(world, bases[STAGED], cases[i].text, cases[i].more, cases[i].rounds);
        }
    }
}

/* ep of all ranks, or half of them. */
static void test_whole(struct comm *world)
{
    static const struct lanes_case
        two[] = {{.text = TINY_V3, .more = {V3, "parallel.ep=2"}},
                 {.text = TINY_V3, .more = {V3, "parallel.ep=2", "train.recompute=block"}},
                 {.text = TINY_V3,
                  .more = {V3, "parallel.ep=2", "train.recompute=norms", "train.precision=bf16"}},
                 {.text = TINY_V3, .more = {V3, "parallel.ep=2", "router.capacity_factor=1"}},
                 {.text = TINY_V3, .more = {V3, "parallel.etp=2", "router.dispatch=padded"}},
                 {.text = TINY_V3, .more = {V3, "parallel.ep=2", "run.deterministic=layout"}},
                 {.text = TINY_MIXTRAL,
                  .more = {MIXTRAL, "parallel.ep=2", "router.buffer_factor=1",
                           "optimizer.name=muon"},
                  .rounds = true},
                 {.text = TINY_V3, .more = {V3, "parallel.ep=2", CODED_V3}},
                 {.text = TINY_MIXTRAL,
                  .more = {CODED, "parallel.ep=2", "train.recompute=experts"}}},
        four[] = {{.text = TINY_V3, .more = {V3, "parallel.ep=4", "parallel.zero=2"}},
                  {.text = TINY_V3,
                   .more = {V3, "parallel.ep=2", "parallel.tp=2", "train.micro_batch=2"}},
                  {.text = TINY_MIXTRAL, .more = {MIXTRAL, "parallel.ep=2", "parallel.etp=2"}},
                  {.text = TINY_MIXTRAL, .more = {MIXTRAL, "parallel.ep=2", "parallel.cp=2"}}};
    const struct lanes_case *cases = world->size == 2 ? two : four;
    const size_t count = world->size == 2   ? sizeof two / sizeof two[0]
                         : world->size == 4 ? sizeof four / sizeof four[0]
                                            : 0;
    for (size_t i = 0; i < count; i++) {
        compare(world, bases[WHOLE], cases[i].text, cases[i].more, cases[i].rounds);
    }
}

/* A growing batch: the first step has one micro-batch, beside which nothing runs; a step of one
 * alone is refused. */
static void test_few(struct comm *world)
{
    static const char *const ramp[] = {V3,
                                       "parallel.ep=2",
                                       "train.batch_ramp.start=2",
                                       "train.batch_ramp.increment=6",
                                       "train.batch_ramp.tokens=64",
                                       NULL},
                             *const one[TINY_OVERRIDES] = {"parallel.ep=2", "parallel.overlap=on",
                                                           "train.global_batch=4"};
    static struct tiny tiny;
    if (world->size == 2) {
        compare(world, bases[WHOLE], TINY_V3, ramp, false);
        CHECK(world, tiny_open(&tiny, world, TINY_V3, one) == STATUS_USAGE);
        CHECK(world, strstr(status_message(), "one micro-batch a step") != NULL);
        tiny_close(&tiny);
    }
}

/* Where nothing is exchanged there is one lane. */
static void test_alone(struct comm *world)
{
    const char *const more[] = {V3, NULL};
    struct outcome out, one;
    if (world->size == 2) {
        train(world, bases[STAGED], TINY_V3, more, "parallel.overlap=auto", &out);
        CHECK_EQUAL(world, out.most, 0);
        train(world, bases[STAGED], TINY_V3,
              (const char *const[]){V3, "train.recompute=block", NULL}, "parallel.overlap=auto",
              &one);
        CHECK_EQUAL(world, one.bytes, out.bytes);
    }
}

/* What is measured only has no stacks to run on. */
static void test_stacks(struct comm *world)
{
    static struct tiny tiny;
    static struct model measured;
    const char *const list[TINY_OVERRIDES] = {"parallel.pp=2", "parallel.schedule=dualpipe_v",
                                              "model.num_hidden_layers=8", "parallel.ep=2",
                                              "train.micro_batch=1"};
    if (world->size != 4) {
        return;
    }
    CHECK_EQUAL(world, tiny_open(&tiny, world, TINY_V3, list), STATUS_OK);
    CHECK_EQUAL(world,
                model_measure(&measured, &tiny.config, &tiny.mesh, tiny.device, tiny.model.batch,
                              tiny.model.length, true),
                STATUS_OK);
    CHECK_EQUAL(world, measured.lanes.count, LANES);
    for (int i = 0; i < LANES; i++) {
        CHECK(world, tiny.model.lanes.fiber[i].stack != NULL);
        CHECK(world, measured.lanes.fiber[i].stack == NULL);
    }
    CHECK_EQUAL(world, measured.memory[MODEL_EXCHANGE], tiny.model.memory[MODEL_EXCHANGE]);
    model_free(&measured);
    tiny_close(&tiny);
}

int main(void)
{
    static const struct ranks_test tests[] = {RANKS_TEST(test_stages), RANKS_TEST(test_whole),
                                              RANKS_TEST(test_few), RANKS_TEST(test_alone),
                                              RANKS_TEST(test_stacks)};
    return RANKS_MAIN(tests);
}
