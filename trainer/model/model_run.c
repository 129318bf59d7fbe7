#include <assert.h>
#include <string.h>

#include "trainer/model/block.h"
#include "trainer/optimizer.h"

static struct tensor stream(const struct model *model, void *data, int64_t tokens)
{
    return model_act(model, data, tokens, model->arch.width);
}

void model_count_block(struct model *model, int64_t block, int64_t tokens)
{
    const struct moe_state *state = &model->blocks[block].moe;
    const int64_t experts = model->arch.experts, rows = tokens / state->row_tokens;
    const int64_t slots = tokens * model->moe.choices, parts = experts * model->moe.slices;
    model->result.slots += slots;
    model->result.extra_rounds += state->plan.rounds - 1;
    model->ops->router_count(model->device,
                             model->load + (block - model->arch.dense_layers) * experts,
                             state->counts.routed, rows, experts);
    model->ops->router_count(model->device, &model->losses->kept, state->plan.sorted + parts, 1, 1);
}

void model_use_slot(struct model *model, int64_t slot)
{
    lane_use(model, lane_of(model, slot));
    model->blocks = model->slot[slot].blocks;
    model->balance.chosen = model->slot[slot].chosen;
}

/* One past the last block of the main model in this part. */
static int64_t main_end(const struct model *model, const struct stage *part)
{
    const int64_t end = part->first + part->blocks;
    return end < model->arch.layers ? end : model->arch.layers;
}

static void forward(struct model *model, const struct block_call *call, const struct stage *part)
{
    const int64_t n = block_tokens(model, call), end = main_end(model, part);
    struct tensor x = stream(model, model->blocks[part->first].input, n), delta = {0};
    assert(n <= model->moe.tokens && call->sequence <= model->sequence);
    if (part->embedding) {
        gathered_use(model, PARAM_PART_EMBED, params_part_block(&model->arch, part->first));
        vocab_embed(model, call, x);
    }
    for (int64_t l = part->first; l < end; l++) {
        const int64_t next = l + 1 < end  ? params_part_block(&model->arch, l + 1)
                             : part->head ? params_part_norm(&model->arch)
                                          : -1;
        comm_at_layer(model->mesh->world, l);
        gathered_use(model, params_part_block(&model->arch, l), next);
        block_forward(model, l, call, x, delta);
        x = stream(model, model->blocks[l].middle, n);
        delta = stream(model, model->delta, n);
        if (l >= model->arch.dense_layers) {
            model_count_block(model, l, n);
        }
    }
    comm_at_layer(model->mesh->world, -1);
    if (!part->head) {
        return;
    }
    gathered_use(model, params_part_norm(&model->arch), params_part_head(&model->arch));
    model->ops->norm_forward(model->device, stream(model, model->final_norm, n),
                             stream(model, model->stream, n), model->final_rstd, x, delta,
                             model_vector(model, model->params.final_norm, model->arch.width),
                             model->arch.norm_eps);
    if (call->training) {
        probe_tell(model->probe, -1, PROBE_FINAL_NORM, stream(model, model->final_norm, n));
    }
}

float model_z_scale(const struct model *model, int64_t tokens, const struct model_scale *scale)
{
    return (float)(model->arch.balance.z * scale->unit / (double)tokens);
}

void model_close_gradients(struct model *model, int64_t part, const struct model_scale *scale)
{
    if (scale->last && model->linears.drawer == NULL) {
        reduction_close(model, part);
    }
}

/* Through the final norm: model->dstream from model->dwork. */
static void norm_backward(struct model *model, int64_t n)
{
    const int64_t width = model->arch.width;
    struct tensor dstream = stream(model, model->dstream, n);
    probe_tell(model->probe, -1, PROBE_OUTPUT_GRADIENT, stream(model, model->dwork, n));
    gathered_use(model, params_part_norm(&model->arch), -1);
    shards_open(model, params_part_norm(&model->arch));
    model->ops->zero(model->device, model->dstream, tensor_bytes(&dstream));
    model->ops->norm_backward(
        model->device, dstream, model_vector_grad(model, model->params.final_norm, width),
        stream(model, model->dwork, n), stream(model, model->stream, n), model->final_rstd,
        model_vector(model, model->params.final_norm, width));
    model_add_grad(model, PARAM_DENSE, model->params.final_norm, width);
    shards_close(model, params_part_norm(&model->arch));
}

