/* Gradients that are reduced beside backward, a block at a time, against all of them behind it: the
 * same bits of losses, norms and weights, in every layout and schedule; and by the order of what a
 * rank does: nothing starts before the last micro-batch's backward, the first parts do before it
 * has come through, and what a rank keeps beyond its scratch takes several turns.
 */
#include "axis_check.h"
#include "parallel/activity.h"
#include "tiny_model.h"

enum { MOST = 14, STEPS = 2 };

/* A wire that is not the host's own, by which a group reduces behind backward. */
static void behind_rows(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                        const int64_t *send_rows, size_t row_bytes)
{
    comm_all_to_all(comm, recv, recv_rows, send, send_rows, row_bytes);
}

static const struct comm_wire behind = {.name = "behind",
                                        .all_reduce = comm_all_reduce,
                                        .reduce_scatter = comm_reduce_scatter,
                                        .all_gather = comm_all_gather,
                                        .all_to_all = behind_rows,
                                        .detach = axis_detach};

struct curve {
    double loss[STEPS], aux[STEPS], norm[STEPS];
};

/* What a rank did in the first step, in that order. */
struct order {
    int64_t backward; /* attentions, */
    int64_t before;   /* of these, before the first reduction; */
    int64_t during;   /* reductions that started before the last of them, or before the last
                         micro-batch's gradients of weights were made; */
    int64_t started;  /* all */
};

static void note_order(struct order *order, const struct spans *spans)
{
    *order = (struct order){.before = -1};
    for (int64_t i = 0; i < spans->count; i++) {
        const struct span *span = &spans->span[i];
        if (strcmp(span->name, "attention, backward") == 0) {
            order->backward++;
            order->during = order->started;
        } else if (strcmp(span->name, "weight gradients") == 0) {
            order->during = order->started;
        } else if (strcmp(span->name, "exchange, start of a reduction") == 0) {
            order->before = order->started++ == 0 ? order->backward : order->before;
        }
    }
}

static void train(struct comm *world, struct tiny *tiny, const char *text, bool beside,
                  const char *const more[MOST], struct curve *curve, struct order *order)
{
    const char *overrides[TINY_OVERRIDES] = {"train.micro_batch=1"};
    struct spans spans;
    int count = 1;
    if (text == TINY_V3) {
        overrides[count++] = "model.num_nextn_predict_layers=1";
        overrides[count++] = "router.bias_update_speed=0.01";
    }
    for (int i = 0; i < MOST && more[i] != NULL; i++) {
        overrides[count++] = more[i];
    }
    CHECK(world, tiny_open(tiny, world, text, overrides) == STATUS_OK);
    struct comm *const groups[] = {&tiny->mesh.stage, &tiny->mesh.replicas, &tiny->mesh.edp};
    for (int i = 0; i < 3; i++) {
        groups[i]->wire = beside ? NULL : &behind;
    }
    CHECK(world, spans_init(&spans, 1 << 16) == STATUS_OK);
    for (int s = 0; s < STEPS; s++) {
        struct step_result result;
        world->activity->spans = s == 0 ? &spans : NULL;
        CHECK(world, stepper_step(&tiny->stepper, s + 1, s * tiny->config.train.global_batch,
                                  &result) == STATUS_OK);
        curve->loss[s] = result.loss;
        curve->aux[s] = result.aux_loss;
        curve->norm[s] = result.grad_norm;
    }
    CHECK(world, spans.count < spans.room);
    note_order(order, &spans);
    spans_free(&spans);
}

static bool same_weights(const struct tiny *a, const struct tiny *b)
{
    bool same = true;
    for (int g = 0; g < a->model.params.groups; g++) {
        const struct model_group *x = &a->model.group[g], *y = &b->model.group[g];
        const size_t share = (size_t)x->zero.share, width = dtype_bytes(a->model.act);
        same = same && memcmp(x->master, y->master, share * sizeof(float)) == 0 &&
               (x->weights == NULL ||
                memcmp(x->weights, y->weights, (size_t)x->zero.count * width) == 0);
    }
    return same;
}

/* How it went beside backward. */
static struct order compare(struct comm *world, const char *text, const char *const more[MOST])
{
    static struct tiny tiny[2];
    struct curve curve[2] = {0};
    struct order order[2];
    if (world->rank == 0) {
        fprintf(stderr, "%s", text == TINY_V3 ? "v3" : "mixtral");
        for (int i = 0; i < MOST && more[i] != NULL; i++) {
            fprintf(stderr, " %s", more[i]);
        }
        fprintf(stderr, "\n");
    }
    for (int i = 0; i < 2; i++) {
        train(world, &tiny[i], text, i == 0, more, &curve[i], &order[i]);
    }
    CHECK(world, memcmp(&curve[0], &curve[1], sizeof curve[0]) == 0);
    CHECK(world, same_weights(&tiny[0], &tiny[1]));
    CHECK_EQUAL(world, order[1].started, 0);
    CHECK_EQUAL(world, order[0].backward, order[1].backward);
    tiny_close(&tiny[0]);
    tiny_close(&tiny[1]);
    return order[0];
}

