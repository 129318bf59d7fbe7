#include "trainer/model/mtp.h"

#include <stdlib.h>

#include "trainer/model/block.h"

/* On this rank: those of the model are all on one. */
static int64_t modules(const struct model *model)
{
    return model->slice.heads ? model->arch.mtp_depth : 0;
}

enum status mtp_init(struct model *model)
{
    const size_t n = (size_t)(model->batch * model->length);
    const int64_t depth = modules(model);
    model->mtp = calloc((size_t)depth + 1, sizeof *model->mtp);
    bool good = model->mtp != NULL;
    for (int64_t k = 0; k < depth && good; k++) {
        model->mtp[k].host = calloc(4 * n, sizeof *model->mtp[k].host);
        good = model->mtp[k].host != NULL;
    }
    return good ? STATUS_OK
                : status_fail(STATUS_RESOURCE,
                              "out of memory for %lld modules of multi-token prediction",
                              (long long)depth);
}

void mtp_free(struct model *model)
{
    for (int64_t k = 0; model->mtp != NULL && k < modules(model); k++) {
        free(model->mtp[k].host);
    }
    free(model->mtp);
    model->mtp = NULL;
}

void mtp_layout(struct model *model, struct arena *arena)
{
    const size_t n = (size_t)(model->batch * model->tp.share),
                 all = (size_t)(model->batch * model->length);
    const size_t stream = n * (size_t)model->arch.width * dtype_bytes(model->act);
    for (int64_t k = 0; k < modules(model); k++) {
        struct mtp_state *state = &model->mtp[k];
        void **streams[] = {&state->embedded, &state->before, &state->out, &state->normed,
                            &state->dnormed};
        for (size_t i = 0; i < sizeof streams / sizeof streams[0]; i++) {
            *streams[i] = arena_alloc(arena, stream);
        }
        state->both = arena_alloc(arena, 2 * stream);
        state->rstd_e = arena_alloc(arena, n * sizeof(float));
        state->rstd_h = arena_alloc(arena, n * sizeof(float));
        state->rstd_out = arena_alloc(arena, n * sizeof(float));
        state->storage = arena_alloc(arena, 4 * all * sizeof(int32_t));
    }
    if (modules(model) > 0) {
        model->mtp_scratch.dboth = arena_alloc(arena, 2 * stream);
        model->mtp_scratch.dhalf = arena_alloc(arena, stream);
        model->mtp_scratch.dpart = arena_alloc(arena, stream);
    }
}

/* Module `k` (from 1) and the shape of its call. */
static struct block_call call_of(const struct model *model, int64_t k, int64_t count,
                                 int64_t sequence, const struct model_scale *scale)
{
    const struct mtp_state *state = &model->mtp[k - 1];
    return (struct block_call){.batch = &state->batch,
                               .count = count,
                               .sequence = cp_tokens(&model->cp, sequence - k),
                               .length = sequence - k,
                               .first = batch_view(state->host, count * (sequence - k)).first,
                               .training = true,
                               .jitter_key = scale->jitter_key};
}

static int64_t block_of(const struct model *model, int64_t k)
{
    return model->arch.layers + k - 1;
}

/* Position p of a sample reads token p + k, and its label is that token's. Where the k + 1 tokens
 * are not of one document the label does not count. */
static void shift_batch(const struct model *model, struct mtp_state *state,
                        const struct batch *batch, int64_t count, int64_t sequence, int64_t k)
{
    const int64_t kept = sequence - k, n = count * kept;
    const struct batch shifted = batch_view(state->host, n);
    for (int64_t i = 0; i < n; i++) {
        const int64_t p = i % kept, from = i / kept * sequence + p;
        const bool whole = batch->first[from + k] <= p;
        shifted.ids[i] = batch->ids[from + k];
        shifted.labels[i] = whole ? batch->labels[from + k] : -1;
        shifted.positions[i] = batch->positions[from];
        shifted.first[i] = batch->first[from];
    }
    int32_t *const arrays[] = {shifted.ids, shifted.labels, shifted.positions, shifted.first};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        cp_own_tokens(&model->cp, arrays[i], arrays[i], count, kept);
    }
    vocab_own_ids(model, shifted.ids, count * cp_tokens(&model->cp, kept));
    state->batch = batch_view(state->storage, n);
    model->ops->upload(model->device, state->storage, state->host,
                       (size_t)(4 * n) * sizeof *state->host);
}

