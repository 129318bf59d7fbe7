/* upcycle: a dense model becomes a Mixtral (Komatsuzaki et al. 2023; fine-grained: He et al. 2024,
 * "Upcycling Large Language Models into Mixture of Experts"). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "trainer/exchange/import_plan.h"

enum { TEXT_ROOM = 4096 };

/* Keys of a dense config.json that are keys of a Mixtral's. */
static const char *const same_keys[] = {
    "vocab_size",          "hidden_size",      "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",         "rms_norm_eps",      "max_position_embeddings",
    "sliding_window",      "initializer_range"};

static enum status refuse(const struct import_plan *plan, const char *what)
{
    return status_fail(STATUS_DATA, "%s/config.json: %s", plan->options->from, what);
}

static enum status check_dense(const struct import_plan *plan)
{
    char line[256];
    const char *type = json_string_value(json_object_get(plan->json, "model_type")),
               *act = json_string_value(json_object_get(plan->json, "hidden_act"));
    const json_t *rope = json_object_get(plan->json, "rope_scaling");
    const json_t *map =
        json_is_object(rope) ? rope : json_object_get(plan->json, "rope_parameters");
    const char *scaling = json_string_value(json_object_get(map, "rope_type"));
    scaling = scaling != NULL ? scaling : json_string_value(json_object_get(map, "type"));
    if (type == NULL || (strcmp(type, "llama") != 0 && strcmp(type, "mistral") != 0)) {
        snprintf(line, sizeof line, "model_type '%.64s': upcycling starts from llama or mistral",
                 type != NULL ? type : "(none)");
        return refuse(plan, line);
    }
    if (act != NULL && strcmp(act, "silu") != 0) {
        return refuse(plan, "hidden_act is not silu");
    }
    if (scaling != NULL && strcmp(scaling, "default") != 0) {
        return refuse(plan, "scaled rotary embedding is not built for mixtral");
    }
    if (json_is_true(json_object_get(plan->json, "attention_bias")) ||
        json_is_true(json_object_get(plan->json, "mlp_bias"))) {
        return refuse(plan, "attention_bias and mlp_bias are not built");
    }
    return STATUS_OK;
}

/* A number of config.json as YAML; silent: nothing, our default. */
static void put_number(FILE *out, const char *key, const json_t *value)
{
    if (json_is_integer(value)) {
        fprintf(out, "  %s: %lld\n", key, (long long)json_integer_value(value));
    } else if (json_is_real(value)) {
        fprintf(out, "  %s: %.17g\n", key, json_real_value(value));
    }
}

static enum status print_config(const struct import_plan *plan, int64_t inner, FILE *out)
{
    const struct import_options *options = plan->options;
    const json_t *json = plan->json;
    const json_t *theta = json_object_get(json, "rope_theta"),
                 *longest = json_object_get(json, "max_position_embeddings");
    theta = theta != NULL ? theta
                          : json_object_get(json_object_get(json, "rope_parameters"), "rope_theta");
    if (inner % options->split != 0) {
        return status_fail(STATUS_USAGE,
                           "import: --split %lld does not divide intermediate_size %lld",
                           (long long)options->split, (long long)inner);
    }
    fprintf(out, "model:\n  family: mixtral\n");
    for (size_t i = 0; i < sizeof same_keys / sizeof same_keys[0]; i++) {
        put_number(out, same_keys[i], json_object_get(json, same_keys[i]));
    }
    if (theta != NULL) {
        put_number(out, "rope_theta", theta);
    } else {
        fprintf(out, "  rope_theta: 10000\n"); /* of both classes in transformers */
    }
    if (json_object_get(json, "rms_norm_eps") == NULL) {
        fprintf(out, "  rms_norm_eps: 1e-6\n");
    }
    fprintf(out, "  intermediate_size: %lld\n  num_local_experts: %lld\n",
            (long long)(inner / options->split), (long long)(options->upcycle * options->split));
    fprintf(out, "  num_experts_per_tok: %lld\n", (long long)(options->top_k * options->split));
    if (json_integer_value(longest) > 0 &&
        json_integer_value(longest) < plan->config.train.sequence_length) {
        fprintf(out, "train: {sequence_length: %lld}\n", (long long)json_integer_value(longest));
    }
    return STATUS_OK;
}

static enum status resolve_config(struct import_plan *plan, int64_t inner)
{
    const struct import_options *options = plan->options;
    char text[TEXT_ROOM] = "";
    FILE *out = fmemopen(text, sizeof text, "w");
    if (out == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a config");
    }
    const enum status status = print_config(plan, inner, out);
    fclose(out);
    TRY(status);
    TRY(config_parse(&plan->config, options->from, text, strlen(text)));
    return config_override(&plan->config, options->overrides, options->override_count);
}

