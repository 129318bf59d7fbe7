#include "trainer/commands/bench_kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/json_out.h"
#include "kernels/base/rng.h"
#include "trainer/commands/bench_case.h"
#include "trainer/commands/bench_facts.h"
#include "trainer/figures.h"
#include "trainer/step.h"

enum { MOST_RUNS = 25, LEAST_RUNS = 3, MOST_REPEATS = 100, FILL_PIECE = 1 << 20 };
static const double SECONDS = 0.3;        /* of runs of one kernel */
static const double LEAST_SECONDS = 1e-3; /* of what is timed at once */

struct tensor bench_hand_out(struct bench *bench, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct tensor t = tensor_2d(NULL, dtype, rows, cols);
    t.data = arena_alloc(&bench->arena, tensor_bytes(&t));
    return t;
}

static void layout_attention(struct bench *b)
{
    const struct attention_shape *s = &b->attention;
    b->q = bench_hand_out(b, b->act, b->n, s->q_stride);
    b->dq = bench_hand_out(b, b->act, b->n, s->q_stride);
    b->kv = bench_hand_out(b, b->act, b->n, s->k_stride);
    b->dkv = bench_hand_out(b, b->act, b->n, s->k_stride);
    b->k_rope = bench_hand_out(b, b->act, b->n, s->k_rope_stride);
    b->dk_rope = bench_hand_out(b, b->act, b->n, s->k_rope_stride);
    b->o = bench_hand_out(b, b->act, b->n, s->o_stride);
    b->d_o = bench_hand_out(b, b->act, b->n, s->o_stride);
    b->lse = bench_hand_out(b, DTYPE_F32, s->batch * s->heads, s->sequence);
}

static void layout(struct bench *b)
{
    const int64_t expert = 3 * b->expert_width * b->width;
    struct tensor *const streams[] = {&b->x, &b->y, &b->dx};
    struct tensor *const states[] = {&b->expert_dw, &b->master, &b->moment1, &b->moment2};
    for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
        *streams[i] = bench_hand_out(b, b->act, b->n, b->width);
    }
    b->norm_w = bench_hand_out(b, b->act, 1, b->width);
    b->norm_dw = bench_hand_out(b, DTYPE_F32, 1, b->width);
    layout_attention(b);
    b->in = bench_hand_out(b, b->act, b->rows, b->width);
    b->out = bench_hand_out(b, b->act, b->rows, b->width);
    b->gate_up = bench_hand_out(b, b->act, b->rows, 2 * b->expert_width);
    b->dgate_up = bench_hand_out(b, b->act, b->rows, 2 * b->expert_width);
    b->inner = bench_hand_out(b, b->act, b->rows, b->expert_width);
    b->expert_w = bench_hand_out(b, b->act, b->experts, expert);
    for (size_t i = 0; i < sizeof states / sizeof states[0]; i++) {
        *states[i] = bench_hand_out(b, DTYPE_F32, b->experts, expert);
    }
    b->head_w = bench_hand_out(b, b->act, b->vocab, b->width);
    b->head_dw = bench_hand_out(b, DTYPE_F32, b->vocab, b->width);
    b->router_w = bench_hand_out(b, b->act, b->router.experts, b->width);
    b->logits = bench_hand_out(b, DTYPE_F32, b->n, b->router.experts);
    b->score = bench_hand_out(b, DTYPE_F32, b->n, b->router.experts);
    b->weight = bench_hand_out(b, DTYPE_F32, b->n, b->top_k);
    b->choice = bench_hand_out(b, DTYPE_I32, b->n, b->top_k);
    b->slot_row = bench_hand_out(b, DTYPE_I32, b->n, b->top_k);
    b->row = bench_hand_out(b, DTYPE_I32, b->rows, 1);
    b->labels = bench_hand_out(b, DTYPE_I32, b->n, 1);
    b->loss = bench_hand_out(b, DTYPE_F64, 1, 1);
    b->fill = bench_hand_out(b, DTYPE_F32, FILL_PIECE, 1);
    b->rstd = bench_hand_out(b, DTYPE_F32, b->n, 1);
    b->router_lse = bench_hand_out(b, DTYPE_F32, b->n, 1);
    b->count = bench_hand_out(b, DTYPE_I64, b->attention.batch, b->router.experts);
    b->offset = bench_hand_out(b, DTYPE_I64, b->experts + 1, 1);
    if (b->act == DTYPE_BF16 && b->ops->fp8 != NULL) {
        bench_fp8_layout(b);
    }
}

