#include "data/fim.h"

#include <math.h>

#include "kernels/base/rng.h"

__extension__ typedef __int128 wide;
__extension__ typedef unsigned __int128 unsigned_wide;

enum { PARTS_BITS = 20 };

int64_t fim_parts(double rate)
{
    return llround(rate * (double)(1 << PARTS_BITS));
}

/* Documents taken before document `index`, the first of a block, or of all. */
static int64_t taken_before(const struct fim *fim, int64_t index)
{
    return (int64_t)((wide)index * (wide)fim->parts >> PARTS_BITS);
}

int64_t fim_stream(const struct fim *fim, const struct token_store *store)
{
    return store->tokens + FIM_TOKENS * taken_before(fim, store->documents);
}

/* Which documents of a block are taken. */
static uint64_t block_taken(const struct fim *fim, const struct token_store *store, int64_t block)
{
    const int64_t first = block * FIM_BLOCK, left = store->documents - first,
                  count = left < FIM_BLOCK ? left : FIM_BLOCK,
                  takes = taken_before(fim, first + count) - taken_before(fim, first);
    const uint64_t key = rng_subkey(fim->key, (uint64_t)block);
    uint64_t taken = 0;
    for (int64_t i = 0; i < count && takes > 0; i++) {
        const bool takes_it = rng_permute(key, (uint64_t)i, (uint64_t)count) < (uint64_t)takes;
        taken |= (uint64_t)takes_it << i;
    }
    return taken;
}

/* 0 .. most, uniform. */
static int64_t scale(uint32_t high, uint32_t low, int64_t most)
{
    const uint64_t bits = ((uint64_t)high << 32) | low;
    return (int64_t)((unsigned_wide)bits * (unsigned_wide)((uint64_t)most + 1) >> 64);
}

static bool is_taken(const struct fim_document *document, int64_t index)
{
    return (document->taken >> (index % FIM_BLOCK) & 1) != 0;
}

/* Tokens of document `index` in the stream, its block's bits being known. */
static int64_t extent(const struct token_store *store, const struct fim_document *document,
                      int64_t index)
{
    return store->document_offsets[index + 1] - store->document_offsets[index] +
           (is_taken(document, index) ? FIM_TOKENS : 0);
}

/* The document `index` at `begin` of the stream. */
static void shape(const struct fim *fim, const struct token_store *store,
                  struct fim_document *document, int64_t index, int64_t begin)
{
    const int64_t from = store->document_offsets[index], to = store->document_offsets[index + 1];
    const bool taken = is_taken(document, index);
    document->index = index;
    document->begin = begin;
    document->end = begin + extent(store, document, index);
    document->from = from;
    document->body = to - from;
    document->low = -1;
    if (taken) {
        uint32_t bits[4];
        const bool ends = to > from && token_store_get(store, to - 1) == store->eos_id;
        document->body -= ends ? 1 : 0;
        rng_bits(fim->key, ((uint64_t)1 << 63) + (uint64_t)index, bits);
        const int64_t a = scale(bits[0], bits[1], document->body),
                      b = scale(bits[2], bits[3], document->body);
        document->low = a < b ? a : b;
        document->high = a < b ? b : a;
    }
}

static int64_t block_begin(const struct fim *fim, const struct token_store *store, int64_t block)
{
    const int64_t first = block * FIM_BLOCK;
    return store->document_offsets[first] + FIM_TOKENS * taken_before(fim, first);
}

void fim_find(const struct fim *fim, const struct token_store *store, int64_t position,
              struct fim_document *document)
{
    if (fim->parts == 0) { /* the stream is the file */
        const int64_t index = token_store_document(store, position);
        document->taken = 0;
        shape(fim, store, document, index, store->document_offsets[index]);
        return;
    }
    int64_t low = 0, high = (store->documents - 1) / FIM_BLOCK;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (block_begin(fim, store, middle) <= position) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    document->taken = block_taken(fim, store, low);
    int64_t index = low * FIM_BLOCK, begin = block_begin(fim, store, low);
    for (int64_t end = 0; (end = begin + extent(store, document, index)) <= position; index++) {
        begin = end;
    }
    shape(fim, store, document, index, begin); /* only of this one tokens are read */
}

void fim_next(const struct fim *fim, const struct token_store *store, struct fim_document *document)
{
    const int64_t index = document->index + 1;
    if (index % FIM_BLOCK == 0 && fim->parts != 0) {
        document->taken = block_taken(fim, store, index / FIM_BLOCK);
    }
    shape(fim, store, document, index, document->end);
}

int64_t fim_origin(const struct fim_document *document, int64_t offset)
{
    const int64_t low = document->low, high = document->high, body = document->body;
    if (low < 0) {
        return document->from + offset;
    }
    const int64_t suffix = low + 1, middle = suffix + 1 + body - high, end = body + FIM_TOKENS;
    if (offset == 0 || offset == suffix || offset == middle) {
        return offset == 0 ? FIM_PREFIX : offset == suffix ? FIM_SUFFIX : FIM_MIDDLE;
    }
    const int64_t at = offset < suffix   ? offset - 1
                       : offset < middle ? high + offset - suffix - 1
                       : offset < end    ? low + offset - middle - 1
                                         : body; /* the end-of-document */
    return document->from + at;
}
