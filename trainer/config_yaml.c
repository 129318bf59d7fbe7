#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "kernels/base/io.h"
#include "trainer/config_table.h"
#include "trainer/nearest.h"

static const size_t MOST_BYTES = (size_t)1 << 20;

/* One file or one command line being read. */
struct reader {
    struct config *config;
    const char *name;
    bool *given; /* [config_field_count] */
    struct config_errors errors;
};

void config_explain(const char *key, char *out, size_t bytes)
{
    const char *near = NULL, *own = strrchr(key, '.');
    int least = (int)strlen(key) / 3 + 1;
    for (int i = 0; i < config_unbuilt_count; i++) {
        if (strcmp(config_unbuilt[i].key, key) == 0) {
            snprintf(out, bytes, "not built in this version%s%s",
                     config_unbuilt[i].accepted != NULL ? "; it acts as " : "",
                     config_unbuilt[i].accepted != NULL ? config_unbuilt[i].accepted : "");
            return;
        }
    }
    for (int i = 0; i < config_field_count; i++) {
        const char *name = strrchr(config_fields[i].key, '.');
        const bool same =
            own != NULL && strcmp(own, name) == 0; /* right key in the wrong section */
        const int d = same ? 1 : nearest_distance(key, config_fields[i].key);
        if (d < least) {
            least = d;
            near = config_fields[i].key;
        }
    }
    snprintf(out, bytes, near != NULL ? "unknown key; did you mean '%s'?" : "unknown key%s",
             near != NULL ? near : "");
}

/* A key that isn't built, with the value that says what happens anyway, is no error. */
static bool states_the_fact(const char *key, const char *value)
{
    for (int i = 0; i < config_unbuilt_count; i++) {
        const struct unbuilt_key *unbuilt = &config_unbuilt[i];
        if (strcmp(unbuilt->key, key) == 0 && unbuilt->accepted != NULL) {
            return strcmp(unbuilt->accepted, value) == 0 || strcmp(value, "null") == 0 ||
                   (strcmp(key, "run.deterministic") == 0 && strcmp(value, "true") == 0);
        }
    }
    return false;
}

static void set(struct reader *r, const char *where, const char *key, const char *value,
                bool quoted)
{
    char why[512] = "";
    const struct field *field = config_find(key);
    if (field == NULL) {
        if (!states_the_fact(key, value)) {
            config_explain(key, why, sizeof why);
            config_error(&r->errors, "%s: key '%s': %s", where, key, why);
        }
        return;
    }
    if (!config_set(r->config, field, value, quoted, why, sizeof why)) {
        config_error(&r->errors, "%s: key '%s': %s", where, key, why);
        return;
    }
    r->given[field - config_fields] = true;
}

static void place(const struct reader *r, const yaml_mark_t *mark, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s:%zu:%zu", r->name, mark->line + 1, mark->column + 1);
}

/* data.train: [{path: P, weight: W}] with one entry. */
static const yaml_node_t *single_source(yaml_document_t *document, const yaml_node_t *node)
{
    if (node->type != YAML_SEQUENCE_NODE ||
        node->data.sequence.items.top - node->data.sequence.items.start != 1) {
        return NULL;
    }
    const yaml_node_t *item = yaml_document_get_node(document, *node->data.sequence.items.start),
                      *path = NULL;
    if (item == NULL || item->type != YAML_MAPPING_NODE) {
        return NULL;
    }
    for (yaml_node_pair_t *pair = item->data.mapping.pairs.start;
         pair < item->data.mapping.pairs.top; pair++) {
        const yaml_node_t *key = yaml_document_get_node(document, pair->key);
        const yaml_node_t *value = yaml_document_get_node(document, pair->value);
        const char *name =
            key->type == YAML_SCALAR_NODE ? (const char *)key->data.scalar.value : "";
        if (strcmp(name, "path") == 0 && value->type == YAML_SCALAR_NODE) {
            path = value;
        } else if (strcmp(name, "weight") != 0) {
            return NULL;
        }
    }
    return path;
}