/* Keys, then values, in each head's part of a kv row; MLA's shared rope keys apart. */
static struct attention_shape attention_shape(const struct architecture *arch,
                                              const struct config *config, enum dtype act)
{
    const int64_t rope = arch->kv_rank > 0 ? arch->rope_dim : 0,
                  head = arch->qk_dim - rope + arch->v_dim;
    return (struct attention_shape){.batch = config->train.micro_batch,
                                    .sequence = config->train.sequence_length,
                                    .heads = arch->heads,
                                    .kv_heads = arch->kv_heads,
                                    .qk_dim = arch->qk_dim,
                                    .v_dim = arch->v_dim,
                                    .q_stride = arch->heads * arch->qk_dim,
                                    .k_stride = arch->kv_heads * head,
                                    .v_stride = arch->kv_heads * head,
                                    .o_stride = arch->heads * arch->v_dim,
                                    .k_head_stride = head,
                                    .v_head_stride = head,
                                    .rope_dim = rope,
                                    .k_rope_stride = rope,
                                    .window = arch->window,
                                    .scale = arch->attention_scale,
                                    .dtype = act};
}

static void dims(struct bench *b, const struct config *config, int ep)
{
    struct architecture arch;
    architecture_init(&arch, config);
    b->n = config->train.micro_batch * config->train.sequence_length;
    b->width = arch.width;
    b->vocab = arch.vocab;
    b->top_k = arch.top_k;
    b->rows = b->n * b->top_k;
    b->experts = arch.experts / ep;
    b->expert_width = arch.expert_width;
    b->attention = attention_shape(&arch, config, b->act);
    b->router = (struct router_shape){.tokens = b->n,
                                      .experts = arch.experts,
                                      .top_k = arch.top_k,
                                      .row_tokens = config->train.sequence_length,
                                      .sigmoid = arch.sigmoid,
                                      .groups = arch.groups,
                                      .top_groups = arch.top_groups,
                                      .normalize = arch.normalize,
                                      .scale = arch.scale,
                                      .loss_groups = arch.loss_groups};
}

void bench_fill(struct bench *b, struct tensor *t, float std, uint64_t key)
{
    const int64_t count = tensor_count(t);
    for (int64_t at = 0; at < count; at += FILL_PIECE) {
        const int64_t some = count - at < FILL_PIECE ? count - at : FILL_PIECE;
        char *out = (char *)t->data + (size_t)at * dtype_bytes(t->dtype);
        float *values = b->fill.data;
        b->ops->init_normal(b->device, values, key, (uint64_t)at, some, std);
        b->ops->cast(b->device, tensor_1d(out, t->dtype, some), tensor_1d(values, DTYPE_F32, some));
    }
}

static void upload(struct bench *b, const struct tensor *t, const void *host)
{
    b->ops->upload(b->device, t->data, host, tensor_bytes(t));
}

/* Slot s goes to expert s mod E; rows stand in expert order, as dispatch leaves them. */
static enum status fill_rows(struct bench *b, uint64_t key)
{
    const size_t rows = (size_t)b->rows, n = (size_t)b->n, experts = (size_t)b->experts;
    int32_t *slot_row = calloc(2 * rows + n, sizeof *slot_row), *row = slot_row + rows,
            *labels = row + rows;
    int64_t *offset = calloc(experts + 1, sizeof *offset), next = 0;
    const bool good = slot_row != NULL && offset != NULL;
    for (int64_t e = 0; e < b->experts && good; e++) {
        for (int64_t slot = e; slot < b->rows; slot += b->experts) {
            slot_row[slot] = (int32_t)next;
            row[next++] = (int32_t)(slot / b->top_k);
        }
        offset[e + 1] = next;
    }
    for (int64_t i = 0; i < b->n && good; i++) {
        labels[i] = (int32_t)(rng_uniform(key, (uint64_t)i) * (double)b->vocab);
    }
    if (good) {
        upload(b, &b->slot_row, slot_row);
        upload(b, &b->row, row);
        upload(b, &b->labels, labels);
        upload(b, &b->offset, offset);
    }
    free(slot_row);
    free(offset);
    return good ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory for %zu rows", rows);
}

