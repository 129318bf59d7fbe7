#include <stdlib.h>
#include <string.h>

#include "trainer/huggingface.h"

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

/* Ids of the tokenizer are not ours to know: those of the import, else those of the published
 * model where the vocabulary has them. */
static void put_tokens(json_t *json, const struct config *config, const json_t *before, int64_t bos,
                       int64_t eos)
{
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
    put_mixtral(json, config);
    put_tokens(json, config, before, 1, 2);
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
