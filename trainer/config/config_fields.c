#include "trainer/config/config_table.h"

#include <stddef.h>

static const char *const device_names[] = {"cpu", "cuda", NULL};
static const char *const comm_names[] = {"auto", "self", "mpi", "nccl", NULL};
static const char *const deterministic_names[] = {"off", "run", "layout", NULL};
static const char *const family_names[] = {"mixtral", "deepseek_v2", "deepseek_v3", NULL};
static const char *const precision_names[] = {"fp32", "bf16", "fp8", NULL};
static const char *const scales_names[] = {"power_of_two", "amax", NULL};
static const char *const accumulate_names[] = {"device", "promoted", "unpromoted", NULL};
static const char *const dispatch_names[] = {"exact", "padded", NULL};
static const char *const overlap_names[] = {"auto", "on", "off", NULL};
static const char *const node_names[] = {"auto", "flat", "hierarchical", NULL};
static const char *const recompute_names[] = {"none", "norms", "experts", "block", NULL};
static const char *const scoring_names[] = {"softmax", "sigmoid", NULL};
static const char *const topk_names[] = {"auto", "greedy", "group_limited_greedy", "noaux_tc",
                                         NULL};
static const char *const scaling_names[] = {"none", "yarn", NULL};
static const char *const counts_names[] = {"null", "routed", "scores", NULL};
static const char *const decay_names[] = {"matrices", "all", NULL};
static const char *const schedule_names[] = {"constant", "cosine", "wsd", "multistep", NULL};
static const char *const shape_names[] = {"linear", "cosine", NULL};
static const char *const optimizer_names[] = {"adamw", "muon", NULL};
static const char *const packing_names[] = {"concat", "best_fit", NULL};
static const char *const gpu_names[] = {"null", "cpu",  "h100",   "h800", "h200",
                                        "a100", "b200", "custom", NULL};
static const char *const pipeline_names[] = {"auto",     "1f1b",       "zero_bubble",
                                             "dualpipe", "dualpipe_v", NULL};
static const char *const exchange_names[] = {"auto", "direct", "by_node", NULL};
static const char *const trace_names[] = {"hashes", "samples", "all", NULL};
static const char *const moments_names[] = {"fp32", "bf16", NULL};
static const char *const nonfinite_names[] = {"stop", "skip", "rollback", NULL};
static const char *const spike_names[] = {"stop", "skip", "rollback", "off", NULL};

#define AT(member) offsetof(struct config, member)
#define INT(key, member, low, high, initial, help)                                                 \
    {                                                                                              \
        key, FIELD_INT, AT(member), low, high, initial, NULL, NULL, help                           \
    }
#define REAL(key, member, low, high, initial, help)                                                \
    {                                                                                              \
        key, FIELD_REAL, AT(member), low, high, initial, NULL, NULL, help                          \
    }
#define TEXT(key, member, initial, help)                                                           \
    {                                                                                              \
        key, FIELD_TEXT, AT(member), 0, 0, initial, NULL, NULL, help                               \
    }
#define BOOL(key, member, initial, help)                                                           \
    {                                                                                              \
        key, FIELD_BOOL, AT(member), 0, 0, initial, NULL, NULL, help                               \
    }
#define REALS(key, member, low, high, help)                                                        \
    {                                                                                              \
        key, FIELD_REALS, AT(member), low, high, "[]", NULL, NULL, help                            \
    }
#define ENUM(key, member, initial, names, unbuilt, help)                                           \
    {                                                                                              \
        key, FIELD_ENUM, AT(member), 0, 0, initial, names, unbuilt, help                           \
    }