static enum status open_bench(struct bench *b, struct session *session)
{
    const struct config *config = &session->config;
    b->device = session->device;
    b->ops = device_ops(session->device);
    b->arena.source = (struct arena_source){
        .device = b->device, .alloc = b->ops->memory_alloc, .free = b->ops->memory_free};
    b->act = config->train.precision == CONFIG_FP32 ? DTYPE_F32 : DTYPE_BF16;
    dims(b, config, session->mesh.ep.size);
    layout(b);
    TRY(arena_reserve(&b->arena, "kernels"));
    layout(b);
    struct tensor *const inputs[] = {&b->x,        &b->norm_w,  &b->q,      &b->kv,
                                     &b->k_rope,   &b->d_o,     &b->in,     &b->out,
                                     &b->expert_w, &b->gate_up, &b->inner,  &b->head_w,
                                     &b->router_w, &b->weight,  &b->master, &b->dgate_up};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        bench_fill(b, inputs[i], i == 1 ? 1.0F : 0.05F, rng_key(config->run.seed, "bench") + i);
    }
    TRY(fill_rows(b, rng_key(config->run.seed, "labels")));
    if (b->fp8.there) {
        bench_fp8_fill(b);
    }
    return STATUS_OK;
}

/* --- kernels --- */

/* Column `col` of a tensor's rows. */
static void *column(const struct tensor *t, int64_t col)
{
    return (char *)t->data + (size_t)col * dtype_bytes(t->dtype);
}

static int64_t own_dim(const struct bench *b)
{
    return b->attention.qk_dim - b->attention.rope_dim;
}

static void run_attention(struct bench *b)
{
    b->ops->attention_forward(b->device, b->o.data, b->lse.data, b->q.data, b->kv.data,
                              b->k_rope.data, column(&b->kv, own_dim(b)), &b->attention);
}

static void run_attention_backward(struct bench *b)
{
    b->ops->attention_backward(b->device, b->dq.data, b->dkv.data, b->dk_rope.data,
                               column(&b->dkv, own_dim(b)), b->d_o.data, b->o.data, b->lse.data,
                               b->q.data, b->kv.data, b->k_rope.data, column(&b->kv, own_dim(b)),
                               &b->attention);
}

/* Pairs of a query and a key it sees, of all heads. */
static double pairs(const struct bench *b)
{
    const struct attention_shape *s = &b->attention;
    const double t = (double)s->sequence, w = (double)s->window,
                 hidden = s->window > 0 && w < t ? (t - w) * (t - w + 1) / 2 : 0;
    return (double)(s->batch * s->heads) * (t * (t + 1) / 2 - hidden);
}

static double attention_work(const struct bench *b)
{
    return 2 * pairs(b) * (double)(b->attention.qk_dim + b->attention.v_dim);
}

static double attention_backward_work(const struct bench *b)
{
    return 2 * pairs(b) * (double)(3 * b->attention.qk_dim + 2 * b->attention.v_dim);
}

static int64_t expert_stride(const struct bench *b)
{
    return 3 * b->expert_width * b->width;
}

static int64_t down_at(const struct bench *b)
{
    return 2 * b->expert_width * b->width;
}

static void run_experts(struct bench *b)
{
    b->ops->grouped_forward(b->device, b->gate_up, b->in, b->expert_w.data, expert_stride(b),
                            b->offset.data, b->experts);
    b->ops->grouped_forward(b->device, b->out, b->inner, column(&b->expert_w, down_at(b)),
                            expert_stride(b), b->offset.data, b->experts);
}

static void run_experts_input(struct bench *b)
{
    b->ops->grouped_backward_input(b->device, b->inner, b->out, column(&b->expert_w, down_at(b)),
                                   expert_stride(b), b->offset.data, b->experts);
    b->ops->grouped_backward_input(b->device, b->in, b->dgate_up, b->expert_w.data,
                                   expert_stride(b), b->offset.data, b->experts);
}

static void run_experts_weight(struct bench *b)
{
    float *dw = b->expert_dw.data;
    b->ops->grouped_backward_weight(b->device, dw + down_at(b), expert_stride(b), b->out, b->inner,
                                    b->offset.data, b->experts);
    b->ops->grouped_backward_weight(b->device, dw, expert_stride(b), b->dgate_up, b->in,
                                    b->offset.data, b->experts);
}

static double experts_work(const struct bench *b)
{
    return 2 * (double)b->rows * (double)expert_stride(b);
}

static void run_head(struct bench *b)
{
    b->ops->cross_entropy(b->device, b->loss.data, b->dx, b->head_dw, b->x, b->head_w,
                          b->labels.data, 1e-3F);
}

static double head_work(const struct bench *b)
{
    return 6 * (double)b->n * (double)b->vocab * (double)b->width;
}

static struct tensor flat(const struct tensor *t)
{
    return tensor_1d(t->data, t->dtype, tensor_count(t));
}

static void run_norm(struct bench *b)
{
    b->ops->norm_forward(b->device, b->y, b->dx, b->rstd.data, b->x, b->x, flat(&b->norm_w), 1e-5F);
}

