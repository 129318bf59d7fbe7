#include "data/tokenizer_json.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "data/utf8.h"
#include "kernels/base/io.h"

static const char gpt2_words[] = "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                                 "\\s+(?!\\S)|\\s+";

/* What a file is read with. */
struct reader {
    struct tokenizer *tokenizer;
    bool byte_level;
    int16_t byte_of[512]; /* of a character of the byte-level alphabet; -1: none */
    struct byte_list text;
};

#define WAY_OUT "make the token file with scripts/prepare_hf.py, which uses the tokenizers library"

static enum status not_built(const char *what, const char *value)
{
    return status_fail(STATUS_DATA, "%s '%s' is not built: " WAY_OUT, what, value);
}

static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type != NULL ? type : "(no type)";
}

static bool is_set(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return value != NULL && !json_is_null(value) && !json_is_false(value) &&
           !(json_is_string(value) && json_string_length(value) == 0) &&
           !(json_is_number(value) && json_number_value(value) == 0);
}

/* Printable bytes of Latin-1 stand for themselves, the others in order for U+0100 and on. */
void tokenizer_json_alphabet(uint32_t character_of[256])
{
    uint32_t other = 256;
    for (uint32_t byte = 0; byte < 256; byte++) {
        const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        character_of[byte] = printable ? byte : other++;
    }
}

static void make_alphabet(int16_t byte_of[512])
{
    uint32_t character_of[256];
    tokenizer_json_alphabet(character_of);
    memset(byte_of, 0xff, 512 * sizeof *byte_of);
    for (int byte = 0; byte < 256; byte++) {
        byte_of[character_of[byte]] = (int16_t)byte;
    }
}

/* Text of the byte-level alphabet as the bytes it stands for; text with any other character stays
 * itself. */
static enum status to_bytes(struct reader *reader, const char *text, size_t bytes)
{
    struct byte_list *out = &reader->text;
    out->count = 0;
    for (size_t at = 0; at < bytes;) {
        const int length = utf8_length(text + at, bytes - at);
        const uint32_t c = length > 0 ? utf8_character(text + at, length) : 512;
        if (c >= 512 || reader->byte_of[c] < 0) {
            out->count = 0;
            return byte_list_add(out, text, bytes);
        }
        const char byte = (char)reader->byte_of[c];
        TRY(byte_list_add(out, &byte, 1));
        at += (size_t)length;
    }
    return STATUS_OK;
}

static enum status add_added(struct tokenizer *t, const json_t *token)
{
    static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
    const json_t *id = json_object_get(token, "id"), *content = json_object_get(token, "content");
    if (!json_is_integer(id) || !json_is_string(content) || json_string_length(content) == 0) {
        return status_fail(STATUS_DATA, "an added token lacks its id or content");
    }
    const char *text = json_string_value(content);
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        if (is_set(token, flags[i])) {
            return status_fail(STATUS_DATA, "%s of added token '%s' is not built: " WAY_OUT,
                               flags[i], text);
        }
    }
    TRY(token_table_add(&t->tokens, json_integer_value(id), text, json_string_length(content)));
    /* `normalized` is true by default for ordinary ones only */
    const json_t *normalized = json_object_get(token, "normalized");
    const bool after = normalized != NULL ? json_is_true(normalized) : !is_set(token, "special");
    return phrases_add(after ? &t->normalized : &t->raw, text, json_string_length(content),
                       (int32_t)json_integer_value(id));
}

static enum status read_added(struct tokenizer *t, const json_t *tokens)
{
    size_t i;
    const json_t *token;
    json_array_foreach(tokens, i, token)
    {
        TRY(add_added(t, token));
    }
    return STATUS_OK;
}

static enum status read_normalizer(struct tokenizer *t, const json_t *normalizer)
{
    if (normalizer == NULL || json_is_null(normalizer)) {
        return STATUS_OK;
    }
    if (strcmp(type_of(normalizer), "NFC") == 0) {
        t->nfc = true;
        return STATUS_OK;
    }
    if (strcmp(type_of(normalizer), "Sequence") != 0) {
        return not_built("normalizer", type_of(normalizer));
    }
    size_t i;
    const json_t *part;
    json_array_foreach(json_object_get(normalizer, "normalizers"), i, part)
    {
        TRY(read_normalizer(t, part));
    }
    return STATUS_OK;
}

