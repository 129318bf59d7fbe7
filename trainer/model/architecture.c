#include "trainer/model/architecture.h"

#include <math.h>

static int64_t at_least_one(int64_t value)
{
    return value > 0 ? value : 1;
}

static double coef_or(double given, double otherwise)
{
    return given >= 0 ? given : otherwise;
}

static void attention_init(struct architecture *arch, const struct config *config)
{
    const int64_t heads = config->model.num_attention_heads;
    const int64_t head_dim =
        config->model.head_dim > 0 ? config->model.head_dim : config->model.hidden_size / heads;
    arch->heads = heads;
    arch->kv_heads =
        config->model.num_key_value_heads > 0 ? config->model.num_key_value_heads : heads;
    arch->qk_dim = arch->v_dim = arch->rope_dim = head_dim;
    arch->window = config->model.sliding_window;
    arch->rope_theta = config->model.rope_theta;
    arch->attention_scale = (float)(1.0 / sqrt((double)arch->qk_dim));
}

/* g(m) of YaRN (Peng et al. 2023): what attention loses in sharpness when positions are stretched.
 */
static double yarn_gain(double factor, double mscale)
{
    return factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
}

static void yarn_init(struct architecture *arch, const struct config *config)
{
    const int64_t original = config->model.rope_scaling.original_max_position_embeddings;
    const double factor = config->model.rope_scaling.factor,
                 mscale = config->model.rope_scaling.mscale,
                 all_dim = config->model.rope_scaling.mscale_all_dim,
                 given = config->model.rope_scaling.attention_factor;
    const double derived = mscale > 0 && all_dim > 0
                               ? yarn_gain(factor, mscale) / yarn_gain(factor, all_dim)
                               : yarn_gain(factor, 1);
    arch->yarn = (struct rope_yarn){
        .factor = factor,
        .beta_fast = config->model.rope_scaling.beta_fast,
        .beta_slow = config->model.rope_scaling.beta_slow,
        .original_positions =
            (double)(original > 0 ? original : config->model.max_position_embeddings),
        .attention_factor = given >= 0 ? given : derived};
    if (all_dim > 0) {
        const double gain = yarn_gain(factor, all_dim);
        arch->attention_scale = (float)(gain * gain / sqrt((double)arch->qk_dim));
    }
}

static void latent_init(struct architecture *arch, const struct config *config)
{
    arch->kv_heads = arch->heads;
    arch->nope_dim = config->model.qk_nope_head_dim;
    arch->rope_dim = config->model.qk_rope_head_dim;
    arch->qk_dim = arch->nope_dim + arch->rope_dim;
    arch->v_dim = config->model.v_head_dim;
    arch->q_rank = config->model.q_lora_rank;
    arch->kv_rank = config->model.kv_lora_rank;
    arch->rope_interleaved =
        config->model.family == CONFIG_DEEPSEEK_V2 || config->model.rope_interleave;
    arch->attention_scale = (float)(1.0 / sqrt((double)arch->qk_dim));
    if (config->model.rope_scaling.type == CONFIG_ROPE_YARN) {
        yarn_init(arch, config);
    }
}

static void mixtral_init(struct architecture *arch, const struct config *config)
{
    arch->experts = config->model.num_local_experts;
    arch->expert_width = config->model.intermediate_size;
    arch->groups = arch->top_groups = arch->loss_groups = arch->loss_top_groups = 1;
    arch->normalize = arch->router_rounds = true;
    arch->scale = 1;
    arch->jitter = (float)config->model.router_jitter_noise;
    arch->capacity_groups = arch->experts;
    arch->balance.batch_over_layers = true;
    arch->balance.batch =
        coef_or(config->router.batch_loss_coef, config->model.router_aux_loss_coef);
    arch->balance.sequence = coef_or(config->router.sequence_loss_coef, 0);
}

static void deepseek_init(struct architecture *arch, const struct config *config)
{
    const bool v3 = config->model.family == CONFIG_DEEPSEEK_V3;
    const double alpha = config->model.aux_loss_alpha;
    const int64_t groups = at_least_one(config->model.n_group);
    const bool limited = config->model.topk_method != CONFIG_GREEDY && groups > 1;
    arch->dense_layers = config->model.first_k_dense_replace;
    arch->dense_width = config->model.intermediate_size;
    arch->experts = config->model.n_routed_experts;
    arch->expert_width = config->model.moe_intermediate_size;
    arch->shared_width = config->model.n_shared_experts * arch->expert_width;
    arch->sigmoid = arch->has_bias = v3;
    arch->loss_groups = groups;
    arch->loss_top_groups = at_least_one(config->model.topk_group);
    arch->groups = limited ? groups : 1;
    arch->top_groups = limited ? arch->loss_top_groups : 1;
    /* a single weight divided by itself would leave the router without a gradient */
    arch->normalize = config->model.norm_topk_prob && (v3 || arch->top_k > 1);
    arch->scale = (float)config->model.routed_scaling_factor;
    arch->capacity_groups = v3 ? arch->experts : groups;
    arch->balance.batch =
        coef_or(config->router.batch_loss_coef, config->model.seq_aux ? 0 : alpha);
    arch->balance.sequence =
        coef_or(config->router.sequence_loss_coef, config->model.seq_aux ? alpha : 0);
    arch->mtp_depth = v3 ? config->model.num_nextn_predict_layers : 0;
}

