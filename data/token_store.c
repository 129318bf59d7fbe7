#include "data/token_store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/token_formats.h"
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

static enum status check_tokens(struct token_store *store)
{
    uint64_t most = 0;
    for (int64_t i = 0; i < store->tokens; i++) {
        const uint64_t id = (uint64_t)token_store_get(store, i);
        most = id > most ? id : most;
    }
    if (store->largest_id >= 0 && most <= (uint64_t)store->largest_id) {
        store->vocab_size = store->vocab_known ? store->vocab_size : (int64_t)most + 1;
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
static bool has_index(const char *path, char index[MAX_PATH], char tokens[MAX_PATH])
{
    struct file_map map;
    other_end(index, path, ".bin", ".idx");
    other_end(tokens, path, ".bin", ".bin");
    const bool good = io_exists(index) && file_map_open(&map, index) == STATUS_OK;
    const bool is = good && token_megatron_is_index(map.data, map.bytes);
    if (good) {
        file_map_close(&map);
    }
    return is;
}

static enum status open_format(struct token_store *store)
{
    static const char signature[8] = "\x89HDF\r\n\x1a\n";
    const char *path = store->path;
    char index[MAX_PATH], tokens[MAX_PATH];
    if (strlen(path) + 8 > MAX_PATH) {
        return status_fail(STATUS_DATA, "%s: the name is too long", path);
    }
    if (!io_exists(path) && has_index(path, index, tokens)) {
        return token_megatron_open(store, index, tokens);
    }
    TRY(file_map_open(&store->map, path));
    const char *data = store->map.data;
    const size_t bytes = store->map.bytes;
    if (bytes == 0) {
        return status_fail(STATUS_DATA, "%s: the file is empty; make one with `switchyard prepare`",
                           path);
    }
    if (bytes >= sizeof signature && memcmp(data, signature, sizeof signature) == 0) {
        return token_h5_open(store);
    }
    if (token_megatron_is_index(data, bytes)) {
        other_end(tokens, path, ".idx", ".bin");
        file_map_close(&store->map);
        return token_megatron_open(store, path, tokens);
    }
    if (has_index(path, index, tokens)) {
        file_map_close(&store->map);
        return token_megatron_open(store, index, tokens);
    }
    /* HDF5 allows other bytes before its own */
    return token_llmc_is(data, bytes) ? token_llmc_open(store) : token_h5_open(store);
}

enum status token_store_open(struct token_store *store, const char *path)
{
    *store = (struct token_store){
        .path = strdup(path), .eos_id = -1, .tokenizer = "unknown", .tokenizer_hash = "unknown"};
    if (store->path == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory for its name", path);
    }
    TRY(open_format(store));
    TRY(check_documents(store));
    return check_tokens(store);
}

void token_store_close(struct token_store *store)
{
    file_map_close(&store->map);
    free(store->document_offsets);
    free(store->path);
    *store = (struct token_store){0};
}

int64_t token_store_get(const struct token_store *store, int64_t i)
{
    uint16_t narrow;
    uint32_t wide;
    int64_t widest;
    const char *at = store->token_data;
    switch (store->width) { /* other programs' files may hold them at odd addresses */
    case 2:
        memcpy(&narrow, at + 2 * i, sizeof narrow);
        return narrow;
    case 4:
        memcpy(&wide, at + 4 * i, sizeof wide);
        return wide;
    case 8:
        memcpy(&widest, at + 8 * i, sizeof widest);
        return widest;
    default:
        return (unsigned char)at[i];
    }
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
