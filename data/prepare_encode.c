#include "data/prepare_encode.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/utf8.h"

enum { MAX_WHERE = 4096 + 32 };

/* --- rules --- */

static enum status find_end(struct prepare_rules *rules)
{
    const struct prepare_options *options = rules->options;
    struct tokenizer *tokenizer = &rules->tokenizer;
    if (options->eos != NULL) {
        tokenizer->eos_id = tokenizer_find(tokenizer, options->eos);
    }
    return tokenizer->eos_id >= 0
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "prepare: %s: %s%s ends a document: name a token of the tokenizer by "
                             "--eos TOKEN",
                             options->tokenizer,
                             options->eos != NULL ? "no token " : "nothing says which token",
                             options->eos != NULL ? options->eos : "");
}

enum status prepare_rules_open(struct prepare_rules *rules, const struct prepare_options *options)
{
    struct tokenizer *tokenizer = &rules->tokenizer;
    *rules = (struct prepare_rules){.options = options,
                                    .text_allowed = strcmp(options->tokenizer, "none") != 0,
                                    .vocab_size = options->vocab_size};
    if (!rules->text_allowed) {
        rules->width = token_writer_width(options->vocab_size);
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
    rules->vocab_size = options->vocab_size > 0 ? options->vocab_size : tokenizer->vocab_size;
    rules->width = token_writer_width(rules->vocab_size);
    TRY(find_end(rules));
    return options->chat_template != NULL
               ? chat_open(&rules->chat, options->chat_template, tokenizer)
               : STATUS_OK;
}

bool prepare_rules_pieces(const struct prepare_rules *rules)
{
    return rules->text_allowed && rules->tokenizer.kind == TOKENIZER_BYTES && rules->width == 2 &&
           !rules->options->dedup;
}

void prepare_rules_close(struct prepare_rules *rules)
{
    tokenizer_close(&rules->tokenizer);
    *rules = (struct prepare_rules){0};
}

enum status prepare_worker_open(struct prepare_worker *worker, const struct prepare_rules *rules)
{
    *worker = (struct prepare_worker){.rules = rules};
    return rules->text_allowed ? encoder_open(&worker->encoder, &rules->tokenizer) : STATUS_OK;
}

void prepare_worker_close(struct prepare_worker *worker)
{
    encoder_close(&worker->encoder);
    document_line_free(&worker->line);
    id_list_free(&worker->ids);
    byte_list_free(&worker->mask);
    byte_list_free(&worker->clean);
    *worker = (struct prepare_worker){0};
}

/* --- blocks --- */

static enum status reserve_documents(struct prepare_block *block, int64_t room)
{
    if (room > block->room) {
        int64_t *lengths = realloc(block->lengths, (size_t)room * sizeof *lengths);
        block->lengths = lengths != NULL ? lengths : block->lengths;
        struct hash128 *hashes = realloc(block->hashes, (size_t)room * sizeof *hashes);
        block->hashes = hashes != NULL ? hashes : block->hashes;
        if (lengths == NULL || hashes == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for %lld documents",
                               (long long)room);
        }
        block->room = room;
    }
    return STATUS_OK;
}

/* Ones up to the token `count`. */
static enum status extend_mask(struct prepare_block *block, size_t count)
{
    const size_t more = count - block->mask.count;
    TRY(byte_list_reserve(&block->mask, more));
    if (more > 0) {
        memset(block->mask.data + block->mask.count, 1, more);
    }
    block->mask.count = count;
    return STATUS_OK;
}

/* Of the ids and, where not all of them count, the mask. */
static struct hash128 hash_document(const void *tokens, size_t bytes, const char *mask,
                                    size_t count)
{
    struct hash128 hash = hash_bytes_128(tokens, bytes, 0);
    if (mask != NULL && memchr(mask, 0, count) != NULL) {
        const struct hash128 more = hash_bytes_128(mask, count, 1);
        hash.low ^= more.low;
        hash.high += more.high;
    }
    return hash;
}

