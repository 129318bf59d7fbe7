/* The op table of the CUDA device: each op finds its scratch and calls its launchers in order. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda_device.h"

static void embedding_forward(struct device *device, struct tensor y, const int32_t *ids,
                              struct tensor w)
{
    struct cuda_device *self = cuda_begin(device, "embedding_forward");
    cuda_embedding_forward(self->stream, y, ids, w);
    cuda_end(self);
}

static void embedding_backward(struct device *device, struct tensor dw, const int32_t *ids,
                               struct tensor dy)
{
    struct cuda_device *self = cuda_begin(device, "embedding_backward");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_embedding_backward_scratch(dy.dim[0]));
    cuda_embedding_backward(self->stream, dw, ids, dy, scratch);
    cuda_end(self);
}

static void norm_forward(struct device *device, struct tensor y, struct tensor sum, float *rstd,
                         struct tensor x, struct tensor delta, struct tensor w, float eps)
{
    struct cuda_device *self = cuda_begin(device, "norm_forward");
    cuda_norm_forward(self->stream, y, sum, rstd, x, delta, w, eps);
    cuda_end(self);
}

static void norm_backward(struct device *device, struct tensor dx, struct tensor dw,
                          struct tensor dy, struct tensor x, const float *rstd, struct tensor w)
{
    struct cuda_device *self = cuda_begin(device, "norm_backward");
    void *scratch =
        cuda_scratch(self, CUDA_SLOT_OP, cuda_norm_backward_scratch(dy.dim[0], dy.dim[1]));
    cuda_norm_backward(self->stream, dx, dw, dy, x, rstd, w, scratch);
    cuda_end(self);
}

static void rope(struct device *device, struct tensor x, const int32_t *positions,
                 const float *table, struct rope_shape shape, bool inverse)
{
    struct cuda_device *self = cuda_begin(device, "rope");
    cuda_rope(self->stream, x, positions, table, shape, inverse);
    cuda_end(self);
}

/* ---- router ---- */

static void router_logits(struct device *device, struct tensor logits, struct tensor x,
                          struct tensor w)
{
    struct cuda_device *self = cuda_begin(device, "router_logits");
    cuda_router_logits(self->stream, logits, x, w);
    cuda_end(self);
}

static void router_logits_backward(struct device *device, struct tensor dx, struct tensor dw,
                                   struct tensor dlogits, struct tensor x, struct tensor w,
                                   struct router_chosen chosen)
{
    (void)chosen; /* all of dlogits: one product */
    struct cuda_device *self = cuda_begin(device, "router_logits_backward");
    cuda_router_logits_backward(self->stream, dx, dw, dlogits, x, w);
    cuda_end(self);
}

/* The kernel needs somewhere to count, wanted or not. */
static void router_forward(struct device *device, int32_t *expert, float *weight, float *score,
                           float *lse, struct router_counts counts, const float *logits,
                           const float *bias, struct router_shape shape)
{
    struct cuda_device *self = cuda_begin(device, "router_forward");
    if (counts.routed == NULL && shape.tokens > 0) {
        const int64_t count = shape.tokens / shape.row_tokens * shape.experts;
        counts.routed = cuda_scratch(self, CUDA_SLOT_OP, (size_t)count * sizeof *counts.routed);
    }
    cuda_router_forward(self->stream, expert, weight, score, lse, counts, logits, bias, shape);
    cuda_end(self);
}

static void router_backward(struct device *device, float *dlogits, const float *dweight,
                            const int32_t *expert, const float *weight, const float *score,
                            const float *logits, const float *lse, const float *aux, float z_scale,
                            struct router_shape shape)
{
    struct cuda_device *self = cuda_begin(device, "router_backward");
    cuda_router_backward(self->stream, dlogits, dweight, expert, weight, score, logits, lse, aux,
                         z_scale, shape);
    cuda_end(self);
}

static void router_sums(struct device *device, double *sums, const float *score,
                        struct router_shape shape)
{
    struct cuda_device *self = cuda_begin(device, "router_sums");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_router_sums_scratch(shape));
    cuda_router_sums(self->stream, sums, score, shape, scratch);
    cuda_end(self);
}

static void router_count(struct device *device, int64_t *count, const int64_t *routed, int64_t rows,
                         int64_t experts)
{
    struct cuda_device *self = cuda_begin(device, "router_count");
    cuda_router_count(self->stream, count, routed, rows, experts);
    cuda_end(self);
}

static void router_even(struct device *device, int32_t *expert, float *weight,
                        struct router_counts counts, struct router_shape shape)
{
    struct cuda_device *self = cuda_begin(device, "router_even");
    cuda_router_even(self->stream, expert, weight, counts, shape);
    cuda_end(self);
}

