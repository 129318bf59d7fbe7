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

void moe_scratch_layout(struct moe *moe, struct arena *arena)
{
    const struct architecture *arch = moe->arch;
    const size_t act = dtype_bytes(moe->act), row = (size_t)arch->width * act,
                 slots = (size_t)(moe->tokens * arch->top_k), received = (size_t)moe->bound;
    struct moe_scratch *scratch = &moe->scratch;
    scratch->dlogits = arena_alloc(arena, (size_t)(moe->tokens * arch->experts) * sizeof(float));
    scratch->dweight = arena_alloc(arena, slots * sizeof(float));
    scratch->send = arena_alloc(arena, slots * row);
    scratch->rows = arena_alloc(arena, received * row);
    scratch->buffer = arena_alloc(arena, (received + slots) * row);
    if (moe->linears->training && moe->linears->first < moe->linears->end) {
        scratch->packed = arena_alloc(arena, slots * (size_t)fp8_packed_bytes(arch->width));
    }
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
    const bool drops = training && moe->config->router.capacity_factor > 0;
    struct tensor logits = tensor_2d(state->logits, DTYPE_F32, shape.tokens, shape.experts);
    state->row_tokens = sequence;
    moe->ops->router_logits(moe->device, logits, x, weights->gate);
    moe->ops->router_forward(moe->device, state->expert, state->weight, state->score, state->lse,
                             state->counts, state->logits, weights->bias, shape);
    if (moe->config->router.force_balanced) {
        moe->ops->router_even(moe->device, state->expert, state->weight, state->counts, shape);
    }
    expert_plan_make(&state->plan, kept_slots(moe, state, shape, drops), shape.tokens, shape.top_k,
                     drops);
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
                        .scratch = moe->mlp,
                        .state = &state->mlp,
                        .up = weights->up,
                        .down = weights->down,
                        .offset = state->plan.offset};
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

/* --- FP8 on the way: codes and scales travel, experts read what arrives as it is --- */

/* q <- packed rows along `route`. sending: of route->sent rows. */
static void exchange_packed(struct moe *moe, struct moe_state *state,
                            const struct expert_route *route, struct fp8_rows q,
                            const uint8_t *sending)
{
    expert_exchange(&state->plan, route, moe->scratch.buffer, sending, fp8_packed_bytes(q.cols));
    moe->ops->fp8->unpack(moe->device, q, moe->scratch.buffer, route->place);
}

/* Room for rows that are sent, behind that for those which arrive. */
static uint8_t *sending_room(const struct moe *moe)
{
    return (uint8_t *)moe->scratch.buffer + moe->bound * fp8_packed_bytes(moe->arch->width);
}

static void dispatch_codes(struct moe *moe, struct moe_state *state, struct fp8_rows q,
                           struct tensor x)
{
    const struct fp8_how how = linears_how(moe->linears, LINEAR_ACTIVATIONS);
    const struct fp8_rows none = {0};
    if (alone(state)) {
        moe->ops->fp8->quantize(moe->device, q, none, x, state->plan.token, q.rows, NULL, 1, &how);
        return;
    }
    const struct expert_route route = expert_route_tokens(&state->plan);
    moe->ops->fp8->pack(moe->device, sending_room(moe), x, route.pick, route.sent, &how);
    exchange_packed(moe, state, &route, q, sending_room(moe));
}

/* Gradients of outputs, packed in send order, become codes in expert order. */
static void dispatch_gradients(struct moe *moe, struct moe_state *state, struct fp8_rows q)
{
    const struct expert_route route = expert_route_slots(&state->plan);
    const int64_t halves = fp8_packed_bytes(q.cols) / 2; /* moved as if of two bytes each */
    const uint8_t *sending = moe->scratch.packed;
    if (route.pick != NULL) {
        moe->ops->gather_rows(
            moe->device, tensor_2d(sending_room(moe), DTYPE_BF16, route.sent, halves),
            tensor_2d(moe->scratch.packed, DTYPE_BF16, state->plan.sent, halves), route.pick);
        sending = sending_room(moe);
    }
    exchange_packed(moe, state, &route, q, sending);
}

/* --- one round --- */

/* Round `round` of dispatch of x. */
static struct operand bring(struct moe *moe, struct moe_state *state,
                            const struct moe_weights *weights, struct tensor x, int64_t round)
{
    expert_plan_round(&state->plan, round);
    const struct operand input = input_of(moe, state, weights);
    if (in_fp8(weights)) {
        dispatch_codes(moe, state, input.q, x);
    } else if (alone(state)) {
        moe->ops->gather_rows(moe->device, input.act, x, state->plan.token);
    } else {
        const struct expert_route route = expert_route_tokens(&state->plan);
        expert_dispatch(&state->plan, &route, input.act, x, moe->scratch.buffer);
    }
    return input;
}

/* Rows of `width` that this round's experts write: those of `sent` where nothing travels. */
static struct tensor rows_of(const struct moe *moe, const struct moe_state *state,
                             struct tensor sent)
{
    return alone(state) ? sent
                        : act_rows(moe, moe->scratch.rows, state->plan.received, sent.dim[1]);
}

