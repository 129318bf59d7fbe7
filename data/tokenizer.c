#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "data/compose.h"
#include "data/tokenizer_json.h"
#include "data/utf8.h"
#include "kernels/base/hash.h"
#include "kernels/base/io.h"

static const size_t MOST_FILE = (size_t)1 << 28;

static int64_t first_found(const struct tokenizer *tokenizer, const char *const *names)
{
    int64_t id = -1;
    for (; *names != NULL && id < 0; names++) {
        id = tokenizer_find(tokenizer, *names);
    }
    return id;
}

static void guess_ends(struct tokenizer *tokenizer)
{
    static const char *const begin[] = {"<｜begin▁of▁sentence｜>", "<|begin_of_text|>", "<s>",
                                        "<bos>", NULL};
    static const char *const end[] = {
        "<｜end▁of▁sentence｜>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", NULL};
    tokenizer->bos_id = first_found(tokenizer, begin);
    tokenizer->eos_id = first_found(tokenizer, end);
}

/* A SentencePiece model; its pieces are kept for tokenizer_find. */
static enum status read_model(struct tokenizer *tokenizer, const char *name, const char *data,
                              size_t bytes)
{
    char why[256] = "";
    tokenizer->kind = TOKENIZER_SENTENCEPIECE;
    tokenizer->sentencepiece = sentencepiece_open(data, bytes, why, sizeof why);
    if (tokenizer->sentencepiece == NULL) {
        return status_fail(STATUS_DATA,
                           "%s: neither a tokenizer.json nor a SentencePiece model: %s", name, why);
    }
    tokenizer->vocab_size = sentencepiece_size(tokenizer->sentencepiece);
    tokenizer->bos_id = sentencepiece_bos(tokenizer->sentencepiece);
    tokenizer->eos_id = sentencepiece_eos(tokenizer->sentencepiece);
    for (int id = 0; id < (int)tokenizer->vocab_size; id++) {
        size_t count = 0;
        const char *piece = sentencepiece_piece(tokenizer->sentencepiece, id, &count);
        TRY(token_table_add(&tokenizer->tokens, id, piece, count));
    }
    return STATUS_OK;
}

/* A tokenizer.json is one JSON object; white space alone is handed to that reader as well, for its
 * message. data need not end in a zero. */
static bool looks_like_json(const char *data, size_t bytes)
{
    size_t i = 0;
    while (i < bytes && memchr(" \t\r\n", data[i], 4) != NULL) {
        i++;
    }
    return i == bytes || data[i] == '{';
}

enum status tokenizer_read(struct tokenizer *tokenizer, const char *name, const char *data,
                           size_t bytes)
{
    *tokenizer = (struct tokenizer){.kind = TOKENIZER_BPE, .bos_id = -1, .eos_id = -1};
    TRY(byte_list_add(&tokenizer->file, data, bytes));
    hash_hex(tokenizer->hash, hash_bytes(data, bytes));
    if (!looks_like_json(data, bytes)) {
        return read_model(tokenizer, name, data, bytes);
    }
    TRY(tokenizer_json_read(tokenizer, name, data, bytes));
    guess_ends(tokenizer);
    return STATUS_OK;
}

enum status tokenizer_open(struct tokenizer *tokenizer, const char *name)
{
    char *data = NULL;
    size_t bytes = 0;
    *tokenizer = (struct tokenizer){.kind = TOKENIZER_BYTES,
                                    .vocab_size = TOKENIZER_BYTES_VOCAB,
                                    .bos_id = -1,
                                    .eos_id = TOKENIZER_BYTES_EOS,
                                    .hash = "bytes"};
    if (strcmp(name, "bytes") == 0) {
        return STATUS_OK;
    }
    TRY(io_check_regular(name));
    TRY(io_read_file(name, &data, &bytes, MOST_FILE));
    const enum status status = tokenizer_read(tokenizer, name, data, bytes);
    free(data);
    TRY(status);
    return tokenizer->kind == TOKENIZER_BPE ? tokenizer_json_config(tokenizer, name) : STATUS_OK;
}