const struct field config_fields[] = {
    TEXT("run.dir", run.dir, "runs/default", "run directory: checkpoints, metrics, logs"),
    {"run.seed", FIELD_UINT, AT(run.seed), 0, 9e15, "1234", NULL, NULL,
     "of initialisation, data order, jitter, samples"},
    INT("run.steps", run.steps, 1, 1e12, "300", "optimizer steps of the whole run"),
    ENUM("run.device", run.device, "cpu", device_names, NULL,
         "device of every rank; cuda: a GPU each, chosen by the rank's number on its node"),
    ENUM(
        "run.comm", run.comm, "auto", comm_names, NULL,
        "transport; auto: mpi under mpirun or srun, else self, and nccl between GPUs of their own"),
    INT("run.threads", run.threads, 0, 1024, "0",
        "threads per rank; 0: the rank's share of the node's allowed cores"),
    BOOL("run.pin", run.pin, "true", "pin each thread to a core of its own"),
    ENUM("run.deterministic", run.deterministic, "run", deterministic_names, NULL,
         "run: the same layout gives the same bits; layout: every layout does, with gradients of "
         "8 bytes (docs/determinism.md); off: cuDNN's attention may add in any order, with less "
         "memory (CPU: as run)"),
    TEXT("run.time_limit", run.time_limit, "null",
         "7200, 90m, 2h, 1:30:00 or 1-12:00:00: saves in time before it and exits with 85"),
    INT("run.pause_at", run.pause_at, 0, 1e12, "0",
        "saves behind this step and exits with 85, where later ones are left; 0: nowhere"),
    BOOL("run.verify", run.verify, "false",
         "first check that this layout computes what one rank does, as `switchyard verify`"),
    ENUM("model.family", model.family, "mixtral", family_names, NULL, "architecture"),
    TEXT("model.hf_config", model.hf_config, "null",
         "config.json or its folder: sets every model key not written here"),
    INT("model.vocab_size", model.vocab_size, 2, 16777216, NULL, "tokens in the vocabulary"),
    INT("model.hidden_size", model.hidden_size, 2, 32768, NULL, "width of the residual stream"),
    INT("model.intermediate_size", model.intermediate_size, 1, 1048576, NULL,
        "width of one expert; DeepSeek: of the dense layers"),
    INT("model.num_hidden_layers", model.num_hidden_layers, 1, 1024, NULL, "blocks"),
    INT("model.num_attention_heads", model.num_attention_heads, 1, 1024, NULL, "query heads"),
    INT("model.num_key_value_heads", model.num_key_value_heads, 0, 1024, "0",
        "key/value heads; 0: as many as query heads"),
    INT("model.head_dim", model.head_dim, 0, 1024, "0",
        "width of a head; 0: hidden_size / num_attention_heads"),
    INT("model.num_local_experts", model.num_local_experts, 1, 4096, "8", "experts of a layer"),
    INT("model.num_experts_per_tok", model.num_experts_per_tok, 1, 64, "2",
        "experts a token visits (top-k)"),
    INT("model.max_position_embeddings", model.max_position_embeddings, 1, 1e9, "32768",
        "longest sequence"),
    INT("model.sliding_window", model.sliding_window, 1, 1e9, "null",
        "tokens a token sees, itself included; null: all before it"),
    REAL("model.rms_norm_eps", model.rms_norm_eps, 0, 1, "1e-5", "epsilon of the norms"),
    REAL("model.rope_theta", model.rope_theta, 1.001, 1e12, "1e6", "base of the rotary embedding"),
    REAL("model.initializer_range", model.initializer_range, 0, 10, "0.02",
         "standard deviation of fresh weights"),
    REAL("model.router_aux_loss_coef", model.router_aux_loss_coef, 0, 100, "0.02",
         "balance loss, as config.json has it"),
    REAL("model.router_jitter_noise", model.router_jitter_noise, 0, 1, "0",
         "router input times U(1-x, 1+x) in training"),
    INT("model.moe_intermediate_size", model.moe_intermediate_size, 1, 1048576, "null",
        "width of one expert"),
    INT("model.n_routed_experts", model.n_routed_experts, 1, 4096, "null",
        "routed experts of a layer"),
    INT("model.n_shared_experts", model.n_shared_experts, 0, 64, "null",
        "experts every token visits (one MLP of that many widths)"),
    INT("model.first_k_dense_replace", model.first_k_dense_replace, 0, 1024, "0",
        "first layers that are dense"),
    INT("model.q_lora_rank", model.q_lora_rank, 1, 32768, "null",
        "width of the compressed query; null: not compressed"),
    INT("model.kv_lora_rank", model.kv_lora_rank, 1, 32768, "null",
        "width of the compressed keys and values"),
    INT("model.qk_nope_head_dim", model.qk_nope_head_dim, 1, 1024, "null",
        "part of a query or key head without position"),
    INT("model.qk_rope_head_dim", model.qk_rope_head_dim, 2, 1024, "null",
        "part of it with rotary position"),
    INT("model.v_head_dim", model.v_head_dim, 1, 1024, "null", "width of a value head"),
    INT("model.n_group", model.n_group, 0, 4096, "null",
        "groups of experts; the D of the device and communication losses"),
    INT("model.topk_group", model.topk_group, 0, 4096, "null", "groups a token may use"),
    ENUM("model.topk_method", model.topk_method, "auto", topk_names, NULL,
         "how experts are chosen; auto: by groups where there are several"),
    ENUM("model.scoring_func", model.scoring_func, "softmax", scoring_names, NULL,
         "of the router's logits; V2 softmax, V3 sigmoid"),
    BOOL("model.norm_topk_prob", model.norm_topk_prob, "false",
         "the chosen experts' weights add up to 1 before scaling"),
    REAL("model.routed_scaling_factor", model.routed_scaling_factor, 1e-6, 1e6, "1",
         "multiplies the chosen experts' weights"),
    REAL("model.aux_loss_alpha", model.aux_loss_alpha, 0, 100, "0",
         "balance loss, as config.json has it"),
    BOOL("model.seq_aux", model.seq_aux, "true",
         "aux_loss_alpha is of each sequence, not the batch"),
    BOOL("model.rope_interleave", model.rope_interleave, "true",
         "rotary pairs are neighbours, not halves"),
    INT("model.num_nextn_predict_layers", model.num_nextn_predict_layers, 0, 16, "0",
        "depth of multi-token prediction"),
    ENUM("model.rope_scaling.type", model.rope_scaling.type, "none", scaling_names, NULL,
         "extension of the rotary embedding"),
    REAL("model.rope_scaling.factor", model.rope_scaling.factor, 1, 1e6, "1", "YaRN's s"),
    REAL("model.rope_scaling.beta_fast", model.rope_scaling.beta_fast, 1e-6, 1e6, "32",
         "rotations above which a dimension is left as it is"),
    REAL("model.rope_scaling.beta_slow", model.rope_scaling.beta_slow, 1e-6, 1e6, "1",
         "rotations below which it is stretched by the whole factor"),
    INT("model.rope_scaling.original_max_position_embeddings",
        model.rope_scaling.original_max_position_embeddings, 1, 1e9, "null",
        "longest sequence before the extension; null: max_position_embeddings"),
    REAL("model.rope_scaling.mscale", model.rope_scaling.mscale, 0, 100, "0",
         "of the attention factor; 0: not given"),
    REAL("model.rope_scaling.mscale_all_dim", model.rope_scaling.mscale_all_dim, 0, 100, "0",
         "of the softmax scale; 0: not given"),
    REAL("model.rope_scaling.attention_factor", model.rope_scaling.attention_factor, 0, 1e6, "null",
         "multiplies cos and sin; null: from the mscales"),
    INT("train.sequence_length", train.sequence_length, 1, 1e9, "512", "tokens of a sample"),
    INT("train.micro_batch", train.micro_batch, 1, 1e6, "4",
        "sequences a rank takes at once; the same for every layout"),
    INT("train.global_batch", train.global_batch, 1, 1e9, "8",
        "sequences of an optimizer step, all ranks together"),
    INT("train.batch_ramp.start", train.batch_ramp.start, 1, 1e9, "null",
        "global batch of the first step, where it grows to train.global_batch; null: no ramp"),
    INT("train.batch_ramp.increment", train.batch_ramp.increment, 1, 1e9, "null",
        "sequences by which it grows at a time"),
    INT("train.batch_ramp.tokens", train.batch_ramp.tokens, 1, 9e15, "null",
        "tokens after which it is full grown; the smaller sizes share them evenly"),
    ENUM("train.precision", train.precision, "bf16", precision_names, NULL,
         "of weights and activations; masters are fp32; fp8: of linear layers, the rest is bf16"),
    ENUM("train.recompute", train.recompute, "none", recompute_names, NULL,
         "what backward computes again to save memory; norms: with MLA its up-projections too"),
    REAL("train.mtp_loss_weight", train.mtp_loss_weight, 0, 100, "0.3",
         "of multi-token prediction, divided by its depth"),
    REAL("train.mtp_loss_weight_late", train.mtp_loss_weight_late, 0, 100, "null",
         "its weight later in the run; null: the same"),
    REAL("train.mtp_loss_weight_switch", train.mtp_loss_weight_switch, 0, 1, "null",
         "fraction of run.steps after which the late weight holds"),
    ENUM("fp8.scales", fp8.scales, "power_of_two", scales_names, NULL,
         "of tiles: powers of two, or the largest value / 448"),
    ENUM("fp8.accumulate", fp8.accumulate, "device", accumulate_names, NULL,
         "sums of products; the others: models, on the CPU, of Hopper with and without promotion"),
    INT("fp8.first_bf16", fp8.first_bf16, 0, 1024, "0", "first layers that stay in bf16"),
    INT("fp8.last_bf16", fp8.last_bf16, 0, 1024, "0", "last layers that do; then MTP's too"),
    ENUM("optimizer.name", optimizer.name, "adamw", optimizer_names, NULL,
         "muon: of matrices; embedding, head, router and norms keep adamw"),
    REAL("optimizer.lr", optimizer.lr, 0, 100, "1e-3", "peak learning rate"),
    REAL("optimizer.beta1", optimizer.beta1, 0, 0.99999999, "0.9", "AdamW"),
    REAL("optimizer.beta2", optimizer.beta2, 0, 0.99999999, "0.95", "AdamW"),
    REAL("optimizer.momentum", optimizer.momentum, 0, 0.99999999, "0.95", "Muon, Nesterov's"),
    REAL("optimizer.eps", optimizer.eps, 1e-30, 1, "1e-8", "AdamW"),
    REAL("optimizer.weight_decay", optimizer.weight_decay, 0, 10, "0.1",
         "decoupled from the gradient"),
    ENUM("optimizer.decay", optimizer.decay, "matrices", decay_names, NULL,
         "what decays: matrices (not norms) or all"),
    REAL("optimizer.clip_norm", optimizer.clip_norm, 0, 1e9, "1.0",
         "gradient norm to clip to; 0: off"),
    ENUM("optimizer.moments", optimizer.moments, "fp32", moments_names, NULL,
         "how moments are kept; bf16: with stochastic rounding"),
    REAL("optimizer.ema", optimizer.ema, 0, 0.99999999, "0",
         "decay of a running average of the weights, kept beside them; 0: none"),
    BOOL("optimizer.offload", optimizer.offload, "false",
         "GPUs: masters, moments and average in the host's memory, brought for the update"),
    {"optimizer.freeze", FIELD_TEXTS, AT(optimizer.freeze), 0, 0, "[]", NULL, NULL,
     "shell patterns of parameter names that stay as they are"},
    ENUM("schedule.kind", schedule.kind, "cosine", schedule_names, NULL,
         "after warm-up; wsd: constant, then down; multistep: constant, then milestones"),
    INT("schedule.warmup_steps", schedule.warmup_steps, 0, 1e12, "20", "linear from 0 to lr"),
    REAL("schedule.final_lr_ratio", schedule.final_lr_ratio, 0, 1, "0.1",
         "last learning rate / lr"),
    REAL("schedule.decay_start", schedule.decay_start, 0, 1, "0.8",
         "wsd: where it starts to fall, a fraction of run.steps"),
    REAL("schedule.decay_end", schedule.decay_end, 0, 1, "1",
         "wsd: where it has fallen to final_lr_ratio, a fraction of run.steps"),
    ENUM("schedule.decay_shape", schedule.decay_shape, "linear", shape_names, NULL,
         "wsd: how it falls"),
    REALS("schedule.milestones", schedule.milestones, 0, 1,
          "fractions of run.steps, rising; after each, the rate of any kind takes the factor"),
    REAL("schedule.milestone_factor", schedule.milestone_factor, 0, 1, "0.316",
         "what a milestone multiplies the rate by"),
    REAL("router.batch_loss_coef", router.batch_loss_coef, 0, 100, "null",
         "balance loss of a micro-batch; null: the model's; 0: off"),
    REAL("router.sequence_loss_coef", router.sequence_loss_coef, 0, 100, "null",
         "balance loss of each sequence; null: the model's; 0: off"),
    ENUM("router.sequence_loss_counts", router.sequence_loss_counts, "null", counts_names, NULL,
         "its f: experts routed to, or top-k of the bare scores; null: V3 scores, else routed"),
    REAL("router.device_loss_coef", router.device_loss_coef, 0, 100, "null",
         "balance loss of the n_group groups; null, 0: off"),
    REAL("router.communication_loss_coef", router.communication_loss_coef, 0, 100, "null",
         "balance loss of what each group receives; null, 0: off"),
    REAL("router.bias_update_speed", router.bias_update_speed, 0, 1, "null",
         "step of deepseek_v3's selection bias; null, 0: it stays"),
    REAL("router.bias_update_until", router.bias_update_until, 0, 1, "1",
         "fraction of run.steps after which the bias stays"),
    REAL("router.z_loss_coef", router.z_loss_coef, 0, 100, "0",
         "mean squared log-sum-exp of router logits; 0: off"),
    REAL("router.capacity_factor", router.capacity_factor, 0, 1000, "0",
         "slots of an expert (V2: of a group) per micro-batch / fair share; 0: dropless"),
    REAL("router.buffer_factor", router.buffer_factor, 1, 1000, "2",
         "exact: receive buffer / fair share; more rows travel in extra rounds"),
    ENUM("router.dispatch", router.dispatch, "exact", dispatch_names, NULL,
         "padded: messages of the worst case's size, the host waits for no counts"),
    INT("parallel.ep", parallel.ep, 1, 65536, "1", "ranks that share one set of experts"),
    INT("parallel.etp", parallel.etp, 1, 64, "1",
        "ranks that share the matrices of each expert (docs/parallelism.md)"),
    INT("parallel.pp", parallel.pp, 1, 1024, "1", "pipeline stages: ranks that share the layers"),
    INT("parallel.tp", parallel.tp, 1, 64, "1",
        "ranks that share matrices by heads, widths and vocabulary, and the tokens of sequences"),
    INT("parallel.cp", parallel.cp, 1, 1024, "1",
        "ranks that share the tokens of each sequence, attention included, and no matrices"),
    INT("parallel.zero", parallel.zero, 1, 3, "1",
        "over replicas sharded: 1: optimizer state; 2: gradients of dense weights too; 3: these "
        "weights"),
    ENUM("parallel.schedule", parallel.schedule, "auto", pipeline_names, NULL,
         "of the pipeline where pp > 1; auto: zero_bubble, 1f1b where virtual_stages interleave; "
         "dualpipe "
         "has the weights twice: planned only"),
    INT("parallel.virtual_stages", parallel.virtual_stages, 1, 64, "1",
        "1f1b: parts a stage is cut into, interleaved (Megatron's virtual pipeline)"),
    REALS("parallel.stages", parallel.stages, 0, 4096,
          "blocks of each pipeline stage, first to last, prediction modules behind the layers, at "
          "most 64; []: "
          "as even in cost as can be"),
    ENUM(
        "parallel.overlap", parallel.overlap, "auto", overlap_names, NULL,
        "a forward and the backward of another micro-batch side by side: messages with the experts "
        "of one beside the other's computing, for the memory of a second pass; ep or etp > 1, "
        "zero < 3; auto: in dualpipe_v's pairs, not "
        "on GPUs without NCCL; on: without stages too, for the memory of a second "
        "micro-batch; the same bits either way"),
    ENUM(
        "parallel.node_dispatch", parallel.node_dispatch, "auto", node_names, NULL,
        "exact dispatch: hierarchical: tokens cross the network once for each node; auto: where ep "
        "spans several, two ranks or more on each; the same bits either way"),
    INT("parallel.ranks_per_node", parallel.ranks_per_node, 1, 65536, "null",
        "ranks that count as one node for it; null: those that share memory, as MPI says"),
    {"data.train", FIELD_SOURCES, AT(data.train), 0, 0, "null", NULL, NULL,
     "token file to train on (.h5, Megatron's or llm.c's .bin), or a mixture: a list of {path, "
     "weight, tokens, epochs, fim}"},
    TEXT("data.valid", data.valid, "null", "token file to evaluate on"),
    BOOL("data.shuffle", data.shuffle, "true", "samples in a new random order each epoch"),
    BOOL("data.mask_documents", data.mask_documents, "false",
         "attention stays inside a document, positions restart"),
    ENUM("data.packing", data.packing, "concat", packing_names, NULL,
         "concat: documents one behind the other, cut every sequence_length tokens; best_fit: rows "
         "of whole documents that do not see each other"),
    REALS("data.stages.tokens", data.stages.tokens, 1, 9e15,
          "rising; from each of these tokens of the run on the next weight of every source holds"),
    REALS("data.stages.steps", data.stages.steps, 1, 9e15, "the same, behind these steps"),
    REAL("data.fim.rate", data.fim.rate, 0, 1, "0",
         "documents whose middle is to be filled in, of sources that do not say `fim`"),
    TEXT("data.fim.prefix", data.fim.prefix, "null",
         "id or text of the token before the prefix; null: DeepSeek's, of the tokenizer"),
    TEXT("data.fim.middle", data.fim.middle, "null", "of the token before the middle"),
    TEXT("data.fim.suffix", data.fim.suffix, "null", "of the token before the suffix"),
    INT("eval.every_steps", eval.every_steps, 0, 1e12, "0", "0: never"),
    INT("eval.batches", eval.batches, 0, 1e12, "0", "micro-batches; 0: the whole file"),
    INT("checkpoint.every_steps", checkpoint.every_steps, 0, 1e12, "100", "0: only at the end"),
    REAL("checkpoint.every_minutes", checkpoint.every_minutes, 0, 1e6, "0", "0: off"),
    REAL("checkpoint.mtbf_hours", checkpoint.mtbf_hours, 0, 1e6, "0",
         "mean time between failures of the job; > 0: the interval is sqrt(2 x cost of a save x "
         "it), "
         "other intervals are off"),
    BOOL("checkpoint.async", checkpoint.async, "true",
         "written by a thread beside the training, from a copy of the state in host memory"),
    INT("checkpoint.keep_last", checkpoint.keep_last, 1, 1000, "2", "newest checkpoints kept"),
    TEXT("checkpoint.init_from", checkpoint.init_from, "null",
         "run or checkpoint folder whose weights start this run"),
    BOOL("checkpoint.resize_vocab", checkpoint.resize_vocab, "false",
         "init_from may have another vocabulary: rows in common are kept, others fresh"),
    INT("log.every_steps", log.every_steps, 0, 1e12, "1",
        "printed lines; metrics.jsonl has every step"),
    BOOL("log.tensorboard", log.tensorboard, "true", "event files in run.dir/tensorboard"),
    INT("sample.every_steps", sample.every_steps, 0, 1e12, "0", "0: never"),
    TEXT("sample.prompt", sample.prompt, "\"\"", "text the samples continue"),
    INT("sample.tokens", sample.tokens, 1, 1e6, "128", "length of a sample"),
    REAL("sample.temperature", sample.temperature, 0, 100, "0.8", "0: the most likely token"),
    INT("cluster.nodes", cluster.nodes, 1, 1e6, "1", "machines that plan plans for"),
    INT("cluster.gpus_per_node", cluster.gpus_per_node, 1, 1024, "null",
        "ranks on each; null: 8, on CPUs as many as parallel.ep needs"),
    ENUM("cluster.gpu", cluster.gpu, "null", gpu_names, NULL,
         "null: the CPU here, or h100 where run.device is cuda; custom: as the keys below say"),
    REAL("cluster.peak_tflops", cluster.peak_tflops, 1e-6, 1e6, "null",
         "bf16, without sparsity; null: the GPU's; of a CPU: measured"),
    REAL("cluster.peak_fp8_tflops", cluster.peak_fp8_tflops, 1e-6, 1e6, "null",
         "fp8; null: the GPU's; custom: twice peak_tflops"),
    REAL("cluster.memory_gb", cluster.memory_gb, 1e-3, 1e6, "null",
         "memory of a rank, 1e9 bytes; null: the GPU's, a rank's share of this machine's"),
    REAL("cluster.memory_gb_s", cluster.memory_gb_s, 1e-3, 1e6, "null",
         "its bandwidth; null: the GPU's"),
    REAL("cluster.nvlink_gb_s", cluster.nvlink_gb_s, 1e-3, 1e6, "null",
         "between ranks of a node, each way; null: the GPU's"),
    REAL("cluster.network_gb_s", cluster.network_gb_s, 1e-3, 1e6, "null",
         "of a rank to other nodes, each way; null: the GPU's usual one"),
    REAL("cluster.host_gb_s", cluster.host_gb_s, 1e-3, 1e6, "null",
         "of a GPU to the host's memory, each way, all of the node at once; null: the GPU's usual"),
    REAL("cluster.disk_gb_s", cluster.disk_gb_s, 1e-6, 1e6, "2",
         "what a node writes to the checkpoint folder's disk"),
    ENUM("cluster.exchange", cluster.exchange, "auto", exchange_names, NULL,
         "direct: as training does it; by_node: there and back once to each node (DeepEP); auto: "
         "by_node with pipelines"),
    BOOL("watchdog.enabled", watchdog.enabled, "true",
         "a rank that hangs or dies ends the job with a message that says where"),
    REAL("watchdog.setup_seconds", watchdog.setup_seconds, 1, 1e6, "600",
         "longest without progress while starting, in the first step, evaluating, sampling"),
    REAL("watchdog.step_seconds", watchdog.step_seconds, 0, 1e6, "0",
         "the same in a step; 0: 60, or ten times the median step"),
    REAL("watchdog.save_seconds", watchdog.save_seconds, 1, 1e6, "600",
         "the same in a save: no byte written either"),
    INT("watchdog.straggler_every_steps", watchdog.straggler_every_steps, 0, 1e6, "50",
        "steps between two looks for slow ranks; 0: never"),
    REAL("watchdog.straggler_ratio", watchdog.straggler_ratio, 1.05, 100, "1.3",
         "a rank whose own work takes this many times the median rank's, twice in a row, is named"),
    ENUM("guard.on_nonfinite", guard.on_nonfinite, "stop", nonfinite_names, NULL,
         "NaN or infinity in the loss or gradient: stop (exit 77); skip: no update; rollback: back "
         "to the last checkpoint, passing over the batches since"),
    ENUM("guard.on_spike", guard.on_spike, "off", spike_names, NULL,
         "the same where the loss or gradient norm is far above those before"),
    REAL("guard.spike_factor", guard.spike_factor, 1, 1000, "6",
         "a spike: so many deviations (1.4826 x median distance) above the median"),
    INT("guard.spike_window", guard.spike_window, 8, CONFIG_MOST_WINDOW, "128",
        "updates whose median that is; judged once half of them are there"),
    INT("guard.tries", guard.tries, 1, 1000, "3",
        "skips in a row, or rollbacks less than spike_window steps apart; one more: exit 77"),
    INT("guard.replicas_every_steps", guard.replicas_every_steps, 0, 1e12, "100",
        "steps between comparisons of the weights that several ranks hold, made before every save, "
        "too; 0: never"),
    TEXT("debug.fault", debug.fault, "null",
         "drills: io:KIND:OPERATION or read:KIND:OPERATION, the file operation that fails; or "
         "KIND:STEP:RANK, what happens there (docs/health.md)"),
    TEXT("debug.profile", debug.profile, "null",
         "Chrome trace of every rank's phases, operations and messages (chrome://tracing, "
         "Perfetto)"),
    INT("debug.profile_from", debug.profile_from, 1, 1e12, "2", "its first step"),
    INT("debug.profile_steps", debug.profile_steps, 1, 1e6, "10", "its number of steps"),
    TEXT("debug.trace", debug.trace, "null",
         "file.h5: hashes and values of what each step computes, for `trace diff` (docs/trace.md)"),
    INT("debug.trace_from", debug.trace_from, 1, 1e15, "1", "the first step that is traced"),
    INT("debug.trace_steps", debug.trace_steps, 0, 1e15, "0", "how many are; 0: to the end"),
    ENUM("debug.trace_values", debug.trace_values, "samples", trace_names, NULL,
         "kept of each tensor: hashes: none, samples: 64 of its values, all: all of them"),
    INT("debug.trace_mib", debug.trace_mib, 1, 1e9, "1024",
        "largest file; what comes after it is not traced"),
};
const int config_field_count = sizeof config_fields / sizeof config_fields[0];

const struct unbuilt_key config_unbuilt[] = {
    {"model.moe_layer_freq", "1"},
    {"model.hidden_act", "silu"},
    {"model.attention_bias", "false"},
    {"model.tie_word_embeddings", "false"},
};
const int config_unbuilt_count = sizeof config_unbuilt / sizeof config_unbuilt[0];
