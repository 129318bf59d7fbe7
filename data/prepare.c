#define _GNU_SOURCE
#include "data/prepare.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/token_store.h"
#include "data/token_writer.h"
#include "data/tokenizer.h"
#include "data/utf8.h"
#include "kernels/base/io.h"

static const size_t MOST_TEXT = (size_t)1 << 31;
enum { MAX_PATH = 4096 };

struct work {
    const struct prepare_options *options;
    struct prepare_summary *summary;
    struct token_writer *writer;
    struct tokenizer tokenizer; /* zeroed where text is not allowed */
    struct encoder encoder;
    struct id_list text;
    struct byte_list clean; /* a text made valid */
    uint32_t *ids;          /* owned, grows */
    uint8_t *mask;          /* owned, grows with ids */
    size_t room;
    bool text_allowed;
};

static enum status make_room(struct work *work, size_t count)
{
    if (count > work->room) {
        uint32_t *ids = realloc(work->ids, count * sizeof *ids);
        work->ids = ids != NULL ? ids : work->ids;
        uint8_t *mask = realloc(work->mask, count);
        work->mask = mask != NULL ? mask : work->mask;
        if (ids == NULL || mask == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for a document of %zu tokens",
                               count);
        }
        work->room = count;
    }
    return STATUS_OK;
}

/* A text that is no UTF-8 is left out, replaced, or an error with its place. */
static enum status check_text(struct work *work, const char **text, size_t *bytes,
                              const char *where, bool *usable)
{
    if (work->tokenizer.kind == TOKENIZER_BYTES) {
        return STATUS_OK;
    }
    const size_t good = utf8_prefix(*text, *bytes);
    if (good == *bytes) {
        return STATUS_OK;
    }
    if (work->options->invalid == PREPARE_INVALID_ERROR) {
        return status_fail(STATUS_DATA, "%s: byte %zu (0x%02x) is no UTF-8", where, good,
                           (unsigned)(unsigned char)(*text)[good]);
    }
    *usable = work->options->invalid == PREPARE_INVALID_REPLACE;
    if (*usable) {
        work->clean.count = 0;
        TRY(utf8_replace(&work->clean, *text, *bytes));
        *text = work->clean.data;
        *bytes = work->clean.count;
    }
    return STATUS_OK;
}

static enum status add_text(struct work *work, const char *text, size_t bytes, const char *where)
{
    if (!work->text_allowed) {
        return status_fail(
            STATUS_DATA,
            "%s: text, but --tokenizer none takes only \"tokens\": use --tokenizer bytes or FILE",
            where);
    }
    if (bytes == 0) {
        work->summary->skipped_empty++;
        return STATUS_OK;
    }
    bool usable = true;
    TRY(check_text(work, &text, &bytes, where, &usable));
    if (!usable) {
        work->summary->skipped_invalid++;
        return STATUS_OK;
    }
    work->text.count = 0;
    const enum status status = encoder_run(&work->encoder, text, bytes, &work->text);
    if (status != STATUS_OK) {
        return status_fail(status, "%s: %s", where, status_message());
    }
    TRY(id_list_add(&work->text, (uint32_t)work->tokenizer.eos_id));
    const int64_t count = (int64_t)work->text.count;
    TRY(token_writer_add(work->writer, work->text.data, NULL, count));
    work->summary->documents++;
    work->summary->tokens += count;
    return STATUS_OK;
}

static enum status add_tokens(struct work *work, const json_t *tokens, const json_t *mask,
                              const char *where)
{
    const size_t count = json_array_size(tokens);
    const bool masked = mask != NULL;
    if (!json_is_array(tokens) || (masked && json_array_size(mask) != count)) {
        return status_fail(STATUS_DATA,
                           "%s: \"tokens\" must be a list, \"loss_mask\" one of the same length",
                           where);
    }
    TRY(make_room(work, count + 1));
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_array_get(tokens, i), *on = masked ? json_array_get(mask, i) : NULL;
        const json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value > UINT32_MAX) {
            return status_fail(STATUS_DATA, "%s: token %zu is not a whole number from 0", where, i);
        }
        if (masked &&
            (!json_is_integer(on) || json_integer_value(on) < 0 || json_integer_value(on) > 1)) {
            return status_fail(STATUS_DATA, "%s: loss_mask %zu is neither 0 nor 1", where, i);
        }
        work->ids[i] = (uint32_t)value;
        work->mask[i] = masked ? (uint8_t)json_integer_value(on) : 1;
    }
    if (count == 0) {
        work->summary->skipped_empty++;
        return STATUS_OK;
    }
    const enum status status =
        token_writer_add(work->writer, work->ids, work->mask, (int64_t)count);
    if (status != STATUS_OK) {
        return status_fail(status, "%s: %s", where, status_message());
    }
    work->summary->documents++;
    work->summary->tokens += (int64_t)count;
    return STATUS_OK;
}

