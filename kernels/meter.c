#include "kernels/meter.h"

#include <time.h>

#include "kernels/device_kind.h"

const char *const meter_names[METER_FAMILIES] = {
    [METER_PROJECTIONS] = "projections",
    [METER_PROJECTIONS_INPUT] = "projections_input",
    [METER_PROJECTIONS_WEIGHT] = "projections_weight",
    [METER_EXPERTS] = "experts",
    [METER_EXPERTS_INPUT] = "experts_input",
    [METER_EXPERTS_WEIGHT] = "experts_weight",
    [METER_HEAD] = "head_cross_entropy",
    [METER_ATTENTION] = "attention",
    [METER_ATTENTION_BACKWARD] = "attention_backward",
    [METER_SWIGLU] = "swiglu",
    [METER_SWIGLU_BACKWARD] = "swiglu_backward",
    [METER_NORM] = "norm",
    [METER_NORM_BACKWARD] = "norm_backward",
    [METER_ROUTER] = "router",
    [METER_DISPATCH] = "dispatch",
    [METER_ROWS] = "rope_columns",
    [METER_EMBEDDING] = "embedding",
    [METER_GRADIENT] = "gradient",
    [METER_OPTIMIZER] = "optimizer",
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static const struct ops *own(const struct device *device)
{
    return device->meter->ops;
}

static void count(struct device *device, enum meter_family family, double start, double flops,
                  double bytes)
{
    struct meter_line *line = &device->meter->line[family];
    line->seconds += now() - start;
    line->calls++;
    line->flops += flops;
    line->bytes += bytes;
}

static double bytes_of(struct tensor t)
{
    return (double)tensor_bytes(&t);
}

static double twice(double a, double b, double c)
{
    return 2 * a * b * c;
}

/* --- products --- */

static void linear_forward(struct device *device, struct tensor y, struct tensor x, struct tensor w,
                           bool add)
{
    const double start = now();
    own(device)->linear_forward(device, y, x, w, add);
    count(device, METER_PROJECTIONS, start,
          twice((double)x.dim[0], (double)w.dim[0], (double)w.dim[1]),
          bytes_of(x) + bytes_of(w) + (add ? 2 : 1) * bytes_of(y));
}

static void linear_backward_input(struct device *device, struct tensor dx, struct tensor dy,
                                  struct tensor w, bool add)
{
    const double start = now();
    own(device)->linear_backward_input(device, dx, dy, w, add);
    count(device, METER_PROJECTIONS_INPUT, start,
          twice((double)dy.dim[0], (double)w.dim[0], (double)w.dim[1]),
          bytes_of(dy) + bytes_of(w) + (add ? 2 : 1) * bytes_of(dx));
}

static void linear_backward_weight(struct device *device, struct tensor dw, struct tensor dy,
                                   struct tensor x)
{
    const double start = now();
    own(device)->linear_backward_weight(device, dw, dy, x);
    count(device, METER_PROJECTIONS_WEIGHT, start,
          twice((double)dy.dim[0], (double)dw.dim[0], (double)dw.dim[1]),
          bytes_of(dy) + bytes_of(x) + 2 * bytes_of(dw));
}

/* Of [rows, out] and [rows, in] in act and the experts' matrices, of `element` bytes. */
static void count_grouped(struct device *device, enum meter_family family, double start,
                          const struct tensor *a, const struct tensor *b, double element,
                          const int64_t *offset, int64_t experts)
{
    const double rows = (double)offset[experts], matrix = (double)a->dim[1] * (double)b->dim[1],
                 row = (double)(a->dim[1] + b->dim[1]) * (double)dtype_bytes(a->dtype);
    count(device, family, start, 2 * rows * matrix,
          rows * row + (double)experts * matrix * element);
}

static void grouped_forward(struct device *device, struct tensor y, struct tensor x, const void *w,
                            int64_t w_stride, const int64_t *offset, int64_t experts)
{
    const double start = now();
    own(device)->grouped_forward(device, y, x, w, w_stride, offset, experts);
    count_grouped(device, METER_EXPERTS, start, &y, &x, (double)dtype_bytes(x.dtype), offset,
                  experts);
}

static void grouped_backward_input(struct device *device, struct tensor dx, struct tensor dy,
                                   const void *w, int64_t w_stride, const int64_t *offset,
                                   int64_t experts)
{
    const double start = now();
    own(device)->grouped_backward_input(device, dx, dy, w, w_stride, offset, experts);
    count_grouped(device, METER_EXPERTS_INPUT, start, &dx, &dy, (double)dtype_bytes(dy.dtype),
                  offset, experts);
}

static void grouped_backward_weight(struct device *device, float *dw, int64_t w_stride,
                                    struct tensor dy, struct tensor x, const int64_t *offset,
                                    int64_t experts)
{
    const double start = now();
    own(device)->grouped_backward_weight(device, dw, w_stride, dy, x, offset, experts);
    count_grouped(device, METER_EXPERTS_WEIGHT, start, &dy, &x, 2 * (double)sizeof *dw, offset,
                  experts);
}

static void grouped_first_weight(struct device *device, float *dw, int64_t w_stride,
                                 struct tensor dy, struct tensor x, const int64_t *offset,
                                 int64_t experts)
{
    const double start = now();
    own(device)->grouped_first_weight(device, dw, w_stride, dy, x, offset, experts);
    count_grouped(device, METER_EXPERTS_WEIGHT, start, &dy, &x, (double)sizeof *dw, offset,
                  experts);
}

static void cross_entropy(struct device *device, double *loss, struct tensor dx, struct tensor dw,
                          struct tensor x, struct tensor w, const int32_t *labels, float loss_scale)
{
    const double start = now(), passes = dx.data != NULL ? 3 : 1;
    own(device)->cross_entropy(device, loss, dx, dw, x, w, labels, loss_scale);
    count(device, METER_HEAD, start,
          passes * twice((double)x.dim[0], (double)w.dim[0], (double)w.dim[1]),
          bytes_of(x) + bytes_of(w) + (dx.data != NULL ? bytes_of(dx) + 2 * bytes_of(dw) : 0.0));
}

/* --- attention --- */

static int64_t keys_of(const struct attention_shape *shape)
{
    return shape->keys > 0 ? shape->keys : shape->sequence;
}

/* Pairs of a query and a key it sees, of all heads; documents are not looked at. */
static double pairs(const struct attention_shape *shape)
{
    int64_t sum = 0;
    for (int64_t t = shape->ahead; t < shape->ahead + shape->sequence; t++) {
        const int64_t end = t < keys_of(shape) ? t + 1 : keys_of(shape),
                      low = shape->window > 0 && t >= shape->window ? t - shape->window + 1 : 0;
        sum += low < end ? end - low : 0;
    }
    return (double)(shape->batch * shape->heads) * (double)sum;
}

/* Of q, o, and the keys and values, once. */
static double attention_bytes(const struct attention_shape *shape)
{
    const int64_t query = shape->heads * (shape->qk_dim + shape->v_dim),
                  own_keys = shape->kv_heads * (shape->qk_dim - shape->rope_dim + shape->v_dim);
    return (double)(shape->batch *
                    (shape->sequence * query + keys_of(shape) * (own_keys + shape->rope_dim))) *
           (double)dtype_bytes(shape->dtype);
}

static void attention_forward(struct device *device, void *o, float *lse, const void *q,
                              const void *k, const void *k_rope, const void *v,
                              const struct attention_shape *shape)
{
    const double start = now();
    own(device)->attention_forward(device, o, lse, q, k, k_rope, v, shape);
    count(device, METER_ATTENTION, start, 2 * pairs(shape) * (double)(shape->qk_dim + shape->v_dim),
          attention_bytes(shape));
}

static void attention_backward(struct device *device, void *dq, void *dk, void *dk_rope, void *dv,
                               const void *d_o, const void *o, const float *lse, const void *q,
                               const void *k, const void *k_rope, const void *v,
                               const struct attention_shape *shape)
{
    const double start = now();
    own(device)->attention_backward(device, dq, dk, dk_rope, dv, d_o, o, lse, q, k, k_rope, v,
                                    shape);
    count(device, METER_ATTENTION_BACKWARD, start,
          2 * pairs(shape) * (double)(3 * shape->qk_dim + 2 * shape->v_dim),
          2 * attention_bytes(shape));
}

/* --- rows --- */

static void norm_forward(struct device *device, struct tensor y, struct tensor sum, float *rstd,
                         struct tensor x, struct tensor delta, struct tensor w, float eps)
{
    const double start = now();
    own(device)->norm_forward(device, y, sum, rstd, x, delta, w, eps);
    count(device, METER_NORM, start, 0,
          bytes_of(x) + bytes_of(y) + (delta.data != NULL ? 2 * bytes_of(x) : 0.0));
}

static void norm_backward(struct device *device, struct tensor dx, struct tensor dw,
                          struct tensor dy, struct tensor x, const float *rstd, struct tensor w)
{
    const double start = now();
    own(device)->norm_backward(device, dx, dw, dy, x, rstd, w);
    count(device, METER_NORM_BACKWARD, start, 0, 2 * bytes_of(dx) + bytes_of(dy) + bytes_of(x));
}

static void swiglu_forward(struct device *device, struct tensor h, struct tensor gate_up)
{
    const double start = now();
    own(device)->swiglu_forward(device, h, gate_up);
    count(device, METER_SWIGLU, start, 0, bytes_of(h) + bytes_of(gate_up));
}

static void swiglu_backward(struct device *device, struct tensor dgate_up, struct tensor h,
                            struct tensor dh, struct tensor gate_up)
{
    const double start = now();
    own(device)->swiglu_backward(device, dgate_up, h, dh, gate_up);
    count(device, METER_SWIGLU_BACKWARD, start, 0,
          bytes_of(dgate_up) + bytes_of(dh) + bytes_of(gate_up) +
              (h.data != NULL ? bytes_of(h) : 0));
}

static void rope(struct device *device, struct tensor x, const int32_t *positions,
                 const float *table, struct rope_shape shape, bool inverse)
{
    const double start = now();
    own(device)->rope(device, x, positions, table, shape, inverse);
    count(device, METER_ROWS, start, 0,
          2 * (double)(x.dim[0] * shape.heads * shape.dim) * (double)dtype_bytes(x.dtype));
}

static void copy_columns(struct device *device, struct tensor y, int64_t y_first, struct tensor x,
                         int64_t x_first, int64_t columns)
{
    const double start = now();
    own(device)->copy_columns(device, y, y_first, x, x_first, columns);
    count(device, METER_ROWS, start, 0,
          2 * (double)(x.dim[0] * columns) * (double)dtype_bytes(x.dtype));
}

static void add(struct device *device, struct tensor y, struct tensor x)
{
    const double start = now();
    own(device)->add(device, y, x);
    count(device, METER_ROWS, start, 0, 2 * bytes_of(y) + bytes_of(x));
}

static void embedding_forward(struct device *device, struct tensor y, const int32_t *ids,
                              struct tensor w)
{
    const double start = now();
    own(device)->embedding_forward(device, y, ids, w);
    count(device, METER_EMBEDDING, start, 0, 2 * bytes_of(y));
}

static void embedding_backward(struct device *device, struct tensor dw, const int32_t *ids,
                               struct tensor dy)
{
    const double start = now();
    own(device)->embedding_backward(device, dw, ids, dy);
    count(device, METER_EMBEDDING, start, 0,
          bytes_of(dy) + 2 * (double)tensor_count(&dy) * (double)sizeof(float));
}

/* --- router and dispatch --- */

static void router_logits(struct device *device, struct tensor logits, struct tensor x,
                          struct tensor w)
{
    const double start = now();
    own(device)->router_logits(device, logits, x, w);
    count(device, METER_ROUTER, start, twice((double)x.dim[0], (double)w.dim[0], (double)w.dim[1]),
          bytes_of(logits) + bytes_of(x) + bytes_of(w));
}

static void router_logits_backward(struct device *device, struct tensor dx, struct tensor dw,
                                   struct tensor dlogits, struct tensor x, struct tensor w,
                                   struct router_chosen chosen)
{
    const double start = now();
    const int64_t each =
        chosen.expert != NULL && !chosen.rest ? chosen.top_k : w.dim[0]; /* needed */
    own(device)->router_logits_backward(device, dx, dw, dlogits, x, w, chosen);
    count(device, METER_ROUTER, start, 2 * twice((double)x.dim[0], (double)each, (double)w.dim[1]),
          bytes_of(dlogits) + bytes_of(x) + 2 * bytes_of(dx) + bytes_of(w) + 2 * bytes_of(dw));
}

static double router_bytes(struct router_shape shape)
{
    return (double)(shape.tokens * (2 * shape.experts + 2 * shape.top_k)) * (double)sizeof(float);
}

static void router_forward(struct device *device, int32_t *expert, float *weight, float *score,
                           float *lse, struct router_counts counts, const float *logits,
                           const float *bias, struct router_shape shape)
{
    const double start = now();
    own(device)->router_forward(device, expert, weight, score, lse, counts, logits, bias, shape);
    count(device, METER_ROUTER, start, 0, router_bytes(shape));
}

static void router_backward(struct device *device, float *dlogits, const float *dweight,
                            const int32_t *expert, const float *weight, const float *score,
                            const float *logits, const float *lse, const float *aux, float z_scale,
                            struct router_shape shape)
{
    const double start = now();
    own(device)->router_backward(device, dlogits, dweight, expert, weight, score, logits, lse, aux,
                                 z_scale, shape);
    count(device, METER_ROUTER, start, 0, router_bytes(shape));
}

static void router_sums(struct device *device, double *sums, const float *score,
                        struct router_shape shape)
{
    const double start = now();
    own(device)->router_sums(device, sums, score, shape);
    count(device, METER_ROUTER, start, 0,
          (double)(shape.tokens * shape.experts) * (double)sizeof *score);
}

static void expert_sort(struct device *device, int64_t *offset, int32_t *token, int32_t *slot_row,
                        const int32_t *expert, int64_t slots, int64_t top_k, int64_t experts)
{
    const double start = now();
    own(device)->expert_sort(device, offset, token, slot_row, expert, slots, top_k, experts);
    count(device, METER_DISPATCH, start, 0, 3 * (double)slots * (double)sizeof *token);
}

static void gather_rows(struct device *device, struct tensor y, struct tensor x, const int32_t *row)
{
    const double start = now();
    own(device)->gather_rows(device, y, x, row);
    count(device, METER_DISPATCH, start, 0, bytes_of(x) + bytes_of(y));
}

static void combine_rows(struct device *device, struct tensor y, struct tensor x,
                         const int32_t *slot_row, const float *weight, int64_t top_k)
{
    const double start = now();
    own(device)->combine_rows(device, y, x, slot_row, weight, top_k);
    count(device, METER_DISPATCH, start, 0, bytes_of(x) + bytes_of(y));
}

static void combine_rows_backward(struct device *device, struct tensor dx, float *dweight,
                                  struct tensor dy, struct tensor x, const int32_t *slot_row,
                                  const float *weight, int64_t top_k)
{
    const double start = now();
    own(device)->combine_rows_backward(device, dx, dweight, dy, x, slot_row, weight, top_k);
    count(device, METER_DISPATCH, start, 0, bytes_of(dx) + bytes_of(dy) + bytes_of(x));
}

/* --- the step's end --- */

static void zero(struct device *device, void *data, size_t bytes)
{
    const double start = now();
    own(device)->zero(device, data, bytes);
    count(device, METER_GRADIENT, start, 0, (double)bytes);
}

static void sum_squares(struct device *device, double *sum, const float *x, int64_t elements)
{
    const double start = now();
    own(device)->sum_squares(device, sum, x, elements);
    count(device, METER_GRADIENT, start, 0, (double)elements * (double)sizeof *x);
}

/* The gradient is read, the parameter and its moments read and written, the copy in bf16 written.
 */
static void adamw(struct device *device, const struct adamw_piece *piece, int64_t pieces,
                  struct adamw args)
{
    const double start = now();
    double bytes = 0;
    own(device)->adamw(device, piece, pieces, args);
    for (int64_t i = 0; i < pieces; i++) {
        const size_t moments = 4 * dtype_bytes(args.moments),
                     copy = piece[i].out != NULL ? dtype_bytes(DTYPE_BF16) : 0;
        const size_t grad = piece[i].sum != NULL ? sizeof(int64_t) : sizeof(float);
        bytes += (double)piece[i].count * (double)(grad + 2 * sizeof(float) + moments + copy);
    }
    count(device, METER_OPTIMIZER, start, 0, bytes);
}

void meter_wrap(struct ops *ops)
{
    ops->linear_forward = linear_forward;
    ops->linear_backward_input = linear_backward_input;
    ops->linear_backward_weight = linear_backward_weight;
    ops->grouped_forward = grouped_forward;
    ops->grouped_backward_input = grouped_backward_input;
    ops->grouped_backward_weight = grouped_backward_weight;
    if (ops->grouped_first_weight != NULL) {
        ops->grouped_first_weight = grouped_first_weight;
    }
    ops->cross_entropy = cross_entropy;
    ops->attention_forward = attention_forward;
    ops->attention_backward = attention_backward;
    ops->norm_forward = norm_forward;
    ops->norm_backward = norm_backward;
    ops->swiglu_forward = swiglu_forward;
    ops->swiglu_backward = swiglu_backward;
    ops->rope = rope;
    ops->copy_columns = copy_columns;
    ops->add = add;
    ops->embedding_forward = embedding_forward;
    ops->embedding_backward = embedding_backward;
    ops->router_logits = router_logits;
    ops->router_logits_backward = router_logits_backward;
    ops->router_forward = router_forward;
    ops->router_backward = router_backward;
    ops->router_sums = router_sums;
    ops->expert_sort = expert_sort;
    ops->gather_rows = gather_rows;
    ops->combine_rows = combine_rows;
    ops->combine_rows_backward = combine_rows_backward;
    ops->zero = zero;
    ops->sum_squares = sum_squares;
    ops->adamw = adamw;
}
