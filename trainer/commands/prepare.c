#include "data/prepare.h"

#include <stdio.h>
#include <string.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/step.h"

static enum status parse_invalid(const char *word, enum prepare_invalid *what)
{
    static const char *const words[] = {"skip", "replace", "error"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(word, words[i]) == 0) {
            *what = (enum prepare_invalid)i;
            return STATUS_OK;
        }
    }
    return status_fail(STATUS_USAGE, "prepare: --invalid-utf8 '%s': use skip, replace or error",
                       word);
}

enum status command_prepare(int argc, char **argv)
{
    const char *tokenizer = NULL, *output = NULL, *eos = NULL, *invalid = "skip";
    int64_t vocab = 0;
    bool json = false;
    struct option_result options;
    struct prepare_summary summary;
    const struct option_spec specs[] = {
        {"--tokenizer", OPTION_TEXT, &tokenizer, "bytes|FILE|none",
         "bytes: 256 values and end-of-document; FILE: tokenizer.json or .model; none: given ids"},
        {"--vocab-size", OPTION_INT, &vocab, "V", "how many token ids there are; with none needed"},
        {"--eos", OPTION_TEXT, &eos, "TOKEN", "ends a document, where the tokenizer doesn't say"},
        {"--invalid-utf8", OPTION_TEXT, &invalid, "WHAT",
         "of a text: skip it (default), replace the bytes by U+FFFD, or error; bytes takes any"},
        {"--output", OPTION_TEXT, &output, "OUT.h5", "token file to write"},
        {"--json", OPTION_FLAG, &json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs,
                      "prepare --tokenizer bytes|FILE|none --output OUT.h5 INPUT...",
                      "Turns text files, folders and .jsonl (\"text\", or \"tokens\" and "
                      "\"loss_mask\") into a token file.",
                      0, argc));
    if (options.help) {
        return STATUS_OK;
    }
    if (tokenizer == NULL || output == NULL || options.word_count == 0) {
        return status_fail(
            STATUS_USAGE,
            "prepare: --tokenizer, --output and at least one input are needed (see switchyard "
            "prepare --help)");
    }
    enum prepare_invalid what = PREPARE_INVALID_SKIP;
    TRY(parse_invalid(invalid, &what));
    const struct prepare_options request = {.tokenizer = tokenizer,
                                            .eos = eos,
                                            .invalid = what,
                                            .vocab_size = vocab,
                                            .output = output,
                                            .inputs = options.words,
                                            .input_count = options.word_count};
    const double start = step_clock();
    TRY(prepare_run(&request, &summary));
    const double rate = (double)summary.bytes / 1e6 / (step_clock() - start);
    printf(json ? "{\"files\":%lld,\"documents\":%lld,\"tokens\":%lld,\"bytes\":%lld,"
                  "\"skipped_empty\":%lld,\"skipped_invalid\":%lld,\"mb_per_s\":%.1f}\n"
                : "%lld files, %lld documents, %lld tokens from %lld bytes; %lld empty skipped, "
                  "%lld of invalid UTF-8; %.1f MB/s\n",
           (long long)summary.files, (long long)summary.documents, (long long)summary.tokens,
           (long long)summary.bytes, (long long)summary.skipped_empty,
           (long long)summary.skipped_invalid, rate);
    return STATUS_OK;
}
