#include "trainer/model/moe.h"

#include <assert.h>
#include <string.h>

#include "kernels/base/fiber.h"

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
    if (moe->slices > 1) {
        const size_t parts = slots * (size_t)moe->slices;
        state->spread = layout_buffer(layout, kind, lender->spread, parts * sizeof(int32_t));
        state->spread_weight =
            layout_buffer(layout, kind, lender->spread_weight, parts * sizeof(float));
    }
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
                 slots = (size_t)(moe->tokens * moe->choices), received = (size_t)moe->bound;
    router_layout(state, moe, lender, layout);
    if (!layout->lending) {
        expert_plan_layout(&state->plan, layout->arena);
    }
    if (layout->act) {
        state->input = layout_buffer(layout, MEMORY_REST, lender->input, received * row);
    }
    if (layout->fp8) {
        state->input_codes =
            layout_codes(layout, MEMORY_REST, lender->input_codes, moe->bound, arch->width);
    }
    state->output = layout_buffer(layout, MEMORY_REST, lender->output, slots * row);
    mlp_layout(&state->mlp, &lender->mlp, moe->bound, arch->expert_width, moe->act, layout);
}

/* What no pass holds across a stop, or backward alone uses. */
static void layout_once(struct moe *moe, struct arena *arena)
{
    const struct architecture *arch = moe->arch;
    const size_t act = dtype_bytes(moe->act), row = (size_t)arch->width * act,
                 slots = (size_t)(moe->tokens * moe->choices);
    const int64_t codes = moe->tokens * moe->choices * arch->width;
    struct moe_scratch *scratch = &moe->scratch;
    capacity_layout(&moe->capacity, arena);
    scratch->dlogits = arena_alloc(arena, (size_t)(moe->tokens * arch->experts) * sizeof(float));
    scratch->dweight = arena_alloc(arena, (size_t)(moe->tokens * arch->top_k) * sizeof(float));
    if (moe->slices > 1) {
        scratch->dspread = arena_alloc(arena, slots * sizeof(float));
    }
    if (moe->apart) {
        scratch->carried = arena_alloc(arena, (slots + 2 * (size_t)moe->bound) * sizeof(float));
    }
    scratch->send = arena_alloc(arena, slots * row);
    mlp_scratch_layout(&scratch->mlp, moe->linears, moe->bound, arch->expert_width, NULL, arena);
    if (moe->linears->training && moe->linears->first < moe->linears->end) {
        const bool travels = moe->local_experts < arch->experts * moe->slices;
        scratch->packed =
            arena_alloc(arena, travels ? slots * (size_t)fp8_packed_bytes(arch->width) : 0);
        scratch->send_codes.code = arena_alloc(arena, travels ? 0 : (size_t)codes);
        scratch->send_codes.scale = arena_alloc(
            arena, travels ? 0 : fp8_scale_bytes(moe->tokens * moe->choices, arch->width));
    }
}

void moe_scratch_layout(struct moe *moe, const struct moe *lender, struct arena *arena)
{
    const size_t row = (size_t)moe->arch->width * dtype_bytes(moe->act),
                 received = (size_t)moe->bound;
    if (lender != NULL) {
        moe->scratch = lender->scratch;
        moe->capacity = lender->capacity;
    } else {
        layout_once(moe, arena);
    }
    moe->scratch.rows = arena_alloc(arena, received * row);
    moe->scratch.buffer = arena_alloc(arena, (received + (size_t)moe->sending) * row);
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
    expert_plan_expect(&state->plan, tokens * moe->choices);
}

/* Choices of experts as choices of their parts. */
static const int32_t *spread(const struct moe *moe, struct moe_state *state, const int32_t *kept,
                             int64_t slots)
{
    if (moe->slices == 1) {
        return kept;
    }
    moe->ops->expert_spread(moe->device, state->spread, state->spread_weight, kept, state->weight,
                            slots, moe->slices, moe->local_experts);
    return state->spread;
}