static void run_norm_backward(struct bench *b)
{
    b->ops->norm_backward(b->device, b->dx, flat(&b->norm_dw), b->y, b->x, b->rstd.data,
                          flat(&b->norm_w));
}

/* Rows of the stream read or written: x (twice: with the residual), sum, y; then dx twice, dy, x.
 */
static double norm_work(const struct bench *b)
{
    return 4 * (double)tensor_bytes(&b->x);
}

static void run_swiglu(struct bench *b)
{
    b->ops->swiglu_forward(b->device, b->inner, b->gate_up);
}

static void run_swiglu_backward(struct bench *b)
{
    b->ops->swiglu_backward(b->device, b->dgate_up, (struct tensor){0}, b->inner, b->gate_up);
}

static double swiglu_work(const struct bench *b)
{
    return 3 * (double)tensor_bytes(&b->inner);
}

static double swiglu_backward_work(const struct bench *b)
{
    return 5 * (double)tensor_bytes(&b->inner);
}

static void run_router(struct bench *b)
{
    const struct router_counts counts = {.routed = b->count.data};
    b->ops->router_logits(b->device, b->logits, b->x, b->router_w);
    b->ops->router_forward(b->device, b->choice.data, b->weight.data, b->score.data,
                           b->router_lse.data, counts, b->logits.data, NULL, b->router);
}

static double router_work(const struct bench *b)
{
    return 2 * (double)b->n * (double)b->router.experts * (double)b->width;
}

static void run_permute(struct bench *b)
{
    b->ops->gather_rows(b->device, b->in, b->x, b->row.data);
}

static double permute_work(const struct bench *b)
{
    return 2 * (double)tensor_bytes(&b->in);
}

static void run_combine(struct bench *b)
{
    b->ops->combine_rows(b->device, b->y, b->out, b->slot_row.data, b->weight.data, b->top_k);
}

static double combine_work(const struct bench *b)
{
    return (double)tensor_bytes(&b->out) + (double)tensor_bytes(&b->y);
}

static void run_adamw(struct bench *b)
{
    const struct adamw args = {.lr = 1e-4F,
                               .beta1 = 0.9F,
                               .beta2 = 0.95F,
                               .eps = 1e-8F,
                               .grad_scale = 1,
                               .step = 1,
                               .moments = DTYPE_F32};
    const struct adamw_piece piece = {.param = b->master.data,
                                      .m = b->moment1.data,
                                      .v = b->moment2.data,
                                      .out = b->act == DTYPE_F32 ? NULL : b->expert_w.data,
                                      .grad = b->expert_dw.data,
                                      .count = tensor_count(&b->master),
                                      .weight_decay = 0.1F};
    b->ops->adamw(b->device, &piece, 1, args);
}

/* Gradient read; parameter and both moments read and written; the copy in bf16 written. */
static double adamw_work(const struct bench *b)
{
    return 7 * (double)tensor_bytes(&b->master) +
           (b->act == DTYPE_F32 ? 0 : (double)tensor_bytes(&b->expert_w));
}

/* Kernels that write what others read stand behind them, AdamW last. */
static const struct kernel kernels[] = {
    {"attention_forward", run_attention, attention_work, true, NULL, NULL},
    {"attention_backward", run_attention_backward, attention_backward_work, true, NULL, NULL},
    {"experts_forward", run_experts, experts_work, true, NULL, NULL},
    {"experts_backward_input", run_experts_input, experts_work, true, NULL, NULL},
    {"experts_backward_weight", run_experts_weight, experts_work, true, NULL, NULL},
    {"head_cross_entropy", run_head, head_work, true, NULL, NULL},
    {"router", run_router, router_work, true, NULL, NULL},
    {"norm_forward", run_norm, norm_work, false, NULL, NULL},
    {"norm_backward", run_norm_backward, norm_work, false, NULL, NULL},
    {"swiglu_forward", run_swiglu, swiglu_work, false, NULL, NULL},
    {"swiglu_backward", run_swiglu_backward, swiglu_backward_work, false, NULL, NULL},
    {"permute", run_permute, permute_work, false, NULL, NULL},
    {"combine", run_combine, combine_work, false, NULL, NULL},
    {"adamw", run_adamw, adamw_work, false, NULL, NULL},
};
enum { KERNELS = sizeof kernels / sizeof kernels[0] };

/* Seconds of a run, of `repeats` one behind the other. */
static double timed(struct bench *b, const struct kernel *kernel, int repeats)
{
    const double start = step_clock();
    for (int i = 0; i < repeats; i++) {
        kernel->run(b);
    }
    b->ops->synchronize(b->device);
    return (step_clock() - start) / repeats;
}