void tokenizer_close(struct tokenizer *tokenizer)
{
    byte_list_free(&tokenizer->file);
    token_table_free(&tokenizer->tokens);
    phrases_free(&tokenizer->raw);
    phrases_free(&tokenizer->normalized);
    splitter_close(tokenizer->splitter);
    bpe_free(&tokenizer->bpe);
    sentencepiece_close(tokenizer->sentencepiece);
    *tokenizer = (struct tokenizer){0};
}

const char *tokenizer_name(const struct tokenizer *tokenizer)
{
    static const char *const names[] = {"bytes", "bpe", "sentencepiece"};
    return names[tokenizer->kind];
}

int64_t tokenizer_find(const struct tokenizer *tokenizer, const char *text)
{
    return token_table_find(&tokenizer->tokens, text, strlen(text));
}

enum status encoder_open(struct encoder *encoder, const struct tokenizer *tokenizer)
{
    *encoder = (struct encoder){.tokenizer = tokenizer};
    return splitter_scratch_open(&encoder->split);
}

void encoder_close(struct encoder *encoder)
{
    splitter_scratch_close(encoder->split);
    bpe_scratch_free(&encoder->bpe);
    byte_list_free(&encoder->composed);
    *encoder = (struct encoder){0};
}

static enum status add_word(void *context, const char *word, size_t bytes)
{
    struct encoder *encoder = context;
    return bpe_encode(&encoder->tokenizer->bpe, &encoder->bpe, word, bytes, encoder->out);
}

/* Applies `each` to the text between the phrases, and adds their ids. */
static enum status between(struct encoder *encoder, const struct phrases *phrases, const char *text,
                           size_t bytes,
                           enum status (*each)(struct encoder *, const char *, size_t))
{
    size_t done = 0, at = 0, length = 0;
    int32_t id;
    while ((id = phrases_find(phrases, text, bytes, done, &at, &length)) >= 0) {
        TRY(each(encoder, text + done, at - done));
        TRY(encoder->out != NULL ? id_list_add(encoder->out, (uint32_t)id) : STATUS_OK);
        done = at + length;
    }
    return each(encoder, text + done, bytes - done);
}

static enum status add_normalized(struct encoder *encoder, const char *text, size_t bytes)
{
    return splitter_run(encoder->tokenizer->splitter, encoder->split, text, bytes, encoder->use,
                        encoder->context);
}

static enum status add_valid(struct encoder *encoder, const char *text, size_t bytes)
{
    const struct tokenizer *tokenizer = encoder->tokenizer;
    if (!tokenizer->nfc || !compose_changes(text, bytes)) {
        return between(encoder, &tokenizer->normalized, text, bytes, add_normalized);
    }
    encoder->composed.count = 0;
    TRY(compose(&encoder->composed, text, bytes));
    return between(encoder, &tokenizer->normalized, encoder->composed.data, encoder->composed.count,
                   add_normalized);
}

/* Runs of UTF-8, and what lies between them. */
static enum status add_raw(struct encoder *encoder, const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        const size_t good = utf8_prefix(text + at, bytes - at);
        if (good > 0) {
            TRY(add_valid(encoder, text + at, good));
        }
        at += good;
        size_t bad = 0;
        while (at + bad < bytes && utf8_length(text + at + bad, bytes - at - bad) == 0) {
            bad++;
        }
        TRY(bad > 0 ? encoder->use(encoder->context, text + at, bad) : STATUS_OK);
        at += bad;
    }
    return STATUS_OK;
}

static int add_id(void *list, int id)
{
    return id_list_add(list, (uint32_t)id) == STATUS_OK ? 0 : 1;
}

enum status encoder_run(struct encoder *encoder, const char *text, size_t bytes,
                        struct id_list *out)
{
    if (encoder->tokenizer->kind == TOKENIZER_BYTES) {
        TRY(id_list_reserve(out, bytes));
        for (size_t i = 0; i < bytes; i++) {
            out->data[out->count++] = (unsigned char)text[i];
        }
        return STATUS_OK;
    }
    encoder->out = out;
    encoder->use = add_word;
    encoder->context = encoder;
    if (encoder->tokenizer->kind == TOKENIZER_SENTENCEPIECE) {
        return sentencepiece_encode(encoder->tokenizer->sentencepiece, text, bytes, add_id, out) ==
                       0
                   ? STATUS_OK
                   : status_fail(STATUS_RESOURCE,
                                 "SentencePiece cannot encode a text of %zu bytes: out of memory?",
                                 bytes);
    }
    return between(encoder, &encoder->tokenizer->raw, text, bytes, add_raw);
}

