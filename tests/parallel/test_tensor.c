/* Tensor parallelism: rows gathered and sums scattered, exactly, on integers; tiny models of every
 * kind of attention against one rank; checkpoints between layouts; and verify finds a reduction
 * that is missing.
 * SWITCHYARD_FULL=1: V2 and ways to save memory, too.
 */
#include <math.h>

#include "axis_check.h"
#include "parallel/tensor.h"

/* --- rows --- */

enum { WIDTH = 3, COUNT = 3, MOST = COUNT * 16 * WIDTH };

/* Small integers, which both dtypes and their sums hold. */
static float value(int rank, int64_t i)
{
    return (float)((i * 7 + rank * 3) % 13 - 6);
}

struct rows {
    float f32[MOST];
    uint16_t bf16[MOST];
};

static struct tensor view(struct rows *rows, enum dtype dtype, int64_t count)
{
    void *data = dtype == DTYPE_F32 ? (void *)rows->f32 : (void *)rows->bf16;
    return tensor_2d(data, dtype, count, WIDTH);
}

static void fill(struct tensor x, const float *from)
{
    for (int64_t i = 0; i < x.dim[0] * WIDTH; i++) {
        if (x.dtype == DTYPE_F32) {
            ((float *)x.data)[i] = from[i];
        } else {
            ((uint16_t *)x.data)[i] = bf16_from_float(from[i]);
        }
    }
}

static void expect(struct comm *world, struct tensor x, const float *want)
{
    for (int64_t i = 0; i < x.dim[0] * WIDTH; i++) {
        const float got =
            x.dtype == DTYPE_F32 ? ((float *)x.data)[i] : bf16_to_float(((uint16_t *)x.data)[i]);
        CHECK(world, got == want[i]);
    }
}

/* `whole` tokens make a share; sequences of `tokens`, which may be fewer. */
static void check_rows(struct comm *world, struct tp *tp, enum dtype dtype, int64_t tokens)
{
    const int64_t own = tp_tokens(tp, tokens), first = tp_first(tp);
    static struct rows full, mine;
    float all[MOST] = {0}, sum[MOST] = {0}, part[MOST] = {0}, twice[MOST] = {0};
    for (int64_t s = 0; s < COUNT; s++) {
        for (int64_t i = 0; i < tokens * WIDTH; i++) {
            const int64_t at = s * tokens * WIDTH + i;
            all[at] = value(0, at);
            for (int r = 0; r < world->size; r++) {
                sum[at] += value(r, at);
            }
        }
        memcpy(part + s * own * WIDTH, all + (s * tokens + first) * WIDTH,
               (size_t)(own * WIDTH) * sizeof *part);
    }
    fill(view(&mine, dtype, COUNT * own), part);
    tp_gather(tp, view(&full, dtype, COUNT * tokens), view(&mine, dtype, COUNT * own), COUNT);
    expect(world, view(&full, dtype, COUNT * tokens), all);
    for (int64_t i = 0; i < COUNT * tokens * WIDTH; i++) {
        all[i] = value(world->rank, i);
    }
    for (int64_t s = 0; s < COUNT; s++) {
        for (int64_t i = 0; i < own * WIDTH; i++) {
            part[s * own * WIDTH + i] = sum[(s * tokens + first) * WIDTH + i];
            twice[s * own * WIDTH + i] = 2 * part[s * own * WIDTH + i];
        }
    }
    for (int add = 0; add < 2; add++) {
        fill(view(&full, dtype, COUNT * tokens), all);
        tp_reduce(tp, view(&mine, dtype, COUNT * own), view(&full, dtype, COUNT * tokens), COUNT,
                  add == 1);
        expect(world, view(&mine, dtype, COUNT * own), add == 1 ? twice : part);
    }
}

