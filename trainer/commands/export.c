#include "trainer/exchange/export.h"

#include <stdio.h>
#include <string.h>

#include "checkpoints/safetensors.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/signals.h"

static void print(const struct export_options *options, const struct export_figures *figures,
                  bool json)
{
    if (json) {
        printf("{\"tensors\":%lld,\"shards\":%lld,\"bytes\":%lld,\"seconds\":%.3f}\n",
               (long long)figures->tensors, (long long)figures->shards, (long long)figures->bytes,
               figures->seconds);
    } else {
        printf("%s: %lld tensors in %lld files, %.1f MiB, in %.1f s\n", options->to,
               (long long)figures->tensors, (long long)figures->shards,
               (double)figures->bytes / 1048576.0, figures->seconds);
    }
}

static enum status parse_dtype(const char *word, int *dtype)
{
    static const char *const words[] = {
        [EXPORT_F32] = "f32", [EXPORT_BF16] = "bf16", [EXPORT_FP8] = "fp8"};
    for (int i = EXPORT_F32; word != NULL && i <= EXPORT_FP8; i++) {
        if (strcmp(words[i], word) == 0) {
            *dtype = i;
            return STATUS_OK;
        }
    }
    return word == NULL
               ? STATUS_OK
               : status_fail(STATUS_USAGE, "export: --dtype '%s' is not f32, bf16 or fp8", word);
}

static const char about[] =
    "Writes the weights of a checkpoint, or of a run's newest one, as a Hugging Face folder:\n"
    "config.json and model.safetensors, or shards and their index. Without --dtype an imported\n"
    "checkpoint keeps the dtype and bits it came with, and a trained one becomes bf16. fp8 writes\n"
    "float8 blocks of 128 x 128 with scales for the matrices that the FP8 releases store so.\n"
    "Tokenizer files are not part of a checkpoint: copy them beside the weights.";

enum status command_export(int argc, char **argv)
{
    struct export_options export = {0};
    struct export_figures figures;
    struct option_result options;
    struct comm world;
    const char *dtype = NULL;
    int64_t megabytes = SAFETENSORS_SHARD_BYTES / 1000000;
    bool json = false;
    const struct option_spec specs[] = {
        {"--dtype", OPTION_TEXT, &dtype, "f32|bf16|fp8", "of the weights written"},
        {"--ema", OPTION_FLAG, &export.ema, NULL, "the averaged weights (optimizer.ema)"},
        {"--shard-mb", OPTION_INT, &megabytes, "MB", "most data per file (5000)"},
        {"--json", OPTION_FLAG, &json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs,
                      "export CKPT_DIR|RUN_DIR HF_DIR [--dtype f32|bf16|fp8] [--ema]", about, 2,
                      2));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(parse_dtype(dtype, &export.dtype));
    if (megabytes < 1 || megabytes > 1000000000) {
        return status_fail(STATUS_USAGE, "export: --shard-mb from 1 to 1000000000");
    }
    export.shard_bytes = megabytes * 1000000;
    export.from = options.words[0];
    export.to = options.words[1];
    TRY(comm_open(&world, "auto"));
    signals_install();
    const enum status status = export_run(&world, &export, &figures);
    if (status == STATUS_OK && world.rank == 0) {
        print(&export, &figures, json);
    }
    return signals_end(&world, status);
}
