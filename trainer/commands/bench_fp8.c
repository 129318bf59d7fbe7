/* The ops of FP8 (kernels/ops_fp8.h) for bench_kernels.c: products dense, by expert and for
 * weights, and every mover. */
#include "trainer/commands/bench_case.h"

#include "trainer/model/layout.h"

/* As the compiler names the layouts of enum gemm_pass. */
#define FORWARD "gemm_fp8_sm90_kernel<layout<0,"
#define WEIGHT "gemm_fp8_sm90_kernel<layout<2,"

static const struct fp8_how *how(const struct bench *b)
{
    static struct fp8_how how;
    how = (struct fp8_how){.power_of_two = true, .counters = b->fp8.counters};
    return &how;
}

static struct fp8_rows rows_of(struct bench *b, int64_t rows, int64_t cols)
{
    return (struct fp8_rows){
        .code = bench_hand_out(b, DTYPE_U8, rows, cols).data,
        .scale = bench_hand_out(b, DTYPE_F32, fp8_tiles(cols), fp8_pitch(rows)).data,
        .rows = rows,
        .cols = cols,
        .pitch = fp8_pitch(rows)};
}

/* x[rows, cols] transposed, its rows in groups. */
static struct fp8_rows turned_of(struct bench *b, int64_t rows, int64_t cols, int64_t groups)
{
    return rows_of(b, cols, fp8_token_columns(rows, groups));
}

static struct fp8_weights weights_of(struct bench *b, int64_t matrices, int64_t rows, int64_t cols)
{
    const int64_t tiles = fp8_tiles(rows) * fp8_tiles(cols);
    return (struct fp8_weights){.code = bench_hand_out(b, DTYPE_U8, matrices * rows, cols).data,
                                .scale = bench_hand_out(b, DTYPE_F32, matrices, tiles).data,
                                .matrices = matrices,
                                .rows = rows,
                                .cols = cols};
}

void bench_fp8_layout(struct bench *b)
{
    struct bench_fp8 *f = &b->fp8;
    const int64_t c = b->width, inner = b->expert_width, o = b->attention.o_stride, r = b->rows,
                  e = b->experts;
    f->there = c % 16 == 0 && inner % 16 == 0 && o % 16 == 0;
    if (!f->there) {
        return;
    }
    f->x = rows_of(b, b->n, c), f->xt = turned_of(b, b->n, c, 1);
    f->o = rows_of(b, b->n, o), f->ot = turned_of(b, b->n, o, 1);
    f->in = rows_of(b, r, c), f->in_t = turned_of(b, r, c, e);
    f->out = rows_of(b, r, c), f->out_t = turned_of(b, r, c, e);
    f->kept = rows_of(b, r, 2 * inner);
    f->d = rows_of(b, r, 2 * inner), f->d_t = turned_of(b, r, 2 * inner, e);
    f->inner = rows_of(b, r, inner), f->inner_t = turned_of(b, r, inner, e);
    f->o_proj = weights_of(b, 1, c, o), f->o_proj_t = weights_of(b, 1, o, c);
    f->up = weights_of(b, e, 2 * inner, c), f->up_t = weights_of(b, e, c, 2 * inner);
    f->down = weights_of(b, e, c, inner), f->down_t = weights_of(b, e, inner, c);
    f->packed = bench_hand_out(b, DTYPE_U8, r, fp8_packed_bytes(c)).data;
    f->e5m6 = bench_hand_out(b, DTYPE_U8, b->n, fp8_e5m6_bytes(o)).data;
    f->counters = bench_hand_out(b, DTYPE_U8, 1, sizeof *f->counters).data;
}

static int64_t stride(const struct bench *b)
{
    return 3 * b->expert_width * b->width;
}

static const char *down_weight(const struct bench *b)
{
    return (const char *)b->expert_w.data +
           (size_t)(2 * b->expert_width * b->width) * dtype_bytes(b->act);
}

/* --- movers --- */

static void run_quantize(struct bench *b)
{
    b->ops->fp8->quantize(b->device, b->fp8.x, b->fp8.xt, b->x, NULL, b->n, NULL, 1, how(b));
}

