/* config: every setting of a run, from one table of fields (config.c).
 *
 * The table drives the YAML reader, key=value overrides, ranges, `config CONFIG`, `--help-keys` and
 * docs/config.md. All errors of a file are reported in one pass as `file:line:col: key 'x': why;
 * did you mean 'y'?`.
 */
#ifndef TRAINER_CONFIG_H
#define TRAINER_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "kernels/base/status.h"

enum config_device { CONFIG_DEVICE_CPU, CONFIG_DEVICE_CUDA };
enum config_comm { CONFIG_COMM_AUTO, CONFIG_COMM_SELF, CONFIG_COMM_MPI, CONFIG_COMM_NCCL };
enum config_deterministic {
    CONFIG_DETERMINISTIC_OFF,
    CONFIG_DETERMINISTIC_RUN,
    CONFIG_DETERMINISTIC_LAYOUT
};
enum config_family { CONFIG_MIXTRAL, CONFIG_DEEPSEEK_V2, CONFIG_DEEPSEEK_V3, CONFIG_FAMILIES };
enum config_precision { CONFIG_FP32, CONFIG_BF16, CONFIG_FP8 };
enum config_scales { CONFIG_SCALES_POWER_OF_TWO, CONFIG_SCALES_AMAX };
enum config_dispatch { CONFIG_EXACT, CONFIG_PADDED };
enum config_recompute {
    CONFIG_RECOMPUTE_NONE,
    CONFIG_RECOMPUTE_NORMS, /* with latent attention its up-projections too */
    CONFIG_RECOMPUTE_EXPERTS,
    CONFIG_RECOMPUTE_BLOCK
};
enum config_scoring { CONFIG_SOFTMAX, CONFIG_SIGMOID };
enum config_topk_method { CONFIG_TOPK_AUTO, CONFIG_GREEDY, CONFIG_GROUP_LIMITED, CONFIG_NOAUX_TC };
enum config_rope_scaling { CONFIG_ROPE_NONE, CONFIG_ROPE_YARN };
enum config_sequence_counts { CONFIG_COUNTS_FAMILY, CONFIG_COUNTS_ROUTED, CONFIG_COUNTS_SCORES };
enum config_decay { CONFIG_DECAY_MATRICES, CONFIG_DECAY_ALL };
enum config_schedule { CONFIG_CONSTANT, CONFIG_COSINE, CONFIG_WSD, CONFIG_MULTISTEP };
enum config_shape { CONFIG_LINEAR, CONFIG_HALF_COSINE };
enum config_optimizer { CONFIG_ADAMW, CONFIG_MUON };
enum config_packing { CONFIG_CONCAT, CONFIG_BEST_FIT };
enum config_gpu {
    CONFIG_GPU_AUTO, /* null */
    CONFIG_GPU_CPU,
    CONFIG_GPU_H100,
    CONFIG_GPU_H800,
    CONFIG_GPU_H200,
    CONFIG_GPU_A100,
    CONFIG_GPU_B200,
    CONFIG_GPU_CUSTOM,
    CONFIG_GPUS
};
enum config_pipeline {
    CONFIG_PIPELINE_AUTO,
    CONFIG_PIPELINE_1F1B,
    CONFIG_PIPELINE_ZERO_BUBBLE,
    CONFIG_PIPELINE_DUALPIPE,
    CONFIG_PIPELINE_DUALPIPE_V
};
enum config_overlap { CONFIG_OVERLAP_AUTO, CONFIG_OVERLAP_ON, CONFIG_OVERLAP_OFF };
enum config_node_dispatch {
    CONFIG_NODE_DISPATCH_AUTO,
    CONFIG_NODE_DISPATCH_FLAT,
    CONFIG_NODE_DISPATCH_HIERARCHICAL
};
enum config_exchange { CONFIG_EXCHANGE_AUTO, CONFIG_EXCHANGE_DIRECT, CONFIG_EXCHANGE_BY_NODE };
enum config_trace { CONFIG_TRACE_HASHES, CONFIG_TRACE_SAMPLES, CONFIG_TRACE_ALL };
enum config_moments { CONFIG_MOMENTS_FP32, CONFIG_MOMENTS_BF16 };
enum config_guard {
    CONFIG_GUARD_STOP,
    CONFIG_GUARD_SKIP,
    CONFIG_GUARD_ROLLBACK,
    CONFIG_GUARD_OFF /* of spikes only */
};
enum { CONFIG_MOST_WINDOW = 512 }; /* of guard.spike_window */

/* Keys that take a list; the count stands first in both. */
enum { CONFIG_MOST_ITEMS = 64 };
struct config_texts {
    int64_t count;
    char *item[CONFIG_MOST_ITEMS]; /* [count] owned */
};
struct config_reals {
    int64_t count;
    double item[CONFIG_MOST_ITEMS]; /* [count] */
};