void architecture_init(struct architecture *arch, const struct config *config)
{
    const int counts = config->router.sequence_loss_counts;
    *arch = (struct architecture){.family = config->model.family,
                                  .layers = config->model.num_hidden_layers,
                                  .width = config->model.hidden_size,
                                  .vocab = config->model.vocab_size,
                                  .norm_eps = (float)config->model.rms_norm_eps,
                                  .top_k = config->model.num_experts_per_tok};
    attention_init(arch, config);
    if (config->model.family == CONFIG_MIXTRAL) {
        mixtral_init(arch, config);
    } else {
        latent_init(arch, config);
        deepseek_init(arch, config);
    }
    arch->balance.device = coef_or(config->router.device_loss_coef, 0);
    arch->balance.communication = coef_or(config->router.communication_loss_coef, 0);
    arch->balance.z = config->router.z_loss_coef;
    arch->balance.bias_speed = coef_or(config->router.bias_update_speed, 0);
    arch->balance.score_counts =
        counts == CONFIG_COUNTS_FAMILY ? arch->sigmoid : counts == CONFIG_COUNTS_SCORES;
}

void architecture_divide(struct architecture *arch, int64_t tp, int64_t etp)
{
    arch->heads /= tp;
    arch->kv_heads /= tp;
    arch->dense_width /= tp;
    arch->shared_width /= tp;
    arch->expert_width /= etp;
}

int64_t architecture_blocks(const struct architecture *arch)
{
    return arch->layers + arch->mtp_depth;
}

int64_t architecture_moe_blocks(const struct architecture *arch)
{
    return architecture_blocks(arch) - arch->dense_layers;
}

int64_t architecture_query_width(const struct architecture *arch)
{
    return arch->heads * arch->qk_dim;
}

int64_t architecture_latent_width(const struct architecture *arch)
{
    return arch->heads * (arch->nope_dim + arch->v_dim);
}

/* Weights of one block's projections. */
static int64_t projection_weights(const struct architecture *arch)
{
    const int64_t query = architecture_query_width(arch), out = arch->heads * arch->v_dim;
    if (arch->kv_rank == 0) {
        return arch->width * (query + 2 * arch->kv_heads * arch->qk_dim + out);
    }
    const int64_t q = arch->q_rank > 0 ? arch->q_rank * (arch->width + query) : arch->width * query;
    return q + arch->width * (arch->kv_rank + arch->rope_dim) +
           arch->kv_rank * architecture_latent_width(arch) + out * arch->width;
}

/* Keys a token sees on average: half the sequence, less with a window. */
static double visible_keys(const struct architecture *arch, int64_t sequence)
{
    const double t = (double)sequence,
                 w = arch->window > 0 && arch->window < sequence ? (double)arch->window : t;
    return w - w * w / (2 * t);
}

double architecture_head_flops(const struct architecture *arch)
{
    return 6 * (double)arch->vocab * (double)arch->width;
}

double architecture_block_flops(const struct architecture *arch, int64_t block, int64_t sequence)
{
    const double width = (double)arch->width;
    const double attention =
        (double)(arch->heads * (arch->qk_dim + arch->v_dim)) * visible_keys(arch, sequence);
    const double dense = 3 * (double)arch->dense_width * width;
    const double moe =
        (double)(3 * (arch->top_k * arch->expert_width + arch->shared_width) + arch->experts) *
        width;
    const double own = 6 * ((double)projection_weights(arch) + attention +
                            (block < arch->dense_layers ? dense : moe));
    return block < arch->layers ? own : own + architecture_head_flops(arch) + 6 * 2 * width * width;
}

double architecture_flops_per_token(const struct architecture *arch, int64_t sequence)
{
    double sum = architecture_head_flops(arch);
    for (int64_t b = 0; b < architecture_blocks(arch); b++) {
        sum += architecture_block_flops(arch, b, sequence);
    }
    return sum;
}

double architecture_expert_part(const struct architecture *arch, int64_t sequence)
{
    const double experts = 3 * (double)(arch->top_k * arch->expert_width * arch->width);
    return 6 * (double)architecture_moe_blocks(arch) * experts /
           architecture_flops_per_token(arch, sequence);
}