static double quantize_work(const struct bench *b)
{
    return 4 * (double)b->n * (double)b->width;
}

static void run_permute(struct bench *b)
{
    const struct fp8_rows none = {0};
    b->ops->fp8->quantize(b->device, b->fp8.in, none, b->x, b->row.data, b->rows, NULL, 1, how(b));
}

static double permute_work(const struct bench *b)
{
    return 3 * (double)b->rows * (double)b->width;
}

static void run_pack(struct bench *b)
{
    b->ops->fp8->pack(b->device, b->fp8.packed, b->x, b->row.data, b->rows, how(b));
}

static void run_unpack(struct bench *b)
{
    b->ops->fp8->unpack(b->device, b->fp8.in, b->fp8.packed, b->rows, NULL);
}

static double unpack_work(const struct bench *b)
{
    return 2 * (double)b->rows * (double)b->width;
}

static void run_transpose(struct bench *b)
{
    b->ops->fp8->transpose(b->device, b->fp8.in_t, b->fp8.in, b->offset.data, b->experts, how(b));
}

static void run_norm(struct bench *b)
{
    const struct tensor none = {.dtype = DTYPE_BF16};
    struct tensor w = tensor_1d(b->norm_w.data, b->act, b->width);
    b->ops->fp8->norm_forward(b->device, b->fp8.x, none, b->dx, b->rstd.data, b->x, b->y, w, 1e-5F,
                              how(b));
}

static double norm_work(const struct bench *b)
{
    return 7 * (double)b->n * (double)b->width;
}

static void run_swiglu(struct bench *b)
{
    b->ops->fp8->swiglu_forward(b->device, b->fp8.inner, b->fp8.kept, b->gate_up, b->offset.data,
                                b->experts, how(b));
}

static double swiglu_work(const struct bench *b)
{
    return 7 * (double)b->rows * (double)b->expert_width;
}

static void run_swiglu_backward(struct bench *b)
{
    const struct tensor none = {0};
    b->ops->fp8->swiglu_backward(b->device, b->fp8.d, b->fp8.d_t, b->fp8.inner_t, b->inner, none,
                                 b->fp8.kept, b->offset.data, b->experts, how(b));
}

/* dh in bf16 and gate_up in codes; gradients both ways, h one way. */
static double swiglu_backward_work(const struct bench *b)
{
    return 9 * (double)b->rows * (double)b->expert_width;
}

static void run_combine(struct bench *b)
{
    b->ops->fp8->combine_rows_backward(b->device, b->fp8.out, NULL, b->weight.data, b->x, b->out,
                                       b->slot_row.data, b->weight.data, b->top_k, how(b));
}

static double combine_work(const struct bench *b)
{
    return 3 * (double)b->rows * (double)b->width + 2 * (double)b->n * (double)b->width;
}

static void run_turn_out(struct bench *b)
{
    b->ops->fp8->transpose(b->device, b->fp8.out_t, b->fp8.out, b->offset.data, b->experts, how(b));
}

static void run_weights(struct bench *b)
{
    const struct bench_fp8 *f = &b->fp8;
    b->ops->fp8->quantize_weights(b->device, f->up, f->up_t, b->expert_w.data, stride(b), how(b));
    b->ops->fp8->quantize_weights(b->device, f->down, f->down_t, down_weight(b), stride(b), how(b));
}

static double weights_work(const struct bench *b)
{
    return 4 * (double)(b->experts * stride(b));
}

static void run_e5m6_pack(struct bench *b)
{
    b->ops->fp8->e5m6_pack(b->device, b->fp8.e5m6, b->o);
}

static void run_e5m6_unpack(struct bench *b)
{
    b->ops->fp8->e5m6_unpack(b->device, b->o, b->fp8.e5m6);
}

static double e5m6_work(const struct bench *b)
{
    return 3.5 * (double)b->n * (double)b->attention.o_stride;
}

/* --- products --- */

static void run_dense(struct bench *b)
{
    b->ops->fp8->linear(b->device, b->y, b->fp8.o, b->fp8.o_proj, NULL, false, how(b));
}

