#include "data/prepare.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/signals.h"
#include "trainer/step.h"

/* What the command line says beside the request itself. */
struct flags {
    const char *invalid, *bad_json, *binary, *loss;
    struct option_texts include, exclude;
    bool json;
    int64_t workers;
    double start; /* of the clock */
};

/* One of the words; *index: which. */
static enum status parse_word(const char *option, const char *word, const char *const *words,
                              int *index)
{
    char all[128] = "";
    for (int i = 0; words[i] != NULL; i++) {
        if (strcmp(word, words[i]) == 0) {
            *index = i;
            return STATUS_OK;
        }
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i > 0 ? " or " : "",
                 words[i]);
    }
    return status_fail(STATUS_USAGE, "prepare: %s '%s': use %s", option, word, all);
}

static enum status parse_flags(struct prepare_options *request, const struct flags *flags)
{
    static const char *const invalid[] = {"skip", "replace", "error", NULL},
                             *const broken[] = {"error", "skip", NULL},
                             *const binary[] = {"skip", "keep", NULL},
                             *const loss[] = {"answers", "all", NULL};
    int what[4] = {0};
    TRY(parse_word("--invalid-utf8", flags->invalid, invalid, &what[0]));
    TRY(parse_word("--bad-json", flags->bad_json, broken, &what[1]));
    TRY(parse_word("--binary", flags->binary, binary, &what[2]));
    TRY(parse_word("--loss", flags->loss, loss, &what[3]));
    request->invalid = (enum prepare_invalid)what[0];
    request->skip_broken = what[1] != 0;
    request->keep_binary = what[2] != 0;
    request->count_prompt = what[3] != 0;
    request->filter.include = flags->include.text;
    request->filter.include_count = flags->include.count;
    request->filter.exclude = flags->exclude.text;
    request->filter.exclude_count = flags->exclude.count;
    if (flags->workers < 0 || flags->workers > 1024 || request->most_document_bytes < 0 ||
        request->filter.least_bytes < 0 || request->filter.most_bytes < 0 ||
        request->journal_seconds < 0) {
        return status_fail(STATUS_USAGE,
                           "prepare: numbers of options are from 0, --workers to 1024");
    }
    request->workers = (int)flags->workers;
    return STATUS_OK;
}

/* --- what is printed --- */

static void print_note(void *context, const char *line)
{
    (void)context;
    fprintf(stderr, "%sswitchyard: prepare: %s\n", isatty(2) ? "\r\033[K" : "", line);
}

static void print_progress(void *context, const struct prepare_summary *done, int64_t total)
{
    enum { WIDTH = 10 };
    const struct flags *flags = context;
    const double seconds = step_clock() - flags->start,
                 part = total > 0 ? (double)done->disk_bytes / (double)total : 1,
                 now = (double)(done->disk_bytes - done->resumed_disk_bytes), rate = now / seconds;
    char bar[WIDTH + 1];
    for (int i = 0; i < WIDTH; i++) {
        bar[i] = (double)i < part * WIDTH ? '#' : '.';
    }
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r\033[K[%s] %3.0f %%  %.1f of %.1f MB, %.1f MB/s, %.2fM tok/s, %.0f s left",
            bar, 100 * part, (double)done->disk_bytes / 1e6, (double)total / 1e6, rate / 1e6,
            (double)(done->tokens - done->resumed) / 1e6 / seconds,
            now > 0 ? (double)(total - done->disk_bytes) / rate : 0.0);
}

static const struct {
    const char *name, *text;
    size_t offset;
} counts[] = {
    {"skipped_binary", "binary files", offsetof(struct prepare_summary, skipped_binary)},
    {"skipped_long", "too long", offsetof(struct prepare_summary, skipped_long)},
    {"skipped_broken", "broken lines", offsetof(struct prepare_summary, skipped_broken)},
    {"skipped_unanswered", "conversations without an answer",
     offsetof(struct prepare_summary, skipped_unanswered)},
    {"skipped_by_size", "files by their size", offsetof(struct prepare_summary, skipped_by_size)},
    {"skipped_by_name", "files by their name", offsetof(struct prepare_summary, skipped_by_name)},
    {"duplicates", "duplicates", offsetof(struct prepare_summary, duplicates)},
};
enum { COUNTS = sizeof counts / sizeof counts[0] };

static long long count_of(const struct prepare_summary *summary, int i)
{
    int64_t value;
    memcpy(&value, (const char *)summary + counts[i].offset, sizeof value);
    return (long long)value;
}

static double bytes_per_token(const struct prepare_summary *summary)
{
    return summary->text_tokens > 0 ? (double)summary->text_bytes / (double)summary->text_tokens
                                    : 0;
}

static void print_json(const struct prepare_summary *summary, double seconds)
{
    printf("{\"files\":%lld,\"documents\":%lld,\"tokens\":%lld,\"bytes\":%lld,"
           "\"skipped_empty\":%lld,\"skipped_invalid\":%lld",
           (long long)summary->files, (long long)summary->documents, (long long)summary->tokens,
           (long long)summary->bytes, (long long)summary->skipped_empty,
           (long long)summary->skipped_invalid);
    for (int i = 0; i < COUNTS; i++) {
        printf(",\"%s\":%lld", counts[i].name, count_of(summary, i));
    }
    printf(",\"bytes_per_token\":%.4f,\"resumed_tokens\":%lld,\"seconds\":%.3f,\"mb_per_s\":%.1f,"
           "\"tokens_per_s\":%.0f}\n",
           bytes_per_token(summary), (long long)summary->resumed, seconds,
           (double)(summary->bytes - summary->resumed_bytes) / 1e6 / seconds,
           (double)(summary->tokens - summary->resumed) / seconds);
}

