#include <string.h>

#include "data/token_formats.h"

enum { HEADER = 256 * 4, QUESTIONS = 20240522 };

static const struct kind {
    int32_t magic, version;
    int width;
    int64_t begin; /* the id that documents begin with */
} kinds[] = {{20240520, 1, 2, 50256}, {20240801, 7, 4, 128000}};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static int32_t word(const char *data, int i)
{
    int32_t value;
    memcpy(&value, data + 4 * i, sizeof value);
    return value;
}

static const struct kind *kind_of(const char *data, int64_t bytes)
{
    for (int i = 0; i < KINDS && bytes >= 8; i++) {
        if (word(data, 0) == kinds[i].magic) {
            return &kinds[i];
        }
    }
    return NULL;
}

bool token_llmc_is(const char *head, int64_t bytes)
{
    return kind_of(head, bytes) != NULL || (bytes >= 8 && word(head, 0) == QUESTIONS);
}

/* data: the first bytes of the file, up to HEADER. */
static enum status check_header(const struct token_store *store, const struct kind *kind,
                                const char *data)
{
    const int64_t bytes = store->file->bytes;
    if (kind == NULL) {
        return status_fail(STATUS_DATA, "%s: llm.c's multiple-choice questions, not tokens",
                           store->path);
    }
    if (word(data, 1) != kind->version) {
        return status_fail(STATUS_DATA,
                           "%s: version %d of llm.c's files with magic %d; %d is built",
                           store->path, word(data, 1), kind->magic, kind->version);
    }
    const int64_t count = bytes >= HEADER ? word(data, 2) : 0;
    if (bytes < HEADER || count < 0 || HEADER + count * kind->width != bytes) {
        return status_fail(
            STATUS_DATA, "%s: %lld bytes, but its header says %lld tokens of %d bytes: truncated?",
            store->path, (long long)bytes, (long long)count, kind->width);
    }
    return count > 0 ? STATUS_OK : status_fail(STATUS_DATA, "%s: no tokens in it", store->path);
}

/* A document begins with the first token, and wherever the format's id stands. */
static int64_t cut(struct token_store *store, int64_t begin)
{
    int64_t documents = 1;
    for (int64_t i = 1; i < store->tokens; i++) {
        if (token_store_id(store, i) == (uint64_t)begin) {
            if (store->document_offsets != NULL && documents < store->documents) {
                store->document_offsets[documents] = i;
            }
            documents++;
        }
    }
    return documents;
}

enum status token_llmc_open(struct token_store *store)
{
    char header[HEADER] = {0};
    const int64_t bytes = store->file->bytes;
    block_file_read_through(store->file, 0, header, (size_t)(bytes < HEADER ? bytes : HEADER));
    TRY(block_file_status(store->file));
    const struct kind *kind = kind_of(header, bytes);
    TRY(check_header(store, kind, header));
    store->format = "llm.c";
    store->tokens = word(header, 2);
    store->width = kind->width;
    store->largest_id = kind->width == 2 ? UINT16_MAX : INT32_MAX;
    store->tokens_at = HEADER;
    store->eos_id = kind->begin;
    const int64_t documents = cut(store, kind->begin);
    TRY(block_file_status(store->file));
    TRY(token_store_reserve(store, documents));
    cut(store, kind->begin);
    TRY(block_file_status(store->file));
    store->document_offsets[0] = 0;
    store->document_offsets[store->documents] = store->tokens;
    return STATUS_OK;
}