static void run_dense_input(struct bench *b)
{
    b->ops->fp8->linear(b->device, b->d_o, b->fp8.x, b->fp8.o_proj_t, NULL, false, how(b));
}

static void run_dense_weight(struct bench *b)
{
    b->ops->fp8->linear_weight(b->device, b->o_dw.data, tensor_count(&b->o_dw), b->fp8.xt,
                               b->fp8.ot, NULL, 1, b->n, how(b));
}

static double dense_work(const struct bench *b)
{
    return 2 * (double)b->n * (double)b->width * (double)b->attention.o_stride;
}

/* A byte for a code, two for what is bf16, eight for a gradient of a weight, read and written; the
 * scales are 3 % more of rows and nothing of weights. */
static double dense_bytes(const struct bench *b)
{
    const double o = (double)b->attention.o_stride, c = (double)b->width, n = (double)b->n;
    return n * o + c * o + 2 * n * c;
}

static double dense_input_bytes(const struct bench *b)
{
    const double o = (double)b->attention.o_stride, c = (double)b->width, n = (double)b->n;
    return n * c + c * o + 2 * n * o;
}

static double dense_weight_bytes(const struct bench *b)
{
    const double o = (double)b->attention.o_stride, c = (double)b->width, n = (double)b->n;
    return n * c + n * o + 8 * c * o;
}

static void run_experts(struct bench *b)
{
    const struct bench_fp8 *f = &b->fp8;
    b->ops->fp8->linear(b->device, b->gate_up, f->in, f->up, b->offset.data, false, how(b));
    b->ops->fp8->linear(b->device, b->out, f->inner, f->down, b->offset.data, false, how(b));
}

static void run_experts_input(struct bench *b)
{
    const struct bench_fp8 *f = &b->fp8;
    b->ops->fp8->linear(b->device, b->inner, f->out, f->down_t, b->offset.data, false, how(b));
    b->ops->fp8->linear(b->device, b->in, f->d, f->up_t, b->offset.data, false, how(b));
}

static void run_experts_weight(struct bench *b)
{
    const struct bench_fp8 *f = &b->fp8;
    float *dw = b->expert_dw.data;
    b->ops->fp8->linear_weight(b->device, dw + 2 * b->expert_width * b->width, stride(b), f->out_t,
                               f->inner_t, b->offset.data, b->experts, b->rows, how(b));
    b->ops->fp8->linear_weight(b->device, dw, stride(b), f->d_t, f->in_t, b->offset.data,
                               b->experts, b->rows, how(b));
}

static double experts_work(const struct bench *b)
{
    return 2 * (double)b->rows * (double)stride(b);
}

static double experts_bytes(const struct bench *b)
{
    const double c = (double)b->width, f = (double)b->expert_width, r = (double)b->rows;
    return r * (3 * c + 5 * f) + (double)(b->experts * stride(b));
}

static double experts_input_bytes(const struct bench *b)
{
    const double c = (double)b->width, f = (double)b->expert_width, r = (double)b->rows;
    return r * (3 * c + 4 * f) + (double)(b->experts * stride(b));
}

static double experts_weight_bytes(const struct bench *b)
{
    const double c = (double)b->width, f = (double)b->expert_width, r = (double)b->rows;
    return r * (2 * c + 3 * f) + 8 * (double)(b->experts * stride(b));
}

/* --- how an H100 would compute the products --- */

static int dense(const struct bench *b, struct device_fp8_product out[BENCH_FP8_PRODUCTS])
{
    out[0] = device_fp8_product(false, b->n, b->width, b->attention.o_stride, 1);
    return 1;
}

static int dense_input(const struct bench *b, struct device_fp8_product out[BENCH_FP8_PRODUCTS])
{
    out[0] = device_fp8_product(false, b->n, b->attention.o_stride, b->width, 1);
    return 1;
}

static int dense_weight(const struct bench *b, struct device_fp8_product out[BENCH_FP8_PRODUCTS])
{
    out[0] = device_fp8_product(true, b->n, b->width, b->attention.o_stride, 1);
    return 1;
}

