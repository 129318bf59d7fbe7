#include "trainer/config/config_table.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const double MOST = 9e15; /* whole numbers up to here are exact as reals */

/* Runs made before a key moved say it with its old name. */
static const char *name_now(const char *key)
{
    static const struct {
        const char *before, *now;
    } moved[] = {{"cluster.pipeline", "parallel.schedule"},
                 {"cluster.virtual_stages", "parallel.virtual_stages"},
                 {"cluster.stages", "parallel.stages"}};
    for (size_t i = 0; i < sizeof moved / sizeof moved[0]; i++) {
        if (strcmp(moved[i].before, key) == 0) {
            return moved[i].now;
        }
    }
    return key;
}

const struct field *config_find(const char *key)
{
    key = name_now(key);
    for (int i = 0; i < config_field_count; i++) {
        if (strcmp(config_fields[i].key, key) == 0) {
            return &config_fields[i];
        }
    }
    return NULL;
}

bool config_is_nested(const char *key)
{
    return strchr(strchr(key, '.') + 1, '.') != NULL;
}

bool config_is_map(const char *name)
{
    const size_t length = strlen(name);
    for (int i = 0; i < config_field_count && strchr(name, '.') != NULL; i++) {
        if (strncmp(config_fields[i].key, name, length) == 0 &&
            config_fields[i].key[length] == '.') {
            return true;
        }
    }
    return false;
}

bool config_number(const char *text, double *value)
{
    char *end = NULL;
    const size_t length = strspn(text, "+-.0123456789eE");
    if (length == 0 || text[length] != '\0' || strpbrk(text, "0123456789") == NULL) {
        return false;
    }
    errno = 0;
    *value = strtod(text, &end);
    return *end == '\0' && isfinite(*value);
}

static bool set_number(void *at, const struct field *field, const char *text, char *why,
                       size_t bytes)
{
    double value = 0;
    const bool whole = field->kind != FIELD_REAL;
    if (!config_number(text, &value) || (whole && (value != floor(value) || fabs(value) > MOST))) {
        snprintf(why, bytes, "'%s' is not a %s", text, whole ? "whole number" : "number");
        return false;
    }
    if (value < field->low || value > field->high) {
        snprintf(why, bytes, "%s is outside %g to %g", text, field->low, field->high);
        return false;
    }
    if (field->kind == FIELD_REAL) {
        *(double *)at = value;
    } else if (field->kind == FIELD_UINT) {
        *(uint64_t *)at = (uint64_t)value;
    } else {
        *(int64_t *)at = (int64_t)value;
    }
    return true;
}

static bool is_word_of(const char *list, const char *word)
{
    const size_t length = strlen(word);
    for (const char *c = list; c != NULL && *c != '\0'; c += strspn(c, " ")) {
        const size_t next = strcspn(c, " ");
        if (next == length && memcmp(c, word, length) == 0) {
            return true;
        }
        c += next;
    }
    return false;
}

/* run.deterministic may be a truth value too. */
static const char *enum_name(const struct field *field, const char *text)
{
    if (strcmp(field->key, "run.deterministic") != 0) {
        return text;
    }
    return strcmp(text, "true") == 0 ? "run" : strcmp(text, "false") == 0 ? "off" : text;
}

static bool set_enum(int *at, const struct field *field, const char *said, char *why, size_t bytes)
{
    const char *text = enum_name(field, said);
    char list[256] = "";
    for (int i = 0; field->names[i] != NULL; i++) {
        if (strcmp(field->names[i], text) == 0) {
            *at = i;
            return true;
        }
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i > 0 ? ", " : "",
                 field->names[i]);
    }
    snprintf(why, bytes,
             is_word_of(field->unbuilt, text) ? "'%s' is not built in this version (built: %s)"
                                              : "'%s' is not one of %s",
             text, list);
    return false;
}

