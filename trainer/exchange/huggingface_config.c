#include <stdlib.h>
#include <string.h>

#include "trainer/exchange/huggingface.h"

/* Version of transformers whose files these look like. */
static const char TRANSFORMERS[] = "4.46.0";

static void put_int(json_t *json, const char *key, int64_t value)
{
    json_object_set_new(json, key, json_integer(value));
}

static void put_optional(json_t *json, const char *key, int64_t value)
{
    json_object_set_new(json, key, value > 0 ? json_integer(value) : json_null());
}

static void put_real(json_t *json, const char *key, double value)
{
    json_object_set_new(json, key, json_real(value));
}

static void put_text(json_t *json, const char *key, const char *value)
{
    json_object_set_new(json, key, json_string(value));
}

static void put_bool(json_t *json, const char *key, bool value)
{
    json_object_set_new(json, key, json_boolean(value));
}

/* Keys that all families write alike. */
static void put_common(json_t *json, const struct config *config)
{
    put_int(json, "vocab_size", config->model.vocab_size);
    put_int(json, "hidden_size", config->model.hidden_size);
    put_int(json, "intermediate_size", config->model.intermediate_size);
    put_int(json, "num_hidden_layers", config->model.num_hidden_layers);
    put_int(json, "num_attention_heads", config->model.num_attention_heads);
    put_int(json, "num_key_value_heads", config->model.num_key_value_heads);
    put_int(json, "num_experts_per_tok", config->model.num_experts_per_tok);
    put_int(json, "max_position_embeddings", config->model.max_position_embeddings);
    put_real(json, "rms_norm_eps", config->model.rms_norm_eps);
    put_real(json, "rope_theta", config->model.rope_theta);
    put_real(json, "initializer_range", config->model.initializer_range);
    put_text(json, "hidden_act", "silu");
    put_real(json, "attention_dropout", 0);
    put_bool(json, "tie_word_embeddings", false);
    put_bool(json, "use_cache", true);
    put_text(json, "transformers_version", TRANSFORMERS);
}

static void put_mixtral(json_t *json, const struct config *config)
{
    put_text(json, "model_type", "mixtral");
    json_object_set_new(json, "architectures", json_pack("[s]", "MixtralForCausalLM"));
    put_int(json, "num_local_experts", config->model.num_local_experts);
    if (config->model.head_dim > 0) {
        put_int(json, "head_dim", config->model.head_dim);
    }
    put_optional(json, "sliding_window", config->model.sliding_window);
    put_real(json, "router_aux_loss_coef", config->model.router_aux_loss_coef);
    put_real(json, "router_jitter_noise", config->model.router_jitter_noise);
    put_bool(json, "output_router_logits", false);
}

/* YaRN as DeepSeek writes it; factors that are not given are left out. */
static json_t *rope_scaling(const struct config *config)
{
    if (config->model.rope_scaling.type == CONFIG_ROPE_NONE) {
        return json_null();
    }
    json_t *json = json_object();
    put_text(json, "type", "yarn");
    put_real(json, "factor", config->model.rope_scaling.factor);
    put_real(json, "beta_fast", config->model.rope_scaling.beta_fast);
    put_real(json, "beta_slow", config->model.rope_scaling.beta_slow);
    put_int(json, "original_max_position_embeddings",
            config->model.rope_scaling.original_max_position_embeddings);
    if (config->model.rope_scaling.mscale > 0) {
        put_real(json, "mscale", config->model.rope_scaling.mscale);
    }
    if (config->model.rope_scaling.mscale_all_dim > 0) {
        put_real(json, "mscale_all_dim", config->model.rope_scaling.mscale_all_dim);
    }
    if (config->model.rope_scaling.attention_factor >= 0) {
        put_real(json, "attention_factor", config->model.rope_scaling.attention_factor);
    }
    return json;
}

static void put_router(json_t *json, const struct config *config, bool v3)
{
    const bool greedy = config->model.topk_method == CONFIG_GREEDY || config->model.n_group == 1;
    put_int(json, "n_group", config->model.n_group);
    put_int(json, "topk_group", config->model.topk_group);
    put_text(json, "topk_method", v3 ? "noaux_tc" : greedy ? "greedy" : "group_limited_greedy");
    put_text(json, "scoring_func",
             config->model.scoring_func == CONFIG_SIGMOID ? "sigmoid" : "softmax");
    put_bool(json, "norm_topk_prob", config->model.norm_topk_prob);
    put_real(json, "routed_scaling_factor", config->model.routed_scaling_factor);
    put_bool(json, "seq_aux", config->model.seq_aux);
    put_real(json, "aux_loss_alpha", config->model.aux_loss_alpha);
}

