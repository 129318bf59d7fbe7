#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/config/config_table.h"

void config_error(struct config_errors *errors, const char *format, ...)
{
    const size_t used = strlen(errors->text), spare = 40; /* for "and N more errors" */
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    status_clean(line);
    const char *prefix = errors->prefix != NULL ? errors->prefix : "";
    if (used + strlen(prefix) + strlen(line) + spare < sizeof errors->text) {
        snprintf(errors->text + used, sizeof errors->text - used, "%s%s%s%s",
                 errors->count > 0 ? "\n" : "", prefix, errors->prefix != NULL ? ": " : "", line);
    } else {
        errors->left_out++;
    }
    errors->count++;
}

enum status config_result(const struct config_errors *errors)
{
    char text[sizeof errors->text + 64];
    if (errors->count == 0) {
        return STATUS_OK;
    }
    snprintf(text, sizeof text, errors->left_out > 0 ? "%s\nand %d more errors" : "%s",
             errors->text, errors->left_out);
    return status_lines(STATUS_USAGE, text);
}

static bool is_default(const struct config *config, const char *key)
{
    const struct field *field = config_find(key);
    char value[CONFIG_SHOWN_BYTES];
    config_show(config, field, value, sizeof value);
    return strcmp(value, field->initial) == 0;
}

enum { MOST_HEAD_DIM = 1024 }; /* what the kernels are made for */

static void check_heads(const struct config *config, struct config_errors *errors)
{
    const int64_t heads = config->model.num_attention_heads, kv = config->model.num_key_value_heads;
    const int64_t head_dim =
        config->model.head_dim > 0 ? config->model.head_dim : config->model.hidden_size / heads;
    if (kv > 0 && heads % kv != 0) {
        config_error(
            errors, "model.num_key_value_heads %lld does not divide model.num_attention_heads %lld",
            (long long)kv, (long long)heads);
    }
    if (config->model.head_dim == 0 && config->model.hidden_size % heads != 0) {
        config_error(errors,
                     "model.hidden_size %lld is not a multiple of model.num_attention_heads %lld; "
                     "set model.head_dim",
                     (long long)config->model.hidden_size, (long long)heads);
    } else if (head_dim > MOST_HEAD_DIM) {
        config_error(errors,
                     "head width %lld (model.hidden_size / model.num_attention_heads) is "
                     "more than %d",
                     (long long)head_dim, MOST_HEAD_DIM);
    } else if (head_dim % 2 != 0) {
        config_error(errors, "head width %lld is odd: rotary embedding needs pairs",
                     (long long)head_dim);
    }
}

static void check_latent(const struct config *config, struct config_errors *errors)
{
    const int64_t heads = config->model.num_attention_heads, kv = config->model.num_key_value_heads;
    if (kv > 0 && kv != heads) {
        config_error(errors,
                     "model.num_key_value_heads %lld: latent attention has as many as "
                     "model.num_attention_heads %lld",
                     (long long)kv, (long long)heads);
    }
    if (config->model.rope_scaling.type == CONFIG_ROPE_YARN &&
        config->model.rope_scaling.factor <= 1) {
        config_error(errors,
                     "model.rope_scaling.factor %g: yarn stretches positions by more than 1",
                     config->model.rope_scaling.factor);
    }
    if (config->model.qk_rope_head_dim % 2 != 0) {
        config_error(errors, "model.qk_rope_head_dim %lld is odd: rotary embedding needs pairs",
                     (long long)config->model.qk_rope_head_dim);
    }
    if (config->model.qk_nope_head_dim + config->model.qk_rope_head_dim > MOST_HEAD_DIM) {
        config_error(errors, "a query head of %lld is wider than %d",
                     (long long)(config->model.qk_nope_head_dim + config->model.qk_rope_head_dim),
                     MOST_HEAD_DIM);
    }
}

/* Groups of experts: n_group of n_routed_experts / n_group each, of which a token uses topk_group.
 */
