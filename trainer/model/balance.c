#include "trainer/model/balance.h"

#include "trainer/model/block.h"

static int64_t cells(const struct model *model)
{
    return model->moe.sequences * model->arch.experts;
}

void balance_layout(const struct model *model, struct balance *balance, struct arena *arena)
{
    const size_t all = (size_t)(architecture_moe_blocks(&model->arch) * cells(model));
    if (model->training) {
        balance->gradient = arena_alloc(arena, all * sizeof *balance->gradient);
        balance->sums = arena_alloc(arena, all * sizeof *balance->sums);
        for (int64_t s = 0; s < model->slots; s++) {
            model->slot[s].chosen =
                arena_alloc(arena, (size_t)model->arch.experts * sizeof *balance->chosen);
        }
        balance->chosen = model->slot[0].chosen;
    }
}

static struct moe_state *state_of(const struct model *model, int64_t m)
{
    return &model->blocks[m + model->arch.dense_layers].moe;
}

/* Of moe block `m`: a module of multi-token prediction sees fewer tokens. */
static struct router_shape shape_of(const struct model *model, int64_t m, int64_t count,
                                    int64_t sequence)
{
    const int64_t ahead = m + model->arch.dense_layers - model->arch.layers + 1;
    const int64_t length = ahead > 0 ? sequence - ahead : sequence;
    return moe_router_shape(&model->moe, count * length, length);
}

/* The ranks of tp and cp have a part of every sequence each: counts become those of all tokens.
 * After model_count_block, which counts this rank's. */
static void sum_counts(struct model *model, int64_t m, int64_t rows)
{
    const struct router_counts *counts = &state_of(model, m)->counts;
    block_sum(model, counts->routed, rows * model->arch.experts, DTYPE_I64);
    if (counts->scored != NULL) {
        block_sum(model, counts->scored, rows * model->arch.experts, DTYPE_I64);
    }
    if (counts->group != NULL) {
        block_sum(model, counts->group, rows * model->arch.loss_groups, DTYPE_I64);
    }
}

/* Sums of scores over all tokens of each sequence. */
static void sum_scores(struct model *model, double *sums, const struct moe_state *moe,
                       const struct router_shape *shape, int64_t rows)
{
    const int64_t own = tp_tokens(&model->tp, cp_tokens(&model->cp, shape->row_tokens));
    model->ops->router_sums(model->device, sums, moe->score,
                            moe_router_shape(&model->moe, rows * own, own));
    block_sum(model, sums, rows * model->arch.experts, DTYPE_F64);
}

/* lse of all tokens. */
static const float *all_lse(struct model *model, const struct moe_state *moe,
                            const struct router_shape *shape, int64_t rows)
{
    const int64_t part = cp_tokens(&model->cp, shape->row_tokens);
    const float *lse = moe->lse;
    if (lse != NULL && !tp_alone(&model->tp)) {
        tp_gather(&model->tp, tensor_2d(model->wide[1], DTYPE_F32, rows * part, 1),
                  tensor_2d(moe->lse, DTYPE_F32, rows * tp_tokens(&model->tp, part), 1), rows);
        lse = model->wide[1];
    }
    return lse == NULL || cp_alone(&model->cp) ? lse
                                               : context_lse(model, lse, rows, shape->row_tokens);
}

static struct balance_terms terms_of(const struct model *model, const struct router_shape *shape,
                                     double unit)
{
    const struct architecture *arch = &model->arch;
    const struct balance_coefs *coefs = &arch->balance;
    const double experts = (double)arch->experts, tokens = (double)shape->tokens;
    struct balance_terms terms = {.sequence = coefs->sequence,
                                  .score_counts = coefs->score_counts,
                                  .device = coefs->device,
                                  .communication = coefs->communication,
                                  .top_groups = arch->loss_top_groups,
                                  .z = coefs->z,
                                  .unit = unit};
    if (coefs->batch_over_layers) { /* Mixtral: every block has experts and the same tokens */
        const double rows = tokens * (double)architecture_moe_blocks(arch);
        terms.batch_weight = coefs->batch * experts / rows;
        terms.batch_share = 1 / rows;
    } else {
        terms.batch_weight = coefs->batch * experts / (tokens * (double)arch->top_k);
        terms.batch_share = 1 / tokens;
    }
    return terms;
}

/* Adds block m's slots to `chosen`. */
static void count_chosen(struct model *model, int64_t m, int64_t rows)
{
    model->ops->router_count(model->device, model->balance.chosen,
                             state_of(model, m)->counts.routed, rows, model->arch.experts);
}

void balance_clear(struct model *model)
{
    model->ops->zero(model->device, model->balance.chosen,
                     (size_t)model->arch.experts * sizeof *model->balance.chosen);
}

static void block_losses(struct model *model, int64_t m, int64_t count,
                         const struct router_shape *shape, double unit)
{
    const struct balance_coefs *coefs = &model->arch.balance;
    const struct moe_state *moe = state_of(model, m);
    const struct balance_terms terms = terms_of(model, shape, unit);
    double *sums = model->balance.sums + m * cells(model);
    sum_scores(model, sums, moe, shape, count);
    if (coefs->batch > 0 && !coefs->batch_over_layers) {
        balance_clear(model);
        count_chosen(model, m, count);
    }
    model->ops->balance(model->device, &model->aux[m], model->balance.gradient + m * cells(model),
                        sums, moe->counts, model->balance.chosen, all_lse(model, moe, shape, count),
                        *shape, &terms);
}

/* Of blocks [first, end) those with experts. */
static int64_t first_moe(const struct model *model, int64_t first)
{
    return first > model->arch.dense_layers ? first - model->arch.dense_layers : 0;
}

void balance_count(struct model *model, int64_t first, int64_t end, int64_t count)
{
    const struct balance_coefs *coefs = &model->arch.balance;
    for (int64_t m = first_moe(model, first); m < end - model->arch.dense_layers; m++) {
        sum_counts(model, m, count);
        if (coefs->batch > 0 && coefs->batch_over_layers) {
            count_chosen(model, m, count);
        }
    }
}

void balance_losses(struct model *model, int64_t first, int64_t end, const struct model_unit *batch,
                    double unit)
{
    for (int64_t m = first_moe(model, first); m < end - model->arch.dense_layers; m++) {
        const struct router_shape shape = shape_of(model, m, batch->count, batch->sequence);
        block_losses(model, m, batch->count, &shape, unit);
    }
}

const float *balance_gradient(const struct model *model, int64_t block)
{
    return model->balance.gradient + (block - model->arch.dense_layers) * cells(model);
}

void balance_update_bias(struct model *model, const int64_t *load, float *bias, double speed)
{
    const int64_t experts = model->arch.experts, blocks = architecture_moe_blocks(&model->arch);
    const size_t bytes = (size_t)(blocks * experts) * sizeof *bias;
    model->ops->download(model->device, bias, model->router_bias, bytes);
    for (int64_t m = 0; m < blocks; m++) {
        const int64_t *count = load + m * experts;
        int64_t sum = 0;
        for (int64_t e = 0; e < experts; e++) {
            sum += count[e];
        }
        for (int64_t e = 0; e < experts; e++) { /* mean > count, times E: no rounding */
            const int64_t below = sum - experts * count[e];
            bias[m * experts + e] += (float)speed * (float)((below > 0) - (below < 0));
        }
    }
    model->ops->upload(model->device, model->router_bias, bias, bytes);
}
