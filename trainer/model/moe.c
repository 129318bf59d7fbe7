#include "trainer/model/moe.h"

#include <assert.h>
#include <math.h>
#include <string.h>

struct router_shape moe_router_shape(const struct moe *moe, int64_t tokens, int64_t sequence)
{
    const struct architecture *arch = moe->arch;
    return (struct router_shape){.tokens = tokens,
                                 .experts = arch->experts,
                                 .top_k = arch->top_k,
                                 .row_tokens = sequence,
                                 .sigmoid = arch->sigmoid,
                                 .groups = arch->groups,
                                 .top_groups = arch->top_groups,
                                 .normalize = arch->normalize,
                                 .scale = arch->scale,
                                 .loss_groups = arch->loss_groups};
}

static void router_layout(struct moe_state *state, const struct moe *moe,
                          const struct moe_state *lender, const struct layout *layout)
{
    const struct architecture *arch = moe->arch;
    const size_t n = (size_t)moe->tokens, slots = n * (size_t)arch->top_k,
                 cells = n * (size_t)arch->experts;
    const size_t rows = (size_t)moe->sequences * sizeof(int64_t);
    const enum memory_class kind = MEMORY_ROUTER;
    state->expert = layout_buffer(layout, kind, lender->expert, slots * sizeof(int32_t));
    if (moe->config->router.capacity_factor > 0) {
        state->routed = layout_buffer(layout, kind, lender->routed, slots * sizeof(int32_t));
    }
    state->weight = layout_buffer(layout, kind, lender->weight, slots * sizeof(float));
    state->score = layout_buffer(layout, kind, lender->score, cells * sizeof(float));
    state->logits = layout_buffer(layout, kind, lender->logits, cells * sizeof(float));
    if (arch->balance.z > 0) {
        state->lse = layout_buffer(layout, kind, lender->lse, n * sizeof(float));
    }
    state->counts.routed =
        layout_buffer(layout, kind, lender->counts.routed, rows * (size_t)arch->experts);
    if (arch->balance.sequence > 0 && arch->balance.score_counts) {
        state->counts.scored =
            layout_buffer(layout, kind, lender->counts.scored, rows * (size_t)arch->experts);
    }
    if (arch->balance.communication > 0) {
        state->counts.group =
            layout_buffer(layout, kind, lender->counts.group, rows * (size_t)arch->loss_groups);
    }
}

void moe_state_layout(struct moe_state *state, const struct moe *moe,
                      const struct moe_state *lender, const struct layout *layout)
{
    const struct architecture *arch = moe->arch;
    const size_t act = dtype_bytes(moe->act), row = (size_t)arch->width * act,
                 slots = (size_t)(moe->tokens * arch->top_k), received = (size_t)moe->bound;
    router_layout(state, moe, lender, layout);
    if (!layout->lending) {
        expert_plan_layout(&state->plan, layout->arena);
    }
    state->input = layout_buffer(layout, MEMORY_REST, lender->input, received * row);
    state->output = layout_buffer(layout, MEMORY_REST, lender->output, slots * row);
    state->gate_up = layout_buffer(layout, MEMORY_INNER, lender->gate_up,
                                   received * 2 * (size_t)arch->expert_width * act);
}

void moe_scratch_layout(struct moe *moe, struct arena *arena)
{
    const struct architecture *arch = moe->arch;
    const size_t act = dtype_bytes(moe->act), row = (size_t)arch->width * act,
                 slots = (size_t)(moe->tokens * arch->top_k), received = (size_t)moe->bound;
    const size_t inner = received * (size_t)arch->expert_width * act;
    struct moe_scratch *scratch = &moe->scratch;
    scratch->dlogits = arena_alloc(arena, (size_t)(moe->tokens * arch->experts) * sizeof(float));
    scratch->dweight = arena_alloc(arena, slots * sizeof(float));
    scratch->send = arena_alloc(arena, slots * row);
    scratch->rows = arena_alloc(arena, received * row);
    scratch->hidden = arena_alloc(arena, inner);
    scratch->dhidden = arena_alloc(arena, inner);
    scratch->buffer = arena_alloc(arena, (received + (size_t)moe->sending) * row);
}

/* Slots that travel: those beyond the capacity of an expert, or of V2's group of experts, do not.
 */
static const int32_t *kept_slots(struct moe *moe, struct moe_state *state,
                                 struct router_shape shape, bool drops)
{
    const int64_t slots = shape.tokens * shape.top_k, groups = moe->arch->capacity_groups;
    if (!drops) {
        return state->expert;
    }
    moe->ops->expert_drop(
        moe->device, state->routed, state->expert, state->weight, slots, shape.experts, groups,
        (int64_t)ceil(moe->config->router.capacity_factor * (double)slots / (double)groups));
    return state->routed;
}

/* With one rank in ep, rows in send order are rows in expert order: nothing travels. */
static bool alone(const struct moe_state *state)
{
    return state->plan.ep->size == 1;
}