static enum status read_split(struct reader *reader, const json_t *split)
{
    const json_t *pattern = json_object_get(split, "pattern"),
                 *regex = json_object_get(pattern, "Regex"),
                 *text = json_object_get(pattern, "String"),
                 *given = json_is_string(regex) ? regex : text;
    const char *behavior = json_string_value(json_object_get(split, "behavior"));
    const bool invert = json_is_true(json_object_get(split, "invert"));
    if (!json_is_string(given) || behavior == NULL) {
        return status_fail(STATUS_DATA, "pre-tokenizer Split lacks its pattern or behavior");
    }
    enum split_keep keep = SPLIT_KEEP_ALL;
    if (strcmp(behavior, "Removed") == 0) {
        keep = invert ? SPLIT_KEEP_MATCHES : SPLIT_KEEP_GAPS;
    } else if (strcmp(behavior, "Isolated") != 0) {
        return not_built("behavior of pre-tokenizer Split", behavior);
    }
    return splitter_add(reader->tokenizer->splitter, json_string_value(given),
                        json_string_length(given), given == text, keep);
}

static enum status read_byte_level(struct reader *reader, const json_t *step)
{
    const json_t *regex = json_object_get(step, "use_regex"),
                 *space = json_object_get(step, "add_prefix_space");
    if (space == NULL || json_is_true(space)) {
        return not_built("pre-tokenizer ByteLevel with", "add_prefix_space");
    }
    reader->byte_level = true;
    return json_is_false(regex) ? STATUS_OK
                                : splitter_add(reader->tokenizer->splitter, gpt2_words,
                                               sizeof gpt2_words - 1, false, SPLIT_KEEP_ALL);
}

static enum status read_steps(struct reader *reader, const json_t *step)
{
    const char *type = type_of(step);
    if (reader->byte_level) {
        return not_built("after ByteLevel another pre-tokenizer", type);
    }
    if (strcmp(type, "Split") == 0) {
        return read_split(reader, step);
    }
    if (strcmp(type, "Digits") == 0) {
        const bool each = json_is_true(json_object_get(step, "individual_digits"));
        return splitter_add(reader->tokenizer->splitter, each ? "\\p{N}" : "\\p{N}+", each ? 5 : 6,
                            false, SPLIT_KEEP_ALL);
    }
    if (strcmp(type, "ByteLevel") == 0) {
        return read_byte_level(reader, step);
    }
    if (strcmp(type, "Sequence") != 0) {
        return not_built("pre-tokenizer", type);
    }
    size_t i;
    const json_t *part;
    json_array_foreach(json_object_get(step, "pretokenizers"), i, part)
    {
        TRY(read_steps(reader, part));
    }
    return STATUS_OK;
}

static enum status read_vocab(struct reader *reader, json_t *vocab)
{
    struct tokenizer *t = reader->tokenizer;
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value)
    {
        size_t bytes = 0;
        if (!json_is_integer(value)) {
            return status_fail(STATUS_DATA, "the id of token '%s' is no whole number", key);
        }
        const char *there = token_table_text(&t->tokens, json_integer_value(value), &bytes);
        if (there != NULL && strlen(key) == bytes && memcmp(there, key, bytes) == 0) {
            continue; /* an added token, which stands for its own text */
        }
        TRY(to_bytes(reader, key, strlen(key)));
        TRY(token_table_add(&t->tokens, json_integer_value(value), reader->text.data,
                            reader->text.count));
    }
    return STATUS_OK;
}

/* "left right", or ["left", "right"] */
static enum status read_merge(struct reader *reader, const json_t *merge)
{
    const char *left = json_string_value(json_array_get(merge, 0)),
               *right = json_string_value(json_array_get(merge, 1));
    size_t left_bytes = left != NULL ? strlen(left) : 0;
    const char *text = json_string_value(merge);
    if (text != NULL) {
        const char *space = strchr(text, ' ');
        left = text;
        left_bytes = space != NULL ? (size_t)(space - text) : 0;
        right = space != NULL ? space + 1 : NULL;
    }
    if (left == NULL || right == NULL) {
        return status_fail(STATUS_DATA, "merge %lld is not two tokens",
                           (long long)reader->tokenizer->bpe.count);
    }
    struct byte_list first = {0};
    enum status status = to_bytes(reader, left, left_bytes);
    status =
        status == STATUS_OK ? byte_list_add(&first, reader->text.data, reader->text.count) : status;
    status = status == STATUS_OK ? to_bytes(reader, right, strlen(right)) : status;
    if (status == STATUS_OK) {
        status = bpe_add_merge(&reader->tokenizer->bpe, first.data, first.count, reader->text.data,
                               reader->text.count);
    }
    byte_list_free(&first);
    return status;
}

