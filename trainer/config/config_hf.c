#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "trainer/config/config_table.h"

/* Where a config.json may name the type of its rotary embedding: published files say rope_scaling,
 * transformers 5 rope_parameters. */
static const json_t *rope_map(const json_t *json)
{
    const json_t *scaling = json_object_get(json, "rope_scaling");
    return json_is_object(scaling) ? scaling : json_object_get(json, "rope_parameters");
}

static const json_t *rope_type(const json_t *json)
{
    const json_t *map = rope_map(json), *type = json_object_get(map, "type");
    return type != NULL ? type : json_object_get(map, "rope_type");
}

/* Values of config.json that would change the architecture or its training in ways not built. */
static void refuse(const struct config *config, const json_t *json, const char *path,
                   struct config_errors *errors)
{
    const char *act = json_string_value(json_object_get(json, "hidden_act"));
    const char *rope = json_string_value(rope_type(json));
    const json_t *every = json_object_get(json, "moe_layer_freq");
    if (act != NULL && strcmp(act, "silu") != 0) {
        config_error(errors, "%s: hidden_act '%s' is not built (built: silu)", path, act);
    }
    if (config->model.family == CONFIG_MIXTRAL && rope != NULL && strcmp(rope, "default") != 0) {
        config_error(errors, "%s: scaled rotary embedding is not built for mixtral", path);
    }
    if (json_is_true(json_object_get(json, "attention_bias")) ||
        json_is_true(json_object_get(json, "tie_word_embeddings"))) {
        config_error(errors, "%s: attention_bias and tie_word_embeddings are not built", path);
    }
    if (json_number_value(json_object_get(json, "attention_dropout")) != 0) {
        config_error(errors, "%s: attention_dropout is not built: set it to 0", path);
    }
    if (every != NULL && json_integer_value(every) != 1) {
        config_error(errors, "%s: moe_layer_freq other than 1 is not built", path);
    }
    if (json_is_false(json_object_get(rope_map(json), "truncate"))) {
        config_error(errors, "%s: rope_parameters.truncate false is not built", path);
    }
}

/* The value of a field's key, where published files and transformers put it. */
static const json_t *lookup(const json_t *json, const struct field *field)
{
    static const struct {
        const char *name, *other;
    } also[] = {{"n_routed_experts", "num_local_experts"},
                {"num_nextn_predict_layers", "num_mtp_layers"}};
    const char *name = field->key + strlen("model.");
    if (strcmp(field->key, "model.rope_scaling.type") == 0) {
        return rope_type(json);
    }
    if (config_is_nested(field->key)) {
        return json_object_get(rope_map(json), strrchr(field->key, '.') + 1);
    }
    const json_t *value = json_object_get(json, name);
    if (value == NULL && strcmp(name, "rope_theta") == 0) {
        value = json_object_get(json_object_get(json, "rope_parameters"), name);
    }
    for (size_t i = 0; i < sizeof also / sizeof also[0] && value == NULL; i++) {
        value = strcmp(name, also[i].name) == 0 ? json_object_get(json, also[i].other) : NULL;
    }
    return value;
}

/* A scalar as one writes it in YAML. */
static void scalar_text(const json_t *value, char *out, size_t bytes)
{
    if (json_is_integer(value)) {
        snprintf(out, bytes, "%lld", (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        snprintf(out, bytes, "%.17g", json_real_value(value));
    } else if (json_is_boolean(value)) {
        snprintf(out, bytes, "%s", json_is_true(value) ? "true" : "false");
    } else if (json_is_string(value)) {
        const char *text = json_string_value(value);
        snprintf(out, bytes, "%s", strcmp(text, "default") == 0 ? "none" : text);
    } else {
        snprintf(out, bytes, "%s", json_is_null(value) ? "null" : "(not a number)");
    }
}

static void take(struct config *config, const struct field *field, const json_t *value,
                 const char *path, struct config_errors *errors)
{
    char text[64], why[256] = "";
    const bool derived = field->initial != NULL && strcmp(field->initial, "null") != 0;
    if (json_is_null(value) && derived) {
        return; /* null there means derived or absent, as our default does */
    }
    scalar_text(value, text, sizeof text);
    if (!config_set(config, field, text, json_is_string(value), why, sizeof why)) {
        config_error(errors, "%s: key '%s': %s", path, field->key + strlen("model."), why);
    }
}

static bool is_known(const struct config *config, const char *key)
{
    static const char *const judged[] = {
        "model_type",      "hidden_act",     "rope_scaling",
        "rope_parameters", "attention_bias", "attention_dropout",
        "moe_layer_freq",  "num_mtp_layers", "tie_word_embeddings",
    };
    char full[128];
    for (size_t i = 0; i < sizeof judged / sizeof judged[0]; i++) {
        if (strcmp(judged[i], key) == 0) {
            return true;
        }
    }
    snprintf(full, sizeof full, "model.%.100s", key);
    return config_find(full) != NULL && config_in_family(full, config->model.family);
}

/* Names of the keys that mean nothing here, for the log. */
static char *list_ignored(const struct config *config, const json_t *json)
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
        if (!is_known(config, key)) {
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
        if (strncmp(field->key, "model.", 6) != 0 || given[i] || field->kind == FIELD_TEXT ||
            strcmp(field->key, "model.family") == 0 ||
            !config_in_family(field->key, config->model.family)) {
            continue;
        }
        const json_t *value = lookup(json, field);
        if (value != NULL) {
            take(config, field, value, path, errors);
        } else if (!config_take_silent(config, field)) {
            config_error(errors, "%s: key '%s' is missing", path, field->key + 6);
        }
    }
}

/* The family is the file's; a family written beside it must be the same. */
static bool take_family(struct config *config, const bool *given, const json_t *json,
                        const char *path, struct config_errors *errors)
{
    const struct field *field = config_find("model.family");
    const char *type = json_string_value(json_object_get(json, "model_type"));
    const int before = config->model.family;
    char why[256];
    if (type == NULL || !config_set(config, field, type, false, why, sizeof why)) {
        config_error(errors, "%s: model_type '%s' is not built in this version (built: %s)", path,
                     type != NULL ? type : "(none)", "mixtral, deepseek_v2, deepseek_v3");
        return false;
    }
    if (given[field - config_fields] && before != config->model.family) {
        config_error(errors, "model.family %s contradicts %s: its model_type is %s",
                     field->names[before], path, type);
        return false;
    }
    return true;
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
    if (take_family(config, given, json, path, errors)) {
        refuse(config, json, path, errors);
        config_family_defaults(config, given);
        take_all(config, given, json, path, errors);
        free(config->model.hf_ignored);
        config->model.hf_ignored = list_ignored(config, json);
    }
    json_decref(json);
}
