/* tiny_model: tiny models of every family with data in memory, ready to step.
 *
 * The caller checks the status: unit tests and parallel tests fail in their own ways.
 */
#ifndef TESTS_TINY_MODEL_H
#define TESTS_TINY_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "trainer/step.h"

#define TINY_DEEPSEEK(family)                                                                      \
    "run: {steps: 8, seed: 5}\n"                                                                   \
    "model:\n"                                                                                     \
    "  family: " family "\n"                                                                       \
    "  vocab_size: 61\n"                                                                           \
    "  hidden_size: 16\n"                                                                          \
    "  intermediate_size: 24\n"                                                                    \
    "  moe_intermediate_size: 8\n"                                                                 \
    "  num_hidden_layers: 3\n"                                                                     \
    "  num_attention_heads: 2\n"                                                                   \
    "  first_k_dense_replace: 1\n"                                                                 \
    "  n_routed_experts: 8\n"                                                                      \
    "  n_shared_experts: 1\n"                                                                      \
    "  num_experts_per_tok: 3\n"                                                                   \
    "  n_group: 4\n"                                                                               \
    "  topk_group: 2\n"                                                                            \
    "  q_lora_rank: 12\n"                                                                          \
    "  kv_lora_rank: 8\n"                                                                          \
    "  qk_nope_head_dim: 4\n"                                                                      \
    "  qk_rope_head_dim: 4\n"                                                                      \
    "  v_head_dim: 6\n"                                                                            \
    "  initializer_range: 0.5\n"                                                                   \
    "train: {sequence_length: 8, micro_batch: 2, global_batch: 8, precision: fp32}\n"              \
    "data: {shuffle: false}\n"                                                                     \
    "schedule: {kind: constant, warmup_steps: 0}\n"

static const char TINY_V2[] = TINY_DEEPSEEK("deepseek_v2"),
                  TINY_V3[] = TINY_DEEPSEEK("deepseek_v3"),
                  TINY_MIXTRAL[] =
                      "run: {steps: 8, seed: 5}\n"
                      "model:\n"
                      "  family: mixtral\n"
                      "  vocab_size: 61\n"
                      "  hidden_size: 16\n"
                      "  intermediate_size: 12\n"
                      "  num_hidden_layers: 3\n"
                      "  num_attention_heads: 2\n"
                      "  num_local_experts: 8\n"
                      "  num_experts_per_tok: 2\n"
                      "  initializer_range: 0.5\n"
                      "train: {sequence_length: 8, micro_batch: 2, global_batch: 8, precision: "
                      "fp32}\n"
                      "data: {shuffle: false}\n"
                      "schedule: {kind: constant, warmup_steps: 0}\n";

enum { TINY_OVERRIDES = 32, TINY_TOKENS = 801 };

struct tiny {
    struct config config;
    struct mesh mesh;
    struct device *device; /* owned */
    int32_t tokens[TINY_TOKENS];
    int64_t documents[2];
    struct token_store store;
    struct loader loader;
    struct mixture_source source;
    struct mixture mixture;
    struct model model;
    struct stepper stepper;
};

static inline enum status tiny_config(struct config *config, const char *text,
                                      const char *const *overrides)
{
    char *list[TINY_OVERRIDES];
    int count = 0;
    for (; count < TINY_OVERRIDES && overrides[count] != NULL; count++) {
        list[count] = (char *)(uintptr_t)overrides[count];
    }
    config_init(config);
    TRY(config_parse(config, "tiny.yaml", text, strlen(text)));
    return config_override(config, list, count);
}

static inline enum status tiny_data(struct tiny *tiny)
{
    for (int64_t i = 0; i < TINY_TOKENS; i++) {
        tiny->tokens[i] =
            (int32_t)(rng_uniform(9, (uint64_t)i) * (double)tiny->config.model.vocab_size);
    }
    tiny->documents[1] = TINY_TOKENS;
    tiny->store = (struct token_store){.tokens = TINY_TOKENS,
                                       .documents = 1,
                                       .vocab_size = tiny->config.model.vocab_size,
                                       .eos_id = -1,
                                       .width = 4,
                                       .token_data = tiny->tokens,
                                       .document_offsets = tiny->documents};
    TRY(loader_init(&tiny->loader, &tiny->store, tiny->config.train.sequence_length, false, false,
                    tiny->config.run.seed));
    return mixture_single(&tiny->mixture, &tiny->source, &tiny->loader);
}

/* Collective over world. overrides: [TINY_OVERRIDES] "a.b=v", NULL where there are fewer. */
static inline enum status tiny_open(struct tiny *tiny, struct comm *world, const char *text,
                                    const char *const *overrides)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct architecture arch;
    *tiny = (struct tiny){0};
    TRY(tiny_config(&tiny->config, text, overrides));
    architecture_init(&arch, &tiny->config);
    const struct mesh_shape shape = model_mesh_shape(&tiny->config);
    TRY(mesh_init(&tiny->mesh, world, &shape, arch.experts));
    TRY(device_open(&tiny->device, &options));
    TRY(model_init(&tiny->model, &tiny->config, &tiny->mesh, tiny->device,
                   tiny->config.train.micro_batch, tiny->config.train.sequence_length, true));
    model_initialize(&tiny->model);
    TRY(tiny_data(tiny));
    return stepper_init(&tiny->stepper, &tiny->model, &tiny->mixture);
}

static inline void tiny_close(struct tiny *tiny)
{
    stepper_free(&tiny->stepper);
    mixture_free(&tiny->mixture);
    model_free(&tiny->model);
    device_close(tiny->device);
    mesh_free(&tiny->mesh);
    config_free(&tiny->config);
}

#endif
