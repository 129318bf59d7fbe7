#define _GNU_SOURCE
#include "trainer/sweep/plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/config/config.h"
#include "trainer/config/nearest.h"

static const size_t MOST_BYTES = (size_t)1 << 20;

/* The file while it is read. */
struct source {
    const char *path;
    yaml_document_t *document;
    struct sweep_plan *plan;
};

static enum status bad(const struct source *source, const yaml_node_t *node, const char *what,
                       const char *why)
{
    return status_fail(STATUS_USAGE, "%s:%zu:%zu: %s: %s", source->path, node->start_mark.line + 1,
                       node->start_mark.column + 1, what, why);
}

static const char *scalar(const yaml_node_t *node)
{
    return node->type == YAML_SCALAR_NODE ? (const char *)node->data.scalar.value : NULL;
}

static yaml_node_t *item(const struct source *source, yaml_node_item_t index)
{
    return yaml_document_get_node(source->document, index);
}

static bool said_before(const struct source *source, const yaml_node_t *map,
                        const yaml_node_pair_t *pair)
{
    const char *key = scalar(item(source, pair->key));
    bool said = false;
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < pair; p++) {
        const char *other = scalar(item(source, p->key));
        said = said || (other != NULL && strcmp(other, key) == 0);
    }
    return said;
}

/* Calls `each` for every pair of a map. */
static enum status each_pair(struct source *source, yaml_node_t *map, const char *what,
                             enum status (*each)(struct source *, const char *key,
                                                 yaml_node_t *key_node, yaml_node_t *value))
{
    if (map->type != YAML_MAPPING_NODE) {
        return bad(source, map, what, "a map of keys is expected");
    }
    for (yaml_node_pair_t *pair = map->data.mapping.pairs.start; pair < map->data.mapping.pairs.top;
         pair++) {
        yaml_node_t *key = item(source, pair->key), *value = item(source, pair->value);
        if (scalar(key) == NULL) {
            return bad(source, key, what, "a key must be one word");
        }
        if (said_before(source, map, pair)) {
            return bad(source, key, scalar(key), "stands there twice");
        }
        TRY(each(source, scalar(key), key, value));
    }
    return STATUS_OK;
}

static bool number(const char *text, double *value)
{
    char *end = NULL;
    *value = text != NULL && text[0] != '\0' ? strtod(text, &end) : 0;
    return end != NULL && *end == '\0' && isfinite(*value);
}

static enum status read_count(const struct source *source, const yaml_node_t *node,
                              const char *what, int64_t low, int64_t high, int64_t *out)
{
    double value = 0;
    char why[96];
    if (!number(scalar(node), &value) || value != floor(value) || value < (double)low ||
        value > (double)high) {
        snprintf(why, sizeof why, "a whole number from %lld to %lld is expected", (long long)low,
                 (long long)high);
        return bad(source, node, what, why);
    }
    *out = (int64_t)value;
    return STATUS_OK;
}

static enum status read_text(const struct source *source, const yaml_node_t *node, const char *what,
                             char **out)
{
    if (scalar(node) == NULL || scalar(node)[0] == '\0') {
        return bad(source, node, what, "text is expected");
    }
    free(*out);
    *out = strdup(scalar(node));
    return *out != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
}

static enum status read_choice(const struct source *source, const yaml_node_t *node,
                               const char *what, const char *const *names, int *out)
{
    char why[128] = "not one of";
    for (int i = 0; names[i] != NULL; i++) {
        if (scalar(node) != NULL && strcmp(names[i], scalar(node)) == 0) {
            *out = i;
            return STATUS_OK;
        }
        snprintf(why + strlen(why), sizeof why - strlen(why), "%s %s", i > 0 ? "," : "", names[i]);
    }
    return bad(source, node, what, why);
}

static void flow_scalar(FILE *out, const yaml_node_t *node)
{
    const bool quoted = node->data.scalar.style == YAML_SINGLE_QUOTED_SCALAR_STYLE ||
                        node->data.scalar.style == YAML_DOUBLE_QUOTED_SCALAR_STYLE;
    fputs(quoted ? "'" : "", out);
    for (const char *c = scalar(node); *c != '\0'; c++) {
        fputs(quoted && *c == '\'' ? "''" : (char[]){*c, '\0'}, out);
    }
    fputs(quoted ? "'" : "", out);
}

