/* attention_cudnn against the CPU device: its graphs evaluated by cudnn_model.c, with the pointers,
 * strides, scalars and slices that a run binds. What the graphs mean is tested here, not what
 * cuDNN's kernels compute. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "kernels/base/rng.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/device.h"
#include "tests/cudnn/cudnn_model.h"

static int wrong;

/* ---- what attention_cudnn.c asks of CUDA ---- */

cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    memset(at, value, bytes);
    return cudaSuccess;
}

void cuda_attention_join_keys(void *stream, void *keys, const void *k, const void *k_rope,
                              const struct attention_shape *s)
{
    const int64_t own = s->qk_dim - s->rope_dim;
    uint16_t *to = keys;
    (void)stream;
    for (int64_t n = 0; n < s->batch * s->sequence; n++) {
        for (int64_t h = 0; h < s->kv_heads; h++, to += s->qk_dim) {
            memcpy(to, (const uint16_t *)k + n * s->k_stride + h * s->k_head_stride,
                   (size_t)own * 2);
            memcpy(to + own, (const uint16_t *)k_rope + n * s->k_rope_stride,
                   (size_t)s->rope_dim * 2);
        }
    }
}

void cuda_attention_split_keys(void *stream, void *dk, void *dk_rope, const void *dkeys,
                               const struct attention_shape *s)
{
    const int64_t own = s->qk_dim - s->rope_dim;
    (void)stream;
    for (int64_t n = 0; n < s->batch * s->sequence; n++) {
        const uint16_t *from = (const uint16_t *)dkeys + n * s->kv_heads * s->qk_dim;
        for (int64_t h = 0; h < s->kv_heads; h++) {
            memcpy((uint16_t *)dk + n * s->k_stride + h * s->k_head_stride, from + h * s->qk_dim,
                   (size_t)own * 2);
        }
        for (int64_t d = 0; d < s->rope_dim; d++) {
            float sum = 0;
            for (int64_t h = 0; h < s->kv_heads; h++) {
                sum += bf16_to_float(from[h * s->qk_dim + own + d]);
            }
            ((uint16_t *)dk_rope)[n * s->k_rope_stride + d] = bf16_from_float(sum);
        }
    }
}

/* ---- one case ---- */

struct test_case {
    int64_t batch, heads, kv_heads, sequence, qk_dim, v_dim, rope_dim, window;
    int64_t gap; /* elements between rows, and between heads of keys and values */
    bool document, deterministic;
    int64_t samples, slice_heads; /* of one run of the backward, forced by the limit */
};

static const struct test_case cases[] = {
    {1, 2, 2, 128, 16, 8, 0, 0, 0, false, false, 1, 2},
    {2, 2, 2, 128, 8, 16, 0, 0, 8, true, true, 2, 2},
    {3, 4, 2, 128, 16, 16, 0, 40, 8, true, false, 1, 2},
    {2, 4, 2, 256, 8, 8, 0, 100, 0, true, true, 1, 1},
    {4, 2, 1, 128, 8, 8, 0, 128, 0, false, false, 2, 1},
    {2, 4, 4, 128, 24, 8, 8, 0, 8, true, false, 1, 2},
    {2, 6, 6, 128, 24, 16, 16, 50, 0, false, true, 1, 3},
    {2, 3, 3, 128, 16, 16, 8, 0, 16, false, true, 2, 3},
};

enum { Q, K, K_ROPE, V, D_O, O, LSE, DQ, DK, DK_ROPE, DV, ARRAYS };
static const char *const names[ARRAYS] = {"q",   "k",  "k_rope", "v",       "d_o", "o",
                                          "lse", "dq", "dk",     "dk_rope", "dv"};

/* Every operand, gaps and all; those from O on twice. */
struct arrays {
    size_t bytes[ARRAYS];
    void *cpu[ARRAYS], *cudnn[ARRAYS];
};

static struct attention_shape shape_of(const struct test_case *c, const int32_t *first)
{
    const int64_t own = c->qk_dim - c->rope_dim, gap = c->gap;
    return (struct attention_shape){
        .batch = c->batch,
        .sequence = c->sequence,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .qk_dim = c->qk_dim,
        .v_dim = c->v_dim,
        .q_stride = c->heads * c->qk_dim + gap,
        .k_stride = c->kv_heads * (own + gap) + 2 * gap,
        .v_stride = c->kv_heads * (c->v_dim + 2 * gap),
        .o_stride = c->heads * c->v_dim + 3 * gap,
        .k_head_stride = own + gap,
        .v_head_stride = c->v_dim + 2 * gap,
        .rope_dim = c->rope_dim,
        .k_rope_stride = c->rope_dim > 0 ? c->rope_dim + gap : 0,
        .window = c->window,
        .scale = 0.3F,
        .first = c->document ? first : NULL,
        .dtype = DTYPE_BF16,
    };
}

