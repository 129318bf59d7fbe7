#include "data/token_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/token_formats.h"
#include "kernels/base/hash.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096 };

enum status token_store_reserve(struct token_store *store, int64_t documents)
{
    store->documents = documents;
    store->document_offsets = malloc(((size_t)documents + 1) * sizeof *store->document_offsets);
    return store->document_offsets != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "%s: out of memory for %lld documents", store->path,
                             (long long)documents);
}

static enum status check_documents(struct token_store *store)
{
    const int64_t *offsets = store->document_offsets;
    bool good =
        store->documents >= 1 && offsets[0] == 0 && offsets[store->documents] == store->tokens;
    for (int64_t i = 0; good && i < store->documents; i++) {
        good = offsets[i] <= offsets[i + 1];
    }
    return good ? STATUS_OK
                : status_fail(STATUS_DATA,
                              "%s: document_offsets do not cut the tokens into documents: not a "
                              "token file; make one with `switchyard prepare`",
                              store->path);
}

static uint64_t decode(const char *at, int width)
{
    uint16_t narrow;
    uint32_t wide;
    uint64_t widest;
    switch (width) { /* other programs' files may hold them at odd addresses */
    case 2:
        memcpy(&narrow, at, sizeof narrow);
        return narrow;
    case 4:
        memcpy(&wide, at, sizeof wide);
        return wide;
    case 8:
        memcpy(&widest, at, sizeof widest);
        return widest;
    default:
        return (unsigned char)*at;
    }
}

/* The largest of `count` ids. A loop for each width, its result as wide: compilers turn that into
 * vectors, three times as fast. */
static uint16_t largest_16(const char *data, int64_t count)
{
    uint16_t id, most = 0;
    for (int64_t i = 0; i < count; i++) {
        memcpy(&id, data + 2 * i, sizeof id);
        most = id > most ? id : most;
    }
    return most;
}

static uint32_t largest_32(const char *data, int64_t count)
{
    uint32_t id, most = 0;
    for (int64_t i = 0; i < count; i++) {
        memcpy(&id, data + 4 * i, sizeof id);
        most = id > most ? id : most;
    }
    return most;
}

static uint64_t largest(const char *data, int64_t count, int width)
{
    uint64_t most = 0;
    if (width == 2 || width == 4) {
        return width == 2 ? largest_16(data, count) : largest_32(data, count);
    }
    for (int64_t i = 0; i < count; i++) {
        const uint64_t id = decode(data + i * width, width);
        most = id > most ? id : most;
    }
    return most;
}

static int64_t part_bytes(const struct token_store *store, enum token_part part)
{
    return part == TOKEN_PART_IDS ? store->tokens * store->width
           : store->mask_at > 0   ? store->tokens
                                  : 0;
}

int64_t token_store_pieces(const struct token_store *store, enum token_part part)
{
    return (part_bytes(store, part) + TOKEN_PIECE - 1) / TOKEN_PIECE;
}

enum status token_store_look(const struct token_store *store, enum token_part part, int64_t piece,
                             char *scratch, uint64_t *hash, uint64_t *most)
{
    const int64_t at = piece * TOKEN_PIECE, left = part_bytes(store, part) - at,
                  bytes = left < TOKEN_PIECE ? left : TOKEN_PIECE;
    token_store_bytes(store, part, at, scratch, (size_t)bytes);
    *hash = hash_bytes(scratch, (size_t)bytes);
    if (part == TOKEN_PART_IDS) {
        const uint64_t one = largest(scratch, bytes / store->width, store->width);
        *most = one > *most ? one : *most;
    }
    return block_file_status(store->file);
}

uint64_t token_store_chain(const uint64_t *hashes, int64_t count)
{
    uint64_t chain = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint64_t both[2] = {chain, hashes[i]};
        chain = hash_bytes(both, sizeof both);
    }
    return chain;
}

