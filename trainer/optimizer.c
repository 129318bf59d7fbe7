#include "trainer/optimizer.h"

#include <math.h>

double optimizer_reduce(struct model *model)
{
    double sum = 0;
    for (int g = 0; g < PARAM_GROUPS; g++) {
        struct model_group *group = &model->group[g];
        zero_reduce_scatter(&group->zero, group->grads, group->reduced);
        sum += model->ops->sum_squares(model->device, group->grads + group->zero.first,
                                       group->zero.share);
    }
    comm_all_reduce(model->mesh->world, &sum, 1, DTYPE_F64, REDUCE_SUM);
    return sqrt(sum);
}

/* The part of one parameter that lies in this rank's share. */
static void update(struct model *model, const struct param *param, const struct adamw *args)
{
    struct model_group *group = &model->group[param->group];
    const int64_t begin = group->zero.first, end = begin + group->zero.share;
    const int64_t first = param->offset > begin ? param->offset : begin;
    const int64_t last = param->offset + param->count < end ? param->offset + param->count : end;
    if (first >= last) {
        return;
    }
    const int64_t at = first - begin;
    struct adamw own = *args;
    own.weight_decay = param->decay ? args->weight_decay : 0.0F;
    void *out = model->act == DTYPE_F32
                    ? NULL
                    : (char *)group->weights + (size_t)first * dtype_bytes(model->act);
    model->ops->adamw(model->device, group->master + at, group->moment1 + at, group->moment2 + at,
                      out, group->grads + first, last - first, own);
}

void optimizer_step(struct model *model, double norm, double lr, int64_t step)
{
    const struct config *config = model->config;
    const double clip = config->optimizer.clip_norm;
    const double scale = clip > 0 ? fmin(1.0, clip / (norm + 1e-6)) : 1.0;
    const struct adamw args = {.lr = (float)lr,
                               .beta1 = (float)config->optimizer.beta1,
                               .beta2 = (float)config->optimizer.beta2,
                               .eps = (float)config->optimizer.eps,
                               .weight_decay = (float)config->optimizer.weight_decay,
                               .grad_scale = (float)scale,
                               .step = step};
    for (int64_t i = 0; i < model->params.count; i++) {
        update(model, &model->params.table[i], &args);
    }
    for (int g = 0; g < PARAM_GROUPS; g++) {
        zero_all_gather(&model->group[g].zero, model->group[g].weights, model->act);
    }
}