static void *block(size_t bytes)
{
    void *at = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (at == NULL) {
        exit(71);
    }
    memset(at, 0x11, bytes); /* a small number */
    return at;
}

static struct arrays make_arrays(const struct attention_shape *s)
{
    const int64_t n = s->batch * s->sequence;
    const int64_t elements[ARRAYS] = {
        [Q] = n * s->q_stride,           [K] = n * s->k_stride,
        [K_ROPE] = n * s->k_rope_stride, [V] = n * s->v_stride,
        [D_O] = n * s->o_stride,         [O] = n * s->o_stride,
        [LSE] = 2 * n * s->heads,        [DQ] = n * s->q_stride,
        [DK] = n * s->k_stride,          [DK_ROPE] = n * s->k_rope_stride,
        [DV] = n * s->v_stride};
    struct arrays a;
    for (int i = 0; i < ARRAYS; i++) {
        a.bytes[i] = (size_t)elements[i] * 2;
        a.cpu[i] = block(a.bytes[i]);
        a.cudnn[i] = i < O ? a.cpu[i] : block(a.bytes[i]);
        for (int64_t j = 0; i < O && j < elements[i]; j++) {
            ((uint16_t *)a.cpu[i])[j] =
                bf16_from_float((float)rng_normal(rng_key(3, names[i]), (uint64_t)j));
        }
    }
    return a;
}

static void free_arrays(struct arrays *a)
{
    for (int i = 0; i < ARRAYS; i++) {
        if (i >= O) {
            free(a->cudnn[i]);
        }
        free(a->cpu[i]);
    }
}

/* Documents of 37, 90, ... tokens, others in every sample. */
static void make_first(int32_t *first, int64_t batch, int64_t sequence)
{
    for (int64_t b = 0; b < batch; b++) {
        int64_t begin = 0, length = 37 + 11 * b;
        for (int64_t t = 0; t < sequence; t++) {
            if (t - begin == length) {
                begin = t;
                length = 90 - length / 2;
            }
            first[b * sequence + t] = (int32_t)begin;
        }
    }
}

/* The gaps too: both devices leave them as they were. Between the two stand five roundings to bf16:
 * of p or ds on either side (a CPU that multiplies bf16 rounds them too), of the gradients of heads
 * before their sum, of both stores; the mean square of each is at most (2^-7)^2 / 12 of a value's.
 * A mask that is off by one row or a head taken for another is off by whole terms. */
static void compare(const struct arrays *a, int i, const char *what)
{
    double error = 0, square = 0, most = 0;
    const size_t count = i == LSE ? a->bytes[i] / 4 : a->bytes[i] / 2;
    for (size_t j = 0; j < count; j++) {
        const double want = i == LSE ? (double)((const float *)a->cpu[i])[j]
                                     : (double)bf16_to_float(((const uint16_t *)a->cpu[i])[j]);
        const double have = i == LSE ? (double)((const float *)a->cudnn[i])[j]
                                     : (double)bf16_to_float(((const uint16_t *)a->cudnn[i])[j]);
        error += (have - want) * (have - want);
        square += want * want;
        most = fmax(most, isnan(have) ? INFINITY : fabs(have - want));
    }
    const double typical = count > 0 ? sqrt(square / (double)count) : 0;
    const double nmse = i == LSE ? 1e-12 : 5 * 0x1p-14 / 12;
    if (!(error <= nmse * square) || !(most <= (i == LSE ? 1e-5 : 0.05) * (1 + typical))) {
        printf("%s: WRONG %s, NMSE %.3g, largest error %.3g of %.3g\n", what, names[i],
               error / square, most, typical);
        wrong++;
    }
}

/* A limit that makes slices of the wanted size: what cudnn_plan.h counts. */
static size_t limit_of(const struct test_case *c)
{
    const size_t rows =
        (size_t)(c->samples * c->slice_heads * (c->heads / c->kv_heads) * c->sequence);
    const size_t split = c->heads != c->kv_heads ? (size_t)(c->qk_dim + c->v_dim) * 2 : 0;
    return rows * (split + (c->deterministic ? (size_t)c->sequence * 2 : (size_t)c->qk_dim * 4));
}

enum { GUARD = 4096 };

static void *make_scratch(size_t bytes)
{
    unsigned char *scratch = block(bytes + GUARD);
    memset(scratch, 0xFF, bytes); /* not a number */
    return scratch;
}

static void check_guard(const unsigned char *scratch, size_t bytes, const char *what)
{
    for (size_t i = bytes; i < bytes + GUARD; i++) {
        if (scratch[i] != 0x11) {
            printf("%s: WRONG, written past the scratch\n", what);
            wrong++;
            return;
        }
    }
}

