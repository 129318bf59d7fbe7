/* cudnn_graph, cudnn_plan: every kind of attention graph down to a finished execution plan for an
 * H100, on a machine that has none (fake_driver.c), and its memory against what scratch says. That
 * cuDNN accepts a graph is tested here; that its kernels compute what we want takes a GPU.
 * Arguments: the properties of the device (JSON). SWITCHYARD_FULL=1: all cases. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cudnn_plan.h"

static const int32_t some_first;
static int wrong;

#define WRONG(...) (printf("  WRONG: " __VA_ARGS__), printf("\n"), wrong++)

enum { MIB = 1 << 20 };

struct test_case {
    const char *name;
    int64_t batch, heads, kv_heads, sequence, qk_dim, v_dim, rope_dim, window;
    bool document, deterministic;
    int64_t samples, slice_heads; /* expected of a backward's slice */
    bool always;                  /* not only with SWITCHYARD_FULL */
};

static const struct test_case cases[] = {
    {"Mixtral", 1, 32, 8, 4096, 128, 128, 0, 0, false, false, 1, 8, true},
    {"Mixtral, window", 2, 32, 8, 4096, 128, 128, 0, 1024, false, false, 2, 8, false},
    {"Mixtral, documents", 2, 32, 8, 4096, 128, 128, 0, 0, true, false, 2, 8, false},
    {"Mixtral, both", 1, 32, 8, 4096, 128, 128, 0, 1024, true, true, 1, 4, true},
    {"Mixtral, 8 samples", 8, 32, 8, 4096, 128, 128, 0, 0, false, false, 8, 8, false},
    {"Mixtral, deterministic", 4, 32, 8, 2048, 128, 128, 0, 0, false, true, 2, 8, false},
    {"Mixtral, 65536", 1, 32, 8, 65536, 128, 128, 0, 4096, false, false, 1, 4, false},
    {"V2-Lite", 2, 16, 16, 4096, 192, 128, 64, 0, false, false, 2, 16, false},
    {"V2-Lite, deterministic", 2, 16, 16, 4096, 192, 128, 64, 0, false, true, 2, 16, false},
    {"V3", 1, 128, 128, 4096, 192, 128, 64, 0, false, false, 1, 128, true},
    {"V3, documents", 1, 128, 128, 4096, 192, 128, 64, 0, true, false, 1, 128, true},
    {"V3, deterministic", 1, 128, 128, 4096, 192, 128, 64, 0, false, true, 1, 32, true},
    {"V3, all", 1, 128, 128, 4096, 192, 128, 64, 512, true, true, 1, 32, false},
    {"V3, 4 samples", 4, 128, 128, 4096, 192, 128, 64, 0, false, false, 2, 128, false},
    {"multi-query", 1, 32, 1, 1024, 128, 128, 0, 0, true, false, 1, 1, false},
    {"heads of 64", 2, 12, 12, 1024, 64, 64, 0, 0, true, false, 2, 12, false},
    {"heads of 256", 1, 16, 16, 1024, 256, 256, 0, 0, true, true, 1, 16, false},
    {"heads of 80", 1, 16, 4, 1152, 80, 80, 0, 0, false, false, 1, 4, false},
    {"heads of 40 and 24", 3, 6, 2, 384, 40, 24, 0, 100, true, true, 3, 2, false},
};

/* As the models hold them: q rows of their own, k and v of MLA in one row, else of all three. */
static struct attention_shape shape_of(const struct test_case *c)
{
    const int64_t own = c->qk_dim - c->rope_dim, pair = own + c->v_dim;
    const int64_t fused = c->heads * c->qk_dim + c->kv_heads * (c->qk_dim + c->v_dim);
    const bool latent = c->rope_dim > 0;
    return (struct attention_shape){
        .batch = c->batch,
        .sequence = c->sequence,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .qk_dim = c->qk_dim,
        .v_dim = c->v_dim,
        .q_stride = latent ? c->heads * c->qk_dim : fused,
        .k_stride = latent ? c->heads * pair : fused,
        .v_stride = latent ? c->heads * pair : fused,
        .o_stride = c->heads * c->v_dim,
        .k_head_stride = latent ? pair : c->qk_dim,
        .v_head_stride = latent ? pair : c->v_dim,
        .rope_dim = c->rope_dim,
        .k_rope_stride = latent ? 512 + c->rope_dim : 0,
        .window = c->window,
        .scale = 0.1F,
        .first = c->document ? &some_first : NULL,
        .dtype = DTYPE_BF16,
    };
}

