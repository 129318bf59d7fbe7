/* huggingface: names of every family, where transformers 5 keeps them, and config.json there and
 * back. */
#include "unit/config_text.h"

#include "trainer/exchange/huggingface.h"

static const char MIXTRAL[] =
    "model: {family: mixtral, vocab_size: 257, hidden_size: 64, "
    "intermediate_size: 96, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, num_local_experts: 3, sliding_window: 16, "
    "head_dim: 32, rms_norm_eps: 1e-6, rope_theta: 12345.678}\n"
    "train: {sequence_length: 32}\n";
#define DEEPSEEK                                                                                   \
    "vocab_size: 300, hidden_size: 64, intermediate_size: 96, moe_intermediate_size: 48, "         \
    "num_hidden_layers: 3, num_attention_heads: 4, kv_lora_rank: 32, qk_nope_head_dim: 16, "       \
    "qk_rope_head_dim: 8, v_head_dim: 16, n_routed_experts: 8, num_experts_per_tok: 3, "           \
    "first_k_dense_replace: 1, n_group: 4, topk_group: 2, routed_scaling_factor: 1.7, "
static const char V2[] = "model: {family: deepseek_v2, " DEEPSEEK
                         "n_shared_experts: 2, aux_loss_alpha: 0.003, seq_aux: true, "
                         "q_lora_rank: null, rope_scaling: {type: yarn, factor: 40, mscale: 0.707, "
                         "mscale_all_dim: 0.707, original_max_position_embeddings: 4096}}\n"
                         "train: {sequence_length: 32}\n";
static const char V3[] = "model: {family: deepseek_v3, " DEEPSEEK
                         "n_shared_experts: 1, q_lora_rank: 24, num_nextn_predict_layers: 1, "
                         "rope_interleave: false}\n"
                         "train: {sequence_length: 32}\n";

static const struct hf_tensor *named(const struct hf_tensors *tensors, const char *name)
{
    for (int64_t i = 0; i < tensors->count; i++) {
        if (strcmp(tensors->tensor[i].name, name) == 0) {
            return &tensors->tensor[i];
        }
    }
    return NULL;
}

struct expected {
    const char *name;
    enum hf_kind kind;
    int64_t rows, columns; /* 0: a vector */
};

static void expect_tensors(const char *text, int64_t count, const struct expected *list,
                           size_t listed)
{
    struct config config;
    struct hf_tensors tensors;
    assert_int_equal(parse(&config, text, strlen(text)), STATUS_OK);
    assert_int_equal(hf_tensors_init(&tensors, &config), STATUS_OK);
    assert_int_equal(tensors.count, count);
    for (size_t i = 0; i < listed; i++) {
        const struct hf_tensor *tensor = named(&tensors, list[i].name);
        if (tensor == NULL) {
            fail_msg("%s is not there", list[i].name);
            return;
        }
        assert_int_equal(tensor->kind, list[i].kind);
        assert_int_equal(tensor->ndim, list[i].columns > 0 ? 2 : 1);
        assert_int_equal(tensor->shape[0], list[i].rows);
        assert_true(list[i].columns == 0 || tensor->shape[1] == list[i].columns);
    }
    hf_tensors_free(&tensors);
    hf_tensors_free(&tensors);
    config_free(&config);
}

#define EXPECT_TENSORS(text, count, list)                                                          \
    expect_tensors(text, count, list, sizeof(list) / sizeof((list)[0]))

static void test_tensors(void **state)
{
    (void)state;
    static const struct expected mixtral[] = {
        {"model.embed_tokens.weight", HF_PLAIN, 257, 64},
        {"model.norm.weight", HF_PLAIN, 64, 0},
        {"lm_head.weight", HF_PLAIN, 257, 64},
        {"model.layers.1.self_attn.k_proj.weight", HF_LINEAR, 64, 64},
        {"model.layers.0.block_sparse_moe.gate.weight", HF_PLAIN, 3, 64},
        {"model.layers.1.block_sparse_moe.experts.2.w2.weight", HF_LINEAR, 64, 96},
        {"model.layers.1.block_sparse_moe.experts.2.w3.weight", HF_LINEAR, 96, 64},
    };
    static const struct expected v2[] = {
        {"model.layers.0.self_attn.q_proj.weight", HF_LINEAR, 96, 64},
        {"model.layers.0.self_attn.kv_a_proj_with_mqa.weight", HF_LINEAR, 40, 64},
        {"model.layers.0.self_attn.kv_a_layernorm.weight", HF_PLAIN, 32, 0},
        {"model.layers.0.mlp.down_proj.weight", HF_LINEAR, 64, 96},
        {"model.layers.2.mlp.gate.weight", HF_PLAIN, 8, 64},
        {"model.layers.2.mlp.shared_experts.up_proj.weight", HF_LINEAR, 96, 64},
        {"model.layers.2.mlp.experts.7.down_proj.weight", HF_LINEAR, 64, 48},
    };
    static const struct expected v3[] = {
        {"model.layers.1.mlp.gate.e_score_correction_bias", HF_BIAS, 8, 0},
        {"model.layers.0.self_attn.q_b_proj.weight", HF_LINEAR, 96, 24},
        {"model.layers.3.eh_proj.weight", HF_PLAIN, 64, 128},
        {"model.layers.3.enorm.weight", HF_PLAIN, 64, 0},
        {"model.layers.3.shared_head.norm.weight", HF_PLAIN, 64, 0},
        {"model.layers.3.mlp.gate.e_score_correction_bias", HF_BIAS, 8, 0},
    };
    EXPECT_TENSORS(MIXTRAL, 3 + 2 * (7 + 3 * 3), mixtral);
    EXPECT_TENSORS(V2, 3 + 3 * 7 + 3 + 2 * (1 + 3 + 3 * 8), v2);
    EXPECT_TENSORS(V3, 3 + 4 * 9 + 3 + 3 * (2 + 3 + 3 * 8) + 4, v3);
}