static void test_rows(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    struct tp tp;
    if (world->size == 1) {
        return; /* nothing is gathered */
    }
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    const int64_t share = 3, whole = share * world->size;
    const struct ops *ops = device_ops(device);
    struct arena arena = {
        .source = {.device = device, .alloc = ops->memory_alloc, .free = ops->memory_free}};
    tp_init(&tp, world, device, ops, whole, WIDTH);
    for (int pass = 0; pass < 2; pass++) {
        tp_layout(&tp, &arena);
        CHECK(world, pass == 1 || arena_reserve(&arena, "test") == STATUS_OK);
    }
    for (int64_t tokens = whole; tokens > whole - share; tokens--) {
        check_rows(world, &tp, DTYPE_F32, tokens);
        check_rows(world, &tp, DTYPE_BF16, tokens);
    }
    arena_free(&arena);
    device_close(device);
}

/* --- codes --- */

enum { CODED = 160, CODE_ROWS = COUNT * 16 }; /* a tile and a part of one */

struct coded {
    uint8_t code[CODE_ROWS * CODED] __attribute__((aligned(16)));
    float scale[2 * CODE_ROWS] __attribute__((aligned(16)));
};

static struct fp8_rows coded_view(struct coded *coded, int64_t rows)
{
    return fp8_view((struct fp8_buffer){.code = coded->code, .scale = coded->scale}, rows, CODED);
}

static void quantise(struct device *device, struct fp8_rows q, uint16_t *x)
{
    const struct fp8_how how = {.power_of_two = true};
    const struct fp8_rows none = {0};
    device_ops(device)->fp8->quantize(device, q, none, tensor_2d(x, DTYPE_BF16, q.rows, CODED),
                                      NULL, q.rows, NULL, 0, &how);
}

/* Each rank's codes of its own rows, gathered: the bytes of the codes of all. */
static void check_codes(struct comm *world, struct device *device, const struct tp *tp,
                        int64_t tokens)
{
    static struct coded all, own, full;
    static uint16_t x[CODE_ROWS * CODED], mine[CODE_ROWS * CODED];
    const int64_t share = tp_tokens(tp, tokens), rows = COUNT * tokens;
    for (int64_t i = 0; i < rows * CODED; i++) {
        const double wide = rng_uniform(7, (uint64_t)i) - 0.5;
        x[i] = bf16_from_float((float)ldexp(wide, (int)(i / CODED) % 9)); /* scales of their own */
    }
    for (int64_t s = 0; s < COUNT; s++) {
        memcpy(mine + s * share * CODED, x + (s * tokens + tp_first(tp)) * CODED,
               (size_t)(share * CODED) * sizeof *x);
    }
    quantise(device, coded_view(&all, rows), x);
    quantise(device, coded_view(&own, COUNT * share), mine);
    const struct fp8_rows want = coded_view(&all, rows), got = coded_view(&full, rows);
    tp_gather_codes(tp, got, coded_view(&own, COUNT * share), COUNT);
    CHECK(world, memcmp(want.code, got.code, (size_t)(rows * CODED)) == 0);
    for (int64_t i = 0; i < rows; i++) {
        CHECK(world, want.scale[i] == got.scale[i]);
        CHECK(world, want.scale[want.pitch + i] == got.scale[want.pitch + i]);
    }
}

static void test_codes(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    struct tp tp;
    if (world->size == 1) {
        return;
    }
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    const struct ops *ops = device_ops(device);
    const int64_t share = 3, whole = share * world->size;
    struct arena arena = {
        .source = {.device = device, .alloc = ops->memory_alloc, .free = ops->memory_free}};
    tp_init(&tp, world, device, ops, whole, CODED);
    for (int pass = 0; pass < 2; pass++) {
        tp_layout(&tp, &arena);
        CHECK(world, pass == 1 || arena_reserve(&arena, "test") == STATUS_OK);
    }
    for (int64_t tokens = whole; tokens > whole - share; tokens--) {
        check_codes(world, device, &tp, tokens);
    }
    arena_free(&arena);
    device_close(device);
}

/* --- models --- */

