#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/config/config_table.h"

static const char *const kind_names[] = {[FIELD_BOOL] = "true/false",
                                         [FIELD_INT] = "integer",
                                         [FIELD_UINT] = "integer",
                                         [FIELD_REAL] = "number",
                                         [FIELD_TEXT] = "text",
                                         [FIELD_ENUM] = "",
                                         [FIELD_TEXTS] = "list of text",
                                         [FIELD_REALS] = "list of numbers",
                                         [FIELD_SOURCES] = "path, or list of maps"};

/* Letters of the key up to its last dot: its section, or the map in it. */
static int parent_length(const struct field *field)
{
    return (int)(strrchr(field->key, '.') - field->key);
}

/* Opens the section and the map a key lies in, where the key before it was not in them. */
static void print_parents(FILE *out, const struct field *field, const char *before)
{
    const int parent = parent_length(field), section = (int)strcspn(field->key, ".");
    if (strncmp(before, field->key, (size_t)section + 1) != 0) {
        fprintf(out, "%.*s:\n", section, field->key);
    }
    if (parent > section && strncmp(before, field->key, (size_t)parent + 1) != 0) {
        fprintf(out, "  %.*s:\n", parent - section - 1, field->key + section + 1);
    }
}

/* Keys of a map inside a section are printed where they say something. */
static bool is_silent(const struct field *field, const char *value)
{
    return config_is_nested(field->key) && field->initial != NULL &&
           strcmp(value, field->initial) == 0;
}

void config_print(const struct config *config, FILE *out)
{
    const char *before = "";
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char value[CONFIG_SHOWN_BYTES];
        config_show(config, field, value, sizeof value);
        if (!config_in_family(field->key, config->model.family) || is_silent(field, value)) {
            continue;
        }
        print_parents(out, field, before);
        before = field->key;
        if (strcmp(field->key, "model.hf_config") == 0 && config->model.hf_config != NULL) {
            fprintf(out, "  hf_config: null # %s: all its keys stand here\n", value);
            continue;
        }
        fprintf(out, "%s%s: %s\n", config_is_nested(field->key) ? "    " : "  ",
                field->key + parent_length(field) + 1, value);
    }
}

void config_differences(const struct config *from, const struct config *to, const char *section,
                        char *out, size_t bytes)
{
    out[0] = '\0';
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char before[CONFIG_SHOWN_BYTES], after[CONFIG_SHOWN_BYTES];
        config_show(from, field, before, sizeof before);
        config_show(to, field, after, sizeof after);
        const size_t used = strlen(out);
        const bool source = strcmp(field->key, "model.hf_config") == 0; /* its keys are here */
        if (strncmp(field->key, section, strlen(section)) == 0 && !source &&
            strcmp(before, after) != 0) {
            snprintf(out + used, bytes - used, "%s%s %s -> %s", used > 0 ? ", " : "", field->key,
                     before, after);
        }
    }
}

static void type_text(const struct field *field, char *out, size_t bytes)
{
    if (field->kind != FIELD_ENUM) {
        const bool number = field->kind != FIELD_BOOL && field->kind != FIELD_TEXT &&
                            field->kind != FIELD_TEXTS && field->kind != FIELD_SOURCES;
        snprintf(out, bytes, number ? "%s %g..%g" : "%s", kind_names[field->kind], field->low,
                 field->high);
        return;
    }
    out[0] = '\0';
    for (int i = 0; field->names[i] != NULL; i++) {
        snprintf(out + strlen(out), bytes - strlen(out), "%s%s", i > 0 ? "|" : "", field->names[i]);
    }
}

void config_annotate(const struct config *config, FILE *out)
{
    enum { COLUMN = 40 };
    const char *before = "";
    fprintf(out, "# Made by `switchyard init`. Keys that stand at their default may go.\n");
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char value[CONFIG_SHOWN_BYTES], type[128];
        config_show(config, field, value, sizeof value);
        if (!config_in_family(field->key, config->model.family)) {
            continue;
        }
        type_text(field, type, sizeof type);
        print_parents(out, field, before);
        before = field->key;
        const int used = fprintf(out, "%s%s: %s", config_is_nested(field->key) ? "    " : "  ",
                                 field->key + parent_length(field) + 1, value);
        fprintf(out, "%*s # %s (%s)\n", used < COLUMN ? COLUMN - used : 0, "", field->help, type);
    }
}

enum status config_compare(const struct config *const *configs, int count,
                           void (*each)(void *context, const char *key, char *const *value),
                           void *context)
{
    char *room = malloc((size_t)count * CONFIG_SHOWN_BYTES);
    char **value = calloc((size_t)count, sizeof *value);
    for (int f = 0; room != NULL && value != NULL && f < config_field_count; f++) {
        bool same = true;
        for (int c = 0; c < count; c++) {
            value[c] = room + (size_t)c * CONFIG_SHOWN_BYTES;
            config_show(configs[c], &config_fields[f], value[c], CONFIG_SHOWN_BYTES);
            same = same && strcmp(value[c], value[0]) == 0;
        }
        if (!same) {
            each(context, config_fields[f].key, value);
        }
    }
    const bool good = room != NULL && value != NULL;
    free(value);
    free(room);
    return good ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory for %d configs", count);
}

void config_help(FILE *out)
{
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char type[128], initial[192];
        type_text(field, type, sizeof type);
        config_initial_text(field, initial, sizeof initial);
        fprintf(out, "%s\n    %s; default %s\n    %s\n", field->key, type, initial, field->help);
    }
}

void config_markdown(FILE *out)
{
    fprintf(
        out,
        "# Config keys\n\nMade by `switchyard config --markdown`; the same table reads the files. "
        "Keys are written in "
        "sections,\n`train: {micro_batch: 4}`, or on the command line, `train.micro_batch=4`.\n\n"
        "| key | type, range | default | meaning |\n|---|---|---|---|\n");
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char type[128], initial[192];
        type_text(field, type, sizeof type);
        config_initial_text(field, initial, sizeof initial);
        for (char *c = strchr(type, '|'); c != NULL; c = strchr(c, '|')) {
            *c = '/';
        }
        fprintf(out, "| `%s` | %s | %s | %s |\n", field->key, type, initial, field->help);
    }
}
