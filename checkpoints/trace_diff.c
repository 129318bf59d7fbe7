#include "checkpoints/trace_diff.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A record with what it is matched by. */
struct entry {
    const struct trace_record *record;
    int64_t name;  /* of the first file's names; behind these: the second's own */
    int64_t place; /* in its unit, in the order of computation */
};

struct side {
    struct trace_file *file;
    const struct trace_step *steps;
    int64_t step_count;
    int64_t *name;               /* [names] owned: as in struct entry */
    struct trace_record *record; /* owned: of the step at hand, */
    struct entry *entry;         /* owned: sorted */
    int64_t count;
    bool start; /* of it only what the run started from */
};

/* --- names of the second file in the first --- */

struct known {
    const char *text;
    int64_t name;
};

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct known *)a)->text, ((const struct known *)b)->text);
}

static enum status match_names(struct side side[2])
{
    const int64_t count = trace_file_names(side[0].file), others = trace_file_names(side[1].file);
    struct known *known = calloc((size_t)count + 1, sizeof *known);
    side[0].name = calloc((size_t)count + 1, sizeof *side[0].name);
    side[1].name = calloc((size_t)others + 1, sizeof *side[1].name);
    if (known == NULL || side[0].name == NULL || side[1].name == NULL) {
        free(known);
        return status_fail(STATUS_RESOURCE, "out of memory for %lld names",
                           (long long)(count + others));
    }
    for (int64_t i = 0; i < count; i++) {
        side[0].name[i] = i;
        known[i] = (struct known){trace_file_name(side[0].file, i), i};
    }
    qsort(known, (size_t)count, sizeof *known, by_text);
    for (int64_t i = 0; i < others; i++) {
        const struct known key = {trace_file_name(side[1].file, i), 0};
        const struct known *found = bsearch(&key, known, (size_t)count, sizeof *known, by_text);
        side[1].name[i] = found != NULL ? found->name : count + i;
    }
    free(known);
    return STATUS_OK;
}

/* --- one step --- */

static int compare_numbers(int64_t a, int64_t b)
{
    return (a > b) - (a < b);
}

/* By what the two files share. */
static int by_key(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    int order = compare_numbers(a->record->unit, b->record->unit);
    order = order != 0 ? order : compare_numbers(a->record->layer, b->record->layer);
    return order != 0 ? order : compare_numbers(a->name, b->name);
}

static enum status read_step(struct side *side, const struct trace_step *step)
{
    free(side->record);
    free(side->entry);
    side->count = step->records;
    side->start = step->start != 0;
    side->record = calloc((size_t)side->count + 1, sizeof *side->record);
    side->entry = calloc((size_t)side->count + 1, sizeof *side->entry);
    if (side->record == NULL || side->entry == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld records",
                           (long long)side->count);
    }
    TRY(trace_file_records(side->file, step, side->record));
    for (int64_t i = 0, begun = 0; i < side->count; i++) {
        begun = i > 0 && side->record[i].unit != side->record[i - 1].unit ? i : begun;
        side->entry[i] = (struct entry){.record = &side->record[i],
                                        .name = side->name[side->record[i].name],
                                        .place = i - begun};
    }
    qsort(side->entry, (size_t)side->count, sizeof *side->entry, by_key);
    return STATUS_OK;
}

/* The pair of one tensor; one of them may be NULL. */
struct pair {
    const struct entry *a, *b;
};

static enum trace_found judge(const struct pair *pair)
{
    if (pair->a == NULL || pair->b == NULL) {
        return pair->a != NULL ? TRACE_ONLY_A : TRACE_ONLY_B;
    }
    const struct trace_record *a = pair->a->record, *b = pair->b->record;
    if (a->dtype != b->dtype || a->rows != b->rows || a->cols != b->cols) {
        return TRACE_SHAPE;
    }
    return a->hash != b->hash ? TRACE_VALUES : TRACE_SAME;
}

/* Whether the first was computed before the second. */
static bool is_earlier(const struct pair *first, const struct pair *second)
{
    const struct entry *a = first->a != NULL ? first->a : first->b,
                       *b = second->a != NULL ? second->a : second->b;
    const bool whole_a = a->record->unit < 0, whole_b = b->record->unit < 0;
    if (whole_a != whole_b) {
        return whole_b;
    }
    return a->place != b->place ? a->place < b->place : a->record->unit < b->record->unit;
}

/* Counts the tensors of a step and those that differ; the earliest of these. */
static struct pair first_of_step(struct trace_difference *out, const struct side side[2])
{
    struct pair first = {0};
    int64_t i = 0, j = 0;
    out->tensors = out->tensors_different = 0;
    while (i < side[0].count || j < side[1].count) {
        const struct entry *a = i < side[0].count ? &side[0].entry[i] : NULL,
                           *b = j < side[1].count ? &side[1].entry[j] : NULL;
        const int order = a == NULL ? 1 : b == NULL ? -1 : by_key(a, b);
        const struct pair pair = {order <= 0 ? a : NULL, order >= 0 ? b : NULL};
        const bool missing = order < 0 ? side[1].start : order > 0 && side[0].start;
        out->tensors += !missing;
        if (!missing && judge(&pair) != TRACE_SAME) {
            out->tensors_different++;
            first =
                (first.a == NULL && first.b == NULL) || is_earlier(&pair, &first) ? pair : first;
        }
        i += order <= 0;
        j += order >= 0;
    }
    return first;
}