static enum status read_model(struct reader *reader, const json_t *model)
{
    static const char *const off[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix"};
    struct tokenizer *t = reader->tokenizer;
    const json_t *merges = json_object_get(model, "merges");
    json_t *vocab = json_object_get(model, "vocab");
    if (json_object_get(model, "type") != NULL && strcmp(type_of(model), "BPE") != 0) {
        return not_built("model", type_of(model));
    }
    for (size_t i = 0; i < sizeof off / sizeof off[0]; i++) {
        if (is_set(model, off[i])) {
            return not_built("model BPE with", off[i]);
        }
    }
    if (!json_is_object(vocab) || !json_is_array(merges)) {
        return status_fail(STATUS_DATA, "the model lacks its vocab or merges");
    }
    TRY(read_vocab(reader, vocab));
    TRY(bpe_init(&t->bpe, &t->tokens, (int64_t)json_array_size(merges),
                 is_set(model, "ignore_merges")));
    size_t i;
    const json_t *merge;
    json_array_foreach(merges, i, merge)
    {
        TRY(read_merge(reader, merge));
    }
    return STATUS_OK;
}

static enum status read_parts(struct reader *reader, const json_t *json)
{
    static const char *const off[] = {"truncation", "padding"};
    struct tokenizer *t = reader->tokenizer;
    const json_t *steps = json_object_get(json, "pre_tokenizer");
    if (!json_is_object(json_object_get(json, "model"))) {
        return status_fail(STATUS_DATA,
                           json_object_get(json, "config") != NULL
                               ? "no \"model\" in it: if it is a Tekken file, turn it into "
                                 "tokenizer.json with transformers"
                               : "no \"model\" in it: not a tokenizer.json");
    }
    if (is_set(json_object_get(json, "model"), "byte_fallback")) {
        return status_fail(STATUS_DATA,
                           "pieces of SentencePiece as a tokenizer.json ('byte_fallback') are not "
                           "built: take the model's tokenizer.model, or " WAY_OUT);
    }
    for (size_t i = 0; i < sizeof off / sizeof off[0]; i++) {
        if (is_set(json, off[i])) {
            return not_built("setting", off[i]);
        }
    }
    TRY(read_added(t, json_object_get(json, "added_tokens")));
    TRY(read_normalizer(t, json_object_get(json, "normalizer")));
    if (steps != NULL && !json_is_null(steps)) {
        TRY(read_steps(reader, steps));
    }
    if (!reader->byte_level) {
        return not_built("a tokenizer without pre-tokenizer", "ByteLevel");
    }
    return read_model(reader, json_object_get(json, "model"));
}

enum status tokenizer_json_read(struct tokenizer *tokenizer, const char *name, const char *data,
                                size_t bytes)
{
    json_error_t problem;
    struct reader reader = {.tokenizer = tokenizer};
    json_t *json = json_loadb(data, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    if (json == NULL) {
        return status_fail(STATUS_DATA, "%s:%d: not JSON: %s", name, problem.line, problem.text);
    }
    make_alphabet(reader.byte_of);
    enum status status = splitter_open(&tokenizer->splitter);
    status = status == STATUS_OK ? read_parts(&reader, json) : status;
    byte_list_free(&reader.text);
    json_decref(json);
    tokenizer->vocab_size = tokenizer->tokens.size;
    return status == STATUS_OK ? STATUS_OK : status_fail(status, "%s: %s", name, status_message());
}

/* "eos_token": "</s>", or {"content": "</s>", ...} */
static enum status named(const struct tokenizer *tokenizer, const json_t *config, const char *key,
                         int64_t *id)
{
    const json_t *value = json_object_get(config, key);
    const char *text =
        json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
    if (text == NULL) {
        return STATUS_OK;
    }
    *id = tokenizer_find(tokenizer, text);
    return *id >= 0 ? STATUS_OK
                    : status_fail(STATUS_DATA, "%s '%s' is no token of the tokenizer", key, text);
}

enum status tokenizer_json_config(struct tokenizer *tokenizer, const char *path)
{
    enum { MOST_BYTES = 1 << 26, MAX_PATH = 4096 };
    char place[MAX_PATH + 32], *text = NULL;
    size_t bytes = 0;
    json_error_t problem;
    const char *slash = strrchr(path, '/');
    const int folder = slash != NULL ? (int)(slash + 1 - path) : 0;
    snprintf(place, sizeof place, "%.*s%s", folder < MAX_PATH ? folder : 0, path,
             "tokenizer_config.json");
    if (!io_exists(place)) {
        return STATUS_OK;
    }
    TRY(io_read_file(place, &text, &bytes, MOST_BYTES));
    json_t *json = json_loadb(text, bytes, 0, &problem);
    enum status status = json != NULL
                             ? STATUS_OK
                             : status_fail(STATUS_DATA, "line %d: %s", problem.line, problem.text);
    status = status == STATUS_OK ? named(tokenizer, json, "bos_token", &tokenizer->bos_id) : status;
    status = status == STATUS_OK ? named(tokenizer, json, "eos_token", &tokenizer->eos_id) : status;
    json_decref(json);
    free(text);
    return status == STATUS_OK ? STATUS_OK : status_fail(status, "%s: %s", place, status_message());
}
