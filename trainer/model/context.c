#include "trainer/model/context.h"

#include <assert.h>

#include "trainer/model/block.h"

/* What goes round. */
static const char KEYS[] = "keys", GRADIENTS[] = "gradients of keys";

static bool latent(const struct model *model)
{
    return model->arch.kv_rank > 0;
}

/* Columns of a row of keys and values, as an attention op reads them. */
static int64_t width_of(const struct model *model)
{
    const struct architecture *arch = &model->arch;
    return latent(model) ? architecture_latent_width(arch) : 2 * arch->kv_heads * arch->qk_dim;
}

/* Columns of what a block has of a token; and of its rotary key, behind all of these. */
static int64_t block_width(const struct model *model)
{
    return latent(model) ? model->arch.kv_rank : width_of(model);
}

static int64_t rope_width(const struct model *model)
{
    return latent(model) ? model->arch.rope_dim : 0;
}

static int64_t block_elements(const struct model *model)
{
    return model->sequence * (block_width(model) + rope_width(model));
}

enum status context_check(const struct model *model)
{
    const bool host = model->config->run.device == CONFIG_DEVICE_CPU && !model->config->planning;
    const size_t most = COMM_PIECES / 2 * COMM_PIECE,
                 bytes = (size_t)block_elements(model) *
                         (model->training ? sizeof(float) : dtype_bytes(model->act));
    if (cp_alone(&model->cp) || !host || bytes <= most) {
        return STATUS_OK;
    }
    return status_fail(
        STATUS_USAGE,
        "parallel.cp %d: keys and values of a rank's tokens of one sequence take %zu "
        "bytes, a message %zu at most: more ranks, or a shorter "
        "train.sequence_length",
        model->cp.comm->size, bytes, most);
}

