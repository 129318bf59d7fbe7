#include "trainer/commands/tokenizer_train.h"

#include <stdio.h>
#include <string.h>

#include "data/document_line.h"
#include "data/documents.h"
#include "data/tokenizer_train.h"
#include "kernels/base/io.h"
#include "trainer/commands/options.h"

enum { MOST_IDS = 1 << 24 };
static const int64_t MOST_DOCUMENT = (int64_t)1 << 31;

struct work {
    const char *output, *pattern;
    int64_t vocab_size;
    struct option_texts special;
    bool json;
    struct tokenizer_train train;
    struct input_files files;
    struct documents documents;
    struct document_batch batch;
    struct document_line line;
    int64_t skipped; /* files with NULs in them, documents that are no text or too long */
};

static enum status add_line(struct work *work, const struct document *document)
{
    const enum status status =
        document_parse(&work->line, work->batch.text.data + document->at, document->bytes);
    if (status != STATUS_OK) {
        char where[4200];
        document_where(&work->files, document, where, sizeof where);
        return status_fail(status, "%s: %s", where, status_message());
    }
    if (work->line.kind == DOCUMENT_TEXT) {
        return tokenizer_train_add(&work->train, work->line.text, work->line.text_bytes);
    }
    for (int64_t i = 0; work->line.kind == DOCUMENT_MESSAGES && i < work->line.message_count; i++) {
        const struct chat_message *message = &work->line.messages[i];
        TRY(tokenizer_train_add(&work->train, message->text, message->bytes));
    }
    work->skipped += work->line.kind == DOCUMENT_TOKENS;
    return STATUS_OK;
}

static enum status add_document(struct work *work, const struct document *document)
{
    const char *text = work->batch.text.data + document->at;
    if (document->too_long) {
        work->skipped++;
        return STATUS_OK;
    }
    if (work->batch.lines) {
        return add_line(work, document);
    }
    if (document->bytes > 0 && memchr(text, '\0', document->bytes) != NULL) {
        work->skipped++;
        return STATUS_OK;
    }
    return tokenizer_train_add(&work->train, text, document->bytes);
}

static enum status read_all(struct work *work, char *const *inputs, int count)
{
    const struct input_filter filter = {.output = work->output};
    bool more = true;
    TRY(io_check_output(work->output));
    TRY(input_files_list(&work->files, inputs, count, &filter));
    TRY(documents_open(&work->documents, &work->files, MOST_DOCUMENT, 0, 1));
    for (;;) {
        TRY(documents_next(&work->documents, &work->batch, &more));
        if (!more) {
            break;
        }
        for (int64_t i = 0; i < work->batch.count; i++) {
            TRY(add_document(work, &work->batch.document[i]));
        }
    }
    return work->train.bytes > 0
               ? STATUS_OK
               : status_fail(STATUS_DATA, "tokenizer train: the inputs hold no text");
}

static enum status write_out(struct work *work)
{
    struct byte_list text = {0};
    int64_t size = 0;
    enum status status = tokenizer_train_finish(&work->train, &text, &size);
    if (status == STATUS_OK) {
        status = io_write_file(work->output, text.data, text.count);
    }
    byte_list_free(&text);
    TRY(status);
    const struct tokenizer_train *train = &work->train;
    if (work->json) {
        printf("{\"vocab_size\":%lld,\"merges\":%lld,\"special\":%d,\"texts\":%lld,\"bytes\":%lld,"
               "\"words\":%u,\"skipped\":%lld}\n",
               (long long)size, (long long)train->merges, train->special_count,
               (long long)train->texts, (long long)train->bytes, train->words.word_count,
               (long long)work->skipped);
        return STATUS_OK;
    }
    printf("%s: %lld tokens: %d special, 256 bytes, %lld of %lld merges; from %lld texts of %lld "
           "bytes, %u different words\n",
           work->output, (long long)size, train->special_count,
           (long long)(size - 256 - train->special_count), (long long)train->merges,
           (long long)train->texts, (long long)train->bytes, train->words.word_count);
    if (work->skipped > 0) {
        printf("skipped: %lld, which are no text\n", (long long)work->skipped);
    }
    if (size < work->vocab_size) {
        printf("fewer than the %lld asked for: no other pair occurs twice in the text\n",
               (long long)work->vocab_size);
    }
    return STATUS_OK;
}

static enum status check(const struct work *work)
{
    if (work->output == NULL || work->vocab_size == 0) {
        return status_fail(STATUS_USAGE,
                           "tokenizer train: --vocab-size N and --output FILE are needed");
    }
    return work->vocab_size > 0 && work->vocab_size <= MOST_IDS
               ? STATUS_OK
               : status_fail(STATUS_USAGE, "tokenizer train: --vocab-size %lld: from 257 to %d",
                             (long long)work->vocab_size, MOST_IDS);
}

enum status tokenizer_train_command(int argc, char **argv)
{
    struct work work = {.pattern = tokenizer_train_pattern(0)};
    struct option_result options;
    const struct option_spec specs[] = {
        {"--vocab-size", OPTION_INT, &work.vocab_size, "N", "ids in all, special tokens included"},
        {"--output", OPTION_TEXT, &work.output, "FILE", "the tokenizer.json to write"},
        {"--special", OPTION_TEXTS, &work.special, "TOKEN", "a special token; may be repeated"},
        {"--pattern", OPTION_TEXT, &work.pattern, "NAME",
         "cuts text into words: deepseek-v3, llama3,\n"
         "                         qwen2 or gpt2 (default deepseek-v3)"},
        {"--json", OPTION_FLAG, &work.json, NULL, "print the figures as a JSON object"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs,
                      "tokenizer train --vocab-size N --output FILE INPUT...",
                      "Learns a byte-level BPE from text files, folders and .jsonl (.gz, .zst "
                      "too). <|endoftext|> is\n"
                      "added unless a special token is known to end documents.",
                      1, argc));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(check(&work));
    enum status status = tokenizer_train_open(&work.train, work.vocab_size, work.pattern,
                                              work.special.text, work.special.count);
    if (status == STATUS_USAGE) {
        status = status_fail(status, "tokenizer train: %s", status_message());
    }
    status = status == STATUS_OK ? read_all(&work, options.words, options.word_count) : status;
    status = status == STATUS_OK ? write_out(&work) : status;
    tokenizer_train_close(&work.train);
    documents_close(&work.documents);
    document_batch_free(&work.batch);
    document_line_free(&work.line);
    input_files_free(&work.files);
    return status;
}