/* A list or map inside a value stays part of it, as one line of YAML, whatever is inside. */
static bool flow_node(FILE *out, const struct source *source, const yaml_node_t *node, int depth)
{
    enum { DEEPEST = 8 };
    bool good = depth < DEEPEST;
    if (node->type == YAML_SCALAR_NODE) {
        flow_scalar(out, node);
    } else if (node->type == YAML_SEQUENCE_NODE) {
        const yaml_node_item_t *first = node->data.sequence.items.start;
        for (const yaml_node_item_t *i = first; good && i < node->data.sequence.items.top; i++) {
            fputs(i > first ? ", " : "[", out);
            good = flow_node(out, source, item(source, *i), depth + 1);
        }
        fputs(first == node->data.sequence.items.top ? "[]" : "]", out);
    } else if (node->type == YAML_MAPPING_NODE) {
        const yaml_node_pair_t *first = node->data.mapping.pairs.start;
        for (const yaml_node_pair_t *i = first; good && i < node->data.mapping.pairs.top; i++) {
            fputs(i > first ? ", " : "{", out);
            good = flow_node(out, source, item(source, i->key), depth + 1);
            fputs(": ", out);
            good = good && flow_node(out, source, item(source, i->value), depth + 1);
        }
        fputs(first == node->data.mapping.pairs.top ? "{}" : "}", out);
    }
    return good;
}

/* A value as the text of an override; owned by the caller. One that begins with a quote, which an
 * override would lose, gets others around it. */