static size_t rounded(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* The buffers of a run, counted anew. */
static void check_scratch(const struct test_case *c, const struct cudnn_entry *entry, size_t limit)
{
    const size_t rows =
        (size_t)(entry->samples * entry->kv_heads * (c->heads / c->kv_heads)) * (size_t)c->sequence;
    const size_t keys = (size_t)(c->batch * c->sequence * c->kv_heads * c->qk_dim) * 2;
    const size_t square = rows * (size_t)c->sequence * 2;
    const size_t split = c->heads != c->kv_heads ? rows * (size_t)(c->qk_dim + c->v_dim) * 2 : 0;
    const size_t workspace = (size_t)entry->plan.workspace_bytes;
    size_t want = rounded(workspace) + (c->rope_dim > 0 ? rounded(keys) : 0), most = 0;
    if (entry->backward) {
        const size_t accumulator = c->deterministic ? 0 : rows * (size_t)c->qk_dim * 4;
        want += rounded(rows * 4) + rounded(accumulator) + (c->rope_dim > 0 ? rounded(keys) : 0);
        most = (c->deterministic ? square : 0) + split;
        if (most + accumulator > limit) {
            WRONG("%zu bytes of a slice, the limit is %zu", most + accumulator, limit);
        }
    }
    want = want > 0 ? want : 256;
    if (entry->scratch.bytes != want) {
        WRONG("scratch of %zu bytes, by count %zu", entry->scratch.bytes, want);
    }
    if (workspace > most + MIB) {
        WRONG("a workspace of %zu bytes where at most %zu are expected", workspace, most);
    }
}

static void check_case(struct cudnn_plans *plans, const struct test_case *c, bool backward)
{
    const struct attention_shape shape = shape_of(c);
    const struct cudnn_entry *entry = cudnn_plans_find(plans, &shape, backward);
    if (entry == NULL) {
        const struct cudnn_entry *last = plans->entries[plans->count - 1];
        WRONG("%s, %s: refused at %s: %s", c->name, backward ? "backward" : "forward",
              last->plan.failed, plans->target.api->error(last->plan.status));
        return;
    }
    const int64_t runs = c->batch / entry->samples * (c->kv_heads / entry->kv_heads);
    printf("%-24s %-8s %2lld run%s of %2lld x %3lld heads, workspace %11lld, scratch %11zu\n",
           c->name, backward ? "backward" : "forward", (long long)runs, runs == 1 ? " " : "s",
           (long long)entry->samples, (long long)entry->slice.shape.heads,
           (long long)entry->plan.workspace_bytes, entry->scratch.bytes);
    const int64_t samples = backward ? c->samples : c->batch;
    const int64_t heads = backward ? c->slice_heads : c->kv_heads;
    if (entry->samples != samples || entry->kv_heads != heads) {
        WRONG("slices of %lld samples and %lld kv heads, expected %lld and %lld",
              (long long)entry->samples, (long long)entry->kv_heads, (long long)samples,
              (long long)heads);
    }
    check_scratch(c, entry, plans->limit);
}

/* One entry a shape: the scale and the address of `first` are not part of it. */
static void check_kept(struct cudnn_plans *plans, const struct test_case *c)
{
    static const int32_t other_first;
    struct attention_shape shape = shape_of(c);
    const struct cudnn_entry *entry = cudnn_plans_find(plans, &shape, false);
    const int64_t count = plans->count;
    shape.scale = 2;
    shape.first = shape.first != NULL ? &other_first : NULL;
    if (cudnn_plans_find(plans, &shape, false) != entry || plans->count != count) {
        WRONG("%s: built twice", c->name);
    }
}

/* Refused without or with a question to cuDNN; never a crash. */
static void check_refused(struct cudnn_plans *plans)
{
    const struct test_case plain = cases[0];
    struct attention_shape shapes[8];
    const char *why[8] = {"f32",         "T = 4032",    "T = 0",    "dims of 100",
                          "dims of 264", "odd strides", "odd rope", "no slice within the limit"};
    for (int i = 0; i < 8; i++) {
        shapes[i] = shape_of(&plain);
    }
    shapes[0].dtype = DTYPE_F32;
    shapes[1].sequence = 4032;
    shapes[2].sequence = 0;
    shapes[3].qk_dim = shapes[3].v_dim = 100;
    shapes[4].v_dim = 264;
    shapes[5].k_head_stride = 132;
    shapes[6].rope_dim = 4;
    shapes[7].sequence = 131072;
    for (int i = 0; i < 8; i++) {
        if (cudnn_plans_find(plans, &shapes[i], true) != NULL) {
            WRONG("%s: not refused", why[i]);
        }
    }
}

static void run(const struct cudnn_target *target, bool deterministic, bool full)
{
    struct cudnn_plans plans = {
        .target = *target, .deterministic = deterministic, .limit = (size_t)1024 * MIB};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].deterministic == deterministic && (full || cases[i].always)) {
            check_case(&plans, &cases[i], false);
            check_case(&plans, &cases[i], true);
            check_kept(&plans, &cases[i]);
            fflush(stdout);
        }
    }
    if (deterministic) {
        check_refused(&plans);
    }
    cudnn_plans_free(&plans);
}

static cudnnBackendDescriptor_t read_properties(const struct cudnn_api *api, const char *path)
{
    char json[4096];
    cudnnBackendDescriptor_t properties = NULL;
    FILE *file = fopen(path, "r");
    const size_t bytes = file != NULL ? fread(json, 1, sizeof json, file) : 0;
    if (file != NULL) {
        fclose(file);
    }
    if (bytes == 0 ||
        api->create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &properties) != CUDNN_STATUS_SUCCESS ||
        api->set(properties, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                 (int64_t)bytes, json) != CUDNN_STATUS_SUCCESS ||
        api->finalize(properties) != CUDNN_STATUS_SUCCESS) {
        printf("cuDNN does not take the properties of %s\n", path);
        exit(1);
    }
    return properties;
}

int main(int argc, char **argv)
{
    const char *const wanted = getenv("SWITCHYARD_FULL");
    const bool full = wanted != NULL && strcmp(wanted, "1") == 0;
    struct cudnn_api api;
    if (argc != 2) {
        printf("usage: %s PROPERTIES.json\n", argv[0]);
        return 64;
    }
    if (cudnn_api_open(&api) != STATUS_OK) {
        printf("skipped: %s\n", status_message());
        return 77;
    }
    printf("cuDNN %zu\n", api.version());
    struct cudnn_target target = {.api = &api, .properties = read_properties(&api, argv[1])};
    run(&target, false, full);
    run(&target, true, full);
    api.destroy(target.properties);
    cudnn_api_close(&api);
    return wrong > 0 ? 1 : 0;
}
