/* optimizer: from summed gradients to new weights: reduce, norm, clip, update this rank's share,
 * gather.
 *
 * optimizer.name adamw: all parameters by AdamW. muon: matrices by Muon (trainer/muon.h), but
 * embedding, head, router gates and vectors by AdamW. optimizer.freeze: parameters whose name
 * matches a pattern have no update, no decay, no change of moments, and no part in the norm.
 * optimizer.moments: bf16 keeps moments in two bytes, computed in f32 and rounded stochastically
 * (kernels/ops.h says why). optimizer.ema: a running average of the masters, f32, in the share.
 */
#ifndef TRAINER_OPTIMIZER_H
#define TRAINER_OPTIMIZER_H

#include "trainer/model/model.h"

struct metrics;

/* Local, before any model is made: the whole model's table of names is enough. Errors: STATUS_USAGE
 * for a pattern of optimizer.freeze that matches nothing; STATUS_RESOURCE. */
enum status optimizer_check(const struct config *config) __attribute__((warn_unused_result));

/* Local. What each parameter is to the optimizer: param->muon, param->frozen, plans. Errors:
 * STATUS_RESOURCE. */
enum status optimizer_init(struct model *model) __attribute__((warn_unused_result));
void optimizer_free(struct model *model); /* accepts what was never made */
/* Moments, average and scratch, in model->arena_optimizer. */
void optimizer_layout(struct model *model);
/* Local. Says where the state is, if it is not where one would look. */
void optimizer_words(const struct model *model, struct metrics *metrics);
/* Local. The average starts from the masters. */
void optimizer_start_average(struct model *model);

/* Whether a parameter is Muon's when optimizer.name is muon: a matrix, but not one whose rows stand
 * for tokens or experts (embedding, head, router gate). */
bool optimizer_takes_muon(const struct param *param);

/* Collective over the group's replicas. Its gradients are whole and start for the ranks that own
 * them; optimizer_reduce finishes. Until then no other group of ranks exchanges device memory. */
void optimizer_reduce_start(struct model *model, enum param_group group);
/* Collective over the mesh. Sums gradients over the replicas; this rank's share of each group holds
 * the sum, 0 where frozen: in f32, or as integers (optimizer_decode). Returns the global L2 norm,
 * every parameter counted once (not finite when any gradient is not). */
double optimizer_reduce(struct model *model);
/* Local, between optimizer_reduce and optimizer_step. Of integers: this rank's share of the group's
 * gradients in f32, where they are without (group->grads), for who reads them there. */
void optimizer_decode(struct model *model, enum param_group group);
/* Collective. One step at learning rate lr, gradients clipped to optimizer.clip_norm by min(1, c /
 * (norm + 1e-6)); weights are gathered. step from 1. Gradients are gone afterwards. */
void optimizer_step(struct model *model, double norm, double lr, int64_t step);

/* --- for trainer/muon.c --- */

/* How the moments of a parameter's elements from `first` (counted in its group) are kept. */
struct moments optimizer_moments(const struct model *model, const struct param *param,
                                 int64_t first, int64_t step);
/* Element `at` of an array of moments. */
void *optimizer_moment(const struct model *model, void *moments, int64_t at);
/* bf16 weights at element `first` of the group; NULL where the masters are the weights. */
void *optimizer_out(const struct model *model, const struct model_group *group, int64_t first);

#endif
