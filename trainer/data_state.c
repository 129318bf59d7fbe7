#include "trainer/data_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/hash.h"

enum { HEX_BYTES = 17 };

void data_state_path(char out[DATA_PATH_BYTES], const char *path)
{
    const size_t length = strlen(path);
    const char *from = path + (length < DATA_PATH_BYTES ? 0 : length - DATA_PATH_BYTES + 1);
    while (from > path && ((unsigned char)*from & 0xc0) == 0x80) {
        from++; /* the rest of a character */
    }
    snprintf(out, DATA_PATH_BYTES, "%s", from);
}

bool data_state_same(const struct data_source_state *a, const struct data_source_state *b)
{
    return a->contents != 0 && b->contents != 0 ? a->contents == b->contents
                                                : a->fingerprint == b->fingerprint;
}

static json_t *hex_write(uint64_t value)
{
    char text[HEX_BYTES];
    hash_hex(text, value);
    return json_string(text);
}

static bool hex_read(const json_t *json, uint64_t *value)
{
    const char *text = json_string_value(json);
    char *end = NULL;
    *value = text != NULL ? strtoull(text, &end, 16) : 0;
    return text != NULL && strlen(text) == HEX_BYTES - 1 && *end == '\0';
}

static json_t *place_write(const struct loader_place *place)
{
    const struct loader_epoch *run = &place->run;
    return json_pack("{s:I, s:I, s:I, s:o, s:I, s:I, s:o, s:I, s:b}", "epoch",
                     (json_int_t)place->epoch, "done", (json_int_t)place->done, "tokens",
                     (json_int_t)place->tokens, "order", hex_write(run->order), "cut",
                     (json_int_t)run->cut, "fim_parts", (json_int_t)run->fim_parts, "fim_key",
                     hex_write(run->fim_key), "stream", (json_int_t)run->stream, "packed",
                     (int)run->packed);
}

static bool place_read(const json_t *json, struct loader_place *place)
{
    json_int_t epoch = -1, done = -1, tokens = -1, cut = 0, parts = -1, stream = 0;
    json_t *order = NULL, *key = NULL;
    int packed = 0;
    if (json_unpack((json_t *)(uintptr_t)json, "{s:I, s:I, s:I, s:o, s:I, s:I, s:o, s:I, s:b}",
                    "epoch", &epoch, "done", &done, "tokens", &tokens, "order", &order, "cut", &cut,
                    "fim_parts", &parts, "fim_key", &key, "stream", &stream, "packed",
                    &packed) != 0) {
        return false;
    }
    *place = (struct loader_place){
        .epoch = epoch,
        .done = done,
        .tokens = tokens,
        .run = {.cut = cut, .fim_parts = parts, .stream = stream, .packed = packed != 0}};
    return hex_read(order, &place->run.order) && hex_read(key, &place->run.fim_key) && epoch >= 0 &&
           done >= 0 && tokens >= 0 && cut > 0 && parts >= 0 && parts <= fim_parts(1);
}

json_t *data_state_write(const struct data_state *state)
{
    json_t *sources = json_array();
    for (int64_t i = 0; i < state->count; i++) {
        const struct data_source_state *source = &state->source[i];
        json_t *one =
            json_pack("{s:o, s:o, s:o}", "fingerprint", hex_write(source->fingerprint), "origin",
                      place_write(&source->origin), "now", place_write(&source->now));
        json_object_set_new(one, "path", json_string(source->path)); /* left out when not UTF-8 */
        if (source->contents != 0) {
            json_object_set_new(one, "contents", hex_write(source->contents));
        }
        json_array_append_new(sources, one);
    }
    return json_pack("{s:{s:I, s:I, s:I}, s:o}", "origin", "step", (json_int_t)state->step,
                     "position", (json_int_t)state->position, "tokens", (json_int_t)state->tokens,
                     "sources", sources);
}

