#include "data/tokenizer_train.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokenizer_json.h"
#include "data/utf8.h"

#define SPLIT(pattern)                                                                             \
    "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" pattern                                        \
    "\"},\"behavior\":\"Isolated\",\"invert\":false},"
/* of Llama 3 and Qwen 2, who differ in how digits are cut */
#define LLAMA(digits)                                                                              \
    SPLIT("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" digits           \
          "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+")
#define BYTE_LEVEL(regex)                                                                          \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_"              \
    "regex\":" regex "}"

/* Pre-tokenizers as they stand in published files. */
static const struct pattern {
    const char *name, *steps;
} patterns[] = {
    {"deepseek-v3",
     SPLIT("\\\\p{N}{1,3}") SPLIT("[一-龥぀-ゟ゠-ヿ]+") SPLIT(
         "[!\\\"#$%&'()*+,\\\\-./:;<=>?@\\\\[\\\\\\\\\\\\]^_`{|}~][A-Za-z]+|[^\\\\r\\\\n\\\\p{L}"
         "\\\\p{P}\\\\p{S}]?[\\\\p{L}\\\\p{M}]+| ?[\\\\p{P}\\\\p{S}]+[\\\\r\\\\n]*|\\\\s*"
         "[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+") BYTE_LEVEL("false")},
    {"llama3", LLAMA("\\\\p{N}{1,3}") BYTE_LEVEL("false")},
    {"qwen2", LLAMA("\\\\p{N}") BYTE_LEVEL("false")},
    {"gpt2", BYTE_LEVEL("true")},
};
enum { PATTERNS = sizeof patterns / sizeof patterns[0] };

static const char end_of_document[] = "<|endoftext|>";

const char *tokenizer_train_pattern(int i)
{
    return i < PATTERNS ? patterns[i].name : NULL;
}

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE, "out of memory for a tokenizer");
}

/* The text that stands for some bytes in the vocabulary. */
static enum status spell(struct byte_list *out, const char *bytes, size_t count)
{
    uint32_t character_of[256];
    tokenizer_json_alphabet(character_of);
    out->count = 0;
    TRY(byte_list_add(out, "", 0));
    for (size_t i = 0; i < count; i++) {
        char text[4];
        const int length = utf8_write(text, character_of[(unsigned char)bytes[i]]);
        TRY(byte_list_add(out, text, (size_t)length));
    }
    return STATUS_OK;
}

static json_t *added_token(int id, const char *text)
{
    return json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", id, "content", text, "single_word", 0,
                     "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1);
}

