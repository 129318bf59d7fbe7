#include "data/bpe.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/hash.h"

/* Words of natural text repeat: a direct-mapped table of short ones, 64 bytes an entry. */
enum { CACHE_SLOTS = 1 << 15, CACHE_BYTES = 26, CACHE_IDS = 9 };
struct bpe_word {
    uint8_t bytes, count; /* bytes 0: free */
    char text[CACHE_BYTES];
    uint32_t ids[CACHE_IDS];
};
_Static_assert(sizeof(struct bpe_word) == 64, "a cache line");

enum status bpe_init(struct bpe *bpe, const struct token_table *tokens, int64_t merges,
                     bool whole_first)
{
    *bpe = (struct bpe){.tokens = tokens, .whole_first = whole_first, .slots = 1024};
    for (int byte = 0; byte < 256; byte++) {
        const char text = (char)byte;
        const int32_t id = token_table_find(tokens, &text, 1);
        if (id == TOKEN_NONE) {
            return status_fail(STATUS_DATA, "the vocabulary has no token for byte 0x%02x", byte);
        }
        bpe->byte_id[byte] = (uint32_t)id;
    }
    while (bpe->slots < 2 * (uint64_t)merges) {
        bpe->slots *= 2;
    }
    bpe->merges = malloc((size_t)bpe->slots * sizeof *bpe->merges);
    if (bpe->merges == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld merges", (long long)merges);
    }
    for (uint64_t i = 0; i < bpe->slots; i++) {
        bpe->merges[i].pair = BPE_NO_PAIR;
    }
    return STATUS_OK;
}

static uint64_t pair_of(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

static struct bpe_merge *slot_of(const struct bpe *bpe, uint64_t pair)
{
    uint64_t slot = (pair * 0x9e3779b97f4a7c15u) >> 32 & (bpe->slots - 1);
    while (bpe->merges[slot].pair != pair && bpe->merges[slot].pair != BPE_NO_PAIR) {
        slot = (slot + 1) & (bpe->slots - 1);
    }
    return &bpe->merges[slot];
}

const struct bpe_merge *bpe_find_merge(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    const struct bpe_merge *merge = slot_of(bpe, pair_of(left, right));
    return merge->pair == BPE_NO_PAIR ? NULL : merge;
}

static enum status no_token(const struct bpe *bpe, const char *text, size_t bytes)
{
    return status_fail(STATUS_DATA, "merge %lld needs token '%.*s', which the vocabulary lacks",
                       (long long)bpe->count, bytes < 64 ? (int)bytes : 64, text);
}

enum status bpe_add_merge(struct bpe *bpe, const char *left, size_t left_bytes, const char *right,
                          size_t right_bytes)
{
    struct byte_list both = {0};
    enum status status = byte_list_add(&both, left, left_bytes);
    status = status == STATUS_OK ? byte_list_add(&both, right, right_bytes) : status;
    if (status != STATUS_OK) {
        byte_list_free(&both);
        return status;
    }
    const int32_t a = token_table_find(bpe->tokens, left, left_bytes),
                  b = token_table_find(bpe->tokens, right, right_bytes),
                  c = token_table_find(bpe->tokens, both.data, both.count);
    if (c == TOKEN_NONE) {
        status = no_token(bpe, both.data, both.count);
    }
    byte_list_free(&both);
    TRY(status);
    if (a == TOKEN_NONE || b == TOKEN_NONE) {
        return a == TOKEN_NONE ? no_token(bpe, left, left_bytes)
                               : no_token(bpe, right, right_bytes);
    }
    struct bpe_merge *merge = slot_of(bpe, pair_of((uint32_t)a, (uint32_t)b));
    *merge = (struct bpe_merge){.pair = pair_of((uint32_t)a, (uint32_t)b),
                                .rank = (uint32_t)bpe->count,
                                .id = (uint32_t)c}; /* of a pair given twice the later rank */
    bpe->count++;
    assert((uint64_t)bpe->count < bpe->slots);
    return STATUS_OK;
}

void bpe_free(struct bpe *bpe)
{
    free(bpe->merges);
    *bpe = (struct bpe){0};
}

static enum status make_room(struct bpe_scratch *scratch, size_t bytes)
{
    if (scratch->cache == NULL) {
        scratch->cache = calloc(CACHE_SLOTS, sizeof *scratch->cache);
    }
    if (scratch->cache != NULL && scratch->room >= (int64_t)bytes) {
        return STATUS_OK;
    }
    if (bytes > INT32_MAX) {
        return status_fail(STATUS_DATA,
                           "a word of %zu bytes: more than 2 GiB without a place to cut", bytes);
    }
    const int64_t room = bytes < 1024 ? 1024 : (int64_t)bytes;
    struct bpe_symbol *symbols = realloc(scratch->symbols, (size_t)room * sizeof *symbols);
    scratch->symbols = symbols != NULL ? symbols : scratch->symbols;
    struct bpe_pair *heap = realloc(scratch->heap, 3 * (size_t)room * sizeof *heap);
    scratch->heap = heap != NULL ? heap : scratch->heap;
    if (symbols == NULL || heap == NULL || scratch->cache == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a word of %zu bytes", bytes);
    }
    scratch->room = room;
    return STATUS_OK;
}

static void push(struct bpe_scratch *scratch, struct bpe_pair pair)
{
    struct bpe_pair *heap = scratch->heap;
    int64_t at = scratch->heap_count++;
    for (; at > 0 && heap[(at - 1) / 2].order > pair.order; at = (at - 1) / 2) {
        heap[at] = heap[(at - 1) / 2];
    }
    heap[at] = pair;
}

static struct bpe_pair pop(struct bpe_scratch *scratch)
{
    struct bpe_pair *heap = scratch->heap;
    const struct bpe_pair least = heap[0], last = heap[--scratch->heap_count];
    const int64_t count = scratch->heap_count;
    int64_t at = 0;
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= count) {
            break;
        }
        child += child + 1 < count && heap[child + 1].order < heap[child].order;
        if (heap[child].order >= last.order) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return least;
}

