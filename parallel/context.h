/* context: sequences divided between ranks (context parallelism), for those longer than one rank
 * has room for.
 *
 * A whole sequence is cut into 2 x size chunks; rank r has chunks r and 2 size - 1 - r, one behind
 * the other, so that causal attention, whose later tokens see more, costs every rank the same.
 * Keys and values are gathered and gradients of them summed up by their owners (as Llama 3 does,
 * Dubey et al. 2024, section 3.3.2), not sent round a ring (Liu et al. 2023): with these chunks a
 * rank sees three quarters of all keys on average, so that little is sent in vain, document masks
 * need no cases of their own, and nothing is merged: attention of a chunk is one pass over its
 * keys, with the sums of one rank. It takes room for the keys and values of one sequence in one
 * layer at a time. With one rank the callers leave it all out.
 */
#ifndef PARALLEL_CONTEXT_H
#define PARALLEL_CONTEXT_H

#include "kernels/base/arena.h"
#include "kernels/ops.h"
#include "parallel/comm.h"

struct cp {
    struct comm *comm;     /* borrowed */
    struct device *device; /* borrowed */
    const struct ops *ops; /* borrowed */
    int64_t chunk;         /* tokens of a chunk of a whole sequence; of one rank: all of it */
    int64_t width;         /* columns of the widest tensor */
    float *staged, *sums;  /* [size * chunk, width], [chunk, width]; NULL: one rank */
};

/* Neighbouring tokens: rows [at, at + count) of this rank's, tokens [first, first + count) of the
 * sequence. */
struct cp_piece {
    int64_t at, first, count;
};
enum { CP_PIECES = 2 };
struct cp_pieces {
    struct cp_piece piece[CP_PIECES];
};

/* Local. `sequence`: tokens of a whole sequence, a multiple of 2 x comm->size where that is not 1.
 */
void cp_init(struct cp *cp, struct comm *comm, struct device *device, const struct ops *ops,
             int64_t sequence, int64_t width);
/* Measures, then hands out (arena twice). */
void cp_layout(struct cp *cp, struct arena *arena);

static inline bool cp_alone(const struct cp *cp)
{
    return cp->comm->size == 1;
}

/* Of a sequence of `tokens` tokens, which only its last chunk has fewer than whole: what this rank
 * has, and how many that are. */
struct cp_pieces cp_pieces(const struct cp *cp, int64_t tokens);
int64_t cp_tokens(const struct cp *cp, int64_t tokens);
/* Host memory: of each of `count` sequences of `tokens` numbers this rank's, one after another;
 * `to` may be `from`. */
void cp_own_tokens(const struct cp *cp, int32_t *to, const int32_t *from, int64_t count,
                   int64_t tokens);

/* Both collective over comm, of one sequence; full [tokens, C], own [cp_tokens, C], C at most
 * width.
 *
 * full <- every rank's own; of any dtype with 2 or 4 bytes. Behind the last of own there must be
 * room for what a whole sequence has more, which is read. */
void cp_gather(const struct cp *cp, struct tensor full, struct tensor own);
/* own = the sum over ranks, in f32, of its rows of full, f32, rounded once. */
void cp_reduce(const struct cp *cp, struct tensor own, struct tensor full);

#endif
