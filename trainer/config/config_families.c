/* Which model keys a family has, and what they are when nobody says. */
#include <stdio.h>
#include <string.h>

#include "trainer/config/config_table.h"

#define REQUIRED "required"

/* Of the families in order of enum config_family; NULL: not a key of that family. `silent`: what a
 * config.json that is silent about the key means (the defaults of the configuration classes of
 * transformers), NULL: the same. Keys that are not here belong to all, with the table's default. */
static const struct family_key {
    const char *key;
    const char *initial[CONFIG_FAMILIES], *silent[CONFIG_FAMILIES];
} keys[] = {
    {"model.head_dim", {"0", NULL, NULL}, {0}},
    {"model.num_local_experts", {"8", NULL, NULL}, {0}},
    {"model.sliding_window", {"null", NULL, NULL}, {0}},
    {"model.router_aux_loss_coef", {"0.02", NULL, NULL}, {"0.001", NULL, NULL}},
    {"model.router_jitter_noise", {"0", NULL, NULL}, {0}},
    {"model.num_key_value_heads", {"0", "0", "0"}, {"8", "0", "0"}},
    {"model.num_experts_per_tok", {"2", "6", "8"}, {0}},
    {"model.max_position_embeddings", {"32768", "163840", "163840"}, {"131072", "2048", "4096"}},
    {"model.rms_norm_eps", {"1e-5", "1e-6", "1e-6"}, {0}},
    {"model.rope_theta", {"1e6", "1e4", "1e4"}, {0}},
    {"model.moe_intermediate_size", {NULL, REQUIRED, REQUIRED}, {NULL, "1407", "2048"}},
    {"model.n_routed_experts", {NULL, REQUIRED, REQUIRED}, {NULL, "64", "256"}},
    {"model.n_shared_experts", {NULL, "2", "1"}, {0}},
    {"model.first_k_dense_replace", {NULL, "1", "3"}, {NULL, "0", "3"}},
    {"model.q_lora_rank", {NULL, "null", "null"}, {NULL, "1536", "1536"}},
    {"model.kv_lora_rank", {NULL, REQUIRED, REQUIRED}, {NULL, "512", "512"}},
    {"model.qk_nope_head_dim", {NULL, REQUIRED, REQUIRED}, {NULL, "128", "128"}},
    {"model.qk_rope_head_dim", {NULL, REQUIRED, REQUIRED}, {NULL, "64", "64"}},
    {"model.v_head_dim", {NULL, REQUIRED, REQUIRED}, {NULL, "128", "128"}},
    {"model.n_group", {NULL, "1", "1"}, {NULL, "1", "8"}},
    {"model.topk_group", {NULL, "1", "1"}, {NULL, "1", "4"}},
    {"model.topk_method", {NULL, "auto", "noaux_tc"}, {NULL, "greedy", "noaux_tc"}},
    {"model.scoring_func", {NULL, "softmax", "sigmoid"}, {0}},
    {"model.norm_topk_prob", {NULL, "false", "true"}, {0}},
    {"model.routed_scaling_factor", {NULL, "1", "2.5"}, {0}},
    {"model.aux_loss_alpha", {NULL, "0", "0"}, {0}},
    {"model.seq_aux", {NULL, "true", "true"}, {0}},
    {"model.rope_interleave", {NULL, NULL, "true"}, {0}},
    {"model.num_nextn_predict_layers", {NULL, NULL, "0"}, {0}},
    {"model.rope_scaling.type", {NULL, "none", "none"}, {0}},
    {"model.rope_scaling.factor", {NULL, "1", "1"}, {0}},
    {"model.rope_scaling.beta_fast", {NULL, "32", "32"}, {0}},
    {"model.rope_scaling.beta_slow", {NULL, "1", "1"}, {0}},
    {"model.rope_scaling.original_max_position_embeddings", {NULL, "null", "null"}, {0}},
    {"model.rope_scaling.mscale", {NULL, "0", "0"}, {0}},
    {"model.rope_scaling.mscale_all_dim", {NULL, "0", "0"}, {0}},
    {"model.rope_scaling.attention_factor", {NULL, "null", "null"}, {0}},
};