/* The pair of a symbol and the one after it, if a merge joins them. */
static void consider(const struct bpe *bpe, struct bpe_scratch *scratch, int32_t at)
{
    const struct bpe_symbol *symbols = scratch->symbols;
    if (at < 0 || symbols[at].after < 0) {
        return;
    }
    const struct bpe_merge *merge =
        bpe_find_merge(bpe, symbols[at].id, symbols[symbols[at].after].id);
    if (merge != NULL) {
        push(scratch, (struct bpe_pair){.order = (uint64_t)merge->rank << 32 | (uint32_t)at,
                                        .id = merge->id});
    }
}

/* A pair is stale when one of its two has been merged with another since: then they no longer
 * become what they would have. At most n - 1 pairs at the start and two more a merge: 3n. */
static void merge_all(const struct bpe *bpe, struct bpe_scratch *scratch)
{
    struct bpe_symbol *symbols = scratch->symbols;
    while (scratch->heap_count > 0) {
        const struct bpe_pair pair = pop(scratch);
        struct bpe_symbol *left = &symbols[(uint32_t)pair.order];
        if (left->after < 0 || left->before == -2) {
            continue;
        }
        struct bpe_symbol *right = &symbols[left->after];
        const struct bpe_merge *merge = bpe_find_merge(bpe, left->id, right->id);
        if (merge == NULL || merge->id != pair.id) {
            continue;
        }
        left->id = pair.id;
        left->after = right->after;
        right->before = -2; /* gone */
        if (left->after >= 0) {
            symbols[left->after].before = (int32_t)(left - symbols);
        }
        consider(bpe, scratch, left->before);
        consider(bpe, scratch, (int32_t)(left - symbols));
    }
}

static enum status encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word,
                          size_t bytes, struct id_list *out)
{
    TRY(id_list_reserve(out, bytes));
    if (bpe->whole_first) {
        const int32_t whole = token_table_find(bpe->tokens, word, bytes);
        if (whole != TOKEN_NONE) {
            out->data[out->count++] = (uint32_t)whole;
            return STATUS_OK;
        }
    }
    struct bpe_symbol *symbols = scratch->symbols;
    const int32_t count = (int32_t)bytes;
    for (int32_t i = 0; i < count; i++) {
        symbols[i] = (struct bpe_symbol){.id = bpe->byte_id[(unsigned char)word[i]],
                                         .before = i - 1,
                                         .after = i + 1 < count ? i + 1 : -1};
    }
    scratch->heap_count = 0;
    for (int32_t i = 0; i < count; i++) {
        consider(bpe, scratch, i);
    }
    merge_all(bpe, scratch);
    for (int32_t i = 0; i >= 0; i = symbols[i].after) {
        out->data[out->count++] = symbols[i].id;
    }
    return STATUS_OK;
}

enum status bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *word,
                       size_t bytes, struct id_list *out)
{
    if (bytes == 0) {
        return STATUS_OK;
    }
    TRY(make_room(scratch, bytes));
    if (bytes > CACHE_BYTES) {
        return encode(bpe, scratch, word, bytes, out);
    }
    struct bpe_word *entry = &scratch->cache[hash_bytes(word, bytes) % CACHE_SLOTS];
    if (entry->bytes == bytes && memcmp(entry->text, word, bytes) == 0) {
        TRY(id_list_reserve(out, entry->count));
        memcpy(out->data + out->count, entry->ids, entry->count * sizeof *entry->ids);
        out->count += entry->count;
        return STATUS_OK;
    }
    const size_t before = out->count;
    TRY(encode(bpe, scratch, word, bytes, out));
    const size_t count = out->count - before;
    if (count <= CACHE_IDS) {
        entry->bytes = (uint8_t)bytes;
        entry->count = (uint8_t)count;
        memcpy(entry->text, word, bytes);
        memcpy(entry->ids, out->data + before, count * sizeof *entry->ids);
    }
    return STATUS_OK;
}

void bpe_scratch_free(struct bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    free(scratch->cache);
    *scratch = (struct bpe_scratch){0};
}