static void print_text(const struct prepare_summary *summary, double seconds)
{
    int shown = 0;
    printf("%lld files, %lld documents, %lld tokens from %lld bytes; %lld empty skipped, %lld of "
           "invalid UTF-8; %.1f MB/s\n",
           (long long)summary->files, (long long)summary->documents, (long long)summary->tokens,
           (long long)summary->bytes, (long long)summary->skipped_empty,
           (long long)summary->skipped_invalid,
           (double)(summary->bytes - summary->resumed_bytes) / 1e6 / seconds);
    for (int i = 0; i < COUNTS; i++) {
        if (count_of(summary, i) > 0) {
            printf("%s%lld %s", shown++ > 0 ? ", " : "also left out: ", count_of(summary, i),
                   counts[i].text);
        }
    }
    printf("%s", shown > 0 ? "\n" : "");
    if (summary->text_tokens > 0) {
        printf("%.3f bytes per token, ", bytes_per_token(summary));
    }
    printf("%.0f tokens/s\n", (double)(summary->tokens - summary->resumed) / seconds);
}

/* --- the command --- */

static bool asked_to_stop(void)
{
    return signals_caught() != 0;
}

static enum status run(struct prepare_options *request, struct flags *flags)
{
    struct comm world;
    struct prepare_summary summary;
    TRY(comm_open(&world, "auto"));
    signals_install();
    flags->start = step_clock();
    request->world = &world;
    request->stop = asked_to_stop;
    request->note = print_note;
    request->context = flags;
    request->progress = isatty(2) ? print_progress : NULL;
    const enum status status = prepare_run(request, &summary);
    const double seconds = step_clock() - flags->start;
    if (request->progress != NULL && world.rank == 0) {
        fprintf(stderr, "\r\033[K");
    }
    if (status == STATUS_OK && world.rank == 0) {
        (flags->json ? print_json : print_text)(&summary, seconds);
    } else if (world.rank == 0) {
        fprintf(stderr, "switchyard: %s\n", status_message());
    }
    comm_close(&world);
    return status == STATUS_OK ? STATUS_OK : status_fail(status, "%s", "");
}

enum status command_prepare(int argc, char **argv)
{
    struct option_result options;
    struct flags flags = {
        .invalid = "skip", .bad_json = "error", .binary = "skip", .loss = "answers"};
    struct prepare_options request = {.journal_seconds = 10};
    const struct option_spec specs[] = {
        {"--tokenizer", OPTION_TEXT, &request.tokenizer, "bytes|FILE|none",
         "bytes: 256 values and end-of-document; FILE: tokenizer.json or .model; none: given ids"},
        {"--vocab-size", OPTION_INT, &request.vocab_size, "V",
         "how many token ids there are; with none needed"},
        {"--eos", OPTION_TEXT, &request.eos, "TOKEN",
         "ends a document, where the tokenizer doesn't say"},
        {"--output", OPTION_TEXT, &request.output, "OUT.h5", "token file to write"},
        {"--glob", OPTION_TEXTS, &flags.include, "PATTERN",
         "of folders only files like this; may be repeated"},
        {"--exclude", OPTION_TEXTS, &flags.exclude, "PATTERN",
         "of folders no files or folders like this; may be repeated"},
        {"--min-file-bytes", OPTION_INT, &request.filter.least_bytes, "N",
         "leave smaller files out"},
        {"--max-file-bytes", OPTION_INT, &request.filter.most_bytes, "N", "leave larger files out"},
        {"--max-document-bytes", OPTION_INT, &request.most_document_bytes, "N",
         "leave longer documents out (default 268435456)"},
        {"--invalid-utf8", OPTION_TEXT, &flags.invalid, "WHAT",
         "of a text: skip it (default), replace the bytes by U+FFFD, or error; bytes takes any"},
        {"--binary", OPTION_TEXT, &flags.binary, "WHAT",
         "files of folders with a NUL byte: skip (default) or keep"},
        {"--bad-json", OPTION_TEXT, &flags.bad_json, "WHAT",
         "lines that are no document: error (default) or skip"},
        {"--chat-template", OPTION_TEXT, &request.chat_template, "NAME",
         "of \"messages\": mixtral, deepseek_v2, deepseek_v3 (V3 and R1)"},
        {"--loss", OPTION_TEXT, &flags.loss, "WHAT",
         "tokens of conversations that are learnt: answers (default) or all"},
        {"--dedup", OPTION_FLAG, &request.dedup, NULL,
         "of equal documents keep the first; 22 to 43 bytes of memory for each"},
        {"--workers", OPTION_INT, &flags.workers, "N", "threads (default: the allowed cores)"},
        {"--journal-seconds", OPTION_REAL, &request.journal_seconds, "S",
         "how often to note how far it got (default 10)"},
        {"--json", OPTION_FLAG, &flags.json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs,
                      "prepare --tokenizer bytes|FILE|none --output OUT.h5 INPUT...",
                      "Turns text files, folders and .jsonl (\"text\", \"messages\", or \"tokens\" "
                      "and \"loss_mask\"),\nalso as .gz and .zst, into a token file. The same "
                      "command again goes on after an interruption.",
                      0, argc));
    if (options.help) {
        return STATUS_OK;
    }
    if (request.tokenizer == NULL || request.output == NULL || options.word_count == 0) {
        return status_fail(
            STATUS_USAGE,
            "prepare: --tokenizer, --output and at least one input are needed (see switchyard "
            "prepare --help)");
    }
    TRY(parse_flags(&request, &flags));
    request.inputs = options.words;
    request.input_count = options.word_count;
    return run(&request, &flags);
}