/* Weights by choice, and where their gradients come: what combine reads and makes. */
static const float *choice_weights(const struct moe *moe, const struct moe_state *state)
{
    return moe->slices == 1 ? state->weight : state->spread_weight;
}

static float *choice_gradients(const struct moe *moe)
{
    return moe->slices == 1 ? moe->scratch.dweight : moe->scratch.dspread;
}

static void route(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                  struct tensor x, int64_t sequence, int64_t length, bool training)
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
    if (drops) {
        capacity_drop(&moe->capacity, state->routed, state->expert, state->weight,
                      x.dim[0] / sequence, sequence, length);
    }
    const int32_t *kept = drops ? state->routed : state->expert;
    expert_plan_make(&state->plan, spread(moe, state, kept, shape.tokens * shape.top_k),
                     shape.tokens, moe->choices, drops && exact);
}

static struct tensor act_rows(const struct moe *moe, void *data, int64_t rows, int64_t cols)
{
    return tensor_2d(data, moe->act, rows, cols);
}

static bool in_fp8(const struct moe_weights *weights)
{
    return weights->up->w.code != NULL;
}

static struct mlp experts_of(const struct moe *moe, struct moe_state *state,
                             const struct moe_weights *weights)
{
    return (struct mlp){.linears = moe->linears,
                        .scratch = &moe->scratch.mlp,
                        .state = &state->mlp,
                        .up = weights->up,
                        .down = weights->down,
                        .offset = state->plan.offset,
                        .source_offset =
                            state->plan.by_source ? state->plan.source_offset : state->plan.offset};
}

/* The rows of this round in expert order, as the experts read them. */
static struct operand input_of(const struct moe *moe, const struct moe_state *state,
                               const struct moe_weights *weights)
{
    const int64_t rows = state->plan.received, width = moe->arch->width;
    if (in_fp8(weights)) {
        return (struct operand){.q = fp8_view(state->input_codes, rows, width)};
    }
    return (struct operand){.act = act_rows(moe, state->input, rows, width)};
}

/* ---- FP8 on the wire: rows travel as codes and scales, which the experts read as they are ---- */

/* Room for packed rows that leave, behind that for those which arrive. */
static uint8_t *leaving(const struct moe *moe)
{
    return (uint8_t *)moe->scratch.buffer + moe->bound * fp8_packed_bytes(moe->arch->width);
}

static void packed_start(struct moe *moe, struct moe_state *state, uint8_t *sending)
{
    expert_exchange_start(&state->plan, &state->route, moe->scratch.buffer, sending,
                          fp8_packed_bytes(moe->arch->width));
}

static void packed_finish(struct moe *moe, struct moe_state *state, struct fp8_rows q)
{
    expert_exchange_finish(&state->plan);
    moe->ops->fp8->unpack(moe->device, q, moe->scratch.buffer, state->route.arrived,
                          state->route.place);
}

static void pack_tokens(struct moe *moe, struct moe_state *state, struct tensor x)
{
    const struct fp8_how how = linears_how(moe->linears, LINEAR_ACTIVATIONS);
    moe->ops->fp8->pack(moe->device, leaving(moe), x, state->route.pick, state->route.sent, &how);
    packed_start(moe, state, leaving(moe));
}

/* Gradients are packed already, in send order. */
static void pick_gradients(struct moe *moe, struct moe_state *state)
{
    const int64_t halves = fp8_packed_bytes(moe->arch->width) / 2; /* moved as if of two bytes */
    const struct expert_route *route = &state->route;
    if (route->pick == NULL) {
        packed_start(moe, state, moe->scratch.packed);
        return;
    }
    moe->ops->gather_rows(moe->device, tensor_2d(leaving(moe), DTYPE_BF16, route->sent, halves),
                          tensor_2d(moe->scratch.packed, DTYPE_BF16, state->plan.sent, halves),
                          route->pick);
    packed_start(moe, state, leaving(moe));
}

/* Another pass may go on (lane.h). Once a layer: how many rounds there are is not the same on all
 * ranks. */