static void check_groups(const struct config *config, struct config_errors *errors)
{
    const int64_t experts = config->model.n_routed_experts,
                  top_k = config->model.num_experts_per_tok;
    const int64_t groups = config->model.n_group > 0 ? config->model.n_group : 1;
    const int64_t top = config->model.topk_group > 0 ? config->model.topk_group : 1;
    const bool v3 = config->model.family == CONFIG_DEEPSEEK_V3;
    if (experts % groups != 0 || top > groups) {
        config_error(errors,
                     "model.n_group %lld must divide model.n_routed_experts %lld, and "
                     "model.topk_group %lld be at most n_group",
                     (long long)groups, (long long)experts, (long long)top);
        return;
    }
    if (config->model.topk_method != CONFIG_GREEDY && top * (experts / groups) < top_k) {
        config_error(errors,
                     "model.topk_group %lld groups of %lld experts hold fewer than "
                     "model.num_experts_per_tok %lld",
                     (long long)top, (long long)(experts / groups), (long long)top_k);
    }
    if (v3 && groups > 1 && experts / groups < 2) {
        config_error(errors,
                     "model.n_group %lld leaves %lld expert a group: a group's score is the sum of "
                     "its best two",
                     (long long)groups, (long long)(experts / groups));
    }
}

static void check_router(const struct config *config, struct config_errors *errors)
{
    const bool v3 = config->model.family == CONFIG_DEEPSEEK_V3;
    const int method = config->model.topk_method;
    if ((config->model.scoring_func == CONFIG_SIGMOID) != v3) {
        config_error(errors, "model.scoring_func: deepseek_v2 has softmax, deepseek_v3 sigmoid");
    }
    if (v3 ? method != CONFIG_NOAUX_TC && method != CONFIG_TOPK_AUTO : method == CONFIG_NOAUX_TC) {
        config_error(errors, "model.topk_method: deepseek_v2 has greedy or group_limited_greedy, "
                             "deepseek_v3 noaux_tc");
    }
    if (config->model.first_k_dense_replace >= config->model.num_hidden_layers) {
        config_error(errors,
                     "model.first_k_dense_replace %lld leaves none of %lld layers with experts",
                     (long long)config->model.first_k_dense_replace,
                     (long long)config->model.num_hidden_layers);
    }
    if (config->model.num_nextn_predict_layers >= config->train.sequence_length) {
        config_error(errors,
                     "model.num_nextn_predict_layers %lld needs a train.sequence_length above it, "
                     "not %lld",
                     (long long)config->model.num_nextn_predict_layers,
                     (long long)config->train.sequence_length);
    }
    check_groups(config, errors);
}

/* Losses and updates that would do nothing in this model. */
static void check_balance(const struct config *config, struct config_errors *errors)
{
    const bool mixtral = config->model.family == CONFIG_MIXTRAL,
               greedy = config->model.topk_method == CONFIG_GREEDY;
    const double device = config->router.device_loss_coef,
                 communication = config->router.communication_loss_coef;
    if (config->router.bias_update_speed > 0 && config->model.family != CONFIG_DEEPSEEK_V3) {
        config_error(errors, "router.bias_update_speed %g: only deepseek_v3 has a selection bias",
                     config->router.bias_update_speed);
    }
    if (mixtral && (device > 0 || communication > 0)) {
        config_error(errors, "router.device_loss_coef and communication_loss_coef are of groups of "
                             "experts (model.n_group), which mixtral does not have");
    } else if ((device > 0 || communication > 0) && config->model.n_group <= 1) {
        config_error(errors,
                     "router.device_loss_coef %g and communication_loss_coef %g: with one "
                     "group of experts (model.n_group) they are constants: set 0",
                     fmax(device, 0), fmax(communication, 0));
    } else if (communication > 0 && greedy) {
        config_error(errors,
                     "router.communication_loss_coef %g: tokens are not limited to "
                     "model.topk_group groups with model.topk_method greedy: set 0",
                     communication);
    }
}

