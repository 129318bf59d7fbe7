/* architecture: what a config's model is, in words that all families share. The trainer reads this,
 * never the family.
 *
 * Blocks are numbered 0 .. layers + mtp_depth - 1: the model's layers, then one block per module of
 * multi-token prediction (DeepSeek-V3, section 2.2 of its report). Block b has experts iff b >=
 * dense_layers.
 */
#ifndef TRAINER_ARCHITECTURE_H
#define TRAINER_ARCHITECTURE_H

#include "kernels/rope_table.h"
#include "trainer/config/config.h"

/* Balance losses and what moves the selection bias: coefficients, 0 = off. */
struct balance_coefs {
    double batch;           /* statistics of a micro-batch */
    bool batch_over_layers; /* of all layers together, f summing to K (Mixtral as in transformers);
                               else per layer, f averaging 1 (DeepSeek) */
    double sequence, device, communication; /* statistics of a sequence */
    bool score_counts; /* the sequence loss counts the top-k of the bare scores, not the routed */
    double z;
    double bias_speed;
};

struct architecture {
    int family; /* enum config_family: for names in checkpoints only */
    int64_t layers, width, vocab;
    float norm_eps;

    /* attention: grouped queries, or latent (MLA) where kv_rank > 0 */
    int64_t heads, kv_heads;
    int64_t qk_dim, v_dim; /* of a head; qk_dim = nope_dim + rope_dim */
    int64_t nope_dim, rope_dim;
    int64_t q_rank;  /* 0: queries are not compressed */
    int64_t kv_rank; /* 0: no latent */
    int64_t window;  /* 0: none */
    bool rope_interleaved;
    double rope_theta;
    struct rope_yarn yarn; /* factor 0: none */
    float attention_scale;

    /* feed-forward */
    int64_t dense_layers, dense_width;
    int64_t experts, top_k, expert_width;
    int64_t shared_width; /* of the MLP every token visits; 0: none */

    /* router */
    bool sigmoid;               /* else softmax */
    int64_t groups, top_groups; /* of routing; 1: all experts compete */
    bool normalize;
    bool router_rounds; /* gradients of logits may be rounded to act, as the model's own code has
                           them (models.md 2.7); else they are f32 */
    float scale;        /* of the chosen weights */
    bool has_bias;      /* e_score_correction_bias, used for selection only */
    float jitter;
    int64_t loss_groups, loss_top_groups; /* D and M of the device and communication losses */
    int64_t capacity_groups; /* what a capacity is of: experts, or V2's device groups */
    struct balance_coefs balance;

    int64_t mtp_depth;
};

/* Of a checked config. Local. */
void architecture_init(struct architecture *arch, const struct config *config);

/* What one rank computes where `tp` ranks divide matrices, and `etp` those of experts: its heads
 * and its part of the widths of dense and shared MLPs, and of experts. They divide them all. Local.
 */
void architecture_divide(struct architecture *arch, int64_t tp, int64_t etp);

int64_t architecture_blocks(const struct architecture *arch);
int64_t architecture_moe_blocks(const struct architecture *arch);
/* Elements of a query row and of what kv_b_proj makes of a token: H * qk_dim, H * (nope_dim +
 * v_dim). */
int64_t architecture_query_width(const struct architecture *arch);
int64_t architecture_latent_width(const struct architecture *arch);

/* FLOPs of training on one token of a sequence of this length (forward and backward: matrix
 * products and the visible part of attention), multi-token prediction included. */
double architecture_flops_per_token(const struct architecture *arch, int64_t sequence);
/* Of these, one block's (a prediction module's own head included), and the main model's head's. */
double architecture_block_flops(const struct architecture *arch, int64_t block, int64_t sequence);
double architecture_head_flops(const struct architecture *arch);
/* Of these, the part of the routed experts. */
double architecture_expert_part(const struct architecture *arch, int64_t sequence);

#endif