static void read_value(struct reader *r, yaml_document_t *document, const char *key,
                       const yaml_node_t *value)
{
    char where[512];
    place(r, &value->start_mark, where, sizeof where);
    if (strcmp(key, "data.train") == 0 && value->type == YAML_SEQUENCE_NODE) {
        const yaml_node_t *path = single_source(document, value);
        if (path == NULL) {
            config_error(&r->errors,
                         "%s: key 'data.train': a path, or a list with one {path: P, weight: W}; "
                         "mixtures are "
                         "not built in this version",
                         where);
            return;
        }
        value = path;
    }
    if (value->type != YAML_SCALAR_NODE) {
        char why[512];
        config_explain(key, why, sizeof why);
        config_error(&r->errors, "%s: key '%s': %s", where, key,
                     config_find(key) != NULL ? "one value is expected" : why);
        return;
    }
    set(r, where, key, (const char *)value->data.scalar.value,
        value->data.scalar.style != YAML_PLAIN_SCALAR_STYLE);
}

static bool is_section(const char *name)
{
    const size_t length = strlen(name);
    for (int i = 0; i < config_field_count; i++) {
        if (strncmp(config_fields[i].key, name, length) == 0 &&
            config_fields[i].key[length] == '.') {
            return true;
        }
    }
    return false;
}

static bool seen_before(yaml_document_t *document, const yaml_node_t *map,
                        const yaml_node_pair_t *until, const char *name)
{
    for (yaml_node_pair_t *pair = map->data.mapping.pairs.start; pair < until; pair++) {
        const yaml_node_t *key = yaml_document_get_node(document, pair->key);
        if (key->type == YAML_SCALAR_NODE &&
            strcmp((const char *)key->data.scalar.value, name) == 0) {
            return true;
        }
    }
    return false;
}

static void read_map(struct reader *r, yaml_document_t *document, const yaml_node_t *map,
                     const char *section)
{
    for (yaml_node_pair_t *pair = map->data.mapping.pairs.start; pair < map->data.mapping.pairs.top;
         pair++) {
        const yaml_node_t *key = yaml_document_get_node(document, pair->key);
        const yaml_node_t *value = yaml_document_get_node(document, pair->value);
        char full[256], where[512], why[512];
        place(r, &key->start_mark, where, sizeof where);
        if (key->type != YAML_SCALAR_NODE) {
            config_error(&r->errors, "%s: a key must be a word", where);
            continue;
        }
        const char *name = (const char *)key->data.scalar.value;
        snprintf(full, sizeof full, "%s%s%s", section, section[0] != '\0' ? "." : "", name);
        if (seen_before(document, map, pair, name)) {
            config_error(&r->errors, "%s: key '%s': given twice", where, full);
        } else if (section[0] != '\0') {
            read_value(r, document, full, value);
        } else if (is_section(name) && value->type == YAML_MAPPING_NODE) {
            read_map(r, document, value, name);
        } else {
            config_explain(full, why, sizeof why);
            config_error(&r->errors, "%s: key '%s': %s", where, full,
                         is_section(name) ? "a section of keys is expected" : why);
        }
    }
}

/* Tabs, anchors and aliases are refused by a pass over the tokens, with their place. */
static void scan(struct reader *r, const char *text, size_t bytes)
{
    yaml_parser_t parser;
    yaml_token_t token;
    bool more = true;
    const char *tab = memchr(text, '\t', bytes);
    if (tab != NULL) {
        size_t line = 1, column = 1;
        for (const char *c = text; c < tab; c++, column++) {
            if (*c == '\n') {
                line++;
                column = 0;
            }
        }
        config_error(&r->errors, "%s:%zu:%zu: a tab: indent with spaces", r->name, line, column);
        return;
    }
    yaml_parser_initialize(&parser);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    while (more && yaml_parser_scan(&parser, &token) != 0) {
        more = token.type != YAML_STREAM_END_TOKEN;
        if (token.type == YAML_ALIAS_TOKEN || token.type == YAML_ANCHOR_TOKEN ||
            token.type == YAML_TAG_TOKEN) {
            config_error(&r->errors, "%s:%zu:%zu: anchors, aliases and tags are not supported",
                         r->name, token.start_mark.line + 1, token.start_mark.column + 1);
            more = false;
        }
        yaml_token_delete(&token);
    }
    yaml_parser_delete(&parser);
}

