#define _GNU_SOURCE
#include "data/tokenizer.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/utf8.h"
#include "kernels/base/io.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/commands/tokenizer_train.h"

static const size_t MOST_TEXT = (size_t)1 << 31;

struct work {
    const char *tokens; /* --tokens, NULL: not given */
    bool json;
    struct tokenizer tokenizer;
    struct encoder encoder;
    struct id_list ids;
    struct byte_list text;
};

static void print_ids(const struct work *work)
{
    printf("%s", work->json ? "[" : "");
    for (size_t i = 0; i < work->ids.count; i++) {
        printf("%s%u", i > 0 ? "," : "", work->ids.data[i]);
    }
    printf("%s", work->json ? "]\n" : "\n");
}

static enum status encode(struct work *work, const char *text, size_t bytes)
{
    work->ids.count = 0;
    TRY(encoder_run(&work->encoder, text, bytes, &work->ids));
    print_ids(work);
    return STATUS_OK;
}

static enum status encode_line(struct work *work, const char *line, size_t bytes, const char *where)
{
    json_error_t problem;
    json_t *json = json_loadb(line, bytes, JSON_ALLOW_NUL | JSON_DECODE_ANY, &problem);
    const json_t *text = json_is_string(json) ? json : json_object_get(json, "text");
    const enum status status =
        json_is_string(text)
            ? encode(work, json_string_value(text), json_string_length(text))
            : status_fail(STATUS_DATA, "%s: neither a JSON string nor an object with \"text\"",
                          where);
    json_decref(json);
    return status;
}

/* Each line of a stream in turn, without its newline; where: "name:number". */
static enum status each_line(struct work *work, FILE *in, const char *name,
                             enum status (*use)(struct work *, const char *, size_t, const char *))
{
    char *line = NULL, where[4200];
    size_t room = 0;
    enum status status = STATUS_OK;
    for (int64_t number = 1; status == STATUS_OK; number++) {
        const ssize_t bytes = getline(&line, &room, in);
        if (bytes < 0) {
            break;
        }
        const size_t count = (size_t)bytes - (line[bytes - 1] == '\n');
        snprintf(where, sizeof where, "%.4100s:%lld", name, (long long)number);
        status = use(work, line, count, where);
    }
    free(line);
    return status;
}

static enum status encode_file(struct work *work, const char *path)
{
    const size_t length = strlen(path);
    if (length > 6 && strcmp(path + length - 6, ".jsonl") == 0) {
        FILE *file = fopen(path, "r");
        if (file == NULL) {
            return status_fail(STATUS_IO, "%s: cannot open: %s", path, strerror(errno));
        }
        const enum status status = each_line(work, file, path, encode_line);
        fclose(file);
        return status;
    }
    char *text = NULL;
    size_t bytes = 0;
    TRY(io_read_file(path, &text, &bytes, MOST_TEXT));
    const enum status status = encode(work, text, bytes);
    free(text);
    return status;
}

static enum status read_stream(struct byte_list *text, FILE *in)
{
    char piece[65536];
    size_t count;
    while ((count = fread(piece, 1, sizeof piece, in)) > 0) {
        TRY(byte_list_add(text, piece, count));
    }
    return ferror(in) ? status_fail(STATUS_IO, "standard input: cannot be read") : STATUS_OK;
}

/* Bytes that are no UTF-8 become U+FFFD. */
static enum status print_json_text(const struct byte_list *text)
{
    struct byte_list clean = {0};
    enum status status = utf8_replace(&clean, text->data, text->count);
    json_t *json =
        status == STATUS_OK ? json_stringn(clean.count > 0 ? clean.data : "", clean.count) : NULL;
    char *line = json != NULL ? json_dumps(json, JSON_ENCODE_ANY) : NULL;
    if (status == STATUS_OK && line == NULL) {
        status = status_fail(STATUS_RESOURCE, "out of memory for a text");
    }
    if (line != NULL) {
        puts(line);
    }
    free(line);
    json_decref(json);
    byte_list_free(&clean);
    return status;
}

