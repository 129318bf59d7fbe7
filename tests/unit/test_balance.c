/* Balance: losses and gradients against the formulas in float64, and the selection bias. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "tiny_model.h"

enum { BLOCKS = 4, ROWS = 3, EXPERTS = 8, GROUPS = 4, SEQUENCE = 8 };

static void check(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("%s", status_message());
    }
}

static void expect_near(const char *what, double value, double expected, double tolerance)
{
    if (!(fabs(value - expected) <= tolerance * fabs(expected))) {
        fail_msg("%s: %.12g, expected %.12g", what, value, expected);
    }
}

/* A model on one rank. */
struct fixture {
    struct comm world;
    struct tiny tiny;
    int32_t storage[4 * ROWS * SEQUENCE];
    struct batch batch;
};

static void fixture_open(struct fixture *f, const char *text, const char *const *overrides)
{
    *f = (struct fixture){0};
    check(comm_open(&f->world, "self"));
    check(tiny_open(&f->tiny, &f->world, text, overrides));
    f->batch = (struct batch){.ids = f->storage,
                              .labels = f->storage + ROWS * SEQUENCE,
                              .positions = f->storage + 2 * ROWS * SEQUENCE,
                              .first = f->storage + 3 * ROWS * SEQUENCE};
}

static void fixture_close(struct fixture *f)
{
    tiny_close(&f->tiny);
    comm_close(&f->world);
}

/* --- the formulas --- */

/* Statistics of every block with experts, taken from its scores and choices. */
struct statistics {
    const struct architecture *arch;
    int64_t blocks, rows;
    int64_t tokens[BLOCKS]; /* of a sequence in the block: T */
    double routed[BLOCKS][ROWS][EXPERTS], scored[BLOCKS][ROWS][EXPERTS];
    double visits[BLOCKS][ROWS][GROUPS];
    double sum[BLOCKS][ROWS][EXPERTS]; /* of P over the tokens */
    double square_lse[BLOCKS];         /* mean over the tokens */
};

static int64_t rank_of(const float *score, int64_t e)
{
    int64_t rank = 0;
    for (int64_t i = 0; i < EXPERTS; i++) {
        rank += score[i] > score[e] || (i < e && score[i] == score[e]);
    }
    return rank;
}

static void take_token(struct statistics *s, int64_t m, int64_t row, const float *score,
                       const float *logits, const int32_t *expert)
{
    const int64_t groups = s->arch->loss_groups;
    bool visited[GROUPS] = {false};
    double total = 0, lse = 0;
    for (int64_t e = 0; e < EXPERTS; e++) {
        total += s->arch->sigmoid ? (double)score[e] : 0;
        lse += exp((double)logits[e]);
    }
    for (int64_t e = 0; e < EXPERTS; e++) {
        s->sum[m][row][e] += (double)score[e] / (s->arch->sigmoid ? total : 1);
        s->scored[m][row][e] += rank_of(score, e) < s->arch->top_k;
    }
    for (int64_t k = 0; k < s->arch->top_k; k++) {
        s->routed[m][row][expert[k]] += 1;
        visited[expert[k] / (EXPERTS / groups)] = true;
    }
    for (int64_t g = 0; g < groups; g++) {
        s->visits[m][row][g] += visited[g];
    }
    s->square_lse[m] += log(lse) * log(lse) / (double)(s->tokens[m] * s->rows);
}

static void take_statistics(struct statistics *s, const struct model *model, int64_t rows)
{
    *s = (struct statistics){
        .arch = &model->arch, .blocks = architecture_moe_blocks(&model->arch), .rows = rows};
    for (int64_t m = 0; m < s->blocks; m++) {
        const int64_t block = m + model->arch.dense_layers,
                      ahead = block < model->arch.layers ? 0 : block - model->arch.layers + 1;
        const struct moe_state *moe = &model->blocks[block].moe;
        s->tokens[m] = SEQUENCE - ahead;
        for (int64_t n = 0; n < rows * s->tokens[m]; n++) {
            take_token(s, m, n / s->tokens[m], moe->score + n * EXPERTS, moe->logits + n * EXPERTS,
                       moe->expert + n * model->arch.top_k);
        }
    }
}

