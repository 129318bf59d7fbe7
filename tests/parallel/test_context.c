/* Context parallelism: whose tokens are whose; blocks that go round the ring, exactly, on integers;
 * tiny models of every kind of attention against one rank; and verify finds a gradient of keys and
 * values that is missing. SWITCHYARD_FULL=1: every layout, V2 and ways to save memory, too.
 */
#include <math.h>

#include "axis_check.h"
#include "parallel/context.h"

/* --- tokens --- */

enum { CHUNK = 3 };

/* Every token of a sequence is one rank's; which row of whose it is. */
static void check_pieces(struct comm *world, const struct cp *cp, int64_t tokens)
{
    const struct cp_pieces own = cp_pieces(cp, tokens);
    int64_t owned[8 * CHUNK] = {0};
    int32_t numbers[8 * CHUNK], mine[8 * CHUNK];
    for (int64_t t = 0; t < tokens; t++) {
        numbers[t] = (int32_t)t;
    }
    cp_own_tokens(cp, mine, numbers, 1, tokens);
    for (int p = 0; p < CP_PIECES; p++) {
        for (int64_t i = 0; i < own.piece[p].count; i++) {
            owned[own.piece[p].first + i]++;
            CHECK_EQUAL(world, mine[own.piece[p].at + i], own.piece[p].first + i);
        }
    }
    CHECK_EQUAL(world, cp_tokens(cp, tokens), own.piece[1].at + own.piece[1].count);
    comm_all_reduce(world, owned, tokens, DTYPE_I64, REDUCE_SUM);
    for (int64_t t = 0; t < tokens; t++) {
        CHECK_EQUAL(world, owned[t], 1);
    }
    cp_own_tokens(cp, numbers, numbers, 1, tokens); /* in place */
    CHECK(world, memcmp(numbers, mine, (size_t)cp_tokens(cp, tokens) * sizeof *mine) == 0);
}

/* Numbers of all tokens from every rank's, as the balance loss wants them. */
static void check_gather(struct comm *world, const struct cp *cp, int64_t tokens)
{
    const struct cp_pieces own = cp_pieces(cp, tokens);
    float mine[2 * CHUNK] = {0}, full[8 * CHUNK], parts[8 * CHUNK];
    for (int p = 0; p < CP_PIECES; p++) {
        for (int64_t i = 0; i < own.piece[p].count; i++) {
            mine[own.piece[p].at + i] = (float)(own.piece[p].first + i);
        }
    }
    cp_gather(cp, full, parts, mine, tokens, sizeof *mine);
    for (int64_t t = 0; t < tokens; t++) {
        CHECK_EQUAL(world, full[t], t);
    }
}

/* Who sees what, against each pair of a query and a key. */
static void check_sees(struct comm *world, const struct cp *cp, int64_t tokens, int64_t window,
                       int64_t document)
{
    for (int r = 0; r < world->size; r++) {
        const struct cp_pieces own = cp_pieces(cp, tokens), others = cp_pieces_of(cp, r, tokens);
        for (int i = 0; i < CP_PIECES * CP_PIECES; i++) {
            const struct cp_piece *q = &own.piece[i % CP_PIECES], *k = &others.piece[i / CP_PIECES];
            const int64_t first = q->first - q->first % document; /* all documents are as long */
            bool any = false;
            for (int64_t t = q->first; t < q->first + q->count; t++) {
                const int64_t low = window > 0 && t - window + 1 > t - t % document
                                        ? t - window + 1
                                        : t - t % document;
                for (int64_t j = k->first; j < k->first + k->count; j++) {
                    any = any || (j <= t && j >= low);
                }
            }
            CHECK_EQUAL(world, cp_sees(q, k, window, first), any);
        }
    }
}

static struct device *open_cpu(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    return device;
}

static void test_tokens(struct comm *world)
{
    struct device *device = open_cpu(world);
    struct cp cp;
    const int64_t whole = 2 * world->size * CHUNK;
    cp_init(&cp, world, device, device_ops(device), whole);
    for (int64_t tokens = whole; tokens > whole - CHUNK; tokens--) {
        check_pieces(world, &cp, tokens);
        for (int64_t window = 0; window < 10; window++) {
            check_sees(world, &cp, tokens, window, whole);
            check_sees(world, &cp, tokens, window, 4);
            check_sees(world, &cp, tokens, window, 1);
        }
        if (world->size > 1) { /* one rank gathers nothing */
            check_gather(world, &cp, tokens);
        }
    }
    device_close(device);
}