/* Of a part, all of it: its hash, and its largest id. */
static enum status look_at_all(const struct token_store *store, enum token_part part,
                               uint64_t *hash, uint64_t *most)
{
    const int64_t pieces = token_store_pieces(store, part);
    char *scratch = malloc(TOKEN_PIECE);
    uint64_t *hashes = malloc(((size_t)pieces + 1) * sizeof *hashes);
    enum status status =
        scratch != NULL && hashes != NULL
            ? STATUS_OK
            : status_fail(STATUS_RESOURCE, "out of memory for reading %s", store->path);
    for (int64_t i = 0; i < pieces && status == STATUS_OK; i++) {
        status = token_store_look(store, part, i, scratch, &hashes[i], most);
    }
    *hash = status == STATUS_OK ? token_store_chain(hashes, pieces) : 0;
    free(scratch);
    free(hashes);
    return status;
}

/* Of `bytes` bytes in memory, as of a part of a file. */
static uint64_t hash_memory(const void *memory, int64_t bytes)
{
    uint64_t chain = 0;
    for (int64_t at = 0; at < bytes; at += TOKEN_PIECE) {
        const int64_t left = bytes - at, some = left < TOKEN_PIECE ? left : TOKEN_PIECE;
        const uint64_t both[2] = {chain, hash_bytes((const char *)memory + at, (size_t)some)};
        chain = hash_bytes(both, sizeof both);
    }
    return chain;
}

enum status token_store_contents(const struct token_store *store, uint64_t *contents)
{
    const bool has_mask = store->loss_mask != NULL || store->mask_at > 0;
    uint64_t tokens = store->tokens_hash, mask = store->mask_hash, none = 0;
    *contents = 0;
    if (store->token_data != NULL) {
        tokens = hash_memory(store->token_data, store->tokens * store->width);
    }
    if (store->loss_mask != NULL) {
        mask = hash_memory(store->loss_mask, store->tokens);
    } else if (has_mask && !store->mask_looked_at) {
        TRY(look_at_all(store, TOKEN_PART_MASK, &mask, &none));
    }
    const size_t offsets = (size_t)store->documents + 1;
    const uint64_t parts[] = {
        (uint64_t)store->tokens,
        (uint64_t)store->documents,
        (uint64_t)store->vocab_size,
        (uint64_t)store->width,
        has_mask,
        tokens,
        mask,
        hash_bytes(store->document_offsets, offsets * sizeof *store->document_offsets)};
    const uint64_t hash = hash_bytes(parts, sizeof parts);
    *contents = hash != 0 ? hash : 1;
    return STATUS_OK;
}

enum status token_store_conclude(struct token_store *store, uint64_t most)
{
    if (store->largest_id >= 0 && most <= (uint64_t)store->largest_id) {
        store->vocab_size = store->vocab_known ? store->vocab_size : (int64_t)most + 1;
        store->largest_id = store->vocab_size - 1;
        return STATUS_OK;
    }
    return store->vocab_known
               ? status_fail(STATUS_DATA,
                             "%s: token id %lld, but its vocab_size is %lld: prepare it again",
                             store->path, (long long)most, (long long)store->vocab_size)
               : status_fail(STATUS_DATA, "%s: a token id is negative or above %lld: not tokens?",
                             store->path, (long long)store->largest_id);
}

/* `path` with `to` in place of `from` at its end, or behind it. */
static void other_end(char out[MAX_PATH], const char *path, const char *from, const char *to)
{
    const size_t length = strlen(path), end = strlen(from);
    const bool ends = length > end && strcmp(path + length - end, from) == 0;
    snprintf(out, MAX_PATH, "%.*s%s", (int)(ends ? length - end : length), path, to);
}