static void balance(struct device *device, double *loss, float *gradient, const double *sums,
                    struct router_counts counts, const int64_t *chosen, const float *lse,
                    struct router_shape shape, const struct balance_terms *terms)
{
    struct cuda_device *self = cuda_begin(device, "balance");
    cuda_balance(self->stream, loss, gradient, sums, counts, chosen, lse, shape, terms);
    cuda_end(self);
}

/* ---- rows to experts and back ---- */

static void expert_sort(struct device *device, int64_t *offset, int32_t *token, int32_t *slot_row,
                        const int32_t *expert, int64_t slots, int64_t top_k, int64_t experts)
{
    struct cuda_device *self = cuda_begin(device, "expert_sort");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_expert_sort_scratch(slots, experts));
    cuda_expert_sort(self->stream, offset, token, slot_row, expert, slots, top_k, experts, scratch);
    cuda_end(self);
}

static void expert_regroup(struct device *device, int32_t *regroup, int32_t *ungroup,
                           int64_t *offset, const int64_t *taken, int64_t local, int64_t ranks)
{
    struct cuda_device *self = cuda_begin(device, "expert_regroup");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_expert_regroup_scratch(local, ranks));
    cuda_expert_regroup(self->stream, regroup, ungroup, offset, taken, local, ranks, scratch);
    cuda_end(self);
}

static void expert_unique(struct device *device, int64_t *begin, int32_t *token, int32_t *place,
                          const int32_t *expert, const int32_t *slot_row,
                          struct dispatch_shape shape)
{
    struct cuda_device *self = cuda_begin(device, "expert_unique");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_expert_unique_scratch(shape));
    cuda_expert_unique(self->stream, begin, token, place, expert, slot_row, shape, scratch);
    cuda_end(self);
}

static void expert_fan_out(struct device *device, int32_t *fan, const int32_t *ungroup,
                           const int32_t *place, const int64_t *arrived, const int64_t *unique,
                           int64_t ranks, int64_t rows)
{
    struct cuda_device *self = cuda_begin(device, "expert_fan_out");
    cuda_expert_fan_out(self->stream, fan, ungroup, place, arrived, unique, ranks, rows);
    cuda_end(self);
}

static void expert_relay(struct device *device, int32_t *relay, const int64_t *begin,
                         const int32_t *token, const int32_t *place, const int32_t *expert,
                         const int32_t *slot_row, struct dispatch_shape shape)
{
    struct cuda_device *self = cuda_begin(device, "expert_relay");
    cuda_expert_relay(self->stream, relay, begin, token, place, expert, slot_row, shape);
    cuda_end(self);
}

static void expert_pad(struct device *device, int32_t *message, int32_t *token, int32_t *row,
                       int32_t *back, const int64_t *offset, const int64_t *begin,
                       const int32_t *unique_token, const int32_t *place,
                       const struct padded_shape *shape)
{
    struct cuda_device *self = cuda_begin(device, "expert_pad");
    cuda_expert_pad(self->stream, message, token, row, back, offset, begin, unique_token, place,
                    *shape);
    cuda_end(self);
}

static void expert_unpad(struct device *device, int32_t *regroup, int32_t *ungroup, int32_t *fan,
                         int64_t *offset, const int32_t *message, const struct padded_shape *shape)
{
    struct cuda_device *self = cuda_begin(device, "expert_unpad");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_expert_unpad_scratch(*shape));
    cuda_expert_unpad(self->stream, regroup, ungroup, fan, offset, message, *shape, scratch);
    cuda_end(self);
}

static void expert_drop(struct device *device, int32_t *kept, const int32_t *expert,
                        const float *weight, int64_t slots, int64_t experts, int64_t groups,
                        int64_t capacity)
{
    struct cuda_device *self = cuda_begin(device, "expert_drop");
    cuda_expert_drop(self->stream, kept, expert, weight, slots, experts, groups, capacity);
    cuda_end(self);
}

static void expert_spread(struct device *device, int32_t *spread, float *spread_weight,
                          const int32_t *expert, const float *weight, int64_t slots, int64_t slices,
                          int64_t local)
{
    struct cuda_device *self = cuda_begin(device, "expert_spread");
    cuda_expert_spread(self->stream, spread, spread_weight, expert, weight, slots, slices, local);
    cuda_end(self);
}

static void expert_fold(struct device *device, float *weight, const float *spread_weight,
                        int64_t slots, int64_t slices)
{
    struct cuda_device *self = cuda_begin(device, "expert_fold");
    cuda_expert_fold(self->stream, weight, spread_weight, slots, slices);
    cuda_end(self);
}

static void gather_rows(struct device *device, struct tensor y, struct tensor x, const int32_t *row)
{
    struct cuda_device *self = cuda_begin(device, "gather_rows");
    cuda_gather_rows(self->stream, y, x, row);
    cuda_end(self);
}