static void stop(int64_t round)
{
    if (round == 0) {
        fiber_yield();
    }
}

/* ---- forward: tokens to their experts, their outputs back ---- */

/* Round `round` of tokens leaves for its experts. */
static void tokens_start(struct moe *moe, struct moe_state *state,
                         const struct moe_weights *weights, struct tensor x, int64_t round)
{
    expert_plan_round(&state->plan, round);
    if (alone(state)) {
        return;
    }
    state->route = expert_route_tokens(&state->plan);
    if (in_fp8(weights)) {
        pack_tokens(moe, state, x);
    } else {
        expert_dispatch_start(&state->plan, &state->route, x, moe->scratch.buffer);
    }
}

/* It arrives. */
static struct operand tokens_finish(struct moe *moe, struct moe_state *state,
                                    const struct moe_weights *weights, struct tensor x)
{
    const struct fp8_how how = linears_how(moe->linears, LINEAR_ACTIVATIONS);
    const struct operand input = input_of(moe, state, weights);
    const struct fp8_rows none = {0};
    if (in_fp8(weights) && alone(state)) {
        moe->ops->fp8->quantize(moe->device, input.q, none, x, state->plan.token, input.q.rows,
                                NULL, 1, &how);
    } else if (in_fp8(weights)) {
        packed_finish(moe, state, input.q);
    } else if (alone(state)) {
        moe->ops->gather_rows(moe->device, input.act, x, state->plan.token);
    } else {
        expert_dispatch_finish(&state->plan, &state->route, input.act, moe->scratch.buffer);
    }
    return input;
}

/* Where the experts' side of `sent` (outputs or gradients in send order) stands. */
static struct tensor expert_side(const struct moe *moe, const struct moe_state *state,
                                 struct tensor sent)
{
    return alone(state) ? sent
                        : act_rows(moe, moe->scratch.rows, state->plan.received, sent.dim[1]);
}

void moe_forward_start(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                       struct tensor x, int64_t sequence, int64_t length, bool training)
{
    const int64_t began = comm_span_begin(state->plan.ep);
    route(moe, state, weights, x, sequence, length, training);
    comm_span_end(state->plan.ep, "router", began);
    tokens_start(moe, state, weights, x, 0);
}

void moe_forward_finish(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                        struct tensor y, struct tensor x, bool training)
{
    struct tensor output = act_rows(moe, state->output, state->plan.sent, x.dim[1]);
    for (int64_t round = 0; round < state->plan.rounds; round++) {
        if (round > 0) {
            tokens_start(moe, state, weights, x, round);
        }
        const struct operand input = tokens_finish(moe, state, weights, x);
        const struct mlp experts = experts_of(moe, state, weights);
        struct tensor rows = expert_side(moe, state, output);
        const int64_t began = comm_span_begin(state->plan.ep);
        mlp_forward_up(&experts, &input, training);
        mlp_forward_down(&experts, rows, false);
        comm_span_end(state->plan.ep, "experts", began);
        if (!alone(state)) {
            expert_combine_start(&state->plan, output, rows, moe->scratch.buffer);
            stop(round);
            expert_combine_finish(&state->plan, output, moe->scratch.buffer);
        }
    }
    moe->ops->combine_rows(moe->device, y, output, state->plan.slot_row, choice_weights(moe, state),
                           moe->choices);
}

/* ---- backward: gradients of outputs to the experts, those of inputs back ---- */

/* Gradients of outputs leave for the experts; with several rounds, those of the round in the plan.
 */
static void gradients_start(struct moe *moe, struct moe_state *state,
                            const struct moe_weights *weights, struct tensor dsent)
{
    if (alone(state)) {
        return;
    }
    state->route = expert_route_slots(&state->plan);
    if (in_fp8(weights)) {
        pick_gradients(moe, state);
    } else {
        expert_dispatch_start(&state->plan, &state->route, dsent, moe->scratch.buffer);
    }
}

