/* config: keys that only some families have, their relations, and config.json of DeepSeek. */
#include "unit/config_text.h"

#include <math.h>
#include <stdio.h>

#include "trainer/model/architecture.h"
#include "trainer/schedule.h"

static const char LATENT[] = "run: {steps: 300}\n"
                             "model:\n"
                             "  family: deepseek_v3\n"
                             "  vocab_size: 257\n"
                             "  hidden_size: 64\n"
                             "  intermediate_size: 96\n"
                             "  moe_intermediate_size: 24\n"
                             "  num_hidden_layers: 4\n"
                             "  num_attention_heads: 4\n"
                             "  n_routed_experts: 16\n"
                             "  num_experts_per_tok: 4\n"
                             "  n_group: 4\n"
                             "  topk_group: 2\n"
                             "  kv_lora_rank: 16\n"
                             "  qk_nope_head_dim: 8\n"
                             "  qk_rope_head_dim: 4\n"
                             "  v_head_dim: 8\n"
                             "train: {sequence_length: 32}\n";

/* As published with DeepSeek-V2-Lite (old style), and as transformers 5 writes a V3. */
static const char V2_LITE[] =
    "{\"architectures\": [\"DeepseekV2ForCausalLM\"], \"attention_bias\": false, "
    "\"attention_dropout\": 0.0, \"aux_loss_alpha\": 0.001, \"bos_token_id\": 100000, "
    "\"eos_token_id\": 100001, \"first_k_dense_replace\": 1, \"hidden_act\": \"silu\", "
    "\"hidden_size\": 2048, \"initializer_range\": 0.02, \"intermediate_size\": 10944, "
    "\"kv_lora_rank\": 512, \"max_position_embeddings\": 163840, \"model_type\": \"deepseek_v2\", "
    "\"moe_intermediate_size\": 1408, \"moe_layer_freq\": 1, \"n_group\": 1, "
    "\"n_routed_experts\": 64, \"n_shared_experts\": 2, \"norm_topk_prob\": false, "
    "\"num_attention_heads\": 16, \"num_experts_per_tok\": 6, \"num_hidden_layers\": 27, "
    "\"num_key_value_heads\": 16, \"pretraining_tp\": 1, \"q_lora_rank\": null, "
    "\"qk_nope_head_dim\": 128, \"qk_rope_head_dim\": 64, \"rms_norm_eps\": 1e-06, "
    "\"rope_scaling\": {\"beta_fast\": 32, \"beta_slow\": 1, \"factor\": 40, \"mscale\": 0.707, "
    "\"mscale_all_dim\": 0.707, \"original_max_position_embeddings\": 4096, \"type\": \"yarn\"}, "
    "\"rope_theta\": 10000, \"routed_scaling_factor\": 1.0, \"scoring_func\": \"softmax\", "
    "\"seq_aux\": true, \"tie_word_embeddings\": false, \"topk_group\": 1, "
    "\"topk_method\": \"greedy\", \"torch_dtype\": \"bfloat16\", \"v_head_dim\": 128, "
    "\"vocab_size\": 102400}";
static const char V3_NEW[] =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"dtype\": \"float32\", "
    "\"first_k_dense_replace\": 1, \"head_dim\": 4, \"hidden_size\": 32, "
    "\"intermediate_size\": 48, \"kv_lora_rank\": 16, \"model_type\": \"deepseek_v3\", "
    "\"moe_intermediate_size\": 12, \"n_group\": 2, \"n_routed_experts\": 8, "
    "\"num_attention_heads\": 4, \"num_experts_per_tok\": 2, \"num_hidden_layers\": 3, "
    "\"num_nextn_predict_layers\": 1, \"q_lora_rank\": 24, \"qk_nope_head_dim\": 8, "
    "\"qk_rope_head_dim\": 4, \"rope_interleave\": false, "
    "\"rope_parameters\": {\"rope_theta\": 5000.0, \"rope_type\": \"default\"}, "
    "\"topk_group\": 1, \"v_head_dim\": 8, \"vocab_size\": 67}";

