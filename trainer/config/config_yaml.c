#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "kernels/base/io.h"
#include "trainer/config/config_table.h"
#include "trainer/config/nearest.h"

static const size_t MOST_BYTES = (size_t)1 << 20;

/* One file or one command line being read. */
struct reader {
    struct config *config;
    const char *name;
    bool *given; /* [config_field_count] */
    struct config_errors errors;
};

/* The key is `name` or lies in it. */
static bool is_within(const char *key, const char *name)
{
    const size_t length = strlen(name);
    return strncmp(key, name, length) == 0 && (key[length] == '\0' || key[length] == '.');
}

/* The nearest key (of a word without a dot: or section) in `near`, "" when none is near. */
static void find_near(const char *key, char *near, size_t bytes)
{
    const char *dot = strrchr(key, '.'), *own = dot != NULL ? dot + 1 : key;
    int least = (int)strlen(key) / 3 + (dot != NULL ? 1 : 2);
    near[0] = '\0';
    for (int i = 0; i < config_field_count; i++) {
        const char *known = config_fields[i].key, *name = strchr(known, '.') + 1;
        char section[64];
        snprintf(section, sizeof section, "%.*s", (int)(name - known) - 1, known);
        /* The right key in the wrong section is nearest. */
        const int whole = strcmp(own, name) == 0 ? 0 : nearest_distance(key, known),
                  part = dot == NULL ? nearest_distance(key, section) : whole;
        if (whole < least || part < least) {
            least = whole < part ? whole : part;
            snprintf(near, bytes, "%s", part < whole ? section : known);
        }
    }
}

void config_explain(const char *key, char *out, size_t bytes)
{
    char near[128];
    for (int i = 0; i < config_unbuilt_count; i++) {
        if (is_within(key, config_unbuilt[i].key)) {
            snprintf(out, bytes, "not built in this version%s%s",
                     config_unbuilt[i].accepted != NULL ? "; it acts as " : "",
                     config_unbuilt[i].accepted != NULL ? config_unbuilt[i].accepted : "");
            return;
        }
    }
    for (int i = 0; i < config_field_count; i++) {
        if (is_within(config_fields[i].key, key)) {
            snprintf(out, bytes, "a section of keys: give each by its own name, such as '%s'",
                     config_fields[i].key);
            return;
        }
    }
    find_near(key, near, sizeof near);
    snprintf(out, bytes, near[0] != '\0' ? "unknown key; did you mean '%s'?" : "unknown key%s",
             near);
}

/* A key that isn't built, with the value that says what happens anyway, is no error. */
static bool states_the_fact(const char *key, const char *value)
{
    for (int i = 0; i < config_unbuilt_count; i++) {
        const struct unbuilt_key *unbuilt = &config_unbuilt[i];
        if (strcmp(unbuilt->key, key) == 0 && unbuilt->accepted != NULL) {
            return strcmp(unbuilt->accepted, value) == 0 || strcmp(value, "null") == 0;
        }
    }
    return false;
}

/* `map: null`: every key of the map as when nobody says. */
static void reset_map(struct reader *r, const char *name)
{
    char why[512];
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        if (is_within(field->key, name) && field->initial != NULL) {
            (void)config_set(r->config, field, field->initial, false, why, sizeof why);
            r->given[i] = true; /* also against a config.json */
        }
    }
}

