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
    struct block_file file;
    uint64_t sequences, indices;     /* indices: documents + 1 */
    int64_t lengths, offsets, first; /* int32 and int64 [sequences], int64 [indices] */
    struct token_type type;
};

bool token_megatron_is_index(const char *head, int64_t bytes)
{
    return bytes >= (int64_t)sizeof magic && memcmp(head, magic, sizeof magic) == 0;
}

/* The `i`-th of the numbers from `at` on; these two. */
static uint64_t number(struct index *index, int64_t at, uint64_t i)
{
    uint64_t value;
    block_file_read(&index->file, at + (int64_t)(i * sizeof value), &value, sizeof value);
    return value;
}

static int32_t length_of(struct index *index, uint64_t i)
{
    int32_t value;
    block_file_read(&index->file, index->lengths + (int64_t)(i * sizeof value), &value,
                    sizeof value);
    return value;
}

static enum status read_header(struct index *index)
{
    char data[HEADER] = {0};
    const int64_t bytes = index->file.bytes;
    block_file_read(&index->file, 0, data, (size_t)(bytes < HEADER ? bytes : HEADER));
    TRY(block_file_status(&index->file));
    if (!token_megatron_is_index(data, bytes) || bytes < HEADER) {
        return status_fail(STATUS_DATA, "%s: not the index of a Megatron data set, or truncated",
                           index->path);
    }
    const uint64_t version = number(index, 9, 0);
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
    index->sequences = number(index, 18, 0);
    index->indices = number(index, 26, 0);
    return STATUS_OK;
}

static enum status read_index(struct index *index)
{
    TRY(read_header(index));
    const uint64_t bytes = (uint64_t)index->file.bytes, left = bytes - HEADER,
                   sequences = index->sequences, indices = index->indices;
    if (sequences > left / 12 || indices > (left - 12 * sequences) / 8) {
        return status_fail(STATUS_DATA,
                           "%s: %" PRIu64 " sequences and %" PRIu64
                           " document indices do not fit into %" PRIu64 " bytes: truncated",
                           index->path, sequences, indices, bytes);
    }
    const uint64_t more = left - 12 * sequences - 8 * indices;
    if (more != 0) {
        return status_fail(STATUS_DATA, "%s: %" PRIu64 " bytes too many%s", index->path, more,
                           more == sequences ? ": modes of a multimodal data set are not built"
                                             : "");
    }
    index->lengths = HEADER;
    index->offsets = index->lengths + (int64_t)(4 * sequences);
    index->first = index->offsets + (int64_t)(8 * sequences);
    return STATUS_OK;
}

/* Sequences lie one after another: *tokens in all. */
static enum status check_sequences(struct index *index, int64_t *tokens)
{
    *tokens = 0;
    for (uint64_t i = 0; i < index->sequences; i++) {
        const int32_t length = length_of(index, i);
        const uint64_t offset = number(index, index->offsets, i);
        TRY(block_file_status(&index->file));
        if (length < 0 || offset != (uint64_t)*tokens * (uint64_t)index->type.width) {
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
static enum status read_documents(struct token_store *store, struct index *index)
{
    uint64_t sequence = 0;
    int64_t tokens = 0;
    bool good = index->indices >= 2 && number(index, index->first, 0) == 0;
    if (good) {
        TRY(token_store_reserve(store, (int64_t)index->indices - 1));
        store->document_offsets[0] = 0;
    }
    for (uint64_t i = 1; good && i < index->indices; i++) {
        const uint64_t next = number(index, index->first, i);
        good = next >= sequence && next <= index->sequences;
        for (; good && sequence < next; sequence++) {
            tokens += length_of(index, sequence);
        }
        store->document_offsets[i] = tokens;
    }
    TRY(block_file_status(&index->file));
    return good && sequence == index->sequences
               ? STATUS_OK
               : status_fail(STATUS_DATA,
                             "%s: its document indices do not cut %" PRIu64
                             " sequences into documents",
                             index->path, index->sequences);
}

static enum status open_both(struct token_store *store, struct index *index, const char *tokens)
{
    TRY(block_file_open(&index->file, index->path));
    TRY(read_index(index));
    TRY(check_sequences(index, &store->tokens));
    TRY(block_file_open(store->file, tokens));
    const int64_t bytes = store->file->bytes;
    if (store->tokens * index->type.width != bytes) {
        return status_fail(STATUS_DATA,
                           "%s: %lld bytes, but %s says %lld tokens of %d bytes: truncated, or "
                           "files of two data sets",
                           tokens, (long long)bytes, index->path, (long long)store->tokens,
                           index->type.width);
    }
    return store->tokens > 0 ? read_documents(store, index)
                             : status_fail(STATUS_DATA, "%s: no tokens in it", tokens);
}

enum status token_megatron_open(struct token_store *store, const char *path, const char *tokens)
{
    struct index index = {.path = path};
    const enum status status = open_both(store, &index, tokens);
    block_file_close(&index.file);
    store->format = "Megatron";
    store->width = index.type.width;
    store->largest_id = index.type.largest;
    return status;
}