static bool set_null(void *at, const struct field *field, char *why, size_t bytes)
{
    if (field->initial == NULL || strcmp(field->initial, "null") != 0) {
        snprintf(why, bytes, "null is not a value here");
        return false;
    }
    if (field->kind == FIELD_TEXT) {
        free(*(char **)at);
        *(char **)at = NULL;
    } else if (field->kind == FIELD_INT) {
        *(int64_t *)at = 0;
    } else if (field->kind == FIELD_ENUM) {
        *(int *)at = 0; /* the name "null" stands first */
    } else {
        *(double *)at = -1;
    }
    return true;
}

/* Bytes of the UTF-8 character at `text`, its number in *code; 0: not UTF-8. */
static int utf8_next(const char *text, uint32_t *code)
{
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    const unsigned char *c = (const unsigned char *)text;
    const int more = c[0] < 0x80         ? 0
                     : c[0] >> 5 == 0x06 ? 1
                     : c[0] >> 4 == 0x0e ? 2
                     : c[0] >> 3 == 0x1e ? 3
                                         : -1;
    *code = more > 0 ? c[0] & (0x3fu >> more) : c[0];
    for (int i = 1; i <= more; i++) {
        if (c[i] >> 6 != 2) {
            return 0;
        }
        *code = *code << 6 | (c[i] & 0x3fu);
    }
    const bool good = more >= 0 && *code >= least[more] && *code <= 0x10ffff &&
                      (*code < 0xd800 || *code > 0xdfff);
    return good ? more + 1 : 0;
}

/* What config_print could not write whole into a file that reads back is refused here. */
bool config_set_text(char **at, const char *text, char *why, size_t bytes)
{
    uint32_t code = 0;
    if (strlen(text) > CONFIG_TEXT_BYTES) {
        snprintf(why, bytes, "longer than %d bytes", CONFIG_TEXT_BYTES);
        return false;
    }
    for (const char *c = text; *c != '\0';) {
        const int length = utf8_next(c, &code);
        if (length == 0) {
            snprintf(why, bytes, "byte %d is not UTF-8", (int)(c - text));
            return false;
        }
        c += length;
    }
    char *copy = strdup(text);
    if (copy == NULL) {
        snprintf(why, bytes, "out of memory");
        return false;
    }
    free(*at);
    *at = copy;
    return true;
}

bool config_set(struct config *config, const struct field *field, const char *text, bool quoted,
                char *why, size_t why_bytes)
{
    void *at = (char *)config + field->offset;
    if (field->kind == FIELD_TEXTS || field->kind == FIELD_REALS) {
        return config_list_read(config, field, text, quoted, why, why_bytes);
    }
    if (field->kind == FIELD_SOURCES) {
        const bool none =
            !quoted && (strcmp(text, "null") == 0 || strcmp(text, "~") == 0 || text[0] == '\0');
        return config_sources_path(at, none ? NULL : text, why, why_bytes);
    }
    if (!quoted && (strcmp(text, "null") == 0 || strcmp(text, "~") == 0 || text[0] == '\0')) {
        return set_null(at, field, why, why_bytes);
    }
    if (quoted && field->kind != FIELD_TEXT && field->kind != FIELD_ENUM) {
        snprintf(why, why_bytes, "\"%s\" is text: write it without quotes", text);
        return false;
    }
    switch (field->kind) {
    case FIELD_BOOL:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0) {
            snprintf(why, why_bytes, "'%s' is neither true nor false", text);
            return false;
        }
        *(bool *)at = text[0] == 't';
        return true;
    case FIELD_TEXT:
        return config_set_text(at, text, why, why_bytes);
    case FIELD_ENUM:
        return set_enum(at, field, text, why, why_bytes);
    default:
        return set_number(at, field, text, why, why_bytes);
    }
}

