#include "trainer/model/context.h"

#include "trainer/model/block.h"

static bool latent(const struct model *model)
{
    return model->arch.kv_rank > 0;
}

/* Columns of keys and values of a token. */
static int64_t width_of(const struct model *model)
{
    const struct architecture *arch = &model->arch;
    return latent(model) ? architecture_latent_width(arch) : 2 * arch->kv_heads * arch->qk_dim;
}

void context_layout(const struct model *model, struct context_scratch *scratch, struct arena *arena)
{
    const struct architecture *arch = &model->arch;
    const size_t act = dtype_bytes(model->act), t = (size_t)model->length,
                 n = (size_t)model->sequence, width = (size_t)width_of(model),
                 rank = (size_t)arch->kv_rank, rope = (size_t)arch->rope_dim;
    if (cp_alone(&model->cp)) {
        return;
    }
    scratch->keys = arena_alloc(arena, t * width * act);
    if (latent(model)) {
        scratch->c = arena_alloc(arena, t * rank * act);
        scratch->k_rope = arena_alloc(arena, t * rope * act);
    } else {
        scratch->own = arena_alloc(arena, n * width * act);
    }
    if (!model->training) {
        return;
    }
    scratch->dkeys = arena_alloc(arena, t * width * sizeof(float));
    if (latent(model)) {
        scratch->dc = arena_alloc(arena, t * rank * sizeof(float));
        scratch->dk_rope = arena_alloc(arena, t * rope * sizeof(float));
        scratch->dkv =
            model->act == DTYPE_F32 ? scratch->dkeys : arena_alloc(arena, t * width * act);
    }
    if (arch->balance.z > 0) {
        scratch->lse = arena_alloc(arena, (size_t)model->batch * t * sizeof(float));
    }
}

/* Row `index` of [.., cols] act. */
static void *row(const struct model *model, const void *data, int64_t index, int64_t cols)
{
    return (char *)(uintptr_t)data + (size_t)(index * cols) * dtype_bytes(model->act);
}

/* Rows of sequence s of something of this rank's. */
static struct tensor own_rows(const struct model *model, const struct block_call *call, void *data,
                              int64_t s, int64_t cols)
{
    return model_act(model, row(model, data, s * call->sequence, cols), call->sequence, cols);
}

/* Keys and their values as an attention op reads them, or its gradients of them. */
struct keys {
    void *k, *k_rope, *v;
};

/* Tokens of the sequence that the last of this rank's sees. */
static int64_t seen(const struct model *model, const struct block_call *call)
{
    const struct cp_piece last = cp_pieces(&model->cp, call->length).piece[CP_PIECES - 1];
    return last.first + last.count;
}

/* Grouped queries: columns k and v of a row of qkv are neighbours. */
static int64_t key_column(const struct model *model)
{
    return architecture_query_width(&model->arch);
}

static void gather_grouped(struct model *model, int64_t block, const struct block_call *call,
                           int64_t s)
{
    const int64_t width = width_of(model);
    const struct tensor qkv = own_rows(model, call, model->blocks[block].attention.qkv, s,
                                       key_column(model) + width),
                        own = model_act(model, model->context.own, call->sequence, width);
    model->ops->copy_columns(model->device, own, 0, qkv, key_column(model), width);
    cp_gather(&model->cp, model_act(model, model->context.keys, call->length, width), own);
}

static struct operand seen_latents(const struct model *model, const struct block_call *call)
{
    return (struct operand){
        .act = model_act(model, model->context.c, seen(model, call), model->arch.kv_rank)};
}

/* The normed latents of all tokens of this rank of cp, of which ranks of tp have parts. */
static void *whole_latents(struct model *model, int64_t block, const struct block_call *call)
{
    const struct operand own = {.act = model_act(model, model->blocks[block].attention.c,
                                                 block_tokens(model, call), model->arch.kv_rank)};
    return latent(model) ? block_gather(model, call, 0, &own).act.data : NULL;
}

