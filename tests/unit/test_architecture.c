/* Architecture: what configs of the three families mean. */
#include "unit/config_text.h"

#include <math.h>

#include "trainer/model/architecture.h"

static const char MIXTRAL[] = "run: {steps: 300}\n"
                              "model:\n"
                              "  family: mixtral\n"
                              "  vocab_size: 257\n"
                              "  hidden_size: 64\n"
                              "  intermediate_size: 96\n"
                              "  num_hidden_layers: 3\n"
                              "  num_attention_heads: 4\n"
                              "  num_key_value_heads: 2\n"
                              "  num_local_experts: 8\n"
                              "train: {sequence_length: 32}\n";

#define DEEPSEEK(family)                                                                           \
    "run: {steps: 300}\n"                                                                          \
    "model:\n"                                                                                     \
    "  family: " family "\n"                                                                       \
    "  vocab_size: 257\n"                                                                          \
    "  hidden_size: 64\n"                                                                          \
    "  intermediate_size: 96\n"                                                                    \
    "  moe_intermediate_size: 24\n"                                                                \
    "  num_hidden_layers: 3\n"                                                                     \
    "  num_attention_heads: 4\n"                                                                   \
    "  first_k_dense_replace: 1\n"                                                                 \
    "  n_routed_experts: 8\n"                                                                      \
    "  n_shared_experts: 2\n"                                                                      \
    "  num_experts_per_tok: 3\n"                                                                   \
    "  n_group: 4\n"                                                                               \
    "  topk_group: 2\n"                                                                            \
    "  kv_lora_rank: 16\n"                                                                         \
    "  qk_nope_head_dim: 128\n"                                                                    \
    "  qk_rope_head_dim: 64\n"                                                                     \
    "  v_head_dim: 32\n"                                                                           \
    "train: {sequence_length: 32}\n"

static const char V2[] = DEEPSEEK("deepseek_v2"), V3[] = DEEPSEEK("deepseek_v3");