/* May stand unescaped in YAML's double quotes. */
static bool plain(uint32_t code)
{
    return (code >= 0x20 && code < 0x7f) ||
           (code >= 0xa0 && code < 0xd800 && code != 0x2028 && code != 0x2029) ||
           (code >= 0xe000 && code < 0xfffe && code != 0xfeff) || code >= 0x10000;
}

void config_show_text(const char *text, char *out, size_t bytes)
{
    size_t at = 0;
    if (text == NULL) {
        snprintf(out, bytes, "null");
        return;
    }
    out[at++] = '"';
    for (const char *c = text; *c != '\0' && at + 8 < bytes;) {
        uint32_t code = 0;
        const int length = utf8_next(c, &code);
        assert(length > 0); /* config_set_text saw to it */
        if (!plain(code)) {
            at +=
                (size_t)snprintf(out + at, bytes - at, code < 0x100 ? "\\x%02x" : "\\u%04x", code);
        } else {
            at += (size_t)snprintf(out + at, bytes - at, "%s%.*s",
                                   *c == '"' || *c == '\\' ? "\\" : "", length, c);
        }
        c += length;
    }
    snprintf(out + at, bytes - at, "\"");
}

/* The shortest decimal that reads back as the same double. */
void config_show_real(double value, char *out, size_t bytes)
{
    enum { MOST_DIGITS = 17, ROOM = 32 };
    char text[ROOM] = "";
    for (int digits = 1; digits <= MOST_DIGITS; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    snprintf(out, bytes, "%s", text);
}

void config_show(const struct config *config, const struct field *field, char *out, size_t bytes)
{
    const void *at = (const char *)config + field->offset;
    const bool optional = field->initial != NULL && strcmp(field->initial, "null") == 0;
    switch (field->kind) {
    case FIELD_BOOL:
        snprintf(out, bytes, "%s", *(const bool *)at ? "true" : "false");
        break;
    case FIELD_INT:
        if (optional && *(const int64_t *)at == 0) {
            snprintf(out, bytes, "null");
        } else {
            snprintf(out, bytes, "%" PRId64, *(const int64_t *)at);
        }
        break;
    case FIELD_UINT:
        snprintf(out, bytes, "%" PRIu64, *(const uint64_t *)at);
        break;
    case FIELD_REAL:
        if (optional && *(const double *)at < 0) {
            snprintf(out, bytes, "null");
        } else {
            config_show_real(*(const double *)at, out, bytes);
        }
        break;
    case FIELD_TEXT:
        config_show_text(*(char *const *)at, out, bytes);
        break;
    case FIELD_ENUM:
        snprintf(out, bytes, "%s", field->names[*(const int *)at]);
        break;
    case FIELD_TEXTS:
    case FIELD_REALS:
        config_list_show(config, field, out, bytes);
        break;
    case FIELD_SOURCES:
        config_sources_show(at, out, bytes);
        break;
    }
}

void config_init(struct config *config)
{
    char why[256];
    *config = (struct config){0};
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        if (field->initial != NULL) {
            const bool empty = strcmp(field->initial, "\"\"") == 0;
            (void)config_set(config, field, empty ? "" : field->initial, empty, why, sizeof why);
        }
    }
}

bool config_masks_documents(const struct config *config)
{
    return config->data.mask_documents || config->data.packing == CONFIG_BEST_FIT;
}

void config_free(struct config *config)
{
    for (int i = 0; i < config_field_count; i++) {
        if (config_fields[i].kind == FIELD_TEXTS) {
            config_list_free(config, &config_fields[i]);
        } else if (config_fields[i].kind == FIELD_SOURCES) {
            config_sources_free((void *)((char *)config + config_fields[i].offset));
        } else if (config_fields[i].kind == FIELD_TEXT) {
            char **text = (char **)(void *)((char *)config + config_fields[i].offset);
            free(*text);
            *text = NULL;
        }
    }
    free(config->model.hf_ignored);
    free(config->model.hf_assumed);
    config->model.hf_ignored = config->model.hf_assumed = NULL;
}