struct curve {
    double loss[10], mtp[10], norm, aux;
};

static const char *const queries[] = {"model.num_attention_heads=4", "model.num_key_value_heads=2",
                                      NULL};

static void open_tiny(struct comm *world, struct tiny *tiny, const char *text, int ep, int tp,
                      const char *more)
{
    const char *overrides[TINY_OVERRIDES] = {0};
    char layout[2][32];
    int count = 0;
    snprintf(layout[0], sizeof layout[0], "parallel.ep=%d", ep);
    snprintf(layout[1], sizeof layout[1], "parallel.tp=%d", tp);
    overrides[count++] = layout[0];
    overrides[count++] = layout[1];
    for (int i = 0; text == TINY_MIXTRAL && queries[i] != NULL; i++) {
        overrides[count++] = queries[i];
    }
    if (text == TINY_V3) {
        overrides[count++] = "model.num_nextn_predict_layers=1";
        overrides[count++] = "router.bias_update_speed=0.01";
    }
    if (more != NULL) {
        overrides[count++] = more;
    }
    const enum status status = tiny_open(tiny, world, text, overrides);
    CHECK(world, status == STATUS_OK);
}

static void train(struct comm *world, const char *text, int ep, int tp, const char *more, int steps,
                  struct curve *curve)
{
    static struct tiny tiny;
    open_tiny(world, &tiny, text, ep, tp, more);
    for (int s = 0; s < steps; s++) {
        struct step_result result;
        CHECK(world, stepper_step(&tiny.stepper, s + 1, s * tiny.config.train.global_batch,
                                  &result) == STATUS_OK);
        curve->loss[s] = result.loss;
        curve->mtp[s] = result.mtp_loss;
        if (s == 0) {
            curve->norm = result.grad_norm;
            curve->aux = result.aux_loss;
        }
    }
    tiny_close(&tiny);
}

static void expect_close(struct comm *world, double got, double want, double allowed)
{
    CHECK(world, (isnan(got) && isnan(want)) || fabs(got - want) <= allowed * fabs(want));
}

static void compare(struct comm *world, const char *text, const char *more, int steps)
{
    struct comm alone = {0};
    struct curve one = {0};
    comm_split(world, world->rank, 0, &alone);
    train(&alone, text, 1, 1, more, steps, &one);
    for (int ep = 1; ep <= world->size; ep *= 2) {
        struct curve own = {0};
        train(world, text, ep, 2, more, steps, &own);
        expect_close(world, own.loss[0], one.loss[0], 1e-6);
        expect_close(world, own.aux, one.aux, 1e-6);
        expect_close(world, own.norm, one.norm, 1e-5);
        for (int s = 0; s < steps; s++) {
            expect_close(world, own.loss[s], one.loss[s], 1e-5);
            expect_close(world, own.mtp[s], one.mtp[s], 1e-5);
        }
    }
    comm_free(&alone);
}

/* --- FP8 --- */

/* Parts of 128. */
static const char *const coded_mixtral[TINY_OVERRIDES] = {
    "train.precision=fp8",         "model.initializer_range=0.1", "model.hidden_size=64",
    "model.num_attention_heads=4", "model.num_key_value_heads=4", "model.head_dim=64",
    "model.intermediate_size=48"};
static const char *const coded_v3[TINY_OVERRIDES] = {"train.precision=fp8",
                                                     "model.initializer_range=0.1",
                                                     "model.hidden_size=64",
                                                     "model.num_attention_heads=4",
                                                     "model.num_key_value_heads=4",
                                                     "model.qk_nope_head_dim=64",
                                                     "model.qk_rope_head_dim=64",
                                                     "model.v_head_dim=64",
                                                     "model.q_lora_rank=48",
                                                     "model.kv_lora_rank=32",
                                                     "model.intermediate_size=256",
                                                     "model.moe_intermediate_size=256",
                                                     "model.num_nextn_predict_layers=1"};