/* --- the values of one tensor --- */

static double value_at(const void *data, enum dtype dtype, int64_t index)
{
    switch (dtype) {
    case DTYPE_BF16:
        return (double)bf16_to_float(((const uint16_t *)data)[index]);
    case DTYPE_I32:
        return (double)((const int32_t *)data)[index];
    case DTYPE_F64:
        return ((const double *)data)[index];
    default:
        return (double)((const float *)data)[index];
    }
}

/* Where element `index` of the `wanted` that are compared lies in what `record` keeps. */
static int64_t kept_at(const struct trace_record *record, int64_t index, int64_t wanted)
{
    const int64_t count = record->rows * record->cols;
    return record->kept == count && wanted < count ? trace_position(count, index) : index;
}

static void compare(struct trace_difference *out, const void *a, const void *b)
{
    const enum dtype dtype = (enum dtype)out->a.dtype;
    const size_t width = dtype_bytes(dtype);
    const int64_t count = out->a.rows * out->a.cols;
    double squares = 0, norm = 0;
    for (int64_t i = 0; i < out->compared; i++) {
        const int64_t at = kept_at(&out->a, i, out->compared),
                      bt = kept_at(&out->b, i, out->compared);
        const double x = value_at(a, dtype, at), y = value_at(b, dtype, bt);
        norm += y * y;
        if (memcmp((const char *)a + (size_t)at * width, (const char *)b + (size_t)bt * width,
                   width) == 0) {
            continue;
        }
        if (out->different++ == 0) {
            out->first = out->compared < count ? trace_position(count, i) : i;
            out->first_a = x;
            out->first_b = y;
        }
        squares += (x - y) * (x - y);
        out->most = fabs(x - y) > out->most || isnan(x - y) ? fabs(x - y) : out->most;
    }
    out->relative = squares > 0 || isnan(squares) ? sqrt(squares / norm) : 0;
}

static enum status read_values(struct trace_difference *out, const struct side side[2])
{
    const int64_t kept_a = out->a.kept, kept_b = out->b.kept;
    const size_t width = dtype_bytes((enum dtype)out->a.dtype);
    char *a = malloc((size_t)kept_a * width + 1), *b = malloc((size_t)kept_b * width + 1);
    enum status status = a != NULL && b != NULL
                             ? STATUS_OK
                             : status_fail(STATUS_RESOURCE, "out of memory for values");
    status = status == STATUS_OK ? trace_file_values(side[0].file, &out->a, a) : status;
    status = status == STATUS_OK ? trace_file_values(side[1].file, &out->b, b) : status;
    if (status == STATUS_OK) {
        out->compared = kept_a < kept_b ? kept_a : kept_b;
        compare(out, a, b);
    }
    free(a);
    free(b);
    return status;
}

static enum status describe(struct trace_difference *out, const struct side side[2],
                            const struct pair *pair)
{
    const struct trace_record *one = pair->a != NULL ? pair->a->record : pair->b->record;
    const int owner = pair->a != NULL ? 0 : 1;
    out->found = judge(pair);
    out->unit = one->unit;
    out->layer = one->layer;
    strcpy(out->name, trace_file_name(side[owner].file, one->name));
    out->a = pair->a != NULL ? *pair->a->record : (struct trace_record){0};
    out->b = pair->b != NULL ? *pair->b->record : (struct trace_record){0};
    return out->found == TRACE_VALUES ? read_values(out, side) : STATUS_OK;
}

/* --- step by step --- */

static enum status compare_steps(struct trace_difference *out, struct side side[2])
{
    int64_t i = 0, j = 0;
    while (i < side[0].step_count && j < side[1].step_count) {
        const struct trace_step *a = &side[0].steps[i], *b = &side[1].steps[j];
        if (a->step == b->step) {
            TRY(read_step(&side[0], a));
            TRY(read_step(&side[1], b));
            out->first_step = out->steps++ == 0 ? a->step : out->first_step;
            out->last_step = out->step = a->step;
            const struct pair first = first_of_step(out, side);
            if (out->tensors_different > 0) {
                return describe(out, side, &first);
            }
        }
        i += a->step <= b->step;
        j += b->step <= a->step;
    }
    return STATUS_OK;
}

static enum status compare_files(struct trace_difference *out, struct side side[2], const char *a,
                                 const char *b)
{
    TRY(trace_file_open(&side[0].file, a));
    TRY(trace_file_open(&side[1].file, b));
    for (int s = 0; s < 2; s++) {
        side[s].step_count = trace_file_steps(side[s].file, &side[s].steps);
    }
    TRY(match_names(side));
    TRY(compare_steps(out, side));
    return out->steps > 0
               ? STATUS_OK
               : status_fail(STATUS_DATA, "%s and %s have no whole step in common (%lld and %lld)",
                             a, b, (long long)side[0].step_count, (long long)side[1].step_count);
}

enum status trace_diff(struct trace_difference *difference, const char *a, const char *b)
{
    struct side side[2] = {0};
    *difference = (struct trace_difference){0};
    enum status status = compare_files(difference, side, a, b);
    for (int s = 0; s < 2; s++) {
        const enum status closed = trace_file_close(side[s].file);
        status = status == STATUS_OK ? closed : status;
        free(side[s].name);
        free(side[s].record);
        free(side[s].entry);
    }
    return status;
}