static void read_text(struct reader *r, const char *text, size_t bytes)
{
    yaml_parser_t parser;
    yaml_document_t document, second;
    scan(r, text, bytes);
    if (r->errors.count > 0) {
        return;
    }
    yaml_parser_initialize(&parser);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    if (yaml_parser_load(&parser, &document) == 0) {
        config_error(&r->errors, "%s:%zu:%zu: %s", r->name, parser.problem_mark.line + 1,
                     parser.problem_mark.column + 1,
                     parser.problem != NULL ? parser.problem : "not YAML");
        yaml_parser_delete(&parser);
        return;
    }
    const yaml_node_t *root = yaml_document_get_root_node(&document);
    if (root == NULL || root->type != YAML_MAPPING_NODE) {
        config_error(
            &r->errors,
            "%s:1:1: sections of keys are expected, such as run:, model:, train:", r->name);
    } else {
        read_map(r, &document, root, "");
    }
    yaml_document_delete(&document);
    if (yaml_parser_load(&parser, &second) == 0 || yaml_document_get_root_node(&second) != NULL) {
        config_error(&r->errors, "%s: more than one YAML document", r->name);
    }
    yaml_document_delete(&second);
    yaml_parser_delete(&parser);
}

static void read_overrides(struct reader *r, char *const *overrides, int count)
{
    for (int i = 0; i < count; i++) {
        char key[256];
        const char *equals = strchr(overrides[i], '=');
        snprintf(key, sizeof key, "%.*s", (int)(equals - overrides[i]), overrides[i]);
        set(r, "command line", key, equals + 1, strcmp(key, "sample.prompt") == 0);
    }
}

static enum status finish(struct reader *r)
{
    if (r->config->model.hf_config != NULL && r->errors.count == 0) {
        config_apply_hf(r->config, r->given, &r->errors);
    }
    if (r->errors.count == 0) {
        struct config_errors relations = {0};
        config_check(r->config, r->given, &relations);
        if (relations.count > 0) {
            config_error(&r->errors, "%s: %s", r->name, relations.text);
        }
    }
    if (r->config->model.num_key_value_heads == 0) {
        r->config->model.num_key_value_heads = r->config->model.num_attention_heads;
    }
    return config_result(&r->errors);
}

static enum status read_all(struct config *config, const char *name, const char *text, size_t bytes,
                            char *const *overrides, int count)
{
    bool *given = calloc((size_t)config_field_count, sizeof *given);
    if (given == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory reading %s", name);
    }
    struct reader r = {.config = config, .name = name, .given = given};
    read_text(&r, text, bytes);
    read_overrides(&r, overrides, count);
    const enum status status = finish(&r);
    free(given);
    return status;
}

enum status config_parse(struct config *config, const char *name, const char *text, size_t bytes)
{
    return read_all(config, name, text, bytes, NULL, 0);
}

enum status config_load(struct config *config, const char *path, char *const *overrides,
                        int override_count)
{
    char *text = NULL;
    size_t bytes = 0;
    TRY(io_read_file(path, &text, &bytes, MOST_BYTES));
    const enum status status = read_all(config, path, text, bytes, overrides, override_count);
    free(text);
    return status;
}

enum status config_override(struct config *config, char *const *overrides, int count)
{
    bool *given = calloc((size_t)config_field_count, sizeof *given);
    if (given == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory reading the command line");
    }
    memset(given, true,
           (size_t)config_field_count * sizeof *given); /* the config was complete before */
    struct reader r = {.config = config, .name = "command line", .given = given};
    read_overrides(&r, overrides, count);
    const enum status status = finish(&r);
    free(given);
    return status;
}
