#include "trainer/commands/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/config/nearest.h"

static void print_help(const struct option_spec *specs, const char *usage, const char *about)
{
    printf("usage: switchyard %s\n\n%s\n", usage, about);
    for (const struct option_spec *spec = specs; spec->name != NULL; spec++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", spec->name, spec->argument != NULL ? " " : "",
                 spec->argument != NULL ? spec->argument : "");
        printf("%s  %-22s %s\n", spec == specs ? "\n" : "", left, spec->help);
    }
}

static enum status unknown(const char *command, const char *word, const struct option_spec *specs)
{
    const char *known[64];
    int count = 0;
    for (; specs[count].name != NULL && count < 64; count++) {
        known[count] = specs[count].name;
    }
    const char *near = nearest_word(word, known, count);
    return status_fail(STATUS_USAGE, "%s: unknown option '%s'%s%s%s (see switchyard %s --help)",
                       command, word, near != NULL ? "; did you mean '" : "",
                       near != NULL ? near : "", near != NULL ? "'?" : "", command);
}

static enum status set_value(const struct option_spec *spec, const char *command, const char *text)
{
    char *end = NULL;
    errno = 0;
    if (spec->kind == OPTION_TEXT) {
        *(const char **)spec->value = text;
        return STATUS_OK;
    }
    if (spec->kind == OPTION_TEXTS) {
        struct option_texts *list = spec->value;
        const int room = (int)(sizeof list->text / sizeof list->text[0]);
        if (list->count == room) {
            return status_fail(STATUS_USAGE, "%s: more than %d times %s", command, room,
                               spec->name);
        }
        list->text[list->count++] = text;
        return STATUS_OK;
    }
    if (spec->kind == OPTION_INT) {
        *(int64_t *)spec->value = strtoll(text, &end, 10);
    } else {
        *(double *)spec->value = strtod(text, &end);
    }
    const bool finite = spec->kind == OPTION_INT || isfinite(*(double *)spec->value);
    if (end == text || *end != '\0' || errno != 0 || !finite) {
        return status_fail(STATUS_USAGE, "%s: %s needs %s, not '%s'", command, spec->name,
                           spec->kind == OPTION_INT ? "a whole number" : "a number", text);
    }
    return STATUS_OK;
}

static enum status parse_option(int argc, char **argv, int *i, const struct option_spec *specs)
{
    for (const struct option_spec *spec = specs; spec->name != NULL; spec++) {
        if (strcmp(argv[*i], spec->name) != 0) {
            continue;
        }
        if (spec->kind == OPTION_FLAG) {
            *(bool *)spec->value = true;
            return STATUS_OK;
        }
        if (*i + 1 >= argc) {
            return status_fail(STATUS_USAGE, "%s: %s needs a value (%s)", argv[0], spec->name,
                               spec->argument);
        }
        return set_value(spec, argv[0], argv[++*i]);
    }
    return unknown(argv[0], argv[*i], specs);
}

enum status options_parse(struct option_result *result, int argc, char **argv,
                          const struct option_spec *specs, const char *usage, const char *about,
                          int min_words, int max_words)
{
    const int override_room = (int)(sizeof result->overrides / sizeof result->overrides[0]);
    *result = (struct option_result){.words = argv + 1};
    const bool overrides = strstr(usage, "key=value") != NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0) {
            print_help(specs, usage, about);
            result->help = true;
            return STATUS_OK;
        }
        if (argv[i][0] == '-' && argv[i][1] != '\0') {
            TRY(parse_option(argc, argv, &i, specs));
        } else if (overrides && result->word_count >= min_words && strchr(argv[i], '=') != NULL) {
            if (result->override_count == override_room) {
                return status_fail(STATUS_USAGE, "%s: more than %d overrides", argv[0],
                                   override_room);
            }
            result->overrides[result->override_count++] = argv[i];
        } else {
            if (result->word_count == max_words && max_words > 2) {
                return status_fail(STATUS_USAGE, "%s: at most %d at a time, '%s' is one too many",
                                   argv[0], max_words, argv[i]);
            }
            if (result->word_count == max_words) {
                return status_fail(STATUS_USAGE, "%s: unexpected '%s' (usage: switchyard %s)",
                                   argv[0], argv[i], usage);
            }
            result->words[result->word_count++] = argv[i];
        }
    }
    if (result->word_count < min_words) {
        return status_fail(STATUS_USAGE, "%s: too few arguments (usage: switchyard %s)", argv[0],
                           usage);
    }
    return STATUS_OK;
}
