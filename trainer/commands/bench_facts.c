#include "trainer/commands/bench_facts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/json_out.h"

/* An H100 (SXM), dense: FLOP/s of 8-bit products and, as copies reach them, bytes/s of memory. */
static const double FLOPS = 1979e12, BYTES = 3.0e12;

/* Kernels that differ in template arguments only: the most of each figure. */
struct family {
    int instances;
    struct device_kernel most;
};

static int larger(int a, int b)
{
    return a > b ? a : b;
}

static void join(struct family *family, const struct device_kernel *kernel)
{
    struct device_kernel *most = &family->most;
    family->instances++;
    most->registers = larger(most->registers, kernel->registers);
    most->shared_bytes = larger(most->shared_bytes, kernel->shared_bytes);
    most->spilled = larger(most->spilled, kernel->spilled);
    most->stack_bytes = larger(most->stack_bytes, kernel->stack_bytes);
}

/* Of the kernels whose names begin so. */
static struct family family_of(const char *begin)
{
    const struct device_kernel *list;
    const int count = device_kernels(&list);
    struct family family = {0};
    for (int i = 0; i < count; i++) {
        if (strncmp(list[i].name, begin, strlen(begin)) == 0) {
            join(&family, &list[i]);
        }
    }
    return family;
}

static double predicted(const struct bench *b, const struct kernel *kernel)
{
    return kernel->predicted != NULL ? kernel->predicted(b)
                                     : kernel->work(b) / (kernel->flops ? FLOPS : BYTES);
}

static void print_timed(const struct bench *b, const struct kernel *list, int count)
{
    printf("in FP8, these shapes, as an H100 would run them: predicted, not measured\n");
    for (int i = 0; i < count; i++) {
        const struct family f = family_of(list[i].cuda);
        const double work = list[i].work(b);
        printf("%-26s %10.2f us  %9.3f %s  %3d registers, %d bytes spilled: %s\n", list[i].name,
               1e6 * predicted(b, &list[i]), work / (list[i].flops ? 1e9 : 1e6),
               list[i].flops ? "GFLOP" : "MB   ", f.most.registers, f.most.spilled, list[i].cuda);
    }
}

/* How long a name is without its template arguments. */
static size_t stem(const char *name)
{
    return strcspn(name, "<");
}

static void print_families(const struct device_kernel *list, int count)
{
    printf("CUDA kernels in this binary, as compiled for sm_90a, the most of each kind\n"
           "%-36s %8s %9s %13s %8s %6s\n",
           "kernel", "variants", "registers", "static shared", "spilled", "stack");
    for (int i = 0, next; i < count; i = next) {
        const size_t length = stem(list[i].name);
        struct family f = {0};
        for (next = i; next < count && stem(list[next].name) == length &&
                       strncmp(list[next].name, list[i].name, length) == 0;
             next++) {
            join(&f, &list[next]);
        }
        printf("%-36.*s %8d %9d %13d %8d %6d\n", (int)length, list[i].name, f.instances,
               f.most.registers, f.most.shared_bytes, f.most.spilled, f.most.stack_bytes);
    }
}

static void print_json(const struct bench *b, const struct kernel *timed, int timed_count,
                       const struct device_kernel *list, int count)
{
    printf(",\"h100\":{");
    for (int i = 0; i < timed_count; i++) {
        printf("%s\"%s\":", i > 0 ? "," : "", timed[i].name);
        json_out_number(stdout, "{\"predicted_ms\":", 1e3 * predicted(b, &timed[i]), 6);
        json_out_number(stdout, timed[i].flops ? ",\"flop\":" : ",\"bytes\":", timed[i].work(b),
                        12);
        printf("}");
    }
    printf("},\"cuda_kernels\":[");
    for (int i = 0; i < count; i++) {
        json_out_text(stdout, i > 0 ? ",{\"name\":" : "{\"name\":", list[i].name);
        printf(",\"registers\":%d,\"shared_bytes\":%d,\"spilled_bytes\":%d,\"stack_bytes\":%d}",
               list[i].registers, list[i].shared_bytes, list[i].spilled, list[i].stack_bytes);
    }
    printf("]");
}

void bench_facts_print(const struct bench *bench, const struct kernel *list, int count, bool json)
{
    const struct device_kernel *compiled;
    const int kernels = device_kernels(&compiled);
    if (kernels == 0) {
        return;
    }
    if (json) {
        print_json(bench, list, count, compiled, kernels);
        return;
    }
    if (count > 0) {
        print_timed(bench, list, count);
    }
    print_families(compiled, kernels);
}
