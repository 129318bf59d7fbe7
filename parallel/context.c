#include "parallel/context.h"

#include <assert.h>
#include <string.h>

void cp_init(struct cp *cp, struct comm *comm, struct device *device, const struct ops *ops,
             int64_t sequence)
{
    const int64_t chunks = comm->size == 1 ? 1 : CP_PIECES * comm->size;
    assert(sequence % chunks == 0);
    *cp = (struct cp){.comm = comm, .device = device, .ops = ops, .chunk = sequence / chunks};
}

/* Rank r's second chunk. */
static int64_t second_of(const struct cp *cp, int r)
{
    return (CP_PIECES * cp->comm->size - 1 - r) * cp->chunk;
}

/* Tokens of the chunk that begins at `first`. */
static int64_t length_of(const struct cp *cp, int64_t first, int64_t tokens)
{
    return tokens - first < cp->chunk ? tokens - first : cp->chunk;
}

struct cp_pieces cp_pieces_of(const struct cp *cp, int rank, int64_t tokens)
{
    struct cp_pieces own = {{{.count = tokens}, {.at = tokens}}};
    if (!cp_alone(cp)) {
        assert(tokens > second_of(cp, 0));
        own.piece[0] = (struct cp_piece){.first = rank * cp->chunk, .count = cp->chunk};
        own.piece[1] = (struct cp_piece){.at = cp->chunk,
                                         .first = second_of(cp, rank),
                                         .count = length_of(cp, second_of(cp, rank), tokens)};
    }
    return own;
}

struct cp_pieces cp_pieces(const struct cp *cp, int64_t tokens)
{
    return cp_pieces_of(cp, cp->comm->rank, tokens);
}

int64_t cp_tokens(const struct cp *cp, int64_t tokens)
{
    const struct cp_pieces own = cp_pieces(cp, tokens);
    return own.piece[0].count + own.piece[1].count;
}

void cp_own_tokens(const struct cp *cp, int32_t *to, const int32_t *from, int64_t count,
                   int64_t tokens)
{
    const struct cp_pieces own = cp_pieces(cp, tokens);
    const int64_t mine = cp_tokens(cp, tokens);
    for (int64_t s = 0; s < count; s++) {
        for (int p = 0; p < CP_PIECES; p++) {
            const struct cp_piece *piece = &own.piece[p];
            memmove(to + s * mine + piece->at, from + s * tokens + piece->first,
                    (size_t)piece->count * sizeof *to);
        }
    }
}

int cp_source(const struct cp *cp, int64_t turn)
{
    return (int)((cp->comm->rank + cp->comm->size - turn % cp->comm->size) % cp->comm->size);
}

bool cp_sees(const struct cp_piece *queries, const struct cp_piece *keys, int64_t window,
             int64_t first)
{
    const int64_t last = queries->first + queries->count - 1,
                  low = window > 0 && queries->first - window + 1 > first
                            ? queries->first - window + 1
                            : first;
    return queries->count > 0 && keys->count > 0 && keys->first <= last &&
           keys->first + keys->count > low;
}

void cp_pass_start(struct cp *cp, const char *name, void *recv, const void *send, size_t bytes)
{
    assert(cp->passes < CP_PASSES);
    if (comm_device_on_host(cp->comm)) {
        comm_pass_start(cp->comm, name, recv, send, bytes, &cp->pass[cp->passes]);
    } else {
        comm_device_pass_start(cp->comm, name, recv, send, bytes);
    }
    cp->passes++;
}

void cp_progress(struct cp *cp)
{
    for (int i = 0; i < cp->passes && comm_device_on_host(cp->comm); i++) {
        comm_exchange_test(cp->comm, &cp->pass[i]);
    }
}

void cp_pass_finish(struct cp *cp)
{
    for (int i = 0; i < cp->passes && comm_device_on_host(cp->comm); i++) {
        comm_exchange_finish(cp->comm, &cp->pass[i]);
    }
    if (cp->passes > 0) {
        comm_device_finish(cp->comm);
    }
    cp->passes = 0;
}

void cp_gather(const struct cp *cp, void *full, void *parts, const void *own, int64_t tokens,
               size_t row_bytes)
{
    const size_t block = (size_t)(CP_PIECES * cp->chunk) * row_bytes;
    comm_device_all_gather(cp->comm, parts, own, block);
    for (int r = 0; r < cp->comm->size; r++) {
        const struct cp_pieces pieces = cp_pieces_of(cp, r, tokens);
        for (int p = 0; p < CP_PIECES; p++) {
            const struct cp_piece *piece = &pieces.piece[p];
            cp->ops->copy(cp->device, (char *)full + (size_t)piece->first * row_bytes,
                          (const char *)parts + (size_t)r * block + (size_t)piece->at * row_bytes,
                          (size_t)piece->count * row_bytes);
        }
    }
}
