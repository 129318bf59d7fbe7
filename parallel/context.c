#include "parallel/context.h"

#include <assert.h>
#include <string.h>

void cp_init(struct cp *cp, struct comm *comm, struct device *device, const struct ops *ops,
             int64_t sequence, int64_t width)
{
    const int64_t chunks = comm->size == 1 ? 1 : CP_PIECES * comm->size;
    assert(sequence % chunks == 0);
    *cp = (struct cp){
        .comm = comm, .device = device, .ops = ops, .chunk = sequence / chunks, .width = width};
}

void cp_layout(struct cp *cp, struct arena *arena)
{
    if (!cp_alone(cp)) {
        const size_t bytes = (size_t)(cp->chunk * cp->width) * sizeof(float);
        cp->staged = arena_alloc(arena, (size_t)cp->comm->size * bytes);
        cp->sums = arena_alloc(arena, bytes);
    }
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

struct cp_pieces cp_pieces(const struct cp *cp, int64_t tokens)
{
    struct cp_pieces own = {{{.count = tokens}, {.at = tokens}}};
    if (!cp_alone(cp)) {
        const int r = cp->comm->rank;
        assert(tokens > second_of(cp, 0));
        own.piece[0] = (struct cp_piece){.first = r * cp->chunk, .count = cp->chunk};
        own.piece[1] = (struct cp_piece){.at = cp->chunk,
                                         .first = second_of(cp, r),
                                         .count = length_of(cp, second_of(cp, r), tokens)};
    }
    return own;
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

static char *row(struct tensor x, int64_t index)
{
    return (char *)x.data + (size_t)(index * x.dim[1]) * dtype_bytes(x.dtype);
}

/* First chunks stand in the order of the ranks, second ones the other way round. */
void cp_gather(const struct cp *cp, struct tensor full, struct tensor own)
{
    const int64_t tokens = full.dim[0], width = own.dim[1];
    const size_t row_bytes = (size_t)width * dtype_bytes(own.dtype),
                 bytes = (size_t)cp->chunk * row_bytes;
    assert(own.dim[0] == cp_tokens(cp, tokens) && full.dim[1] == width && width <= cp->width);
    comm_device_all_gather(cp->comm, full.data, own.data, bytes);
    comm_device_all_gather(cp->comm, cp->staged, row(own, cp->chunk), bytes);
    for (int r = 0; r < cp->comm->size; r++) {
        const int64_t first = second_of(cp, r);
        cp->ops->copy(cp->device, row(full, first), (char *)cp->staged + (size_t)r * bytes,
                      (size_t)length_of(cp, first, tokens) * row_bytes);
    }
}

/* own's rows from `at` on = the sum over ranks of rank's chunk of parts. */
static void sum_chunk(const struct cp *cp, struct tensor own, int64_t at, int64_t rows,
                      const float *parts)
{
    const int64_t width = own.dim[1];
    comm_device_reduce_scatter(cp->comm, cp->sums, parts, cp->chunk * width, DTYPE_F32);
    cp->ops->cast(cp->device, tensor_2d(row(own, at), own.dtype, rows, width),
                  tensor_2d(cp->sums, DTYPE_F32, rows, width));
}

void cp_reduce(const struct cp *cp, struct tensor own, struct tensor full)
{
    const int64_t tokens = full.dim[0], width = own.dim[1];
    const struct cp_pieces pieces = cp_pieces(cp, tokens);
    assert(full.dtype == DTYPE_F32 && own.dim[0] == cp_tokens(cp, tokens));
    assert(full.dim[1] == width && width <= cp->width);
    sum_chunk(cp, own, 0, cp->chunk, full.data);
    for (int r = 0; r < cp->comm->size; r++) {
        const int64_t first = second_of(cp, r);
        cp->ops->copy(cp->device, cp->staged + r * cp->chunk * width, row(full, first),
                      (size_t)(length_of(cp, first, tokens) * width) * sizeof(float));
    }
    sum_chunk(cp, own, pieces.piece[1].at, pieces.piece[1].count, cp->staged);
}
