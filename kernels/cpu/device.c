#define _GNU_SOURCE
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/base/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm_onednn.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/tile.h"

static const struct ops cpu_ops = {
    .name = "cpu",
    .memory_alloc = cpu_memory_alloc,
    .memory_free = cpu_memory_free,
    .zero = cpu_zero,
    .fill = cpu_fill,
    .copy = cpu_copy,
    .upload = cpu_copy,
    .download = cpu_copy,
    .host_alloc = cpu_memory_alloc,
    .host_free = cpu_memory_free,
    .download_begin = cpu_copy,
    .download_wait = cpu_synchronize,
    .fetch = cpu_fetch,
    .fetched = cpu_fetched,
    .put = cpu_put,
    .window_settle = cpu_synchronize,
    .synchronize = cpu_synchronize,
    .graph_begin = cpu_graph_begin,
    .graph_end = cpu_graph_end,
    .graph_forget = cpu_graph_forget,
    .embedding_forward = cpu_embedding_forward,
    .embedding_backward = cpu_embedding_backward,
    .norm_forward = cpu_norm_forward,
    .norm_backward = cpu_norm_backward,
    .linear_forward = cpu_linear_forward,
    .linear_backward_input = cpu_linear_backward_input,
    .linear_backward_weight = cpu_linear_backward_weight,
    .rope = cpu_rope,
    .attention_forward = cpu_attention_forward,
    .attention_backward = cpu_attention_backward,
    .attention_decode = cpu_attention_decode,
    .mla_decode = cpu_mla_decode,
    .router_logits = cpu_router_logits,
    .router_logits_backward = cpu_router_logits_backward,
    .router_forward = cpu_router_forward,
    .router_backward = cpu_router_backward,
    .router_sums = cpu_router_sums,
    .router_count = cpu_router_count,
    .router_even = cpu_router_even,
    .balance = cpu_balance,
    .expert_sort = cpu_expert_sort,
    .expert_regroup = cpu_expert_regroup,
    .expert_unique = cpu_expert_unique,
    .expert_fan_out = cpu_expert_fan_out,
    .expert_relay = cpu_expert_relay,
    .expert_pad = cpu_expert_pad,
    .expert_unpad = cpu_expert_unpad,
    .expert_drop = cpu_expert_drop,
    .expert_spread = cpu_expert_spread,
    .expert_fold = cpu_expert_fold,
    .gather_rows = cpu_gather_rows,
    .scatter_rows = cpu_scatter_rows,
    .combine_rows = cpu_combine_rows,
    .combine_rows_backward = cpu_combine_rows_backward,
    .grouped_forward = cpu_grouped_forward,
    .grouped_backward_input = cpu_grouped_backward_input,
    .grouped_backward_weight = cpu_grouped_backward_weight,
    .grouped_first_weight = cpu_grouped_first_weight,
    .swiglu_forward = cpu_swiglu_forward,
    .swiglu_backward = cpu_swiglu_backward,
    .cross_entropy = cpu_cross_entropy,
    .loss_stats = cpu_loss_stats,
    .loss_gradient = cpu_loss_gradient,
    .jitter = cpu_jitter,
    .init_normal = cpu_init_normal,
    .add = cpu_add,
    .copy_columns = cpu_copy_columns,
    .cast = cpu_cast,
    .sum_squares = cpu_sum_squares,
    .adamw = cpu_adamw,
    .muon_momentum = cpu_muon_momentum,
    .muon_orthogonalize = cpu_muon_orthogonalize,
    .muon_update = cpu_muon_update,
    .ema = cpu_ema,
    .fp8 = &cpu_fp8_ops,
    .fixed = &cpu_fixed_ops,
};

/* Whether rows of products by oneDNN are the same bits whatever the number of rows, on a few shapes
 * with both layouts of the weights, and sums that threads might share. native: it has kernels for
 * this dtype at all. */