/* The document whose tokens were just added, from `begin` on. mask: [its tokens] or NULL. */
static enum status end_document(struct prepare_worker *worker, struct prepare_block *block,
                                size_t begin, const char *mask, size_t text_bytes)
{
    const size_t width = (size_t)worker->rules->width, bytes = block->tokens.count - begin,
                 count = bytes / width;
    if (mask != NULL) {
        TRY(extend_mask(block, begin / width));
        TRY(byte_list_add(&block->mask, mask, count));
        block->masked = true;
    }
    if (worker->rules->options->dedup) {
        block->hashes[block->documents] =
            hash_document(block->tokens.data + begin, bytes, mask, count);
    }
    block->lengths[block->documents++] = (int64_t)count;
    block->counts.documents++;
    block->counts.tokens += (int64_t)count;
    block->counts.text_bytes += (int64_t)text_bytes;
    block->counts.text_tokens += text_bytes > 0 ? (int64_t)count : 0;
    return STATUS_OK;
}

static enum status add_ids(struct prepare_worker *worker, struct prepare_block *block,
                           const struct id_list *ids)
{
    const size_t width = (size_t)worker->rules->width;
    TRY(byte_list_reserve(&block->tokens, ids->count * width));
    char *to = block->tokens.data + block->tokens.count;
    if (width == 2) {
        for (size_t i = 0; i < ids->count; i++) {
            const uint16_t id = (uint16_t)ids->data[i];
            memcpy(to + 2 * i, &id, sizeof id);
        }
    } else {
        memcpy(to, ids->data, ids->count * width);
    }
    block->tokens.count += ids->count * width;
    return STATUS_OK;
}

/* Bytes are ids already: they only grow wider. `ends`: the document does here. */
static enum status add_bytes(struct prepare_block *block, const char *text, size_t bytes, bool ends)
{
    TRY(byte_list_reserve(&block->tokens, 2 * bytes + 2));
    uint16_t *to = (uint16_t *)(void *)(block->tokens.data + block->tokens.count);
    for (size_t i = 0; i < bytes; i++) {
        to[i] = (unsigned char)text[i];
    }
    to[bytes] = TOKENIZER_BYTES_EOS; /* there is room for it either way */
    block->tokens.count += 2 * (bytes + ends);
    return STATUS_OK;
}

void prepare_block_keep(struct prepare_block *block, const bool *keep, int width)
{
    size_t from = 0, to = 0;
    int64_t kept = 0;
    for (int64_t d = 0; d < block->documents; d++) {
        const size_t count = (size_t)block->lengths[d], bytes = count * (size_t)width;
        if (!keep[d]) {
            block->counts.duplicates++;
            block->counts.documents--;
            block->counts.tokens -= (int64_t)count;
        } else {
            memmove(block->tokens.data + to * (size_t)width,
                    block->tokens.data + from * (size_t)width, bytes);
            if (from < block->mask.count) {
                memmove(block->mask.data + to, block->mask.data + from, count);
            }
            block->lengths[kept] = block->lengths[d];
            block->hashes[kept++] = block->hashes[d];
            to += count;
        }
        from += count;
    }
    block->tokens.count = to * (size_t)width;
    block->documents = kept;
}

void prepare_block_free(struct prepare_block *block)
{
    byte_list_free(&block->tokens);
    byte_list_free(&block->mask);
    free(block->lengths);
    free(block->hashes);
    *block = (struct prepare_block){0};
}

/* --- documents --- */

/* A text that is no UTF-8 is left out, replaced, or an error with its place in it. */
static enum status check_text(struct prepare_worker *worker, const char **text, size_t *bytes,
                              bool *usable)
{
    const enum prepare_invalid invalid = worker->rules->options->invalid;
    const size_t good = utf8_prefix(*text, *bytes);
    *usable = true;
    if (good == *bytes) {
        return STATUS_OK;
    }
    if (invalid == PREPARE_INVALID_ERROR) {
        worker->refused = true;
        return status_fail(STATUS_DATA, "byte %zu (0x%02x) is no UTF-8", good,
                           (unsigned)(unsigned char)(*text)[good]);
    }
    *usable = invalid == PREPARE_INVALID_REPLACE;
    if (*usable) {
        worker->clean.count = 0;
        TRY(utf8_replace(&worker->clean, *text, *bytes));
        *text = worker->clean.data;
        *bytes = worker->clean.count;
    }
    return STATUS_OK;
}

