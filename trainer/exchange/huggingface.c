#include "trainer/exchange/huggingface.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/model/params.h"

static bool ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static enum hf_kind kind_of(const struct param *param)
{
    static const char *const linear[] = {"_proj.weight", "_proj_with_mqa.weight", ".w1.weight",
                                         ".w2.weight", ".w3.weight"};
    if (param->ndim != 2 || ends_with(param->name, ".eh_proj.weight")) {
        return HF_PLAIN;
    }
    for (size_t i = 0; i < sizeof linear / sizeof linear[0]; i++) {
        if (ends_with(param->name, linear[i])) {
            return HF_LINEAR;
        }
    }
    return HF_PLAIN;
}

static void add(struct hf_tensors *tensors, const char *name, enum hf_kind kind, int ndim,
                const int64_t shape[2])
{
    struct hf_tensor *tensor = &tensors->tensor[tensors->count++];
    *tensor = (struct hf_tensor){.kind = kind, .ndim = ndim, .shape = {shape[0], shape[1], 1, 1}};
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
}

/* The parameters of a single rank that has all experts, and the biases behind their routers. */
static void add_all(struct hf_tensors *tensors, const struct architecture *arch,
                    const struct params *params)
{
    char name[HF_NAME_BYTES];
    const int64_t bias[2] = {arch->experts, 1};
    for (int64_t i = 0; i < params->count; i++) {
        const struct param *param = &params->table[i];
        add(tensors, param->name, kind_of(param), param->ndim, param->shape);
        if (arch->has_bias && ends_with(param->name, ".mlp.gate.weight")) {
            params_bias_name(name, sizeof name, hf_layer(param->name));
            add(tensors, name, HF_BIAS, 1, bias);
        }
    }
}

enum status hf_tensors_init(struct hf_tensors *tensors, const struct config *config)
{
    struct params params;
    struct architecture arch;
    architecture_init(&arch, config);
    *tensors = (struct hf_tensors){.experts = arch.experts};
    enum status status = params_init(&params, &arch, false, &PARAMS_ALL);
    if (status == STATUS_OK) {
        const int64_t most = params.count + architecture_blocks(&arch);
        tensors->tensor = calloc((size_t)most, sizeof *tensors->tensor);
        status = tensors->tensor != NULL
                     ? STATUS_OK
                     : status_fail(STATUS_RESOURCE, "out of memory for the table of tensors");
    }
    if (status == STATUS_OK) {
        add_all(tensors, &arch, &params);
    }
    params_free(&params);
    return status;
}

void hf_tensors_free(struct hf_tensors *tensors)
{
    free(tensors->tensor);
    *tensors = (struct hf_tensors){0};
}

int64_t hf_layer(const char *name)
{
    static const char start[] = "model.layers.";
    char *end = NULL;
    if (strncmp(name, start, sizeof start - 1) != 0) {
        return -1;
    }
    const long long layer = strtoll(name + sizeof start - 1, &end, 10);
    return end != name + sizeof start - 1 && *end == '.' ? layer : -1;
}

/* "model.layers.3.block_sparse_moe.experts.7.w1.weight" lies in
 * "model.layers.3.mlp.experts.gate_up_proj". */
static struct hf_home expert_home(const char *name, const char *experts)
{
    static const struct {
        const char *end, *fused;
        int part, parts;
    } kinds[] = {
        {".w1.weight", "gate_up_proj", 0, 2},      {".w3.weight", "gate_up_proj", 1, 2},
        {".w2.weight", "down_proj", 0, 1},         {".gate_proj.weight", "gate_up_proj", 0, 2},
        {".up_proj.weight", "gate_up_proj", 1, 2}, {".down_proj.weight", "down_proj", 0, 1},
    };
    struct hf_home home = {.expert = strtoll(experts + strlen(".experts."), NULL, 10)};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0] && !home.exists; i++) {
        if (ends_with(name, kinds[i].end)) {
            home.part = kinds[i].part;
            home.parts = kinds[i].parts;
            home.exists = snprintf(home.name, sizeof home.name, "model.layers.%lld.mlp.experts.%s",
                                   (long long)hf_layer(name), kinds[i].fused) < HF_NAME_BYTES;
        }
    }
    return home;
}

struct hf_home hf_fused_home(const char *name)
{
    const char *experts = strstr(name, ".experts.");
    struct hf_home home = {.expert = -1, .parts = 1};
    if (hf_layer(name) < 0) {
        return home;
    }
    if (experts != NULL) {
        return expert_home(name, experts);
    }
    if (ends_with(name, ".block_sparse_moe.gate.weight")) {
        home.exists = snprintf(home.name, sizeof home.name, "model.layers.%lld.mlp.gate.weight",
                               (long long)hf_layer(name)) < HF_NAME_BYTES;
    }
    return home;
}

bool hf_is_ignored(const char *name)
{
    return ends_with(name, ".rotary_emb.inv_freq");
}

const char *hf_copied_from(const char *name, int64_t layers)
{
    if (hf_layer(name) < layers) {
        return NULL;
    }
    return ends_with(name, ".embed_tokens.weight")       ? "model.embed_tokens.weight"
           : ends_with(name, ".shared_head.head.weight") ? "lm_head.weight"
                                                         : NULL;
}
