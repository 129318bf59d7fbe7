#include "trainer/model/divided.h"

#include "trainer/model/block.h"

/* Scales and, behind them, codes, which may overflow (tp_gather); half the bytes of bf16 and less.
 */
static struct fp8_rows codes_in(void *room, int64_t rows, int64_t cols)
{
    const size_t scales = (fp8_scale_bytes(rows, cols) + 15) / 16 * 16;
    const struct fp8_buffer buffer = {.code = (uint8_t *)room + scales, .scale = room};
    return fp8_view(buffer, rows, cols);
}

struct operand block_gather(const struct model *model, const struct block_call *call, int buffer,
                            const struct operand *x)
{
    const int64_t rows = call->count * call->sequence;
    if (tp_alone(&model->tp)) {
        return *x;
    }
    if (x->q.code != NULL) {
        const struct operand codes = {.q = codes_in(model->wide[buffer], rows, x->q.cols)};
        tp_gather_codes(&model->tp, codes.q, x->q, call->count);
        return codes;
    }
    const struct tensor whole = model_act(model, model->wide[buffer], rows, x->act.dim[1]);
    tp_gather(&model->tp, whole, x->act, call->count);
    return (struct operand){.act = whole};
}

void block_ready(struct model *model, const struct linear *linear, struct operand *dy)
{
    model->linears.again = model->tp.comm->rank > 0;
    linear_ready(&model->linears, linear, dy, NULL);
    model->linears.again = false;
}

void block_divided(const struct model *model, const struct linear *linear,
                   const struct block_call *call, struct tensor y, const struct operand *x)
{
    const struct operand whole = block_gather(model, call, 0, x);
    linear_forward(&model->linears, linear, y, &whole, NULL, false);
}

void block_divided_backward(const struct model *model, const struct linear *linear,
                            const struct block_call *call, struct tensor dx, struct tensor dy,
                            const struct operand *x)
{
    const struct operand whole = block_gather(model, call, 0, x);
    const struct tensor part = block_part(model, call, dx);
    linear_backward(&model->linears, linear, part, dy, &whole, false);
    block_join(model, call, dx, part, false);
}

struct tensor block_part(const struct model *model, const struct block_call *call, struct tensor y)
{
    return tp_alone(&model->tp)
               ? y
               : tensor_2d(model->wide[1], DTYPE_F32, call->count * call->sequence, y.dim[1]);
}

void block_join(const struct model *model, const struct block_call *call, struct tensor y,
                struct tensor part, bool add)
{
    if (!tp_alone(&model->tp)) {
        tp_reduce(&model->tp, y, part, call->count, add);
    }
}