static void gather_latent(struct model *model, int64_t block, const struct block_call *call,
                          int64_t s, void *whole)
{
    const int64_t rank = model->arch.kv_rank, rope = model->arch.rope_dim;
    cp_gather(&model->cp, model_act(model, model->context.c, call->length, rank),
              own_rows(model, call, whole, s, rank));
    cp_gather(&model->cp, model_act(model, model->context.k_rope, call->length, rope),
              own_rows(model, call, model->blocks[block].attention.k_rope, s, rope));
    const struct operand c = seen_latents(model, call);
    linear_forward(&model->linears, linears_at(&model->linears, block, LINEAR_KV_B),
                   model_act(model, model->context.keys, c.act.dim[0], width_of(model)), &c, NULL,
                   false);
}

/* Keys and values of sequence s; latents: whole_latents. */
static struct keys gather(struct model *model, int64_t block, const struct block_call *call,
                          int64_t s, void *latents)
{
    const struct context_scratch *scratch = &model->context;
    const struct architecture *arch = &model->arch;
    if (latent(model)) {
        gather_latent(model, block, call, s, latents);
    } else {
        gather_grouped(model, block, call, s);
    }
    return (struct keys){.k = scratch->keys,
                         .k_rope = scratch->k_rope,
                         .v = row(model, scratch->keys, 1,
                                  latent(model) ? arch->nope_dim : arch->kv_heads * arch->qk_dim)};
}

/* One piece of sequence s over all keys before it. */
struct part {
    struct attention_shape shape;
    int64_t row; /* of this rank's, where it begins */
};

static struct part part_of(const struct model *model, const struct block_call *call,
                           const struct attention_shape *shape, int64_t s, int p)
{
    const struct cp_piece piece = cp_pieces(&model->cp, call->length).piece[p];
    struct part part = {.shape = *shape, .row = s * call->sequence + piece.at};
    part.shape.batch = 1;
    part.shape.sequence = piece.count;
    part.shape.keys = piece.first + piece.count;
    part.shape.ahead = piece.first;
    part.shape.k_stride = part.shape.v_stride = width_of(model);
    part.shape.first = shape->first != NULL ? shape->first + part.row : NULL;
    return part;
}

void context_forward(struct model *model, int64_t block, const struct block_call *call,
                     const struct attention_shape *shape, const void *q)
{
    const struct attention_state *state = &model->blocks[block].attention;
    void *latents = whole_latents(model, block, call);
    for (int64_t s = 0; s < call->count; s++) {
        const struct keys keys = gather(model, block, call, s, latents);
        for (int p = 0; p < CP_PIECES; p++) {
            const struct part part = part_of(model, call, shape, s, p);
            model->ops->attention_forward(
                model->device, row(model, state->attended, part.row, shape->o_stride),
                state->lse + part.row * shape->heads, row(model, q, part.row, shape->q_stride),
                keys.k, keys.k_rope, keys.v, &part.shape);
        }
    }
}

/* To the owners, of sequence s. */
static void reduce_grouped(struct model *model, const struct block_call *call, int64_t s)
{
    const int64_t width = width_of(model);
    const struct tensor own = model_act(model, model->context.own, call->sequence, width);
    cp_reduce(&model->cp, own, tensor_2d(model->context.dkeys, DTYPE_F32, call->length, width));
    model->ops->copy_columns(
        model->device, own_rows(model, call, model->attention.dqkv, s, key_column(model) + width),
        key_column(model), own, 0, width);
}