/* Median seconds of a run, after one that warms the caches. Short runs are timed several at once:
 * a device that runs behind the host is slow to wait for. */
static double measure(struct bench *b, const struct kernel *kernel)
{
    double seconds[MOST_RUNS], total = 0;
    int runs = 0;
    timed(b, kernel, 1);
    const double one = timed(b, kernel, 1);
    const int repeats = one >= LEAST_SECONDS ? 1 : (int)fmin(LEAST_SECONDS / one + 1, MOST_REPEATS);
    while (runs < LEAST_RUNS || (runs < MOST_RUNS && total < SECONDS)) {
        seconds[runs] = timed(b, kernel, repeats);
        total += seconds[runs++] * repeats;
    }
    figure_sort(seconds, runs);
    return seconds[runs / 2];
}

/* What bounds a kernel: FLOP/s of large products, bytes/s of a copy. */
struct bounds {
    double flops, bytes;
};

/* The first of all begins the object. */
static void print(const struct kernel *kernel, double seconds, double rate,
                  const struct bounds *bounds, bool json)
{
    const double share = rate / (kernel->flops ? bounds->flops : bounds->bytes);
    if (json) {
        printf("%s\"%s\":", kernel == kernels ? "" : ",", kernel->name);
        json_out_number(stdout, "{\"ms\":", 1e3 * seconds, 6);
        json_out_number(stdout, kernel->flops ? ",\"flops\":" : ",\"bytes_per_s\":", rate, 6);
        json_out_number(stdout, ",\"share_of_peak\":", kernel->flops ? share : (double)NAN, 4);
        json_out_number(stdout, ",\"share_of_copy\":", kernel->flops ? (double)NAN : share, 4);
        printf("}");
    } else {
        printf("%-26s %10.3f ms  %8.1f %s = %3.0f %% of %s\n", kernel->name, 1e3 * seconds,
               rate / 1e9, kernel->flops ? "GFLOP/s" : "GB/s   ", 100 * share,
               kernel->flops ? "GEMM peak" : "a copy");
    }
}

static void run_copy(struct bench *b)
{
    b->ops->copy(b->device, b->expert_dw.data, b->master.data, tensor_bytes(&b->master));
}

static const struct kernel copy = {"copy", run_copy, NULL, false, NULL, NULL};

static struct bounds measure_bounds(struct bench *b)
{
    return (struct bounds){
        .flops = device_peak_flops(b->device, b->act),
        .bytes = 2 * (double)tensor_bytes(&b->master) / measure(b, &copy),
    };
}

static void measure_list(struct bench *b, const struct kernel *list, int count,
                         const struct bounds *bounds, bool speaks, bool json)
{
    for (int i = 0; i < count; i++) {
        const double seconds = measure(b, &list[i]);
        if (speaks) {
            print(&list[i], seconds, list[i].work(b) / seconds, bounds, json);
        }
    }
}

static void measure_all(struct bench *b, const struct session *session, bool json)
{
    const bool speaks = session_main_rank(session);
    const struct bounds bounds = measure_bounds(b);
    int fp8 = 0;
    const struct kernel *list = bench_fp8_kernels(&fp8);
    if (speaks && json) {
        printf("{\"kernels\":{");
    } else if (speaks) {
        printf("kernels of one layer and %lld tokens, %s, rank 0 of %d, %d threads, GEMM peak %.0f "
               "GFLOP/s, copy %.1f GB/s\n",
               (long long)b->n, dtype_name(b->act), session->world.size, session->threads,
               bounds.flops / 1e9, bounds.bytes / 1e9);
    }
    measure_list(b, kernels, KERNELS, &bounds, speaks, json);
    if (b->fp8.there) {
        measure_list(b, list, fp8, &bounds, speaks, json);
    }
    if (speaks && json) {
        printf("},\"ranks\":%d,\"threads\":%d", session->world.size, session->threads);
        json_out_number(stdout, ",\"gemm_peak_flops\":", bounds.flops, 6);
        json_out_number(stdout, ",\"copy_bytes_per_s\":", bounds.bytes, 6);
    }
    if (speaks && device_stream(session->device) == NULL) {
        bench_facts_print(b, list, b->fp8.there ? fp8 : 0, json);
    }
    if (speaks && json) {
        printf("}\n");
    }
}

enum status bench_kernels(struct session *session, bool json)
{
    struct bench bench = {0};
    const enum status status = comm_agree(&session->world, open_bench(&bench, session), NULL);
    if (status == STATUS_OK) {
        measure_all(&bench, session, json);
    }
    arena_free(&bench.arena);
    return status;
}