static void backward(struct model *model, const struct block_call *call,
                     const struct model_scale *scale, const struct stage *part)
{
    for (int64_t l = main_end(model, part) - 1; l >= part->first; l--) {
        const int64_t next = l > part->first ? params_part_block(&model->arch, l - 1) : -1;
        comm_at_layer(model->mesh->world, l);
        gathered_use(model, params_part_block(&model->arch, l), -1);
        block_backward(model, l, call, model_z_scale(model, call->count * call->length, scale),
                       next);
        shards_close(model, params_part_block(&model->arch, l));
        model_close_gradients(model, params_part_block(&model->arch, l), scale);
        /* no layer below has experts, and nothing is exchanged with ranks of tp, cp or other
         * stages, nor gradients a block at a time */
        if (l == model->arch.dense_layers && scale->last && tp_alone(&model->tp) &&
            cp_alone(&model->cp) && slice_whole(&model->slice) &&
            !model->group[PARAM_DENSE].shards.on && !reduction_wanted(model, PARAM_EXPERT)) {
            optimizer_reduce_start(model, PARAM_EXPERT);
        }
    }
    comm_at_layer(model->mesh->world, -1);
    if (!part->embedding) {
        if (part->head && model->arch.mtp_depth > 0) { /* modules of prediction opened it */
            shards_close(model, PARAM_PART_EMBED);
        }
        return;
    }
    reduction_start(model);
    shards_open(model, PARAM_PART_EMBED);
    vocab_embed_backward(model, call, stream(model, model->dstream, block_tokens(model, call)));
    shards_close(model, PARAM_PART_EMBED);
    if (scale->last) {
        reduction_close(model, PARAM_PART_EMBED);
    }
}

/* The batch on the device: all tokens of this rank of cp. */
static void take_batch(struct model *model, const struct batch *batch, int64_t count,
                       int64_t sequence)
{
    const int64_t tokens = count * cp_tokens(&model->cp, sequence);
    const struct {
        int32_t *to;
        const int32_t *from;
    } arrays[] = {{model->input.ids, batch->ids},
                  {model->input.labels, batch->labels},
                  {model->input.positions, batch->positions},
                  {model->input.first, batch->first}};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        int32_t *host = model->own + (int64_t)i * tokens;
        if (arrays[i].from == NULL) {
            continue;
        }
        cp_own_tokens(&model->cp, host, arrays[i].from, count, sequence);
        if (arrays[i].to == model->input.ids) {
            vocab_own_ids(model, host, tokens);
        }
        model->ops->upload(model->device, arrays[i].to, host, (size_t)tokens * sizeof *host);
    }
}

void model_sum_losses(struct model *model)
{
    block_sum(model, &model->losses->loss, 1, DTYPE_F64);
    block_sum(model, &model->losses->mtp, 1, DTYPE_F64);
    block_sum(model, &model->losses->kept, 1, DTYPE_I64);
}

/* The batch is or will be what take_batch leaves in model->own. */
static struct block_call call_of(const struct model *model, const struct model_unit *unit)
{
    const int64_t own = cp_tokens(&model->cp, unit->sequence);
    assert((tp_alone(&model->tp) && cp_alone(&model->cp)) || unit->sequence == model->length);
    return (struct block_call){.batch = &model->input,
                               .count = unit->count,
                               .sequence = own,
                               .length = unit->sequence,
                               .first = model->own + 3 * unit->count * own,
                               .training = unit->scale != NULL,
                               .jitter_key = unit->scale != NULL ? unit->scale->jitter_key : 0};
}

void model_part_forward(struct model *model, const struct model_unit *unit,
                        const struct stage *part)
{
    const struct block_call call = call_of(model, unit);
    const int64_t n = block_tokens(model, &call);
    take_batch(model, unit->batch, unit->count, unit->sequence);
    if (unit->scale != NULL) {
        probe_tell(model->probe, -1, PROBE_IDS, tensor_1d(model->input.ids, DTYPE_I32, n));
        probe_tell(model->probe, -1, PROBE_LABELS, tensor_1d(model->input.labels, DTYPE_I32, n));
    }
    forward(model, &call, part);
    if (unit->scale != NULL) {
        balance_count(model, part->first, main_end(model, part), unit->count);
    }
}

void model_take_unit(struct model *model, const struct model_unit *unit)
{
    take_batch(model, unit->batch, unit->count, unit->sequence);
}