/* f_i of the expert loss times its P_i, summed: counts and sums of `tokens` tokens. */
static double expert_term(const struct architecture *arch, const double *count, const double *sum,
                          int64_t tokens)
{
    double loss = 0;
    for (int64_t e = 0; e < EXPERTS; e++) {
        const double f = EXPERTS / (double)(arch->top_k * tokens) * count[e];
        loss += f * sum[e] / (double)tokens;
    }
    return loss;
}

/* The weighted device and communication losses of one sequence. */
static double group_terms(const struct statistics *s, int64_t m, int64_t row)
{
    const struct architecture *arch = s->arch;
    const int64_t groups = arch->loss_groups, size = EXPERTS / groups;
    const double tokens = (double)s->tokens[m];
    double loss = 0;
    for (int64_t g = 0; g < groups; g++) {
        double f = 0, p = 0;
        for (int64_t e = g * size; e < (g + 1) * size; e++) {
            f += EXPERTS / ((double)arch->top_k * tokens) * s->routed[m][row][e] / (double)size;
            p += s->sum[m][row][e] / tokens;
        }
        const double sent =
            (double)groups / ((double)arch->loss_top_groups * tokens) * s->visits[m][row][g];
        loss += arch->balance.device * f * p + arch->balance.communication * sent * p;
    }
    return loss;
}

static double block_loss(const struct statistics *s, int64_t m)
{
    const struct balance_coefs *coefs = &s->arch->balance;
    double loss = coefs->z * s->square_lse[m], count[EXPERTS] = {0}, sum[EXPERTS] = {0};
    for (int64_t row = 0; row < s->rows; row++) {
        const double *counts = coefs->score_counts ? s->scored[m][row] : s->routed[m][row];
        const double own = expert_term(s->arch, counts, s->sum[m][row], s->tokens[m]);
        loss += (coefs->sequence * own + group_terms(s, m, row)) / (double)s->rows;
        for (int64_t e = 0; e < EXPERTS; e++) {
            count[e] += s->routed[m][row][e];
            sum[e] += s->sum[m][row][e];
        }
    }
    return coefs->batch_over_layers
               ? loss
               : loss + coefs->batch * expert_term(s->arch, count, sum, s->rows * s->tokens[m]);
}

static double reference_loss(const struct statistics *s)
{
    double loss = 0, rows = (double)(s->blocks * s->rows * SEQUENCE);
    for (int64_t m = 0; m < s->blocks; m++) {
        loss += block_loss(s, m);
    }
    for (int64_t e = 0; e < EXPERTS && s->arch->balance.batch_over_layers; e++) {
        double count = 0, sum = 0;
        for (int64_t i = 0; i < s->blocks * s->rows; i++) {
            count += s->routed[i / s->rows][i % s->rows][e];
            sum += s->sum[i / s->rows][i % s->rows][e];
        }
        loss += s->arch->balance.batch * EXPERTS * (count / rows) * (sum / rows);
    }
    return loss;
}

/* Counts are constants, so a loss is linear in the sums: one more in a sum is the gradient. */
static void check_gradients(const struct model *model, struct statistics *s, double unit)
{
    const double loss = reference_loss(s);
    for (int64_t i = 0; i < s->blocks * s->rows * EXPERTS; i++) {
        const int64_t m = i / EXPERTS / s->rows, row = i / EXPERTS % s->rows, e = i % EXPERTS;
        const float *gradient = balance_gradient(model, m + model->arch.dense_layers);
        s->sum[m][row][e] += 1;
        const double expected = unit * (reference_loss(s) - loss);
        s->sum[m][row][e] -= 1;
        /* a few f32 roundings; the difference's own error */
        if (!(fabs((double)gradient[row * EXPERTS + e] - expected) <=
              1e-6 * fabs(expected) + 1e-13)) {
            fail_msg("gradient of block %lld, sequence %lld, expert %lld: %.9g, expected %.9g",
                     (long long)m, (long long)row, (long long)e,
                     (double)gradient[row * EXPERTS + e], expected);
        }
    }
}

/* --- losses of a model that has run --- */