struct coded_step {
    struct step_result result;
    struct fp8_counters counters[LINEAR_KINDS]; /* values: of all ranks */
};

static struct coded_step train_coded(struct comm *world, const char *text,
                                     const char *const *overrides, int tp, const char *more,
                                     const char *axis)
{
    static struct tiny tiny;
    const char *all[TINY_OVERRIDES];
    struct coded_step step;
    char divided[32];
    int count = 0;
    snprintf(divided, sizeof divided, "parallel.tp=%d", tp);
    memcpy(all, overrides, sizeof all);
    while (all[count] != NULL) {
        count++;
    }
    all[count++] = divided;
    all[count++] = more != NULL ? more : "run.seed=5";
    all[count] = axis;
    CHECK(world, tiny_open(&tiny, world, text, all) == STATUS_OK);
    CHECK(world, stepper_step(&tiny.stepper, 1, 0, &step.result) == STATUS_OK);
    memcpy(step.counters, tiny.model.linears.counters, sizeof step.counters);
    for (int k = 0; k < LINEAR_WEIGHTS; k++) {
        int64_t values = (int64_t)step.counters[k].values;
        comm_all_reduce(world, &values, 1, DTYPE_I64, REDUCE_SUM);
        step.counters[k].values = (uint64_t)values;
    }
    tiny_close(&tiny);
    return step;
}

/* Codes are one rank's, each counted once; what differs are the last bits of sums over tp, what
 * becomes of them where they are rounded to bf16 and to codes, and, of latent attention, tiles
 * along tokens: the layers that are not divided see each rank's tokens alone. */
static void compare_coded(struct comm *world, const char *text, const char *const *overrides,
                          const char *more, const char *axis)
{
    struct comm alone = {0};
    comm_split(world, world->rank, 0, &alone);
    const struct coded_step one = train_coded(&alone, text, overrides, 1, more, NULL),
                            own = train_coded(world, text, overrides, 2, more, axis);
    expect_close(world, own.result.loss, one.result.loss, 1e-3);
    expect_close(world, own.result.mtp_loss, one.result.mtp_loss, 1e-3);
    expect_close(world, own.result.aux_loss, one.result.aux_loss, 1e-3);
    expect_close(world, own.result.grad_norm, one.result.grad_norm, 1e-2);
    /* a token on its way to several experts of a rank is quantised once */
    const bool once = axis != NULL && strncmp(axis, "parallel.ep", strlen("parallel.ep")) == 0;
    for (int k = 0; k < LINEAR_WEIGHTS && !once; k++) {
        CHECK_EQUAL(world, own.counters[k].values, one.counters[k].values);
    }
    comm_free(&alone);
}

static void test_coded(struct comm *world)
{
    static const char *const modes[] = {NULL,
                                        "train.recompute=norms",
                                        "train.recompute=block",
                                        "fp8.first_bf16=1",
                                        "fp8.scales=amax",
                                        "fp8.accumulate=promoted"};
    if (world->size % 2 != 0) {
        return;
    }
    for (size_t i = 0; i < (axis_full() ? sizeof modes / sizeof modes[0] : 2); i++) {
        compare_coded(world, TINY_MIXTRAL, coded_mixtral, modes[i], NULL);
        compare_coded(world, TINY_V3, coded_v3, modes[i], NULL);
    }
    if (world->size == 4) { /* gradients of weights wait; tokens travel, in codes */
        compare_coded(world, TINY_MIXTRAL, coded_mixtral, NULL, "parallel.pp=2");
        compare_coded(world, TINY_V3, coded_v3, NULL, "parallel.pp=2");
        compare_coded(world, TINY_V3, coded_v3, NULL, "parallel.ep=4");
        compare_coded(world, TINY_V3, coded_v3, NULL, "parallel.zero=2");
    }
}