void context_layout(const struct model *model, struct context_scratch *scratch, struct arena *arena)
{
    const struct architecture *arch = &model->arch;
    const size_t act = dtype_bytes(model->act), elements = (size_t)block_elements(model),
                 piece = (size_t)(model->cp.chunk * width_of(model)),
                 head = (size_t)(arch->qk_dim > arch->v_dim ? arch->qk_dim : arch->v_dim);
    if (cp_alone(&model->cp)) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        scratch->block[i] = arena_alloc(arena, elements * act);
    }
    scratch->sums =
        arena_alloc(arena, (size_t)(model->sequence * arch->heads) * head * sizeof *scratch->sums);
    if (latent(model)) {
        scratch->keys = arena_alloc(arena, piece * act);
    }
    if (!model->training) {
        return;
    }
    const int gradients = model->cp.comm->size > 2 ? CONTEXT_GRADIENTS : CONTEXT_GRADIENTS - 1;
    for (int i = 0; i < gradients; i++) {
        scratch->gradient[i] = arena_alloc(arena, elements * sizeof *scratch->gradient[i]);
    }
    if (latent(model)) {
        scratch->dkeys = arena_alloc(arena, piece * sizeof *scratch->dkeys);
        scratch->dkv = model->act == DTYPE_F32 ? scratch->dkeys : arena_alloc(arena, piece * act);
    }
    if (arch->balance.z > 0) {
        const size_t t = (size_t)model->length * sizeof(float);
        scratch->lse = arena_alloc(arena, (size_t)model->batch * t);
        scratch->lse_parts = arena_alloc(arena, t);
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

/* Grouped queries: columns k and v of a row of qkv are neighbours. */
static int64_t key_column(const struct model *model)
{
    return architecture_query_width(&model->arch);
}

/* Attention of one sequence. */
struct ring {
    struct model *model;
    const struct block_call *call;
    const struct attention_shape *shape; /* of the block's queries */
    int64_t block, s;                    /* layer; sequence of the call */
    const void *q;                       /* of all sequences, as `latents` */
    struct operand latents;              /* normed, of all tokens of this rank of cp; or codes */
    struct cp_pieces own;
    bool merges[CP_PIECES]; /* of each: sums are of some keys */
};

static struct ring ring_of(struct model *model, int64_t block, const struct block_call *call,
                           const struct attention_shape *shape, const void *q,
                           struct operand latents)
{
    return (struct ring){.model = model,
                         .call = call,
                         .shape = shape,
                         .block = block,
                         .q = q,
                         .latents = latents,
                         .own = cp_pieces(&model->cp, call->length)};
}

/* A block's tensors, of rows of `element` bytes an element. */
struct key_block {
    void *rows, *rope;
};

static struct key_block block_at(const struct model *model, void *data, size_t element)
{
    return (struct key_block){data, (char *)data +
                                        (size_t)(model->sequence * block_width(model)) * element};
}

/* In FP8 latents go round as the codes that their owner made of them: kv_b reads the same bytes as
 * on one rank, and half as many are sent. */
static bool coded(const struct ring *ring)
{
    return ring->latents.q.code != NULL;
}

/* Of a chunk's codes: scales and, behind them, codes. No more than the chunk in act. */
static size_t code_bytes(const struct model *model)
{
    const int64_t rank = model->arch.kv_rank, chunk = model->cp.chunk;
    return fp8_scale_bytes(chunk, rank) + (size_t)(chunk * rank);
}

static struct fp8_rows codes_at(const struct model *model, void *data, const struct cp_piece *piece)
{
    const int64_t rank = model->arch.kv_rank;
    char *room = (char *)data + (piece->at > 0 ? code_bytes(model) : 0);
    const struct fp8_buffer buffer = {
        .code = (uint8_t *)room + fp8_scale_bytes(model->cp.chunk, rank), .scale = (float *)room};
    return fp8_view(buffer, piece->count, rank);
}

/* Of keys; in FP8 rows are those of codes_at. */
static struct key_block keys_at(const struct ring *ring, void *data)
{
    const struct model *model = ring->model;
    struct key_block at = block_at(model, data, dtype_bytes(model->act));
    if (coded(ring)) {
        at.rope = (char *)data + CP_PIECES * code_bytes(model);
    }
    return at;
}

static size_t block_bytes(const struct ring *ring)
{
    const struct model *model = ring->model;
    const size_t act = dtype_bytes(model->act);
    return coded(ring)
               ? CP_PIECES * code_bytes(model) + (size_t)(model->sequence * rope_width(model)) * act
               : (size_t)block_elements(model) * act;
}

static void pack_codes(const struct ring *ring, void *data)
{
    struct model *model = ring->model;
    const struct fp8_rows *own = &ring->latents.q;
    for (int p = 0; p < CP_PIECES; p++) {
        const struct cp_piece *piece = &ring->own.piece[p];
        const struct fp8_rows out = codes_at(model, data, piece);
        const int64_t first = ring->s * ring->call->sequence + piece->at;
        if (piece->count == 0) {
            continue;
        }
        model->ops->copy(model->device, out.code, own->code + first * own->cols,
                         (size_t)(piece->count * own->cols));
        for (int64_t t = 0; t < fp8_tiles(own->cols); t++) {
            model->ops->copy(model->device, out.scale + t * out.pitch,
                             own->scale + t * own->pitch + first,
                             (size_t)piece->count * sizeof *out.scale);
        }
    }
}

/* This rank's own block. */
static void pack(const struct ring *ring, void *data)
{
    struct model *model = ring->model;
    const struct attention_state *state = &model->blocks[ring->block].attention;
    const struct key_block out = keys_at(ring, data);
    const int64_t width = block_width(model), rope = rope_width(model), rows = ring->call->sequence;
    if (latent(model)) {
        const struct tensor k_rope = own_rows(model, ring->call, state->k_rope, ring->s, rope);
        model->ops->copy(model->device, out.rope, k_rope.data, tensor_bytes(&k_rope));
        if (coded(ring)) {
            pack_codes(ring, data);
            return;
        }
        const struct tensor c = own_rows(model, ring->call, ring->latents.act.data, ring->s, width);
        model->ops->copy(model->device, out.rows, c.data, tensor_bytes(&c));
    } else {
        model->ops->copy_columns(
            model->device, model_act(model, out.rows, rows, width), 0,
            own_rows(model, ring->call, state->qkv, ring->s, key_column(model) + width),
            key_column(model), width);
    }
}

/* Keys and their values as an attention op reads them, or its gradients of them. */
struct keys {
    void *k, *k_rope, *v;
};

/* Elements from a row's keys to its values. */
static int64_t value_column(const struct model *model)
{
    const struct architecture *arch = &model->arch;
    return latent(model) ? arch->nope_dim : arch->kv_heads * arch->qk_dim;
}

/* Of a piece of the block in `data`. */
static struct operand latents_of(const struct ring *ring, void *data, const struct cp_piece *piece)
{
    const struct model *model = ring->model;
    const int64_t rank = model->arch.kv_rank;
    if (coded(ring)) {
        return (struct operand){.q = codes_at(model, data, piece)};
    }
    return (struct operand){
        .act = model_act(model, row(model, data, piece->at, rank), piece->count, rank)};
}

/* Of a piece of a block; latents are projected. */
static struct keys keys_of(const struct ring *ring, void *data, const struct cp_piece *piece)
{
    struct model *model = ring->model;
    const struct key_block in = keys_at(ring, data);
    const int64_t width = width_of(model);
    struct keys keys = {.k = row(model, in.rows, piece->at, width)};
    if (latent(model)) {
        const struct operand c = latents_of(ring, data, piece);
        linear_forward(&model->linears, linears_at(&model->linears, ring->block, LINEAR_KV_B),
                       model_act(model, model->context.keys, piece->count, width), &c, NULL, false);
        keys.k = model->context.keys;
        keys.k_rope = row(model, in.rope, piece->at, rope_width(model));
    }
    keys.v = row(model, keys.k, 1, value_column(model));
    return keys;
}

/* Rows of this rank's, of all sequences, where one of its pieces begins. */
static int64_t first_row(const struct ring *ring, int p)
{
    return ring->s * ring->call->sequence + ring->own.piece[p].at;
}

static bool sees(const struct ring *ring, int p, const struct cp_piece *keys)
{
    const int64_t first = ring->shape->first != NULL ? ring->call->first[first_row(ring, p)] : 0;
    return cp_sees(&ring->own.piece[p], keys, ring->shape->window, first);
}

static bool seen(const struct ring *ring, const struct cp_piece *keys)
{
    return sees(ring, 0, keys) || sees(ring, 1, keys);
}

/* One of this rank's pieces over a piece of keys that it sees. */
static struct attention_shape part_of(const struct ring *ring, int p, const struct cp_piece *keys)
{
    const struct cp_piece *own = &ring->own.piece[p];
    struct attention_shape part = *ring->shape;
    part.batch = 1;
    part.sequence = own->count;
    part.keys = keys->count;
    part.ahead = own->first - keys->first;
    part.before = keys->first;
    part.merges = ring->merges[p];
    part.k_stride = part.v_stride = width_of(ring->model);
    part.first = part.first != NULL ? part.first + first_row(ring, p) : NULL;
    return part;
}

/* Where a piece's rows of `head` elements for each head begin in the sums. */
static float *sums_of(const struct ring *ring, int p, int64_t head)
{
    return ring->model->context.sums + ring->own.piece[p].at * ring->shape->heads * head;
}

/* Of the block of `rank`, in `data`. */
static void turn_forward(struct ring *ring, int rank, void *data)
{
    struct model *model = ring->model;
    const struct attention_state *state = &model->blocks[ring->block].attention;
    const struct cp_pieces pieces = cp_pieces_of(&model->cp, rank, ring->call->length);
    for (int i = 0; i < CP_PIECES; i++) {
        const struct cp_piece *piece = &pieces.piece[i];
        if (!seen(ring, piece)) {
            continue;
        }
        const struct keys keys = keys_of(ring, data, piece);
        for (int p = 0; p < CP_PIECES; p++) {
            if (sees(ring, p, piece)) {
                const struct attention_shape part = part_of(ring, p, piece);
                const int64_t at = first_row(ring, p);
                cp_progress(&model->cp);
                model->ops->attention_forward(
                    model->device, sums_of(ring, p, part.v_dim), state->lse + at * part.heads,
                    row(model, ring->q, at, part.q_stride), keys.k, keys.k_rope, keys.v, &part);
                ring->merges[p] = true;
            }
        }
        cp_progress(&model->cp);
    }
}

static void sequence_forward(struct ring *ring)
{
    struct model *model = ring->model;
    struct cp *cp = &model->cp;
    void *const *block = model->context.block;
    const int64_t width = ring->shape->heads * ring->shape->v_dim, rows = ring->call->sequence;
    ring->merges[0] = ring->merges[1] = false;
    pack(ring, block[0]);
    for (int64_t turn = 0; turn < cp->comm->size; turn++) {
        if (turn + 1 < cp->comm->size) {
            cp_pass_start(cp, KEYS, block[(turn + 1) % 2], block[turn % 2], block_bytes(ring));
        }
        const int64_t began = comm_span_begin(cp->comm);
        turn_forward(ring, cp_source(cp, turn), block[turn % 2]);
        comm_span_end(cp->comm, "attention, turn", began);
        cp_pass_finish(cp);
    }
    model->ops->cast(
        model->device,
        own_rows(model, ring->call, model->blocks[ring->block].attention.attended, ring->s, width),
        tensor_2d(model->context.sums, DTYPE_F32, rows, width));
}

/* The normed latents of all tokens of this rank of cp, of which ranks of tp have parts. */
static struct operand whole_latents(struct model *model, int64_t block,
                                    const struct block_call *call)
{
    const struct attention_state *state = &model->blocks[block].attention;
    const int64_t tokens = block_tokens(model, call), rank = model->arch.kv_rank;
    struct operand own = {0};
    if (!latent(model)) {
        return own;
    }
    if (linears_in_fp8(&model->linears, block)) {
        own.q = fp8_view(state->c_codes, tokens, rank);
    } else {
        own.act = model_act(model, state->c, tokens, rank);
    }
    return block_gather(model, call, 0, &own);
}

void context_forward(struct model *model, int64_t block, const struct block_call *call,
                     const struct attention_shape *shape, const void *q)
{
    const struct operand latents = whole_latents(model, block, call);
    struct ring ring = ring_of(model, block, call, shape, q, latents);
    for (; ring.s < call->count; ring.s++) {
        sequence_forward(&ring);
    }
}

/* Gradients of a piece of keys: its place in `gradient`, or where latents are projected, none so
 * far. */
static struct keys gradients_of(const struct ring *ring, float *gradient,
                                const struct cp_piece *piece)
{
    struct model *model = ring->model;
    const struct key_block out = block_at(model, gradient, sizeof *gradient);
    const int64_t width = width_of(model);
    float *k = (float *)out.rows + piece->at * width;
    if (latent(model)) {
        k = model->context.dkeys;
        model->ops->zero(model->device, k, (size_t)(piece->count * width) * sizeof *k);
    }
    return (struct keys){.k = k,
                         .k_rope = (float *)out.rope + piece->at * rope_width(model),
                         .v = k + value_column(model)};
}

/* From the gradients of a piece's projected keys to the latents' in `gradient`; that of kv_b adds.
 */
static void latents_backward(const struct ring *ring, float *gradient, void *data,
                             const struct cp_piece *piece)
{
    struct model *model = ring->model;
    const int64_t width = width_of(model), rank = model->arch.kv_rank, rows = piece->count;
    const struct operand c = latents_of(ring, data, piece);
    const struct tensor dkv = model_act(model, model->context.dkv, rows, width);
    if (model->act != DTYPE_F32) {
        model->ops->cast(model->device, dkv,
                         tensor_2d(model->context.dkeys, DTYPE_F32, rows, width));
    }
    linear_backward(&model->linears, linears_at(&model->linears, ring->block, LINEAR_KV_B),
                    tensor_2d(gradient + piece->at * rank, DTYPE_F32, rows, rank), dkv, &c, false);
}

/* One of this rank's pieces over a piece of keys. */
static void part_backward(const struct ring *ring, int p, const struct cp_piece *piece,
                          const struct keys *keys, const struct keys *gradients)
{
    struct model *model = ring->model;
    const struct attention_state *state = &model->blocks[ring->block].attention;
    const struct attention_shape part = part_of(ring, p, piece);
    const int64_t at = first_row(ring, p);
    model->ops->attention_backward(
        model->device, sums_of(ring, p, part.qk_dim), gradients->k, gradients->k_rope, gradients->v,
        row(model, model->attention.dattended, at, part.o_stride),
        row(model, state->attended, at, part.o_stride), state->lse + at * part.heads,
        row(model, ring->q, at, part.q_stride), keys->k, keys->k_rope, keys->v, &part);
}

/* Of the block in `data`; its own goes by in halves, the later piece first. */
static void turn_backward(struct ring *ring, int64_t turn, void *data, float *gradient)
{
    struct model *model = ring->model;
    const struct cp_pieces pieces =
        cp_pieces_of(&model->cp, cp_source(&model->cp, turn), ring->call->length);
    const int from = turn == 0 ? 1 : 0, end = turn == model->cp.comm->size ? 1 : CP_PIECES;
    for (int i = from; i < end; i++) {
        const struct cp_piece *piece = &pieces.piece[i];
        if (!seen(ring, piece)) {
            continue;
        }
        const struct keys keys = keys_of(ring, data, piece),
                          gradients = gradients_of(ring, gradient, piece);
        for (int p = 0; p < CP_PIECES; p++) {
            if (sees(ring, p, piece)) {
                cp_progress(&model->cp);
                part_backward(ring, p, piece, &keys, &gradients);
            }
        }
        cp_progress(&model->cp);
        if (latent(model)) {
            latents_backward(ring, gradient, data, piece);
        }
    }
}

static struct tensor gradient_of(const struct model *model, enum context_gradient which)
{
    return tensor_1d(model->context.gradient[which], DTYPE_F32, block_elements(model));
}

/* Gradients of turns 1 .. size - 1 travel on; the others are the own block's. */
static struct tensor turn_gradient(const struct model *model, int64_t turn)
{
    const bool own = turn % model->cp.comm->size == 0;
    const struct tensor out =
        gradient_of(model, own ? CONTEXT_OWN : CONTEXT_TRAVELLING + (int)((turn - 1) % 2));
    if (turn < model->cp.comm->size) {
        model->ops->zero(model->device, out.data, tensor_bytes(&out));
    }
    return out;
}

/* What has to be on its way while a turn is computed: keys of the next, gradients of the last. */
static void turn_start(const struct ring *ring, int64_t turn)
{
    struct model *model = ring->model;
    struct cp *cp = &model->cp;
    void *const *block = model->context.block;
    if (turn + 1 < cp->comm->size) {
        cp_pass_start(cp, KEYS, block[(turn + 1) % 2], block[turn % 2], block_bytes(ring));
    }
    if (turn >= 2) {
        const struct tensor in = gradient_of(model, CONTEXT_INCOMING);
        cp_pass_start(cp, GRADIENTS, in.data,
                      model->context.gradient[CONTEXT_TRAVELLING + turn % 2], tensor_bytes(&in));
    }
}

static void grouped_gradients(const struct ring *ring)
{
    struct model *model = ring->model;
    const struct block_call *call = ring->call;
    const int64_t width = width_of(model), query = key_column(model), rows = call->sequence;
    const struct tensor dqkv = own_rows(model, call, model->attention.dqkv, ring->s, query + width),
                        dkv = model_act(model, model->context.block[0], rows, width),
                        dq = own_rows(model, call, model->attention.dattended, ring->s, query);
    assert(model->arch.qk_dim == model->arch.v_dim);
    model->ops->cast(model->device, dq, tensor_2d(model->context.sums, DTYPE_F32, rows, query));
    model->ops->copy_columns(model->device, dqkv, 0, dq, 0, query);
    model->ops->cast(model->device, dkv,
                     tensor_2d(model->context.gradient[CONTEXT_OWN], DTYPE_F32, rows, width));
    model->ops->copy_columns(model->device, dqkv, query, dkv, 0, width);
}

/* dc: rows of all sequences. */
static void latent_gradients(const struct ring *ring, void *dq, struct tensor dc)
{
    struct model *model = ring->model;
    const struct block_call *call = ring->call;
    const int64_t rank = model->arch.kv_rank, rope = rope_width(model), query = key_column(model),
                  rows = call->sequence;
    float *own = model->context.gradient[CONTEXT_OWN];
    const struct key_block out = block_at(model, own, sizeof *own);
    model->ops->cast(model->device, own_rows(model, call, dq, ring->s, query),
                     tensor_2d(model->context.sums, DTYPE_F32, rows, query));
    model->ops->cast(model->device, tensor_rows(&dc, ring->s * rows, rows),
                     tensor_2d(out.rows, DTYPE_F32, rows, rank));
    model->ops->cast(model->device, own_rows(model, call, model->attention.dk_rope, ring->s, rope),
                     tensor_2d(out.rope, DTYPE_F32, rows, rope));
}

static void sequence_backward(struct ring *ring)
{
    struct model *model = ring->model;
    struct cp *cp = &model->cp;
    const int64_t elements = ring->call->sequence * key_column(model);
    model->ops->zero(model->device, model->context.sums, (size_t)elements * sizeof(float));
    for (int64_t turn = 0; turn <= cp->comm->size; turn++) {
        void *data = model->context.block[turn % 2];
        const struct tensor gradient = turn_gradient(model, turn);
        if (turn % cp->comm->size == 0) {
            pack(ring, data);
        }
        turn_start(ring, turn);
        const int64_t began = comm_span_begin(cp->comm);
        turn_backward(ring, turn, data, gradient.data);
        comm_span_end(cp->comm, "attention, backward turn", began);
        cp_pass_finish(cp);
        if (turn >= 2) {
            model->ops->add(model->device, gradient, gradient_of(model, CONTEXT_INCOMING));
        }
    }
}

void context_backward(struct model *model, int64_t block, const struct block_call *call,
                      const struct attention_shape *shape, const void *q, void *dq)
{
    const struct operand latents = whole_latents(model, block, call);
    struct ring ring = ring_of(model, block, call, shape, q, latents);
    const struct tensor dc = model_act(model, model->attention.dc, block_tokens(model, call),
                                       model->arch.kv_rank),
                        part = block_part(model, call, dc);
    for (; ring.s < call->count; ring.s++) {
        sequence_backward(&ring);
        if (latent(model)) {
            latent_gradients(&ring, dq, part);
        } else {
            grouped_gradients(&ring);
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
        cp_gather(&model->cp, model->context.lse + s * tokens, model->context.lse_parts,
                  own + s * mine, tokens, sizeof *own);
    }
    return model->context.lse;
}