static const struct losses {
    const char *text;
    const char *overrides[TINY_OVERRIDES];
} losses[] = {
    {TINY_V2, {"router.sequence_loss_coef=0.3"}},
    {TINY_V2, {"router.device_loss_coef=0.5"}},
    {TINY_V2, {"router.communication_loss_coef=0.2"}},
    {TINY_V2, {"router.batch_loss_coef=0.7"}},
    {TINY_V2, {"model.aux_loss_alpha=0.7", "model.seq_aux=false"}},
    {TINY_V2, {"router.sequence_loss_coef=0.3", "router.sequence_loss_counts=scores"}},
    {TINY_V2,
     {"router.sequence_loss_coef=0.3", "router.device_loss_coef=0.05", "router.batch_loss_coef=0.1",
      "model.topk_method=greedy", "router.z_loss_coef=0.01"}},
    {TINY_V3, {"model.aux_loss_alpha=0.3"}},
    {TINY_V3, {"model.aux_loss_alpha=0.3", "model.num_nextn_predict_layers=2"}},
    {TINY_V3,
     {"router.sequence_loss_coef=0.3", "router.sequence_loss_counts=routed",
      "router.device_loss_coef=0.05", "router.communication_loss_coef=0.02",
      "router.batch_loss_coef=0.1", "model.num_nextn_predict_layers=1"}},
    {TINY_V3, {"router.z_loss_coef=0.01", "model.num_nextn_predict_layers=1"}},
    {TINY_MIXTRAL, {NULL}},
    {TINY_MIXTRAL, {"router.sequence_loss_coef=0.3", "router.batch_loss_coef=0"}},
    {TINY_MIXTRAL, {"router.sequence_loss_coef=0.3", "router.z_loss_coef=0.01"}},
};

/* `rows` sequences in a model made for ROWS. */
static void check_losses(struct fixture *f, int64_t rows)
{
    static struct statistics statistics;
    struct model *model = &f->tiny.model;
    const double unit = 0.375;
    const int64_t labels = loader_batch(&f->tiny.loader, &f->batch, 0, rows);
    const struct model_scale scale = {.loss = 1.0 / (double)labels, .unit = unit, .mtp_weight = 1};
    model_zero_grads(model);
    model_run(model, &f->batch, rows, SEQUENCE, &scale);
    take_statistics(&statistics, model, rows);
    assert_true(reference_loss(&statistics) > 0);
    expect_near("balance loss", model_read_aux(model), reference_loss(&statistics), 1e-6);
    check_gradients(model, &statistics, unit);
    for (int64_t i = 0; i < statistics.blocks * EXPERTS; i++) {
        double load = 0;
        for (int64_t row = 0; row < rows; row++) {
            load += statistics.routed[i / EXPERTS][row][i % EXPERTS];
        }
        assert_true((double)model->load[i] == load);
    }
}

static void test_losses(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof losses / sizeof losses[0]; i++) {
        struct fixture f;
        const char *overrides[TINY_OVERRIDES + 1] = {0};
        memcpy(overrides, losses[i].overrides, sizeof losses[i].overrides);
        print_message("  case %d\n", (int)i);
        fixture_open(&f, losses[i].text, overrides);
        model_free(&f.tiny.model);
        check(model_init(&f.tiny.model, &f.tiny.config, &f.tiny.mesh, f.tiny.device, ROWS, SEQUENCE,
                         true));
        model_initialize(&f.tiny.model);
        check_losses(&f, ROWS);
        check_losses(&f, 1);
        fixture_close(&f);
    }
}

/* --- balanced routing: every loss is its coefficient --- */

/* Every expert of every sequence the same scores and the same counts. */
static void balance_by_hand(struct model *model, int64_t rows)
{
    const struct architecture *arch = &model->arch;
    for (int64_t block = arch->dense_layers; block < arch->layers; block++) {
        struct moe_state *moe = &model->blocks[block].moe;
        for (int64_t i = 0; i < rows * SEQUENCE * EXPERTS; i++) {
            moe->score[i] = 1.0F / EXPERTS;
        }
        for (int64_t i = 0; i < rows * EXPERTS; i++) {
            moe->counts.routed[i] = arch->top_k * SEQUENCE / EXPERTS;
            if (moe->counts.scored != NULL) {
                moe->counts.scored[i] = arch->top_k * SEQUENCE / EXPERTS;
            }
        }
        for (int64_t i = 0; moe->counts.group != NULL && i < rows * arch->loss_groups; i++) {
            moe->counts.group[i] = arch->loss_top_groups * SEQUENCE / arch->loss_groups;
        }
    }
}