/* The file without tokens but the special ones. */
static enum status make_frame(struct tokenizer_train *train, const struct pattern *pattern)
{
    char text[4096];
    const int bytes = snprintf(text, sizeof text, "[%s]", pattern->steps);
    json_t *steps = json_loadb(text, (size_t)bytes, 0, NULL), *added = json_array(),
           *vocab = json_object();
    for (int i = 0; i < train->special_count; i++) {
        json_array_append_new(added, added_token(i, train->specials[i]));
        json_object_set_new(vocab, train->specials[i], json_integer(i));
    }
    json_decref(train->json);
    train->json = json_pack(
        "{s:s,s:n,s:n,s:o,s:n,s:{s:s,s:o},s:n,s:{s:s,s:b,s:b,s:b},s:{s:s,s:n,s:n,s:n,s:n,s:b,s:b,"
        "s:b,s:o,s:[]}}",
        "version", "1.0", "truncation", "padding", "added_tokens", added, "normalizer",
        "pre_tokenizer", "type", "Sequence", "pretokenizers", steps, "post_processor", "decoder",
        "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0, "model",
        "type", "BPE", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
        "fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 0, "vocab", vocab, "merges");
    return train->json != NULL ? STATUS_OK : no_memory();
}

static json_t *model_part(const struct tokenizer_train *train, const char *key)
{
    return json_object_get(json_object_get(train->json, "model"), key);
}

/* The bytes behind the special tokens, in the file and in the table. */
static enum status add_bytes(struct tokenizer_train *train)
{
    uint32_t character_of[256];
    struct byte_list text = {0};
    enum status status = STATUS_OK;
    int64_t id = train->special_count;
    tokenizer_json_alphabet(character_of);
    for (uint32_t character = 0; character < 512 && status == STATUS_OK; character++) {
        for (int byte = 0; byte < 256 && status == STATUS_OK; byte++) {
            const char value = (char)byte;
            if (character_of[byte] != character) {
                continue;
            }
            status = token_table_add(&train->tokens, id, &value, 1);
            status = status == STATUS_OK ? spell(&text, &value, 1) : status;
            json_object_set_new(model_part(train, "vocab"), text.data, json_integer(id++));
        }
    }
    byte_list_free(&text);
    return status;
}

static enum status print_json(const struct tokenizer_train *train, struct byte_list *out)
{
    char *text = json_dumps(train->json, JSON_INDENT(1));
    const enum status status = text != NULL ? byte_list_add(out, text, strlen(text)) : no_memory();
    free(text);
    return status;
}

/* The tokenizer that the frame with its bytes describes; special tokens become `tokens` too. */
static enum status read_frame(struct tokenizer_train *train, const struct pattern *pattern)
{
    struct byte_list text = {0};
    token_table_free(&train->tokens);
    tokenizer_close(&train->plain);
    TRY(make_frame(train, pattern));
    TRY(add_bytes(train));
    enum status status = print_json(train, &text);
    if (status == STATUS_OK) {
        status = tokenizer_read(&train->plain, "special tokens", text.data, text.count);
    }
    byte_list_free(&text);
    return status == STATUS_DATA ? status_fail(STATUS_USAGE, "%s", status_message()) : status;
}

static enum status check_specials(const struct tokenizer_train *train)
{
    for (int i = 0; i < train->special_count; i++) {
        const char *text = train->specials[i];
        const size_t bytes = strlen(text);
        if (bytes < 2 || utf8_prefix(text, bytes) != bytes) {
            return status_fail(STATUS_USAGE,
                               "special token '%s': needs two or more characters of UTF-8", text);
        }
        for (int k = 0; k < i; k++) {
            if (strcmp(train->specials[k], text) == 0) {
                return status_fail(STATUS_USAGE, "special token '%s' is given twice", text);
            }
        }
    }
    if (train->vocab_size < train->special_count + 256) {
        return status_fail(STATUS_USAGE,
                           "a vocabulary of %lld has no room for 256 bytes and %d special tokens",
                           (long long)train->vocab_size, train->special_count);
    }
    return STATUS_OK;
}

static const struct pattern *find_pattern(const char *name)
{
    for (int i = 0; i < PATTERNS; i++) {
        if (strcmp(patterns[i].name, name) == 0) {
            return &patterns[i];
        }
    }
    return NULL;
}

enum status tokenizer_train_open(struct tokenizer_train *train, int64_t vocab_size,
                                 const char *pattern, const char *const *special, int count)
{
    const struct pattern *how = find_pattern(pattern);
    *train = (struct tokenizer_train){.vocab_size = vocab_size,
                                      .pattern = pattern,
                                      .specials = calloc((size_t)count + 1, sizeof(char *)),
                                      .special_count = count};
    if (train->specials == NULL) {
        return no_memory();
    }
    if (how == NULL) {
        return status_fail(STATUS_USAGE, "no pattern '%s'; built: deepseek-v3, llama3, qwen2, gpt2",
                           pattern);
    }
    for (int i = 0; i < count; i++) {
        train->specials[i] = special[i];
    }
    TRY(check_specials(train));
    TRY(read_frame(train, how));
    if (train->plain.eos_id < 0) {
        memmove(train->specials + 1, train->specials, (size_t)count * sizeof(char *));
        train->specials[0] = end_of_document;
        train->special_count++;
        TRY(check_specials(train));
        TRY(read_frame(train, how));
    }
    return encoder_open(&train->encoder, &train->plain);
}

static enum status count_word(void *context, const char *word, size_t bytes)
{
    struct tokenizer_train *train = context;
    return bpe_train_add(&train->words, word, bytes);
}

enum status tokenizer_train_add(struct tokenizer_train *train, const char *text, size_t bytes)
{
    train->texts++;
    train->bytes += (int64_t)bytes;
    return encoder_words(&train->encoder, text, bytes, count_word, train);
}

/* What the next pair becomes: a new token, or one that other pairs have become before. A special
 * token's text stays with that one. */
static enum status take_pair(void *context, uint32_t left, uint32_t right, int64_t count,
                             uint32_t *id, bool *wanted, bool *more)
{
    struct tokenizer_train *train = context;
    struct byte_list both = {0}, spelled = {0}, first = {0}, second = {0};
    size_t bytes[2] = {0};
    const char *a = token_table_text(&train->tokens, left, &bytes[0]),
               *b = token_table_text(&train->tokens, right, &bytes[1]);
    (void)count;
    enum status status = byte_list_add(&both, a, bytes[0]);
    status = status == STATUS_OK ? byte_list_add(&both, b, bytes[1]) : status;
    status = status == STATUS_OK ? spell(&first, a, bytes[0]) : status;
    status = status == STATUS_OK ? spell(&second, b, bytes[1]) : status;
    status = status == STATUS_OK ? spell(&spelled, both.data, both.count) : status;
    for (int i = 0; status == STATUS_OK && i < train->special_count; i++) {
        *wanted = *wanted && strcmp(train->specials[i], both.data) != 0 &&
                  strcmp(train->specials[i], spelled.data) != 0;
    }
    if (status == STATUS_OK && *wanted) {
        const int32_t there = token_table_find(&train->tokens, both.data, both.count);
        const int64_t next = there != TOKEN_NONE ? there : train->tokens.size;
        *id = (uint32_t)next;
        json_array_append_new(model_part(train, "merges"),
                              json_pack("[s,s]", first.data, second.data));
        train->merges++;
        status = token_table_add(&train->tokens, next, both.data, both.count);
        json_object_set_new(model_part(train, "vocab"), spelled.data, json_integer(next));
    }
    *more = train->tokens.size < train->vocab_size;
    byte_list_free(&both);
    byte_list_free(&spelled);
    byte_list_free(&first);
    byte_list_free(&second);
    return status;
}

enum status tokenizer_train_finish(struct tokenizer_train *train, struct byte_list *out,
                                   int64_t *vocab_size)
{
    enum { LEAST = 2 };
    uint32_t byte_id[256];
    for (int byte = 0; byte < 256; byte++) {
        const char value = (char)byte;
        byte_id[byte] = (uint32_t)token_table_find(&train->tokens, &value, 1);
    }
    if (train->tokens.size < train->vocab_size) {
        TRY(bpe_train_run(&train->words, byte_id, LEAST, take_pair, train));
    }
    *vocab_size = train->tokens.size;
    return print_json(train, out);
}

void tokenizer_train_close(struct tokenizer_train *train)
{
    encoder_close(&train->encoder);
    tokenizer_close(&train->plain);
    bpe_train_free(&train->words);
    token_table_free(&train->tokens);
    json_decref(train->json);
    free(train->specials);
    *train = (struct tokenizer_train){0};
}