static void test_models(struct comm *world)
{
    if (world->size % 2 != 0) {
        return;
    }
    compare(world, TINY_MIXTRAL, "router.z_loss_coef=0.001", 10);
    compare(world, TINY_V3, NULL, 10);
    if (!axis_full()) {
        return;
    }
    compare(world, TINY_V2, "model.q_lora_rank=null", 3);
    compare(world, TINY_MIXTRAL, "model.router_jitter_noise=0.1", 1);
    compare(world, TINY_V3, "train.recompute=norms", 1);
    compare(world, TINY_V3, "train.recompute=block", 1);
    compare(world, TINY_V2, "router.dispatch=padded", 1);
}

/* From one rank to tp 2 and back; initial weights are the same whatever tp. */
static void between_layouts(struct comm *world, const char *text, const char *folder,
                            const char *name)
{
    static struct tiny alone, tiny;
    struct comm self = {0};
    struct step_result result;
    struct progress_state at;
    char path[4][160], label[4][16];
    for (int i = 0; i < 4; i++) {
        snprintf(label[i], sizeof label[i], "%s%d", name, i);
    }
    comm_split(world, world->rank == 0 ? 0 : 1, world->rank, &self);
    open_tiny(world, &tiny, text, world->size, 2, "optimizer.ema=0.5");
    axis_save(world, &tiny, folder, label[0], path[0], sizeof path[0]);
    if (world->rank == 0) {
        open_tiny(&self, &alone, text, 1, 1, "optimizer.ema=0.5");
        axis_save(&self, &alone, folder, label[1], path[1], sizeof path[1]);
        axis_same(world, path[0], path[1]);
        CHECK(world, stepper_step(&alone.stepper, 1, 0, &result) == STATUS_OK);
        axis_save(&self, &alone, folder, label[2], path[2], sizeof path[2]);
    }
    comm_broadcast(world, path[2], sizeof path[2], 0);
    CHECK(world, state_load(&tiny.model, path[2], &at) == STATUS_OK);
    axis_save(world, &tiny, folder, label[3], path[3], sizeof path[3]);
    if (world->rank == 0) {
        axis_same(world, path[2], path[3]);
        model_initialize(&alone.model);
        CHECK(world, state_load(&alone.model, path[3], &at) == STATUS_OK);
        snprintf(label[3], sizeof label[3], "%s-back", name);
        axis_save(&self, &alone, folder, label[3], path[1], sizeof path[1]);
        axis_same(world, path[2], path[1]);
        tiny_close(&alone);
    }
    tiny_close(&tiny);
    comm_free(&self);
}

static void test_checkpoints(struct comm *world)
{
    char folder[64];
    if (world->size % 2 != 0) {
        return;
    }
    axis_folder(world, folder, sizeof folder);
    between_layouts(world, TINY_MIXTRAL, folder, "mixtral");
    if (axis_full()) {
        between_layouts(world, TINY_V3, folder, "v3");
    }
    axis_folder_end(world, folder);
}

/* What verify says, at rank 0. */
static bool verified(struct comm *world, const char *text, const char *folder, bool lies)
{
    static struct tiny tiny;
    open_tiny(world, &tiny, text, world->size, 2, "model.initializer_range=0.1");
    return axis_verified(world, &tiny, folder, offsetof(struct mesh, tp), lies);
}

static void test_verify(struct comm *world)
{
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    char folder[64];
    if (world->size % 2 != 0) {
        return;
    }
    axis_folder(world, folder, sizeof folder);
    for (int i = 0; i < (axis_full() ? 2 : 1); i++) {
        const bool right = verified(world, texts[i], folder, false),
                   wrong = verified(world, texts[i], folder, true);
        CHECK(world, world->rank != 0 || right);
        CHECK(world, world->rank != 0 || !wrong);
    }
    axis_folder_end(world, folder);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_rows),  RANKS_TEST(test_codes),       RANKS_TEST(test_models),
        RANKS_TEST(test_coded), RANKS_TEST(test_checkpoints), RANKS_TEST(test_verify),
    };
    return RANKS_MAIN(tests);
}
