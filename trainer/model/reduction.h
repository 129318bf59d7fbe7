/* reduction: sums over ranks of gradients that are whole (parallel.zero 1; those of experts
 * always), a part at a time, beside the backward of the blocks below.
 *
 * In the last micro-batch of a step a part of a group (params.h: a block, the embedding, the head)
 * closes when its backward has ended: nothing adds to its gradient any more. It goes to the ranks
 * whose shares it lies in; shares are one piece of the whole row each, so that most blocks are one
 * rank's. Sums are the same numbers in the same order, rank order, as those of zero_reduce_start,
 * and so are all bits, of nccl's of two ranks.
 *
 * On host memory every rank sends at once, piece by piece; the rank that keeps a piece takes one at
 * a time, in what the group has as scratch of its reduction (model_group.reduced), and adds it up
 * where the share's gradients stand. Both go on in whatever calls of MPI follow. On a GPU nccl
 * reduces each to its keeper, into that scratch, from reduction_start on: behind the exchanges with
 * experts, which would have to wait for it (comm_device_mark).
 *
 * Not so, but behind backward, all at once: an embedding that two stages of a pipeline share; and
 * on GPUs what is staged through the host; where exchanges with experts are recorded
 * (router.dispatch padded), beside which nothing may be under way; where ranks of tp or cp exchange
 * rows inside attention, which would wait; and groups of more ranks than a rank has parts, of which
 * each would be many small reductions.
 */
#ifndef TRAINER_REDUCTION_H
#define TRAINER_REDUCTION_H

#include <stdbool.h>
#include <stdint.h>

#include "parallel/comm.h"
#include "trainer/model/params.h"

struct model;
struct model_group;

/* Elements of a group. */
struct reduction_part {
    int64_t first, end;
};

/* How far a rank is with the pieces of the parts that are closed: the part, in the order in which
 * they closed, and the element. */
struct reduction_at {
    int64_t part, element;
};

/* A piece that this rank keeps, or sends. */
struct reduction_piece {
    int64_t first, count;
    int keeper;
};

/* Of one group. */
struct reduction {
    bool begun; /* with this step's: something is closed */
    int64_t parts;
    struct reduction_part *part; /* [parts] owned */
    bool *closed;                /* [parts] owned */
    int64_t *order;              /* [parts] owned: those that are closed, in that order */
    int64_t count;               /* of them */
    int64_t most;                /* elements of a piece on the host */
    struct reduction_at sending,
        taking;              /* on the host: the next piece; on a device: taking alone */
    struct comm_rows **sent; /* [room] owned: under way from `first` on, the oldest first */
    int64_t room, first, next;
    struct comm_rows *coming; /* NULL, or of this piece: */
    struct reduction_piece piece;
    struct comm_mark mark; /* a device's, of what was started last */
};

/* Local. Of a training model, after its groups. Errors: STATUS_RESOURCE. */
enum status reduction_init(struct model *model) __attribute__((warn_unused_result));
/* Local. Of a model that will run: room for what may be under way, in groups of few ranks all of
 * it. Errors: STATUS_RESOURCE. */
enum status reduction_reserve(struct model *model) __attribute__((warn_unused_result));
void reduction_free(struct model *model); /* accepts what was never made */

/* Local. Whether the gradients of a group are reduced so, and not behind backward all at once; the
 * same on all ranks of the group. */
bool reduction_wanted(const struct model *model, enum param_group group);
/* Local. Whether a GPU would, of a group over `ranks` with so many parts that are not empty. */
bool reduction_of_gpu(const struct config *config, enum param_group group, int64_t ranks,
                      int64_t experts_ranks, int64_t parts);

/* Local. Bytes of the group's scratch that a reduction on the host never touches: 0 where Muon, or
 * sums of integers, use all of it, and where the group is not reduced so. */
size_t reduction_spare(const struct model *model, enum param_group group);

/* Local. Nothing is closed. */
void reduction_clear(struct model *model);
/* Collective over the replicas of each group, in the same order on all ranks of it. All gradients
 * of `part` are there, in every group that is reduced so: on the host they start. Nothing where it
 * is closed. */
void reduction_close(struct model *model, int64_t part);
/* Collective likewise, of a device with memory of its own: what is closed starts. */
void reduction_start(struct model *model);
/* Local. What is under way may move on. */
void reduction_progress(struct model *model);
/* Collective over the group's replicas. All parts are closed, and the sums of this rank's share are
 * in group->shard, integers in group->reduced. */
void reduction_settle(struct model *model, enum param_group group);

#endif