/* --- the ring --- */

enum { ROW = 5 };

/* Blocks go round while what a rank adds to each travels a turn behind them: on turn `size` its own
 * block is back with the sum over all ranks but itself. */
static void test_ring(struct comm *world)
{
    struct device *device = open_cpu(world);
    struct cp cp;
    int32_t block[2][ROW];
    float incoming[ROW], travelling[2][ROW];
    const int size = world->size;
    cp_init(&cp, world, device, device_ops(device), (int64_t)2 * size * CHUNK);
    for (int i = 0; i < ROW; i++) {
        block[0][i] = 100 * world->rank + i;
    }
    for (int turn = 0; turn <= size && size > 1; turn++) {
        const int source = cp_source(&cp, turn);
        CHECK_EQUAL(world, source, (world->rank + 2 * size - turn) % size);
        if (turn + 1 < size) {
            cp_pass_start(&cp, "block", block[(turn + 1) % 2], block[turn % 2], sizeof block[0]);
        }
        if (turn >= 2) {
            cp_pass_start(&cp, "sums", incoming, travelling[turn % 2], sizeof incoming);
        }
        cp_progress(&cp);
        for (int i = 0; i < ROW && turn < size; i++) {
            CHECK_EQUAL(world, block[turn % 2][i], 100 * source + i);
            travelling[(turn + 1) % 2][i] =
                turn == 0 ? 0 : (float)(1000 * source + 10 * world->rank + i);
        }
        cp_pass_finish(&cp);
        for (int i = 0; i < ROW && turn >= 2 && turn < size; i++) {
            travelling[(turn + 1) % 2][i] += incoming[i];
        }
    }
    for (int i = 0; i < ROW && size > 1; i++) {
        const int others = size * (size - 1) / 2 - world->rank;
        CHECK_EQUAL(world, incoming[i], (size - 1) * (1000 * world->rank + i) + 10 * others);
    }
    device_close(device);
}

/* --- models --- */

enum { STEPS = 6 }; /* as many as the tokens of a tiny model make of 16 tokens */

struct curve {
    double loss[STEPS], mtp[STEPS], norm[STEPS], aux, valid;
};

struct ranks_layout {
    int ep, cp, tp;
};

static void open_tiny(struct comm *world, struct tiny *tiny, const char *text,
                      struct ranks_layout at, const char *const *more)
{
    const char *overrides[TINY_OVERRIDES] = {0};
    char layout[3][32];
    int count = 0;
    snprintf(layout[0], sizeof layout[0], "parallel.ep=%d", at.ep);
    snprintf(layout[1], sizeof layout[1], "parallel.cp=%d", at.cp);
    snprintf(layout[2], sizeof layout[2], "parallel.tp=%d", at.tp);
    for (int i = 0; i < 3; i++) {
        overrides[count++] = layout[i];
    }
    overrides[count++] = "train.sequence_length=16";
    if (text == TINY_MIXTRAL) { /* grouped queries */
        overrides[count++] = "model.num_attention_heads=4";
        overrides[count++] = "model.num_key_value_heads=2";
    }
    if (text == TINY_V3) {
        overrides[count++] = "router.bias_update_speed=0.01";
    }
    for (int i = 0; more != NULL && more[i] != NULL; i++) {
        CHECK(world, count < TINY_OVERRIDES);
        overrides[count++] = more[i];
    }
    const enum status status = tiny_open(tiny, world, text, overrides);
    CHECK(world, status == STATUS_OK);
}

static void train(struct comm *world, const char *text, struct ranks_layout at,
                  const char *const *more, int steps, struct curve *curve)
{
    static struct tiny tiny;
    int64_t labels = 0;
    open_tiny(world, &tiny, text, at, more);
    for (int s = 0; s < steps; s++) {
        struct step_result result;
        CHECK(world, stepper_step(&tiny.stepper, s + 1, s * tiny.config.train.global_batch,
                                  &result) == STATUS_OK);
        curve->loss[s] = result.loss;
        curve->mtp[s] = result.mtp_loss;
        curve->norm[s] = result.grad_norm;
        curve->aux = s == 0 ? result.aux_loss : curve->aux;
    }
    CHECK(world,
          step_evaluate(&tiny.model, &tiny.loader, 3, NULL, &curve->valid, &labels) == STATUS_OK);
    CHECK(world, labels > 0);
    tiny_close(&tiny);
}