static bool rows_invariant(struct cpu_device *device, enum dtype dtype, bool *native)
{
    enum { K = 4096, N = 96, MOST = 97 };
    static const int64_t rows[] = {MOST, 1, 2, 3, 7, 32, 33, 64};
    const size_t width = dtype_bytes(dtype);
    char *x = calloc((size_t)MOST * K + (size_t)N * K, width), *w = x + (size_t)MOST * K * width;
    float *y = calloc((size_t)2 * MOST * N, sizeof *y), *whole = y + MOST * N;
    bool same = x != NULL && y != NULL;
    for (int64_t i = 0; same && i < (MOST + N) * K; i++) {
        const float value = (float)(i * 40503 % 65537) / 32768 - 1; /* fast: every start waits */
        row_store(x, dtype, i, &value, 1);
    }
    *native = same;
    for (int layout = 0; layout < 2 && same && *native; layout++) {
        for (size_t i = 0; i < sizeof rows / sizeof rows[0] && same && *native; i++) {
            const struct gemm gemm = {.m = rows[i],
                                      .n = N,
                                      .k = K,
                                      .a = x,
                                      .b = w,
                                      .c = i == 0 ? whole : y,
                                      .a_row = K,
                                      .a_col = 1,
                                      .b_row = layout == 0 ? 1 : N,
                                      .b_col = layout == 0 ? K : 1,
                                      .c_row = N,
                                      .a_dtype = dtype,
                                      .b_dtype = dtype,
                                      .c_dtype = DTYPE_F32};
            *native = onednn_gemm(device->onednn, &gemm, device->head.threads);
            same = i == 0 || memcmp(whole, y, (size_t)rows[i] * N * sizeof *y) == 0;
        }
    }
    free(x);
    free(y);
    return same;
}

/* Sums over so many of k: as a gradient of weights, or forward. */
enum { SUMS_M = 96, SUMS_N = 64, SUMS_K = 4096 };
static struct gemm sums_of(char *a, char *b, float *c, enum dtype dtype, int64_t k, bool gradient)
{
    return gradient ? gemm_weight(c, tensor_2d(a, dtype, k, SUMS_M), tensor_2d(b, dtype, k, SUMS_N))
                    : gemm_forward(tensor_2d(c, DTYPE_F32, SUMS_M, SUMS_N),
                                   tensor_2d(a, dtype, SUMS_M, k), tensor_2d(b, dtype, SUMS_N, k));
}

/* Whether sums are the same bits with any number of threads: nothing but k may decide how they are
 * made, few columns and long sums neither. */
static bool threads_invariant(struct cpu_device *device, enum dtype dtype)
{
    enum { A = SUMS_M * SUMS_K, B = SUMS_N * SUMS_K, C = SUMS_M * SUMS_N };
    static const int64_t length[] = {1, 37, 333, SUMS_K};
    enum { LENGTHS = sizeof length / sizeof length[0] };
    const int threads[] = {1, 2, device->head.threads};
    const size_t width = dtype_bytes(dtype);
    char *a = calloc(A + B, width);
    float *first = calloc((size_t)2 * C, sizeof *first);
    bool same = a != NULL && first != NULL;
    for (int64_t i = 0; same && i < A + B; i++) {
        const float value = (float)rng_normal(2, (uint64_t)i);
        row_store(a, dtype, i, &value, 1);
    }
    for (int i = 0; i < 2 * 3 * LENGTHS && same; i++) {
        float *const again = first + C;
        const struct gemm gemm = sums_of(a, a + A * width, i % 3 == 0 ? first : again, dtype,
                                         length[i / 3 % LENGTHS], i / 3 < LENGTHS);
        memset(gemm.c, 0, C * sizeof *first);
        const bool native = onednn_gemm(device->onednn, &gemm, threads[i % 3]);
        same = !native || i % 3 == 0 || memcmp(first, again, C * sizeof *first) == 0;
    }
    free(a);
    free(first);
    return same;
}

static const char *loops(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("x86-64-v4")   ? "x86-64-v4"
           : __builtin_cpu_supports("x86-64-v3") ? "x86-64-v3"
                                                 : "x86-64";
#else
    return "baseline";
#endif
}

/* Products by our own kernel for AVX-512, where it is faster than oneDNN's. */
static enum cpu_wide wide_products(const struct cpu_device *device)
{
    return device->onednn != NULL && onednn_has_amx() ? CPU_WIDE_OFF
           : device->attention == ATTENTION_PAIRS     ? CPU_WIDE_PAIRS
           : device->vectors                          ? CPU_WIDE_WIDENED
                                                      : CPU_WIDE_OFF;
}

