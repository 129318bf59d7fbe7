#include "trainer/params.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { ALIGNMENT = 64 }; /* elements: every tensor starts on a 128-byte line in bf16 */

static int64_t aligned(int64_t offset)
{
    return (offset + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

struct builder {
    struct params *params;
    const struct config *config;
    int64_t next[PARAM_GROUPS];
};

/* Appends a parameter of shape [rows, cols] (cols 0: a vector); `follow`: directly behind the one
 * before it, so that the two can be read as one matrix. Returns its offset. */
static int64_t add(struct builder *b, enum param_group group, bool follow, int64_t rows,
                   int64_t cols, const char *format, ...)
{
    struct param *param = &b->params->table[b->params->count++];
    va_list args;
    va_start(args, format);
    const int length = vsnprintf(param->name, sizeof param->name, format, args);
    va_end(args);
    assert(length > 0 && (size_t)length < sizeof param->name);
    param->group = group;
    param->ndim = cols > 0 ? 2 : 1;
    param->shape[0] = rows;
    param->shape[1] = cols > 0 ? cols : 1;
    param->count = rows * param->shape[1];
    param->offset = follow ? b->next[group] : aligned(b->next[group]);
    param->ones = cols == 0;
    param->decay = cols > 0 || b->config->optimizer.decay == CONFIG_DECAY_ALL;
    b->next[group] = param->offset + param->count;
    return param->offset;
}

static void add_layer(struct builder *b, int64_t l, int ep_rank, int64_t local_experts)
{
    const struct config *config = b->config;
    const int64_t width = config->model.hidden_size, inner = config->model.intermediate_size;
    const int64_t head_dim = config_head_dim(config);
    const int64_t heads = config->model.num_attention_heads * head_dim;
    const int64_t kv = config->model.num_key_value_heads * head_dim;
    const long long n = (long long)l;
    struct layer_offsets *at = &b->params->layer[l];
    at->input_norm =
        add(b, PARAM_DENSE, false, width, 0, "model.layers.%lld.input_layernorm.weight", n);
    at->qkv =
        add(b, PARAM_DENSE, false, heads, width, "model.layers.%lld.self_attn.q_proj.weight", n);
    add(b, PARAM_DENSE, true, kv, width, "model.layers.%lld.self_attn.k_proj.weight", n);
    add(b, PARAM_DENSE, true, kv, width, "model.layers.%lld.self_attn.v_proj.weight", n);
    at->o_proj =
        add(b, PARAM_DENSE, false, width, heads, "model.layers.%lld.self_attn.o_proj.weight", n);
    at->post_norm = add(b, PARAM_DENSE, false, width, 0,
                        "model.layers.%lld.post_attention_layernorm.weight", n);
    at->gate = add(b, PARAM_DENSE, false, config->model.num_local_experts, width,
                   "model.layers.%lld.block_sparse_moe.gate.weight", n);
    for (int64_t e = 0; e < local_experts; e++) {
        const long long name = (long long)(ep_rank * local_experts + e);
        const char *format = "model.layers.%lld.block_sparse_moe.experts.%lld.%s.weight";
        const int64_t first = add(b, PARAM_EXPERT, false, inner, width, format, n, name, "w1");
        add(b, PARAM_EXPERT, true, inner, width, format, n, name, "w3");
        const int64_t down = add(b, PARAM_EXPERT, false, width, inner, format, n, name, "w2");
        if (e == 0) {
            at->experts = first;
        }
        b->params->down_offset = down - first;
    }
}

enum status params_init(struct params *params, const struct config *config, int ep_rank,
                        int ep_size)
{
    const int64_t layers = config->model.num_hidden_layers, width = config->model.hidden_size;
    const int64_t experts = config->model.num_local_experts, local = experts / ep_size;
    const int64_t expert_count = 3 * config->model.intermediate_size * width;
    *params = (struct params){0};
    params->table = calloc((size_t)(3 + layers * (7 + 3 * local)), sizeof *params->table);
    params->layer = calloc((size_t)layers, sizeof *params->layer);
    if (params->table == NULL || params->layer == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the parameter table");
    }
    struct builder b = {.params = params, .config = config};
    params->embed =
        add(&b, PARAM_DENSE, false, config->model.vocab_size, width, "model.embed_tokens.weight");
    for (int64_t l = 0; l < layers; l++) {
        add_layer(&b, l, ep_rank, local);
    }
    params->final_norm = add(&b, PARAM_DENSE, false, width, 0, "model.norm.weight");
    params->head = add(&b, PARAM_DENSE, false, config->model.vocab_size, width, "lm_head.weight");
    params->expert_stride = aligned(aligned(2 * config->model.intermediate_size * width) +
                                    config->model.intermediate_size * width);
    params->elements[PARAM_DENSE] = b.next[PARAM_DENSE];
    params->elements[PARAM_EXPERT] = b.next[PARAM_EXPERT];
    for (int64_t i = 0; i < params->count; i++) {
        params->total += params->table[i].group == PARAM_DENSE ? params->table[i].count : 0;
    }
    params->active = params->total + layers * config->model.num_experts_per_tok * expert_count;
    params->total += layers * experts * expert_count;
    return STATUS_OK;
}

void params_free(struct params *params)
{
    free(params->table);
    free(params->layer);
    *params = (struct params){0};
}
