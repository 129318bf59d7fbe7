#include "trainer/commands/bench_kernels.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/json_out.h"
#include "kernels/base/rng.h"
#include "parallel/cores.h"
#include "trainer/commands/bench_case.h"
#include "trainer/commands/bench_facts.h"
#include "trainer/commands/bench_peer.h"
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
    b->o_w = bench_hand_out(b, b->act, b->width, s->o_stride);
    b->o_dw = bench_hand_out(b, DTYPE_F32, b->width, s->o_stride);
    b->table = bench_hand_out(b, DTYPE_F32, s->sequence, b->rope.dim);
    b->position = bench_hand_out(b, DTYPE_I32, b->n, 1);
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
    b->dweight = bench_hand_out(b, DTYPE_F32, b->n, b->top_k);
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
    if (b->act == DTYPE_BF16 && (b->ops == NULL || b->ops->fp8 != NULL)) {
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

static void dims(struct bench *b, const struct config *config)
{
    const int64_t ep = config->parallel.ep;
    struct architecture arch;
    architecture_init(&arch, config);
    b->act = config->train.precision == CONFIG_FP32 ? DTYPE_F32 : DTYPE_BF16;
    b->n = config->train.micro_batch * config->train.sequence_length;
    b->width = arch.width;
    b->vocab = arch.vocab;
    b->top_k = arch.top_k;
    b->rows = b->n * b->top_k;
    b->experts = arch.experts / ep;
    b->expert_width = arch.expert_width;
    b->attention = attention_shape(&arch, config, b->act);
    b->rope = (struct rope_shape){.heads = arch.heads,
                                  .head_stride = arch.qk_dim,
                                  .first = arch.nope_dim,
                                  .dim = arch.rope_dim,
                                  .interleaved = arch.rope_interleaved};
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

/* Positions of sequences one after another, and the angles' table. */
static enum status fill_positions(struct bench *b, const struct config *config)
{
    struct architecture arch;
    const int64_t t = b->attention.sequence;
    float *table = malloc(tensor_bytes(&b->table));
    int32_t *position = malloc(tensor_bytes(&b->position));
    const bool good = table != NULL && position != NULL;
    architecture_init(&arch, config);
    if (good) {
        rope_table(table, t, b->rope.dim, arch.rope_theta, &arch.yarn);
        for (int64_t i = 0; i < b->n; i++) {
            position[i] = (int32_t)(i % t);
        }
        upload(b, &b->table, table);
        upload(b, &b->position, position);
    }
    free(table);
    free(position);
    return good ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory for positions");
}

static enum status open_bench(struct bench *b, struct session *session)
{
    const struct config *config = &session->config;
    b->device = session->device;
    b->ops = device_ops(session->device);
    b->arena.source = (struct arena_source){
        .device = b->device, .alloc = b->ops->memory_alloc, .free = b->ops->memory_free};
    dims(b, config);
    layout(b);
    TRY(arena_reserve(&b->arena, "kernels"));
    layout(b);
    struct tensor *const inputs[] = {
        &b->x,        &b->norm_w, &b->q,        &b->kv,       &b->k_rope, &b->d_o,
        &b->in,       &b->out,    &b->expert_w, &b->gate_up,  &b->inner,  &b->head_w,
        &b->router_w, &b->weight, &b->master,   &b->dgate_up, &b->o_w};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        bench_fill(b, inputs[i], i == 1 ? 1.0F : 0.05F, rng_key(config->run.seed, "bench") + i);
    }
    TRY(fill_rows(b, rng_key(config->run.seed, "labels")));
    TRY(fill_positions(b, config));
    if (b->fp8.there) {
        bench_fp8_fill(b);
    }
    return STATUS_OK;
}

/* --- timing --- */

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

static void print(const struct bench_time *time, const struct bench *b, const struct bounds *bounds,
                  bool first, bool json)
{
    const struct kernel *kernel = time->kernel;
    const bool flops = kernel->flops != NULL;
    const double rate = (flops ? kernel->flops : kernel->bytes)(b) / time->seconds,
                 share = rate / (flops ? bounds->flops : bounds->bytes);
    if (json) {
        printf("%s\"%s\":", first ? "" : ",", kernel->name);
        json_out_number(stdout, "{\"ms\":", 1e3 * time->seconds, 6);
        json_out_number(stdout, flops ? ",\"flops\":" : ",\"bytes_per_s\":", rate, 6);
        json_out_number(stdout, ",\"share_of_peak\":", flops ? share : (double)NAN, 4);
        json_out_number(stdout, ",\"share_of_copy\":", flops ? (double)NAN : share, 4);
        printf("}");
    } else {
        printf("%-26s %10.3f ms  %8.1f %s = %3.0f %% of %s\n", kernel->name, 1e3 * time->seconds,
               rate / 1e9, flops ? "GFLOP/s" : "GB/s   ", 100 * share,
               flops ? "GEMM peak" : "a copy");
    }
}

static void run_copy(struct bench *b)
{
    b->ops->copy(b->device, b->expert_dw.data, b->master.data, tensor_bytes(&b->master));
}

static const struct kernel copy = {"copy", run_copy, NULL, NULL, {NULL}, NULL};

static struct bounds measure_bounds(struct bench *b)
{
    return (struct bounds){
        .flops = device_peak_flops(b->device, b->act),
        .bytes = 2 * (double)tensor_bytes(&b->master) / measure(b, &copy),
    };
}

/* Fills times[BENCH_MOST]; how many. */
static int measure_list(struct bench *b, const struct bounds *bounds, bool speaks, bool json,
                        struct bench_time *times)
{
    int layer, fp8 = 0;
    const struct kernel *first = bench_layer_kernels(&layer), *second = bench_fp8_kernels(&fp8);
    const int count = layer + (b->fp8.there ? fp8 : 0);
    assert(count <= BENCH_MOST);
    for (int i = 0; i < count; i++) {
        times[i].kernel = i < layer ? &first[i] : &second[i - layer];
        times[i].seconds = measure(b, times[i].kernel);
        if (speaks) {
            print(&times[i], b, bounds, i == 0, json);
        }
    }
    return count;
}

static enum status measure_all(struct bench *b, const struct session *session,
                               const struct bench_kernels_options *options)
{
    const bool speaks = session_main_rank(session), json = options->json;
    const struct bounds bounds = measure_bounds(b);
    struct bench_time times[BENCH_MOST];
    enum status status = STATUS_OK;
    if (speaks && json) {
        printf("{\"kernels\":{");
    } else if (speaks) {
        printf("kernels of one layer and %lld tokens, %s, rank 0 of %d, %d threads, GEMM peak %.0f "
               "GFLOP/s, copy %.1f GB/s\n",
               (long long)b->n, dtype_name(b->act), session->world.size, session->threads,
               bounds.flops / 1e9, bounds.bytes / 1e9);
    }
    const int count = measure_list(b, &bounds, speaks, json, times);
    if (speaks && json) {
        printf("},\"ranks\":%d,\"threads\":%d", session->world.size, session->threads);
        json_out_number(stdout, ",\"gemm_peak_flops\":", bounds.flops, 6);
        json_out_number(stdout, ",\"copy_bytes_per_s\":", bounds.bytes, 6);
    }
    if (speaks && device_stream(session->device) == NULL) {
        if (json) {
            printf(",");
        }
        bench_facts_print(b, json);
    }
    if (speaks && options->peer != NULL) {
        cores_roam(&session->world); /* or the peer would have the one core of this thread */
        status = bench_peer(b, options->peer, device_stream(session->device) != NULL, times, count,
                            json);
    }
    if (speaks && json) {
        printf("}\n");
    }
    return status;
}

enum status bench_kernels(struct session *session, const struct bench_kernels_options *options)
{
    struct bench bench = {0};
    enum status status = STATUS_OK;
    if (options->peer != NULL && session->world.size > 1) {
        return status_fail(STATUS_USAGE, "bench: --peer is for one rank, not %d",
                           session->world.size);
    }
    status = comm_agree(&session->world, open_bench(&bench, session), NULL);
    if (status == STATUS_OK) {
        status = measure_all(&bench, session, options);
    }
    arena_free(&bench.arena);
    return status;
}

static void print_facts(const struct config *config, bool json)
{
    struct bench bench = {0};
    dims(&bench, config);
    layout(&bench);
    if (json) {
        printf("{");
    } else {
        printf("one layer and %lld tokens, %s, experts %lld of %lld\n", (long long)bench.n,
               dtype_name(bench.act), (long long)bench.experts, (long long)bench.router.experts);
    }
    bench_facts_print(&bench, json);
    if (json) {
        printf("}\n");
    }
}

enum status bench_kernels_facts(const char *path, char *const *overrides, int count, bool json)
{
    struct session session = {0}; /* without a device */
    struct config *config = &session.config;
    config_init(config);
    config->planning = true; /* of as many ranks as it likes */
    enum status status = session_read_config(config, path, overrides, count);
    TRY(comm_open(&session.world, "auto"));
    status = comm_agree(&session.world, status, NULL);
    if (status == STATUS_OK && session_main_rank(&session)) {
        print_facts(config, json);
    }
    return session_close(&session, status);
}