static void check_model(const struct config *config, struct config_errors *errors)
{
    const bool mixtral = config->model.family == CONFIG_MIXTRAL;
    const char *name = mixtral ? "num_local_experts" : "n_routed_experts";
    const int64_t experts =
        mixtral ? config->model.num_local_experts : config->model.n_routed_experts;
    (mixtral ? check_heads : check_latent)(config, errors);
    if (config->model.num_experts_per_tok > experts) {
        config_error(errors, "model.num_experts_per_tok %lld is more than model.%s %lld",
                     (long long)config->model.num_experts_per_tok, name, (long long)experts);
    }
    if (experts % config->parallel.ep != 0) {
        config_error(errors, "parallel.ep %lld does not divide model.%s %lld",
                     (long long)config->parallel.ep, name, (long long)experts);
    }
    if (config->train.sequence_length > config->model.max_position_embeddings) {
        config_error(errors,
                     "train.sequence_length %lld is more than model.max_position_embeddings %lld",
                     (long long)config->train.sequence_length,
                     (long long)config->model.max_position_embeddings);
    }
    if (!mixtral) {
        check_router(config, errors);
    }
}

static void check_schedule(const struct config *config, struct config_errors *errors)
{
    const struct config_reals *milestones = &config->schedule.milestones;
    /* The default warm-up may be longer than a short run, also when read back from config.yaml. */
    if (config->schedule.warmup_steps > config->run.steps &&
        !is_default(config, "schedule.warmup_steps")) {
        config_error(errors, "schedule.warmup_steps %lld is more than run.steps %lld",
                     (long long)config->schedule.warmup_steps, (long long)config->run.steps);
    }
    if (config->schedule.decay_end < config->schedule.decay_start) {
        config_error(errors, "schedule.decay_end %g is before schedule.decay_start %g",
                     config->schedule.decay_end, config->schedule.decay_start);
    }
    for (int64_t i = 1; i < milestones->count; i++) {
        if (milestones->item[i] <= milestones->item[i - 1]) {
            config_error(errors, "schedule.milestones: %g after %g: write them rising",
                         milestones->item[i], milestones->item[i - 1]);
        }
    }
    if (config->schedule.kind == CONFIG_MULTISTEP && milestones->count == 0) {
        config_error(errors, "schedule.kind multistep needs schedule.milestones: [0.6, 0.9], say");
    }
}

/* Sizes that no number of ranks would make right; stepper_check knows the ranks. */
static void check_batches(const struct config *config, struct config_errors *errors)
{
    const int64_t micro = config->train.micro_batch, global = config->train.global_batch;
    const int64_t start = config->train.batch_ramp.start, by = config->train.batch_ramp.increment,
                  tokens = config->train.batch_ramp.tokens;
    if (global % micro != 0) {
        config_error(errors, "train.global_batch %lld is not a multiple of train.micro_batch %lld",
                     (long long)global, (long long)micro);
    }
    if (start == 0 && by == 0 && tokens == 0) {
        return;
    }
    if (start == 0 || by == 0 || tokens == 0) {
        config_error(errors,
                     "train.batch_ramp: key '%s' is missing: a ramp has start, increment "
                     "and tokens",
                     start == 0 ? "start"
                     : by == 0  ? "increment"
                                : "tokens");
    } else if (start > global || (global - start) % by != 0) {
        config_error(errors,
                     "train.batch_ramp: steps of %lld do not lead from start %lld to "
                     "train.global_batch %lld",
                     (long long)by, (long long)start, (long long)global);
    } else if (start % micro != 0 || (start < global && by % micro != 0)) {
        config_error(errors,
                     "train.batch_ramp: start %lld or increment %lld is not a multiple of "
                     "train.micro_batch %lld",
                     (long long)start, (long long)by, (long long)micro);
    }
}

/* Widths that FP8 reads 16 bytes at a time: inputs of linear layers, and outputs, whose gradients
 * are inputs of the way back. */
