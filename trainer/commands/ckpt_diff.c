#include <stdio.h>
#include <string.h>

#include "checkpoints/difference.h"
#include "checkpoints/export_h5.h"
#include "kernels/base/json_out.h"
#include "trainer/commands/ckpt.h"
#include "trainer/commands/options.h"

enum { COORDINATE_BYTES = 96, KIND_BYTES = 96 };

struct report {
    bool json;
    int64_t told;
};

/* "float32 [2, 3]". */
static void kind_text(char out[KIND_BYTES], const struct manifest_tensor *tensor)
{
    int used = snprintf(out, KIND_BYTES, "%s [", dtype_name(tensor->dtype));
    for (int i = 0; i < tensor->ndim; i++) {
        used += snprintf(out + used, (size_t)(KIND_BYTES - used), "%s%lld", i > 0 ? ", " : "",
                         (long long)tensor->shape[i]);
    }
    snprintf(out + used, (size_t)(KIND_BYTES - used), "]");
}

/* "[1, 2]" of a flat index. */
static void coordinate_text(char out[COORDINATE_BYTES], const struct manifest_tensor *tensor,
                            int64_t index)
{
    int64_t at[4] = {0};
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        at[i] = index % tensor->shape[i];
        index /= tensor->shape[i];
    }
    int used = snprintf(out, COORDINATE_BYTES, "[");
    for (int i = 0; i < tensor->ndim; i++) {
        used += snprintf(out + used, (size_t)(COORDINATE_BYTES - used), "%s%lld", i > 0 ? ", " : "",
                         (long long)at[i]);
    }
    snprintf(out + used, (size_t)(COORDINATE_BYTES - used), "]");
}

static void print_text(const struct difference *d)
{
    char a[KIND_BYTES], b[KIND_BYTES], at[COORDINATE_BYTES];
    if (d->a == NULL || d->b == NULL) {
        printf("%s: only in the %s\n", d->name, d->a != NULL ? "first" : "second");
    } else if (d->different == 0) {
        kind_text(a, d->a);
        kind_text(b, d->b);
        printf("%s: %s and %s\n", d->name, a, b);
    } else {
        coordinate_text(at, d->a, d->first);
        printf("%s: %lld of %lld elements; first at %s: %.9g and %.9g; largest difference %.6g, "
               "relative %.6g\n",
               d->name, (long long)d->different, (long long)d->elements, at, d->first_a, d->first_b,
               d->most, d->relative);
    }
}

static void print_json(const struct difference *d, bool first)
{
    char a[KIND_BYTES], b[KIND_BYTES], at[COORDINATE_BYTES];
    json_out_text(stdout, first ? "{\"name\":" : ",{\"name\":", d->name);
    if (d->a != NULL) {
        kind_text(a, d->a);
        json_out_text(stdout, ",\"a\":", a);
    }
    if (d->b != NULL) {
        kind_text(b, d->b);
        json_out_text(stdout, ",\"b\":", b);
    }
    if (d->different > 0) {
        coordinate_text(at, d->a, d->first);
        printf(",\"different\":%lld,\"elements\":%lld,\"first\":%s", (long long)d->different,
               (long long)d->elements, at);
        json_out_number(stdout, ",\"first_a\":", d->first_a, 17);
        json_out_number(stdout, ",\"first_b\":", d->first_b, 17);
        json_out_number(stdout, ",\"most\":", d->most, 9);
        json_out_number(stdout, ",\"relative\":", d->relative, 9);
    }
    printf("}");
}

static void tell(void *context, const struct difference *difference)
{
    struct report *report = context;
    if (report->json) {
        print_json(difference, report->told == 0);
    } else {
        print_text(difference);
    }
    report->told++;
}

enum status ckpt_diff(int argc, char **argv)
{
    struct option_result options;
    struct report report = {0};
    struct difference_figures figures;
    char a[CKPT_PATH_BYTES], b[CKPT_PATH_BYTES];
    const struct option_spec specs[] = {{"--json", OPTION_FLAG, &report.json, NULL, "print JSON"},
                                        {0}};
    TRY(options_parse(&options, argc, argv, specs, "ckpt diff A B",
                      "Compares the tensors of two checkpoints (or of two runs' newest) bit by "
                      "bit, whatever\nlayouts they were saved on. Exit code 1 when any differ.\n"
                      "relative: ||A - B|| / ||B||, 2-norms.",
                      2, 2));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(ckpt_place(options.words[0], a));
    TRY(ckpt_place(options.words[1], b));
    printf("%s", report.json ? "{\"tensors\":[" : "");
    const enum status status = difference_find(a, b, &figures, tell, &report);
    if (report.json) {
        printf("],\"same\":%lld,\"different\":%lld}\n", (long long)figures.same,
               (long long)figures.different);
    } else if (status == STATUS_OK) {
        printf("%lld tensors differ, %lld are the same\n", (long long)figures.different,
               (long long)figures.same);
    }
    TRY(status);
    return figures.different == 0 ? STATUS_OK : status_fail(STATUS_DIFFERENT, "%s", "");
}

enum status ckpt_export_h5(int argc, char **argv)
{
    struct option_result options;
    struct export_h5_figures figures;
    bool json = false, weights = false;
    char place[CKPT_PATH_BYTES];
    const struct option_spec specs[] = {
        {"--weights", OPTION_FLAG, &weights, NULL, "without masters, moments and averages"},
        {"--json", OPTION_FLAG, &json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs,
                      "ckpt export-h5 CKPT_DIR|RUN_DIR OUT.h5 [--weights]",
                      "Writes the tensors of a checkpoint (or of a run's newest), whole and in "
                      "their shapes, into\none HDF5 file that needs no other. docs/checkpoints.md "
                      "shows how to read it.",
                      2, 2));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(ckpt_place(options.words[0], place));
    TRY(export_h5(place, options.words[1], weights, &figures));
    if (json) {
        printf("{\"tensors\":%lld,\"bytes\":%lld}\n", (long long)figures.tensors,
               (long long)figures.bytes);
    } else {
        printf("%s: %lld tensors, %.1f MiB\n", options.words[1], (long long)figures.tensors,
               (double)figures.bytes / 1048576.0);
    }
    return STATUS_OK;
}
