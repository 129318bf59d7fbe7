/* Pipelines that train: tiny models in stages against one rank, for every schedule and beside every
 * other axis; the same bits where run.deterministic layout promises them; evaluation; checkpoints
 * between layouts; verify finds a reduction of the shared embedding that is missing.
 * SWITCHYARD_FULL=1: more layouts, all steps.
 */
#include <math.h>
#include <string.h>

#include "axis_check.h"

enum { STEPS = 10, LAYERS = 6 };

struct curve {
    double loss[STEPS], mtp[STEPS], aux[STEPS], norm[STEPS], evaluated;
    double load[STEPS]; /* of the last block with experts */
    int64_t extra_rounds;
};

/* What both sides of a comparison have. */
struct kind {
    const char *text;
    const char *more[5];
};

/* Divisions of the model; 0 stands for 1. */
struct axes {
    int pp, ep, tp;
    const char *more; /* NULL, or up to two more settings, between them a blank */
};

static void open_tiny(struct comm *world, struct tiny *tiny, const struct kind *kind,
                      const struct axes *axes)
{
    const char *overrides[TINY_OVERRIDES] = {0};
    char layout[3][32], more[96] = "";
    int count = 0;
    snprintf(layout[0], sizeof layout[0], "parallel.pp=%d", axes->pp);
    snprintf(layout[1], sizeof layout[1], "parallel.ep=%d", axes->ep > 0 ? axes->ep : 1);
    snprintf(layout[2], sizeof layout[2], "parallel.tp=%d", axes->tp > 0 ? axes->tp : 1);
    for (int i = 0; i < 3; i++) {
        overrides[count++] = layout[i];
    }
    overrides[count++] = "model.num_hidden_layers=6";
    overrides[count++] = "model.initializer_range=0.1";
    for (int i = 0; i < 5 && kind->more[i] != NULL; i++) {
        overrides[count++] = kind->more[i];
    }
    snprintf(more, sizeof more, "%s", axes->more != NULL ? axes->more : "");
    for (char *rest = more, *one = strtok_r(more, " ", &rest); one != NULL;
         one = strtok_r(NULL, " ", &rest)) {
        CHECK(world, count < TINY_OVERRIDES);
        overrides[count++] = one;
    }
    CHECK(world, tiny_open(tiny, world, kind->text, overrides) == STATUS_OK);
}

static enum status leave_at_second(void *context)
{
    int *calls = context;
    *calls += 1;
    return *calls < 2 ? STATUS_OK : status_fail(STATUS_PREEMPTED, "left");
}

/* In its midst, on every rank; what follows is none the wiser. */
static void leave_evaluation(struct comm *world, struct tiny *tiny)
{
    int calls = 0;
    double loss = 0;
    int64_t labels = 0;
    const struct step_ask ask = {.call = leave_at_second, .context = &calls};
    CHECK_EQUAL(world, step_evaluate(&tiny->model, &tiny->loader, 5, &ask, &loss, &labels),
                STATUS_PREEMPTED);
    CHECK_EQUAL(world, calls, 2);
}

static void train(struct comm *world, const struct kind *kind, const struct axes *axes, int steps,
                  struct curve *curve)
{
    static struct tiny tiny;
    int64_t labels = 0;
    open_tiny(world, &tiny, kind, axes);
    for (int s = 0; s < steps; s++) {
        struct step_result result;
        CHECK(world, stepper_step(&tiny.stepper, s + 1, s * tiny.config.train.global_batch,
                                  &result) == STATUS_OK);
        curve->loss[s] = result.loss;
        curve->mtp[s] = result.mtp_loss;
        curve->aux[s] = result.aux_loss;
        curve->norm[s] = result.grad_norm;
        curve->load[s] = tiny.stepper.expert_load[tiny.stepper.moe_blocks - 1];
        curve->extra_rounds += result.extra_rounds;
    }
    leave_evaluation(world, &tiny);
    CHECK(world, step_evaluate(&tiny.model, &tiny.loader, 5, NULL, &curve->evaluated, &labels) ==
                     STATUS_OK);
    CHECK_EQUAL(world, labels, 5 * tiny.config.train.micro_batch * 8);
    tiny_close(&tiny);
}

static void expect_close(struct comm *world, const char *what, int step, double got, double want,
                         double allowed)
{
    if (!(isnan(got) && isnan(want)) && !(fabs(got - want) <= allowed * fabs(want))) {
        fprintf(stderr, "%s of step %d: %.17g, on one rank %.17g\n", what, step + 1, got, want);
        CHECK(world, false);
    }
}