static enum status add_line(struct work *work, const char *line, size_t bytes, const char *where)
{
    json_error_t problem;
    json_t *json = json_loadb(line, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    enum status status;
    const json_t *text = json_object_get(json, "text"), *tokens = json_object_get(json, "tokens");
    if (json == NULL) {
        status = status_fail(STATUS_DATA, "%s: not JSON: %s", where, problem.text);
    } else if (tokens != NULL) {
        status = add_tokens(work, tokens, json_object_get(json, "loss_mask"), where);
    } else if (json_is_string(text)) {
        status = add_text(work, json_string_value(text), json_string_length(text), where);
    } else {
        status = status_fail(STATUS_DATA,
                             json_object_get(json, "messages") != NULL
                                 ? "%s: \"messages\" is not built in this version: give \"text\" "
                                   "or \"tokens\""
                                 : "%s: needs \"text\" or \"tokens\"",
                             where);
    }
    json_decref(json);
    return status;
}

static enum status add_jsonl(struct work *work, const char *path)
{
    char where[MAX_PATH + 32], *line = NULL;
    size_t room = 0;
    FILE *file = fopen(path, "r");
    enum status status = file != NULL
                             ? STATUS_OK
                             : status_fail(STATUS_IO, "%s: cannot open: %s", path, strerror(errno));
    for (int64_t number = 1; status == STATUS_OK; number++) {
        const ssize_t bytes = getline(&line, &room, file);
        if (bytes < 0) {
            break;
        }
        work->summary->bytes += bytes;
        snprintf(where, sizeof where, "%s:%lld", path, (long long)number);
        if (strspn(line, " \t\r\n") < (size_t)bytes) {
            status = add_line(work, line, (size_t)bytes, where);
        }
    }
    free(line);
    if (file != NULL) {
        fclose(file);
    }
    return status;
}

static enum status add_file(struct work *work, const char *path)
{
    const size_t length = strlen(path);
    char *text = NULL;
    size_t bytes = 0;
    work->summary->files++;
    if (length > 6 && strcmp(path + length - 6, ".jsonl") == 0) {
        return add_jsonl(work, path);
    }
    TRY(io_read_file(path, &text, &bytes, MOST_TEXT));
    work->summary->bytes += (int64_t)bytes;
    const enum status status = add_text(work, text, bytes, path);
    free(text);
    return status;
}

/* The output itself, of an earlier run, or what is being written beside it: not an input, though it
 * may lie in an input folder. */
static bool is_output(const struct prepare_options *options, const struct stat *info)
{
    static const char *const suffix[] = {"", ".tmp", ".tokens.tmp", ".mask.tmp"};
    for (size_t i = 0; i < sizeof suffix / sizeof suffix[0]; i++) {
        char name[MAX_PATH + 16];
        struct stat own;
        snprintf(name, sizeof name, "%s%s", options->output, suffix[i]);
        if (stat(name, &own) == 0 && own.st_dev == info->st_dev && own.st_ino == info->st_ino) {
            return true;
        }
    }
    return false;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Of what a folder holds: files and folders, and links to files. Pipes would hang it, links to
 * folders could lead back, and a link that leads nowhere holds no text. */
static bool is_readable(const char *path)
{
    struct stat info;
    if (lstat(path, &info) != 0) {
        return true; /* add_path says why */
    }
    if (S_ISLNK(info.st_mode)) {
        return stat(path, &info) == 0 && S_ISREG(info.st_mode);
    }
    return S_ISREG(info.st_mode) || S_ISDIR(info.st_mode);
}

static enum status add_path(struct work *work, const char *path)
{
    struct stat info;
    struct dirent **entries = NULL;
    if (stat(path, &info) != 0) {
        return status_fail(STATUS_IO, "%s: %s", path, strerror(errno));
    }
    if (!S_ISDIR(info.st_mode)) {
        return is_output(work->options, &info) ? STATUS_OK : add_file(work, path);
    }
    const int count = scandir(path, &entries, NULL, by_name);
    enum status status = count < 0
                             ? status_fail(STATUS_IO, "%s: cannot list: %s", path, strerror(errno))
                             : STATUS_OK;
    for (int i = 0; i < count; i++) {
        char child[MAX_PATH];
        const char *name = entries[i]->d_name;
        snprintf(child, sizeof child, "%s/%s", path, name);
        if (status == STATUS_OK && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
            is_readable(child)) {
            status = add_path(work, child);
        }
        free(entries[i]);
    }
    free(entries);
    return status;
}

/* A loss mask is stored when any .jsonl is among the inputs: only those can have one. */
static bool may_have_mask(const struct prepare_options *options)
{
    for (int i = 0; i < options->input_count; i++) {
        struct stat info;
        const char *name = options->inputs[i], *end = strrchr(name, '.');
        if ((end != NULL && strcmp(end, ".jsonl") == 0) ||
            (stat(name, &info) == 0 && S_ISDIR(info.st_mode))) {
            return true;
        }
    }
    return false;
}

/* An output named among the inputs would be replaced by what is made of the others. */
static enum status check_inputs(const struct prepare_options *options)
{
    for (int i = 0; i < options->input_count; i++) {
        struct stat info;
        if (stat(options->inputs[i], &info) == 0 && is_output(options, &info)) {
            return status_fail(STATUS_USAGE,
                               "prepare: %s is both an input and the output: name another --output",
                               options->inputs[i]);
        }
    }
    return STATUS_OK;
}

/* The tokenizer, what of the request does not go with it, and the end of a document. */
static enum status open_tokenizer(struct work *work)
{
    const struct prepare_options *options = work->options;
    struct tokenizer *tokenizer = &work->tokenizer;
    if (!work->text_allowed) {
        return options->vocab_size >= 2
                   ? STATUS_OK
                   : status_fail(STATUS_USAGE,
                                 "prepare: --tokenizer none needs --vocab-size V, at least 2");
    }
    TRY(tokenizer_open(tokenizer, options->tokenizer));
    if (options->vocab_size != 0 && options->vocab_size < tokenizer->vocab_size) {
        return status_fail(
            STATUS_USAGE, "prepare: --vocab-size %lld is below the %lld of --tokenizer %s",
            (long long)options->vocab_size, (long long)tokenizer->vocab_size, options->tokenizer);
    }
    if (options->eos != NULL) {
        tokenizer->eos_id = tokenizer_find(tokenizer, options->eos);
    }
    if (tokenizer->eos_id < 0) {
        return status_fail(STATUS_USAGE,
                           "prepare: %s: %s%s ends a document: name a token of the tokenizer by "
                           "--eos TOKEN",
                           options->tokenizer,
                           options->eos != NULL ? "no token "
                                                : "nothing says "
                                                  "which token",
                           options->eos != NULL ? options->eos : "");
    }
    return encoder_open(&work->encoder, tokenizer);
}

static void work_free(struct work *work)
{
    encoder_close(&work->encoder);
    tokenizer_close(&work->tokenizer);
    id_list_free(&work->text);
    byte_list_free(&work->clean);
    free(work->ids);
    free(work->mask);
}

static enum status write_all(struct work *work)
{
    const struct prepare_options *options = work->options;
    const struct tokenizer *tokenizer = &work->tokenizer;
    const bool text = work->text_allowed;
    const struct token_writer_options writer_options = {
        .vocab_size = options->vocab_size > 0 ? options->vocab_size : tokenizer->vocab_size,
        .eos_id = text ? tokenizer->eos_id : -1,
        .tokenizer = text ? tokenizer_name(tokenizer) : "none",
        .tokenizer_hash = text ? tokenizer->hash : "none",
        .tokenizer_file = tokenizer->file.data,
        .tokenizer_file_bytes = tokenizer->file.count,
        .loss_mask = may_have_mask(options)};
    enum status status = token_writer_open(&work->writer, options->output, &writer_options);
    for (int i = 0; i < options->input_count && status == STATUS_OK; i++) {
        status = add_path(work, options->inputs[i]);
    }
    if (status != STATUS_OK) {
        token_writer_abandon(work->writer);
        return status;
    }
    return token_writer_close(work->writer);
}

enum status prepare_run(const struct prepare_options *options, struct prepare_summary *summary)
{
    struct work work = {.options = options,
                        .summary = summary,
                        .text_allowed = strcmp(options->tokenizer, "none") != 0};
    *summary = (struct prepare_summary){0};
    enum status status = open_tokenizer(&work);
    status = status == STATUS_OK ? check_inputs(options) : status;
    status = status == STATUS_OK ? write_all(&work) : status;
    work_free(&work);
    return status;
}
