#include "trainer/model/vocab.h"

#include <assert.h>

#include "trainer/model/block.h"

/* Of f32 logits: few pieces, for each reads and writes all of the head's gradient. */
enum { PIECE_BYTES = 1 << 28, PIECE_STEP = 128, STATS = 3 };

static int64_t piece_rows(int64_t tokens, int64_t vocab)
{
    const int64_t fit = PIECE_BYTES / (vocab * (int64_t)sizeof(float)) / PIECE_STEP * PIECE_STEP;
    const int64_t rows = fit > PIECE_STEP ? fit : PIECE_STEP;
    return tokens < rows ? tokens : rows;
}

void vocab_scratch_layout(struct vocab_scratch *scratch, int64_t tokens, int64_t vocab,
                          int64_t ranks, bool narrow, struct arena *arena)
{
    const int64_t most = (vocab + ranks - 1) / ranks;
    if (ranks <= 1) {
        return;
    }
    scratch->rows = piece_rows(tokens, most);
    const size_t cells = (size_t)(scratch->rows * most),
                 stats = (size_t)(scratch->rows * STATS) * sizeof(double);
    scratch->logits = arena_alloc(arena, cells * sizeof *scratch->logits);
    if (narrow) {
        scratch->narrow = arena_alloc(arena, cells * dtype_bytes(DTYPE_BF16));
    }
    scratch->stats = arena_alloc(arena, stats);
    scratch->gathered = arena_alloc(arena, (size_t)ranks * stats);
}

void vocab_layout(struct model *model, struct arena *arena)
{
    if (model->slice.heads) {
        vocab_scratch_layout(&model->vocab, model->batch * model->sequence, model->arch.vocab,
                             model->tp.comm->size, model->training && model->act != DTYPE_F32,
                             arena);
    }
}

void vocab_own_ids(const struct model *model, int32_t *ids, int64_t count)
{
    const int32_t first = (int32_t)model->params.vocab_first,
                  end = first + (int32_t)model->params.vocab;
    for (int64_t i = 0; i < count; i++) {
        assert(ids[i] >= 0 && ids[i] < model->arch.vocab);
        ids[i] = ids[i] >= first && ids[i] < end ? ids[i] - first : -1;
    }
}

static struct tensor all_tokens(const struct model *model, const struct block_call *call)
{
    return model_act(model, model->wide[0], call->count * call->sequence, model->arch.width);
}

void vocab_embed(const struct model *model, const struct block_call *call, struct tensor y)
{
    const struct tensor w = model_weight(model, model->params.embedding, model->params.embed,
                                         model->params.vocab, model->arch.width);
    if (tp_alone(&model->tp)) {
        model->ops->embedding_forward(model->device, y, call->batch->ids, w);
        return;
    }
    const struct tensor all = all_tokens(model, call);
    model->ops->gather_rows(model->device, all, w, call->batch->ids);
    tp_reduce(&model->tp, y, all, call->count, false);
}

void vocab_embed_backward(const struct model *model, const struct block_call *call,
                          struct tensor dy)
{
    const enum param_group group = model->params.embedding;
    const struct operand own = {.act = dy}, all = block_gather(model, call, 0, &own);
    model->ops->embedding_backward(
        model->device,
        model_grad(model, group, model->params.embed, model->params.vocab, model->arch.width),
        call->batch->ids, all.act);
    model_add_grad(model, group, model->params.embed, model->params.vocab * model->arch.width);
}

/* Rows [first, first + count) of all tokens: as cross_entropy. dx f32. */
static void piece_loss(const struct model *model, double *loss, struct tensor dx, struct tensor dw,
                       struct tensor x, struct tensor w, const int32_t *labels, float loss_scale)
{
    const struct ops *ops = model->ops;
    const struct vocab_scratch *scratch = &model->vocab;
    const struct comm *tp = model->tp.comm;
    const int64_t rows = x.dim[0], vocab = w.dim[0];
    const struct tensor logits = tensor_2d(scratch->logits, DTYPE_F32, rows, vocab);
    const struct loss_parts parts = {.stats = scratch->gathered,
                                     .ranks = tp->size,
                                     .rank = tp->rank,
                                     .first = model->params.vocab_first};
    struct tensor grad =
        scratch->narrow != NULL ? tensor_2d(scratch->narrow, model->act, rows, vocab) : logits;
    ops->linear_forward(model->device, logits, x, w, false);
    ops->loss_stats(model->device, scratch->stats, logits, labels, parts.first);
    comm_device_all_gather(model->tp.comm, scratch->gathered, scratch->stats,
                           (size_t)(rows * STATS) * sizeof(double));
    if (dx.data == NULL) {
        grad.data = NULL;
    }
    ops->loss_gradient(model->device, tp->rank == 0 ? loss : NULL, grad, logits, &parts, labels,
                       loss_scale);
    if (dx.data != NULL) {
        ops->linear_backward_input(model->device, dx, grad, w, false);
        ops->linear_backward_weight(model->device, dw, grad, x);
    }
}

static void divided_loss(const struct model *model, const struct block_call *call, double *loss,
                         struct tensor dx, struct tensor dw, struct tensor x, struct tensor w,
                         float loss_scale)
{
    const struct operand own = {.act = x}, all = block_gather(model, call, 0, &own);
    const struct tensor part = block_part(model, call, x), none = {0};
    for (int64_t first = 0; first < all.act.dim[0]; first += model->vocab.rows) {
        const int64_t left = all.act.dim[0] - first,
                      rows = left < model->vocab.rows ? left : model->vocab.rows;
        piece_loss(model, loss, dx.data != NULL ? tensor_rows(&part, first, rows) : none, dw,
                   tensor_rows(&all.act, first, rows), w, call->batch->labels + first, loss_scale);
    }
    if (dx.data != NULL) {
        block_join(model, call, dx, part, false);
    }
}

void vocab_loss(const struct model *model, const struct block_call *call, double *loss,
                struct tensor dx, struct tensor x, float loss_scale)
{
    const int64_t width = model->arch.width, rows = model->params.vocab, at = model->params.head;
    const enum param_group group = model->params.divided;
    const struct tensor w = model_weight(model, group, at, rows, width);
    const struct tensor none = {0},
                        dw = dx.data != NULL ? model_grad(model, group, at, rows, width) : none;
    if (tp_alone(&model->tp)) {
        model->ops->cross_entropy(model->device, loss, dx, dw, x, w, call->batch->labels,
                                  loss_scale);
    } else {
        divided_loss(model, call, loss, dx, dw, x, w, loss_scale);
    }
    if (dx.data != NULL) {
        model_add_grad(model, group, at, rows * width);
    }
}
