#include "trainer/exchange/import.h"

#include <stdio.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/signals.h"

static void say(const char *line)
{
    fprintf(stderr, "switchyard: note: %s\n", line);
}

static void print(const struct import_options *options, const struct import_figures *figures,
                  bool json)
{
    if (json) {
        printf("{\"tensors\":%lld,\"bytes\":%lld,\"seconds\":%.3f}\n", (long long)figures->tensors,
               (long long)figures->bytes, figures->seconds);
    } else {
        printf("%s: %lld tensors, %.1f MiB, in %.1f s\n", options->to, (long long)figures->tensors,
               (double)figures->bytes / 1048576.0, figures->seconds);
    }
}

enum { NOT_GIVEN = -1000000 };

static enum status check(const struct import_options *options)
{
    if (options->upcycle == NOT_GIVEN && (options->top_k != 0 || options->split != 1)) {
        return status_fail(STATUS_USAGE, "import: --top-k and --split belong to --upcycle");
    }
    if (options->upcycle != NOT_GIVEN &&
        (options->upcycle < 1 || options->top_k < 0 || options->split < 1 ||
         options->top_k > options->upcycle)) {
        return status_fail(STATUS_USAGE,
                           "import: --upcycle E from 1, --top-k K from 1 to E, --split S from 1");
    }
    return STATUS_OK;
}

static const char about[] =
    "Turns the weights of a Hugging Face folder (config.json and model.safetensors, or shards and\n"
    "their index) into a checkpoint, every tensor with its dtype and bits. Start from it with\n"
    "checkpoint.init_from=CKPT_DIR, or use it with generate, eval and export.\n"
    "\n"
    "--upcycle E takes a dense llama or mistral model and makes a Mixtral of E experts, each a "
    "copy\n"
    "of its MLP, with a router of random weights (run.seed, model.initializer_range). Weights of\n"
    "the chosen experts add up to 1, so the first step's outputs are those of the dense model.\n"
    "--split S cuts every copy into S experts along its inner width: E x S experts, K x S of them\n"
    "active, the same FLOPs. The S parts of a copy share their router row, so that they are "
    "chosen\n"
    "together, each with 1/S of the copy's weight; down_proj is multiplied by S to make up for "
    "it.\n"
    "Outputs are exact (up to rounding; in f32 and bf16 multiplying is exact when S is a power of\n"
    "two) until the first update; from then on the parts' router rows move apart and groups may\n"
    "break up. Exactness also needs router.capacity_factor 0 and model.router_jitter_noise 0.";

enum status command_import(int argc, char **argv)
{
    struct import_options import = {.upcycle = NOT_GIVEN, .split = 1};
    struct import_figures figures;
    struct option_result options;
    struct comm world;
    bool json = false;
    const struct option_spec specs[] = {
        {"--upcycle", OPTION_INT, &import.upcycle, "E", "copies of a dense model's MLP"},
        {"--top-k", OPTION_INT, &import.top_k, "K", "copies a token visits (2)"},
        {"--split", OPTION_INT, &import.split, "S", "experts made of every copy (1)"},
        {"--json", OPTION_FLAG, &json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs, "import HF_DIR CKPT_DIR [key=value ...]", about,
                      2, 2));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(check(&import));
    import.upcycle = import.upcycle > 0 ? import.upcycle : 0;
    import.top_k = import.top_k > 0 ? import.top_k : import.upcycle < 2 ? import.upcycle : 2;
    import.from = options.words[0];
    import.to = options.words[1];
    import.overrides = options.overrides;
    import.override_count = options.override_count;
    TRY(comm_open(&world, "auto"));
    signals_install();
    const enum status status = import_run(&world, &import, &figures, say);
    if (status == STATUS_OK && world.rank == 0) {
        print(&import, &figures, json);
    }
    return signals_end(&world, status);
}