/* exact: the same bits. */
static void compare(struct comm *world, const struct kind *kind, const struct curve *one,
                    const struct axes *axes, int steps, bool exact)
{
    struct curve own = {0};
    if (world->rank == 0) {
        fprintf(stderr, "%s pp %d ep %d tp %d %s %s\n", kind->text == TINY_V3 ? "v3" : "mixtral",
                axes->pp, axes->ep, axes->tp, kind->more[0], axes->more != NULL ? axes->more : "");
    }
    train(world, kind, axes, steps, &own);
    for (int s = 0; s < steps; s++) {
        const double first = exact ? 0 : s == 0 ? 1e-6 : 1e-5, later = exact ? 0 : 1e-5;
        expect_close(world, "loss", s, own.loss[s], one->loss[s], first);
        expect_close(world, "balance loss", s, own.aux[s], one->aux[s], first);
        expect_close(world, "prediction loss", s, own.mtp[s], one->mtp[s], first);
        expect_close(world, "gradient norm", s, own.norm[s], one->norm[s], later);
        expect_close(world, "load", s, own.load[s], one->load[s], s == 0 || exact ? 0 : 0.5);
    }
    expect_close(world, "evaluation", steps - 1, own.evaluated, one->evaluated, exact ? 0 : 1e-5);
}

static const struct kind mixtral = {TINY_MIXTRAL,
                                    {"router.batch_loss_coef=0.02", "model.num_attention_heads=4",
                                     "model.num_key_value_heads=2"}},
                         v3 = {TINY_V3,
                               {"model.num_nextn_predict_layers=1", "router.bias_update_speed=0.01",
                                "router.sequence_loss_coef=0.01"}};

/* Whether there are ranks for it, and as many micro-batches as dualpipe_v wants. */
static bool enough(const struct comm *world, const struct kind *kind, const struct axes *axes)
{
    const char *more = axes->more != NULL ? axes->more : "";
    const int cp = strstr(more, "parallel.cp=2") != NULL ? 2 : 1, tp = axes->tp > 0 ? axes->tp : 1;
    int micro = 2;
    for (int i = 0; i < 5 && kind->more[i] != NULL; i++) {
        micro = strcmp(kind->more[i], "train.micro_batch=1") == 0 ? 1 : micro;
    }
    if (world->size % (axes->pp * tp * cp) != 0) {
        return false;
    }
    return strstr(more, "dualpipe_v") == NULL ||
           8 / micro / (world->size / (axes->pp * tp * cp)) >= 2 * axes->pp;
}

static void compare_all(struct comm *world, const struct kind *kind, const struct axes *axes,
                        size_t count, int steps, bool exact)
{
    struct comm alone = {0};
    struct curve one = {0};
    const struct axes whole = {.pp = 1};
    comm_split(world, world->rank, 0, &alone);
    train(&alone, kind, &whole, steps, &one);
    for (size_t i = 0; i < count; i++) {
        const int ep = axes[i].ep > 0 ? axes[i].ep : 1, tp = axes[i].tp > 0 ? axes[i].tp : 1;
        if (world->size % (axes[i].pp * ep) == 0 && world->size % (axes[i].pp * tp) == 0 &&
            enough(world, kind, &axes[i])) {
            compare(world, kind, &one, &axes[i], steps, exact);
        }
    }
    comm_free(&alone);
}

static const struct axes layouts[] = {{2, 2, 1, NULL}, /* the first of them in any case */
                                      {4, 1, 1, NULL},
                                      {2, 1, 1, NULL},
                                      {2, 1, 1, "parallel.virtual_stages=2"},
                                      {2, 1, 2, NULL},
                                      {2, 2, 1, "parallel.virtual_stages=2"},
                                      {2, 2, 2, "train.recompute=block"},
                                      {4, 1, 1, "train.recompute=norms"},
                                      {2, 2, 1, "router.dispatch=padded"},
                                      {2, 2, 1, "train.recompute=experts"},
                                      {2, 2, 1, "parallel.cp=2"}};