static void expect_close(struct comm *world, double got, double want, double allowed)
{
    if (!((isnan(got) && isnan(want)) || fabs(got - want) <= allowed * fabs(want))) {
        fprintf(stderr, "%.9g, one rank %.9g\n", got, want);
        CHECK(world, false);
    }
}

static void compare_at(struct comm *world, const char *text, struct ranks_layout at,
                       const char *const *more, int steps, const struct curve *one)
{
    struct curve own = {0};
    train(world, text, at, more, steps, &own);
    expect_close(world, own.loss[0], one->loss[0], 1e-6);
    expect_close(world, own.aux, one->aux, 1e-6);
    for (int s = 0; s < steps; s++) {
        /* Later norms are of weights that AdamW has moved apart, by the rounding of gradients near
         * 0: measured 3e-7 to 1.02e-5 behind ten steps of this model (weights of 0.5), losses 1e-7.
         */
        expect_close(world, own.norm[s], one->norm[s], s < 3 ? 1e-5 : 3e-5);
        expect_close(world, own.loss[s], one->loss[s], 1e-5);
        expect_close(world, own.mtp[s], one->mtp[s], 1e-5);
    }
    expect_close(world, own.valid, one->valid, 1e-5);
}

/* Whether a layout is of the few that do without SWITCHYARD_FULL: cp over all ranks, and beside tp
 * or, on four, dp and ep. */
static bool is_chosen(struct comm *world, const struct ranks_layout *at)
{
    return at->cp == world->size ? at->ep == 2 : at->ep == 4;
}

/* Every cp that the ranks allow, beside dp and beside tp, with ep on both sides of it. */
static void compare(struct comm *world, const char *text, const char *const *more, int steps)
{
    struct comm alone = {0};
    struct curve one = {0};
    comm_split(world, world->rank, 0, &alone);
    train(&alone, text, (struct ranks_layout){1, 1, 1}, more, steps, &one);
    for (int cp = 2; cp <= world->size; cp *= 2) {
        for (int ep = 1; ep <= world->size; ep *= 2) {
            for (int tp = 1; tp <= 2 && cp * tp <= world->size; tp++) {
                const struct ranks_layout at = {ep, cp, tp};
                if (axis_full() || is_chosen(world, &at)) {
                    compare_at(world, text, at, more, steps, &one);
                }
            }
        }
    }
    comm_free(&alone);
}

static void compare_with(struct comm *world, const char *text, const char *more, int steps)
{
    const char *const list[] = {more, NULL};
    compare(world, text, list, steps);
}

static void test_models(struct comm *world)
{
    static const char *const predicting[] = {"model.num_nextn_predict_layers=1",
                                             "train.recompute=norms", NULL};
    if (world->size == 1) {
        return;
    }
    compare_with(world, TINY_MIXTRAL, "router.z_loss_coef=0.001", axis_full() ? STEPS : 3);
    compare(world, TINY_V3, predicting, axis_full() ? STEPS : 3);
    if (!axis_full()) {
        return;
    }
    compare_with(world, TINY_V2, "model.q_lora_rank=null", 3);
    compare_with(world, TINY_MIXTRAL, "model.router_jitter_noise=0.1", 1);
    compare_with(world, TINY_MIXTRAL, "model.sliding_window=5", 3);
    compare_with(world, TINY_V3, "model.num_nextn_predict_layers=0", 3);
    compare_with(world, TINY_V3, "train.recompute=block", 1);
    compare_with(world, TINY_V2, "router.dispatch=padded", 1);
    compare_with(world, TINY_V2, "train.recompute=experts", 1);
}

/* --- FP8 --- */

static const char *const coded_mixtral[] = {"train.precision=fp8", "model.initializer_range=0.1",
                                            "model.hidden_size=32", "model.intermediate_size=48",
                                            NULL};
