#include "trainer/model/balance.h"

#include <string.h>

#include "trainer/model/model.h"

/* One block's statistics. */
struct view {
    const struct router_counts *counts;
    const double *sums; /* [rows, E] */
    float *gradient;    /* [rows, E] */
    int64_t rows, sequence;
};

static int64_t cells(const struct model *model)
{
    return model->moe.sequences * model->arch.experts;
}

void balance_layout(const struct model *model, struct balance *balance, struct arena *arena)
{
    const size_t all = (size_t)(architecture_moe_blocks(&model->arch) * cells(model));
    if (model->training) {
        balance->gradient = arena_alloc(arena, all * sizeof(float));
        balance->sums = arena_alloc(arena, all * sizeof(double));
    }
}

/* Moe block `m` of a micro-batch. */
static struct view view_of(const struct model *model, int64_t m, int64_t count, int64_t sequence)
{
    const int64_t block = m + model->arch.dense_layers, ahead = block - model->arch.layers + 1;
    return (struct view){.counts = &model->blocks[block].moe.counts,
                         .sums = model->balance.sums + m * cells(model),
                         .gradient = model->balance.gradient + m * cells(model),
                         .rows = count,
                         .sequence = ahead > 0 ? sequence - ahead : sequence};
}

/* Adds alpha * f_i to the gradient of every expert of a row; returns alpha * sum f_i P_i. */
static double add_term(const struct view *view, int64_t row, int64_t experts, int64_t first,
                       int64_t size, double alpha_f, double unit)
{
    const double tokens = (double)view->sequence;
    double sum = 0;
    for (int64_t e = first; e < first + size; e++) {
        sum += view->sums[row * experts + e] / tokens;
        view->gradient[row * experts + e] +=
            (float)(alpha_f / (tokens * (double)view->rows) * unit);
    }
    return alpha_f * sum / (double)view->rows;
}

static double sequence_loss(const struct architecture *arch, const struct view *view, double unit)
{
    const int64_t *counts =
        view->counts->scored != NULL ? view->counts->scored : view->counts->routed;
    const double share = (double)arch->experts / (double)(arch->top_k * view->sequence);
    double loss = 0;
    for (int64_t i = 0; i < view->rows * arch->experts; i++) {
        const double f = share * (double)counts[i];
        loss += add_term(view, i / arch->experts, arch->experts, i % arch->experts, 1,
                         arch->balance.sequence * f, unit);
    }
    return loss;
}

static int64_t group_slots(const struct architecture *arch, const struct view *view, int64_t row,
                           int64_t group)
{
    const int64_t size = arch->experts / arch->loss_groups;
    int64_t sum = 0;
    for (int64_t e = group * size; e < (group + 1) * size; e++) {
        sum += view->counts->routed[row * arch->experts + e];
    }
    return sum;
}

/* The device and communication losses: both weigh the P of a whole group. */
static double group_losses(const struct architecture *arch, const struct view *view, double unit)
{
    const int64_t groups = arch->loss_groups, size = arch->experts / groups;
    const double slots = (double)(arch->top_k * view->sequence);
    const double visits = (double)(arch->loss_top_groups * view->sequence);
    double loss = 0;
    for (int64_t i = 0; i < view->rows * groups; i++) {
        const int64_t row = i / groups, group = i % groups;
        double weight = 0;
        if (arch->balance.device > 0) { /* mean over the group of E/(K T) count */
            weight += arch->balance.device * (double)groups *
                      (double)group_slots(arch, view, row, group) / slots;
        }
        if (arch->balance.communication > 0) {
            weight += arch->balance.communication * (double)groups *
                      (double)view->counts->group[i] / visits;
        }
        loss += add_term(view, row, arch->experts, group * size, size, weight, unit);
    }
    return loss;
}

