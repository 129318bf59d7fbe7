#include "trainer/moe.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static struct router_shape router_shape(const struct moe *moe, int64_t tokens)
{
    return (struct router_shape){.tokens = tokens,
                                 .experts = moe->config->model.num_local_experts,
                                 .top_k = moe->config->model.num_experts_per_tok,
                                 .normalize = true};
}

void moe_state_layout(struct moe_state *state, const struct moe *moe,
                      const struct moe_state *lender, const struct moe_state *gate_up,
                      struct arena *arena)
{
    const int64_t n = moe->tokens, width = moe->config->model.hidden_size;
    const int64_t top_k = moe->config->model.num_experts_per_tok,
                  experts = moe->config->model.num_local_experts;
    const size_t slots = (size_t)(n * top_k), act = dtype_bytes(moe->act),
                 rows = (size_t)state->plan.bound;
    state->expert = arena_alloc(arena, slots * sizeof(int32_t));
    state->routed = arena_alloc(arena, slots * sizeof(int32_t));
    state->weight = arena_alloc(arena, slots * sizeof(float));
    state->prob = arena_alloc(arena, (size_t)(n * experts) * sizeof(float));
    state->lse = arena_alloc(arena, (size_t)n * sizeof(float));
    state->count = arena_alloc(arena, (size_t)experts * sizeof(int64_t));
    if (lender != NULL) {
        state->input = lender->input;
        state->output = lender->output;
        state->gate_up = lender->gate_up;
        return;
    }
    state->input = arena_alloc(arena, rows * (size_t)width * act);
    state->output = arena_alloc(arena, slots * (size_t)width * act);
    state->gate_up =
        gate_up != NULL
            ? gate_up->gate_up
            : arena_alloc(arena, rows * 2 * (size_t)moe->config->model.intermediate_size * act);
}

void moe_scratch_layout(struct moe *moe, int64_t bound, struct arena *arena)
{
    const int64_t n = moe->tokens, width = moe->config->model.hidden_size;
    const int64_t slots = n * moe->config->model.num_experts_per_tok;
    const size_t act = dtype_bytes(moe->act), row = (size_t)width * act;
    const size_t inner = (size_t)(bound * moe->config->model.intermediate_size) * act;
    struct moe_scratch *scratch = &moe->scratch;
    scratch->logits =
        arena_alloc(arena, (size_t)(n * moe->config->model.num_local_experts) * sizeof(float));
    scratch->dweight = arena_alloc(arena, (size_t)slots * sizeof(float));
    scratch->token = arena_alloc(arena, (size_t)slots * sizeof(int32_t));
    scratch->send = arena_alloc(arena, (size_t)slots * row);
    scratch->rows = arena_alloc(arena, (size_t)bound * row);
    scratch->hidden = arena_alloc(arena, inner);
    scratch->dhidden = arena_alloc(arena, inner);
    scratch->buffer = arena_alloc(arena, (size_t)(bound + slots) * row);
}

/* bench: every expert gets the same number of slots, with equal weights. */
static void force_balance(struct moe_state *state, struct router_shape shape)
{
    memset(state->count, 0, (size_t)shape.experts * sizeof *state->count);
    for (int64_t slot = 0; slot < shape.tokens * shape.top_k; slot++) {
        state->expert[slot] = (int32_t)(slot % shape.experts);
        state->weight[slot] = 1.0F / (float)shape.top_k;
        state->count[slot % shape.experts]++;
    }
}

static void route(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                  struct tensor x, bool training)
{
    const struct router_shape shape = router_shape(moe, x.dim[0]);
    const int64_t slots = shape.tokens * shape.top_k;
    struct tensor logits = tensor_2d(moe->scratch.logits, DTYPE_F32, shape.tokens, shape.experts);
    moe->ops->router_logits(moe->device, logits, x, weights->gate);
    moe->ops->router_forward(moe->device, state->expert, state->weight, state->prob, state->lse,
                             state->count, moe->scratch.logits, shape);
    if (moe->config->router.force_balanced) {
        force_balance(state, shape);
    }
    memcpy(state->routed, state->expert, (size_t)slots * sizeof *state->routed);
    state->dropped = 0;
    if (training && moe->config->router.capacity_factor > 0) {
        const double fair = (double)slots / (double)shape.experts;
        state->dropped =
            expert_drop(state->routed, state->weight, shape.tokens, shape.top_k, shape.experts,
                        (int64_t)ceil(moe->config->router.capacity_factor * fair));
    }
    expert_plan_make(&state->plan, state->routed, shape.tokens, shape.top_k);
}

