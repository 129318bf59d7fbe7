#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "trainer/config_table.h"

/* What a config.json that is silent about a key means: the defaults of the MixtralConfig class of
 * transformers. Sizes that have no sensible default must be there. */
static const struct {
    const char *key, *value;
} absent[] = {
    {"model.num_key_value_heads", "8"},  {"model.num_local_experts", "8"},
    {"model.num_experts_per_tok", "2"},  {"model.max_position_embeddings", "131072"},
    {"model.rms_norm_eps", "1e-5"},      {"model.rope_theta", "1e6"},
    {"model.initializer_range", "0.02"}, {"model.router_aux_loss_coef", "0.001"},
};

static bool is_default_rope(const json_t *rope)
{
    const char *type = json_string_value(json_object_get(rope, "rope_type"));
    return rope == NULL || json_is_null(rope) || type == NULL || strcmp(type, "default") == 0;
}

/* Values of config.json that would change the architecture or its training in ways not built. */
static void refuse(const json_t *json, const char *path, struct config_errors *errors)
{
    const char *type = json_string_value(json_object_get(json, "model_type"));
    const char *act = json_string_value(json_object_get(json, "hidden_act"));
    const json_t *scaling = json_object_get(json, "rope_scaling");
    if (type == NULL || strcmp(type, "mixtral") != 0) {
        config_error(errors, "%s: model_type '%s' is not built in this version (built: mixtral)",
                     path, type != NULL ? type : "(none)");
    }
    if (act != NULL && strcmp(act, "silu") != 0) {
        config_error(errors, "%s: hidden_act '%s' is not built (built: silu)", path, act);
    }
    if ((scaling != NULL && !json_is_null(scaling)) ||
        !is_default_rope(json_object_get(json, "rope_parameters"))) {
        config_error(errors, "%s: scaled rotary embedding is not built for mixtral", path);
    }
    if (json_is_true(json_object_get(json, "attention_bias")) ||
        json_is_true(json_object_get(json, "tie_word_embeddings"))) {
        config_error(errors, "%s: attention_bias and tie_word_embeddings are not built", path);
    }
    if (json_number_value(json_object_get(json, "attention_dropout")) != 0) {
        config_error(errors, "%s: attention_dropout is not built: set it to 0", path);
    }
}

static void take(struct config *config, const struct field *field, const json_t *value,
                 const char *path, struct config_errors *errors)
{
    char text[64], why[256] = "";
    if (json_is_integer(value)) {
        snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        snprintf(text, sizeof text, "%.17g", json_real_value(value));
    } else if (json_is_null(value)) {
        if (strcmp(field->key, "model.head_dim") == 0 ||
            strcmp(field->key, "model.num_key_value_heads") == 0) {
            return; /* null there means derived, as our 0 does */
        }
        snprintf(text, sizeof text, "null");
    } else {
        snprintf(text, sizeof text, "(not a number)");
    }
    if (!config_set(config, field, text, false, why, sizeof why)) {
        config_error(errors, "%s: key '%s': %s", path, field->key + strlen("model."), why);
    }
}

static void take_absent(struct config *config, const struct field *field)
{
    char why[256];
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++) {
        if (strcmp(absent[i].key, field->key) == 0) {
            (void)config_set(config, field, absent[i].value, false, why, sizeof why);
        }
    }
}

static bool is_known(const char *key)
{
    static const char *const judged[] = {
        "model_type",     "hidden_act",          "rope_scaling",     "rope_parameters",
        "attention_bias", "tie_word_embeddings", "attention_dropout"};
    char full[128];
    for (size_t i = 0; i < sizeof judged / sizeof judged[0]; i++) {
        if (strcmp(judged[i], key) == 0) {
            return true;
        }
    }
    snprintf(full, sizeof full, "model.%.100s", key);
    return config_find(full) != NULL;
}

/* Names of the keys that mean nothing here, for the log. */
static char *list_ignored(const json_t *json)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    const char *key;
    json_t *value;
    if (out == NULL) {
        return NULL;
    }
    json_object_foreach((json_t *)json, key, value)
    {
        if (!is_known(key)) {
            fprintf(out, "%s%s", ftell(out) > 0 ? ", " : "", key);
        }
    }
    fclose(out);
    return text;
}

static void take_all(struct config *config, const bool *given, const json_t *json, const char *path,
                     struct config_errors *errors)
{
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        if (strncmp(field->key, "model.", 6) != 0 || given[i] || field->kind == FIELD_ENUM ||
            field->kind == FIELD_TEXT) {
            continue;
        }
        const json_t *value = json_object_get(json, field->key + 6);
        if (value == NULL && strcmp(field->key, "model.rope_theta") == 0) {
            value = json_object_get(json_object_get(json, "rope_parameters"), "rope_theta");
        }
        if (value != NULL) {
            take(config, field, value, path, errors);
        } else if (field->initial == NULL) {
            config_error(errors, "%s: key '%s' is missing", path, field->key + 6);
        } else {
            take_absent(config, field);
        }
    }
}

void config_apply_hf(struct config *config, const bool *given, struct config_errors *errors)
{
    char path[4096];
    struct stat info;
    json_error_t problem;
    const bool folder = stat(config->model.hf_config, &info) == 0 && S_ISDIR(info.st_mode);
    snprintf(path, sizeof path, "%s%s", config->model.hf_config, folder ? "/config.json" : "");
    json_t *json = json_load_file(path, JSON_REJECT_DUPLICATES, &problem);
    if (json == NULL) {
        config_error(errors, "%s: line %d: %s", path, problem.line, problem.text);
        return;
    }
    refuse(json, path, errors);
    take_all(config, given, json, path, errors);
    free(config->model.hf_ignored);
    config->model.hf_ignored = list_ignored(json);
    json_decref(json);
}
