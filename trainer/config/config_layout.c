#include <stdio.h>
#include <string.h>

#include "trainer/config/config_table.h"

/* In FP8: rows and columns that a rank has of what tp divides are whole tiles of 128, so that its
 * codes are those of one rank. */
static void check_tensor_codes(const struct config *config, struct config_errors *errors)
{
    enum { TILE = 128 };
    const bool mixtral = config->model.family == CONFIG_MIXTRAL;
    const int64_t tp = config->parallel.tp, heads = config->model.num_attention_heads,
                  nope = config->model.qk_nope_head_dim, rope = config->model.qk_rope_head_dim,
                  head = config->model.head_dim > 0 ? config->model.head_dim
                                                    : config->model.hidden_size / heads,
                  kv = config->model.num_key_value_heads > 0 ? config->model.num_key_value_heads
                                                             : heads,
                  v = config->model.v_head_dim, dense = config->model.first_k_dense_replace;
    const struct {
        const char *what;
        int64_t size;
    } divided[] = {
        {"model.num_attention_heads x head_dim", mixtral ? heads * head : 0},
        {"model.num_key_value_heads x head_dim", mixtral ? kv * head : 0},
        {"model.num_attention_heads x (qk_nope_head_dim + qk_rope_head_dim)",
         mixtral ? 0 : heads * (nope + rope)},
        {"model.num_attention_heads x (qk_nope_head_dim + v_head_dim)",
         mixtral ? 0 : heads * (nope + v)},
        {"model.num_attention_heads x v_head_dim", mixtral ? 0 : heads * v},
        {"model.intermediate_size",
         !mixtral && dense > config->fp8.first_bf16 ? config->model.intermediate_size : 0},
        {"model.n_shared_experts x moe_intermediate_size",
         mixtral ? 0 : config->model.n_shared_experts * config->model.moe_intermediate_size},
    };
    for (size_t i = 0; i < sizeof divided / sizeof divided[0]; i++) {
        if (config->train.precision == CONFIG_FP8 && divided[i].size % (TILE * tp) != 0) {
            config_error(errors,
                         "parallel.tp %lld with train.precision fp8 makes parts of %lld / %lld of "
                         "%s: codes have scales of 128; give parts that are a multiple of that",
                         (long long)tp, (long long)divided[i].size, (long long)tp, divided[i].what);
        }
    }
}

/* What each of parallel.tp ranks has a part of; and what is not built for it. */
static void check_tensor(const struct config *config, struct config_errors *errors)
{
    const bool mixtral = config->model.family == CONFIG_MIXTRAL;
    const int64_t tp = config->parallel.tp, kv = config->model.num_key_value_heads,
                  sequence = config->train.sequence_length,
                  predicted = config->model.family == CONFIG_DEEPSEEK_V3
                                  ? config->model.num_nextn_predict_layers
                                  : 0;
    const struct {
        const char *key;
        int64_t size;
    } divided[] = {
        {"train.sequence_length", sequence},
        {"model.num_attention_heads", config->model.num_attention_heads},
        {"model.num_key_value_heads", mixtral ? kv : 0},
        {"model.intermediate_size",
         !mixtral && config->model.first_k_dense_replace > 0 ? config->model.intermediate_size : 0},
        {"model.n_shared_experts x moe_intermediate_size",
         mixtral ? 0 : config->model.n_shared_experts * config->model.moe_intermediate_size},
    };
    for (size_t i = 0; i < sizeof divided / sizeof divided[0]; i++) {
        if (divided[i].size % tp != 0) {
            config_error(errors, "parallel.tp %lld does not divide %s %lld", (long long)tp,
                         divided[i].key, (long long)divided[i].size);
        }
    }
    if (tp > 1 && sequence % tp == 0 && sequence / tp <= predicted) {
        config_error(errors,
                     "parallel.tp %lld leaves %lld tokens of a sequence on a rank: more than "
                     "model.num_nextn_predict_layers %lld are needed",
                     (long long)tp, (long long)(sequence / tp), (long long)predicted);
    }
    if (tp > config->model.vocab_size) {
        config_error(errors, "parallel.tp %lld is more than model.vocab_size %lld", (long long)tp,
                     (long long)config->model.vocab_size);
    }
    if (tp == 1 || config->planning) {
        return;
    }
    check_tensor_codes(config, errors);
    if (config->debug.trace != NULL) {
        config_error(errors,
                     "parallel.tp %lld with debug.trace: not built: it hashes whole tensors, of "
                     "which each rank has a part",
                     (long long)tp);
    }
    if (config->sample.every_steps > 0) {
        config_error(errors,
                     "parallel.tp %lld with sample.every_steps %lld: not built: sample with "
                     "generate, which takes a checkpoint of any layout",
                     (long long)tp, (long long)config->sample.every_steps);
    }
}

