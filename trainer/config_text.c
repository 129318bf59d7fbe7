#include <string.h>

#include "trainer/config_table.h"

static const char *const kind_names[] = {
    [FIELD_BOOL] = "true|false",    [FIELD_INT] = "integer",
    [FIELD_UINT] = "integer",       [FIELD_REAL] = "number",
    [FIELD_TEXT] = "text",          [FIELD_ENUM] = "",
    [FIELD_TEXTS] = "list of text", [FIELD_REALS] = "list of numbers"};

static int section_length(const struct field *field)
{
    return (int)strcspn(field->key, ".");
}

void config_print(const struct config *config, FILE *out)
{
    const char *section = "";
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        const int length = section_length(field);
        char value[CONFIG_SHOWN_BYTES];
        if (strncmp(section, field->key, (size_t)length + 1) != 0) {
            section = field->key;
            fprintf(out, "%.*s:\n", length, section);
        }
        config_show(config, field, value, sizeof value);
        fprintf(out, "  %s: %s\n", field->key + length + 1, value);
    }
}

static void type_text(const struct field *field, char *out, size_t bytes)
{
    if (field->kind != FIELD_ENUM) {
        const bool number =
            field->kind != FIELD_BOOL && field->kind != FIELD_TEXT && field->kind != FIELD_TEXTS;
        snprintf(out, bytes, number ? "%s %g..%g" : "%s", kind_names[field->kind], field->low,
                 field->high);
        return;
    }
    out[0] = '\0';
    for (int i = 0; field->names[i] != NULL; i++) {
        snprintf(out + strlen(out), bytes - strlen(out), "%s%s", i > 0 ? "|" : "", field->names[i]);
    }
}

void config_help(FILE *out)
{
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char type[128];
        type_text(field, type, sizeof type);
        fprintf(out, "%s\n    %s; default %s\n    %s\n", field->key, type,
                field->initial != NULL ? field->initial : "none: must be given", field->help);
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
        char type[128];
        type_text(field, type, sizeof type);
        for (char *c = strchr(type, '|'); c != NULL; c = strchr(c, '|')) {
            *c = '/';
        }
        fprintf(out, "| `%s` | %s | %s | %s |\n", field->key, type,
                field->initial != NULL ? field->initial : "required", field->help);
    }
}
