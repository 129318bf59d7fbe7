#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/status.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/output.h"
#include "trainer/config/config.h"
#include "trainer/config/nearest.h"
#include "trainer/version.h"

static const struct {
    const char *name, *help;
    enum status (*run)(int argc, char **argv);
} commands[] = {
    {"init", "write a config to start from", command_init},
    {"train", "train a model; the same command again resumes", command_train},
    {"prepare", "turn text or .jsonl into a token file", command_prepare},
    {"tokenizer", "text to token ids and back", command_tokenizer},
    {"import", "turn a Hugging Face model into a checkpoint", command_import},
    {"export", "turn a checkpoint into a Hugging Face model", command_export},
    {"eval", "loss and perplexity on a token file", command_eval},
    {"generate", "continue a prompt", command_generate},
    {"bench", "measure tokens/s and FLOP/s of a config", command_bench},
    {"plan", "memory, step time and cost of a config on a cluster", command_plan},
    {"ckpt", "list, verify, compare, export, remove checkpoints", command_ckpt},
    {"rerun", "repeat a run and compare it bit by bit", command_rerun},
    {"verify", "check a layout against one rank before a long run", command_verify},
    {"trace", "name the first tensor where two traced runs part", command_trace},
    {"sweep", "train a config with many values of some keys", command_sweep},
    {"watch", "follow a run in the terminal", command_watch},
    {"report", "write a page of charts of one or more runs", command_report},
    {"doctor", "look at this machine: MPI, cores, GEMM, disk, memory", command_doctor},
    {"config", "print a config with every value resolved", command_config},
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

static void usage(FILE *out)
{
    fprintf(out, "usage: switchyard COMMAND [ARGS] [key=value ...]\n\nTrains mixture-of-experts "
                 "language models; "
                 "launch with mpirun for several ranks.\n\n");
    for (int i = 0; i < COMMANDS; i++) {
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    }
    fprintf(out, "\nswitchyard COMMAND --help says more; --help-keys lists every config key; "
                 "--version names the build.\n");
}

static enum status unknown(const char *word)
{
    const char *names[COMMANDS];
    for (int i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].name;
    }
    const char *near = nearest_word(word, names, COMMANDS);
    return status_fail(STATUS_USAGE, "unknown command '%s'%s%s%s (see switchyard --help)", word,
                       near != NULL ? "; did you mean '" : "", near != NULL ? near : "",
                       near != NULL ? "'?" : "");
}

static enum status run(int argc, char **argv)
{
    if (argc < 2) {
        return status_fail(STATUS_USAGE, "no command given (see switchyard --help)");
    }
    if (strcmp(argv[1], "--help") == 0) {
        usage(stdout);
        return STATUS_OK;
    }
    if (strcmp(argv[1], "--help-keys") == 0) {
        config_help(stdout);
        return STATUS_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        version_print(stdout);
        return STATUS_OK;
    }
    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    return unknown(argv[1]);
}

/* A command line refused before the ranks know each other is refused by all: one of them says so.
 */
static bool speaks(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *rank = getenv(names[i]);
        if (rank != NULL) {
            return strcmp(rank, "0") == 0;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    enum status status = run(argc, argv);
    if (status != STATUS_OK && status_message()[0] != '\0' && speaks()) {
        fprintf(stderr, "switchyard: %s\n", status_message());
    }
    if (output_lost()) {
        fprintf(stderr, "switchyard: standard output: cannot be written\n");
        status = status == STATUS_OK ? STATUS_IO : status;
    }
    return status_exit_code(status);
}