static void expect_balanced(const char *text, const char *override, double expected)
{
    const char *const overrides[TINY_OVERRIDES] = {override};
    struct fixture f;
    fixture_open(&f, text, overrides);
    for (int64_t rows = 1; rows <= 2; rows++) {
        struct model *model = &f.tiny.model;
        const struct model_unit unit = {.count = rows, .sequence = SEQUENCE};
        balance_by_hand(model, rows);
        memset(model->aux, 0, (size_t)architecture_moe_blocks(&model->arch) * sizeof *model->aux);
        balance_clear(model);
        balance_count(model, 0, model->arch.layers, rows);
        balance_losses(model, 0, model->arch.layers, &unit, 1);
        expect_near(override, model_read_aux(model), expected, 1e-6);
    }
    fixture_close(&f);
}

static void test_balanced(void **state)
{
    (void)state; /* two layers with experts; Mixtral's over its layers is one: K = 2 */
    expect_balanced(TINY_MIXTRAL, "model.router_aux_loss_coef=0.25", 2 * 0.25);
    expect_balanced(TINY_V2, "router.sequence_loss_coef=0.25", 2 * 0.25);
    expect_balanced(TINY_V2, "router.device_loss_coef=0.25", 2 * 0.25);
    expect_balanced(TINY_V2, "router.communication_loss_coef=0.25", 2 * 0.25);
    expect_balanced(TINY_V2, "router.batch_loss_coef=0.25", 2 * 0.25);
    expect_balanced(TINY_V3, "router.sequence_loss_coef=0.25", 2 * 0.25);
}

/* --- selection bias --- */

/* Direction of each bias for the counts of one block; a second block has none. */
static const struct counts {
    int64_t count[EXPERTS];
    int direction[EXPERTS];
} counts[] = {
    {{5, 5, 5, 5, 5, 5, 5, 5}, {0}},
    {{0}, {0}},
    {{6, 4, 5, 5, 5, 5, 5, 5}, {-1, 1}},
    {{1, 0, 0, 0, 0, 0, 0, 0}, {-1, 1, 1, 1, 1, 1, 1, 1}}, /* the mean is 1/8 */
    {{8, 0, 1, 1, 1, 1, 2, 2}, {-1, 1, 1, 1, 1, 1, 0, 0}},
    /* beyond what a double tells apart */
    {{(INT64_C(1) << 53) + 1, (INT64_C(1) << 53) - 1, INT64_C(1) << 53, INT64_C(1) << 53,
      INT64_C(1) << 53, INT64_C(1) << 53, INT64_C(1) << 53, INT64_C(1) << 53},
     {-1, 1}},
};

static void test_bias_follows_counts(void **state)
{
    static const char *const overrides[TINY_OVERRIDES] = {NULL};
    const double speed = 0.001;
    struct fixture f;
    const int64_t still[2 * EXPERTS] = {1, 2};
    float expected[EXPERTS] = {0}, bias[2 * EXPERTS];
    (void)state;
    fixture_open(&f, TINY_V3, overrides);
    struct model *model = &f.tiny.model;
    for (size_t i = 0; i < 3 * sizeof counts / sizeof counts[0]; i++) {
        const struct counts *c = &counts[i / 3];
        int64_t load[2 * EXPERTS] = {0};
        memcpy(load + EXPERTS, c->count, sizeof c->count);
        balance_update_bias(model, load, bias, speed);
        for (int e = 0; e < EXPERTS; e++) {
            expected[e] += (float)speed * (float)c->direction[e];
            assert_true(model->router_bias[e] == 0);
            assert_true(model->router_bias[EXPERTS + e] == expected[e]);
        }
    }
    balance_update_bias(model, still, bias, 0);
    assert_memory_equal(model->router_bias + EXPERTS, expected, sizeof expected);
    fixture_close(&f);
}

/* Bits of all biases after `steps` steps, an evaluation after each one or none. */
static void train(struct fixture *f, int64_t steps, bool evaluate, float *bias)
{
    struct tiny *tiny = &f->tiny;
    for (int64_t step = 1; step <= steps; step++) {
        struct step_result result;
        double loss = 0;
        int64_t labels = 0;
        check(stepper_step(&tiny->stepper, step, 8 * (step - 1), &result));
        if (evaluate) {
            check(step_evaluate(&tiny->model, &tiny->loader, 5, NULL, &loss, &labels));
        }
    }
    memcpy(bias, tiny->model.router_bias, BLOCKS * EXPERTS * sizeof *bias);
}