/* Backward in two halves. Twice as many micro-batches, and layers for eight stages. */
static const struct kind split_mixtral = {TINY_MIXTRAL,
                                          {"router.batch_loss_coef=0.02",
                                           "model.num_attention_heads=4",
                                           "model.num_key_value_heads=2", "train.micro_batch=1",
                                           "model.num_hidden_layers=8"}},
                         split_v3 = {TINY_V3,
                                     {"model.num_nextn_predict_layers=1",
                                      "router.bias_update_speed=0.01",
                                      "router.sequence_loss_coef=0.01", "train.micro_batch=1",
                                      "model.num_hidden_layers=8"}};

#define ZERO_BUBBLE "parallel.schedule=zero_bubble"
#define DUALPIPE_V "parallel.schedule=dualpipe_v"

static const struct axes splits[] = {{2, 2, 1, DUALPIPE_V},
                                     {2, 1, 1, DUALPIPE_V},
                                     {2, 1, 1, ZERO_BUBBLE},
                                     {4, 1, 1, ZERO_BUBBLE},
                                     {4, 1, 1, DUALPIPE_V},
                                     {2, 2, 1, ZERO_BUBBLE},
                                     {2, 1, 2, ZERO_BUBBLE},
                                     {2, 2, 2, DUALPIPE_V},
                                     {2, 1, 1, DUALPIPE_V " train.recompute=block"},
                                     {4, 1, 1, DUALPIPE_V " train.recompute=norms"},
                                     {4, 1, 1, ZERO_BUBBLE " train.recompute=norms"},
                                     {2, 2, 2, ZERO_BUBBLE " train.recompute=block"},
                                     {4, 1, 1, ZERO_BUBBLE " train.recompute=experts"},
                                     {2, 2, 1, DUALPIPE_V " router.dispatch=padded"},
                                     {4, 1, 1, ZERO_BUBBLE " router.buffer_factor=1"},
                                     {2, 2, 1, ZERO_BUBBLE " router.buffer_factor=1"},
                                     {2, 2, 1, ZERO_BUBBLE " parallel.cp=2"},
                                     {2, 1, 1, DUALPIPE_V " parallel.cp=2"},
                                     {2, 1, 1, ZERO_BUBBLE " parallel.stages=[2,6]"}};

static void test_splits(struct comm *world)
{
    const size_t few = world->size == 2 ? 3 : 1, all = sizeof splits / sizeof splits[0];
    const int steps = axis_full() ? STEPS : 2;
    if (world->size == 1) {
        return;
    }
    compare_all(world, &split_mixtral, splits, axis_full() ? all - 1 : few, steps, false);
    compare_all(world, &split_v3, splits, axis_full() ? all - 1 : few + 1, steps, false);
    if (axis_full()) {
        compare_all(world, &split_mixtral, splits + all - 1, 1, steps, false);
    }
}

static void test_layouts(struct comm *world)
{
    const size_t few = world->size == 2 ? 4 : 1, all = sizeof layouts / sizeof layouts[0];
    const int steps = axis_full() ? STEPS : 2;
    if (world->size == 1) {
        return;
    }
    compare_all(world, &mixtral, layouts, axis_full() ? all : few, steps, false);
    compare_all(world, &v3, layouts, axis_full() ? all : few + 1, steps, false);
}

static void test_same_bits(struct comm *world)
{
    static const struct axes axes[] = {
        {2, 2, 1, NULL},        {2, 1, 1, "parallel.virtual_stages=2"},
        {2, 1, 1, ZERO_BUBBLE}, {2, 1, 1, DUALPIPE_V},
        {4, 1, 1, ZERO_BUBBLE}, {2, 1, 1, "parallel.stages=[2,5]"},
        {4, 1, 1, NULL}};
    static const struct kind kinds[] = {
        {TINY_V3,
         {"run.deterministic=layout", "model.num_nextn_predict_layers=1", "train.precision=bf16"}},
        {TINY_V3,
         {"run.deterministic=layout", "model.num_nextn_predict_layers=1",
          "router.bias_update_speed=0.01"}},
        {TINY_V3,
         {"run.deterministic=layout", "model.num_nextn_predict_layers=1", "optimizer.name=muon",
          "optimizer.ema=0.5", "router.capacity_factor=1"}},
        {TINY_MIXTRAL,
         {"run.deterministic=layout", "train.precision=fp8", "model.hidden_size=32",
          "model.intermediate_size=48", "model.head_dim=16"}},
        {TINY_MIXTRAL,
         {"run.deterministic=layout", "router.batch_loss_coef=0.02",
          "model.router_jitter_noise=0.1"}}};
    const size_t all = sizeof axes / sizeof axes[0];
    if (world->size == 1) {
        return;
    }
    for (size_t k = 0; k < (axis_full() ? sizeof kinds / sizeof kinds[0] : 1); k++) {
        const bool v3_blocks = kinds[k].text == TINY_V3;
        compare_all(world, &kinds[k], axes,
                    !axis_full() ? 4
                    : v3_blocks  ? all
                                 : all - 2,
                    axis_full() ? 3 : 2, true);
    }
}