static void check_fp8_widths(const struct config *config, struct config_errors *errors)
{
    enum { WIDTH = 16 };
    const bool mixtral = config->model.family == CONFIG_MIXTRAL,
               dense = !mixtral && config->model.first_k_dense_replace > 0;
    const int64_t heads = config->model.num_attention_heads,
                  kv = config->model.num_key_value_heads > 0 ? config->model.num_key_value_heads
                                                             : heads,
                  head = config->model.head_dim > 0 ? config->model.head_dim
                                                    : config->model.hidden_size / heads,
                  nope = config->model.qk_nope_head_dim, rope = config->model.qk_rope_head_dim,
                  value = config->model.v_head_dim;
    const struct {
        const char *what;
        int64_t width;
    } widths[] = {
        {"model.hidden_size", config->model.hidden_size},
        {"model.intermediate_size", mixtral || dense ? config->model.intermediate_size : 0},
        {"model.num_attention_heads x head_dim", mixtral ? heads * head : 0},
        {"model.num_key_value_heads x head_dim", mixtral ? 2 * kv * head : 0},
        {"model.moe_intermediate_size", mixtral ? 0 : config->model.moe_intermediate_size},
        {"model.q_lora_rank", mixtral ? 0 : config->model.q_lora_rank},
        {"model.kv_lora_rank", mixtral ? 0 : config->model.kv_lora_rank},
        {"model.qk_rope_head_dim", mixtral ? 0 : rope},
        {"model.num_attention_heads x (qk_nope_head_dim + qk_rope_head_dim)",
         mixtral ? 0 : heads * (nope + rope)},
        {"model.num_attention_heads x (qk_nope_head_dim + v_head_dim)",
         mixtral ? 0 : heads * (nope + value)},
        {"model.num_attention_heads x v_head_dim", mixtral ? 0 : heads * value},
    };
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        if (widths[i].width % WIDTH != 0) {
            config_error(errors, "%s = %lld: train.precision fp8 needs a multiple of %d",
                         widths[i].what, (long long)widths[i].width, WIDTH);
        }
    }
}

static void check_fp8(const struct config *config, struct config_errors *errors)
{
    const int64_t layers = config->model.num_hidden_layers;
    if (config->train.precision != CONFIG_FP8) {
        return;
    }
    check_fp8_widths(config, errors);
    if (config->fp8.first_bf16 + config->fp8.last_bf16 >= layers) {
        config_error(errors,
                     "fp8.first_bf16 %lld and fp8.last_bf16 %lld leave none of %lld layers in fp8: "
                     "that is train.precision bf16",
                     (long long)config->fp8.first_bf16, (long long)config->fp8.last_bf16,
                     (long long)layers);
    }
    if (config->run.device == CONFIG_DEVICE_CUDA && !is_default(config, "fp8.accumulate")) {
        config_error(errors, "fp8.accumulate: models of a GPU are for run.device cpu");
    }
}

static double stage_weight(const struct config_source *source, int64_t stage)
{
    return source->weight[source->weights > 1 ? stage : 0];
}

static void check_stages(const struct config *config, struct config_errors *errors)
{
    const struct config_reals *tokens = &config->data.stages.tokens,
                              *steps = &config->data.stages.steps,
                              *used = tokens->count > 0 ? tokens : steps;
    if (tokens->count > 0 && steps->count > 0) {
        config_error(errors, "data.stages: give tokens or steps, not both");
    }
    for (int64_t i = 0; i < used->count; i++) {
        if (used->item[i] != floor(used->item[i]) ||
            (i > 0 && used->item[i] <= used->item[i - 1])) {
            config_error(errors, "data.stages: %.17g: write whole numbers, rising", used->item[i]);
        }
    }
    if (used->count >= CONFIG_MOST_STAGES) {
        config_error(errors, "data.stages: at most %d borders are taken", CONFIG_MOST_STAGES - 1);
        return;
    }
    for (int64_t stage = 0; stage <= used->count && config->data.train.count > 0; stage++) {
        double sum = 0;
        for (int64_t s = 0; s < config->data.train.count; s++) {
            const struct config_source *source = &config->data.train.item[s];
            sum += source->weights > 1 && source->weights != used->count + 1
                       ? 1 /* told below */
                       : stage_weight(source, stage);
        }
        if (sum <= 0) {
            config_error(errors, "data.train: every weight of stage %lld is 0",
                         (long long)stage + 1);
        }
    }
}