static void test_fused_homes(void **state)
{
    (void)state;
    static const struct {
        const char *name, *home;
        int64_t expert;
        int part, parts;
    } cases[] = {
        {"model.layers.3.block_sparse_moe.experts.7.w1.weight",
         "model.layers.3.mlp.experts.gate_up_proj", 7, 0, 2},
        {"model.layers.3.block_sparse_moe.experts.7.w3.weight",
         "model.layers.3.mlp.experts.gate_up_proj", 7, 1, 2},
        {"model.layers.12.mlp.experts.255.down_proj.weight",
         "model.layers.12.mlp.experts.down_proj", 255, 0, 1},
        {"model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight", -1, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct hf_home home = hf_fused_home(cases[i].name);
        assert_true(home.exists);
        assert_string_equal(home.name, cases[i].home);
        assert_int_equal(home.expert, cases[i].expert);
        assert_int_equal(home.part, cases[i].part);
        assert_int_equal(home.parts, cases[i].parts);
    }
    static const char *const none[] = {"model.norm.weight", "lm_head.weight",
                                       "model.layers.0.mlp.gate.weight",
                                       "model.layers.0.mlp.shared_experts.up_proj.weight",
                                       "model.layers.0.self_attn.q_proj.weight"};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        assert_false(hf_fused_home(none[i]).exists);
    }
}

static void test_other_names(void **state)
{
    (void)state;
    assert_int_equal(hf_layer("model.layers.61.enorm.weight"), 61);
    assert_int_equal(hf_layer("model.layers.x.weight"), -1);
    assert_int_equal(hf_layer("model.layers."), -1);
    assert_int_equal(hf_layer("model.layers.5"), -1);
    assert_int_equal(hf_layer("lm_head.weight"), -1);
    assert_true(hf_is_ignored("model.layers.0.self_attn.rotary_emb.inv_freq"));
    assert_false(hf_is_ignored("model.norm.weight"));
    assert_string_equal(hf_copied_from("model.layers.61.embed_tokens.weight", 61),
                        "model.embed_tokens.weight");
    assert_string_equal(hf_copied_from("model.layers.62.shared_head.head.weight", 61),
                        "lm_head.weight");
    assert_null(hf_copied_from("model.layers.60.embed_tokens.weight", 61));
    assert_null(hf_copied_from("model.layers.61.shared_head.norm.weight", 61));
    assert_null(hf_copied_from("model.embed_tokens.weight", 61));
}

static char *printed(const struct config *config)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_print(config, out);
    fclose(out);
    return text;
}

/* A config written as config.json and read back as model.hf_config is the same config. */
static void test_config_there_and_back(void **state)
{
    (void)state;
    static const char *const texts[] = {MIXTRAL, V2, V3};
    static const char from_hf[] = "model: {hf_config: config.json}\ntrain: {sequence_length: 32}\n";
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct config config, again;
        char *json = NULL;
        assert_int_equal(parse(&config, texts[i], strlen(texts[i])), STATUS_OK);
        assert_int_equal(hf_config_text(&config, DTYPE_BF16, i == 2, NULL, &json), STATUS_OK);
        put("config.json", json);
        if (parse(&again, from_hf, strlen(from_hf)) != STATUS_OK) {
            fail_msg("%s\nof\n%s", status_message(), json);
        }
        free(again.model.hf_config);
        again.model.hf_config = NULL;
        again.model.topk_method = config.model.topk_method; /* auto is written as what it means */
        char *before = printed(&config), *after = printed(&again);
        assert_string_equal(before, after);
        assert_non_null(strstr(json, "\"torch_dtype\": \"bfloat16\""));
        assert_true((strstr(json, "\"weight_block_size\"") != NULL) == (i == 2));
        free(before);
        free(after);
        free(json);
        config_free(&config);
        config_free(&again);
    }
}

/* Ids of tokens: the import's; else the published ones that the vocabulary has. */
static void test_token_ids(void **state)
{
    (void)state;
    struct config config;
    char *text = NULL;
    assert_int_equal(parse(&config, V2, strlen(V2)), STATUS_OK);
    assert_int_equal(hf_config_text(&config, DTYPE_F32, false, NULL, &text), STATUS_OK);
    assert_non_null(strstr(text, "\"bos_token_id\": null"));
    free(text);
    json_t *before = json_pack("{s:i, s:[i, i]}", "bos_token_id", 7, "eos_token_id", 8, 9);
    assert_int_equal(hf_config_text(&config, DTYPE_F16, false, before, &text), STATUS_OK);
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_int_equal(json_integer_value(json_object_get(json, "bos_token_id")), 7);
    assert_int_equal(json_array_size(json_object_get(json, "eos_token_id")), 2);
    assert_string_equal(json_string_value(json_object_get(json, "torch_dtype")), "float16");
    assert_string_equal(json_string_value(json_object_get(json, "topk_method")),
                        "group_limited_greedy");
    assert_true(json_is_null(json_object_get(json, "q_lora_rank")));
    json_decref(json);
    json_decref(before);
    free(text);
    config_free(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors),     cmocka_unit_test(test_fused_homes),
        cmocka_unit_test(test_other_names), SCRATCH_TEST(test_config_there_and_back),
        cmocka_unit_test(test_token_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