/* Rows of x in send order. */
static void gather_sent(struct moe *moe, const struct moe_state *state, struct tensor sent,
                        struct tensor x)
{
    const int64_t top_k = moe->config->model.num_experts_per_tok;
    for (int64_t i = 0; i < state->plan.sent; i++) {
        moe->scratch.token[i] = (int32_t)(state->plan.send_slot[i] / top_k);
    }
    moe->ops->gather_rows(moe->device, sent, x, moe->scratch.token);
}

static struct tensor act_rows(const struct moe *moe, void *data, int64_t rows, int64_t cols)
{
    return tensor_2d(data, moe->act, rows, cols);
}

/* With one rank in ep, rows in send order are rows in expert order: nothing travels. */
static bool alone(const struct moe_state *state)
{
    return state->plan.ep->size == 1;
}

/* Round `round` of dispatch, leaving the rows in state->input and gate_up. */
static void experts_up(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                       struct tensor sent, int64_t round)
{
    const int64_t width = moe->config->model.hidden_size,
                  inner = moe->config->model.intermediate_size;
    expert_plan_round(&state->plan, round);
    struct tensor input = act_rows(moe, state->input, state->plan.received, width);
    if (!alone(state)) {
        expert_dispatch(&state->plan, moe->device, moe->ops, input, sent, moe->scratch.buffer);
    }
    struct tensor gate_up = act_rows(moe, state->gate_up, state->plan.received, 2 * inner);
    moe->ops->grouped_forward(moe->device, gate_up, input, weights->experts, moe->expert_stride,
                              state->plan.offset, moe->local_experts);
}

static void experts_down(struct moe *moe, struct moe_state *state,
                         const struct moe_weights *weights, struct tensor output)
{
    const int64_t inner = moe->config->model.intermediate_size, received = state->plan.received;
    struct tensor hidden = act_rows(moe, moe->scratch.hidden, received, inner);
    moe->ops->swiglu_forward(moe->device, hidden,
                             act_rows(moe, state->gate_up, received, 2 * inner));
    struct tensor rows =
        alone(state) ? output : act_rows(moe, moe->scratch.rows, received, output.dim[1]);
    const char *down = weights->experts + (size_t)moe->down_offset * dtype_bytes(moe->act);
    moe->ops->grouped_forward(moe->device, rows, hidden, down, moe->expert_stride,
                              state->plan.offset, moe->local_experts);
    if (!alone(state)) {
        expert_combine(&state->plan, moe->device, moe->ops, output, rows, moe->scratch.buffer);
    }
}

void moe_forward(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                 struct tensor y, struct tensor x, bool training)
{
    route(moe, state, weights, x, training);
    const int64_t sent_rows = state->plan.sent, width = x.dim[1];
    struct tensor sent =
        act_rows(moe, alone(state) ? state->input : moe->scratch.send, sent_rows, width);
    struct tensor output = act_rows(moe, state->output, sent_rows, width);
    gather_sent(moe, state, sent, x);
    for (int64_t round = 0; round < state->plan.rounds; round++) {
        experts_up(moe, state, weights, sent, round);
        experts_down(moe, state, weights, output);
    }
    moe->ops->combine_rows(moe->device, y, output, state->plan.slot_row, state->weight,
                           moe->config->model.num_experts_per_tok);
}

