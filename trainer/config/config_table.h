/* config_table: private to config*.c: the one table of fields. */
#ifndef TRAINER_CONFIG_TABLE_H
#define TRAINER_CONFIG_TABLE_H

#include "trainer/config/config.h"

enum field_kind {
    FIELD_BOOL,
    FIELD_INT,
    FIELD_UINT,
    FIELD_REAL,
    FIELD_TEXT,
    FIELD_ENUM,
    FIELD_TEXTS,   /* struct config_texts */
    FIELD_REALS,   /* struct config_reals; the range is each item's */
    FIELD_SOURCES, /* struct config_sources */
};

struct field {
    const char *key; /* "train.micro_batch" */
    enum field_kind kind;
    size_t offset;            /* in struct config */
    double low, high;         /* range of numbers */
    const char *initial;      /* default as one writes it; "null": none; NULL: required */
    const char *const *names; /* of an enum, ending with NULL, in order of its values */
    const char *unbuilt; /* enum values that are known but not built, space separated; or NULL */
    const char *help;
};

extern const struct field config_fields[];
extern const int config_field_count;

/* Keys that are known but not built, and the one value that says what this version does anyway
 * (NULL: none). */
struct unbuilt_key {
    const char *key, *accepted;
};
extern const struct unbuilt_key config_unbuilt[];
extern const int config_unbuilt_count;

/* NULL: there is none. Also by the name that a key had in an earlier version. */
const struct field *config_find(const char *key);

/* Longest text a key takes; room that any value, printed, needs. */
enum { CONFIG_TEXT_BYTES = 4096, CONFIG_SHOWN_BYTES = 10 * CONFIG_TEXT_BYTES };

/* A finite decimal number: not nan, inf, 0x10 or 1_000. */
bool config_number(const char *text, double *value);

/* Sets a field from its text. quoted: the scalar stood in quotes. On error writes the reason to
 * why. Returns success. */
bool config_set(struct config *config, const struct field *field, const char *text, bool quoted,
                char *why, size_t why_bytes);
/* The field's value as one writes it in YAML. */
void config_show(const struct config *config, const struct field *field, char *out, size_t bytes);

/* config_list.c: the same for a key that takes a list. Items as YAML has them; or one text, such as
 * an override's, with commas between the items and perhaps brackets around them; in quotes it is
 * one item; null is the empty list. */
bool config_list_set(struct config *config, const struct field *field, const char *const *items,
                     int64_t count, char *why, size_t why_bytes);
bool config_list_read(struct config *config, const struct field *field, const char *text,
                      bool quoted, char *why, size_t why_bytes);
void config_list_show(const struct config *config, const struct field *field, char *out,
                      size_t bytes);
void config_list_free(struct config *config, const struct field *field);

/* config_sources.c: data.train. One member of an item: its values as words, one unless it takes a
 * list. */
bool config_source_set(struct config_source *source, const char *name, const char *const *values,
                       int64_t count, char *why, size_t why_bytes);
/* Adds an item with every member at its default; NULL: there are too many. */
struct config_source *config_source_add(struct config_sources *sources);
/* One path with every other member at its default; NULL: none. */
bool config_sources_path(struct config_sources *sources, const char *path, char *why,
                         size_t why_bytes);
/* Whether the list as a whole is one: paths given, not too long to print. */
bool config_sources_whole(const struct config_sources *sources, char *why, size_t why_bytes);
void config_sources_show(const struct config_sources *sources, char *out, size_t bytes);
void config_sources_free(struct config_sources *sources);
/* Text and numbers as config_show writes them. */
bool config_set_text(char **at, const char *text, char *why, size_t bytes);
void config_show_text(const char *text, char *out, size_t bytes);
void config_show_real(double value, char *out, size_t bytes);

/* Collects error lines; those that don't fit are counted. */
struct config_errors {
    char text[1900];
    const char *prefix; /* of each line, or NULL */
    int count, left_out;
};
void config_error(struct config_errors *errors, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
enum status config_result(const struct config_errors *errors);

/* Why a key is not known, with the nearest one: "unknown key; did you mean ...?"; of a section that
 * it is one. */
void config_explain(const char *key, char *out, size_t bytes);

/* Whether a key lies in a map inside its section: "model.rope_scaling.factor". */
bool config_is_nested(const char *key);
/* Whether there are keys in a map of this name: "model.rope_scaling". */
bool config_is_map(const char *name);

/* config_families.c: keys that only some families have, defaults that differ between them. */
bool config_in_family(const char *key, int family);
/* given[i]: field i was set by the user and stays. */
void config_family_defaults(struct config *config, const bool *given);
/* What a config.json silent about the key means; false: the key must be there. */
bool config_take_silent(struct config *config, const struct field *field);
/* Whether the user should hear that a config.json was silent about the key: the architecture
 * depends on it, and files that mean the default write it. */
bool config_is_shape(const char *key);
/* Keys of other families, required keys of this one. */
void config_check_family(const struct config *config, const bool *given,
                         struct config_errors *errors);
/* The default as help shows it. */
void config_initial_text(const struct field *field, char *out, size_t bytes);

/* Applies a config.json: the family, its defaults, then every model key that is not given. */
void config_apply_hf(struct config *config, const bool *given, struct config_errors *errors);
/* Relations between keys. */
void config_check(const struct config *config, const bool *given, struct config_errors *errors);
/* config_context.c: those of parallel.cp. */
void config_check_context(const struct config *config, struct config_errors *errors);
/* config_layout.c: those of section `parallel`, with the above; what a pipeline's stages are is
 * looked at where the ranks are known. */
void config_check_layout(const struct config *config, struct config_errors *errors);

#endif