/* oneDNN where it keeps what gemm.h promises. */
static void open_onednn(struct cpu_device *device, bool layout)
{
    bool f32 = false, bf16 = false;
    char version[32];
    struct device_info *info = &device->head.info;
    onednn_version(version, sizeof version);
    device->onednn = onednn_open();
    info->batch_invariant = true; /* our own kernel always is */
    if (device->onednn == NULL || !rows_invariant(device, DTYPE_F32, &f32) ||
        !rows_invariant(device, DTYPE_BF16, &bf16) || !f32 ||
        (layout && !(threads_invariant(device, DTYPE_F32) &&
                     (!bf16 || threads_invariant(device, DTYPE_BF16))))) {
        onednn_close(device->onednn);
        device->onednn = NULL;
    }
    device->vectors = tile_has_wide() && onednn_allows(false);
    device->attention = tile_pairs_pay() && onednn_allows(true) ? ATTENTION_PAIRS
                        : device->vectors                       ? ATTENTION_WIDE
                                                                : ATTENTION_NARROW;
    device->wide = wide_products(device);
    device_fact(info, "onednn", "%s", version);
    device_fact(info, "isa", "%s", onednn_isa());
    static const char *const kernels[] = {
        [CPU_WIDE_OFF] = "oneDNN brgemm",
        [CPU_WIDE_PAIRS] = "own, AVX-512 with bf16; dense layers in f32 but for gradients of "
                           "weights: oneDNN brgemm",
        [CPU_WIDE_WIDENED] = "own, AVX-512; dense layers in f32 but for gradients of weights: "
                             "oneDNN brgemm",
    };
    device_fact(info, "gemm", "%s", device->onednn != NULL ? kernels[device->wide] : "own");
    device_fact(info, "bf16_gemm", "%s",
                device->wide == CPU_WIDE_PAIRS ||
                        (device->wide == CPU_WIDE_OFF && device->onednn != NULL && bf16)
                    ? "native"
                    : "float32");
    device_fact(info, "loops", "%s", loops());
}

static void pin_threads(int threads, const int *cores)
{
#pragma omp parallel num_threads(threads)
    {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)cores[omp_get_thread_num()], &set);
        (void)sched_setaffinity(0, sizeof set, &set); /* refused: slower, never wrong */
    }
}

size_t cpu_scratch_bytes(size_t bytes)
{
    size_t room = 4096;
    while (room < bytes && room <= SIZE_MAX / 2) {
        room *= 2;
    }
    return room < bytes ? bytes : room;
}

void *cpu_scratch(struct device *device, enum cpu_slot slot, size_t bytes)
{
    struct cpu_device *self = cpu_device_of(device);
    if (self->scratch[slot].bytes < bytes) {
        const size_t rounded = cpu_scratch_bytes(bytes);
        free(self->scratch[slot].data);
        self->scratch[slot].data = aligned_alloc(64, rounded);
        self->scratch[slot].bytes = rounded;
        if (self->scratch[slot].data == NULL) {
            fprintf(stderr,
                    "switchyard: out of memory for %zu bytes of scratch: use a smaller "
                    "train.micro_batch\n",
                    bytes);
            exit(status_exit_code(STATUS_RESOURCE));
        }
    }
    return self->scratch[slot].data;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double cpu_peak_flops(struct device *device, enum dtype dtype)
{
    enum { M = 1024, N = 1792, K = 512, MOST = 12, FEWEST = 3 };
    const double long_enough = 0.05; /* every start of a run waits for this */
    void *buffer = calloc((size_t)M * N + (size_t)M * K + (size_t)N * K, dtype_bytes(dtype));
    double best = 0;
    if (buffer == NULL) {
        return 0;
    }
    char *x = buffer, *w = x + (size_t)M * K * dtype_bytes(dtype),
         *y = w + (size_t)N * K * dtype_bytes(dtype);
    const double begin = seconds();
    for (int i = 0; i < MOST && (i < FEWEST || seconds() - begin < long_enough); i++) {
        const double start = seconds();
        cpu_linear_forward(device, tensor_2d(y, dtype, M, N), tensor_2d(x, dtype, M, K),
                           tensor_2d(w, dtype, N, K), false);
        const double rate = 2.0 * M * N * K / (seconds() - start);
        best = rate > best ? rate : best;
    }
    free(buffer);
    return best;
}

static void cpu_device_close(struct device *device)
{
    struct cpu_device *self = cpu_device_of(device);
    for (int i = 0; i < CPU_SLOTS; i++) {
        free(self->scratch[i].data);
    }
    onednn_close(self->onednn);
    free(self);
}

enum status cpu_device_open(struct device **device, const struct device_options *options)
{
    struct cpu_device *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    self->head = (struct device){
        .ops = &cpu_ops,
        .info = {.name = "cpu", .threads = options->threads},
        .threads = options->threads,
        .peak_flops = cpu_peak_flops,
        .ceilings = cpu_ceilings,
        .close = cpu_device_close,
    };
    host_cpu_name(self->head.info.cpu, sizeof self->head.info.cpu);
    if (options->cores != NULL) {
        pin_threads(options->threads, options->cores);
    }
    open_onednn(self, options->layout);
    *device = &self->head;
    return STATUS_OK;
}