/* The first `kept` rows of each sample: y[count * kept] from or to x[count * length], by copying or
 * by adding. */
static void each_sample(struct model *model, struct tensor y, struct tensor x, int64_t count,
                        bool add)
{
    const int64_t y_rows = y.dim[0] / count, x_rows = x.dim[0] / count,
                  kept = y_rows < x_rows ? y_rows : x_rows;
    for (int64_t i = 0; i < count; i++) {
        (add ? model->ops->add : model->ops->cast)(model->device, tensor_rows(&y, i * y_rows, kept),
                                                   tensor_rows(&x, i * x_rows, kept));
    }
}

static void norm(struct model *model, void *y, float *rstd, struct tensor x, int64_t weight)
{
    model->ops->norm_forward(model->device, model_act(model, y, x.dim[0], x.dim[1]),
                             (struct tensor){0}, rstd, x, (struct tensor){0},
                             model_vector(model, weight, x.dim[1]), model->arch.norm_eps);
}

/* This rank's of a sequence. */
static int64_t own_tokens(const struct model *model, int64_t sequence)
{
    return tp_tokens(&model->tp, cp_tokens(&model->cp, sequence));
}

/* h^{k-1}: of the main model (k 1) or of the module before; and its gradient. */
static struct tensor before(struct model *model, int64_t k, int64_t count, int64_t sequence)
{
    void *data = k > 1 ? model->mtp[k - 2].normed : model->final_norm;
    return model_act(model, data, count * own_tokens(model, sequence - k + 1), model->arch.width);
}

static struct tensor before_gradient(struct model *model, int64_t k, int64_t count,
                                     int64_t sequence)
{
    void *data = k > 1 ? model->mtp[k - 2].dnormed : model->dwork;
    return model_act(model, data, count * own_tokens(model, sequence - k + 1), model->arch.width);
}

/* The input of the block: both halves normed, side by side, projected. */
static void enter(struct model *model, int64_t k, const struct block_call *call)
{
    struct mtp_state *state = &model->mtp[k - 1];
    const struct block_offsets *at = &model->params.block[block_of(model, k)];
    const int64_t n = block_tokens(model, call), width = model->arch.width;
    const struct tensor embedded = model_act(model, state->embedded, n, width),
                        h = model_act(model, state->before, n, width),
                        both = model_act(model, state->both, n, 2 * width),
                        part = model_act(model, model->mtp_scratch.dpart, n, width);
    gathered_use(model, PARAM_PART_EMBED, params_part_block(&model->arch, block_of(model, k)));
    gathered_use(model, params_part_block(&model->arch, block_of(model, k)), -1);
    vocab_embed(model, call, embedded);
    each_sample(model, h, before(model, k, call->count, call->length + k), call->count, false);
    norm(model, part.data, state->rstd_e, embedded, at->enorm);
    model->ops->copy_columns(model->device, both, 0, part, 0, width);
    norm(model, part.data, state->rstd_h, h, at->hnorm);
    model->ops->copy_columns(model->device, both, width, part, 0, width);
    model->ops->linear_forward(
        model->device, model_act(model, model->blocks[block_of(model, k)].input, n, width), both,
        model_weight(model, PARAM_DENSE, at->eh_proj, width, 2 * width), false);
}

static void module_forward(struct model *model, double *loss, int64_t k,
                           const struct block_call *call, float loss_scale)
{
    struct mtp_state *state = &model->mtp[k - 1];
    struct block_state *block = &model->blocks[block_of(model, k)];
    const struct block_offsets *at = &model->params.block[block_of(model, k)];
    const int64_t n = block_tokens(model, call), width = model->arch.width;
    enter(model, k, call);
    block_forward(model, block_of(model, k), call, model_act(model, block->input, n, width),
                  (struct tensor){0});
    model->ops->norm_forward(model->device, model_act(model, state->normed, n, width),
                             model_act(model, state->out, n, width), state->rstd_out,
                             model_act(model, block->middle, n, width),
                             model_act(model, model->delta, n, width),
                             model_vector(model, at->head_norm, width), model->arch.norm_eps);
    gathered_use(model, params_part_head(&model->arch), -1);
    vocab_loss(model, call, loss, model_act(model, state->dnormed, n, width),
               model_act(model, state->normed, n, width), loss_scale);
}

