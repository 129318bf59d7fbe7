/* context: sequences divided between ranks (context parallelism), for those longer than one rank
 * has room for.
 *
 * A whole sequence is cut into 2 x size chunks; rank r has chunks r and 2 size - 1 - r, one behind
 * the other: its block. So causal attention, whose later tokens see more, costs every rank the
 * same. Blocks of keys go round a ring (Liu et al. 2023): on turn t rank r has the block of rank
 * r - t, attends to it and passes it on meanwhile. Of another rank's block a rank sees half the
 * pairs of chunks, and every rank as many, on every turn. With one rank the callers leave it all
 * out.
 */
#ifndef PARALLEL_CONTEXT_H
#define PARALLEL_CONTEXT_H

#include "kernels/ops.h"
#include "parallel/comm.h"

enum { CP_PIECES = 2, CP_PASSES = 2 };

struct cp {
    struct comm *comm;     /* borrowed */
    struct device *device; /* borrowed */
    const struct ops *ops; /* borrowed */
    int64_t chunk;         /* tokens of a chunk of a whole sequence; of one rank: all of it */
    /* of cp_pass_start, where memory is the host's */
    struct comm_request pass[CP_PASSES];
    int passes; /* under way */
};

/* Neighbouring tokens: rows [at, at + count) of this rank's, tokens [first, first + count) of the
 * sequence. */
struct cp_piece {
    int64_t at, first, count;
};
struct cp_pieces {
    struct cp_piece piece[CP_PIECES];
};

/* Local. `sequence`: tokens of a whole sequence, a multiple of 2 x comm->size where that is not 1.
 */
void cp_init(struct cp *cp, struct comm *comm, struct device *device, const struct ops *ops,
             int64_t sequence);

static inline bool cp_alone(const struct cp *cp)
{
    return cp->comm->size == 1;
}

/* Of a sequence of `tokens` tokens, which only its last chunk has fewer than whole: what this rank
 * has, and how many that are; what another has. */
struct cp_pieces cp_pieces(const struct cp *cp, int64_t tokens);
int64_t cp_tokens(const struct cp *cp, int64_t tokens);
struct cp_pieces cp_pieces_of(const struct cp *cp, int rank, int64_t tokens);
/* Host memory: of each of `count` sequences of `tokens` numbers this rank's, one after another;
 * `to` may be `from`. */
void cp_own_tokens(const struct cp *cp, int32_t *to, const int32_t *from, int64_t count,
                   int64_t tokens);

/* Turns of a ring: on turn 0 a rank has its own block, on turn comm->size again. */
int cp_source(const struct cp *cp, int64_t turn);
/* Whether any query of a piece sees any key of another; of the first query: first visible token,
 * documents; window 0: none. */
bool cp_sees(const struct cp_piece *queries, const struct cp_piece *keys, int64_t window,
             int64_t first);

/* Collective over comm, at most CP_PASSES under way: `send` goes to the next rank, `recv` comes
 * from the one before, beside what is enqueued or computed until cp_pass_finish, which ends all;
 * name: comm_pass_start.
 * cp_progress: on the host messages move on in calls of MPI: asks. */
void cp_pass_start(struct cp *cp, const char *name, void *recv, const void *send, size_t bytes);
void cp_progress(struct cp *cp);
void cp_pass_finish(struct cp *cp);

/* Collective over comm: full[tokens] of one sequence, from every rank's own[cp_tokens], rows of
 * row_bytes; parts[size * CP_PIECES * chunk] is scratch. Behind the last of own there must be room
 * for what a whole sequence has more, which is read. */
void cp_gather(const struct cp *cp, void *full, void *parts, const void *own, int64_t tokens,
               size_t row_bytes);

#endif