static void scatter_rows(struct device *device, struct tensor y, const void *x, int64_t x_stride,
                         const int32_t *row, int64_t rows)
{
    struct cuda_device *self = cuda_begin(device, "scatter_rows");
    cuda_scatter_rows(self->stream, y, x, x_stride, row, rows);
    cuda_end(self);
}

static void combine_rows(struct device *device, struct tensor y, struct tensor x,
                         const int32_t *slot_row, const float *weight, int64_t top_k)
{
    struct cuda_device *self = cuda_begin(device, "combine_rows");
    cuda_combine_rows(self->stream, y, x, slot_row, weight, top_k);
    cuda_end(self);
}

static void combine_rows_backward(struct device *device, struct tensor dx, float *dweight,
                                  struct tensor dy, struct tensor x, const int32_t *slot_row,
                                  const float *weight, int64_t top_k)
{
    struct cuda_device *self = cuda_begin(device, "combine_rows_backward");
    cuda_combine_rows_backward(self->stream, dx, dweight, dy, x, slot_row, weight, top_k);
    cuda_end(self);
}

/* ---- elementwise ---- */

static void swiglu_forward(struct device *device, struct tensor h, struct tensor gate_up)
{
    struct cuda_device *self = cuda_begin(device, "swiglu_forward");
    cuda_swiglu_forward(self->stream, h, gate_up);
    cuda_end(self);
}

static void swiglu_backward(struct device *device, struct tensor dgate_up, struct tensor h,
                            struct tensor dh, struct tensor gate_up)
{
    struct cuda_device *self = cuda_begin(device, "swiglu_backward");
    cuda_swiglu_backward(self->stream, dgate_up, h, dh, gate_up);
    cuda_end(self);
}

static void fill(struct device *device, float *x, int64_t count, float value)
{
    struct cuda_device *self = cuda_begin(device, "fill");
    cuda_fill(self->stream, x, count, value);
    cuda_end(self);
}

static void jitter(struct device *device, struct tensor x, uint64_t key, uint64_t first, float eps)
{
    struct cuda_device *self = cuda_begin(device, "jitter");
    cuda_jitter(self->stream, x, key, first, eps);
    cuda_end(self);
}

static void init_normal(struct device *device, float *x, uint64_t key, uint64_t first,
                        int64_t count, float std)
{
    struct cuda_device *self = cuda_begin(device, "init_normal");
    cuda_init_normal(self->stream, x, key, first, count, std);
    cuda_end(self);
}

static void add(struct device *device, struct tensor y, struct tensor x)
{
    struct cuda_device *self = cuda_begin(device, "add");
    cuda_add(self->stream, y, x);
    cuda_end(self);
}

static void copy_columns(struct device *device, struct tensor y, int64_t y_first, struct tensor x,
                         int64_t x_first, int64_t columns)
{
    struct cuda_device *self = cuda_begin(device, "copy_columns");
    cuda_copy_columns(self->stream, y, y_first, x, x_first, columns);
    cuda_end(self);
}

static void cast(struct device *device, struct tensor y, struct tensor x)
{
    struct cuda_device *self = cuda_begin(device, "cast");
    cuda_cast(self->stream, y, x);
    cuda_end(self);
}

static void sum_squares(struct device *device, double *sum, const float *x, int64_t count)
{
    struct cuda_device *self = cuda_begin(device, "sum_squares");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_sum_squares_scratch(count));
    cuda_sum_squares(self->stream, sum, x, count, scratch);
    cuda_end(self);
}

/* ---- optimizers ---- */

/* Host memory for the list of pieces. */
static char *piece_list(struct cuda_device *self, size_t bytes)
{
    if (self->list_bytes < bytes) {
        free(self->list);
        self->list = malloc(bytes);
        self->list_bytes = bytes;
    }
    if (self->list == NULL) {
        cuda_check(self, cudaErrorMemoryAllocation, "host memory for the list of parameters");
    }
    return self->list;
}

/* The pieces and their parts travel to the device in one go. */
static void adamw(struct device *device, const struct adamw_piece *piece, int64_t pieces,
                  struct adamw args)
{
    const size_t list = (size_t)pieces * sizeof *piece;
    const size_t bytes = list + ((size_t)pieces + 1) * sizeof(int64_t);
    struct cuda_device *self = cuda_begin(device, "adamw");
    char *host = piece_list(self, bytes);
    int64_t *part = (int64_t *)(void *)(host + list);
    memcpy(host, piece, list);
    part[0] = 0;
    for (int64_t i = 0; i < pieces; i++) {
        part[i + 1] = part[i] + cuda_adamw_parts(piece[i].count);
    }
    char *scratch = cuda_scratch(self, CUDA_SLOT_OP, bytes);
    cuda_upload(device, scratch, host, bytes);
    self->op = "adamw";
    cuda_adamw(self->stream, (const struct adamw_piece *)(void *)scratch,
               (const int64_t *)(void *)(scratch + list), pieces, part[pieces], args);
    cuda_end(self);
}