/* data.train: one path, or a list of maps. */
enum { CONFIG_MOST_STAGES = 16 };
struct config_source {
    char *path; /* owned */
    int64_t weights;
    double weight[CONFIG_MOST_STAGES]; /* [weights] one for all stages, or one for each */
    double tokens, epochs;             /* at most; 0: no limit */
    double fim;                        /* rate; < 0: data.fim.rate */
};
struct config_sources {
    int64_t count;
    struct config_source item[CONFIG_MOST_ITEMS]; /* [count] */
};

/* Strings are owned by the config; an optional string or number that is null is NULL / *_set false.
 */
struct config {
    bool stored;   /* not a key: see config_init */
    bool planning; /* not a key: likewise */
    struct {
        char *dir; /* run directory */
        uint64_t seed;
        int64_t steps;
        int device, comm; /* enum config_device, config_comm */
        int64_t threads;  /* 0 = share of the node's allowed cores */
        bool pin;
        int deterministic; /* enum config_deterministic */
        bool verify;
        char *time_limit; /* deadline.h */
        int64_t pause_at; /* 0: nowhere */
    } run;
    /* Which keys a family has, and their defaults: config_families.c. The trainer reads struct
     * architecture instead. */
    struct {
        int family;
        char *hf_config;  /* NULL: none */
        char *hf_ignored; /* not a key: names in config.json that mean nothing here, for the log */
        char *hf_assumed; /* not a key: names that config.json lacks, taken from transformers */
        int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
            num_key_value_heads;
        int64_t head_dim; /* 0 = hidden_size / num_attention_heads */
        int64_t num_local_experts, num_experts_per_tok, max_position_embeddings;
        int64_t sliding_window; /* 0 = none (null) */
        double rms_norm_eps, rope_theta, initializer_range, router_aux_loss_coef,
            router_jitter_noise;
        /* DeepSeek */
        int64_t moe_intermediate_size, n_routed_experts, n_shared_experts, first_k_dense_replace;
        int64_t q_lora_rank; /* 0 = none (null) */
        int64_t kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
        int64_t n_group, topk_group;
        int topk_method, scoring_func; /* enum config_topk_method, config_scoring */
        bool norm_topk_prob, seq_aux, rope_interleave;
        double routed_scaling_factor, aux_loss_alpha;
        int64_t num_nextn_predict_layers; /* depth of multi-token prediction */
        struct {
            int type; /* enum config_rope_scaling */
            double factor, beta_fast, beta_slow;
            int64_t original_max_position_embeddings; /* 0 = max_position_embeddings (null) */
            double mscale, mscale_all_dim;            /* 0 = not given */
            double attention_factor;                  /* < 0 = derived (null) */
        } rope_scaling;
    } model;
    struct {
        int64_t sequence_length, micro_batch, global_batch;
        struct {
            int64_t start, increment, tokens; /* 0 = null: all three, or none */
        } batch_ramp;
        int precision, recompute;
        /* of multi-token prediction; `late` from the fraction `switch` of run.steps on; both < 0
         * (null): the same throughout */
        double mtp_loss_weight, mtp_loss_weight_late, mtp_loss_weight_switch;
    } train;
    struct {
        int scales;     /* enum config_scales */
        int accumulate; /* enum fp8_accumulate of kernels/ops_fp8.h */
        int64_t first_bf16, last_bf16;
    } fp8; /* where train.precision is fp8 */
    struct {
        int name; /* enum config_optimizer */
        double lr, beta1, beta2, momentum, eps, weight_decay;
        int decay;
        double clip_norm;
        int moments;                /* enum config_moments */
        double ema;                 /* 0 = off */
        bool offload;               /* masters and moments in the host's memory */
        struct config_texts freeze; /* patterns of parameter names */
    } optimizer;
    struct {
        int kind;
        int64_t warmup_steps;
        double final_lr_ratio;
        double decay_start, decay_end; /* wsd: fractions of run.steps */
        int decay_shape;               /* enum config_shape */
        struct config_reals milestones;
        double milestone_factor;
    } schedule;
    struct {
        /* < 0: null = what the model's keys say, else 0: read them through architecture.h */
        double batch_loss_coef, sequence_loss_coef, device_loss_coef, communication_loss_coef,
            bias_update_speed;
        double bias_update_until; /* fraction of run.steps after which the bias stays */
        int sequence_loss_counts; /* enum config_sequence_counts */
        double z_loss_coef, capacity_factor, buffer_factor;
        int dispatch;        /* enum config_dispatch */
        bool force_balanced; /* not a config key: bench sets it */
    } router;
    struct {
        int64_t ep, etp, pp, tp, zero;
        int64_t cp;
        int schedule; /* enum config_pipeline */
        int64_t virtual_stages;
        struct config_reals stages; /* blocks of each pipeline stage; empty: balanced */
        int overlap;                /* enum config_overlap */
        int node_dispatch;          /* enum config_node_dispatch */
        int64_t ranks_per_node;     /* 0 = null: what MPI says */
    } parallel;
    struct {
        int64_t nodes;
        int64_t gpus_per_node; /* 0 = null */
        int gpu;               /* enum config_gpu */
        /* < 0: null = the GPU's */
        double peak_tflops, peak_fp8_tflops, memory_gb, memory_gb_s, nvlink_gb_s, network_gb_s,
            host_gb_s;
        double disk_gb_s; /* of a node */
        int exchange;     /* enum config_exchange */
    } cluster;            /* what plan plans for */
    struct {
        struct config_sources train; /* none: null */
        char *valid;                 /* NULL: none */
        bool shuffle, mask_documents;
        int packing; /* enum config_packing */
        struct {
            struct config_reals tokens, steps; /* where a stage begins; one of the two is empty */
        } stages;
        struct {
            double rate;
            char *prefix, *middle, *suffix; /* an id or a token's text; NULL: DeepSeek's */
        } fim;
    } data;
    struct {
        int64_t every_steps, batches;
    } eval;
    struct {
        int64_t every_steps, keep_last;
        double every_minutes, mtbf_hours;
        bool async;
        char *init_from;
        bool resize_vocab;
    } checkpoint;
    struct {
        int64_t every_steps;
        bool tensorboard;
    } log;
    struct {
        int64_t every_steps;
        char *prompt;
        int64_t tokens;
        double temperature;
    } sample;
    struct {
        bool enabled;
        double setup_seconds, step_seconds, save_seconds;
        int64_t straggler_every_steps; /* 0 = off */
        double straggler_ratio;
    } watchdog;
    struct {
        int on_nonfinite, on_spike; /* enum config_guard */
        double spike_factor;
        int64_t spike_window, tries;
        int64_t replicas_every_steps; /* 0 = off */
    } guard;
    struct {
        char *fault;   /* fault.h */
        char *profile; /* Chrome trace; NULL: none */
        int64_t profile_from, profile_steps;
        char *trace; /* NULL: none */
        int64_t trace_from, trace_steps;
        int trace_values; /* enum config_trace */
        int64_t trace_mib;
    } debug;
};