/* A latent of two tiles, the second narrow; parts of tp of 128. */
static const char *const coded_v3[] = {"train.precision=fp8",
                                       "model.initializer_range=0.1",
                                       "model.hidden_size=32",
                                       "model.intermediate_size=256",
                                       "model.moe_intermediate_size=256",
                                       "model.q_lora_rank=48",
                                       "model.kv_lora_rank=144",
                                       "model.num_attention_heads=4",
                                       "model.num_key_value_heads=4",
                                       "model.qk_nope_head_dim=64",
                                       "model.qk_rope_head_dim=64",
                                       "model.v_head_dim=64",
                                       "model.num_nextn_predict_layers=1",
                                       NULL};

struct coded_step {
    struct step_result result;
    int64_t values; /* activations that became codes, of all ranks */
};

static struct coded_step train_coded(struct comm *world, const char *text, struct ranks_layout at,
                                     const char *const more[2])
{
    static struct tiny tiny;
    const char *list[TINY_OVERRIDES] = {0};
    const char *const *base = text == TINY_V3 ? coded_v3 : coded_mixtral;
    struct coded_step step;
    int count = 0;
    for (; base[count] != NULL; count++) {
        list[count] = base[count];
    }
    memcpy(list + count, more, 2 * sizeof *more);
    open_tiny(world, &tiny, text, at, list);
    CHECK(world, stepper_step(&tiny.stepper, 1, 0, &step.result) == STATUS_OK);
    step.values = (int64_t)tiny.model.linears.counters[LINEAR_ACTIVATIONS].values;
    comm_all_reduce(world, &step.values, 1, DTYPE_I64, REDUCE_SUM);
    tiny_close(&tiny);
    return step;
}

static void compare_coded(struct comm *world, const char *text, struct ranks_layout at,
                          const char *one, const char *axis)
{
    struct comm alone = {0};
    const char *const more[2] = {one, NULL}, *const divided[2] = {one != NULL ? one : axis,
                                                                  one != NULL ? axis : NULL};
    comm_split(world, world->rank, 0, &alone);
    const struct coded_step want = train_coded(&alone, text, (struct ranks_layout){1, 1, 1}, more),
                            got = train_coded(world, text, at, divided);
    /* Measured, eight seeds of each, cp 2 and 4: losses up to 1.8e-3 apart, norms 1.5e-2; in bf16
     * 1e-3 and 1.5e-2. */
    expect_close(world, got.result.loss, want.result.loss, 3e-3);
    expect_close(world, got.result.mtp_loss, want.result.mtp_loss, 3e-3);
    expect_close(world, got.result.aux_loss, want.result.aux_loss, 3e-3);
    expect_close(world, got.result.grad_norm, want.result.grad_norm, 3e-2);
    /* a token on its way to several experts of a rank is quantised once */
    CHECK(world, at.ep > 1 || got.values == want.values);
    comm_free(&alone);
}

/* Of block 0, whose input is one rank's, bit for bit: the codes of latents too, and so the keys
 * that every rank projects from what comes round. Scores differ by the order of f32 sums. */
static void compare_latents(struct comm *world, const struct tiny *own, const struct tiny *one)
{
    const struct attention_state *a = &own->model.blocks[0].attention,
                                 *b = &one->model.blocks[0].attention;
    const int64_t count = own->model.batch, mine = own->model.sequence, all = one->model.sequence,
                  rank = own->model.arch.kv_rank, heads = own->model.arch.heads;
    const struct fp8_rows got = fp8_view(a->c_codes, count * mine, rank),
                          want = fp8_view(b->c_codes, count * all, rank);
    const struct cp_pieces pieces = cp_pieces(&own->model.cp, all);
    for (int64_t i = 0; i < count * CP_PIECES; i++) {
        const struct cp_piece *piece = &pieces.piece[i % CP_PIECES];
        const int64_t from = i / CP_PIECES * mine + piece->at,
                      at = i / CP_PIECES * all + piece->first;
        CHECK(world, memcmp(got.code + from * rank, want.code + at * rank,
                            (size_t)(piece->count * rank)) == 0);
        for (int64_t t = 0; t < fp8_tiles(rank); t++) {
            CHECK(world, memcmp(got.scale + t * got.pitch + from, want.scale + t * want.pitch + at,
                                (size_t)piece->count * sizeof(float)) == 0);
        }
        for (int64_t k = 0; k < heads * piece->count; k++) {
            const int64_t h = k / piece->count, row = k % piece->count;
            expect_close(world, a->lse[from * heads + k],
                         b->lse[(i / CP_PIECES * heads + h) * all + piece->first + row], 1e-5);
        }
    }
}