enum { CUDA_EXPERTS = 48 * 1024 / 4 }; /* counts in a block's shared memory (expert.cu) */

/* What each of parallel.etp ranks has a part of; and what is not built for it. */
static void check_experts(const struct config *config, struct config_errors *errors)
{
    const bool mixtral = config->model.family == CONFIG_MIXTRAL;
    const long long etp = config->parallel.etp, width = mixtral
                                                            ? config->model.intermediate_size
                                                            : config->model.moe_intermediate_size;
    if (width % etp != 0) {
        config_error(errors, "parallel.etp %lld does not divide %s %lld", etp,
                     mixtral ? "model.intermediate_size" : "model.moe_intermediate_size", width);
    } else if (config->train.precision == CONFIG_FP8 && etp > 1 && width / etp % 128 != 0) {
        config_error(
            errors,
            "parallel.etp %lld with train.precision fp8 makes parts of %lld of an expert's "
            "width: codes have scales of 128; give a multiple of that",
            etp, width / etp);
    }
    const double slots = (double)config->train.micro_batch * (double)config->train.sequence_length *
                         (double)config->model.num_experts_per_tok * (double)etp;
    if (etp > 1 && slots > INT32_MAX) {
        config_error(
            errors,
            "parallel.etp %lld: %.3g choices of parts of experts in a micro-batch are more "
            "than 32 bits count: lower train.micro_batch",
            etp, slots);
    }
    if (etp == 1 || config->planning) {
        return;
    }
    const long long parts =
        etp * (mixtral ? config->model.num_local_experts : config->model.n_routed_experts);
    if (config->run.device == CONFIG_DEVICE_CUDA && parts > CUDA_EXPERTS) {
        config_error(errors,
                     "parallel.etp %lld makes %lld parts of experts: more than the %d that are "
                     "sorted on a GPU",
                     etp, parts, CUDA_EXPERTS);
    }
    if (config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT) {
        config_error(errors,
                     "parallel.etp %lld with run.deterministic layout: parts of an expert's output "
                     "are added up in f32: other bits than on one rank; use parallel.etp 1",
                     etp);
    }
    if (config->debug.trace != NULL) {
        config_error(errors,
                     "parallel.etp %lld with debug.trace: not built: it hashes whole tensors, of "
                     "which each rank has a part",
                     etp);
    }
}

static void check_nodes(const struct config *config, struct config_errors *errors)
{
    const int wish = config->parallel.node_dispatch;
    if (wish == CONFIG_NODE_DISPATCH_HIERARCHICAL && config->router.dispatch == CONFIG_PADDED) {
        config_error(errors,
                     "parallel.node_dispatch hierarchical with router.dispatch padded: not built: "
                     "messages of the worst case go from rank to rank; use exact, or auto");
    }
    if (config->planning || config->stored) {
        return;
    }
    if (wish == CONFIG_NODE_DISPATCH_HIERARCHICAL &&
        config->parallel.ep * config->parallel.etp == 1) {
        config_error(errors, "parallel.node_dispatch hierarchical: parallel.ep 1 has no tokens "
                             "travel: raise it, or use auto");
    }
    const char *idle = wish == CONFIG_NODE_DISPATCH_FLAT          ? "parallel.node_dispatch flat"
                       : config->router.dispatch == CONFIG_PADDED ? "router.dispatch padded"
                       : config->parallel.ep * config->parallel.etp == 1 ? "parallel.ep 1"
                                                                         : NULL;
    if (idle != NULL && config->parallel.ranks_per_node > 0) {
        config_error(errors, "parallel.ranks_per_node %lld: %s has no use for it",
                     (long long)config->parallel.ranks_per_node, idle);
    }
}