/* Whether gradients of outputs travel as tokens did, over the network once to each machine: those
 * of tokens, with each slot's weight, of which its expert's rank makes the slot's, the same bits
 * but for the sign of a zero. In FP8 a slot's codes are half as long as a token's gradient: there
 * slots travel. */
static bool as_tokens(const struct moe_state *state, const struct moe_weights *weights)
{
    return state->plan.relayed && !in_fp8(weights);
}

static void token_gradients_start(struct moe *moe, struct moe_state *state, struct tensor dy)
{
    struct expert_plan *plan = &state->plan;
    float *sent = moe->scratch.carried, *arrived = sent + plan->slots, *rows = arrived + moe->bound;
    moe->ops->scatter_rows(moe->device, tensor_2d(sent, DTYPE_F32, plan->sent, 1),
                           choice_weights(moe, state), 1, plan->slot_row, dy.dim[0] * moe->choices);
    expert_carry_numbers(plan, rows, arrived, sent);
    state->route = expert_route_again(plan);
    expert_dispatch_start(plan, &state->route, dy, moe->scratch.buffer);
}

static void token_gradients_finish(struct moe *moe, struct moe_state *state, struct tensor drows)
{
    const struct expert_route *route = &state->route;
    const float *weight = moe->scratch.carried + state->plan.slots + moe->bound;
    expert_exchange_finish(&state->plan);
    moe->ops->combine_rows(moe->device, drows,
                           act_rows(moe, moe->scratch.buffer, route->arrived, drows.dim[1]),
                           route->place, weight, 1);
}

/* They arrive; drows: where, but in FP8. */
static struct operand gradients_finish(struct moe *moe, struct moe_state *state,
                                       const struct moe_weights *weights, struct tensor drows)
{
    const int64_t rows = state->plan.received, width = drows.dim[1];
    if (in_fp8(weights) && alone(state)) {
        return (struct operand){.q = fp8_view(moe->scratch.send_codes, rows, width)};
    }
    if (in_fp8(weights)) {
        const struct operand dy = {.q = fp8_view(moe->linears->scratch.dy, rows, width)};
        packed_finish(moe, state, dy.q);
        return dy;
    }
    if (as_tokens(state, weights)) {
        token_gradients_finish(moe, state, drows);
    } else if (!alone(state)) {
        expert_dispatch_finish(&state->plan, &state->route, drows, moe->scratch.buffer);
    }
    return (struct operand){.act = drows};
}

/* One round: gradients of outputs on their way here become gradients of inputs on their way back,
 * beside which those of the up weights are made. */
static void experts_backward(struct moe *moe, struct moe_state *state,
                             const struct moe_weights *weights, struct tensor dsent, int64_t round)
{
    const struct mlp experts = experts_of(moe, state, weights);
    const struct operand input = input_of(moe, state, weights);
    struct tensor drows = expert_side(moe, state, dsent);
    const struct operand dy = gradients_finish(moe, state, weights, drows);
    const int64_t began = comm_span_begin(state->plan.ep);
    mlp_backward_down(&experts, dy);
    mlp_backward_up(&experts, drows, false);
    comm_span_end(state->plan.ep, "experts, backward", began);
    if (!alone(state)) {
        expert_combine_start(&state->plan, dsent, drows, moe->scratch.buffer);
    }
    const int64_t weight = comm_span_begin(state->plan.ep);
    mlp_backward_up_weight(&experts, &input);
    comm_span_end(state->plan.ep, "experts, weight gradients", weight);
    if (!alone(state)) {
        stop(round);
        expert_combine_finish(&state->plan, dsent, moe->scratch.buffer);
    }
}