enum status encoder_words(struct encoder *encoder, const char *text, size_t bytes,
                          enum status (*use)(void *context, const char *word, size_t bytes),
                          void *context)
{
    encoder->out = NULL;
    encoder->use = use;
    encoder->context = context;
    return between(encoder, &encoder->tokenizer->raw, text, bytes, add_raw);
}

/* The bytes of an id; NULL when no token has it. `byte` is room for one. */
static const char *text_of(const struct tokenizer *tokenizer, int64_t id, char *byte, size_t *bytes)
{
    if (tokenizer->kind != TOKENIZER_BYTES) {
        return token_table_text(&tokenizer->tokens, id, bytes);
    }
    if (id == TOKENIZER_BYTES_EOS) {
        *bytes = 5;
        return "<eos>";
    }
    *byte = (char)id;
    *bytes = 1;
    return id >= 0 && id < TOKENIZER_BYTES_EOS ? byte : NULL;
}

static int add_text(void *list, const char *text, size_t bytes)
{
    return byte_list_add(list, text, bytes) == STATUS_OK ? 0 : 1;
}

/* What a piece means depends on its neighbours: all at once. Ids that are none are left out. */
static enum status decode_pieces(const struct tokenizer *tokenizer, const int32_t *ids,
                                 int64_t count, struct byte_list *out)
{
    int *known = malloc(((size_t)count + 1) * sizeof *known);
    size_t used = 0;
    for (int64_t i = 0; known != NULL && i < count; i++) {
        known[used] = ids[i];
        used += ids[i] >= 0 && ids[i] < tokenizer->vocab_size;
    }
    const int failed = known == NULL || sentencepiece_decode(tokenizer->sentencepiece, known, used,
                                                             add_text, out) != 0;
    free(known);
    return failed ? status_fail(STATUS_RESOURCE, "cannot decode %lld pieces: out of memory?",
                                (long long)count)
                  : STATUS_OK;
}

static enum status decode_checked(const struct tokenizer *tokenizer, const uint32_t *ids,
                                  int64_t count, struct byte_list *out)
{
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] >= tokenizer->vocab_size) {
            return status_fail(STATUS_DATA, "token id %u is none of the tokenizer's", ids[i]);
        }
    }
    return decode_pieces(tokenizer, (const int32_t *)ids, count, out);
}

enum status tokenizer_decode(const struct tokenizer *tokenizer, const uint32_t *ids, int64_t count,
                             struct byte_list *out)
{
    if (tokenizer->kind == TOKENIZER_SENTENCEPIECE) {
        return decode_checked(tokenizer, ids, count, out);
    }
    for (int64_t i = 0; i < count; i++) {
        char byte;
        size_t bytes = 0;
        const char *text = text_of(tokenizer, ids[i], &byte, &bytes);
        if (text == NULL) {
            return status_fail(STATUS_DATA, "token id %u is none of the tokenizer's", ids[i]);
        }
        TRY(byte_list_add(out, text, bytes));
    }
    return STATUS_OK;
}

enum status tokenizer_show(const struct tokenizer *tokenizer, const int32_t *ids, int64_t count,
                           struct byte_list *out)
{
    const size_t before = out->count;
    TRY(byte_list_add(out, "", 0)); /* at least a NUL */
    if (tokenizer->kind == TOKENIZER_SENTENCEPIECE) {
        TRY(decode_pieces(tokenizer, ids, count, out));
    }
    for (int64_t i = 0; tokenizer->kind != TOKENIZER_SENTENCEPIECE && i < count; i++) {
        char byte;
        size_t bytes = 0;
        const char *text = text_of(tokenizer, ids[i], &byte, &bytes);
        TRY(byte_list_add(out, text != NULL ? text : ".", text != NULL ? bytes : 1));
    }
    for (size_t i = before; i < out->count; i++) {
        const unsigned char c = (unsigned char)out->data[i];
        const bool hidden = (c < 32 && c != '\n' && c != '\t') || c == 127;
        out->data[i] = hidden ? '.' : out->data[i];
    }
    return STATUS_OK;
}