static enum status value_text(const struct source *source, const yaml_node_t *node,
                              const char *what, char **out)
{
    size_t bytes = 0;
    const char *text = scalar(node);
    const bool plain = text != NULL && text[0] != '"' && text[0] != '\'';
    bool good = true;
    *out = plain ? strdup(text) : NULL;
    FILE *stream = plain ? NULL : open_memstream(out, &bytes);
    if (stream != NULL && text != NULL) {
        json_out_text(stream, "", text); /* YAML reads it alike */
    } else if (stream != NULL) {
        good = flow_node(stream, source, node, 0);
    }
    if (stream != NULL) {
        fclose(stream);
    }
    if (*out == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    return good ? STATUS_OK : bad(source, node, what, "lists nested too deep");
}

/* --- Parameters --- */

static enum status read_range_key(struct source *source, const char *key, yaml_node_t *key_node,
                                  yaml_node_t *value)
{
    static const char *const scales[] = {"linear", "log", NULL};
    struct sweep_parameter *p = &source->plan->parameter[source->plan->parameters];
    int scale = 0;
    if (strcmp(key, "scale") == 0) {
        TRY(read_choice(source, value, "scale", scales, &scale));
        p->logarithmic = scale == 1;
        return STATUS_OK;
    }
    double *end = strcmp(key, "low") == 0 ? &p->low : strcmp(key, "high") == 0 ? &p->high : NULL;
    if (end == NULL) {
        return bad(source, key_node, key, "a range has low, high and scale");
    }
    if (!number(scalar(value), end)) {
        return bad(source, value, key, "a number is expected");
    }
    p->whole = p->whole && strpbrk(scalar(value), ".eE") == NULL;
    return STATUS_OK;
}

static enum status read_range(struct source *source, const char *key, yaml_node_t *value)
{
    struct sweep_parameter *p = &source->plan->parameter[source->plan->parameters];
    p->low = p->high = (double)NAN;
    p->whole = true;
    TRY(each_pair(source, value, key, read_range_key));
    if (!(p->low < p->high)) {
        return bad(source, value, key, "low must be below high");
    }
    if (p->logarithmic && p->low <= 0) {
        return bad(source, value, key, "a logarithmic range needs a positive low");
    }
    return STATUS_OK;
}

static enum status read_values(struct source *source, const char *key, yaml_node_t *list)
{
    struct sweep_parameter *p = &source->plan->parameter[source->plan->parameters];
    for (yaml_node_item_t *i = list->data.sequence.items.start; i < list->data.sequence.items.top;
         i++) {
        yaml_node_t *value = item(source, *i);
        if (p->values == SWEEP_VALUES) {
            return bad(source, value, key, "too many values");
        }
        const enum status status = value_text(source, value, key, &p->value[p->values]);
        p->values++; /* freed with the rest, good or not */
        TRY(status);
    }
    return p->values > 0 ? STATUS_OK : bad(source, list, key, "no values");
}

static enum status read_parameter(struct source *source, const char *key, yaml_node_t *key_node,
                                  yaml_node_t *value)
{
    struct sweep_plan *plan = source->plan;
    if (plan->parameters == SWEEP_PARAMETERS) {
        return bad(source, key_node, key, "too many parameters");
    }
    if (strcmp(key, "run.dir") == 0) {
        return bad(source, key_node, key, "every trial has its own, in dir");
    }
    struct sweep_parameter *p = &plan->parameter[plan->parameters];
    *p = (struct sweep_parameter){.key = strdup(key)};
    if (p->key == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    const enum status status =
        value->type == YAML_SEQUENCE_NODE ? read_values(source, key, value)
        : value->type == YAML_MAPPING_NODE
            ? read_range(source, key, value)
            : bad(source, value, key, "a list of values or {low, high} is expected");
    plan->parameters++; /* freed with the rest, good or not */
    return status;
}

static enum status read_fixed(struct source *source, const char *key, yaml_node_t *key_node,
                              yaml_node_t *value)
{
    struct sweep_plan *plan = source->plan;
    char *text = NULL;
    if (plan->fixed_count == SWEEP_PARAMETERS || strcmp(key, "run.dir") == 0) {
        return bad(source, key_node, key, "at most 32 keys but run.dir are expected");
    }
    enum status status = value_text(source, value, key, &text);
    if (status == STATUS_OK && asprintf(&plan->fixed[plan->fixed_count], "%s=%s", key, text) < 0) {
        plan->fixed[plan->fixed_count] = NULL;
        status = status_fail(STATUS_RESOURCE, "out of memory");
    }
    plan->fixed_count += status == STATUS_OK;
    free(text);
    return status;
}

/* --- The rest of the file --- */

static enum status read_launch(struct source *source, const char *key, yaml_node_t *key_node,
                               yaml_node_t *value)
{
    struct sweep_plan *plan = source->plan;
    if (strcmp(key, "ranks") == 0) {
        return read_count(source, value, key, 1, 65536, &plan->ranks);
    }
    if (strcmp(key, "slots") == 0) {
        return read_count(source, value, key, 1, 256, &plan->slots);
    }
    if (strcmp(key, "command") == 0) {
        return read_text(source, value, key, &plan->command);
    }
    return bad(source, key_node, key, "launch has ranks, slots and command");
}

static enum status read_rungs(struct source *source, yaml_node_t *value)
{
    struct sweep_plan *plan = source->plan;
    if (value->type != YAML_SEQUENCE_NODE) {
        return bad(source, value, "rungs", "a list of steps is expected");
    }
    for (yaml_node_item_t *i = value->data.sequence.items.start; i < value->data.sequence.items.top;
         i++) {
        yaml_node_t *node = item(source, *i);
        if (plan->rungs == SWEEP_RUNGS) {
            return bad(source, node, "rungs", "at most 8");
        }
        TRY(read_count(source, node, "rungs", 1, (int64_t)1e12, &plan->rung[plan->rungs]));
        if (plan->rungs > 0 && plan->rung[plan->rungs] <= plan->rung[plan->rungs - 1]) {
            return bad(source, node, "rungs", "must rise");
        }
        plan->rungs++;
    }
    return STATUS_OK;
}

static enum status read_asha(struct source *source, const char *key, yaml_node_t *key_node,
                             yaml_node_t *value)
{
    if (strcmp(key, "rungs") == 0) {
        return read_rungs(source, value);
    }
    if (strcmp(key, "keep") != 0) {
        return bad(source, key_node, key, "asha has rungs and keep");
    }
    return number(scalar(value), &source->plan->keep) && source->plan->keep > 0 &&
                   source->plan->keep < 1
               ? STATUS_OK
               : bad(source, value, key, "a share between 0 and 1 is expected");
}

static enum status read_key(struct source *source, const char *key, yaml_node_t *key_node,
                            yaml_node_t *value)
{
    static const char *const names[] = {"base", "dir", "method",     "metric", "trials",
                                        "seed", "set", "parameters", "launch", "asha"};
    static const char *const methods[] = {"grid", "random", "asha", NULL};
    static const char *const metrics[] = {"loss", "valid_loss", NULL};
    struct sweep_plan *plan = source->plan;
    int64_t seed = 0;
    int choice = 0;
    size_t which = 0;
    for (; which < sizeof names / sizeof names[0] && strcmp(names[which], key) != 0; which++) {
    }
    switch (which) {
    case 0:
        return read_text(source, value, key, &plan->base);
    case 1:
        return read_text(source, value, key, &plan->dir);
    case 2:
        return read_choice(source, value, key, methods, &plan->method);
    case 3:
        TRY(read_choice(source, value, key, metrics, &choice));
        return read_text(source, value, key, &plan->metric);
    case 4:
        return read_count(source, value, key, 1, SWEEP_TRIALS, &plan->trials);
    case 5:
        TRY(read_count(source, value, key, 0, (int64_t)9e15, &seed));
        plan->seed = (uint64_t)seed;
        return STATUS_OK;
    case 6:
        return each_pair(source, value, key, read_fixed);
    case 7:
        return each_pair(source, value, key, read_parameter);
    case 8:
        return each_pair(source, value, key, read_launch);
    case 9:
        return each_pair(source, value, key, read_asha);
    default:
        break;
    }
    const char *near = nearest_word(key, names, (int)(sizeof names / sizeof names[0]));
    char why[96];
    snprintf(why, sizeof why, "unknown key%s%s%s", near != NULL ? "; did you mean '" : "",
             near != NULL ? near : "", near != NULL ? "'?" : "");
    return bad(source, key_node, key, why);
}

static enum status parse(struct sweep_plan *plan, const char *path, const char *text, size_t bytes)
{
    yaml_parser_t parser;
    yaml_document_t document;
    if (!yaml_parser_initialize(&parser)) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    if (!yaml_parser_load(&parser, &document)) {
        const enum status status = status_fail(
            STATUS_USAGE, "%s:%zu:%zu: not YAML: %s", path, parser.problem_mark.line + 1,
            parser.problem_mark.column + 1, parser.problem != NULL ? parser.problem : "");
        yaml_parser_delete(&parser);
        return status;
    }
    struct source source = {path, &document, plan};
    yaml_node_t *root = yaml_document_get_root_node(&document);
    const enum status status = root != NULL
                                   ? each_pair(&source, root, "the file", read_key)
                                   : status_fail(STATUS_USAGE, "%s: the file is empty", path);
    yaml_document_delete(&document);
    yaml_parser_delete(&parser);
    return status;
}

/* --- What must hold of the whole --- */

static enum status count_grid(struct sweep_plan *plan, const char *path)
{
    if (plan->trials > 0) {
        return status_fail(STATUS_USAGE, "%s: trials: a grid has as many as its lists make", path);
    }
    plan->trials = 1;
    for (int i = 0; i < plan->parameters; i++) {
        if (plan->parameter[i].values == 0) {
            return status_fail(STATUS_USAGE,
                               "%s: %s: a grid needs lists: write the values, or method: random",
                               path, plan->parameter[i].key);
        }
        plan->trials *= plan->parameter[i].values;
        if (plan->trials > SWEEP_TRIALS) {
            return status_fail(STATUS_USAGE, "%s: more than %d trials", path, (int)SWEEP_TRIALS);
        }
    }
    return STATUS_OK;
}

static enum status check(struct sweep_plan *plan, const char *path)
{
    if (plan->base == NULL || plan->dir == NULL || plan->parameters == 0) {
        return status_fail(STATUS_USAGE, "%s: %s is missing", path,
                           plan->base == NULL  ? "base (the config)"
                           : plan->dir == NULL ? "dir (where the trials run)"
                                               : "parameters");
    }
    if (plan->method == SWEEP_GRID) {
        TRY(count_grid(plan, path));
    } else if (plan->trials == 0) {
        return status_fail(STATUS_USAGE, "%s: trials: how many?", path);
    }
    if ((plan->method == SWEEP_ASHA) != (plan->rungs > 0)) {
        return status_fail(STATUS_USAGE, "%s: asha.rungs and method: asha go together", path);
    }
    return STATUS_OK;
}

static enum status try_trial(struct sweep_plan *plan, const char *path, int64_t index)
{
    struct sweep_trial_values values = {0};
    struct config *config = malloc(sizeof *config);
    enum status status = config != NULL ? sweep_plan_trial(plan, index, &values)
                                        : status_fail(STATUS_RESOURCE, "out of memory");
    if (status == STATUS_OK) {
        config_init(config);
        status = config_load(config, plan->base, values.text, values.count);
        plan->steps = config->run.steps;
        if (status == STATUS_OK && strcmp(plan->metric, "valid_loss") == 0 &&
            (config->data.valid == NULL || config->eval.every_steps == 0)) {
            status = status_fail(STATUS_USAGE, "metric valid_loss: needs data.valid and "
                                               "eval.every_steps, or write metric: loss");
        } else if (status == STATUS_OK && strcmp(plan->metric, "valid_loss") == 0 &&
                   plan->rungs > 0 && config->eval.every_steps > plan->rung[0]) {
            status = status_fail(STATUS_USAGE,
                                 "asha.rungs: no valid_loss before step %lld (eval.every_steps), "
                                 "but a rung at %lld",
                                 (long long)config->eval.every_steps, (long long)plan->rung[0]);
        }
        config_free(config);
    }
    free(config);
    sweep_trial_values_free(&values);
    if (status == STATUS_USAGE) {
        char why[1024];
        snprintf(why, sizeof why, "%.1000s", status_message());
        return status_fail(status, "%s: trial %lld: %s", path, (long long)index, why);
    }
    return status;
}

static enum status try_trials(struct sweep_plan *plan, const char *path)
{
    enum { ENDS = 50 };
    for (int64_t i = 0; i < plan->trials; i++) {
        if (i < ENDS || i >= plan->trials - ENDS) {
            TRY(try_trial(plan, path, i));
        }
    }
    for (int64_t i = 0; i < plan->trials && plan->rungs > 0; i++) {
        struct sweep_trial_values values;
        enum status status = sweep_plan_trial(plan, i, &values);
        const int64_t steps = sweep_plan_steps(plan, &values);
        sweep_trial_values_free(&values);
        if (status == STATUS_OK && plan->rung[plan->rungs - 1] >= steps) {
            status = status_fail(
                STATUS_USAGE,
                "%s: asha.rungs: the last, %lld, is not below run.steps %lld of trial %lld", path,
                (long long)plan->rung[plan->rungs - 1], (long long)steps, (long long)i);
        }
        TRY(status);
    }
    return STATUS_OK;
}

enum status sweep_plan_load(struct sweep_plan *plan, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    *plan = (struct sweep_plan){.ranks = 1, .slots = 1, .seed = 1, .keep = 1.0 / 3};
    plan->metric = strdup("valid_loss");
    TRY(io_read_file(path, &text, &bytes, MOST_BYTES));
    enum status status = plan->metric != NULL ? parse(plan, path, text, bytes)
                                              : status_fail(STATUS_RESOURCE, "out of memory");
    free(text);
    status = status == STATUS_OK ? check(plan, path) : status;
    return status == STATUS_OK ? try_trials(plan, path) : status;
}

void sweep_plan_free(struct sweep_plan *plan)
{
    for (int i = 0; i < plan->fixed_count; i++) {
        free(plan->fixed[i]);
    }
    for (int i = 0; i < plan->parameters; i++) {
        free(plan->parameter[i].key);
        for (int v = 0; v < plan->parameter[i].values; v++) {
            free(plan->parameter[i].value[v]);
        }
    }
    free(plan->base);
    free(plan->dir);
    free(plan->metric);
    free(plan->command);
    *plan = (struct sweep_plan){0};
}