static void set(struct reader *r, const char *where, const char *key, const char *value,
                bool quoted)
{
    char why[512] = "";
    const bool alias = strcmp(key, "model.rope_scaling.rope_type") == 0;
    const struct field *field = config_find(alias ? "model.rope_scaling.type" : key);
    if (config_is_map(key) && strcmp(value, "null") == 0) {
        reset_map(r, key);
        return;
    }
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

/* NULL for anything but a word; one with a NUL in it would be read as another. */
static const char *word(const yaml_node_t *node)
{
    const char *text =
        node->type == YAML_SCALAR_NODE ? (const char *)node->data.scalar.value : NULL;
    return text != NULL && strlen(text) == node->data.scalar.length ? text : NULL;
}

/* Words of a member of a source: its value, or the items of its list; -1: neither. */
static int64_t words_of(yaml_document_t *document, const yaml_node_t *value,
                        const char *words[CONFIG_MOST_STAGES + 1])
{
    int64_t count = 0;
    if (value->type != YAML_SEQUENCE_NODE) {
        words[0] = word(value);
        return words[0] != NULL ? 1 : -1;
    }
    for (yaml_node_item_t *item = value->data.sequence.items.start;
         item < value->data.sequence.items.top && count <= CONFIG_MOST_STAGES; item++) {
        words[count] = word(yaml_document_get_node(document, *item));
        if (words[count++] == NULL) {
            return -1;
        }
    }
    return count;
}

/* One map of data.train. */
static bool read_source(yaml_document_t *document, const yaml_node_t *item,
                        struct config_source *source, char *why, size_t bytes)
{
    if (item == NULL || item->type != YAML_MAPPING_NODE) {
        snprintf(why, bytes, "a map such as {path: a.h5, weight: 0.5} is expected");
        return false;
    }
    for (yaml_node_pair_t *pair = item->data.mapping.pairs.start;
         pair < item->data.mapping.pairs.top; pair++) {
        const char *words[CONFIG_MOST_STAGES + 1];
        const char *name = word(yaml_document_get_node(document, pair->key));
        const int64_t count =
            words_of(document, yaml_document_get_node(document, pair->value), words);
        if (name == NULL || count < 0) {
            snprintf(why, bytes, "'%s' is not a number or a word", name != NULL ? name : "");
            return false;
        }
        if (!config_source_set(source, name, words, count, why, bytes)) {
            return false;
        }
    }
    return true;
}

/* data.train as a list of maps. */
static void read_sources(struct reader *r, yaml_document_t *document, const char *where,
                         const struct field *field, const yaml_node_t *list)
{
    struct config_sources *sources = (void *)((char *)r->config + field->offset);
    char why[512] = "";
    bool good = true;
    config_sources_free(sources);
    for (yaml_node_item_t *item = list->data.sequence.items.start;
         item < list->data.sequence.items.top && good; item++) {
        struct config_source *source = config_source_add(sources);
        good = source != NULL;
        if (!good) {
            snprintf(why, sizeof why, "more than %d sources", CONFIG_MOST_ITEMS);
        } else if (!read_source(document, yaml_document_get_node(document, *item), source, why,
                                sizeof why)) {
            const size_t used = strlen(why);
            snprintf(why + used, sizeof why - used, " (source %lld)", (long long)sources->count);
            good = false;
        }
    }
    if (!good || !config_sources_whole(sources, why, sizeof why)) {
        config_error(&r->errors, "%s: key '%s': %s", where, field->key, why);
    }
    r->given[field - config_fields] = true;
}

/* A list of words for a key that takes one. */
static void read_list(struct reader *r, yaml_document_t *document, const char *where,
                      const struct field *field, const yaml_node_t *list)
{
    const char *items[CONFIG_MOST_ITEMS + 1];
    char why[512] = "";
    int64_t count = 0;
    bool good = true;
    for (yaml_node_item_t *item = list->data.sequence.items.start;
         item < list->data.sequence.items.top && count <= CONFIG_MOST_ITEMS && good; item++) {
        const yaml_node_t *node = yaml_document_get_node(document, *item);
        items[count] = word(node);
        good = items[count] != NULL &&
               (field->kind == FIELD_TEXTS || node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE);
        count++;
    }
    if (!good) {
        config_error(&r->errors, "%s: key '%s': item %d of the list is not a %s", where, field->key,
                     (int)count, field->kind == FIELD_TEXTS ? "word" : "number");
    } else if (!config_list_set(r->config, field, items, count, why, sizeof why)) {
        config_error(&r->errors, "%s: key '%s': %s", where, field->key, why);
    } else {
        r->given[field - config_fields] = true;
    }
}

static void read_map(struct reader *r, yaml_document_t *document, const yaml_node_t *map,
                     const char *section);

/* Errors stand where the mistake is: at the key when that is not known, else at its value. */
static void read_value(struct reader *r, yaml_document_t *document, const char *key,
                       const yaml_mark_t *key_mark, const yaml_node_t *value)
{
    char where[512];
    place(r, config_find(key) != NULL ? &value->start_mark : key_mark, where, sizeof where);
    if (value->type == YAML_MAPPING_NODE && config_is_map(key)) {
        read_map(r, document, value, key);
        return;
    }
    const struct field *field = config_find(key);
    if (field != NULL && (field->kind == FIELD_TEXTS || field->kind == FIELD_REALS) &&
        value->type == YAML_SEQUENCE_NODE) {
        read_list(r, document, where, field, value);
        return;
    }
    if (field != NULL && field->kind == FIELD_SOURCES && value->type == YAML_SEQUENCE_NODE) {
        read_sources(r, document, where, field, value);
        return;
    }
    if (word(value) == NULL) {
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
        if (word(key) != NULL && strcmp(word(key), name) == 0) {
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
        const char *name = word(key);
        if (name == NULL) {
            config_error(&r->errors, "%s: a key must be a word", where);
            continue;
        }
        snprintf(full, sizeof full, "%s%s%s", section, section[0] != '\0' ? "." : "", name);
        if (seen_before(document, map, pair, name)) {
            config_error(&r->errors, "%s: key '%s': given twice", where, full);
        } else if (section[0] != '\0') {
            read_value(r, document, full, &key->start_mark, value);
        } else if (is_section(name) && value->type == YAML_MAPPING_NODE) {
            read_map(r, document, value, name);
        } else {
            config_explain(full, why, sizeof why);
            config_error(&r->errors, "%s: key '%s': %s", where, full,
                         is_section(name) ? "a section of keys is expected" : why);
        }
    }
}

static yaml_mark_t mark_of(const char *text, size_t offset)
{
    yaml_mark_t mark = {0};
    for (size_t i = 0; i < offset; i++) {
        mark.column = text[i] == '\n' ? 0 : mark.column + 1;
        mark.line += text[i] == '\n';
    }
    return mark;
}

/* Tabs, anchors and aliases are refused by a pass over the tokens, with their place. */
static void scan(struct reader *r, const char *text, size_t bytes)
{
    yaml_parser_t parser;
    yaml_token_t token;
    char where[512];
    bool more = true;
    const char *tab = memchr(text, '\t', bytes);
    if (tab != NULL) {
        const yaml_mark_t mark = mark_of(text, (size_t)(tab - text));
        place(r, &mark, where, sizeof where);
        config_error(&r->errors, "%s: a tab: indent with spaces", where);
        return;
    }
    yaml_parser_initialize(&parser);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    while (more && yaml_parser_scan(&parser, &token) != 0) {
        more = token.type != YAML_STREAM_END_TOKEN;
        if (token.type == YAML_ALIAS_TOKEN || token.type == YAML_ANCHOR_TOKEN ||
            token.type == YAML_TAG_TOKEN) {
            place(r, &token.start_mark, where, sizeof where);
            config_error(&r->errors, "%s: anchors, aliases and tags are not supported", where);
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
    char where[512];
    scan(r, text, bytes);
    if (r->errors.count > 0) {
        return;
    }
    yaml_parser_initialize(&parser);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    if (yaml_parser_load(&parser, &document) == 0) {
        /* Of a byte that is no character the library tells the offset only. */
        const yaml_mark_t mark = parser.error == YAML_READER_ERROR && parser.problem_offset <= bytes
                                     ? mark_of(text, parser.problem_offset)
                                     : parser.problem_mark;
        place(r, &mark, where, sizeof where);
        config_error(&r->errors, "%s: %s", where,
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
    const bool good = yaml_parser_load(&parser, &second) != 0;
    if (!good || yaml_document_get_root_node(&second) != NULL) {
        place(r, good ? &second.start_mark : &parser.problem_mark, where, sizeof where);
        config_error(&r->errors, "%s: %s", where,
                     good || parser.problem == NULL ? "more than one YAML document"
                                                    : parser.problem);
    }
    yaml_document_delete(&second);
    yaml_parser_delete(&parser);
}

/* Whether the node is all of `text` but spaces at its end; the library counts characters. */
static bool is_whole(const yaml_node_t *node, const char *text)
{
    size_t length = strlen(text), characters = 0;
    for (; length > 0 && text[length - 1] == ' '; length--) {
    }
    for (size_t i = 0; i < length; i++) {
        characters += ((unsigned char)text[i] & 0xc0) != 0x80;
    }
    return node->end_mark.index == characters;
}

/* An override that is written as YAML writes it in one line: a list, or words in quotes from end to
 * end. False: it is neither. */
static bool read_inline(struct reader *r, const char *key, const char *text)
{
    static const char where[] = "command line";
    const struct field *field = config_find(key);
    yaml_parser_t parser;
    yaml_document_t document;
    yaml_parser_initialize(&parser);
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, strlen(text));
    const bool loaded = yaml_parser_load(&parser, &document) != 0;
    const yaml_node_t *root = loaded ? yaml_document_get_root_node(&document) : NULL;
    const bool whole = root != NULL && is_whole(root, text),
               list = whole && root->type == YAML_SEQUENCE_NODE,
               words = whole && !list && word(root) != NULL;
    if (list && field->kind == FIELD_SOURCES) {
        read_sources(r, &document, where, field, root);
    } else if (list) {
        read_list(r, &document, where, field, root);
    } else if (words) {
        set(r, where, key, word(root), true);
    }
    if (loaded) {
        yaml_document_delete(&document);
    }
    yaml_parser_delete(&parser);
    return list || words;
}

/* Plain text stands for itself, whatever is in it: so do quotes that do not enclose all of it. A
 * list of words without quotes is split at its commas: to YAML a pattern such as *.gate is an
 * alias. */
static void read_override(struct reader *r, const char *key, const char *text)
{
    const struct field *field = config_find(key);
    const bool sources = field != NULL && field->kind == FIELD_SOURCES,
               texts = field != NULL && (field->kind == FIELD_TEXTS || field->kind == FIELD_REALS),
               quote = text[0] == '"' || text[0] == '\'',
               list = text[0] == '[' && (sources || (texts && strpbrk(text, "'\"") != NULL));
    if ((quote || list) && read_inline(r, key, text)) {
        return;
    }
    if (list && sources) {
        config_error(&r->errors,
                     "command line: key '%s': not a list of maps; in one line: '%s=[{path: a.h5, "
                     "weight: 0.7}, {path: b.h5, weight: 0.3}]'",
                     key, key);
    } else if (list || (texts && quote)) {
        config_error(
            &r->errors,
            "command line: key '%s': not a list as YAML has it; in one line: '%s=[\"a b\", "
            "c]'",
            key, key);
    } else {
        set(r, "command line", key, text, strcmp(key, "sample.prompt") == 0);
    }
}

static void read_overrides(struct reader *r, char *const *overrides, int count)
{
    for (int i = 0; i < count; i++) {
        char key[256];
        const char *equals = strchr(overrides[i], '=');
        if (equals == NULL) {
            config_error(&r->errors, "command line: '%s': write key=value", overrides[i]);
            continue;
        }
        snprintf(key, sizeof key, "%.*s", (int)(equals - overrides[i]), overrides[i]);
        read_override(r, key, equals + 1);
    }
}

static enum status finish(struct reader *r)
{
    if (r->config->model.hf_config != NULL && r->errors.count == 0) {
        config_apply_hf(r->config, r->given, &r->errors);
    } else {
        config_family_defaults(r->config, r->given);
    }
    if (r->errors.count == 0) {
        r->errors.prefix = r->name;
        config_check_family(r->config, r->given, &r->errors);
        config_check(r->config, r->given, &r->errors);
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