/* What of the dense model an expert's matrix is made of. */
static const char *dense_name(const char *name)
{
    static const char *const pairs[][2] = {
        {".w1.weight", "gate_proj"}, {".w3.weight", "up_proj"}, {".w2.weight", "down_proj"}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        const size_t length = strlen(name), tail = strlen(pairs[i][0]);
        if (length > tail && strcmp(name + length - tail, pairs[i][0]) == 0) {
            return pairs[i][1];
        }
    }
    return NULL;
}

static enum status add_expert(struct import_plan *plan, const struct hf_tensor *tensor,
                              const struct safetensors_tensor *from, int64_t expert)
{
    const int64_t split = plan->options->split, at = expert % split;
    const bool down = strstr(from->name, "down_proj") != NULL;
    const int64_t shape[2] = {tensor->shape[0] * (down ? 1 : split),
                              tensor->shape[1] * (down ? split : 1)};
    TRY(import_plan_shape(plan, from, shape, 2));
    struct part *part = import_plan_add(plan, tensor);
    part->dtype = from->dtype;
    part->from = from;
    if (down && split > 1) {
        part->kind = PART_COLUMNS;
        part->column = at * tensor->shape[1];
        part->factor = (float)split;
    } else {
        part->first = at * import_part_bytes(part);
    }
    return STATUS_OK;
}

/* Rows of one copy's parts are the same, so that they are chosen together. */
static void add_router(struct import_plan *plan, const struct hf_tensor *tensor, enum dtype dtype)
{
    struct part *part = import_plan_add(plan, tensor);
    part->kind = PART_NORMAL;
    part->dtype = dtype;
    part->key = rng_key(plan->config.run.seed, tensor->name);
    part->factor = (float)plan->config.model.initializer_range;
    part->group = plan->options->split;
}

static enum status add_tensor(struct import_plan *plan, const struct hf_tensor *tensor,
                              struct name_list *missing)
{
    char name[HF_NAME_BYTES];
    const char *experts = strstr(tensor->name, ".experts."), *dense = dense_name(tensor->name);
    const bool tied = json_is_true(json_object_get(plan->json, "tie_word_embeddings"));
    snprintf(name, sizeof name, "%s", tensor->name);
    if (strstr(tensor->name, ".block_sparse_moe.") != NULL) {
        snprintf(name, sizeof name, "model.layers.%lld.mlp.%s.weight",
                 (long long)hf_layer(tensor->name), dense != NULL ? dense : "gate_proj");
    } else if (tied && strcmp(name, "lm_head.weight") == 0 &&
               safetensors_find(&plan->source, name) == NULL) {
        snprintf(name, sizeof name, "model.embed_tokens.weight");
    }
    const struct safetensors_tensor *found = import_plan_use(plan, name);
    if (found == NULL) { /* named once, not for every expert */
        const bool again = experts != NULL && strncmp(experts, ".experts.0.", 11) != 0;
        if (!again && (dense != NULL || strcmp(name, tensor->name) == 0)) {
            name_list_add(missing, name, 10);
        }
        return STATUS_OK;
    }
    if (found->dtype == DTYPE_E4M3) {
        return status_fail(STATUS_DATA, "%s: tensor %s is float8: upcycling needs F32, BF16 or F16",
                           plan->options->from, name);
    }
    if (experts != NULL) {
        return add_expert(plan, tensor, found, strtoll(experts + strlen(".experts."), NULL, 10));
    }
    if (dense == NULL && strcmp(name, tensor->name) != 0 && strstr(name, ".mlp.") != NULL) {
        add_router(plan, tensor, found->dtype);
        return STATUS_OK;
    }
    TRY(import_plan_shape(plan, found, tensor->shape, tensor->ndim));
    struct part *part = import_plan_add(plan, tensor);
    part->dtype = found->dtype;
    part->from = found;
    return STATUS_OK;
}

enum status import_plan_upcycled(struct import_plan *plan)
{
    struct name_list missing = {.text = ""};
    struct hf_tensors tensors = {0};
    TRY(check_dense(plan));
    const int64_t inner = json_integer_value(json_object_get(plan->json, "intermediate_size"));
    if (inner <= 0) {
        return refuse(plan, "key 'intermediate_size' is missing");
    }
    TRY(resolve_config(plan, inner));
    enum status status = hf_tensors_init(&tensors, &plan->config);
    status = status == STATUS_OK ? import_plan_reserve(plan, tensors.count) : status;
    for (int64_t i = 0; i < tensors.count && status == STATUS_OK; i++) {
        status = add_tensor(plan, &tensors.tensor[i], &missing);
    }
    hf_tensors_free(&tensors);
    return status == STATUS_OK ? import_plan_complete(plan, &missing) : status;
}