static void muon_momentum(struct device *device, float *grad, void *m, int64_t count,
                          struct muon args)
{
    struct cuda_device *self = cuda_begin(device, "muon_momentum");
    cuda_muon_momentum(self->stream, grad, m, count, args);
    cuda_end(self);
}

static void muon_orthogonalize(struct device *device, struct tensor x, float *scratch)
{
    struct cuda_device *self = cuda_begin(device, "muon_orthogonalize");
    const int64_t least = x.dim[0] < x.dim[1] ? x.dim[0] : x.dim[1];
    const size_t bytes = cuda_muon_orthogonalize_scratch(x.dim[0], x.dim[1]);
    const size_t given = (size_t)(x.dim[0] * x.dim[1] + 2 * least * least) * sizeof *scratch;
    cuda_muon_orthogonalize(self->stream, x,
                            bytes <= given ? scratch : cuda_scratch(self, CUDA_SLOT_OP, bytes));
    cuda_end(self);
}

static void muon_update(struct device *device, float *param, void *out_bf16, const float *update,
                        int64_t count, struct muon args)
{
    struct cuda_device *self = cuda_begin(device, "muon_update");
    cuda_muon_update(self->stream, param, out_bf16, update, count, args);
    cuda_end(self);
}

static void ema(struct device *device, float *average, const float *x, int64_t count, double decay)
{
    struct cuda_device *self = cuda_begin(device, "ema");
    cuda_ema(self->stream, average, x, count, decay);
    cuda_end(self);
}

const struct ops cuda_ops = {
    .name = "cuda",
    .memory_alloc = cuda_memory_alloc,
    .memory_free = cuda_memory_free,
    .zero = cuda_zero,
    .fill = fill,
    .copy = cuda_copy,
    .upload = cuda_upload,
    .download = cuda_download,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .download_begin = cuda_download_begin,
    .download_wait = cuda_download_wait,
    .fetch = cuda_fetch,
    .fetched = cuda_fetched,
    .put = cuda_put,
    .window_settle = cuda_window_settle,
    .synchronize = cuda_synchronize,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_forget = cuda_graph_forget,
    .embedding_forward = embedding_forward,
    .embedding_backward = embedding_backward,
    .norm_forward = norm_forward,
    .norm_backward = norm_backward,
    .linear_forward = cuda_op_linear_forward,
    .linear_backward_input = cuda_op_linear_backward_input,
    .linear_backward_weight = cuda_op_linear_backward_weight,
    .rope = rope,
    .attention_forward = cuda_op_attention_forward,
    .attention_backward = cuda_op_attention_backward,
    .attention_decode = cuda_op_attention_decode,
    .mla_decode = cuda_op_mla_decode,
    .router_logits = router_logits,
    .router_logits_backward = router_logits_backward,
    .router_forward = router_forward,
    .router_backward = router_backward,
    .router_sums = router_sums,
    .router_count = router_count,
    .router_even = router_even,
    .balance = balance,
    .expert_sort = expert_sort,
    .expert_regroup = expert_regroup,
    .expert_unique = expert_unique,
    .expert_fan_out = expert_fan_out,
    .expert_relay = expert_relay,
    .expert_pad = expert_pad,
    .expert_unpad = expert_unpad,
    .expert_drop = expert_drop,
    .expert_spread = expert_spread,
    .expert_fold = expert_fold,
    .gather_rows = gather_rows,
    .scatter_rows = scatter_rows,
    .combine_rows = combine_rows,
    .combine_rows_backward = combine_rows_backward,
    .grouped_forward = cuda_op_grouped_forward,
    .grouped_backward_input = cuda_op_grouped_backward_input,
    .grouped_backward_weight = cuda_op_grouped_backward_weight,
    .swiglu_forward = swiglu_forward,
    .swiglu_backward = swiglu_backward,
    .cross_entropy = cuda_op_cross_entropy,
    .loss_stats = cuda_op_loss_stats,
    .loss_gradient = cuda_op_loss_gradient,
    .jitter = jitter,
    .init_normal = init_normal,
    .add = add,
    .copy_columns = copy_columns,
    .cast = cast,
    .sum_squares = sum_squares,
    .adamw = adamw,
    .muon_momentum = muon_momentum,
    .muon_orthogonalize = muon_orthogonalize,
    .muon_update = muon_update,
    .ema = ema,
    .fp8 = &cuda_fp8_ops,
    .fixed = &cuda_fixed_ops,
};