void moe_backward_start(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                        struct tensor dy)
{
    const int64_t sent = state->plan.sent, width = dy.dim[1];
    const float *weight = choice_weights(moe, state);
    float *dweight = choice_gradients(moe);
    const bool tokens = as_tokens(state, weights);
    struct tensor dsent = act_rows(moe, tokens ? NULL : moe->scratch.send, sent, width);
    const struct tensor output = act_rows(moe, state->output, sent, width);
    if (in_fp8(weights)) {
        const struct fp8_how how = linears_how(moe->linears, LINEAR_GRADIENTS);
        struct fp8_rows q = fp8_view(moe->scratch.send_codes, sent, width);
        q.code = alone(state) ? q.code : NULL;
        moe->ops->fp8->combine_rows_backward(moe->device, q, moe->scratch.packed, dweight, dy,
                                             output, state->plan.slot_row, weight, moe->choices,
                                             &how);
    } else {
        moe->ops->combine_rows_backward(moe->device, dsent, dweight, dy, output,
                                        state->plan.slot_row, weight, moe->choices);
    }
    if (moe->slices > 1) {
        moe->ops->expert_fold(moe->device, moe->scratch.dweight, dweight,
                              dy.dim[0] * moe->arch->top_k, moe->slices);
    }
    if (tokens) {
        token_gradients_start(moe, state, dy);
    } else if (state->plan.rounds == 1) {
        gradients_start(moe, state, weights, dsent);
    }
}

/* Several rounds overwrote each other's rows: made again, and then the gradients leave. With one,
 * they are under way, while what recompute did not keep is made again. */
static void restore_round(struct moe *moe, struct moe_state *state,
                          const struct moe_weights *weights, struct tensor dsent, struct tensor x,
                          int64_t round)
{
    const bool several = state->plan.rounds > 1;
    if (several) {
        moe->linears->again = true;
        tokens_start(moe, state, weights, x, round);
        tokens_finish(moe, state, weights, x);
        moe->linears->again = false;
        gradients_start(moe, state, weights, dsent);
    }
    if (several || moe->config->train.recompute == CONFIG_RECOMPUTE_EXPERTS) {
        const struct mlp experts = experts_of(moe, state, weights);
        const struct operand input = input_of(moe, state, weights);
        mlp_restore(&experts, &input);
    }
}

/* Logits that a token did not choose have no gradient where weights are of the chosen ones alone,
 * but for balance losses and z-loss. Of the config, so that every layout computes alike. */
static struct router_chosen chosen_of(const struct moe *moe, const struct moe_state *state)
{
    const struct architecture *arch = moe->arch;
    const struct balance_coefs *coef = &arch->balance;
    const bool weights = arch->sigmoid || arch->normalize,
               rest = coef->z != 0 || coef->batch != 0 || coef->sequence != 0 ||
                      coef->device != 0 || coef->communication != 0,
               said = weights && (!rest || arch->router_rounds);
    return (struct router_chosen){
        .expert = said ? state->expert : NULL, .top_k = arch->top_k, .rest = rest};
}

void moe_backward_finish(struct moe *moe, struct moe_state *state,
                         const struct moe_weights *weights, struct tensor dx, struct tensor x,
                         const float *aux, float z_scale)
{
    const struct ops *ops = moe->ops;
    const struct router_shape shape = moe_router_shape(moe, x.dim[0], state->row_tokens);
    struct tensor dsent = act_rows(moe, moe->scratch.send, state->plan.sent, x.dim[1]);
    struct drawer *const drawer = moe->linears->drawer;
    moe->linears->drawer = state->plan.rounds > 1 ? NULL : drawer; /* rounds overwrite their rows */
    for (int64_t round = 0; round < state->plan.rounds; round++) {
        restore_round(moe, state, weights, dsent, x, round);
        experts_backward(moe, state, weights, dsent, round);
    }
    moe->linears->drawer = drawer;
    ops->combine_rows(moe->device, dx, dsent, state->plan.slot_row, NULL, moe->choices);
    ops->router_backward(moe->device, moe->scratch.dlogits, moe->scratch.dweight, state->expert,
                         state->weight, state->score, state->logits, state->lse, aux, z_scale,
                         shape);
    struct tensor dlogits = tensor_2d(moe->scratch.dlogits, DTYPE_F32, shape.tokens, shape.experts);
    ops->router_logits_backward(moe->device, dx, weights->dgate, dlogits, x, weights->gate,
                                chosen_of(moe, state));
}
