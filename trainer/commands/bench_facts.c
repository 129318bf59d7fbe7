#include "trainer/commands/bench_facts.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/base/json_out.h"

/* An H100 (SXM), dense: FLOP/s of products of 8 bits, of 16 and of f32 without tensor cores; and
 * bytes/s of memory, as copies reach them. */
static const double FLOPS_FP8 = 1979e12, FLOPS_BF16 = 989e12, FLOPS_F32 = 67e12, BYTES = 3.0e12;

/* --- what the compiler says --- */

/* Kernels that differ in template arguments only: the most of each figure. */
struct family {
    int instances;
    struct device_kernel most;
};

static void larger(int *most, int other)
{
    *most = other > *most ? other : *most;
}

static void join(struct family *family, const struct device_kernel *kernel)
{
    struct device_kernel *most = &family->most;
    struct device_sass *sass = &most->sass;
    if (family->instances++ == 0) {
        *most = *kernel;
    }
    larger(&most->registers, kernel->registers);
    larger(&most->shared_bytes, kernel->shared_bytes);
    larger(&most->spilled, kernel->spilled);
    larger(&most->stack_bytes, kernel->stack_bytes);
    larger(&sass->all, kernel->sass.all);
    larger(&sass->qgmma, kernel->sass.qgmma);
    larger(&sass->hgmma, kernel->sass.hgmma);
    larger(&sass->hmma, kernel->sass.hmma);
    larger(&sass->tma, kernel->sass.tma);
    larger(&sass->ffma, kernel->sass.ffma);
    larger(&sass->load, kernel->sass.load);
    larger(&sass->store, kernel->sass.store);
    larger(&sass->local, kernel->sass.local);
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

/* The i-th CUDA kernel of `kernel` in this precision, or NULL. */
static const char *cuda_name(const struct bench *b, const struct kernel *kernel, int i)
{
    const char *name = i < BENCH_CUDA ? kernel->cuda[i] : NULL;
    return name != NULL && b->act == DTYPE_F32 && strcmp(name, BENCH_PRODUCTS) == 0
               ? "gemm_f32_kernel"
               : name;
}

static int tensor_cores(const struct device_sass *sass)
{
    return sass->qgmma + sass->hgmma + sass->hmma;
}

/* --- what an H100 would take --- */

struct fact {
    double flops, bytes, seconds;
    bool modelled; /* by the model of FP8's tiles; else the larger of the two bounds */
    int products;
    struct device_fp8_product product[BENCH_FP8_PRODUCTS];
};

static struct fact fact_of(const struct bench *b, const struct kernel *kernel)
{
    struct fact f = {.flops = kernel->flops != NULL ? kernel->flops(b) : 0,
                     .bytes = kernel->bytes(b)};
    const double rate = kernel->products != NULL ? FLOPS_FP8
                        : b->act == DTYPE_F32    ? FLOPS_F32
                                                 : FLOPS_BF16;
    f.products = kernel->products != NULL ? kernel->products(b, f.product) : 0;
    for (int i = 0; i < f.products; i++) {
        f.seconds += f.product[i].seconds;
    }
    f.modelled = f.products > 0 && isfinite(f.seconds);
    if (!f.modelled) {
        f.seconds = fmax(f.flops / rate, f.bytes / BYTES);
    }
    return f;
}

static bool same_tile(const struct device_fp8_product *a, const struct device_fp8_product *b)
{
    return a->rows == b->rows && a->cols == b->cols && a->cluster == b->cluster;
}

static void print_tiles(const struct fact *f)
{
    for (int i = 0; f->modelled && i < f->products; i++) {
        const struct device_fp8_product *p = &f->product[i];
        if (i == 0 || !same_tile(p, p - 1)) {
            printf("    tiles of %d x %d%s, %d stages, %d bytes of shared memory\n", p->rows,
                   p->cols, p->cluster > 1 ? " in pairs" : "", p->stages, p->shared_bytes);
        }
    }
}

static void print_cuda(const char *name)
{
    const struct family f = family_of(name);
    if (f.instances == 0) {
        return;
    }
    printf("    %s%s%s: %d registers, %d bytes spilled", name,
           strchr(name, '<') != NULL ? "...>" : "",
           f.instances > 1 ? ", the most of all variants" : "", f.most.registers, f.most.spilled);
    if (f.most.sass.all >= 0) {
        printf(", %d instructions, %d of tensor cores, %d of TMA", f.most.sass.all,
               tensor_cores(&f.most.sass), f.most.sass.tma);
    }
    printf("\n");
}

static void print_fact(const struct bench *b, const struct kernel *kernel)
{
    const struct fact f = fact_of(b, kernel);
    const char *by = f.modelled                                   ? "model"
                     : f.flops > 0 && f.seconds > f.bytes / BYTES ? "bound: products"
                                                                  : "bound: memory";
    printf("%-26s %10.2f us %10.3f GFLOP %10.3f MB  %s\n", kernel->name, 1e6 * f.seconds,
           f.flops / 1e9, f.bytes / 1e6, by);
    print_tiles(&f);
    for (int i = 0; i < BENCH_CUDA && cuda_name(b, kernel, i) != NULL; i++) {
        print_cuda(cuda_name(b, kernel, i));
    }
}

/* --- text --- */

/* How long a name is without its template arguments. */
static size_t stem(const char *name)
{
    return strcspn(name, "<");
}

static void print_family(const char *name, size_t length, const struct family *f)
{
    const struct device_kernel *most = &f->most;
    printf("%-36.*s %8d %9d %6d %7d %5d", (int)length, name, f->instances, most->registers,
           most->shared_bytes, most->spilled, most->stack_bytes);
    if (most->sass.all >= 0) {
        printf(" %12d %5d %5d %4d %3d %5d %5d %5d %5d", most->sass.all, most->sass.qgmma,
               most->sass.hgmma, most->sass.hmma, most->sass.tma, most->sass.ffma, most->sass.load,
               most->sass.store, most->sass.local);
    }
    printf("\n");
}

static void print_families(const struct device_kernel *list, int count)
{
    printf("CUDA kernels in this binary, as compiled for sm_90a, the most of each kind: registers "
           "of a thread at launch,\nbytes of static shared memory, spilled, of stack; instructions "
           "in the SASS%s\n%-36s %8s %9s %6s %7s %5s",
           list[0].sass.all < 0 ? ": not counted, there was no cuobjdump when it was built" : "",
           "kernel", "variants", "registers", "shared", "spilled", "stack");
    if (list[0].sass.all >= 0) {
        printf(" %12s %5s %5s %4s %3s %5s %5s %5s %5s", "instructions", "QGMMA", "HGMMA", "HMMA",
               "TMA", "FFMA", "LDG", "STG", "local");
    }
    printf("\n");
    for (int i = 0, next; i < count; i = next) {
        const size_t length = stem(list[i].name);
        struct family f = {0};
        for (next = i; next < count && stem(list[next].name) == length &&
                       strncmp(list[next].name, list[i].name, length) == 0;
             next++) {
            join(&f, &list[next]);
        }
        print_family(list[i].name, length, &f);
    }
}

/* --- JSON --- */

static void json_fact(const struct bench *b, const struct kernel *kernel, bool first)
{
    const struct fact f = fact_of(b, kernel);
    printf("%s\"%s\":", first ? "" : ",", kernel->name);
    json_out_number(stdout, "{\"predicted_ms\":", 1e3 * f.seconds, 6);
    json_out_number(stdout, ",\"flop\":", f.flops, 15);
    json_out_number(stdout, ",\"bytes\":", f.bytes, 15);
    printf(",\"modelled\":%s,\"tiles\":[", f.modelled ? "true" : "false");
    for (int i = 0; f.modelled && i < f.products; i++) {
        const struct device_fp8_product *p = &f.product[i];
        printf("%s{\"rows\":%d,\"cols\":%d,\"stages\":%d,\"cluster\":%d,\"shared_bytes\":%d}",
               i > 0 ? "," : "", p->rows, p->cols, p->stages, p->cluster, p->shared_bytes);
    }
    printf("],\"cuda\":[");
    for (int i = 0; cuda_name(b, kernel, i) != NULL; i++) {
        json_out_text(stdout, i > 0 ? "," : "", cuda_name(b, kernel, i));
    }
    printf("]}");
}

static void json_kernel(const struct device_kernel *k, bool first)
{
    const struct device_sass *s = &k->sass;
    json_out_text(stdout, first ? "{\"name\":" : ",{\"name\":", k->name);
    printf(",\"registers\":%d,\"shared_bytes\":%d,\"spilled_bytes\":%d,\"stack_bytes\":%d",
           k->registers, k->shared_bytes, k->spilled, k->stack_bytes);
    if (s->all >= 0) {
        printf(",\"sass\":{\"all\":%d,\"qgmma\":%d,\"hgmma\":%d,\"hmma\":%d,\"tma\":%d,\"ffma\":%d,"
               "\"load\":%d,\"store\":%d,\"local\":%d}",
               s->all, s->qgmma, s->hgmma, s->hmma, s->tma, s->ffma, s->load, s->store, s->local);
    } else {
        printf(",\"sass\":null");
    }
    printf("}");
}

/* --- all --- */

static void each_fact(const struct bench *b, bool json)
{
    int layer, fp8;
    const struct kernel *first = bench_layer_kernels(&layer), *second = bench_fp8_kernels(&fp8);
    for (int i = 0; i < layer + (b->fp8.there ? fp8 : 0); i++) {
        const struct kernel *kernel = i < layer ? &first[i] : &second[i - layer];
        if (json) {
            json_fact(b, kernel, i == 0);
        } else {
            print_fact(b, kernel);
        }
    }
}

void bench_facts_print(const struct bench *bench, bool json)
{
    const struct device_kernel *compiled;
    const int count = device_kernels(&compiled);
    if (json) {
        printf("\"h100\":{");
    } else {
        printf(
            "on an H100, these shapes: predicted, not measured (bounds: %.0f TFLOP/s, %.1f TB/s; "
            "FP8's products: by tiles)\n",
            (bench->act == DTYPE_F32 ? FLOPS_F32 : FLOPS_BF16) / 1e12, BYTES / 1e12);
    }
    each_fact(bench, json);
    if (json) {
        printf("},\"cuda_kernels\":[");
        for (int i = 0; i < count; i++) {
            json_kernel(&compiled[i], i == 0);
        }
        printf("]");
    } else if (count > 0) {
        print_families(compiled, count);
    } else {
        printf("no CUDA kernels in this binary: all times are bounds, of registers and "
               "instructions nothing is known\n");
    }
}
