/* lane: dualpipe_v's pairs with their passes side by side, and one behind the other, have the same
 * bits, whatever is exchanged and kept; exchanges of two passes are under way at once.
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

static void train(struct comm *world, const char *text, const char *const *more,
                  const char *overlap, struct outcome *out)
{
    static struct tiny tiny;
    const char *list[TINY_OVERRIDES] = {
        "parallel.pp=2",       "parallel.schedule=dualpipe_v", "model.num_hidden_layers=8",
        "train.micro_batch=1", "model.initializer_range=0.1",  overlap};
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

static void compare(struct comm *world, const char *text, const char *const *more, bool rounds)
{
    struct outcome beside, behind;
    train(world, text, more, "parallel.overlap=on", &beside);
    train(world, text, more, "parallel.overlap=off", &behind);
    CHECK(world, memcmp(beside.loss, behind.loss, sizeof beside.loss) == 0);
    CHECK(world, memcmp(beside.mtp, behind.mtp, sizeof beside.mtp) == 0);
    CHECK(world, memcmp(beside.aux, behind.aux, sizeof beside.aux) == 0);
    CHECK(world, memcmp(beside.norm, behind.norm, sizeof beside.norm) == 0);
    CHECK_EQUAL(world, beside.rounds, behind.rounds);
    CHECK_EQUAL(world, beside.rounds > 0, rounds);
    CHECK_EQUAL(world, behind.most, 1);
    CHECK_EQUAL(world, beside.most, 2);
    CHECK_EQUAL(world, beside.bytes, 2 * behind.bytes);
}

#define V3                                                                                         \
    "model.num_nextn_predict_layers=1", "router.bias_update_speed=0.01",                           \
        "router.sequence_loss_coef=0.01"
#define MIXTRAL                                                                                    \
    "router.batch_loss_coef=0.02", "model.num_attention_heads=4", "model.num_key_value_heads=2"
#define CODED                                                                                      \
    "train.precision=fp8", "model.hidden_size=32", "model.intermediate_size=48", "model.head_dim=16"

static void test_same_bits(struct comm *world)
{
    static const struct {
        const char *text, *more[8];
        bool rounds; /* more than one, somewhere */
    } cases[] = {{.text = TINY_V3, .more = {V3, "parallel.ep=2"}},
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
            compare(world, cases[i].text, cases[i].more, cases[i].rounds);
        }
    }
}

/* Where nothing is exchanged there is one lane. */
static void test_alone(struct comm *world)
{
    const char *const more[] = {V3, NULL};
    struct outcome out, one;
    if (world->size == 2) {
        train(world, TINY_V3, more, "parallel.overlap=auto", &out);
        CHECK_EQUAL(world, out.most, 0);
        train(world, TINY_V3, (const char *const[]){V3, "train.recompute=block", NULL},
              "parallel.overlap=auto", &one);
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
    static const struct ranks_test tests[] = {RANKS_TEST(test_same_bits), RANKS_TEST(test_alone),
                                              RANKS_TEST(test_stacks)};
    return RANKS_MAIN(tests);
}