/* From one rank to stages and back; initial weights are the same whatever the stages. */
static void between_layouts(struct comm *world, const struct kind *kind, const struct axes *axes,
                            const char *folder, const char *name)
{
    static struct tiny alone, tiny;
    const struct axes whole = {.pp = 1};
    struct comm self = {0};
    struct step_result result;
    struct progress_state at;
    char path[4][160], label[4][24];
    for (int i = 0; i < 4; i++) {
        snprintf(label[i], sizeof label[i], "%s%d", name, i);
    }
    comm_split(world, world->rank == 0 ? 0 : 1, world->rank, &self);
    open_tiny(world, &tiny, kind, axes);
    axis_save(world, &tiny, folder, label[0], path[0], sizeof path[0]);
    if (world->rank == 0) {
        open_tiny(&self, &alone, kind, &whole);
        axis_save(&self, &alone, folder, label[1], path[1], sizeof path[1]);
        axis_same(world, path[0], path[1]);
        CHECK(world, stepper_step(&alone.stepper, 1, 0, &result) == STATUS_OK);
        axis_save(&self, &alone, folder, label[2], path[2], sizeof path[2]);
    }
    comm_broadcast(world, path[2], sizeof path[2], 0);
    if (tiny.config.run.deterministic == CONFIG_DETERMINISTIC_LAYOUT) { /* every tensor's bits */
        char stepped[24];
        snprintf(stepped, sizeof stepped, "%s-step", name);
        CHECK(world, stepper_step(&tiny.stepper, 1, 0, &result) == STATUS_OK);
        axis_save(world, &tiny, folder, stepped, path[3], sizeof path[3]);
        if (world->rank == 0) {
            axis_same(world, path[2], path[3]);
        }
    }
    CHECK(world, state_load(&tiny.model, path[2], &at) == STATUS_OK);
    axis_save(world, &tiny, folder, label[3], path[3], sizeof path[3]);
    if (world->rank == 0) {
        axis_same(world, path[2], path[3]);
        tiny_close(&alone);
    }
    tiny_close(&tiny);
    comm_free(&self);
}

static void test_checkpoints(struct comm *world)
{
    static const struct kind layout = {
        TINY_V3, {"run.deterministic=layout", "model.num_nextn_predict_layers=1"}};
    static const struct axes plain = {.pp = 2}, thin = {2, 1, 1, "parallel.virtual_stages=2"},
                             turned = {2, 1, 1, DUALPIPE_V};
    char folder[64];
    if (world->size == 1) {
        return;
    }
    axis_folder(world, folder, sizeof folder);
    between_layouts(world, &layout, &plain, folder, "v3");
    if (axis_full()) {
        between_layouts(world, &mixtral, &thin, folder, "mixtral");
        between_layouts(world, world->size == 2 ? &mixtral : &split_mixtral, &turned, folder,
                        "turned");
    }
    axis_folder_end(world, folder);
}

/* What verify says, at rank 0. */
static bool verified(struct comm *world, const struct kind *kind, const char *folder, bool lies)
{
    static struct tiny tiny;
    const struct axes axes = {.pp = 2};
    open_tiny(world, &tiny, kind, &axes);
    return axis_verified(world, &tiny, folder, offsetof(struct mesh, ends), lies);
}

static void test_verify(struct comm *world)
{
    char folder[64];
    if (world->size == 1 || (world->size > 2 && !axis_full())) {
        return;
    }
    axis_folder(world, folder, sizeof folder);
    const bool right = verified(world, &v3, folder, false),
               wrong = verified(world, &v3, folder, true);
    CHECK(world, world->rank != 0 || right);
    CHECK(world, world->rank != 0 || !wrong);
    axis_folder_end(world, folder);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_layouts),     RANKS_TEST(test_splits), RANKS_TEST(test_same_bits),
        RANKS_TEST(test_checkpoints), RANKS_TEST(test_verify),
    };
    return RANKS_MAIN(tests);
}