/* One round: dsent (gradients of outputs, send order) becomes gradients of inputs, in place. */
static void experts_backward(struct moe *moe, struct moe_state *state,
                             const struct moe_weights *weights, const struct moe_weights *grads,
                             struct tensor dsent)
{
    const struct ops *ops = moe->ops;
    const int64_t width = dsent.dim[1], inner = moe->config->model.intermediate_size;
    const int64_t rows = state->plan.received, local = moe->local_experts,
                  stride = moe->expert_stride;
    const int64_t *offset = state->plan.offset;
    const char *down = weights->experts + (size_t)moe->down_offset * dtype_bytes(moe->act);
    float *dup = (float *)(void *)grads->experts;
    struct tensor drows = alone(state) ? dsent : act_rows(moe, moe->scratch.rows, rows, width);
    struct tensor input = act_rows(moe, state->input, rows, width);
    struct tensor gate_up = act_rows(moe, state->gate_up, rows, 2 * inner);
    struct tensor hidden = act_rows(moe, moe->scratch.hidden, rows, inner);
    struct tensor dhidden = act_rows(moe, moe->scratch.dhidden, rows, inner);
    if (!alone(state)) {
        expert_dispatch(&state->plan, moe->device, ops, drows, dsent, moe->scratch.buffer);
    }
    ops->swiglu_forward(moe->device, hidden, gate_up);
    ops->grouped_backward_weight(moe->device, dup + moe->down_offset, stride, drows, hidden, offset,
                                 local);
    ops->grouped_backward_input(moe->device, dhidden, drows, down, stride, offset, local);
    ops->swiglu_backward(moe->device, gate_up, dhidden, gate_up);
    ops->grouped_backward_weight(moe->device, dup, stride, gate_up, input, offset, local);
    ops->grouped_backward_input(moe->device, drows, gate_up, weights->experts, stride, offset,
                                local);
    if (!alone(state)) {
        expert_combine(&state->plan, moe->device, ops, dsent, drows, moe->scratch.buffer);
    }
}

/* Several rounds overwrote each other's rows, and recompute keeps no gate_up: make them again. With
 * several rounds `dsent` occupies scratch.send, so x is sent again from state->output, which is no
 * longer needed then. */
static void restore_round(struct moe *moe, struct moe_state *state,
                          const struct moe_weights *weights, struct tensor x, int64_t round)
{
    const int64_t width = x.dim[1];
    if (state->plan.rounds > 1) {
        struct tensor sent = act_rows(moe, state->output, state->plan.sent, width);
        gather_sent(moe, state, sent, x);
        experts_up(moe, state, weights, sent, round);
    } else if (moe->config->train.recompute == CONFIG_RECOMPUTE_EXPERTS) {
        struct tensor input = act_rows(moe, state->input, state->plan.received, width);
        struct tensor gate_up = act_rows(moe, state->gate_up, state->plan.received,
                                         2 * moe->config->model.intermediate_size);
        moe->ops->grouped_forward(moe->device, gate_up, input, weights->experts, moe->expert_stride,
                                  state->plan.offset, moe->local_experts);
    }
}

void moe_backward(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                  const struct moe_weights *grads, struct tensor dx, struct tensor dy,
                  struct tensor x, const float *aux_dprob, float z_scale)
{
    const struct ops *ops = moe->ops;
    const struct router_shape shape = router_shape(moe, x.dim[0]);
    struct tensor dsent = act_rows(moe, moe->scratch.send, state->plan.sent, x.dim[1]);
    ops->combine_rows_backward(moe->device, dsent, moe->scratch.dweight, dy,
                               act_rows(moe, state->output, state->plan.sent, x.dim[1]),
                               state->plan.slot_row, state->weight, shape.top_k);
    for (int64_t round = 0; round < state->plan.rounds; round++) {
        restore_round(moe, state, weights, x, round);
        experts_backward(moe, state, weights, grads, dsent);
    }
    ops->combine_rows(moe->device, dx, dsent, state->plan.slot_row, NULL, shape.top_k);
    ops->router_backward(moe->device, moe->scratch.logits, moe->scratch.dweight, state->expert,
                         state->weight, state->prob, state->lse, aux_dprob, z_scale, shape);
    struct tensor dlogits = tensor_2d(moe->scratch.logits, DTYPE_F32, shape.tokens, shape.experts);
    ops->router_logits_backward(moe->device, dx, grads->gate, dlogits, x, weights->gate);
}