void model_part_loss(struct model *model, const struct model_unit *unit)
{
    const int64_t layers = model->arch.layers;
    const struct model_scale *scale = unit->scale;
    const struct block_call call = call_of(model, unit);
    const int64_t n = block_tokens(model, &call);
    struct tensor dx = {0};
    if (scale != NULL) {
        assert(model->training);
        shards_open(model, params_part_head(&model->arch));
        dx = stream(model, model->dwork, n);
    }
    gathered_use(model, params_part_head(&model->arch), -1);
    const int64_t began = comm_span_begin(model->mesh->world);
    vocab_loss(model, &call, &model->losses->loss, dx, stream(model, model->final_norm, n),
               scale != NULL ? (float)scale->loss : 0.0F);
    comm_span_end(model->mesh->world, "head and loss", began);
    if (scale == NULL) {
        return;
    }
    probe_tell(model->probe, -1, PROBE_LOSS, tensor_1d(&model->losses->loss, DTYPE_F64, 1));
    mtp_forward(model, &model->losses->mtp, unit->batch, unit->count, unit->sequence, scale);
    shards_close(model, params_part_head(&model->arch));
    if (scale->last) {
        reduction_close(model, params_part_head(&model->arch));
    }
    balance_count(model, layers, architecture_blocks(&model->arch), unit->count);
    balance_losses(model, layers, architecture_blocks(&model->arch), unit, scale->unit);
    mtp_backward(model, unit->count, unit->sequence, scale);
    norm_backward(model, n);
}

void model_part_backward(struct model *model, const struct model_unit *unit,
                         const struct stage *part)
{
    const struct block_call call = call_of(model, unit);
    if (!part->head) { /* others came between */
        take_batch(model, unit->batch, unit->count, unit->sequence);
    }
    balance_losses(model, part->first, main_end(model, part), unit, unit->scale->unit);
    backward(model, &call, unit->scale, part);
}

static void clear_results(struct model *model)
{
    const int64_t blocks = architecture_moe_blocks(&model->arch);
    model->result = (struct model_result){0};
    model->ops->zero(model->device, model->losses, sizeof *model->losses);
    model->ops->zero(model->device, model->aux, (size_t)blocks * sizeof *model->aux);
}

void model_run(struct model *model, const struct batch *batch, int64_t count, int64_t sequence,
               const struct model_scale *scale)
{
    const struct model_unit unit = {
        .batch = batch, .count = count, .sequence = sequence, .scale = scale};
    const struct stage *whole = &model->slice.part[0];
    assert(slice_whole(&model->slice));
    clear_results(model);
    if (scale != NULL) {
        balance_clear(model);
    }
    model_part_forward(model, &unit, whole);
    model_part_loss(model, &unit);
    if (scale != NULL) {
        model_part_backward(model, &unit, whole);
    }
    model_sum_losses(model);
}

struct model_losses model_read_losses(const struct model *model)
{
    struct model_losses losses;
    model->ops->download(model->device, &losses, model->losses, sizeof losses);
    return losses;
}

double model_read_aux(const struct model *model)
{
    double sum = 0;
    for (int64_t m = 0; m < architecture_moe_blocks(&model->arch); m++) {
        double one = 0;
        model->ops->download(model->device, &one, &model->aux[m], sizeof one);
        sum += one;
    }
    return sum;
}

void model_forward(struct model *model, const struct block_call *call, int64_t first, int64_t rows,
                   float *logits)
{
    assert(tp_alone(&model->tp) && cp_alone(&model->cp) && slice_whole(&model->slice));
    model->result = (struct model_result){0};
    forward(model, call, &model->slice.part[0]);
    struct tensor normed = stream(model, model->final_norm, call->count * call->sequence);
    gathered_use(model, params_part_head(&model->arch), -1);
    model->ops->linear_forward(
        model->device, tensor_2d(logits, DTYPE_F32, rows, model->arch.vocab),
        tensor_rows(&normed, first, rows),
        model_weight(model, PARAM_DENSE, model->params.head, model->arch.vocab, model->arch.width),
        false);
}

void model_logits(struct model *model, const struct batch *batch, int64_t count, int64_t sequence,
                  int64_t token, float *logits)
{
    const struct block_call call = {.batch = &model->input, .count = count, .sequence = sequence};
    take_batch(model, batch, count, sequence);
    model_forward(model, &call, token, 1, model->logits);
    model->ops->download(model->device, logits, model->logits,
                         (size_t)model->arch.vocab * sizeof *logits);
}