void mtp_forward(struct model *model, double *loss, const struct batch *batch, int64_t count,
                 int64_t sequence, const struct model_scale *scale)
{
    for (int64_t k = 1; k <= model->arch.mtp_depth; k++) {
        const struct block_call call = call_of(model, k, count, sequence, scale);
        const double loss_scale = scale->loss * scale->mtp_weight / (double)model->arch.mtp_depth;
        shift_batch(model, &model->mtp[k - 1], batch, count, sequence, k);
        module_forward(model, loss, k, &call, (float)loss_scale);
        model_count_block(model, block_of(model, k), block_tokens(model, &call));
    }
}

/* dx [n,C] = gradient through a norm, from columns [first, first + C) of dboth. */
static struct tensor half_backward(struct model *model, int64_t first, struct tensor x,
                                   const float *rstd, int64_t weight)
{
    const int64_t n = x.dim[0], width = x.dim[1];
    const struct tensor dy = model_act(model, model->mtp_scratch.dpart, n, width),
                        dx = model_act(model, model->mtp_scratch.dhalf, n, width);
    model->ops->copy_columns(model->device, dy, 0,
                             model_act(model, model->mtp_scratch.dboth, n, 2 * width), first,
                             width);
    model->ops->zero(model->device, dx.data, tensor_bytes(&dx));
    model->ops->norm_backward(model->device, dx, model_vector_grad(model, weight, width), dy, x,
                              rstd, model_vector(model, weight, width));
    model_add_grad(model, PARAM_DENSE, weight, width);
    return dx;
}

/* From the gradient of the block's input (dstream) to the embedding and to h^{k-1}. */
static void enter_backward(struct model *model, int64_t k, const struct block_call *call)
{
    struct mtp_state *state = &model->mtp[k - 1];
    const struct block_offsets *at = &model->params.block[block_of(model, k)];
    const int64_t n = block_tokens(model, call), width = model->arch.width;
    const struct tensor dstream = model_act(model, model->dstream, n, width),
                        both = model_act(model, state->both, n, 2 * width),
                        dboth = model_act(model, model->mtp_scratch.dboth, n, 2 * width);
    model->ops->linear_backward_weight(
        model->device, model_grad(model, PARAM_DENSE, at->eh_proj, width, 2 * width), dstream,
        both);
    model_add_grad(model, PARAM_DENSE, at->eh_proj, 2 * width * width);
    model->ops->linear_backward_input(
        model->device, dboth, dstream,
        model_weight(model, PARAM_DENSE, at->eh_proj, width, 2 * width), false);
    const struct tensor dembedded = half_backward(
        model, 0, model_act(model, state->embedded, n, width), state->rstd_e, at->enorm);
    vocab_embed_backward(model, call, dembedded);
    const struct tensor dh = half_backward(model, width, model_act(model, state->before, n, width),
                                           state->rstd_h, at->hnorm);
    each_sample(model, before_gradient(model, k, call->count, call->length + k), dh, call->count,
                true);
}

void mtp_backward(struct model *model, int64_t count, int64_t sequence,
                  const struct model_scale *scale)
{
    for (int64_t k = model->arch.mtp_depth; k >= 1; k--) {
        struct mtp_state *state = &model->mtp[k - 1];
        const struct block_call call = call_of(model, k, count, sequence, scale);
        const int64_t n = block_tokens(model, &call), width = model->arch.width,
                      weight = model->params.block[block_of(model, k)].head_norm;
        const int64_t part = params_part_block(&model->arch, block_of(model, k));
        struct tensor dstream = model_act(model, model->dstream, n, width);
        gathered_use(model, part, -1);
        shards_open(model, part);
        shards_open(model, PARAM_PART_EMBED);
        model->ops->zero(model->device, dstream.data, tensor_bytes(&dstream));
        model->ops->norm_backward(model->device, dstream, model_vector_grad(model, weight, width),
                                  model_act(model, state->dnormed, n, width),
                                  model_act(model, state->out, n, width), state->rstd_out,
                                  model_vector(model, weight, width));
        model_add_grad(model, PARAM_DENSE, weight, width);
        block_backward(model, block_of(model, k), &call,
                       model_z_scale(model, call.count * call.length, scale), -1);
        enter_backward(model, k, &call);
        shards_close(model, part);
        model_close_gradients(model, part, scale);
    }
}