static enum status load_latent(struct config *config, const char *override)
{
    char *list[4];
    char copy[512];
    int count = 0;
    snprintf(copy, sizeof copy, "%s", override);
    for (char *word = strtok(copy, " "); word != NULL && count < 4; word = strtok(NULL, " ")) {
        list[count++] = word;
    }
    put("latent.yaml", LATENT);
    config_init(config);
    return config_load(config, "latent.yaml", list, count);
}

static void test_relations(void **state)
{
    (void)state;
    static const struct {
        const char *overrides, *part;
    } cases[] = {
        {"model.num_experts_per_tok=9", "topk_group 2 groups of 4 experts hold fewer than"},
        {"model.num_experts_per_tok=17", "17 is more than model.n_routed_experts 16"},
        {"model.n_group=3", "model.n_group 3 must divide model.n_routed_experts 16"},
        {"model.topk_group=5", "model.topk_group 5 be at most n_group"},
        {"model.n_group=16", "16 leaves 1 expert a group"},
        {"model.qk_rope_head_dim=5", "model.qk_rope_head_dim 5 is odd"},
        {"model.num_key_value_heads=2", "latent attention has as many as"},
        {"model.first_k_dense_replace=4", "leaves none of 4 layers with experts"},
        {"model.scoring_func=softmax", "deepseek_v2 has softmax, deepseek_v3 sigmoid"},
        {"model.topk_method=greedy", "deepseek_v3 noaux_tc"},
        {"model.family=deepseek_v2 model.topk_method=noaux_tc", "deepseek_v2 has greedy or"},
        {"model.family=deepseek_v2 model.scoring_func=sigmoid", "deepseek_v2 has softmax"},
        {"model.family=deepseek_v2 router.bias_update_speed=0.001",
         "only deepseek_v3 has a selection bias"},
        {"model.family=deepseek_v2 model.num_nextn_predict_layers=1",
         "key 'model.num_nextn_predict_layers': not a key of family deepseek_v2 (of deepseek_v3)"},
        {"model.num_nextn_predict_layers=16 train.sequence_length=16",
         "needs a train.sequence_length above it"},
        {"model.num_local_experts=4",
         "key 'model.num_local_experts': not a key of family deepseek_v3 (of mixtral)"},
        {"model.sliding_window=4", "not a key of family deepseek_v3"},
        {"model.kv_lora_rank=null", "key 'model.kv_lora_rank': missing"},
        {"model.rope_scaling.type=linear", "'linear' is not one of none, yarn"},
        {"model.rope_scaling.factr=2", "did you mean 'model.rope_scaling.factor'?"},
        {"model.rope_scaling=yarn", "key 'model.rope_scaling': a section of keys"},
        {"parallel.ep=3", "parallel.ep 3 does not divide model.n_routed_experts 16"},
        {"model.rope_scaling.type=yarn", "model.rope_scaling.factor 1: yarn stretches"},
        {"train.mtp_loss_weight_late=0.1", "go together: give both or none"},
        {"train.mtp_loss_weight_switch=0.5", "go together: give both or none"},
        {"router.device_loss_coef=0.1 model.n_group=1 model.topk_group=1",
         "with one group of experts (model.n_group) they are constants"},
        {"model.family=deepseek_v2 model.topk_method=greedy router.communication_loss_coef=0.1",
         "tokens are not limited to model.topk_group groups"},
        {"model.qk_nope_head_dim=1021", "a query head of 1025 is wider than 1024"},
        {"model.family=deepseek_v2 model.rope_interleave=false",
         "key 'model.rope_interleave': not a key of family deepseek_v2"},
        {"model.routed_scaling_factor=0", "0 is outside"},
        {"optimizer.eps=0", "0 is outside"},
        {"model.family=mixtral", "not a key of family mixtral (of deepseek_v2, deepseek_v3)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        const char *parts[PARTS] = {cases[i].part};
        assert_int_equal(load_latent(&config, cases[i].overrides), STATUS_USAGE);
        expect_parts(parts, PARTS, cases[i].overrides);
        config_free(&config);
    }
}

static void test_accepted(void **state)
{
    (void)state;
    static const char *const cases[] = {
        "model.n_group=1 model.topk_group=1",
        "model.n_group=null model.topk_group=null",
        "model.q_lora_rank=12",
        "model.n_shared_experts=0",
        "model.first_k_dense_replace=0",
        "model.rope_scaling=null",
        "model.rope_scaling.rope_type=yarn model.rope_scaling.factor=40",
        "model.moe_layer_freq=1 model.attention_bias=false",
        "router.device_loss_coef=0.05 router.communication_loss_coef=0.02",
        "model.family=deepseek_v2",
        "model.family=deepseek_v2 model.topk_method=greedy",
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        if (load_latent(&config, cases[i]) != STATUS_OK) {
            fail_msg("%s: %s", cases[i], status_message());
        }
        config_free(&config);
    }
}

static void test_family_defaults(void **state)
{
    (void)state;
    struct config config;
    assert_int_equal(load_latent(&config, ""), STATUS_OK);
    assert_true(config.model.rms_norm_eps == 1e-6 && config.model.rope_theta == 1e4);
    assert_true(config.model.routed_scaling_factor == 2.5 && config.model.norm_topk_prob);
    assert_int_equal(config.model.n_shared_experts, 1);
    assert_int_equal(config.model.first_k_dense_replace, 3);
    config_free(&config);
    assert_int_equal(load_latent(&config, "model.family=deepseek_v2"), STATUS_OK);
    assert_true(config.model.routed_scaling_factor == 1 && !config.model.norm_topk_prob);
    assert_int_equal(config.model.n_shared_experts, 2);
    assert_int_equal(config.model.first_k_dense_replace, 1);
    config_free(&config);
}

static void test_map(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        enum status status;
        int type;
    } cases[] = {{"null", STATUS_OK, CONFIG_ROPE_NONE},
                 {"{type: yarn, factor: 40}", STATUS_OK, CONFIG_ROPE_YARN},
                 {"{rope_type: yarn, factor: 40, mscale: 1.0}", STATUS_OK, CONFIG_ROPE_YARN},
                 {"{factor: 40, factor: 41}", STATUS_USAGE, 0},
                 {"{factor: {a: 1}}", STATUS_USAGE, 0},
                 {"[yarn]", STATUS_USAGE, 0},
                 {"{beta: 1}", STATUS_USAGE, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[2048];
        struct config config;
        snprintf(text, sizeof text, "model:\n  rope_scaling: %s\n%s", cases[i].value,
                 strstr(LATENT, "  family"));
        const enum status status = parse(&config, text, strlen(text));
        if (status != cases[i].status) {
            fail_msg("%s: %s", cases[i].value, status_message());
        }
        if (status == STATUS_OK) {
            assert_int_equal(config.model.rope_scaling.type, cases[i].type);
        }
        config_free(&config);
    }
}

/* null beside a config.json takes back what the file says: the stage before the context was
 * extended. */
static void test_map_beside_config_json(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "model: {hf_config: config.json, rope_scaling: null}\n",
        "model: {rope_scaling: {type: none}, hf_config: config.json}\n"};
    put("config.json", V2_LITE);
    for (int i = 0; i < 2; i++) {
        struct config config;
        assert_int_equal(parse(&config, texts[i], strlen(texts[i])), STATUS_OK);
        assert_int_equal(config.model.rope_scaling.type, CONFIG_ROPE_NONE);
        config_free(&config);
    }
}