/* Whether X.idx stands beside `path`, which is X.bin or X, and is an index; both names. */
static enum status find_index(const char *path, char index[MAX_PATH], char tokens[MAX_PATH],
                              bool *is)
{
    struct block_file file;
    char head[TOKEN_HEAD_BYTES] = {0};
    *is = false;
    other_end(index, path, ".bin", ".idx");
    other_end(tokens, path, ".bin", ".bin");
    if (!io_exists(index)) {
        return STATUS_OK;
    }
    enum status status = block_file_open(&file, index);
    if (status == STATUS_OK) {
        block_file_read_through(
            &file, 0, head,
            (size_t)(file.bytes < TOKEN_HEAD_BYTES ? file.bytes : TOKEN_HEAD_BYTES));
        *is = token_megatron_is_index(head, file.bytes);
        status = block_file_status(&file);
    }
    block_file_close(&file);
    return status == STATUS_DATA ? STATUS_OK : status; /* a folder of that name is none */
}

static enum status open_format(struct token_store *store)
{
    static const char signature[8] = "\x89HDF\r\n\x1a\n";
    const char *path = store->path;
    char index[MAX_PATH], tokens[MAX_PATH], head[TOKEN_HEAD_BYTES] = {0};
    bool is_index = false;
    if (strlen(path) + 8 > MAX_PATH) {
        return status_fail(STATUS_DATA, "%s: the name is too long", path);
    }
    TRY(find_index(path, index, tokens, &is_index));
    if (!io_exists(path) && is_index) {
        return token_megatron_open(store, index, tokens);
    }
    TRY(block_file_open(store->file, path));
    const int64_t bytes = store->file->bytes;
    if (bytes == 0) {
        return status_fail(STATUS_DATA, "%s: the file is empty; make one with `switchyard prepare`",
                           path);
    }
    block_file_read_through(store->file, 0, head,
                            (size_t)(bytes < TOKEN_HEAD_BYTES ? bytes : TOKEN_HEAD_BYTES));
    TRY(block_file_status(store->file));
    if (bytes >= (int64_t)sizeof signature && memcmp(head, signature, sizeof signature) == 0) {
        return token_h5_open(store);
    }
    if (token_megatron_is_index(head, bytes)) {
        other_end(tokens, path, ".idx", ".bin");
        block_file_close(store->file);
        return token_megatron_open(store, path, tokens);
    }
    if (is_index) {
        block_file_close(store->file);
        return token_megatron_open(store, index, tokens);
    }
    /* HDF5 allows other bytes before its own */
    return token_llmc_is(head, bytes) ? token_llmc_open(store) : token_h5_open(store);
}

enum status token_store_begin(struct token_store *store, const char *path)
{
    *store = (struct token_store){.path = strdup(path),
                                  .eos_id = -1,
                                  .tokenizer = "unknown",
                                  .tokenizer_hash = "unknown",
                                  .file = calloc(1, sizeof *store->file)};
    if (store->path == NULL || store->file == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory for opening it", path);
    }
    TRY(open_format(store));
    return check_documents(store);
}

enum status token_store_open(struct token_store *store, const char *path)
{
    uint64_t most = 0;
    TRY(token_store_begin(store, path));
    TRY(look_at_all(store, TOKEN_PART_IDS, &store->tokens_hash, &most));
    return token_store_conclude(store, most);
}

void token_store_close(struct token_store *store)
{
    if (store->file != NULL) {
        block_file_close(store->file);
    }
    free(store->file);
    free(store->tokenizer_file);
    free(store->document_offsets);
    free(store->path);
    *store = (struct token_store){0};
}

uint64_t token_store_id(const struct token_store *store, int64_t i)
{
    char bytes[sizeof(uint64_t)];
    if (store->token_data != NULL) {
        return decode((const char *)store->token_data + i * store->width, store->width);
    }
    block_file_read(store->file, store->tokens_at + i * store->width, bytes, (size_t)store->width);
    return decode(bytes, store->width);
}

/* The models' tables have no rows for ids beyond the largest. */
int64_t token_store_get(const struct token_store *store, int64_t i)
{
    const uint64_t id = token_store_id(store, i);
    if (store->file == NULL || id <= (uint64_t)store->largest_id) {
        return (int64_t)id;
    }
    block_file_fail(store->file, STATUS_DATA,
                    "%s: token %lld is %llu, above the %lld that was the largest when the file was "
                    "opened: it changed since",
                    store->path, (long long)i, (unsigned long long)id,
                    (long long)store->largest_id);
    return 0;
}

