#include <stdio.h>
#include <string.h>

#include "checkpoints/trace_diff.h"
#include "kernels/base/json_out.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/config/nearest.h"

enum { PLACE_BYTES = 96 };

/* "step 3, unit 1, layer 2". */
static void place_text(char out[PLACE_BYTES], const struct trace_difference *d)
{
    int used = snprintf(out, PLACE_BYTES, "step %lld", (long long)d->step);
    if (d->unit >= 0) {
        used += snprintf(out + used, (size_t)(PLACE_BYTES - used), ", micro-batch %lld",
                         (long long)d->unit);
    }
    if (d->layer >= 0) {
        snprintf(out + used, (size_t)(PLACE_BYTES - used), ", layer %lld", (long long)d->layer);
    }
}

static void print_values(const struct trace_difference *d)
{
    const int64_t count = d->a.rows * d->a.cols;
    if (d->compared == 0) {
        printf("  values: none kept; to see them repeat the step in both runs with "
               "debug.trace_values=all debug.trace_from=%lld debug.trace_steps=1\n",
               (long long)d->step);
        return;
    }
    printf("  %lld of %lld values differ%s\n", (long long)d->different, (long long)d->compared,
           d->compared < count ? " (a sample is kept; all: debug.trace_values=all)" : "");
    if (d->different > 0) {
        printf("  first at [%lld, %lld]: %.9g and %.9g\n", (long long)(d->first / d->a.cols),
               (long long)(d->first % d->a.cols), d->first_a, d->first_b);
        printf("  largest difference %.6g, relative %.6g\n", d->most, d->relative);
    }
}

static void print_text(const struct trace_difference *d)
{
    char place[PLACE_BYTES];
    if (d->found == TRACE_SAME) {
        printf("the same: steps %lld to %lld, %lld compared\n", (long long)d->first_step,
               (long long)d->last_step, (long long)d->steps);
        return;
    }
    place_text(place, d);
    printf("%s: %s", place, d->name);
    if (d->found == TRACE_ONLY_A || d->found == TRACE_ONLY_B) {
        printf(": only in the %s file\n", d->found == TRACE_ONLY_A ? "first" : "second");
    } else {
        printf(", %s [%lld, %lld]", dtype_name((enum dtype)d->a.dtype), (long long)d->a.rows,
               (long long)d->a.cols);
        if (d->found == TRACE_SHAPE) {
            printf(" and %s [%lld, %lld]", dtype_name((enum dtype)d->b.dtype), (long long)d->b.rows,
                   (long long)d->b.cols);
        }
        printf("\n");
    }
    if (d->found == TRACE_VALUES) {
        print_values(d);
    }
    printf("  %lld of %lld tensors of this step differ; %lld steps before it are the same\n",
           (long long)d->tensors_different, (long long)d->tensors, (long long)d->steps - 1);
}

static void print_json_tensor(const char *name, const struct trace_record *record)
{
    printf(",\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld,%lld],\"hash\":\"%016llx\",\"kept\":%lld}",
           name, dtype_name((enum dtype)record->dtype), (long long)record->rows,
           (long long)record->cols, (unsigned long long)record->hash, (long long)record->kept);
}

static void print_json(const struct trace_difference *d)
{
    printf("{\"same\":%s,\"steps\":%lld,\"first_step\":%lld,\"last_step\":%lld",
           d->found == TRACE_SAME ? "true" : "false", (long long)d->steps, (long long)d->first_step,
           (long long)d->last_step);
    if (d->found != TRACE_SAME) {
        printf(",\"step\":%lld,\"unit\":%lld,\"layer\":%lld", (long long)d->step,
               (long long)d->unit, (long long)d->layer);
        json_out_text(stdout, ",\"tensor\":", d->name);
        printf(",\"tensors\":%lld,\"tensors_different\":%lld", (long long)d->tensors,
               (long long)d->tensors_different);
    }
    if (d->a.cols > 0) {
        print_json_tensor("a", &d->a);
    }
    if (d->b.cols > 0) {
        print_json_tensor("b", &d->b);
    }
    if (d->found == TRACE_VALUES) {
        printf(",\"compared\":%lld,\"different\":%lld", (long long)d->compared,
               (long long)d->different);
    }
    if (d->different > 0) {
        printf(",\"first\":[%lld,%lld]", (long long)(d->first / d->a.cols),
               (long long)(d->first % d->a.cols));
        json_out_number(stdout, ",\"first_a\":", d->first_a, 17);
        json_out_number(stdout, ",\"first_b\":", d->first_b, 17);
        json_out_number(stdout, ",\"most\":", d->most, 9);
        json_out_number(stdout, ",\"relative\":", d->relative, 9);
    }
    printf("}\n");
}

static enum status diff(int argc, char **argv)
{
    struct option_result options;
    struct trace_difference difference;
    bool json = false;
    const struct option_spec specs[] = {{"--json", OPTION_FLAG, &json, NULL, "print JSON"}, {0}};
    TRY(options_parse(&options, argc, argv, specs, "trace diff A.h5 B.h5",
                      "Names the first step, layer and tensor where two traced runs "
                      "(debug.trace) part, with both\nvalues, whatever layouts they ran on. Exit "
                      "code 1 when they do.\nrelative: ||A - B|| / ||B||, 2-norms.",
                      2, 2));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(trace_diff(&difference, options.words[0], options.words[1]));
    (json ? print_json : print_text)(&difference);
    return difference.found == TRACE_SAME ? STATUS_OK : status_fail(STATUS_DIFFERENT, "%s", "");
}

enum status command_trace(int argc, char **argv)
{
    static char word[] = "trace diff";
    static const char *const names[] = {"diff"};
    if (argc < 2) {
        return status_fail(STATUS_USAGE, "trace: too few arguments (see switchyard trace --help)");
    }
    if (strcmp(argv[1], "--help") == 0) {
        printf("usage: switchyard trace diff A.h5 B.h5\n\nCompares what two runs computed, as "
               "debug.trace wrote it.\n\nswitchyard trace diff --help says more.\n");
        return STATUS_OK;
    }
    if (strcmp(argv[1], names[0]) != 0) {
        return status_fail(STATUS_USAGE,
                           "trace: unknown action '%s'%s (see switchyard trace "
                           "--help)",
                           argv[1],
                           nearest_word(argv[1], names, 1) != NULL ? "; did you mean 'diff'?" : "");
    }
    argv[1] = word;
    return diff(argc - 1, argv + 1);
}