/* Defaults of every key. Set `stored` behind it to read what a run or a checkpoint was made with in
 * order to use it: then only relations inside the model are checked, not those of training, which
 * may have become stricter since. Set `planning` to accept layouts that plan knows and training
 * does not. */
void config_init(struct config *config);
/* Whether plan takes the layout of a config whose keys of section `parallel` have changed since it
 * was read; why: the first reason that it does not. */
bool config_plans(const struct config *config, char *why, size_t bytes);
/* Whether training on `device` (enum config_device) takes the layout of a config that was read with
 * `planning`; why: the first reason that it does not. */
bool config_trains(const struct config *config, int device, char *why, size_t bytes);
void config_free(struct config *config); /* accepts a zeroed one; may be called twice */

/* Reads path, then applies overrides "a.b=v" in order (v is plain text, or what YAML makes of it
 * where quotes enclose it or items of its list), then checks ranges and relations between
 * keys that need no world (family keys, heads, top-k <= experts, micro_batch <= global_batch...).
 * Errors: STATUS_IO (missing file), STATUS_USAGE; all lines of errors are in status_message(),
 * joined by newlines. */
enum status config_load(struct config *config, const char *path, char *const *overrides,
                        int override_count) __attribute__((warn_unused_result));
/* From text, for tests and resuming from run.dir/config.yaml; name stands in messages. */
enum status config_parse(struct config *config, const char *name, const char *text, size_t bytes)
    __attribute__((warn_unused_result));

/* Applies `a.b=v` overrides and checks the result, as config_load does. */
enum status config_override(struct config *config, char *const *overrides, int count)
    __attribute__((warn_unused_result));

/* Whether tokens see their own document only. */
bool config_masks_documents(const struct config *config);

/* The resolved config as YAML that config_load reads back to the same values. */
void config_print(const struct config *config, FILE *out);
/* The same for people: what each key means and which values it takes stands beside it. */
void config_annotate(const struct config *config, FILE *out);
/* "key 1 -> 2, ..." of the keys that begin with `section` and differ; "" when none does. */
void config_differences(const struct config *from, const struct config *to, const char *section,
                        char *out, size_t bytes);
/* Calls `each` for every key that differs between `count` configs, value[count] as one writes them.
 * Errors: STATUS_RESOURCE. */
enum status config_compare(const struct config *const *configs, int count,
                           void (*each)(void *context, const char *key, char *const *value),
                           void *context) __attribute__((warn_unused_result));
/* One line per key: name, type, range, default, help. */
void config_help(FILE *out);
/* docs/config.md. */
void config_markdown(FILE *out);

#endif