#define WITH(...) ((const char *const[MOST]){__VA_ARGS__})

/* Eight micro-batches of all ranks; of a model of `blocks` blocks. */
static void expect_beside(struct comm *world, struct order order, int64_t blocks)
{
    const int64_t own = 8 / world->size;
    CHECK_EQUAL(world, order.backward, own * blocks);
    if (world->size > 1) {
        CHECK(world,
              order.before >= (own - 1) * blocks); /* all micro-batches' but the last one's */
        CHECK(world, order.before < own * blocks);
        CHECK(world, order.during > 0 && order.during < order.started);
    }
}

static void test_blocks(struct comm *world)
{
    for (int ep = 1; ep <= world->size; ep *= 2) {
        char divide[40];
        snprintf(divide, sizeof divide, "parallel.ep=%d", ep);
        expect_beside(world, compare(world, TINY_MIXTRAL, WITH(divide)), 3);
        expect_beside(world, compare(world, TINY_V3, WITH(divide, "train.precision=bf16")), 4);
        if (ep > 1) { /* the last backward is beside no forward, all others are */
            compare(world, TINY_V3, WITH(divide, "parallel.overlap=on", "train.global_batch=16"));
        }
        compare(world, TINY_V3,
                WITH(divide, "run.deterministic=layout", "train.recompute=block",
                     "optimizer.freeze=*embed*,*q_a_proj*,*layers.1.*norm*"));
    }
    compare(world, TINY_V3,
            WITH("optimizer.name=muon", "optimizer.moments=bf16", "train.precision=bf16",
                 "optimizer.clip_norm=0.01"));
    compare(world, TINY_MIXTRAL,
            WITH("train.batch_ramp.start=4", "train.batch_ramp.increment=4",
                 "train.batch_ramp.tokens=64", "optimizer.clip_norm=0.01",
                 "router.dispatch=padded"));
    compare(world, TINY_MIXTRAL,
            WITH("train.precision=fp8", "model.hidden_size=32", "model.intermediate_size=48",
                 "model.head_dim=16"));
}

/* Shares of more than their rank has room for at once: of one block, the embedding is most of all.
 */
static void test_pieces(struct comm *world)
{
    const char *const more[MOST] = {"model.vocab_size=1000", "model.num_hidden_layers=1"};
    const struct order order = compare(world, TINY_MIXTRAL, more);
    CHECK(world, world->size == 1 || order.started > world->size + 2);
}

static void test_layouts(struct comm *world)
{
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    static const char *const axes[] = {"parallel.tp=2", "parallel.cp=2", "parallel.etp=2",
                                       "parallel.zero=2"};
    for (int i = 0; i < 8 && world->size > 1; i++) {
        compare(world, texts[i / 4], WITH(axes[i % 4]));
    }
}

/* Every schedule that trains; blocks are whole where their gradients of weights are made. Two ranks
 * a stage: of experts (ep 1) and of all else. SWITCHYARD_FULL=1: both families in each. */
static void test_pipelines(struct comm *world)
{
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    static const char *const cases[][3] = {
        {"parallel.ep=1", "parallel.schedule=1f1b"},
        {"parallel.ep=2", "parallel.schedule=1f1b", "parallel.virtual_stages=2"},
        {"parallel.ep=1", "parallel.schedule=zero_bubble"},
        {"parallel.ep=2", "parallel.schedule=zero_bubble"},
        {"parallel.ep=1", "parallel.schedule=dualpipe_v"},
        {"parallel.ep=2", "parallel.schedule=dualpipe_v"},
        {"parallel.ep=2", "parallel.schedule=dualpipe_v", "parallel.overlap=off"},
    };
    enum { CASES = sizeof cases / sizeof cases[0] };
    const int families = axis_full() ? 2 : 1;
    for (int i = 0; i < families * CASES && world->size == 4; i++) {
        const char *const *own = cases[i / families];
        const char *const more[MOST] = {
            "parallel.pp=2", "model.num_hidden_layers=4", "train.global_batch=16", own[0], own[1],
            own[2]};
        const struct order order = compare(world, texts[(i + 1) % 2], more);
        CHECK(world, order.during > 0);
    }
}

int main(void)
{
    const struct ranks_test tests[] = {RANKS_TEST(test_blocks), RANKS_TEST(test_pieces),
                                       RANKS_TEST(test_layouts), RANKS_TEST(test_pipelines)};
    return RANKS_MAIN(tests);
}