/* Over all tokens of one block. */
static double batch_loss(const struct architecture *arch, const struct view *view, double unit)
{
    const double slots = (double)(arch->top_k * view->sequence * view->rows);
    double loss = 0;
    for (int64_t e = 0; e < arch->experts; e++) {
        int64_t count = 0;
        for (int64_t row = 0; row < view->rows; row++) {
            count += view->counts->routed[row * arch->experts + e];
        }
        const double f = (double)arch->experts * (double)count / slots;
        for (int64_t row = 0; row < view->rows; row++) {
            loss += add_term(view, row, arch->experts, e, 1, arch->balance.batch * f, unit);
        }
    }
    return loss;
}

/* Over the tokens of all layers together (Mixtral: every block has experts and the same tokens). */
static double batch_loss_over_layers(const struct model *model, int64_t count, int64_t sequence,
                                     double unit)
{
    const struct architecture *arch = &model->arch;
    const int64_t experts = arch->experts, blocks = architecture_moe_blocks(arch);
    const double rows = (double)(blocks * count * sequence);
    double loss = 0;
    for (int64_t e = 0; e < experts; e++) {
        int64_t chosen = 0;
        double sum = 0;
        for (int64_t i = 0; i < blocks * count; i++) {
            const struct view view = view_of(model, i / count, count, sequence);
            chosen += view.counts->routed[i % count * experts + e];
            sum += view.sums[i % count * experts + e];
        }
        const double f = (double)chosen / rows;
        for (int64_t i = 0; i < blocks * count; i++) {
            const struct view view = view_of(model, i / count, count, sequence);
            view.gradient[i % count * experts + e] +=
                (float)(arch->balance.batch * (double)experts * f / rows * unit);
        }
        loss += (double)experts * f * sum / rows;
    }
    return arch->balance.batch * loss;
}

static double block_losses(struct model *model, int64_t m, int64_t count, int64_t sequence,
                           double unit)
{
    const struct architecture *arch = &model->arch;
    const struct view view = view_of(model, m, count, sequence);
    const struct moe_state *moe = &model->blocks[m + arch->dense_layers].moe;
    const int64_t tokens = count * view.sequence;
    double loss = 0;
    model->ops->router_sums(model->device, model->balance.sums + m * cells(model), moe->score,
                            moe_router_shape(&model->moe, tokens, view.sequence));
    if (arch->balance.sequence > 0) {
        loss += sequence_loss(arch, &view, unit);
    }
    if (arch->balance.device > 0 || arch->balance.communication > 0) {
        loss += group_losses(arch, &view, unit);
    }
    if (arch->balance.batch > 0 && !arch->balance.batch_over_layers) {
        loss += batch_loss(arch, &view, unit);
    }
    if (arch->balance.z > 0) {
        loss += arch->balance.z * model->ops->sum_squares(model->device, moe->lse, tokens) /
                (double)tokens;
    }
    return loss;
}

double balance_losses(struct model *model, int64_t count, int64_t sequence, double unit)
{
    const int64_t blocks = architecture_moe_blocks(&model->arch);
    double loss = 0;
    memset(model->balance.gradient, 0, (size_t)(blocks * cells(model)) * sizeof(float));
    for (int64_t m = 0; m < blocks; m++) {
        loss += block_losses(model, m, count, sequence, unit);
    }
    if (model->arch.balance.batch > 0 && model->arch.balance.batch_over_layers) {
        loss += batch_loss_over_layers(model, count, sequence, unit);
    }
    return loss;
}

const float *balance_gradient(const struct model *model, int64_t block)
{
    return model->balance.gradient + (block - model->arch.dense_layers) * cells(model);
}

void balance_update_bias(struct model *model, double speed)
{
    const int64_t experts = model->arch.experts;
    for (int64_t m = 0; m < architecture_moe_blocks(&model->arch); m++) {
        const int64_t *count = model->load + m * experts;
        float *bias = model->router_bias + m * experts;
        int64_t sum = 0;
        for (int64_t e = 0; e < experts; e++) {
            sum += count[e];
        }
        for (int64_t e = 0; e < experts; e++) { /* mean > count, times E: no rounding */
            const int64_t below = sum - experts * count[e];
            bias[e] += (float)speed * (float)((below > 0) - (below < 0));
        }
    }
}