/* Blocks with experts: two layers and two modules of multi-token prediction. */
static void test_evaluation_does_not_count(void **state)
{
    static const char *const overrides[TINY_OVERRIDES] = {"router.bias_update_speed=0.25",
                                                          "model.num_nextn_predict_layers=2"};
    float bias[2][BLOCKS * EXPERTS];
    (void)state;
    for (int evaluate = 0; evaluate < 2; evaluate++) {
        struct fixture f;
        fixture_open(&f, TINY_V3, overrides);
        train(&f, 3, evaluate == 1, bias[evaluate]);
        fixture_close(&f);
    }
    assert_memory_equal(bias[0], bias[1], sizeof bias[0]);
    for (int i = 0; i < BLOCKS; i++) { /* all blocks moved */
        double moved = 0;
        for (int e = 0; e < EXPERTS; e++) {
            moved += fabs((double)bias[0][i * EXPERTS + e]);
        }
        assert_true(moved > 0);
    }
}

/* Of 8 steps the first half moves the bias. */
static void test_bias_stops(void **state)
{
    static const char *const overrides[TINY_OVERRIDES] = {"router.bias_update_speed=0.25",
                                                          "model.num_nextn_predict_layers=2",
                                                          "router.bias_update_until=0.5"};
    float bias[3][BLOCKS * EXPERTS];
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct fixture f;
        fixture_open(&f, TINY_V3, overrides);
        train(&f, i + 3, false, bias[i]);
        fixture_close(&f);
    }
    assert_memory_not_equal(bias[0], bias[1], sizeof bias[0]);
    assert_memory_equal(bias[1], bias[2], sizeof bias[0]);
}

/* One step of a model with many experts, whose losses are `off` but for what `more` says. */
static void step_of_many(const char *text, const char *off, const char *more, const char *precision)
{
    const char *const experts =
        text == TINY_MIXTRAL ? "model.num_local_experts=16" : "model.n_routed_experts=16";
    const char *const overrides[TINY_OVERRIDES] = {experts, precision, off, more};
    struct fixture f;
    struct step_result result;
    fixture_open(&f, text, overrides);
    check(stepper_step(&f.tiny.stepper, 1, 0, &result));
    assert_true(isfinite(result.loss) && result.grad_norm > 0);
    fixture_close(&f);
}

/* Which logits have gradients, as the op is told: where there are many experts it looks at them. */
static void test_rest_of_logits(void **state)
{
    static const char *const deepseek[] = {NULL,
                                           "router.sequence_loss_coef=0.01",
                                           "router.batch_loss_coef=0.01",
                                           "router.device_loss_coef=0.01",
                                           "router.communication_loss_coef=0.01",
                                           "router.z_loss_coef=0.01",
                                           "router.capacity_factor=1",
                                           "model.norm_topk_prob=false"},
                             *const mixtral[] = {NULL, "router.batch_loss_coef=0.01",
                                                 "router.z_loss_coef=0.01",
                                                 "router.capacity_factor=1"},
                             *const precision[] = {"train.precision=fp32", "train.precision=bf16"};
    (void)state;
    for (int p = 0; p < 2; p++) {
        for (size_t i = 0; i < sizeof deepseek / sizeof deepseek[0]; i++) {
            step_of_many(TINY_V3, "router.sequence_loss_coef=0", deepseek[i], precision[p]);
        }
        for (size_t i = 0; i < sizeof mixtral / sizeof mixtral[0]; i++) {
            step_of_many(TINY_MIXTRAL, "router.batch_loss_coef=0", mixtral[i], precision[p]);
        }
        step_of_many(TINY_V2, "router.sequence_loss_coef=0", NULL, precision[p]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_losses),
        cmocka_unit_test(test_balanced),
        cmocka_unit_test(test_bias_follows_counts),
        cmocka_unit_test(test_evaluation_does_not_count),
        cmocka_unit_test(test_bias_stops),
        cmocka_unit_test(test_rest_of_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
