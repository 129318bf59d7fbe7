/* options: the small grammar all commands share: `--name`, `--name VALUE`, `key=value`, and plain
 * words. */
#ifndef TRAINER_COMMANDS_OPTIONS_H
#define TRAINER_COMMANDS_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/status.h"

enum option_kind { OPTION_FLAG, OPTION_TEXT, OPTION_TEXTS, OPTION_INT, OPTION_REAL };

/* An option that may be given several times. */
struct option_texts {
    const char *text[256];
    int count;
};

struct option_spec {
    const char *name; /* "--prompt" */
    enum option_kind kind;
    void *value;          /* bool *, const char **, struct option_texts *, int64_t *, double * */
    const char *argument; /* for help: "TEXT"; NULL for flags */
    const char *help;
};

struct option_result {
    char **words; /* plain words, moved to the front of argv */
    int word_count;
    char *overrides[256]; /* key=value */
    int override_count;
    bool help; /* --help was given and printed */
};

/* usage: "train CONFIG [key=value ...]"; about: one line. `specs` ends with a NULL name. Prints
 * help on --help. Errors: STATUS_USAGE, unknown option with the nearest known one, missing or
 * malformed value, more than `max_words` words or fewer than `min_words`. */
enum status options_parse(struct option_result *result, int argc, char **argv,
                          const struct option_spec *specs, const char *usage, const char *about,
                          int min_words, int max_words) __attribute__((warn_unused_result));

#endif