static bool source_read(const json_t *json, struct data_source_state *source)
{
    const char *path = json_string_value(json_object_get(json, "path"));
    const json_t *contents = json_object_get(json, "contents");
    snprintf(source->path, sizeof source->path, "%s", path != NULL ? path : "");
    return hex_read(json_object_get(json, "fingerprint"), &source->fingerprint) &&
           (contents == NULL || hex_read(contents, &source->contents)) &&
           place_read(json_object_get(json, "origin"), &source->origin) &&
           place_read(json_object_get(json, "now"), &source->now);
}

bool data_state_read(const json_t *json, struct data_state *state)
{
    const json_t *sources = json_object_get(json, "sources");
    const size_t count = json_array_size(sources);
    json_int_t step = -1, position = -1, tokens = -1;
    *state = (struct data_state){0};
    if (json == NULL) {
        return true;
    }
    bool good = json_unpack((json_t *)(uintptr_t)json, "{s:{s:I, s:I, s:I}}", "origin", "step",
                            &step, "position", &position, "tokens", &tokens) == 0 &&
                step >= 0 && position >= 0 && tokens >= 0 && count > 0 && count <= MIXTURE_SOURCES;
    for (size_t i = 0; i < count && good; i++) {
        good = source_read(json_array_get(sources, i), &state->source[i]);
    }
    state->step = step;
    state->position = position;
    state->tokens = tokens;
    state->count = good ? (int64_t)count : 0;
    return good;
}

enum { BLOCKS = 256, BLOCK = 4096, WHOLE = BLOCKS * BLOCK };

/* An array of a token file: in memory, or a part of the file. */
struct array {
    const void *memory; /* borrowed; NULL: the part */
    enum token_part part;
    size_t bytes;
};

static uint64_t hash_part(const struct token_store *store, const struct array *array, size_t at,
                          size_t bytes, char piece[WHOLE])
{
    if (array->memory != NULL) {
        memcpy(piece, (const char *)array->memory + at, bytes);
    } else {
        token_store_bytes(store, array->part, (int64_t)at, piece, bytes);
    }
    return hash_bytes(piece, bytes);
}

/* Hash of up to BLOCKS blocks of an array and its end. */
static uint64_t sample(const struct token_store *store, const struct array *array,
                       char piece[WHOLE])
{
    uint64_t hash[BLOCKS + 1] = {0};
    size_t count = 0;
    if (array->bytes <= WHOLE) {
        return hash_part(store, array, 0, array->bytes, piece);
    }
    for (; count < BLOCKS; count++) {
        const size_t at = (array->bytes - BLOCK) / (BLOCKS - 1) * count;
        hash[count] = hash_part(store, array, at, BLOCK, piece);
    }
    hash[count] = hash_part(store, array, array->bytes - BLOCK, BLOCK, piece);
    return hash_bytes(hash, sizeof hash);
}

enum status data_fingerprint(const struct token_store *store, uint64_t *fingerprint)
{
    const size_t tokens = (size_t)store->tokens, offsets = (size_t)store->documents + 1;
    const struct array ids = {.memory = store->token_data,
                              .part = TOKEN_PART_IDS,
                              .bytes = tokens * (size_t)store->width},
                       mask = {.memory = store->loss_mask,
                               .part = TOKEN_PART_MASK,
                               .bytes = tokens},
                       documents = {.memory = store->document_offsets,
                                    .bytes = offsets * sizeof *store->document_offsets};
    char *piece = malloc(WHOLE);
    *fingerprint = 0;
    if (piece == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for looking at %s", store->path);
    }
    const uint64_t parts[] = {
        (uint64_t)store->tokens,
        (uint64_t)store->documents,
        (uint64_t)store->vocab_size,
        (uint64_t)store->width,
        sample(store, &ids, piece),
        store->loss_mask != NULL || store->mask_at > 0 ? sample(store, &mask, piece) : 0,
        sample(store, &documents, piece)};
    const uint64_t hash = hash_bytes(parts, sizeof parts);
    free(piece);
    *fingerprint = hash != 0 ? hash : 1;
    return token_store_status(store);
}
