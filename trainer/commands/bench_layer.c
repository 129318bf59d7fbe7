/* The ops of struct ops (kernels/ops.h) for bench_kernels.c, of one layer and one micro-batch. */
#include "trainer/commands/bench_case.h"

/* --- attention --- */

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

static double bytes(struct tensor t)
{
    return (double)tensor_bytes(&t);
}

static double attention_bytes(const struct bench *b)
{
    return bytes(b->q) + bytes(b->kv) + bytes(b->k_rope) + bytes(b->o) + bytes(b->lse);
}

static double attention_backward_bytes(const struct bench *b)
{
    return attention_bytes(b) + bytes(b->d_o) + bytes(b->dq) + bytes(b->dkv) + bytes(b->dk_rope);
}

/* --- products --- */

static void run_linear(struct bench *b)
{
    b->ops->linear_forward(b->device, b->y, b->o, b->o_w, false);
}

static void run_linear_input(struct bench *b)
{
    b->ops->linear_backward_input(b->device, b->d_o, b->y, b->o_w, false);
}

static void run_linear_weight(struct bench *b)
{
    b->ops->linear_backward_weight(b->device, b->o_dw, b->y, b->o);
}

static double linear_work(const struct bench *b)
{
    return 2 * (double)b->n * (double)b->width * (double)b->attention.o_stride;
}

static double linear_bytes(const struct bench *b)
{
    return bytes(b->y) + bytes(b->o) + bytes(b->o_w);
}

static double linear_weight_bytes(const struct bench *b)
{
    return bytes(b->y) + bytes(b->o) + 2 * bytes(b->o_dw);
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

static double experts_rows(const struct bench *b)
{
    return bytes(b->in) + bytes(b->gate_up) + bytes(b->inner) + bytes(b->out);
}

static double experts_bytes(const struct bench *b)
{
    return experts_rows(b) + bytes(b->expert_w);
}

static double experts_weight_bytes(const struct bench *b)
{
    return experts_rows(b) + 2 * bytes(b->expert_dw);
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

static double head_bytes(const struct bench *b)
{
    return bytes(b->x) + bytes(b->dx) + bytes(b->head_w) + 2 * bytes(b->head_dw);
}

/* --- what only moves --- */

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
    return 4 * bytes(b->x);
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
    return 3 * bytes(b->inner);
}

static double swiglu_backward_work(const struct bench *b)
{
    return 5 * bytes(b->inner);
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

/* Logits written and read, scores written. */
static double router_bytes(const struct bench *b)
{
    return bytes(b->x) + bytes(b->router_w) + 3 * bytes(b->logits) + bytes(b->weight) +
           bytes(b->choice);
}

static void run_rope(struct bench *b)
{
    b->ops->rope(b->device, b->q, b->position.data, b->table.data, b->rope, false);
}

/* Rotated columns of q, both ways. */
static double rope_work(const struct bench *b)
{
    return 2 * (double)(b->n * b->rope.heads * b->rope.dim) * (double)dtype_bytes(b->act);
}

static void run_permute(struct bench *b)
{
    b->ops->gather_rows(b->device, b->in, b->x, b->row.data);
}

static double permute_work(const struct bench *b)
{
    return 2 * bytes(b->in);
}

static void run_combine(struct bench *b)
{
    b->ops->combine_rows(b->device, b->y, b->out, b->slot_row.data, b->weight.data, b->top_k);
}

static double combine_work(const struct bench *b)
{
    return bytes(b->out) + bytes(b->y);
}

static void run_combine_backward(struct bench *b)
{
    b->ops->combine_rows_backward(b->device, b->in, b->dweight.data, b->y, b->out, b->slot_row.data,
                                  b->weight.data, b->top_k);
}

static double combine_backward_work(const struct bench *b)
{
    return bytes(b->out) + bytes(b->in) + bytes(b->y);
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
    return 7 * bytes(b->master) + (b->act == DTYPE_F32 ? 0 : bytes(b->expert_w));
}

/* Kernels that write what others read stand behind them, AdamW last. */
static const struct kernel kernels[] = {
    {"attention_forward",
     run_attention,
     attention_work,
     attention_bytes,
     {"attention_forward_kernel"},
     NULL},
    {"attention_backward",
     run_attention_backward,
     attention_backward_work,
     attention_backward_bytes,
     {"attention_backward_keys_kernel", "attention_backward_queries_kernel"},
     NULL},
    {"linear_forward", run_linear, linear_work, linear_bytes, {BENCH_PRODUCTS}, NULL},
    {"linear_backward_input", run_linear_input, linear_work, linear_bytes, {BENCH_PRODUCTS}, NULL},
    {"linear_backward_weight",
     run_linear_weight,
     linear_work,
     linear_weight_bytes,
     {BENCH_PRODUCTS},
     NULL},
    {"experts_forward", run_experts, experts_work, experts_bytes, {BENCH_PRODUCTS}, NULL},
    {"experts_backward_input",
     run_experts_input,
     experts_work,
     experts_bytes,
     {BENCH_PRODUCTS},
     NULL},
    {"experts_backward_weight",
     run_experts_weight,
     experts_work,
     experts_weight_bytes,
     {BENCH_PRODUCTS},
     NULL},
    {"head_cross_entropy",
     run_head,
     head_work,
     head_bytes,
     {BENCH_PRODUCTS, "cross_entropy_kernel"},
     NULL},
    {"router",
     run_router,
     router_work,
     router_bytes,
     {BENCH_PRODUCTS, "router_forward_kernel"},
     NULL},
    {"norm_forward", run_norm, NULL, norm_work, {"norm_forward_kernel"}, NULL},
    {"norm_backward", run_norm_backward, NULL, norm_work, {"norm_backward_kernel"}, NULL},
    {"rope", run_rope, NULL, rope_work, {"rope_kernel"}, NULL},
    {"swiglu_forward", run_swiglu, NULL, swiglu_work, {"swiglu_forward_kernel"}, NULL},
    {"swiglu_backward",
     run_swiglu_backward,
     NULL,
     swiglu_backward_work,
     {"swiglu_backward_kernel"},
     NULL},
    {"permute", run_permute, NULL, permute_work, {"copy_rows_kernel"}, NULL},
    {"combine", run_combine, NULL, combine_work, {"combine_rows_kernel"}, NULL},
    {"combine_backward",
     run_combine_backward,
     NULL,
     combine_backward_work,
     {"combine_rows_backward_kernel"},
     NULL},
    {"adamw", run_adamw, NULL, adamw_work, {"adamw_kernel"}, NULL},
};

const struct kernel *bench_layer_kernels(int *count)
{
    *count = sizeof kernels / sizeof kernels[0];
    return kernels;
}