/* "1,2,3" or "[1, 2, 3]" */
static enum status decode_line(struct work *work, const char *line, size_t bytes, const char *where)
{
    const char *at = line, *end = line + bytes;
    work->ids.count = 0;
    while (at < end) {
        char *after = NULL;
        at += strspn(at, "[], \t\r");
        if (at >= end) {
            break;
        }
        errno = 0;
        const unsigned long long id = strtoull(at, &after, 10);
        if (after == at || *at == '-' || errno != 0 || id > UINT32_MAX) {
            return status_fail(STATUS_DATA, "%s: '%.*s' is no token id", where,
                               (int)strcspn(at, ", \t\r\n]"), at);
        }
        TRY(id_list_add(&work->ids, (uint32_t)id));
        at = after;
    }
    work->text.count = 0;
    TRY(tokenizer_decode(&work->tokenizer, work->ids.data, (int64_t)work->ids.count, &work->text));
    if (work->json) {
        return print_json_text(&work->text);
    }
    fwrite(work->text.data, 1, work->text.count, stdout);
    return STATUS_OK;
}

static enum status run(struct work *work, const struct option_result *options)
{
    const int files = options->word_count - 1;
    if (strcmp(options->words[0], "decode") == 0) {
        if (files > 0) {
            return status_fail(STATUS_USAGE,
                               "tokenizer decode: ids come from --tokens or standard "
                               "input, not from '%s'",
                               options->words[1]);
        }
        return work->tokens != NULL
                   ? decode_line(work, work->tokens, strlen(work->tokens), "--tokens")
                   : each_line(work, stdin, "standard input", decode_line);
    }
    TRY(encoder_open(&work->encoder, &work->tokenizer));
    for (int i = 1; i <= files; i++) {
        TRY(encode_file(work, options->words[i]));
    }
    if (files == 0) {
        TRY(read_stream(&work->text, stdin));
        return encode(work, work->text.data, work->text.count);
    }
    return STATUS_OK;
}

enum status command_tokenizer(int argc, char **argv)
{
    const char *name = NULL;
    struct work work = {0};
    struct option_result options;
    const struct option_spec specs[] = {
        {"--tokenizer", OPTION_TEXT, &name, "bytes|FILE", "FILE: tokenizer.json or .model"},
        {"--tokens", OPTION_TEXT, &work.tokens, "1,2,3", "decode: these, not standard input"},
        {"--json", OPTION_FLAG, &work.json, NULL, "print a JSON list, or string, a line each"},
        {0}};
    if (argc > 1 && strcmp(argv[1], "train") == 0) {
        char word[] = "tokenizer train"; /* what errors call it */
        argv[1] = word;
        return tokenizer_train_command(argc - 1, argv + 1);
    }
    TRY(options_parse(
        &options, argc, argv, specs,
        "tokenizer encode|decode|train --tokenizer bytes|FILE [INPUT...]",
        "encode prints the ids of each file, of each line of a .jsonl (\"text\", or "
        "a string),\n"
        "or of standard input; decode prints the text of each line of ids; `tokenizer "
        "train --help`\n"
        "says how to make a tokenizer.",
        1, argc));
    if (options.help) {
        return STATUS_OK;
    }
    if (strcmp(options.words[0], "encode") != 0 && strcmp(options.words[0], "decode") != 0) {
        return status_fail(STATUS_USAGE,
                           "tokenizer: unknown action '%s'; built: encode, decode, train",
                           options.words[0]);
    }
    if (name == NULL) {
        return status_fail(STATUS_USAGE, "tokenizer %s: --tokenizer bytes|FILE is needed",
                           options.words[0]);
    }
    enum status status = tokenizer_open(&work.tokenizer, name);
    status = status == STATUS_OK ? run(&work, &options) : status;
    encoder_close(&work.encoder);
    tokenizer_close(&work.tokenizer);
    id_list_free(&work.ids);
    byte_list_free(&work.text);
    return status;
}
