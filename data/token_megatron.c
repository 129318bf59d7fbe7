#include <inttypes.h>
#include <string.h>

#include "data/token_formats.h"

static const char magic[9] = "MMIDIDX\0"; /* two NULs at its end */
enum { HEADER = 34 };

/* Types of tokens by their code; largest: what is above is negative in the file's type. */
static const struct token_type {
    int width;
    int64_t largest;
} types[] = {[1] = {1, UINT8_MAX}, [2] = {1, INT8_MAX},  [3] = {2, INT16_MAX},
             [4] = {4, INT32_MAX}, [5] = {8, INT32_MAX}, [8] = {2, UINT16_MAX}};

/* Where the parts of an index lie. */
struct index {
    const char *path;
    uint64_t sequences, indices;           /* indices: documents + 1 */
    const char *lengths, *offsets, *first; /* int32 and int64 [sequences], int64 [indices] */
    struct token_type type;
};

bool token_megatron_is_index(const char *data, size_t bytes)
{
    return bytes >= sizeof magic && memcmp(data, magic, sizeof magic) == 0;
}

static uint64_t number(const char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static enum status read_header(struct index *index, const char *data, size_t bytes)
{
    if (!token_megatron_is_index(data, bytes) || bytes < HEADER) {
        return status_fail(STATUS_DATA, "%s: not the index of a Megatron data set, or truncated",
                           index->path);
    }
    const uint64_t version = number(data + 9);
    const unsigned char code = (unsigned char)data[17];
    if (version != 1) {
        return status_fail(STATUS_DATA, "%s: version %" PRIu64 " of Megatron's index; 1 is built",
                           index->path, version);
    }
    if (code >= sizeof types / sizeof types[0] || types[code].width == 0) {
        return status_fail(STATUS_DATA,
                           "%s: type %d of the tokens is none of whole numbers (1 to 5, 8)",
                           index->path, code);
    }
    index->type = types[code];
    index->sequences = number(data + 18);
    index->indices = number(data + 26);
    return STATUS_OK;
}

static enum status read_index(struct index *index, const char *data, size_t bytes)
{
    TRY(read_header(index, data, bytes));
    const uint64_t left = bytes - HEADER, sequences = index->sequences, indices = index->indices;
    if (sequences > left / 12 || indices > (left - 12 * sequences) / 8) {
        return status_fail(STATUS_DATA,
                           "%s: %" PRIu64 " sequences and %" PRIu64
                           " document indices do not fit into %zu bytes: truncated",
                           index->path, sequences, indices, bytes);
    }
    const uint64_t more = left - 12 * sequences - 8 * indices;
    if (more != 0) {
        return status_fail(STATUS_DATA, "%s: %" PRIu64 " bytes too many%s", index->path, more,
                           more == sequences ? ": modes of a multimodal data set are not built"
                                             : "");
    }
    index->lengths = data + HEADER;
    index->offsets = index->lengths + 4 * sequences;
    index->first = index->offsets + 8 * sequences;
    return STATUS_OK;
}

/* Sequences lie one after another: *tokens in all. */
static enum status check_sequences(const struct index *index, int64_t *tokens)
{
    *tokens = 0;
    for (uint64_t i = 0; i < index->sequences; i++) {
        int32_t length;
        memcpy(&length, index->lengths + 4 * i, sizeof length);
        if (length < 0 ||
            number(index->offsets + 8 * i) != (uint64_t)*tokens * (uint64_t)index->type.width) {
            return status_fail(STATUS_DATA,
                               "%s: sequence %" PRIu64
                               " does not lie where the one before it ends: damaged?",
                               index->path, i);
        }
        *tokens += length;
    }
    return STATUS_OK;
}

/* Documents are runs of sequences; their offsets count tokens. */
static enum status read_documents(struct token_store *store, const struct index *index)
{
    uint64_t sequence = 0;
    int64_t tokens = 0;
    bool good = index->indices >= 2 && number(index->first) == 0;
    if (good) {
        TRY(token_store_reserve(store, (int64_t)index->indices - 1));
        store->document_offsets[0] = 0;
    }
    for (uint64_t i = 1; good && i < index->indices; i++) {
        const uint64_t next = number(index->first + 8 * i);
        good = next >= sequence && next <= index->sequences;
        for (; good && sequence < next; sequence++) {
            int32_t length;
            memcpy(&length, index->lengths + 4 * sequence, sizeof length);
            tokens += length;
        }
        store->document_offsets[i] = tokens;
    }
    return good && sequence == index->sequences
               ? STATUS_OK
               : status_fail(STATUS_DATA,
                             "%s: its document indices do not cut %" PRIu64
                             " sequences into documents",
                             index->path, index->sequences);
}

enum status token_megatron_open(struct token_store *store, const char *path, const char *tokens)
{
    struct file_map map;
    struct index index = {.path = path};
    enum status status = file_map_open(&map, path);
    status = status == STATUS_OK ? read_index(&index, map.data, map.bytes) : status;
    status = status == STATUS_OK ? check_sequences(&index, &store->tokens) : status;
    status = status == STATUS_OK ? file_map_open(&store->map, tokens) : status;
    if (status == STATUS_OK &&
        (uint64_t)store->tokens * (uint64_t)index.type.width != store->map.bytes) {
        status =
            status_fail(STATUS_DATA,
                        "%s: %zu bytes, but %s says %lld tokens of %d bytes: truncated, or "
                        "files of two data sets",
                        tokens, store->map.bytes, path, (long long)store->tokens, index.type.width);
    }
    if (status == STATUS_OK && store->tokens == 0) {
        status = status_fail(STATUS_DATA, "%s: no tokens in it", tokens);
    }
    status = status == STATUS_OK ? read_documents(store, &index) : status;
    file_map_close(&map);
    store->format = "Megatron";
    store->width = index.type.width;
    store->largest_id = index.type.largest;
    store->token_data = store->map.data;
    return status;
}
