#include "trainer/model/mlp.h"

#include "trainer/model/block.h"

void mlp_layout(const struct model *model, struct mlp_state *state, const struct mlp_state *lender,
                int64_t inner, const struct layout *layout)
{
    const size_t row = (size_t)(model->batch * model->sequence) * dtype_bytes(model->act);
    if (inner > 0) {
        state->gate_up =
            layout_buffer(layout, MEMORY_INNER, lender->gate_up, 2 * (size_t)inner * row);
    }
}

int64_t mlp_widest(const struct architecture *arch)
{
    const int64_t dense = arch->dense_layers > 0 ? arch->dense_width : 0;
    return dense > arch->shared_width ? dense : arch->shared_width;
}

void mlp_scratch_layout(const struct model *model, struct mlp_scratch *scratch, struct arena *arena)
{
    const size_t bytes = (size_t)(model->batch * model->sequence * mlp_widest(&model->arch)) *
                         dtype_bytes(model->act);
    scratch->hidden = arena_alloc(arena, bytes);
    scratch->dhidden = arena_alloc(arena, model->training ? bytes : 0);
}

static struct tensor gate_up_weight(const struct model *model, int64_t block, int64_t inner)
{
    return model_weight(model, PARAM_DENSE, model->params.block[block].gate_up, 2 * inner,
                        model->arch.width);
}

static struct tensor down_weight(const struct model *model, int64_t block, int64_t inner)
{
    return model_weight(model, PARAM_DENSE, model->params.block[block].down, model->arch.width,
                        inner);
}

static struct tensor gate_up_of(const struct model *model, int64_t block, int64_t inner,
                                int64_t tokens)
{
    return model_act(model, model->blocks[block].mlp.gate_up, tokens, 2 * inner);
}

static void up(struct model *model, int64_t block, int64_t inner, struct tensor x)
{
    model->ops->linear_forward(model->device, gate_up_of(model, block, inner, x.dim[0]), x,
                               gate_up_weight(model, block, inner), false);
}

void mlp_forward_up(struct model *model, int64_t block, int64_t inner, struct tensor x)
{
    up(model, block, inner, x);
    model->ops->swiglu_forward(model->device, model_act(model, model->mlp.hidden, x.dim[0], inner),
                               gate_up_of(model, block, inner, x.dim[0]));
}

void mlp_forward_down(struct model *model, int64_t block, int64_t inner, struct tensor y, bool add)
{
    model->ops->linear_forward(model->device, y,
                               model_act(model, model->mlp.hidden, y.dim[0], inner),
                               down_weight(model, block, inner), add);
}

void mlp_backward_down(struct model *model, int64_t block, int64_t inner, struct tensor dy,
                       struct tensor x)
{
    const struct ops *ops = model->ops;
    const struct block_offsets *at = &model->params.block[block];
    const int64_t width = model->arch.width;
    const struct tensor gate_up = gate_up_of(model, block, inner, x.dim[0]);
    const struct tensor hidden = model_act(model, model->mlp.hidden, x.dim[0], inner),
                        dhidden = model_act(model, model->mlp.dhidden, x.dim[0], inner);
    if (model->config->train.recompute == CONFIG_RECOMPUTE_EXPERTS) {
        up(model, block, inner, x);
    }
    ops->swiglu_forward(model->device, hidden, gate_up);
    ops->linear_backward_weight(model->device,
                                model_grad(model, PARAM_DENSE, at->down, width, inner), dy, hidden);
    ops->linear_backward_input(model->device, dhidden, dy, down_weight(model, block, inner), false);
    ops->swiglu_backward(model->device, gate_up, dhidden, gate_up);
    ops->linear_backward_weight(
        model->device, model_grad(model, PARAM_DENSE, at->gate_up, 2 * inner, width), gate_up, x);
}

void mlp_backward_up(struct model *model, int64_t block, int64_t inner, struct tensor dx, bool add)
{
    model->ops->linear_backward_input(model->device, dx, gate_up_of(model, block, inner, dx.dim[0]),
                                      gate_up_weight(model, block, inner), add);
}