/* The architecture of a text with overrides "a.b=v", NULL where there are fewer. */
static struct architecture make(const char *text, const char *const overrides[OVERRIDES])
{
    struct config config;
    struct architecture arch;
    char *list[OVERRIDES];
    int count = 0;
    for (; count < OVERRIDES && overrides[count] != NULL; count++) {
        list[count] = (char *)(uintptr_t)overrides[count];
    }
    if (parse(&config, text, strlen(text)) != STATUS_OK ||
        config_override(&config, list, count) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    architecture_init(&arch, &config);
    config_free(&config);
    return arch;
}

#define MAKE(text, ...) make(text, (const char *const[OVERRIDES]){__VA_ARGS__})

static void expect_near(double value, double expected, double tolerance)
{
    if (!(fabs(value - expected) <= tolerance)) {
        fail_msg("%.9g, expected %.9g", value, expected);
    }
}

/* --- attention --- */

/* Golden numbers, written with seven digits; query heads of 128 + 64. */
static void test_attention_scale(void **state)
{
#define YARN "model.rope_scaling.type=yarn", "model.rope_scaling.factor=40"
    (void)state;
    expect_near((double)MAKE(V2, NULL).attention_scale, 0.0721688, 5e-8);
    expect_near((double)MAKE(V2, YARN).attention_scale, 0.0721688, 5e-8);
    expect_near((double)MAKE(V2, YARN, "model.rope_scaling.mscale=0.707",
                             "model.rope_scaling.mscale_all_dim=0.707")
                    .attention_scale,
                0.1147214, 5e-8);
    expect_near(
        (double)MAKE(V3, YARN, "model.rope_scaling.mscale=1", "model.rope_scaling.mscale_all_dim=1")
            .attention_scale,
        0.1352338, 5e-8);
    expect_near((double)MAKE(MIXTRAL, NULL).attention_scale, 0.25, 1e-8);
    expect_near((double)MAKE(MIXTRAL, "model.head_dim=64").attention_scale, 0.125, 1e-8);
}

/* g(m) = 0.1 m ln 40 + 1: g(1) = 1.3688879, g(0.707) = 1.2608038. */
static void test_attention_factor(void **state)
{
    (void)state;
    assert_true(MAKE(V3, NULL).yarn.factor == 0);
    const struct rope_yarn
        plain = MAKE(V3, YARN).yarn,
        same = MAKE(V3, YARN, "model.rope_scaling.mscale=1", "model.rope_scaling.mscale_all_dim=1")
                   .yarn,
        both =
            MAKE(V2, YARN, "model.rope_scaling.mscale=0.707", "model.rope_scaling.mscale_all_dim=1")
                .yarn,
        given = MAKE(V2, YARN, "model.rope_scaling.mscale=0.707",
                     "model.rope_scaling.attention_factor=1.5")
                    .yarn,
        before = MAKE(V2, YARN, "model.rope_scaling.original_max_position_embeddings=2048").yarn;
    assert_true(plain.factor == 40 && plain.beta_fast == 32 && plain.beta_slow == 1);
    assert_true(plain.original_positions == 163840); /* max_position_embeddings, as transformers */
    assert_true(before.original_positions == 2048);
    expect_near(plain.attention_factor, 1.3688879, 5e-8);
    expect_near(same.attention_factor, 1, 1e-12);
    expect_near(both.attention_factor, 1.2608038 / 1.3688879, 1e-7);
    expect_near(given.attention_factor, 1.5, 0);
#undef YARN
}

static void test_attention_dims(void **state)
{
    (void)state;
    const struct architecture mixtral = MAKE(MIXTRAL, "model.sliding_window=7"),
                              v2 = MAKE(V2, "model.q_lora_rank=12"),
                              v3 = MAKE(V3, "model.rope_interleave=false");
    assert_int_equal(mixtral.heads, 4);
    assert_int_equal(mixtral.kv_heads, 2);
    assert_int_equal(MAKE(MIXTRAL, "model.num_key_value_heads=0").kv_heads, 4);
    assert_true(mixtral.qk_dim == 16 && mixtral.v_dim == 16 && mixtral.rope_dim == 16);
    assert_true(mixtral.kv_rank == 0 && mixtral.window == 7 && !mixtral.rope_interleaved);
    assert_true(v2.qk_dim == 192 && v2.nope_dim == 128 && v2.rope_dim == 64 && v2.v_dim == 32);
    assert_true(v2.q_rank == 12 && v2.kv_rank == 16 && v2.kv_heads == 4 && v2.window == 0);
    assert_true(v2.rope_interleaved && MAKE(V3, NULL).rope_interleaved && !v3.rope_interleaved);
    assert_int_equal(v3.q_rank, 0);
    assert_int_equal(architecture_query_width(&v2), 4 * 192);
    assert_int_equal(architecture_latent_width(&v2), 4 * (128 + 32));
}

/* --- blocks and router --- */

static void test_blocks(void **state)
{
    (void)state;
    const struct architecture mixtral = MAKE(MIXTRAL, NULL), v2 = MAKE(V2, NULL),
                              v3 = MAKE(V3, "model.num_nextn_predict_layers=2");
    assert_true(architecture_blocks(&mixtral) == 3 && architecture_moe_blocks(&mixtral) == 3);
    assert_true(architecture_blocks(&v2) == 3 && architecture_moe_blocks(&v2) == 2);
    assert_true(architecture_blocks(&v3) == 5 && architecture_moe_blocks(&v3) == 4);
    assert_true(mixtral.expert_width == 96 && mixtral.shared_width == 0 && mixtral.mtp_depth == 0);
    assert_true(v2.dense_width == 96 && v2.expert_width == 24 && v2.shared_width == 48);
    assert_int_equal(MAKE(V2, "model.n_shared_experts=0").shared_width, 0);
}

static void test_routers(void **state)
{
    (void)state;
    const struct architecture mixtral = MAKE(MIXTRAL, NULL), v2 = MAKE(V2, NULL),
                              greedy = MAKE(V2, "model.topk_method=greedy",
                                            "model.routed_scaling_factor=16"),
                              one = MAKE(V2, "model.n_group=1", "model.topk_group=1"),
                              v3 = MAKE(V3, NULL);
    assert_true(mixtral.experts == 8 && mixtral.top_k == 2 && mixtral.groups == 1);
    assert_true(!mixtral.sigmoid && mixtral.normalize && mixtral.scale == 1 && !mixtral.has_bias);
    assert_true(v2.experts == 8 && v2.top_k == 3 && v2.groups == 4 && v2.top_groups == 2);
    assert_true(!v2.sigmoid && !v2.normalize && v2.scale == 1 && !v2.has_bias);
    assert_true(greedy.groups == 1 && greedy.top_groups == 1 && greedy.scale == 16);
    assert_true(one.groups == 1 && one.top_groups == 1);
    assert_true(v3.groups == 4 && v3.top_groups == 2 && v3.sigmoid && v3.normalize);
    assert_true(mixtral.router_rounds && !v2.router_rounds && !v3.router_rounds);
    assert_true(v3.scale == 2.5F && v3.has_bias);
    assert_true(!MAKE(V3, "model.norm_topk_prob=false").normalize);
}

/* The device and communication losses know their groups also where routing is greedy; a capacity is
 * of V2's device groups, else of experts. */
static void test_loss_groups(void **state)
{
    (void)state;
    const struct architecture greedy = MAKE(V2, "model.topk_method=greedy");
    assert_true(greedy.loss_groups == 4 && greedy.loss_top_groups == 2);
    assert_int_equal(greedy.capacity_groups, 4);
    assert_int_equal(MAKE(V2, NULL).capacity_groups, 4);
    assert_int_equal(MAKE(V2, "model.n_group=1", "model.topk_group=1").capacity_groups, 1);
    assert_int_equal(MAKE(V3, NULL).capacity_groups, 8);
    assert_int_equal(MAKE(MIXTRAL, NULL).capacity_groups, 8);
}

/* --- coefficients --- */

/* null: what the family's keys say, else 0; a number, 0 too, replaces it. */
static void expect_balance(const struct architecture arch, double batch, double sequence,
                           double device, double communication)
{
    assert_true(arch.balance.batch == batch && arch.balance.sequence == sequence);
    assert_true(arch.balance.device == device && arch.balance.communication == communication);
}

static void test_coefficients(void **state)
{
    (void)state;
    expect_balance(MAKE(MIXTRAL, NULL), 0.02, 0, 0, 0);
    expect_balance(MAKE(MIXTRAL, "model.router_aux_loss_coef=0.5"), 0.5, 0, 0, 0);
    expect_balance(MAKE(MIXTRAL, "router.batch_loss_coef=0"), 0, 0, 0, 0);
    expect_balance(MAKE(MIXTRAL, "router.batch_loss_coef=0.25", "router.sequence_loss_coef=0.125"),
                   0.25, 0.125, 0, 0);
    expect_balance(MAKE(V2, NULL), 0, 0, 0, 0);
    expect_balance(MAKE(V2, "model.aux_loss_alpha=0.5"), 0, 0.5, 0, 0);
    expect_balance(MAKE(V2, "model.aux_loss_alpha=0.5", "model.seq_aux=false"), 0.5, 0, 0, 0);
    expect_balance(MAKE(V2, "model.aux_loss_alpha=0.5", "router.sequence_loss_coef=0"), 0, 0, 0, 0);
    expect_balance(MAKE(V2, "model.aux_loss_alpha=0.5", "router.batch_loss_coef=0.25",
                        "router.device_loss_coef=0.05", "router.communication_loss_coef=0.02"),
                   0.25, 0.5, 0.05, 0.02);
    expect_balance(MAKE(V3, "model.aux_loss_alpha=1e-4"), 0, 1e-4, 0, 0);
    expect_balance(MAKE(V3, "model.aux_loss_alpha=1e-4", "model.seq_aux=false"), 1e-4, 0, 0, 0);
}

static void test_other_coefficients(void **state)
{
    (void)state;
    const struct architecture mixtral = MAKE(MIXTRAL, "router.z_loss_coef=0.001"),
                              v3 = MAKE(V3, "router.bias_update_speed=0.01");
    assert_true(mixtral.balance.batch_over_layers && mixtral.balance.z == 0.001);
    assert_true(mixtral.balance.bias_speed == 0 && !mixtral.balance.score_counts);
    assert_true(!MAKE(V2, NULL).balance.batch_over_layers && MAKE(V2, NULL).balance.z == 0);
    assert_true(v3.balance.bias_speed == 0.01 && !v3.balance.batch_over_layers);
    assert_true(MAKE(V3, NULL).balance.bias_speed == 0);
    /* counts of the sequence loss: routed ones for V2, those of bare scores for V3 */
    assert_true(!MAKE(V2, NULL).balance.score_counts && v3.balance.score_counts);
    assert_true(!MAKE(V3, "router.sequence_loss_counts=routed").balance.score_counts);
    assert_true(MAKE(V2, "router.sequence_loss_counts=scores").balance.score_counts);
}

/* --- flops --- */

/* Six times the weights a token meets in matrix products, and three times the causal half of its
 * 2 T (qk + v) H multiplications and additions. Written out by hand. */
static void test_flops(void **state)
{
    (void)state;
    const struct architecture mixtral = MAKE(MIXTRAL, NULL);
    /* q, o: 64x64; k, v: 32x64; two experts of 3x96x64; router 8x64; head 257x64 */
    const double attention = 2 * 64 * 64 + 2 * 32 * 64, experts = 2 * 3 * 96 * 64 + 8 * 64;
    assert_true(architecture_flops_per_token(&mixtral, 32) ==
                6 * (3 * (attention + experts) + 257 * 64) + 3.0 * 3 * 32 * (16 + 16) * 4);
    /* a window of 8 in 32: 8 - 8 * 8 / 64 keys instead of 16 */
    const struct architecture window = MAKE(MIXTRAL, "model.sliding_window=8");
    expect_near(architecture_flops_per_token(&mixtral, 32) -
                    architecture_flops_per_token(&window, 32),
                6 * 3 * (16 - 7.0) * (16 + 16) * 4, 1e-6);
    const struct architecture v2 = MAKE(V2, NULL), v3 = MAKE(V3, "model.q_lora_rank=12",
                                                             "model.num_nextn_predict_layers=1");
    /* q 768x64; kv_a 80x64; kv_b 640x16; o 64x128; one dense MLP of 96, two layers with three
     * experts of 24, shared 48, router 8 */
    const double latent = 80 * 64 + 640 * 16 + 64 * 128, dense = 3 * 96 * 64,
                 moe = 3 * (3 * 24 + 48) * 64 + 8 * 64, scores = 3.0 * 32 * (192 + 32) * 4;
    assert_true(architecture_flops_per_token(&v2, 32) ==
                6 * (3 * (768 * 64 + latent) + dense + 2 * moe + 257 * 64) + 3 * scores);
    /* q_a 12x64, q_b 768x12; one more block with experts, eh_proj 64x128, the head again */
    assert_true(
        architecture_flops_per_token(&v3, 32) ==
        6 * (4 * (12 * 64 + 768 * 12 + latent) + dense + 3 * moe + 2 * 257 * 64 + 64 * 128) +
            4 * scores);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attention_scale), cmocka_unit_test(test_attention_factor),
        cmocka_unit_test(test_attention_dims),  cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_routers),         cmocka_unit_test(test_loss_groups),
        cmocka_unit_test(test_coefficients),    cmocka_unit_test(test_other_coefficients),
        cmocka_unit_test(test_flops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