static enum status add_text(struct prepare_worker *worker, struct prepare_block *block,
                            const char *text, size_t bytes)
{
    const struct prepare_rules *rules = worker->rules;
    const size_t begin = block->tokens.count;
    if (!rules->text_allowed) {
        worker->refused = true;
        return status_fail(STATUS_DATA, "text, but --tokenizer none takes only \"tokens\": use "
                                        "--tokenizer bytes or FILE");
    }
    if (bytes == 0) {
        block->counts.skipped_empty++;
        return STATUS_OK;
    }
    if (rules->tokenizer.kind == TOKENIZER_BYTES && rules->width == 2) {
        TRY(add_bytes(block, text, bytes, true));
    } else {
        worker->ids.count = 0;
        TRY(encoder_run(&worker->encoder, text, bytes, &worker->ids));
        TRY(id_list_add(&worker->ids, (uint32_t)rules->tokenizer.eos_id));
        TRY(add_ids(worker, block, &worker->ids));
    }
    return end_document(worker, block, begin, NULL, bytes);
}

static enum status add_tokens(struct prepare_worker *worker, struct prepare_block *block)
{
    const struct document_line *line = &worker->line;
    const size_t begin = block->tokens.count;
    for (size_t i = 0; i < line->ids.count; i++) {
        if (line->ids.data[i] >= worker->rules->vocab_size) {
            return status_fail(STATUS_DATA, "token id %u is not below the vocabulary size %lld",
                               line->ids.data[i], (long long)worker->rules->vocab_size);
        }
    }
    if (line->ids.count == 0) {
        block->counts.skipped_empty++;
        return STATUS_OK;
    }
    TRY(add_ids(worker, block, &line->ids));
    return end_document(worker, block, begin, line->mask.count > 0 ? line->mask.data : NULL, 0);
}

static enum status add_conversation(struct prepare_worker *worker, struct prepare_block *block)
{
    const struct prepare_rules *rules = worker->rules;
    const struct document_line *line = &worker->line;
    const size_t begin = block->tokens.count;
    size_t bytes = 0;
    bool answered = false;
    if (rules->chat.template == NULL) {
        worker->refused = true;
        return status_fail(STATUS_DATA, "\"messages\" need %s",
                           rules->text_allowed
                               ? "--chat-template mixtral, deepseek_v2 or deepseek_v3"
                               : "a tokenizer and --chat-template, not --tokenizer none");
    }
    for (int64_t i = 0; i < line->message_count; i++) {
        answered = answered || line->messages[i].role == CHAT_ASSISTANT;
        bytes += line->messages[i].bytes;
    }
    if (!answered && !rules->options->count_prompt) {
        block->counts.skipped_unanswered++;
        return STATUS_OK;
    }
    worker->ids.count = worker->mask.count = 0;
    TRY(chat_encode(&rules->chat, &worker->encoder, line->messages, line->message_count,
                    &worker->ids, &worker->mask));
    TRY(add_ids(worker, block, &worker->ids));
    return end_document(worker, block, begin,
                        rules->options->count_prompt ? NULL : worker->mask.data, bytes);
}

static bool is_blank(const char *line, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (memchr(" \t\r\n", line[i], 4) == NULL) {
            return false;
        }
    }
    return true;
}

static enum status add_line(struct prepare_worker *worker, struct prepare_block *block,
                            const char *data, size_t bytes)
{
    struct document_line *line = &worker->line;
    bool usable = true;
    if (is_blank(data, bytes)) {
        return STATUS_OK;
    }
    TRY(check_text(worker, &data, &bytes, &usable));
    if (!usable) {
        block->counts.skipped_invalid++;
        return STATUS_OK;
    }
    TRY(document_parse(line, data, bytes));
    switch (line->kind) {
    case DOCUMENT_TOKENS:
        return add_tokens(worker, block);
    case DOCUMENT_MESSAGES:
        return add_conversation(worker, block);
    case DOCUMENT_TEXT:
        break;
    }
    return add_text(worker, block, line->text, line->text_bytes);
}

