#include "trainer/model/mlp.h"

#include "trainer/model/block.h"

void mlp_layout(struct mlp_state *state, const struct mlp_state *lender, int64_t rows,
                int64_t inner, enum dtype act, const struct layout *layout)
{
    if (layout->act) {
        state->gate_up = layout_buffer(layout, MEMORY_INNER, lender->gate_up,
                                       (size_t)(rows * 2 * inner) * dtype_bytes(act));
    }
    if (layout->fp8 && layout->training) {
        state->kept = layout_codes(layout, MEMORY_INNER, lender->kept, rows, 2 * inner);
    }
}

int64_t mlp_widest(const struct architecture *arch)
{
    const int64_t dense = arch->dense_layers > 0 ? arch->dense_width : 0;
    return dense > arch->shared_width ? dense : arch->shared_width;
}

void mlp_scratch_layout(const struct model *model, struct mlp_scratch *scratch, struct arena *arena)
{
    const struct linears *linears = &model->linears;
    const int64_t dense = model->batch * model->sequence * mlp_widest(&model->arch),
                  experts = model->moe.bound * model->arch.expert_width;
    const size_t bytes = (size_t)(dense > experts ? dense : experts) * dtype_bytes(model->act);
    const int64_t fp8 = linears->end - linears->first;
    scratch->gate_up = arena_alloc(arena, fp8 > 0 ? 2 * bytes : 0);
    scratch->hidden = arena_alloc(arena, fp8 < linears->blocks ? bytes : 0);
    scratch->dhidden = arena_alloc(arena, model->training ? bytes : 0);
}

static bool in_fp8(const struct mlp *mlp)
{
    return mlp->up->w.code != NULL;
}

static int64_t rows_of(const struct operand *x)
{
    return x->q.code != NULL ? x->q.rows : x->act.dim[0];
}

static struct tensor rows_2d(const struct mlp *mlp, void *data, int64_t rows, int64_t cols)
{
    return tensor_2d(data, mlp->linears->act, rows, cols);
}

/* Gate and up of x, in act. */
static struct tensor up(const struct mlp *mlp, const struct operand *x)
{
    void *data = in_fp8(mlp) ? mlp->scratch->gate_up : mlp->state->gate_up;
    const struct tensor gate_up = rows_2d(mlp, data, rows_of(x), mlp->up->out);
    linear_forward(mlp->linears, mlp->up, gate_up, x, mlp->offset, false);
    return gate_up;
}

void mlp_forward(const struct mlp *mlp, struct tensor y, const struct operand *x, bool add,
                 bool keep)
{
    const struct linears *linears = mlp->linears;
    const int64_t rows = rows_of(x), inner = mlp->down->in;
    const struct tensor gate_up = up(mlp, x);
    struct operand hidden = {0};
    if (in_fp8(mlp)) {
        const struct fp8_how how = linears_how(linears, LINEAR_ACTIVATIONS);
        const struct fp8_rows none = {0}, kept = fp8_view(mlp->state->kept, rows, 2 * inner);
        hidden.q = fp8_view(linears->scratch.x, rows, inner);
        linears->ops->fp8->swiglu_forward(linears->device, hidden.q, keep ? kept : none, gate_up,
                                          &how);
    } else {
        hidden.act = rows_2d(mlp, mlp->scratch->hidden, rows, inner);
        linears->ops->swiglu_forward(linears->device, hidden.act, gate_up);
    }
    linear_forward(linears, mlp->down, y, &hidden, mlp->offset, add);
}

void mlp_restore(const struct mlp *mlp, const struct operand *x)
{
    const struct linears *linears = mlp->linears;
    const struct tensor gate_up = up(mlp, x);
    if (in_fp8(mlp)) {
        const struct fp8_how how = linears_how_silent(linears);
        const struct fp8_rows none = {0},
                              kept = fp8_view(mlp->state->kept, gate_up.dim[0], gate_up.dim[1]);
        linears->ops->fp8->quantize(linears->device, kept, none, gate_up, NULL, kept.rows, NULL, 1,
                                    &how);
    }
}

/* From dhidden: gradients of gate and up, and the hidden values again as down's weight gradient
 * reads them. */
static struct operand inside_backward(const struct mlp *mlp, struct operand *hidden,
                                      struct tensor dhidden)
{
    const struct linears *linears = mlp->linears;
    const int64_t rows = dhidden.dim[0], inner = dhidden.dim[1], groups = mlp->up->matrices;
    struct operand d = {0};
    if (!in_fp8(mlp)) {
        d.act = rows_2d(mlp, mlp->state->gate_up, rows, 2 * inner);
        linears->ops->swiglu_backward(linears->device, d.act, dhidden, d.act);
        return d;
    }
    const struct fp8_how how = linears_how(linears, LINEAR_GRADIENTS);
    const struct tensor none = {0};
    d.q = fp8_view(linears->scratch.dy, rows, 2 * inner);
    d.t = fp8_turned(linears->scratch.d_turned, rows, 2 * inner, groups);
    hidden->t = fp8_turned(linears->scratch.x_turned, rows, inner, groups);
    linears->ops->fp8->swiglu_backward(linears->device, d.q, d.t, hidden->t, dhidden, none,
                                       fp8_view(mlp->state->kept, rows, 2 * inner), mlp->offset,
                                       groups, &how);
    return d;
}

void mlp_backward(const struct mlp *mlp, struct tensor dx, struct operand dy,
                  const struct operand *x, bool add)
{
    const struct linears *linears = mlp->linears;
    const int64_t rows = rows_of(x), inner = mlp->down->in;
    const struct tensor dhidden = rows_2d(mlp, mlp->scratch->dhidden, rows, inner);
    struct operand hidden = {0}, input = *x;
    if (!in_fp8(mlp)) {
        hidden.act = rows_2d(mlp, mlp->scratch->hidden, rows, inner);
        linears->ops->swiglu_forward(linears->device, hidden.act,
                                     rows_2d(mlp, mlp->state->gate_up, rows, 2 * inner));
    }
    linear_ready(linears, mlp->down, &dy, mlp->offset);
    linear_backward_input(linears, mlp->down, dhidden, &dy, mlp->offset, false);
    const struct operand d = inside_backward(mlp, &hidden, dhidden); /* dy->q is gone */
    linear_backward_weight(linears, mlp->down, &dy, &hidden, mlp->offset, rows);
    input.t.code = NULL; /* hidden had its place */
    linear_turn(linears, mlp->up, &input, mlp->offset);
    linear_backward_weight(linears, mlp->up, &d, &input, mlp->offset, rows);
    linear_backward_input(linears, mlp->up, dx, &d, mlp->offset, add);
}