bool moe_waits(const struct moe *moe, const struct moe_state *state, bool training)
{
    if (moe->config->router.dispatch == CONFIG_PADDED) {
        return !comm_device_recordable(state->plan.ep);
    }
    return !alone(state) || (training && moe->config->router.capacity_factor > 0);
}

void moe_expect(const struct moe *moe, struct moe_state *state, int64_t tokens, int64_t sequence)
{
    state->row_tokens = sequence;
    expert_plan_expect(&state->plan, tokens * moe->arch->top_k);
}

static void route(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                  struct tensor x, int64_t sequence, bool training)
{
    const struct router_shape shape = moe_router_shape(moe, x.dim[0], sequence);
    const bool drops = training && moe->config->router.capacity_factor > 0,
               exact = moe->config->router.dispatch == CONFIG_EXACT;
    struct tensor logits = tensor_2d(state->logits, DTYPE_F32, shape.tokens, shape.experts);
    state->row_tokens = sequence;
    moe->ops->router_logits(moe->device, logits, x, weights->gate);
    moe->ops->router_forward(moe->device, state->expert, state->weight, state->score, state->lse,
                             state->counts, state->logits, weights->bias, shape);
    if (moe->config->router.force_balanced) {
        moe->ops->router_even(moe->device, state->expert, state->weight, state->counts, shape);
    }
    expert_plan_make(&state->plan, kept_slots(moe, state, shape, drops), shape.tokens, shape.top_k,
                     drops && exact);
}

static struct tensor act_rows(const struct moe *moe, void *data, int64_t rows, int64_t cols)
{
    return tensor_2d(data, moe->act, rows, cols);
}

/* ---- forward: tokens to their experts, their outputs back ---- */

/* Round `round` of tokens leaves for its experts. */
static void tokens_start(struct moe *moe, struct moe_state *state, struct tensor x, int64_t round)
{
    expert_plan_round(&state->plan, round);
    if (!alone(state)) {
        state->route = expert_route_tokens(&state->plan);
        expert_dispatch_start(&state->plan, &state->route, x, moe->scratch.buffer);
    }
}

/* It arrives as state->input. */
static void tokens_finish(struct moe *moe, struct moe_state *state, struct tensor x)
{
    struct tensor input = act_rows(moe, state->input, state->plan.received, moe->arch->width);
    if (alone(state)) {
        moe->ops->gather_rows(moe->device, input, x, state->plan.token);
    } else {
        expert_dispatch_finish(&state->plan, &state->route, input, moe->scratch.buffer);
    }
}

/* state->gate_up <- state->input. */
static void experts_up(struct moe *moe, struct moe_state *state, const struct moe_weights *weights)
{
    const int64_t received = state->plan.received;
    moe->ops->grouped_forward(
        moe->device, act_rows(moe, state->gate_up, received, 2 * moe->arch->expert_width),
        act_rows(moe, state->input, received, moe->arch->width), weights->experts,
        moe->expert_stride, state->plan.offset, moe->local_experts);
}

/* rows <- state->gate_up. */
static void experts_down(struct moe *moe, struct moe_state *state,
                         const struct moe_weights *weights, struct tensor rows)
{
    const int64_t inner = moe->arch->expert_width, received = state->plan.received;
    struct tensor hidden = act_rows(moe, moe->scratch.hidden, received, inner);
    moe->ops->swiglu_forward(moe->device, hidden,
                             act_rows(moe, state->gate_up, received, 2 * inner));
    const char *down = weights->experts + (size_t)moe->down_offset * dtype_bytes(moe->act);
    moe->ops->grouped_forward(moe->device, rows, hidden, down, moe->expert_stride,
                              state->plan.offset, moe->local_experts);
}

/* Where the experts' side of `sent` (outputs or gradients in send order) stands. */
static struct tensor expert_side(const struct moe *moe, const struct moe_state *state,
                                 struct tensor sent)
{
    return alone(state) ? sent
                        : act_rows(moe, moe->scratch.rows, state->plan.received, sent.dim[1]);
}

void moe_forward_start(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                       struct tensor x, int64_t sequence, bool training)
{
    route(moe, state, weights, x, sequence, training);
    tokens_start(moe, state, x, 0);
}

void moe_forward_finish(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                        struct tensor y, struct tensor x)
{
    struct tensor output = act_rows(moe, state->output, state->plan.sent, x.dim[1]);
    for (int64_t round = 0; round < state->plan.rounds; round++) {
        if (round > 0) {
            tokens_start(moe, state, x, round);
        }
        tokens_finish(moe, state, x);
        struct tensor rows = expert_side(moe, state, output);
        experts_up(moe, state, weights);
        experts_down(moe, state, weights, rows);
        if (!alone(state)) {
            expert_combine_start(&state->plan, output, rows, moe->scratch.buffer);
            expert_combine_finish(&state->plan, output, moe->scratch.buffer);
        }
    }
    moe->ops->combine_rows(moe->device, y, output, state->plan.slot_row, state->weight,
                           moe->arch->top_k);
}

