/* clang-format off */
/* balance: what keeps experts evenly used: balance losses and DeepSeek-V3's selection bias.
 *
 * Counts f are constants, probabilities P carry the gradient. Of one block with experts, E experts,
 * K choices, D groups of which a token may use M, over sequences of T tokens (models of DeepSeek-V2
 * and V3; P_i is the mean score of expert i, of sigmoid scores s / sum s):
 *
 *   sequence       sum_i f_i P_i,   f_i = E/(K T) * tokens that chose i    V2 eq. 23, V3 eq. 17
 *   device         sum_d f'_d P'_d, f'_d = mean f of the group's experts   V2 eq. 26
 *   communication  sum_d f''_d P'_d, f''_d = D/(M T) * tokens sent to d    V2 eq. 29
 *   batch          DeepSeek: the sequence formula over all tokens of the micro-batch;
 *                  Mixtral: over the tokens of all layers together, f summing to K (transformers)
 *   z              mean squared log-sum-exp of the logits
 *
 * P'_d is the sum of the group's P. Sequence, device and communication losses are averaged over the
 * sequences and summed over the blocks.
 */
/* clang-format on */
#ifndef TRAINER_BALANCE_H
#define TRAINER_BALANCE_H

#include <stddef.h>
#include <stdint.h>

struct model;
struct model_unit;
struct arena;

struct balance {
    float *gradient; /* [moe blocks, sequences, E]: d loss / d score, times the unit's share */
    double *sums;    /* [moe blocks, sequences, E]: sums of scores */
    int64_t *chosen; /* [E] of the slot that runs (model.h): slots of an expert that the batch loss
                        counts */
};

void balance_layout(const struct model *model, struct balance *balance, struct arena *arena);

/* Nothing is chosen yet by the micro-batch that runs. */
void balance_clear(struct model *model);
/* After forward of blocks [first, end) with `count` sequences: their counts become those of all
 * ranks of tp, and, where the batch loss is of all layers, add to balance.chosen. Collective over
 * tp. */
void balance_count(struct model *model, int64_t first, int64_t end, int64_t count);
/* After that, of what the loss is of: gradients for the backward of blocks [first, end), scaled by
 * `unit`; model->aux[block] adds the weighted losses of this micro-batch (not scaled); module k of
 * multi-token prediction saw k tokens fewer. Collective over tp. */
void balance_losses(struct model *model, int64_t first, int64_t end, const struct model_unit *batch,
                    double unit);
/* Of block `block`, for moe_backward_finish. */
const float *balance_gradient(const struct model *model, int64_t block);

/* b_i += speed * sign(mean(c) - c_i), c the tokens of the whole global batch (load [moe blocks, E],
 * host, summed over all ranks; Wang et al. 2024, DeepSeek-V3 section 2.1.2). bias: scratch of that
 * size, host. Integers decide: every layout gives the same bits. Local. */
void balance_update_bias(struct model *model, const int64_t *load, float *bias, double speed);

#endif
