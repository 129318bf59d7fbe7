#include "parallel/tensor.h"

#include <assert.h>

void tp_init(struct tp *tp, struct comm *comm, struct device *device, const struct ops *ops,
             int64_t sequence, int64_t width)
{
    assert(comm->size <= 1 || sequence % comm->size == 0);
    *tp = (struct tp){
        .comm = comm, .device = device, .ops = ops, .share = sequence / comm->size, .width = width};
}

void tp_layout(struct tp *tp, struct arena *arena)
{
    if (!tp_alone(tp)) {
        tp->sums = arena_alloc(arena, (size_t)((tp->comm->size + 1) * tp->share * tp->width) *
                                          sizeof *tp->sums);
    }
}

int64_t tp_first(const struct tp *tp)
{
    return tp->comm->rank * tp->share;
}

int64_t tp_tokens(const struct tp *tp, int64_t tokens)
{
    const int64_t left = tokens - tp_first(tp);
    return tp_alone(tp) ? tokens : left < 0 ? 0 : left < tp->share ? left : tp->share;
}

static char *row(struct tensor x, int64_t index)
{
    return (char *)x.data + (size_t)(index * x.dim[1]) * dtype_bytes(x.dtype);
}

/* Shares of a sequence that is not whole overlap the next one, which comes behind it. */
void tp_gather(const struct tp *tp, struct tensor full, struct tensor own, int64_t count)
{
    const int64_t tokens = full.dim[0] / count, mine = own.dim[0] / count;
    const size_t bytes = (size_t)(tp->share * own.dim[1]) * dtype_bytes(own.dtype);
    assert(mine == tp_tokens(tp, tokens) && full.dim[1] == own.dim[1]);
    for (int64_t s = 0; s < count; s++) {
        comm_device_all_gather(tp->comm, row(full, s * tokens), row(own, s * mine), bytes);
    }
}

/* Columns of scales, a row of them for each tile. */
static struct tensor scales_of(const struct fp8_rows *x)
{
    return tensor_2d(x->scale, DTYPE_F32, fp8_tiles(x->cols), x->pitch);
}

/* Of sequence s: those of each rank's share side by side in tp->sums, then where rows are. */
static void gather_scales(const struct tp *tp, const struct fp8_rows *full,
                          const struct fp8_rows *own, int64_t s, int64_t tokens, int64_t mine)
{
    const int64_t tiles = fp8_tiles(own->cols);
    const struct tensor part = tensor_2d(tp->sums, DTYPE_F32, tiles, tp->share);
    float *const all = tp->sums + tiles * tp->share;
    tp->ops->copy_columns(tp->device, part, 0, scales_of(own), s * mine, mine);
    comm_device_all_gather(tp->comm, all, part.data,
                           (size_t)(tiles * tp->share) * sizeof *tp->sums);
    for (int r = 0; r < tp->comm->size; r++) {
        const struct tensor from =
            tensor_2d(all + r * tiles * tp->share, DTYPE_F32, tiles, tp->share);
        const int64_t first = r * tp->share, left = tokens - first,
                      rows = left < tp->share ? left : tp->share;
        if (rows > 0) {
            tp->ops->copy_columns(tp->device, scales_of(full), s * tokens + first, from, 0, rows);
        }
    }
}

void tp_gather_codes(const struct tp *tp, struct fp8_rows full, struct fp8_rows own, int64_t count)
{
    const int64_t tokens = full.rows / count, mine = own.rows / count, width = own.cols;
    assert(mine == tp_tokens(tp, tokens) && full.cols == width && width <= tp->width);
    for (int64_t s = 0; s < count; s++) {
        comm_device_all_gather(tp->comm, full.code + s * tokens * width,
                               own.code + s * mine * width, (size_t)(tp->share * width));
        gather_scales(tp, &full, &own, s, tokens, mine);
    }
}

/* Rows [s * mine, ..) of own from the sum. */
static void take(const struct tp *tp, struct tensor own, int64_t first, int64_t rows,
                 const float *sum, bool add)
{
    const int64_t width = own.dim[1];
    const struct tensor to = tensor_2d(row(own, first), own.dtype, rows, width),
                        from = tensor_2d((float *)(uintptr_t)sum, DTYPE_F32, rows, width);
    if (!add) {
        tp->ops->cast(tp->device, to, from);
    } else if (own.dtype == DTYPE_F32) {
        tp->ops->add(tp->device, to, from);
    } else { /* rounded once, as on one rank; what was reduced is not needed any more */
        const struct tensor wide = tensor_2d(tp->sums, DTYPE_F32, rows, width);
        tp->ops->cast(tp->device, wide, to);
        tp->ops->add(tp->device, wide, from);
        tp->ops->cast(tp->device, to, wide);
    }
}

void tp_reduce(const struct tp *tp, struct tensor own, struct tensor full, int64_t count, bool add)
{
    const int64_t tokens = full.dim[0] / count, mine = own.dim[0] / count, width = own.dim[1],
                  all = tp->comm->size * tp->share;
    float *const sum = tp->sums + all * tp->width;
    assert(mine == tp_tokens(tp, tokens) && full.dim[1] == width && width <= tp->width);
    for (int64_t s = 0; s < count; s++) {
        const float *parts = (const float *)row(full, s * tokens);
        if (full.dtype != DTYPE_F32) {
            const struct tensor wide = tensor_2d(tp->sums, DTYPE_F32, tokens, width);
            tp->ops->cast(tp->device, wide,
                          tensor_2d(row(full, s * tokens), full.dtype, tokens, width));
            parts = tp->sums;
        }
        comm_device_reduce_scatter(tp->comm, sum, parts, tp->share * width, DTYPE_F32);
        take(tp, own, s * mine, mine, sum, add);
    }
}