static const char *const family_names[] = {"mixtral", "deepseek_v2", "deepseek_v3"};

static const struct family_key *find(const char *key)
{
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (strcmp(keys[i].key, key) == 0) {
            return &keys[i];
        }
    }
    return NULL;
}

bool config_in_family(const char *key, int family)
{
    const struct family_key *own = find(key);
    return own == NULL || own->initial[family] != NULL;
}

static void take(struct config *config, const struct field *field, const char *value)
{
    char why[256];
    if (strcmp(value, REQUIRED) != 0) {
        (void)config_set(config, field, value, false, why, sizeof why);
    }
}

void config_family_defaults(struct config *config, const bool *given)
{
    for (int i = 0; i < config_field_count; i++) {
        const struct family_key *own = find(config_fields[i].key);
        const char *value = own != NULL ? own->initial[config->model.family] : NULL;
        if (value != NULL && !given[i]) {
            take(config, &config_fields[i], value);
        }
    }
}

bool config_take_silent(struct config *config, const struct field *field)
{
    const struct family_key *own = find(field->key);
    const int family = config->model.family;
    const char *value = own == NULL                   ? field->initial
                        : own->silent[family] != NULL ? own->silent[family]
                                                      : own->initial[family];
    if (value == NULL || strcmp(value, REQUIRED) == 0) {
        return false;
    }
    take(config, field, value);
    return true;
}

/* As the table has it: for a key that a family must have, null. */
static bool is_default(const struct config *config, const struct field *field)
{
    char value[CONFIG_SHOWN_BYTES];
    config_show(config, field, value, sizeof value);
    return field->initial != NULL && strcmp(value, field->initial) == 0;
}

static void not_of_family(const struct config *config, const struct field *field,
                          struct config_errors *errors)
{
    const struct family_key *own = find(field->key);
    char list[128] = "";
    for (int f = 0; f < CONFIG_FAMILIES; f++) {
        if (own->initial[f] != NULL) {
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s",
                     list[0] != '\0' ? ", " : "", family_names[f]);
        }
    }
    config_error(errors, "key '%s': not a key of family %s (of %s)", field->key,
                 family_names[config->model.family], list);
}

void config_check_family(const struct config *config, const bool *given,
                         struct config_errors *errors)
{
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        const struct family_key *own = find(field->key);
        const char *value = own != NULL ? own->initial[config->model.family] : "";
        if (value == NULL && given[i] && !is_default(config, field)) {
            not_of_family(config, field, errors);
        } else if (value != NULL && strcmp(value, REQUIRED) == 0 && is_default(config, field)) {
            config_error(errors, "key '%s': missing: %s", field->key, field->help);
        }
    }
}

void config_initial_text(const struct field *field, char *out, size_t bytes)
{
    const struct family_key *own = find(field->key);
    const char *first = NULL;
    bool same = true;
    for (int f = 0; own != NULL && f < CONFIG_FAMILIES; f++) {
        first = first == NULL ? own->initial[f] : first;
        same = same && (own->initial[f] == NULL || strcmp(own->initial[f], first) == 0);
    }
    if (own == NULL || same) {
        const char *value = own != NULL ? first : field->initial;
        snprintf(out, bytes, "%s", value != NULL ? value : REQUIRED);
        return;
    }
    out[0] = '\0';
    for (int f = 0; f < CONFIG_FAMILIES; f++) {
        if (own->initial[f] != NULL) {
            snprintf(out + strlen(out), bytes - strlen(out), "%s%s %s", out[0] != '\0' ? ", " : "",
                     own->initial[f], family_names[f]);
        }
    }
}