/* Passes side by side. */
static void check_overlap(const struct config *config, struct config_errors *errors)
{
    const bool whole = config->parallel.pp == 1,
               there = (whole || config->parallel.schedule == CONFIG_PIPELINE_DUALPIPE_V) &&
                       config->parallel.ep * config->parallel.etp > 1;
    const int wish = config->parallel.overlap;
    if (wish != CONFIG_OVERLAP_AUTO && !there) {
        config_error(errors,
                     "parallel.overlap %s: only with parallel.ep or parallel.etp above 1, and "
                     "parallel.pp 1 or parallel.schedule dualpipe_v: use auto",
                     wish == CONFIG_OVERLAP_ON ? "on" : "off");
    } else if (wish == CONFIG_OVERLAP_ON && whole && config->debug.trace != NULL) {
        config_error(errors, "parallel.overlap on with debug.trace: not built: it follows one "
                             "micro-batch at a time; use auto");
    } else if (wish == CONFIG_OVERLAP_ON && config->parallel.zero > 2) {
        config_error(errors, "parallel.overlap on with parallel.zero 3: not built: weights are "
                             "gathered for one pass at a time; use parallel.zero=2, or auto");
    }
}

static void check_stages(const struct config *config, struct config_errors *errors)
{
    const long long pp = config->parallel.pp;
    if (config->parallel.zero > 2 && config->debug.fault != NULL &&
        strncmp(config->debug.fault, "weight:", strlen("weight:")) == 0) {
        config_error(errors,
                     "parallel.zero 3 with debug.fault %s: no rank has a copy of another's "
                     "weights that could differ",
                     config->debug.fault);
    }
    if (config->parallel.zero > 1 && config->run.device == CONFIG_DEVICE_CUDA &&
        config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT) {
        config_error(errors,
                     "parallel.zero %lld with run.deterministic layout on run.device cuda: not "
                     "built: integers of a block at a time are added up on the CPU only",
                     (long long)config->parallel.zero);
    }
    if (config->planning) {
        return;
    }
    check_overlap(config, errors);
    if (pp == 1 && config->parallel.virtual_stages > 1) {
        config_error(errors, "parallel.virtual_stages: only with parallel.pp above 1");
    }
    if (pp == 1 && config->parallel.stages.count > 0) {
        config_error(errors, "parallel.stages: only with parallel.pp above 1");
    }
    if (pp == 1 && config->parallel.schedule != CONFIG_PIPELINE_AUTO) {
        config_error(errors, "parallel.schedule: only with parallel.pp above 1");
    }
    if (pp == 1) {
        return;
    }
    if (config->parallel.schedule == CONFIG_PIPELINE_DUALPIPE) {
        config_error(errors, "parallel.schedule dualpipe: planned only: it has the weights twice; "
                             "train with dualpipe_v, which has them once");
    }
    if (config->parallel.schedule > CONFIG_PIPELINE_1F1B && config->parallel.virtual_stages > 1) {
        config_error(errors,
                     "parallel.virtual_stages %lld is of parallel.schedule 1f1b: use that, or 1",
                     (long long)config->parallel.virtual_stages);
    }
    if (config->debug.trace != NULL) {
        config_error(errors,
                     "parallel.pp %lld with debug.trace: not built: it follows one micro-batch "
                     "through all layers on one rank",
                     pp);
    }
    if (config->sample.every_steps > 0) {
        config_error(errors,
                     "parallel.pp %lld with sample.every_steps %lld: not built: sample with "
                     "generate, which takes a checkpoint of any layout",
                     pp, (long long)config->sample.every_steps);
    }
}

static void check_offload(const struct config *config, struct config_errors *errors)
{
    if (config->optimizer.offload && config->run.device == CONFIG_DEVICE_CPU && !config->planning) {
        config_error(errors,
                     "optimizer.offload on run.device cpu: the optimizer's state is in the host's "
                     "memory already: leave it false");
    }
}

void config_check_layout(const struct config *config, struct config_errors *errors)
{
    check_offload(config, errors);
    check_tensor(config, errors);
    config_check_context(config, errors);
    check_experts(config, errors);
    check_nodes(config, errors);
    check_stages(config, errors);
}

static bool may_be(const struct config *config, char *why, size_t bytes)
{
    struct config_errors errors = {0};
    config_check_layout(config, &errors);
    snprintf(why, bytes, "%.*s", (int)strcspn(errors.text, "\n"), errors.text);
    return errors.count == 0;
}

bool config_plans(const struct config *config, char *why, size_t bytes)
{
    struct config own = *config; /* its texts are borrowed */
    own.planning = true;
    return may_be(&own, why, bytes);
}

bool config_trains(const struct config *config, int device, char *why, size_t bytes)
{
    struct config own = *config; /* its texts are borrowed */
    own.planning = false;
    own.run.device = device;
    return may_be(&own, why, bytes);
}