bool token_store_counts(const struct token_store *store, int64_t i)
{
    uint8_t counts = store->loss_mask != NULL ? store->loss_mask[i] : 1;
    if (store->mask_at > 0) {
        block_file_read(store->file, store->mask_at + i, &counts, sizeof counts);
    }
    return counts != 0;
}

/* Ids of `width` bytes; returns the largest. */
static uint64_t widen(const char *data, int64_t count, int width, int32_t *ids)
{
    uint64_t most = 0;
    for (int64_t i = 0; i < count && width == 2; i++) { /* most files: a loop of its own */
        uint16_t id;
        memcpy(&id, data + 2 * i, sizeof id);
        most = id > most ? id : most;
        ids[i] = id;
    }
    for (int64_t i = 0; i < count && width != 2; i++) {
        const uint64_t id = decode(data + i * width, width);
        most = id > most ? id : most;
        ids[i] = (int32_t)id;
    }
    return most;
}

/* A few at a time; one that is no id of the file is told as token_store_get tells it. */
static void read_ids(const struct token_store *store, int64_t i, int64_t count, int32_t *ids)
{
    enum { SOME = 512 };
    char raw[SOME * sizeof(uint64_t)];
    for (int64_t done = 0, some = 0; done < count; done += some) {
        some = count - done < SOME ? count - done : SOME;
        block_file_read(store->file, store->tokens_at + (i + done) * store->width, raw,
                        (size_t)(some * store->width));
        if (widen(raw, some, store->width, ids + done) > (uint64_t)store->largest_id) {
            for (int64_t k = done; k < done + some; k++) {
                ids[k] = (int32_t)token_store_get(store, i + k);
            }
        }
    }
}

void token_store_run(const struct token_store *store, int64_t i, int64_t count, int32_t *ids,
                     uint8_t *counts)
{
    if (store->token_data == NULL) {
        read_ids(store, i, count, ids);
    }
    for (int64_t k = 0; k < count && store->token_data != NULL; k++) {
        ids[k] = (int32_t)token_store_get(store, i + k);
    }
    if (store->mask_at > 0) {
        block_file_read(store->file, store->mask_at + i, counts, (size_t)count);
    } else if (store->loss_mask != NULL) {
        memcpy(counts, store->loss_mask + i, (size_t)count);
    } else {
        memset(counts, 1, (size_t)count);
    }
    for (int64_t k = 0; k < count; k++) {
        counts[k] = counts[k] != 0;
    }
}

enum status token_store_status(const struct token_store *store)
{
    return store->file != NULL ? block_file_status(store->file) : STATUS_OK;
}

void token_store_bytes(const struct token_store *store, enum token_part part, int64_t offset,
                       void *to, size_t bytes)
{
    const int64_t begin = part == TOKEN_PART_IDS ? store->tokens_at : store->mask_at;
    block_file_read_through(store->file, begin + offset, to, bytes);
}

int64_t token_store_document(const struct token_store *store, int64_t i)
{
    int64_t low = 0, high = store->documents - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (store->document_offsets[middle] <= i) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

static bool says_tokenizer(const struct token_store *store)
{
    return strcmp(store->tokenizer, "unknown") != 0 && strcmp(store->tokenizer, "none") != 0;
}

enum status token_store_match(const struct token_store *a, const struct token_store *b)
{
    if (!says_tokenizer(a) || !says_tokenizer(b) ||
        (strcmp(a->tokenizer, b->tokenizer) == 0 &&
         strcmp(a->tokenizer_hash, b->tokenizer_hash) == 0)) {
        return STATUS_OK;
    }
    return status_fail(STATUS_DATA,
                       "%s has ids of tokenizer %s:%s, %s of %s:%s: prepare both with one "
                       "tokenizer",
                       a->path, a->tokenizer, a->tokenizer_hash, b->path, b->tokenizer,
                       b->tokenizer_hash);
}
