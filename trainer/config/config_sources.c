#include <stdlib.h>
#include <string.h>

#include "trainer/config/config_table.h"

/* Weights of all sources together: what is printed has a bound. */
enum { MOST_WEIGHTS = 256 };
static const double NO_RATE = -1;

void config_sources_free(struct config_sources *sources)
{
    for (int64_t i = 0; i < sources->count; i++) {
        free(sources->item[i].path);
    }
    *sources = (struct config_sources){0};
}

struct config_source *config_source_add(struct config_sources *sources)
{
    if (sources->count == CONFIG_MOST_ITEMS) {
        return NULL;
    }
    struct config_source *source = &sources->item[sources->count++];
    *source = (struct config_source){.weights = 1, .weight = {1}, .fim = NO_RATE};
    return source;
}

bool config_sources_path(struct config_sources *sources, const char *path, char *why, size_t bytes)
{
    config_sources_free(sources);
    return path == NULL || config_set_text(&config_source_add(sources)->path, path, why, bytes);
}

/* A number of low to high. */
static bool set_real(double *at, const char *name, const char *text, double low, double high,
                     char *why, size_t bytes)
{
    double value = 0;
    if (!config_number(text, &value)) {
        snprintf(why, bytes, "%s '%s' is not a number", name, text);
        return false;
    }
    if (value < low || value > high) {
        snprintf(why, bytes, "%s %s is outside %g to %g", name, text, low, high);
        return false;
    }
    *at = value;
    return true;
}

static bool set_weights(struct config_source *source, const char *const *values, int64_t count,
                        char *why, size_t bytes)
{
    if (count > CONFIG_MOST_STAGES) {
        snprintf(why, bytes, "more than %d weights", CONFIG_MOST_STAGES);
        return false;
    }
    source->weights = count;
    for (int64_t i = 0; i < count; i++) {
        if (!set_real(&source->weight[i], "weight", values[i], 0, 1e9, why, bytes)) {
            return false;
        }
    }
    return count > 0;
}

bool config_source_set(struct config_source *source, const char *name, const char *const *values,
                       int64_t count, char *why, size_t bytes)
{
    if (strcmp(name, "weight") == 0) {
        return set_weights(source, values, count, why, bytes);
    }
    if (count != 1) {
        snprintf(why, bytes, "%s: one value is expected", name);
        return false;
    }
    if (strcmp(name, "path") == 0) {
        return config_set_text(&source->path, values[0], why, bytes);
    }
    if (strcmp(name, "tokens") == 0) {
        return set_real(&source->tokens, name, values[0], 1, 9e15, why, bytes);
    }
    if (strcmp(name, "epochs") == 0) {
        return set_real(&source->epochs, name, values[0], 0, 1e9, why, bytes);
    }
    if (strcmp(name, "fim") == 0) {
        return set_real(&source->fim, name, values[0], 0, 1, why, bytes);
    }
    snprintf(why, bytes, "'%s' is not one of path, weight, tokens, epochs, fim", name);
    return false;
}

bool config_sources_whole(const struct config_sources *sources, char *why, size_t bytes)
{
    int64_t weights = 0;
    size_t length = 0;
    for (int64_t i = 0; i < sources->count; i++) {
        const struct config_source *source = &sources->item[i];
        if (source->path == NULL || source->path[0] == '\0') {
            snprintf(why, bytes, "source %lld has no path", (long long)i + 1);
            return false;
        }
        weights += source->weights;
        length += strlen(source->path);
    }
    if (sources->count == 0 || weights > MOST_WEIGHTS || length > CONFIG_TEXT_BYTES) {
        snprintf(why, bytes,
                 sources->count == 0 ? "an empty list: name a token file"
                                     : "at most %d weights and %d bytes of paths are taken",
                 MOST_WEIGHTS, CONFIG_TEXT_BYTES);
        return false;
    }
    return true;
}

/* Text at the end of what is there. */
static void append(char *out, size_t bytes, const char *text)
{
    const size_t used = strlen(out);
    snprintf(out + used, bytes - used, "%s", text);
}

static void append_real(char *out, size_t bytes, const char *before, double value)
{
    append(out, bytes, before);
    const size_t used = strlen(out);
    config_show_real(value, out + used, bytes - used);
}

static void show_one(const struct config_source *source, char *out, size_t bytes)
{
    append(out, bytes, "{path: ");
    const size_t used = strlen(out);
    config_show_text(source->path, out + used, bytes - used);
    append(out, bytes, source->weights > 1 ? ", weight: [" : ", weight: ");
    for (int64_t i = 0; i < source->weights; i++) {
        append_real(out, bytes, i > 0 ? ", " : "", source->weight[i]);
    }
    append(out, bytes, source->weights > 1 ? "]" : "");
    if (source->tokens > 0) {
        append_real(out, bytes, ", tokens: ", source->tokens);
    }
    if (source->epochs > 0) {
        append_real(out, bytes, ", epochs: ", source->epochs);
    }
    if (source->fim >= 0) {
        append_real(out, bytes, ", fim: ", source->fim);
    }
    append(out, bytes, "}");
}

/* A path alone means the same with every weight. */
static bool is_plain(const struct config_sources *sources)
{
    const struct config_source *only = &sources->item[0];
    return sources->count == 1 && only->weights == 1 && only->weight[0] > 0 && only->tokens <= 0 &&
           only->epochs <= 0 && only->fim < 0;
}

void config_sources_show(const struct config_sources *sources, char *out, size_t bytes)
{
    out[0] = '\0';
    if (sources->count == 0 || is_plain(sources)) {
        config_show_text(sources->count > 0 ? sources->item[0].path : NULL, out, bytes);
        return;
    }
    append(out, bytes, "[");
    for (int64_t i = 0; i < sources->count; i++) {
        append(out, bytes, i > 0 ? ", " : "");
        show_one(&sources->item[i], out, bytes);
    }
    append(out, bytes, "]");
}