/* Mixtures, packing, fill-in-the-middle. */
static void check_data(const struct config *config, struct config_errors *errors)
{
    const struct config_sources *train = &config->data.train;
    const int64_t borders = config->data.stages.tokens.count + config->data.stages.steps.count;
    int64_t budgets = 0;
    bool fim = config->data.fim.rate > 0;
    check_stages(config, errors);
    for (int64_t s = 0; s < train->count; s++) {
        const struct config_source *source = &train->item[s];
        budgets += source->tokens > 0 ? 1 : 0;
        fim = fim || source->fim > 0;
        if (source->weights > 1 && source->weights != borders + 1) {
            config_error(errors,
                         "data.train: %s has %lld weights: give one, or one for each of the %lld "
                         "stages that data.stages makes",
                         source->path, (long long)source->weights, (long long)borders + 1);
        }
        if (source->tokens > 0 && borders > 0) {
            config_error(errors,
                         "data.train: %s: a budget of tokens holds for the whole run: it "
                         "has no data.stages",
                         source->path);
        }
    }
    if (budgets != 0 && budgets != train->count) {
        config_error(errors,
                     "data.train: %lld of %lld sources have a budget of tokens: give every "
                     "source one (they are mixed in that proportion), or none",
                     (long long)budgets, (long long)train->count);
    }
    if (fim && config->data.packing == CONFIG_BEST_FIT) {
        config_error(errors, "data.packing best_fit takes documents as they are: data.fim.rate and "
                             "`fim` of a source must be 0");
    }
}

/* Keys that another key makes idle: away from their defaults they would promise something. */
static void check_unused(const struct config *config, struct config_errors *errors)
{
    static const char *const wsd[] = {"schedule.decay_start", "schedule.decay_end",
                                      "schedule.decay_shape"};
    for (size_t i = 0; i < sizeof wsd / sizeof wsd[0]; i++) {
        if (config->schedule.kind != CONFIG_WSD && !is_default(config, wsd[i])) {
            config_error(errors, "%s: only schedule.kind wsd has it", wsd[i]);
        }
    }
    static const char *const fp8[] = {"fp8.scales", "fp8.accumulate", "fp8.first_bf16",
                                      "fp8.last_bf16"};
    for (size_t i = 0; i < sizeof fp8 / sizeof fp8[0]; i++) {
        if (config->train.precision != CONFIG_FP8 && !is_default(config, fp8[i])) {
            config_error(errors, "%s: only train.precision fp8 has it", fp8[i]);
        }
    }
    if (config->router.dispatch == CONFIG_PADDED && !is_default(config, "router.buffer_factor")) {
        config_error(errors, "router.buffer_factor: router.dispatch padded has no use for it: its "
                             "buffers hold the worst case");
    }
    if (config->guard.on_spike == CONFIG_GUARD_OFF && !is_default(config, "guard.spike_factor")) {
        config_error(errors, "guard.spike_factor: guard.on_spike off has no use for it");
    }
    static const char *const profile[] = {"debug.profile_from", "debug.profile_steps"};
    for (size_t i = 0; i < sizeof profile / sizeof profile[0]; i++) {
        if (config->debug.profile == NULL && !is_default(config, profile[i])) {
            config_error(errors, "%s: debug.profile is null", profile[i]);
        }
    }
    if (config->debug.profile != NULL && config->debug.profile_from > config->run.steps) {
        config_error(errors, "debug.profile_from %lld is behind the last of run.steps %lld",
                     (long long)config->debug.profile_from, (long long)config->run.steps);
    }
    static const char *const traces[] = {"debug.trace_from", "debug.trace_steps",
                                         "debug.trace_values", "debug.trace_mib"};
    for (size_t i = 0; i < sizeof traces / sizeof traces[0]; i++) {
        if (config->debug.trace == NULL && !is_default(config, traces[i])) {
            config_error(errors, "%s: only with debug.trace", traces[i]);
        }
    }
    if (config->optimizer.name != CONFIG_MUON && !is_default(config, "optimizer.momentum")) {
        config_error(errors, "optimizer.momentum: only optimizer.name muon has it");
    }
}