static void take_back(struct moe *moe, struct moe_state *state, struct tensor sent,
                      struct tensor rows)
{
    if (!alone(state)) {
        expert_combine(&state->plan, sent, rows, moe->scratch.buffer);
    }
}

void moe_forward(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                 struct tensor y, struct tensor x, int64_t sequence, bool training)
{
    route(moe, state, weights, x, sequence, training);
    struct tensor output = act_rows(moe, state->output, state->plan.sent, x.dim[1]);
    for (int64_t round = 0; round < state->plan.rounds; round++) {
        const struct operand input = bring(moe, state, weights, x, round);
        const struct mlp experts = experts_of(moe, state, weights);
        const struct tensor rows = rows_of(moe, state, output);
        mlp_forward(&experts, rows, &input, false, training);
        take_back(moe, state, output, rows);
    }
    moe->ops->combine_rows(moe->device, y, output, state->plan.slot_row, state->weight,
                           moe->arch->top_k);
}

/* Gradients of this round's outputs: in FP8 made by combine_backward, else in dsent. */
static struct operand gradients_of(struct moe *moe, struct moe_state *state,
                                   const struct moe_weights *weights, struct tensor dsent)
{
    struct operand dy = {0};
    if (in_fp8(weights)) {
        dy.q = fp8_view(moe->linears->scratch.dy, state->plan.received, dsent.dim[1]);
        if (!alone(state)) {
            dispatch_gradients(moe, state, dy.q);
        }
        return dy;
    }
    dy.act = rows_of(moe, state, dsent);
    if (!alone(state)) {
        const struct expert_route route = expert_route_slots(&state->plan);
        expert_dispatch(&state->plan, &route, dy.act, dsent, moe->scratch.buffer);
    }
    return dy;
}

/* Several rounds overwrote each other's rows, and recompute keeps no gate and up: make them again.
 */
static void restore_round(struct moe *moe, struct moe_state *state,
                          const struct moe_weights *weights, struct tensor x, int64_t round)
{
    const bool several = state->plan.rounds > 1;
    const struct mlp experts = experts_of(moe, state, weights);
    moe->linears->again = true;
    const struct operand input =
        several ? bring(moe, state, weights, x, round) : input_of(moe, state, weights);
    moe->linears->again = false;
    if (several || moe->config->train.recompute == CONFIG_RECOMPUTE_EXPERTS) {
        mlp_restore(&experts, &input);
    }
}

/* One round: dsent becomes gradients of inputs, in send order. */
static void experts_backward(struct moe *moe, struct moe_state *state,
                             const struct moe_weights *weights, struct tensor dsent)
{
    const struct mlp experts = experts_of(moe, state, weights);
    const struct operand input = input_of(moe, state, weights),
                         dy = gradients_of(moe, state, weights, dsent);
    const struct tensor drows = rows_of(moe, state, dsent);
    mlp_backward(&experts, drows, dy, &input, false);
    take_back(moe, state, dsent, drows);
}

/* Gradients of the weights, and of outputs: in send order, or in FP8 as codes (of one rank, whose
 * send order is expert order) or packed to travel. */
static void combine_backward(struct moe *moe, struct moe_state *state,
                             const struct moe_weights *weights, struct tensor dsent,
                             struct tensor dy)
{
    const struct ops *ops = moe->ops;
    const struct tensor output = act_rows(moe, state->output, state->plan.sent, dy.dim[1]);
    const struct fp8_how how = linears_how(moe->linears, LINEAR_GRADIENTS);
    struct fp8_rows q = fp8_view(moe->linears->scratch.dy, state->plan.sent, dy.dim[1]);
    if (!in_fp8(weights)) {
        ops->combine_rows_backward(moe->device, dsent, moe->scratch.dweight, dy, output,
                                   state->plan.slot_row, state->weight, moe->arch->top_k);
        return;
    }
    q.code = alone(state) ? q.code : NULL;
    ops->fp8->combine_rows_backward(moe->device, q, moe->scratch.packed, moe->scratch.dweight, dy,
                                    output, state->plan.slot_row, state->weight, moe->arch->top_k,
                                    &how);
}

void moe_backward(struct moe *moe, struct moe_state *state, const struct moe_weights *weights,
                  struct tensor dx, struct tensor dy, struct tensor x, int64_t sequence,
                  const float *aux, float z_scale)
{
    const struct ops *ops = moe->ops;
    const struct router_shape shape = moe_router_shape(moe, x.dim[0], sequence);
    const struct tensor dsent = act_rows(moe, moe->scratch.send, state->plan.sent, x.dim[1]);
    combine_backward(moe, state, weights, dsent, dy);
    for (int64_t round = 0; round < state->plan.rounds; round++) {
        restore_round(moe, state, weights, x, round);
        experts_backward(moe, state, weights, dsent);
    }
    ops->combine_rows(moe->device, dx, dsent, state->plan.slot_row, NULL, shape.top_k);
    ops->router_backward(moe->device, moe->scratch.dlogits, moe->scratch.dweight, state->expert,
                         state->weight, state->score, state->logits, state->lse, aux, z_scale,
                         shape);
    struct tensor dlogits = tensor_2d(moe->scratch.dlogits, DTYPE_F32, shape.tokens, shape.experts);
    ops->router_logits_backward(moe->device, dx, weights->dgate, dlogits, x, weights->gate);
}