static int experts(const struct bench *b, struct device_fp8_product out[BENCH_FP8_PRODUCTS])
{
    out[0] = device_fp8_product(false, b->rows, 2 * b->expert_width, b->width, b->experts);
    out[1] = device_fp8_product(false, b->rows, b->width, b->expert_width, b->experts);
    return 2;
}

static int experts_input(const struct bench *b, struct device_fp8_product out[BENCH_FP8_PRODUCTS])
{
    out[0] = device_fp8_product(false, b->rows, b->expert_width, b->width, b->experts);
    out[1] = device_fp8_product(false, b->rows, b->width, 2 * b->expert_width, b->experts);
    return 2;
}

static int experts_weight(const struct bench *b, struct device_fp8_product out[BENCH_FP8_PRODUCTS])
{
    out[0] = device_fp8_product(true, b->rows, b->width, b->expert_width, b->experts);
    out[1] = device_fp8_product(true, b->rows, 2 * b->expert_width, b->width, b->experts);
    return 2;
}

/* Movers first: products read the codes they leave. */
static const struct kernel kernels[] = {
    {"fp8_quantize", run_quantize, NULL, quantize_work, {"fp8_tile_kernel<fp8_from_bf16"}, NULL},
    {"fp8_permute_quantize",
     run_permute,
     NULL,
     permute_work,
     {"fp8_tile_kernel<fp8_from_bf16"},
     NULL},
    {"fp8_pack", run_pack, NULL, permute_work, {"fp8_tile_kernel<fp8_from_bf16"}, NULL},
    {"fp8_unpack", run_unpack, NULL, unpack_work, {"fp8_unpack_kernel"}, NULL},
    {"fp8_transpose", run_transpose, NULL, unpack_work, {"fp8_tile_kernel<fp8_from_codes"}, NULL},
    {"fp8_norm_quantize", run_norm, NULL, norm_work, {"fp8_norm_kernel"}, NULL},
    {"fp8_swiglu", run_swiglu, NULL, swiglu_work, {"fp8_swiglu_kernel"}, NULL},
    {"fp8_swiglu_backward",
     run_swiglu_backward,
     NULL,
     swiglu_backward_work,
     {"fp8_swiglu_backward_kernel<fp8_from_codes"},
     NULL},
    {"fp8_combine_backward", run_combine, NULL, combine_work, {"fp8_combine_kernel"}, NULL},
    {"fp8_weights", run_weights, NULL, weights_work, {"fp8_weights_kernel"}, NULL},
    {"fp8_e5m6_pack", run_e5m6_pack, NULL, e5m6_work, {"e5m6_pack_kernel"}, NULL},
    {"fp8_e5m6_unpack", run_e5m6_unpack, NULL, e5m6_work, {"e5m6_unpack_kernel"}, NULL},
    {"fp8_dense", run_dense, dense_work, dense_bytes, {FORWARD}, dense},
    {"fp8_dense_input", run_dense_input, dense_work, dense_input_bytes, {FORWARD}, dense_input},
    {"fp8_dense_weight", run_dense_weight, dense_work, dense_weight_bytes, {WEIGHT}, dense_weight},
    {"fp8_experts", run_experts, experts_work, experts_bytes, {FORWARD}, experts},
    {"fp8_experts_input",
     run_experts_input,
     experts_work,
     experts_input_bytes,
     {FORWARD},
     experts_input},
    {"fp8_experts_weight",
     run_experts_weight,
     experts_work,
     experts_weight_bytes,
     {WEIGHT},
     experts_weight},
};

const struct kernel *bench_fp8_kernels(int *count)
{
    *count = sizeof kernels / sizeof kernels[0];
    return kernels;
}

void bench_fp8_fill(struct bench *b)
{
    const struct bench_fp8 *f = &b->fp8;
    const struct fp8_how silent = {.power_of_two = true};
    b->ops->zero(b->device, f->counters, sizeof *f->counters);
    b->ops->fp8->quantize(b->device, f->o, f->ot, b->d_o, NULL, b->n, NULL, 1, &silent);
    b->ops->fp8->quantize_weights(b->device, f->o_proj, f->o_proj_t, b->o_w.data, 0, &silent);
    run_combine(b);
    run_turn_out(b);
}
