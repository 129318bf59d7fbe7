/* tensor: sequences divided between the ranks that divide matrices (tensor parallelism: Shoeybi et
 * al. 2019; with sequence parallelism: Korthikanti et al. 2022).
 *
 * Outside of divided matrices a rank has `share` tokens of every sequence, the last rank maybe
 * fewer: rank r those from r * share on. A matrix divided by rows (of its output) reads all tokens,
 * gathered; one divided by columns makes a part of the sum for all of them, of which every rank
 * gets the sum of its own. Backward is the other way round. With one rank the callers leave it all
 * out.
 */
#ifndef PARALLEL_TENSOR_H
#define PARALLEL_TENSOR_H

#include "kernels/base/arena.h"
#include "kernels/ops_fp8.h"
#include "parallel/comm.h"

struct tp {
    struct comm *comm;     /* borrowed */
    struct device *device; /* borrowed */
    const struct ops *ops; /* borrowed */
    int64_t share;         /* tokens of a whole sequence on each rank */
    int64_t width;         /* columns of the widest tensor */
    float *sums; /* [(size + 1) * share, width] of a reduction, and what travels of scales;
                    NULL: one rank */
};

/* Local. `sequence`: tokens of a whole sequence, a multiple of comm->size. */
void tp_init(struct tp *tp, struct comm *comm, struct device *device, const struct ops *ops,
             int64_t sequence, int64_t width);
/* Measures, then hands out (arena twice). */
void tp_layout(struct tp *tp, struct arena *arena);

static inline bool tp_alone(const struct tp *tp)
{
    return tp->comm->size == 1;
}

/* Of a sequence of `tokens` tokens, at most a whole one: this rank's first, and how many. */
int64_t tp_first(const struct tp *tp);
int64_t tp_tokens(const struct tp *tp, int64_t tokens);

/* Both collective over comm, of `count` sequences one after another; full [count * tokens, C], own
 * [count * tp_tokens, C], of any dtype with 2 or 4 bytes.
 *
 * full <- every rank's own. Behind the last of either there must be room for what a whole sequence
 * has more, which is read or overwritten. */
void tp_gather(const struct tp *tp, struct tensor full, struct tensor own, int64_t count);
/* The same of codes, a byte a value, with the scales of their tiles: what every rank quantised of
 * its own rows, whose bytes one rank would have made of all. Room behind the last row of codes as
 * above. */
void tp_gather_codes(const struct tp *tp, struct fp8_rows full, struct fp8_rows own, int64_t count);
/* own = (add ? own : 0) + the sum over ranks, in f32, of its rows of full. Behind the last row of
 * `full` as above. */
void tp_reduce(const struct tp *tp, struct tensor own, struct tensor full, int64_t count, bool add);

#endif
