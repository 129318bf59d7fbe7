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

static struct fp8_buffer codes(struct arena *arena, int64_t rows, int64_t cols)
{
    return (struct fp8_buffer){.code = arena_alloc(arena, (size_t)(rows * cols)),
                               .scale = arena_alloc(arena, fp8_scale_bytes(rows, cols))};
}

void mlp_scratch_layout(struct mlp_scratch *scratch, const struct linears *linears, int64_t rows,
                        int64_t inner, const struct mlp_scratch *lender, struct arena *arena)
{
    const size_t bytes = (size_t)(rows * inner) * dtype_bytes(linears->act);
    const int64_t fp8 = linears->end - linears->first;
    if (lender != NULL) {
        *scratch = *lender;
    } else {
        scratch->gate_up = arena_alloc(arena, fp8 > 0 ? 2 * bytes : 0);
        scratch->d_codes =
            fp8 > 0 && linears->training ? codes(arena, rows, 2 * inner) : (struct fp8_buffer){0};
        scratch->dhidden = arena_alloc(arena, linears->training ? bytes : 0);
    }
    if (fp8 > 0) {
        scratch->hidden_codes = codes(arena, rows, inner);
    }
    scratch->hidden = arena_alloc(arena, fp8 < linears->blocks ? bytes : 0);
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

/* hidden, as down reads it. */
static struct operand hidden_of(const struct mlp *mlp, int64_t rows)
{
    if (in_fp8(mlp)) {
        return (struct operand){.q = fp8_view(mlp->scratch->hidden_codes, rows, mlp->down->in)};
    }
    return (struct operand){.act = rows_2d(mlp, mlp->scratch->hidden, rows, mlp->down->in)};
}

/* The gradient of gate and up: in FP8 its codes, else in place of what they were. */
static struct operand gradient_of(const struct mlp *mlp, int64_t rows)
{
    const int64_t width = mlp->up->out, groups = mlp->up->matrices * mlp->up->sources;
    if (in_fp8(mlp)) {
        return (struct operand){
            .q = fp8_view(mlp->scratch->d_codes, rows, width),
            .t = fp8_turned(mlp->linears->scratch.d_turned, rows, width, groups)};
    }
    return (struct operand){.act = rows_2d(mlp, mlp->state->gate_up, rows, width)};
}

void mlp_forward_up(const struct mlp *mlp, const struct operand *x, bool keep)
{
    const struct linears *linears = mlp->linears;
    const struct tensor gate_up = up(mlp, x);
    const struct operand hidden = hidden_of(mlp, gate_up.dim[0]);
    if (in_fp8(mlp)) {
        const struct fp8_how how = linears_how(linears, LINEAR_ACTIVATIONS);
        const struct fp8_rows none = {0},
                              kept = fp8_view(mlp->state->kept, gate_up.dim[0], gate_up.dim[1]);
        linears->ops->fp8->swiglu_forward(linears->device, hidden.q, keep ? kept : none, gate_up,
                                          mlp->offset, mlp->up->matrices, &how);
    } else {
        linears->ops->swiglu_forward(linears->device, hidden.act, gate_up);
    }
}

void mlp_forward_down(const struct mlp *mlp, struct tensor y, bool add)
{
    const struct operand hidden = hidden_of(mlp, y.dim[0]);
    linear_forward(mlp->linears, mlp->down, y, &hidden, mlp->offset, add);
}

void mlp_restore(const struct mlp *mlp, const struct operand *x)
{
    const struct linears *linears = mlp->linears;
    const struct tensor gate_up = up(mlp, x);
    if (in_fp8(mlp)) {
        const struct fp8_how how = linears_how_silent(linears);
        const struct fp8_rows none = {0},
                              kept = fp8_view(mlp->state->kept, gate_up.dim[0], gate_up.dim[1]);
        linears->ops->fp8->quantize(linears->device, kept, none, gate_up, NULL, kept.rows,
                                    mlp->offset, mlp->up->matrices, &how);
    }
}

void mlp_backward_down(const struct mlp *mlp, struct operand dy)
{
    const struct linears *linears = mlp->linears;
    const int64_t rows = rows_of(&dy), inner = mlp->down->in,
                  groups = mlp->up->matrices * mlp->up->sources;
    const struct tensor dhidden = rows_2d(mlp, mlp->scratch->dhidden, rows, inner), none = {0};
    const struct operand d = gradient_of(mlp, rows);
    struct operand hidden = hidden_of(mlp, rows);
    linear_ready(linears, mlp->down, &dy, mlp->source_offset);
    linear_backward_input(linears, mlp->down, dhidden, &dy, mlp->offset, false);
    if (in_fp8(mlp)) {
        const struct fp8_how how = linears_how(linears, LINEAR_GRADIENTS);
        hidden.t = fp8_turned(linears->scratch.x_turned, rows, inner, groups);
        linears->ops->fp8->swiglu_backward(linears->device, d.q, d.t, hidden.t, dhidden, none,
                                           fp8_view(mlp->state->kept, rows, 2 * inner),
                                           mlp->source_offset, groups, &how);
    } else {
        linears->ops->swiglu_backward(linears->device, d.act, hidden.act, dhidden, d.act);
    }
    linear_backward_weight(linears, mlp->down, &dy, &hidden, mlp->source_offset, rows);
}

void mlp_backward_up(const struct mlp *mlp, struct tensor dx, bool add)
{
    const struct operand d = gradient_of(mlp, dx.dim[0]);
    linear_backward_input(mlp->linears, mlp->up, dx, &d, mlp->offset, add);
}

void mlp_backward_up_weight(const struct mlp *mlp, const struct operand *x)
{
    const int64_t rows = rows_of(x);
    const struct operand d = gradient_of(mlp, rows);
    struct operand input = *x;
    linear_turn(mlp->linears, mlp->up, &input, mlp->source_offset);
    linear_backward_weight(mlp->linears, mlp->up, &d, &input, mlp->source_offset, rows);
}
