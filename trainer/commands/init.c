#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/io.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/config/config.h"

/* A model of each family small enough for a laptop: what has no default, and what a small model
 * wants otherwise. */
static const char frame[] = "run: {dir: runs/mine}\nmodel:\n  family: %s\n%s"
                            "train: {sequence_length: 128, micro_batch: 2, global_batch: 8}\ndata: "
                            "{train: data/train.h5}\n";
static const char tiny[] = "  vocab_size: 257\n  hidden_size: 192\n  intermediate_size: 512\n"
                           "  num_hidden_layers: 4\n  num_attention_heads: 4\n"
                           "  initializer_range: 0.05\n%s";
static const char tiny_deepseek[] =
    "  moe_intermediate_size: 96\n  n_routed_experts: 16\n  num_experts_per_tok: 4\n"
    "  first_k_dense_replace: 1\n  kv_lora_rank: 48\n  qk_nope_head_dim: 32\n"
    "  qk_rope_head_dim: 16\n  v_head_dim: 32\n";

static enum status make(struct config *config, const char *family, const char *hf)
{
    char model[8192], text[16384];
    if (hf != NULL) {
        /* the file says which family, and every key of the model */
        snprintf(text, sizeof text,
                 "run: {dir: runs/mine}\nmodel: {hf_config: \"%.4000s\"}\n"
                 "data: {train: data/train.h5}\n",
                 hf);
    } else {
        snprintf(model, sizeof model, tiny,
                 strncmp(family, "deepseek", 8) == 0 ? tiny_deepseek : "");
        snprintf(text, sizeof text, frame, family, model);
    }
    return config_parse(config, "init", text, strlen(text));
}

static enum status write_config(const struct config *config, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = path != NULL ? open_memstream(&text, &bytes) : stdout;
    if (out == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory", path);
    }
    config_annotate(config, out);
    if (path == NULL) {
        return STATUS_OK;
    }
    fclose(out);
    enum status status = STATUS_OK;
    if (io_exists(path)) {
        status = status_fail(STATUS_USAGE, "%s: is there already: name another file", path);
    }
    status = status == STATUS_OK ? io_write_file(path, text, bytes) : status;
    if (status == STATUS_OK) {
        printf("%s: name your data in it, then: switchyard train %s\n", path, path);
    }
    free(text);
    return status;
}

enum status command_init(int argc, char **argv)
{
    struct option_result options;
    const char *family = NULL, *output = NULL, *hf = NULL;
    const struct option_spec specs[] = {
        {"--family", OPTION_TEXT, &family, "NAME", "mixtral (default), deepseek_v2, deepseek_v3"},
        {"--hf-config", OPTION_TEXT, &hf, "PATH", "the model of this config.json, or its folder"},
        {"--output", OPTION_TEXT, &output, "F.yaml", "write it there; otherwise it is printed"},
        {0},
    };
    TRY(options_parse(&options, argc, argv, specs, "init [--family NAME] [--output F.yaml]",
                      "Writes a config to start from: every key the family has, at its value, with "
                      "what it means.",
                      0, 0));
    if (options.help) {
        return STATUS_OK;
    }
    if (family != NULL && hf != NULL) {
        return status_fail(STATUS_USAGE, "--family, --hf-config: config.json says the family: give "
                                         "one of the two");
    }
    struct config *config = malloc(sizeof *config);
    if (config == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    config_init(config);
    enum status status = make(config, family != NULL ? family : "mixtral", hf);
    status = status == STATUS_OK ? write_config(config, output) : status;
    config_free(config);
    free(config);
    return status;
}