static void test_latents(struct comm *world)
{
    static struct tiny own, one;
    struct comm alone = {0};
    struct step_result result;
    if (world->size % 2 != 0) {
        return;
    }
    comm_split(world, world->rank, 0, &alone);
    open_tiny(world, &own, TINY_V3, (struct ranks_layout){1, world->size, 1}, coded_v3);
    open_tiny(&alone, &one, TINY_V3, (struct ranks_layout){1, 1, 1}, coded_v3);
    CHECK(world, stepper_step(&own.stepper, 1, 0, &result) == STATUS_OK);
    CHECK(world, stepper_step(&one.stepper, 1, 0, &result) == STATUS_OK);
    compare_latents(world, &own, &one);
    tiny_close(&one);
    tiny_close(&own);
    comm_free(&alone);
}

/* Codes of a token are one rank's. What differs are the last bits of attention, and what they
 * become; and gradients of weights: the tiles of 128 tokens hold one rank's, and kv_b's is of what
 * each rank's queries give. */
static void test_coded(struct comm *world)
{
    static const char *const modes[] = {NULL, "train.recompute=block", "fp8.first_bf16=1",
                                        "train.recompute=norms", "fp8.scales=amax"};
    if (world->size % 2 != 0) {
        return;
    }
    const struct ranks_layout at = {1, world->size, 1};
    for (size_t i = 0; i < (axis_full() ? sizeof modes / sizeof modes[0] : 3); i++) {
        compare_coded(world, TINY_MIXTRAL, at, modes[i], NULL);
        compare_coded(world, TINY_V3, at, modes[i], NULL);
    }
    compare_coded(world, TINY_V3, (struct ranks_layout){2, 2, 1}, NULL, "parallel.zero=3");
    if (world->size == 4) {
        compare_coded(world, TINY_V3, (struct ranks_layout){2, 2, 2}, NULL, "parallel.zero=3");
        compare_coded(world, TINY_V3, (struct ranks_layout){1, 2, 1}, NULL, "parallel.pp=2");
    }
}

/* What verify says, at rank 0. */
static bool verified(struct comm *world, const char *text, const char *folder, bool lies)
{
    static const char *const predicting[] = {"model.num_nextn_predict_layers=1", NULL};
    static struct tiny tiny;
    open_tiny(world, &tiny, text, (struct ranks_layout){world->size, 2, 1},
              text == TINY_V3 ? predicting : NULL);
    return axis_verified(world, &tiny, folder, offsetof(struct mesh, cp), lies);
}

static void test_verify(struct comm *world)
{
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    char folder[64];
    if (world->size % 2 != 0) {
        return;
    }
    axis_folder(world, folder, sizeof folder);
    for (int i = axis_full() ? 0 : 1; i < 2; i++) {
        const bool right = verified(world, texts[i], folder, false),
                   wrong = verified(world, texts[i], folder, true);
        CHECK(world, world->rank != 0 || right);
        CHECK(world, world->rank != 0 || !wrong);
    }
    axis_folder_end(world, folder);
}

/* Refused before any memory is taken. */
static void test_too_long(struct comm *world)
{
    static struct tiny tiny;
    static const char *const overrides[TINY_OVERRIDES] = {"parallel.cp=2",
                                                          "model.num_key_value_heads=2",
                                                          "model.num_attention_heads=2",
                                                          "model.head_dim=512",
                                                          "train.sequence_length=2097152",
                                                          "train.micro_batch=1",
                                                          "model.max_position_embeddings=2097152"};
    if (world->size != 2) {
        return;
    }
    CHECK_EQUAL(world, tiny_open(&tiny, world, TINY_MIXTRAL, overrides), STATUS_USAGE);
    CHECK(world, strstr(status_message(), "more ranks, or a shorter") != NULL);
    tiny_close(&tiny);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_tokens),   RANKS_TEST(test_ring),  RANKS_TEST(test_models),
        RANKS_TEST(test_latents),  RANKS_TEST(test_coded), RANKS_TEST(test_verify),
        RANKS_TEST(test_too_long),
    };
    return RANKS_MAIN(tests);
}