static void put_deepseek(json_t *json, const struct config *config, bool v3)
{
    put_text(json, "model_type", v3 ? "deepseek_v3" : "deepseek_v2");
    json_object_set_new(json, "architectures",
                        json_pack("[s]", v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"));
    put_optional(json, "q_lora_rank", config->model.q_lora_rank);
    put_int(json, "kv_lora_rank", config->model.kv_lora_rank);
    put_int(json, "qk_nope_head_dim", config->model.qk_nope_head_dim);
    put_int(json, "qk_rope_head_dim", config->model.qk_rope_head_dim);
    put_int(json, "v_head_dim", config->model.v_head_dim);
    put_int(json, "moe_intermediate_size", config->model.moe_intermediate_size);
    put_int(json, "n_routed_experts", config->model.n_routed_experts);
    put_optional(json, "n_shared_experts", config->model.n_shared_experts);
    put_int(json, "first_k_dense_replace", config->model.first_k_dense_replace);
    put_int(json, "moe_layer_freq", 1);
    put_router(json, config, v3);
    json_object_set_new(json, "rope_scaling", rope_scaling(config));
    put_bool(json, "attention_bias", false);
    put_int(json, "ep_size", 1);
    put_int(json, "pretraining_tp", 1);
    if (v3) {
        put_bool(json, "rope_interleave", config->model.rope_interleave);
        put_int(json, "num_nextn_predict_layers", config->model.num_nextn_predict_layers);
    }
}

/* Ids of the tokenizer are not ours to know: those of the import, else those of the published
 * model where the vocabulary has them. */
static void put_tokens(json_t *json, const struct config *config, const json_t *before)
{
    static const int64_t published[CONFIG_FAMILIES][2] = {[CONFIG_MIXTRAL] = {1, 2},
                                                          [CONFIG_DEEPSEEK_V2] = {100000, 100001},
                                                          [CONFIG_DEEPSEEK_V3] = {0, 1}};
    const int64_t bos = published[config->model.family][0],
                  eos = published[config->model.family][1];
    const struct {
        const char *key;
        int64_t id;
    } tokens[] = {{"bos_token_id", bos}, {"eos_token_id", eos}, {"pad_token_id", -1}};
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
        json_t *kept = json_object_get(before, tokens[i].key);
        if (kept != NULL) {
            json_object_set(json, tokens[i].key, kept);
        } else if (tokens[i].id >= 0) {
            json_object_set_new(json, tokens[i].key,
                                tokens[i].id < config->model.vocab_size ? json_integer(tokens[i].id)
                                                                        : json_null());
        }
    }
}

/* With the fewest digits that read back as the same numbers. */
static char *print(const json_t *json)
{
    enum { FEWEST = 15, MOST = 17 };
    char *text = NULL;
    bool same = false;
    for (size_t digits = FEWEST; digits <= MOST && !same; digits++) {
        free(text);
        text = json_dumps(json, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(digits));
        json_t *again = text != NULL ? json_loads(text, 0, NULL) : NULL;
        same = text == NULL || json_equal(json, again) != 0;
        json_decref(again);
    }
    return text;
}

static const char *torch_name(enum dtype dtype)
{
    return dtype_name(dtype); /* float32, bfloat16, float16: the same words */
}

enum status hf_config_text(const struct config *config, enum dtype dtype, bool fp8,
                           const json_t *before, char **text)
{
    json_t *json = json_object();
    put_common(json, config);
    if (config->model.family == CONFIG_MIXTRAL) {
        put_mixtral(json, config);
    } else {
        put_deepseek(json, config, config->model.family == CONFIG_DEEPSEEK_V3);
    }
    put_tokens(json, config, before);
    put_text(json, "torch_dtype", torch_name(dtype));
    if (fp8) {
        json_object_set_new(json, "quantization_config",
                            json_pack("{s:s, s:s, s:s, s:[i, i]}", "activation_scheme", "dynamic",
                                      "fmt", "e4m3", "quant_method", "fp8", "weight_block_size",
                                      128, 128));
    }
    *text = print(json);
    json_decref(json);
    return *text != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
}