/* ---- backward: gradients of outputs to the experts, those of inputs back ---- */

/* Gradients of outputs leave for the experts; with several rounds, those of the round in the plan.
 */
static void gradients_start(struct moe *moe, struct moe_state *state, struct tensor dsent)
{
    if (!alone(state)) {
        state->route = expert_route_slots(&state->plan);
        expert_dispatch_start(&state->plan, &state->route, dsent, moe->scratch.buffer);
    }
}

/* One round: drows, gradients of outputs on their way here, become gradients of inputs on their way
 * back, beside which those of the up weights are made. */
static void experts_backward(struct moe *moe, struct moe_state *state,
                             const struct moe_weights *weights, const struct moe_weights *grads,
                             struct tensor dsent)
{
    const struct ops *ops = moe->ops;
    const int64_t width = dsent.dim[1], inner = moe->arch->expert_width;
    const int64_t rows = state->plan.received, local = moe->local_experts,
                  stride = moe->expert_stride;
    const int64_t *offset = state->plan.offset;
    const char *down = weights->experts + (size_t)moe->down_offset * dtype_bytes(moe->act);
    float *dup = (float *)(void *)grads->experts;
    struct tensor drows = expert_side(moe, state, dsent);
    struct tensor input = act_rows(moe, state->input, rows, width);
    struct tensor gate_up = act_rows(moe, state->gate_up, rows, 2 * inner);
    struct tensor hidden = act_rows(moe, moe->scratch.hidden, rows, inner);
    struct tensor dhidden = act_rows(moe, moe->scratch.dhidden, rows, inner);
    ops->swiglu_forward(moe->device, hidden, gate_up);
    if (!alone(state)) {
        expert_dispatch_finish(&state->plan, &state->route, drows, moe->scratch.buffer);
    }
    ops->grouped_backward_weight(moe->device, dup + moe->down_offset, stride, drows, hidden, offset,
                                 local);
    ops->grouped_backward_input(moe->device, dhidden, drows, down, stride, offset, local);
    ops->swiglu_backward(moe->device, gate_up, dhidden, gate_up);
    ops->grouped_backward_input(moe->device, drows, gate_up, weights->experts, stride, offset,
                                local);
    if (!alone(state)) {
        expert_combine_start(&state->plan, dsent, drows, moe->scratch.buffer);
    }
    ops->grouped_backward_weight(moe->device, dup, stride, gate_up, input, offset, local);
    if (!alone(state)) {
        expert_combine_finish(&state->plan, dsent, moe->scratch.buffer);
    }
}

void moe_backward_start(struct moe *moe, struct moe_state *state, struct tensor dy)
{
    const int64_t sent = state->plan.sent, width = dy.dim[1];
    struct tensor dsent = act_rows(moe, moe->scratch.send, sent, width);
    moe->ops->combine_rows_backward(moe->device, dsent, moe->scratch.dweight, dy,
                                    act_rows(moe, state->output, sent, width), state->plan.slot_row,
                                    state->weight, moe->arch->top_k);
    if (state->plan.rounds == 1) {
        gradients_start(moe, state, dsent);
    }
}

/* Several rounds overwrote each other's rows: made again, and then the gradients leave. With one,
 * they are under way, while what recompute did not keep is made again. */
static void restore_round(struct moe *moe, struct moe_state *state,
                          const struct moe_weights *weights, struct tensor dsent, struct tensor x,
                          int64_t round)
{
    if (state->plan.rounds > 1) {
        tokens_start(moe, state, x, round);
        tokens_finish(moe, state, x);
        gradients_start(moe, state, dsent);
    }
    if (state->plan.rounds > 1 || moe->config->train.recompute == CONFIG_RECOMPUTE_EXPERTS) {
        experts_up(moe, state, weights);
    }
}

void moe_backward_finish(struct moe *moe, struct moe_state *state,
                         const struct moe_weights *weights, const struct moe_weights *grads,
                         struct tensor dx, struct tensor x, const float *aux, float z_scale)
{
    const struct ops *ops = moe->ops;
    const struct router_shape shape = moe_router_shape(moe, x.dim[0], state->row_tokens);
    struct tensor dsent = act_rows(moe, moe->scratch.send, state->plan.sent, x.dim[1]);
    for (int64_t round = 0; round < state->plan.rounds; round++) {
        restore_round(moe, state, weights, dsent, x, round);
        experts_backward(moe, state, weights, grads, dsent);
    }
    ops->combine_rows(moe->device, dx, dsent, state->plan.slot_row, NULL, shape.top_k);
    ops->router_backward(moe->device, moe->scratch.dlogits, moe->scratch.dweight, state->expert,
                         state->weight, state->score, state->logits, state->lse, aux, z_scale,
                         shape);
    struct tensor dlogits = tensor_2d(moe->scratch.dlogits, DTYPE_F32, shape.tokens, shape.experts);
    ops->router_logits_backward(moe->device, dx, grads->gate, dlogits, x, weights->gate);
}
