#include "trainer/model/pipe.h"

#include <assert.h>
#include <stdlib.h>

#include "trainer/model/block.h"

/* --- memory --- */

/* Table of `batches` micro-batches. */
static enum status make_table(struct pipe *pipe, const struct pipeline_shape *shape,
                              int64_t batches)
{
    struct pipeline_shape own = *shape;
    own.batches = batches;
    pipeline_free(&pipe->table);
    return pipeline_init(&pipe->table, &own);
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* What the table wants, where it is more than other tables want. */
static enum status count_letters(struct pipe *pipe, int64_t rank)
{
    int64_t sending = 0;
    TRY(pipeline_check(&pipe->table, NULL));
    TRY(pipeline_sending(&pipe->table, &sending));
    pipe->inboxes = most(pipe->inboxes, pipeline_letters(&pipe->table, rank));
    pipe->outboxes = most(pipe->outboxes, sending);
    return STATUS_OK;
}

/* Of each part of this rank: slots, and drawers of gradients that wait. */
struct wants {
    int64_t held[SLICE_PARTS], off[SLICE_PARTS];
};

/* Makes the table of `batches` micro-batches; *wants <- what it wants, where it is more. */
static enum status try_table(struct model *model, int64_t batches, struct wants *wants)
{
    struct pipe *pipe = &model->pipe;
    const struct slice *slice = &model->slice;
    struct wants own = {0};
    TRY(make_table(pipe, &slice->shape, batches));
    if (!slice_whole(slice)) {
        TRY(count_letters(pipe, slice->rank));
    }
    pipeline_held(&pipe->table, slice->rank, own.held);
    pipeline_put_off(&pipe->table, slice->rank, own.off);
    for (int64_t part = 0; part < slice->shape.parts; part++) {
        wants->held[part] = most(wants->held[part], own.held[part]);
        wants->off[part] = most(wants->off[part], own.off[part]);
    }
    return STATUS_OK;
}

/* Tables of all steps' sizes, the largest last. */
static enum status try_tables(struct model *model, struct wants *wants)
{
    const struct config *config = model->config;
    const int64_t batches = model->slice.shape.batches, global = config->train.global_batch,
                  start = config->train.batch_ramp.start, by = config->train.batch_ramp.increment;
    for (int64_t size = start; size > 0 && size < global; size += by) {
        TRY(try_table(model, batches * size / global, wants));
    }
    return try_table(model, batches, wants);
}

static bool counts_travel(const struct model *model)
{
    const struct balance_coefs *balance = &model->arch.balance;
    return balance->batch > 0 && balance->batch_over_layers;
}

static void size_letters(struct model *model)
{
    const size_t stream = (size_t)(model->batch * model->tp.share * model->arch.width) *
                          dtype_bytes(model->act),
                 counts = counts_travel(model) ? (size_t)model->arch.experts * sizeof(int64_t) : 0;
    model->pipe.counts = (stream + sizeof(int64_t) - 1) / sizeof(int64_t) * sizeof(int64_t);
    model->pipe.bytes = model->pipe.counts + counts;
}

static enum status open_letters(struct model *model)
{
    struct pipe *pipe = &model->pipe;
    struct comm *comm = (struct comm *)&model->mesh->pp;
    const size_t largest = COMM_PIECES * COMM_PIECE;
    if (pipe->bytes > largest) {
        return status_fail(STATUS_USAGE,
                           "a message between pipeline stages is %zu bytes, more than %zu: lower "
                           "train.micro_batch %lld or train.sequence_length %lld",
                           pipe->bytes, largest, (long long)model->batch, (long long)model->length);
    }
    pipe->inbox = calloc((size_t)pipe->inboxes, sizeof *pipe->inbox);
    pipe->outbox = calloc((size_t)pipe->outboxes, sizeof *pipe->outbox);
    if (pipe->inbox == NULL || pipe->outbox == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a pipeline's messages");
    }
    for (int64_t i = 0; i < pipe->inboxes; i++) {
        TRY(mail_init(&pipe->inbox[i].mail, comm, pipe->bytes));
    }
    for (int64_t i = 0; i < pipe->outboxes; i++) {
        TRY(mail_init(&pipe->outbox[i].mail, comm, pipe->bytes));
    }
    return STATUS_OK;
}

static enum status open_slots(struct model *model, const int64_t *held)
{
    const int64_t blocks = architecture_blocks(&model->arch), parts = model->slice.shape.parts;
    for (int64_t part = 0; part < parts; part++) {
        model->slots += held[part];
    }
    model->states = calloc((size_t)(model->slots * blocks), sizeof *model->states);
    model->slot = calloc((size_t)model->slots, sizeof *model->slot);
    model->pipe.running = calloc((size_t)model->slots, sizeof *model->pipe.running);
    if (model->states == NULL || model->slot == NULL || model->pipe.running == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld layers", (long long)blocks);
    }
    for (int64_t part = 0, s = 0; part < parts; part++) {
        for (int64_t i = 0; i < held[part]; i++, s++) {
            model->slot[s] = (struct slot){.blocks = model->states + s * blocks, .part = part};
            model->pipe.running[s] = -1;
        }
    }
    model->blocks = model->states;
    return STATUS_OK;
}

enum status pipe_init(struct model *model)
{
    enum { SENDING = 2 }; /* one under way while the next is made */
    struct wants wants = {.held = {1}};
    if (!slice_scheduled(&model->slice)) {
        return open_slots(model, wants.held);
    }
    model->pipe.outboxes = slice_whole(&model->slice) ? 0 : SENDING;
    TRY(try_tables(model, &wants));
    if (!slice_whole(&model->slice)) {
        size_letters(model);
        TRY(open_letters(model));
    }
    TRY(deferred_init(&model->pipe.deferred, model, wants.off));
    return open_slots(model, wants.held);
}

void pipe_free(struct model *model)
{
    struct pipe *pipe = &model->pipe;
    for (int64_t i = 0; pipe->inbox != NULL && i < pipe->inboxes; i++) {
        mail_free(&pipe->inbox[i].mail);
    }
    for (int64_t i = 0; pipe->outbox != NULL && i < pipe->outboxes; i++) {
        mail_free(&pipe->outbox[i].mail);
    }
    pipeline_free(&pipe->table);
    deferred_free(&pipe->deferred);
    free(pipe->inbox);
    free(pipe->outbox);
    free(pipe->running);
    free(model->states);
    free(model->slot);
    *pipe = (struct pipe){0};
    model->states = NULL;
    model->slot = NULL;
}

void pipe_layout(struct model *model, struct arena *arena)
{
    struct pipe *pipe = &model->pipe;
    for (int64_t i = 0; i < pipe->inboxes; i++) {
        pipe->inbox[i].data = arena_alloc(arena, pipe->bytes);
    }
    for (int64_t i = 0; i < pipe->outboxes; i++) {
        pipe->outbox[i].data = arena_alloc(arena, pipe->bytes);
    }
}

int pipe_last(const struct model *model)
{
    const struct pipeline_shape *shape = &model->slice.shape;
    return (int)pipeline_place(shape, pipeline_stages(shape) - 1, 0).rank;
}

/* --- messages --- */

static size_t stream_bytes(const struct model *model, int64_t tokens)
{
    return (size_t)(tokens * model->arch.width) * dtype_bytes(model->act);
}

static int64_t *counts_in(const struct model *model, const struct letter *letter)
{
    return (int64_t *)(void *)((char *)letter->data + model->pipe.counts);
}

/* The next letter that is free, for who is named. */
static struct letter *address(struct pipe *pipe, int32_t part, int32_t batch, bool gradient)
{
    struct letter *letter = pipe->inbox;
    while (letter->full) {
        letter++;
        assert(letter < pipe->inbox + pipe->inboxes);
    }
    letter->full = true;
    letter->part = part;
    letter->batch = batch;
    letter->gradient = gradient;
    return letter;
}

static void receive(struct model *model, const struct pipeline_action *a)
{
    struct letter *letter = address(&model->pipe, a->part, a->batch, a->gradient);
    mail_receive(&letter->mail, letter->data, model->pipe.bytes, a->peer);
}

/* What came for (part, batch): the stream to `to`, the counts to balance.chosen. */
static void open_letter(struct model *model, int32_t part, int32_t batch, bool gradient, void *to,
                        int64_t tokens)
{
    struct pipe *pipe = &model->pipe;
    struct letter *letter = pipe->inbox;
    while (!letter->full || letter->part != part || letter->batch != batch ||
           letter->gradient != gradient) {
        letter++;
        assert(letter < pipe->inbox + pipe->inboxes);
    }
    model->ops->copy(model->device, to, letter->data, stream_bytes(model, tokens));
    if (counts_travel(model)) {
        model->ops->copy(model->device, model->balance.chosen, counts_in(model, letter),
                         pipe->bytes - pipe->counts);
    }
    letter->full = false;
}

/* Writes what was computed last: the stream behind block `last`, or, -1, the gradient. */
static void write(struct model *model, const struct letter *letter, int64_t last, int64_t tokens)
{
    struct pipe *pipe = &model->pipe;
    const struct tensor x = model_act(model, letter->data, tokens, model->arch.width);
    const void *from = last < 0 ? model->dstream : model->blocks[last].middle;
    model->ops->copy(model->device, x.data, from, stream_bytes(model, tokens));
    if (last >= 0) {
        model->ops->add(model->device, x,
                        model_act(model, model->delta, tokens, model->arch.width));
    }
    if (counts_travel(model)) {
        model->ops->copy(model->device, counts_in(model, letter), model->balance.chosen,
                         pipe->bytes - pipe->counts);
    }
}

/* What was computed last leaves. */
static void send(struct model *model, int64_t last, int64_t tokens, int peer)
{
    struct pipe *pipe = &model->pipe;
    struct letter *letter = &pipe->outbox[pipe->sent++ % pipe->outboxes];
    mail_send_finish(&letter->mail);
    write(model, letter, last, tokens);
    mail_send_start(&letter->mail, letter->data, pipe->bytes, peer);
}

/* ... or stays, where the next stage is this rank's too (dualpipe_v, at the turn). */
static void hand_over(struct model *model, int32_t part, int32_t batch, bool gradient,
                      int64_t tokens)
{
    const struct slice *slice = &model->slice;
    const struct stage *from = &slice->part[part];
    const int64_t next = pipeline_stage(&slice->shape, slice->rank, part) + (gradient ? -1 : 1);
    if (next < 0 || next >= pipeline_stages(&slice->shape)) {
        return;
    }
    const struct pipeline_place to = pipeline_place(&slice->shape, next, batch);
    if (to.rank == slice->rank) {
        const struct letter *letter = address(&model->pipe, (int32_t)to.part, batch, gradient);
        write(model, letter, gradient ? -1 : from->first + from->blocks - 1, tokens);
    }
}

void pipe_settle(struct model *model)
{
    for (int64_t i = 0; i < model->pipe.outboxes; i++) {
        mail_send_finish(&model->pipe.outbox[i].mail);
    }
}

/* --- one rank's way through the table --- */

struct walk {
    struct model *model;
    const struct pipe_step *step;
    int64_t tokens; /* of a micro-batch on this rank */
};

/* Of the slot in use: its lane's losses are the unit's. */
static struct model_unit unit_of(const struct walk *walk, int32_t batch)
{
    const struct pipe_step *step = walk->step;
    struct model *model = walk->model;
    model->losses = &step->losses[batch];
    model->aux = &step->aux[batch * architecture_moe_blocks(&model->arch)];
    return (struct model_unit){.batch = &step->batches[batch],
                               .count = step->sequences,
                               .sequence = step->sequence,
                               .scale = &step->scale[batch]};
}

/* The slot of (part, batch); batch -1: a free one. */
static int64_t slot_of(const struct model *model, int32_t part, int32_t batch)
{
    int64_t s = 0;
    while (model->slot[s].part != part || model->pipe.running[s] != batch) {
        s++;
        assert(s < model->slots);
    }
    return s;
}

static void forward(const struct walk *walk, int32_t number, int32_t batch)
{
    struct model *model = walk->model;
    const struct stage *part = &model->slice.part[number];
    const int64_t slot = slot_of(model, number, -1);
    model->pipe.running[slot] = batch;
    model_use_slot(model, slot);
    const struct model_unit unit = unit_of(walk, batch);
    if (part->embedding) {
        balance_clear(model);
    } else {
        open_letter(model, number, batch, false, model->blocks[part->first].input, walk->tokens);
    }
    model_part_forward(model, &unit, part);
    model->pipe.latest = slot;
    model->pipe.ending = part->head ? slot : model->pipe.ending;
    hand_over(model, number, batch, false, walk->tokens);
}

/* NOTE: the last stage's final norm is not in the slot, but in the lane: its backward comes before
 * another forward of that stage there. */
static void backward(const struct walk *walk, int32_t number, int32_t batch, bool whole)
{
    struct model *model = walk->model;
    struct pipe *pipe = &model->pipe;
    const struct stage *part = &model->slice.part[number];
    const int64_t slot = slot_of(model, number, batch);
    model_use_slot(model, slot);
    const struct model_unit unit = unit_of(walk, batch);
    if (!whole) {
        model->linears.drawer = deferred_find(&pipe->deferred, number, -1);
        model->linears.drawer->batch = batch;
    }
    if (part->head) {
        assert(slot == pipe->ending);
        if (slot != pipe->latest) {
            model_take_unit(model, &unit);
        }
        model_part_loss(model, &unit);
    } else {
        open_letter(model, number, batch, true, model->dstream, walk->tokens);
    }
    model_part_backward(model, &unit, part);
    pipe->latest = slot;
    model->linears.drawer = NULL;
    pipe->running[slot] = whole ? -1 : batch;
    hand_over(model, number, batch, true, walk->tokens);
}

/* What backward put off. */
static void weights(const struct walk *walk, const struct pipeline_action *a)
{
    struct model *model = walk->model;
    const int64_t began = comm_span_begin(model->mesh->world);
    deferred_make(model, deferred_find(&model->pipe.deferred, a->part, a->batch),
                  walk->step->scale[a->batch].last);
    model->pipe.running[slot_of(model, a->part, a->batch)] = -1;
    comm_span_end(model->mesh->world, "weight gradients", began);
}

static int64_t last_block(const struct model *model, const struct pipeline_action *a)
{
    const struct stage *part = &model->slice.part[a->part];
    return a->gradient ? -1 : part->first + part->blocks - 1;
}

static void send_action(const struct walk *walk, const struct pipeline_action *a)
{
    send(walk->model, last_block(walk->model, a), walk->tokens, a->peer);
}

/* One of a pair. */
struct pass {
    const struct walk *walk;
    int32_t part, batch;
};

static void forward_pass(void *arg)
{
    const struct pass *pass = arg;
    forward(pass->walk, pass->part, pass->batch);
}

static void backward_pass(void *arg)
{
    const struct pass *pass = arg;
    backward(pass->walk, pass->part, pass->batch, true);
}

/* Forward beside backward of another, where there are lanes for both; else one behind the other.
 * What forward made is on its way meanwhile. Returns how many of the actions behind the pair are
 * done with. */
static int64_t pair(const struct walk *walk, const struct pipeline_action *a)
{
    const struct pipeline_action *next = a + 1; /* there is one: no table ends with a pair */
    struct model *model = walk->model;
    const int64_t from = slot_of(model, a->part, -1),
                  to = slot_of(model, a->back_part, a->back_batch);
    struct pass there = {walk, a->part, a->batch}, back = {walk, a->back_part, a->back_batch};
    const struct lane_pass first = {forward_pass, &there, lane_of(model, from)},
                           second = {backward_pass, &back, lane_of(model, to)};
    const bool leaves = next->kind == PIPELINE_SEND && !next->gradient && next->part == a->part &&
                        next->batch == a->batch,
               beside = first.lane != second.lane;
    if (beside) {
        lanes_start(model, &first, &second);
    } else {
        forward_pass(&there);
    }
    if (leaves) {
        send_action(walk, next);
    }
    if (beside) {
        lanes_finish(model, &second);
    } else {
        backward_pass(&back);
    }
    return leaves;
}

/* Returns how many of the actions behind it are done with. */
static int64_t act(const struct walk *walk, const struct pipeline_action *a)
{
    switch (a->kind) {
    case PIPELINE_FORWARD:
        forward(walk, a->part, a->batch);
        break;
    case PIPELINE_BACKWARD:
    case PIPELINE_BACKWARD_INPUT:
        backward(walk, a->part, a->batch, a->kind == PIPELINE_BACKWARD);
        break;
    case PIPELINE_BACKWARD_WEIGHTS:
        weights(walk, a);
        break;
    case PIPELINE_PAIR:
        return pair(walk, a);
    case PIPELINE_SEND: /* of what was just computed */
        send_action(walk, a);
        break;
    case PIPELINE_RECEIVE:
        receive(walk->model, a);
        break;
    }
    return 0;
}

static void clear_losses(struct model *model, const struct pipe_step *step)
{
    const size_t count = (size_t)step->count,
                 blocks = (size_t)architecture_moe_blocks(&model->arch);
    model->ops->zero(model->device, step->losses, count * sizeof *step->losses);
    model->ops->zero(model->device, step->aux, count * blocks * sizeof *step->aux);
}

enum status pipe_run(struct model *model, const struct pipe_step *step, struct model_result *result)
{
    struct pipe *pipe = &model->pipe;
    const struct slice *slice = &model->slice;
    struct model_losses *const losses = model->losses;
    double *const aux = model->aux;
    const struct walk walk = {
        .model = model,
        .step = step,
        .tokens = step->sequences * tp_tokens(&model->tp, cp_tokens(&model->cp, step->sequence))};
    if (pipe->table.shape.batches != step->count) { /* train.batch_ramp */
        TRY(comm_agree(model->mesh->world, make_table(pipe, &slice->shape, step->count), NULL));
    }
    const struct pipeline_track *track = &pipe->table.track[slice->rank];
    clear_losses(model, step);
    model->result = (struct model_result){0};
    for (int64_t i = 0; i < track->count; i++) {
        i += act(&walk, &track->action[i]);
    }
    pipe_settle(model);
    for (int32_t i = 0; i < step->count; i++) {
        (void)unit_of(&walk, i);
        model_sum_losses(model);
    }
    *result = model->result;
    lanes_losses(model, losses, aux);
    return STATUS_OK;
}

void pipe_evaluate(struct model *model, const struct batch *batch, int64_t sequence)
{
    const struct slice *slice = &model->slice;
    const struct pipeline_shape *shape = &slice->shape;
    const int64_t tokens = model->batch * tp_tokens(&model->tp, cp_tokens(&model->cp, sequence));
    const struct model_unit unit = {.batch = batch, .count = model->batch, .sequence = sequence};
    model->ops->zero(model->device, model->losses, sizeof *model->losses);
    for (int32_t i = 0; i < shape->parts; i++) {
        const struct stage *part = &slice->part[i];
        const int64_t stage = pipeline_stage(shape, slice->rank, i);
        model_use_slot(model, slot_of(model, i, -1));
        if (!part->embedding) {
            const struct pipeline_action from = {
                .part = i, .peer = (int32_t)pipeline_place(shape, stage - 1, 0).rank};
            if (from.peer != slice->rank) {
                receive(model, &from);
            }
            open_letter(model, i, 0, false, model->blocks[part->first].input, tokens);
        }
        model_part_forward(model, &unit, part);
        if (part->head) {
            model_part_loss(model, &unit);
            model_sum_losses(model);
        } else {
            const int to = (int)pipeline_place(shape, stage + 1, 0).rank;
            hand_over(model, i, 0, false, tokens);
            if (to != slice->rank) {
                send(model, part->first + part->blocks - 1, tokens, to);
            }
        }
    }
}