static void check_guard(const struct config *config, struct config_errors *errors)
{
    if (config->guard.on_nonfinite != CONFIG_GUARD_ROLLBACK &&
        config->guard.on_spike != CONFIG_GUARD_ROLLBACK) {
        return;
    }
    if (config->checkpoint.every_steps == 0 && config->checkpoint.every_minutes <= 0 &&
        config->checkpoint.mtbf_hours <= 0) {
        config_error(errors, "guard: rollback needs checkpoints to go back to: set "
                             "checkpoint.every_steps");
    }
    if (config->checkpoint.keep_last < 2) {
        config_error(errors, "guard: rollback needs checkpoint.keep_last of at least 2: a "
                             "preempted run saves one more, and must still go back where one that "
                             "was not does");
    }
}

static void check_deterministic(const struct config *config, struct config_errors *errors)
{
    if (config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT && config->parallel.tp > 1) {
        config_error(errors,
                     "run.deterministic layout: parallel.tp %lld adds up parts of one product on "
                     "several ranks, in f32: other bits than on one; use parallel.tp 1",
                     (long long)config->parallel.tp);
    }
}

static void check_cluster(const struct config *config, struct config_errors *errors)
{
    if (config->cluster.gpu == CONFIG_GPU_CUSTOM &&
        (config->cluster.peak_tflops < 0 || config->cluster.memory_gb < 0 ||
         config->cluster.memory_gb_s < 0)) {
        config_error(errors, "cluster.gpu custom needs cluster.peak_tflops, memory_gb and "
                             "memory_gb_s");
    }
    for (int64_t i = 0; i < config->parallel.stages.count; i++) {
        if (config->parallel.stages.item[i] != floor(config->parallel.stages.item[i])) {
            config_error(errors, "parallel.stages: %g is no number of blocks",
                         config->parallel.stages.item[i]);
        }
    }
}

void config_check(const struct config *config, const bool *given, struct config_errors *errors)
{
    for (int i = 0; i < config_field_count; i++) {
        const bool from_hf =
            config->model.hf_config != NULL && strncmp(config_fields[i].key, "model.", 6) == 0;
        if (config_fields[i].initial == NULL && !given[i] && !from_hf) {
            config_error(errors, "key '%s': missing: %s", config_fields[i].key,
                         config_fields[i].help);
        }
    }
    check_cluster(config, errors);
    check_deterministic(config, errors);
    if (errors->count > 0) {
        return; /* relations between missing values would only add noise */
    }
    check_model(config, errors);
    check_fp8(config, errors);
    if (config->stored) {
        return;
    }
    config_check_layout(config, errors);
    check_batches(config, errors);
    check_schedule(config, errors);
    check_balance(config, errors);
    check_unused(config, errors);
    check_data(config, errors);
    check_guard(config, errors);
    if ((config->train.mtp_loss_weight_late >= 0) != (config->train.mtp_loss_weight_switch >= 0)) {
        config_error(errors, "train.mtp_loss_weight_late and mtp_loss_weight_switch go together: "
                             "give both or none");
    }
    if (config->run.dir[0] == '\0') {
        config_error(errors, "run.dir is empty: name a folder");
    }
}