static void check_refusals(struct cudnn_attention *attention, const struct attention_shape *shape,
                           const struct arrays *a, void *scratch)
{
    if (cudnn_attention_forward(attention, NULL, (char *)a->cudnn[O] + 8, a->cudnn[LSE], a->cpu[Q],
                                a->cpu[K], a->cpu[K_ROPE], a->cpu[V], shape, scratch)) {
        printf("WRONG: an output that is not aligned is taken\n");
        wrong++;
    }
    struct attention_shape other = *shape;
    other.batch = 7; /* not built yet */
    cudnn_model_engines = 0;
    const bool taken =
        cudnn_attention_supports(attention, &other, false) ||
        cudnn_attention_scratch(attention, &other, false) != 0 ||
        cudnn_attention_forward(attention, NULL, a->cudnn[O], a->cudnn[LSE], a->cpu[Q], a->cpu[K],
                                a->cpu[K_ROPE], a->cpu[V], &other, scratch);
    cudnn_model_engines = 1;
    if (taken) {
        printf("WRONG: a graph without an engine is taken\n");
        wrong++;
    }
}

static void check_case(struct device *cpu, const struct test_case *c)
{
    static int32_t first_rows[1024] __attribute__((aligned(16)));
    char what[120];
    snprintf(what, sizeof what, "B%d H%d/%d T%d D%d/%d rope %d window %d%s%s", (int)c->batch,
             (int)c->heads, (int)c->kv_heads, (int)c->sequence, (int)c->qk_dim, (int)c->v_dim,
             (int)c->rope_dim, (int)c->window, c->document ? " documents" : "",
             c->deterministic ? " deterministic" : "");
    make_first(first_rows, c->batch, c->sequence);
    const struct attention_shape shape = shape_of(c, first_rows);
    struct arrays a = make_arrays(&shape);
    void **x = a.cpu, **y = a.cudnn;
    const struct ops *ops = device_ops(cpu);
    const void *k_rope = c->rope_dim > 0 ? x[K_ROPE] : NULL;
    ops->attention_forward(cpu, x[O], x[LSE], x[Q], x[K], k_rope, x[V], &shape);
    ops->attention_backward(cpu, x[DQ], x[DK], c->rope_dim > 0 ? x[DK_ROPE] : NULL, x[DV], x[D_O],
                            x[O], x[LSE], x[Q], x[K], k_rope, x[V], &shape);

    struct cudnn_attention *attention = NULL;
    if (cudnn_attention_open(&attention, c->deterministic) != STATUS_OK) {
        printf("%s\n", status_message());
        exit(1);
    }
    cudnn_attention_limit(attention, limit_of(c));
    cudnn_model_runs = 0;
    const size_t forward = cudnn_attention_scratch(attention, &shape, false);
    const size_t backward = cudnn_attention_scratch(attention, &shape, true);
    unsigned char *scratch = make_scratch(forward), *scratch_back = make_scratch(backward);
    const bool done = cudnn_attention_forward(attention, NULL, y[O], y[LSE], x[Q], x[K], k_rope,
                                              x[V], &shape, scratch) &&
                      cudnn_attention_backward(
                          attention, NULL, y[DQ], y[DK], c->rope_dim > 0 ? y[DK_ROPE] : NULL, y[DV],
                          x[D_O], y[O], y[LSE], x[Q], x[K], k_rope, x[V], &shape, scratch_back);
    const int64_t slices = c->batch / c->samples * (c->kv_heads / c->slice_heads);
    if (!done || cudnn_model_runs != 1 + slices) {
        printf("%s: WRONG, %s, %lld runs\n", what, done ? "done" : "refused",
               (long long)cudnn_model_runs);
        wrong++;
    }
    for (int i = O; i < ARRAYS && done; i++) {
        compare(&a, i, what);
    }
    check_guard(scratch, forward, what);
    check_guard(scratch_back, backward, what);
    check_refusals(attention, &shape, &a, scratch);
    cudnn_attention_close(attention);
    free(scratch);
    free(scratch_back);
    free_arrays(&a);
}

int main(void)
{
    struct device *cpu = NULL;
    const struct device_options options = {.name = "cpu", .threads = 1};
    if (device_open(&cpu, &options) != STATUS_OK) {
        printf("%s\n", status_message());
        return 1;
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cudnn_model_workspace = i == 0 ? 0 : 1000; /* on some GPUs there is none */
        check_case(cpu, &cases[i]);
        if (cudnn_model_alive != 0) {
            printf("WRONG: %lld descriptors left\n", (long long)cudnn_model_alive);
            wrong++;
        }
    }
    device_close(cpu);
    return wrong > 0 ? 1 : 0;
}