/* Steps of the published recipes, at the batch sizes of their ramps, add up to the published
 * tokens.
 */
static void test_published_recipes(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double tokens;
    } cases[] = {{"deepseek-v2", 8.1e12}, {"deepseek-v2-lite", 5.7e12}, {"deepseek-v3", 14.8e12}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[512];
        struct config config;
        snprintf(path, sizeof path, SOURCE_DIR "/configs/%s.yaml", cases[i].name);
        config_init(&config);
        assert_int_equal(config_load(&config, path, NULL, 0), STATUS_OK);
        const double tokens = (double)schedule_position(&config, 0, config.run.steps) *
                              (double)config.train.sequence_length;
        assert_true(fabs(tokens / cases[i].tokens - 1) < 1e-4);
        config_free(&config);
    }
}

static void test_config_json(void **state)
{
    (void)state;
    static const char text[] = "model: {hf_config: config.json}\n";
    struct config config;
    struct architecture arch;
    put("config.json", V2_LITE);
    if (parse(&config, text, sizeof text - 1) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    architecture_init(&arch, &config);
    assert_int_equal(config.model.family, CONFIG_DEEPSEEK_V2);
    assert_int_equal(arch.q_rank, 0);
    assert_int_equal(arch.dense_layers, 1);
    assert_int_equal(arch.shared_width, 2816);
    assert_true(arch.yarn.factor == 40 && arch.balance.sequence == 0.001 &&
                arch.balance.batch == 0);
    assert_string_equal(config.model.hf_ignored,
                        "architectures, bos_token_id, eos_token_id, pretraining_tp, torch_dtype");
    config_free(&config);
    put("config.json", V3_NEW);
    if (parse(&config, text, sizeof text - 1) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    architecture_init(&arch, &config);
    assert_int_equal(config.model.family, CONFIG_DEEPSEEK_V3);
    assert_int_equal(arch.qk_dim, 12);
    assert_int_equal(arch.mtp_depth, 1);
    assert_true(!arch.rope_interleaved && arch.rope_theta == 5000 && arch.yarn.factor == 0);
    assert_true(arch.sigmoid && arch.has_bias && arch.normalize && arch.scale == 2.5F);
    config_free(&config);
}

/* V2_LITE with one text put in place of another. */
static void test_config_json_is_refused(void **state)
{
    (void)state;
    static const char text[] = "model: {hf_config: config.json}\n";
    static const struct {
        const char *from, *to, *part;
    } cases[] = {
        {"\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2", "moe_layer_freq other than 1"},
        {"\"type\": \"yarn\"", "\"type\": \"dynamic\"", "'dynamic' is not one of none, yarn"},
        {"\"kv_lora_rank\": 512", "\"kv_lora_rank\": null", "key 'model.kv_lora_rank': missing"},
        {"\"topk_method\": \"greedy\"", "\"topk_method\": \"best\"", "'best' is not one of"},
        {"\"deepseek_v2\"", "\"deepseek\"", "model_type 'deepseek' is not built"},
        {"\"norm_topk_prob\": false", "\"norm_topk_prob\": 0", "neither true nor false"},
        {"\"qk_rope_head_dim\": 64", "\"qk_rope_head_dim\": 63", "63 is odd"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char json[4096];
        struct config config;
        const char *parts[PARTS] = {cases[i].part}, *at = strstr(V2_LITE, cases[i].from);
        assert_non_null(at);
        snprintf(json, sizeof json, "%.*s%s%s", (int)(at - V2_LITE), V2_LITE, cases[i].to,
                 at + strlen(cases[i].from));
        put("config.json", json);
        assert_int_equal(parse(&config, text, sizeof text - 1), STATUS_USAGE);
        expect_parts(parts, PARTS, cases[i].to);
        config_free(&config);
    }
    static const char both[] = "model: {family: mixtral, hf_config: config.json}\n";
    const char *parts[PARTS] = {"model.family mixtral contradicts config.json"};
    struct config config;
    put("config.json", V2_LITE);
    assert_int_equal(parse(&config, both, sizeof both - 1), STATUS_USAGE);
    expect_parts(parts, PARTS, both);
    config_free(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_relations),
        SCRATCH_TEST(test_accepted),
        SCRATCH_TEST(test_family_defaults),
        SCRATCH_TEST(test_map),
        SCRATCH_TEST(test_map_beside_config_json),
        SCRATCH_TEST(test_published_recipes),
        SCRATCH_TEST(test_config_json),
        SCRATCH_TEST(test_config_json_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