/* Of the latents into `own`, this rank of cp's of the whole call. */
static void reduce_latent(struct model *model, int64_t block, const struct block_call *call,
                          int64_t s, struct tensor own)
{
    const struct context_scratch *scratch = &model->context;
    const int64_t rank = model->arch.kv_rank, rope = model->arch.rope_dim, width = width_of(model);
    const struct operand c = seen_latents(model, call);
    const int64_t keys = c.act.dim[0];
    const struct tensor dkv = model_act(model, scratch->dkv, keys, width),
                        dc = tensor_2d(scratch->dc, DTYPE_F32, call->length, rank);
    if (model->act != DTYPE_F32) {
        model->ops->cast(model->device, dkv, tensor_2d(scratch->dkeys, DTYPE_F32, keys, width));
    }
    model->ops->zero(model->device, dc.data, tensor_bytes(&dc));
    linear_backward(&model->linears, linears_at(&model->linears, block, LINEAR_KV_B),
                    tensor_rows(&dc, 0, keys), dkv, &c, false);
    cp_reduce(&model->cp, tensor_rows(&own, s * call->sequence, call->sequence), dc);
    cp_reduce(&model->cp, own_rows(model, call, model->attention.dk_rope, s, rope),
              tensor_2d(scratch->dk_rope, DTYPE_F32, call->length, rope));
}

/* Gradients of keys and values, none so far. */
static struct keys clear_gradients(struct model *model, const struct block_call *call)
{
    const struct context_scratch *scratch = &model->context;
    const struct architecture *arch = &model->arch;
    const size_t t = (size_t)call->length * sizeof(float);
    model->ops->zero(model->device, scratch->dkeys, t * (size_t)width_of(model));
    if (latent(model)) {
        model->ops->zero(model->device, scratch->dk_rope, t * (size_t)arch->rope_dim);
    }
    return (struct keys){.k = scratch->dkeys,
                         .k_rope = scratch->dk_rope,
                         .v = scratch->dkeys +
                              (latent(model) ? arch->nope_dim : arch->kv_heads * arch->qk_dim)};
}

/* Of both pieces of sequence s. */
static void sequence_backward(struct model *model, int64_t block, const struct block_call *call,
                              const struct attention_shape *shape, int64_t s, const void *q,
                              void *dq, const struct keys *keys)
{
    const struct attention_state *state = &model->blocks[block].attention;
    const struct keys dkeys = clear_gradients(model, call);
    for (int p = 0; p < CP_PIECES; p++) {
        const struct part part = part_of(model, call, shape, s, p);
        model->ops->attention_backward(
            model->device, row(model, dq, part.row, shape->q_stride), dkeys.k, dkeys.k_rope,
            dkeys.v, row(model, model->attention.dattended, part.row, shape->o_stride),
            row(model, state->attended, part.row, shape->o_stride),
            state->lse + part.row * shape->heads, row(model, q, part.row, shape->q_stride), keys->k,
            keys->k_rope, keys->v, &part.shape);
    }
}

void context_backward(struct model *model, int64_t block, const struct block_call *call,
                      const struct attention_shape *shape, const void *q, void *dq)
{
    void *latents = whole_latents(model, block, call);
    const struct tensor dc = model_act(model, model->attention.dc, block_tokens(model, call),
                                       model->arch.kv_rank),
                        part = block_part(model, call, dc);
    for (int64_t s = 0; s < call->count; s++) {
        const struct keys keys = gather(model, block, call, s, latents);
        sequence_backward(model, block, call, shape, s, q, dq, &keys);
        if (latent(model)) {
            reduce_latent(model, block, call, s, part);
        } else {
            reduce_grouped(model, call, s);
        }
    }
    if (latent(model)) {
        block_join(model, call, dc, part, false);
    }
}

const float *context_lse(const struct model *model, const float *own, int64_t count, int64_t tokens)
{
    const int64_t mine = cp_tokens(&model->cp, tokens);
    for (int64_t s = 0; s < count; s++) {
        cp_gather(&model->cp, tensor_2d(model->context.lse + s * tokens, DTYPE_F32, tokens, 1),
                  tensor_2d((float *)(uintptr_t)own + s * mine, DTYPE_F32, mine, 1));
    }
    return model->context.lse;
}
