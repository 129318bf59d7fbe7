/* ops_fixed_cuda: the CUDA device's struct fixed_ops. One product per (expert, source): the host
 * does not know which of them have rows, those without add zeros. */
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops_fixed.h"

static void add(struct device *device, int64_t *sum, float *x, int64_t count,
                struct fixed_point *fixed)
{
    struct cuda_device *self = cuda_begin(device, "fixed_add");
    cuda_fixed_add(self->stream, sum, x, count, fixed);
    cuda_end(self);
}

/* The wanted rows of unit[out, in], which is zeros again. */
static void add_live(struct device *device, int64_t *sum, float *unit, int64_t out, int64_t in,
                     const struct fixed_rows *live, struct fixed_point *fixed)
{
    const struct fixed_rows rows = live != NULL ? *live : (struct fixed_rows){0, out};
    cuda_fixed_add(cuda_device_of(device)->stream, sum + rows.first * in, unit + rows.first * in,
                   (rows.last - rows.first) * in, fixed);
    if (rows.first > 0) {
        cuda_zero(device, unit, (size_t)(rows.first * in) * sizeof *unit);
    }
    if (rows.last < out) {
        cuda_zero(device, unit + rows.last * in, (size_t)((out - rows.last) * in) * sizeof *unit);
    }
}

static const struct fixed_rows *rows_of(const struct fixed_rows *live, int64_t expert)
{
    return live != NULL ? &live[expert] : NULL;
}

static bool is_empty(const struct fixed_rows *rows)
{
    return rows != NULL && rows->first >= rows->last;
}

static void grouped_backward_weight(struct device *device, int64_t *sum, int64_t w_stride,
                                    float *unit, struct tensor dy, struct tensor x,
                                    const int64_t *offset, int64_t experts, int64_t sources,
                                    const struct fixed_rows *live, struct fixed_point *fixed)
{
    struct cuda_device *self = cuda_begin(device, "fixed_grouped_backward_weight");
    for (int64_t g = 0; g < experts * sources; g++) {
        const struct fixed_rows *own = rows_of(live, g / sources);
        if (!is_empty(own)) {
            cuda_grouped_backward_weight(self->stream, unit, 0, dy, x, offset + g, 1);
            add_live(device, sum + g / sources * w_stride, unit, dy.dim[1], x.dim[1], own, fixed);
        }
    }
    cuda_end(self);
}

static void fp8_linear_weight(struct device *device, int64_t *sum, int64_t w_stride, float *unit,
                              struct fp8_rows dyt, struct fp8_rows xt, const int64_t *offset,
                              int64_t experts, int64_t sources, int64_t tokens,
                              const struct fixed_rows *live, const struct fp8_how *how,
                              struct fixed_point *fixed)
{
    struct cuda_device *self = cuda_begin(device, "fixed_fp8_linear_weight");
    const int64_t groups = experts * sources;
    (void)how; /* products are summed as the device does best: config_check wants no other */
    for (int64_t g = 0; g < groups; g++) {
        const struct fixed_rows *own = rows_of(live, g / sources);
        if (!is_empty(own)) {
            cuda_fp8_linear_weight_of(self->stream, unit, dyt, xt, offset, g, groups, tokens);
            add_live(device, sum + g / sources * w_stride, unit, dyt.rows, xt.rows, own, fixed);
        }
    }
    cuda_end(self);
}

static void squares(struct device *device, int64_t *square, const int64_t *sum, int64_t count)
{
    struct cuda_device *self = cuda_begin(device, "fixed_squares");
    cuda_fixed_squares(self->stream, square, sum, count);
    cuda_end(self);
}

static void decode(struct device *device, float *out, const int64_t *sum, int64_t count,
                   float quantum)
{
    struct cuda_device *self = cuda_begin(device, "fixed_decode");
    cuda_fixed_decode(self->stream, out, sum, count, quantum);
    cuda_end(self);
}

static void expert_sources(struct device *device, int64_t *offset, const int32_t *message,
                           const struct padded_shape *shape)
{
    struct cuda_device *self = cuda_begin(device, "expert_sources");
    cuda_fixed_expert_sources(self->stream, offset, message, *shape);
    cuda_end(self);
}

const struct fixed_ops cuda_fixed_ops = {
    .add = add,
    .grouped_backward_weight = grouped_backward_weight,
    .fp8_linear_weight = fp8_linear_weight,
    .squares = squares,
    .decode = decode,
    .expert_sources = expert_sources,
};