/* A file that is one text. */
static enum status add_file(struct prepare_worker *worker, struct prepare_block *block,
                            const char *text, size_t bytes)
{
    bool usable = true;
    if (worker->rules->text_allowed && worker->rules->tokenizer.kind != TOKENIZER_BYTES) {
        TRY(check_text(worker, &text, &bytes, &usable));
    }
    block->counts.skipped_invalid += !usable;
    return usable ? add_text(worker, block, text, bytes) : STATUS_OK;
}

/* A file of a folder with a NUL in it is no text. */
static bool is_binary(const struct prepare_rules *rules, const struct document *document,
                      const char *data)
{
    return !rules->options->keep_binary && !rules->files->file[document->file].named &&
           document->bytes > 0 && memchr(data, 0, document->bytes) != NULL;
}

/* A piece of a long text, where pieces are allowed: bytes become ids, whatever they are. */
static enum status add_piece(struct prepare_block *block, const char *data,
                             const struct document *document)
{
    block->continues = document->continues;
    block->goes_on = document->goes_on;
    block->binary = document->binary;
    if (document->binary) {
        block->counts.skipped_binary++;
        return STATUS_OK;
    }
    TRY(add_bytes(block, data, document->bytes, !document->goes_on));
    const int64_t count = (int64_t)block->tokens.count / 2;
    if (!document->goes_on) {
        block->lengths[block->documents++] = count; /* of what lies here */
        block->counts.documents++;
    }
    block->counts.tokens = block->counts.text_tokens = count;
    block->counts.text_bytes = (int64_t)document->bytes;
    return STATUS_OK;
}

static enum status add_document(struct prepare_worker *worker, struct prepare_block *block,
                                const struct document_batch *batch, const struct document *document)
{
    const char *data = document->bytes > 0 ? batch->text.data + document->at : "";
    if (document->continues || document->goes_on) {
        return add_piece(block, data, document);
    }
    if (document->too_long) {
        const int most = (int)(sizeof block->notes / sizeof block->notes[0]);
        block->counts.skipped_long++;
        if (block->note_count < most) {
            block->notes[block->note_count++] = *document;
        }
        return STATUS_OK;
    }
    if (batch->lines) {
        const int64_t documents = block->documents;
        const enum status status = add_line(worker, block, data, document->bytes);
        const bool skip =
            status == STATUS_DATA && worker->rules->options->skip_broken && !worker->refused;
        assert(status == STATUS_OK || block->documents == documents);
        block->counts.skipped_broken += skip;
        return skip ? STATUS_OK : status;
    }
    if (is_binary(worker->rules, document, data)) {
        block->counts.skipped_binary++;
        return STATUS_OK;
    }
    return add_file(worker, block, data, document->bytes);
}

enum status prepare_encode(struct prepare_worker *worker, const struct document_batch *batch,
                           struct prepare_block *block)
{
    block->tokens.count = block->mask.count = 0;
    block->documents = block->note_count = 0;
    block->masked = block->continues = block->goes_on = block->binary = false;
    block->counts =
        (struct prepare_summary){.bytes = batch->input_bytes, .disk_bytes = batch->disk_bytes};
    TRY(reserve_documents(block, batch->count));
    for (int64_t d = 0; d < batch->count; d++) {
        const struct document *document = &batch->document[d];
        const enum status status = add_document(worker, block, batch, document);
        if (status != STATUS_OK) {
            char where[MAX_WHERE];
            document_where(worker->rules->files, document, where, sizeof where);
            return status_fail(status, "%s: %s", where, status_message());
        }
    }
    return block->masked ? extend_mask(block, block->tokens.count / (size_t)worker->rules->width)
                         : STATUS_OK;
}
