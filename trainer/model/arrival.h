/* arrival: weights that come from the ranks which have updated them beside the forward that follows
 * (parallel.zero 1; those of experts always): the mirror of reduction.h.
 *
 * Every element of a group has one rank that updates it, its keeper (zero.h). Behind the update
 * each part (params.h: the embedding, a block, the head) starts from its keeper to all others,
 * part after part in the order in which forward reads them, which is that of the row; gathered_use,
 * in front of whatever reads a part, waits for it. The bytes are those of a gather, and so are all
 * bits.
 *
 * On host memory alone: keepers send at once, a piece after the other; each of the other ranks asks
 * every keeper for a few pieces ahead, into the place where they belong, so that what is read first
 * comes first. All goes on in whatever calls of MPI follow. Not so, but behind the update, all at
 * once: in FP8, where codes are made of whole weights then and what is not finite is counted; an
 * embedding that two stages of a pipeline share; parallel.zero 2; on GPUs; and weights that come
 * from a checkpoint or are fresh (model_publish).
 */
#ifndef TRAINER_ARRIVAL_H
#define TRAINER_ARRIVAL_H

#include <stdbool.h>
#include <stdint.h>

#include "parallel/comm.h"
#include "trainer/model/params.h"

struct model;
struct model_group;

/* Elements of a group that are of one part and one keeper. */
struct arrival_piece {
    int64_t first, count, part;
    struct comm_rows *rows; /* NULL, or on its way */
};

/* A keeper's pieces, [first, end) of all: those before `done` are there (of this rank: have been
 * taken), those up to `next` on their way. */
struct arrival_keeper {
    int64_t first, end, done, next;
};

/* Of one group; all zero where weights come behind the update. */
struct arrival {
    bool coming, sending; /* not all is there; not all has been taken */
    int64_t pieces;
    struct arrival_piece *piece;   /* [pieces] owned, in the order of the row */
    struct arrival_keeper *keeper; /* [ranks] owned */
    int64_t there;                 /* while coming: elements, from the first on, that may be read */
    struct comm_request message;   /* all of them, for a trace */
};

/* Local. Of a training model, behind reduction_init. Errors: STATUS_RESOURCE. */
enum status arrival_init(struct model *model) __attribute__((warn_unused_result));
/* Local. Of a model that will run: room for what may be under way. Errors: STATUS_RESOURCE. */
enum status arrival_reserve(struct model *model) __attribute__((warn_unused_result));
/* Accepts what was never made. Collective where something is under way. */
void arrival_free(struct model *model);

/* Local. Whether weights of a group come so; the same on all its ranks. */
bool arrival_wanted(const struct model *model, enum param_group group);
/* Collective over the group's replicas, of a group that is wanted, with nothing of it under way:
 * this rank's share is updated. Until arrival_finish a rank's share is not written, and of the
 * others' only what arrival_use has waited for is read. */
void arrival_start(struct model *model, enum param_group group);
/* Waits until all up to this part is there: for what others have started. */
void arrival_use(struct model *model, int64_t part);
/* Local. What is on its way may move on. */
void arrival_progress(struct model *model);
/* Collective over the replicas of each group. All weights are there, and nothing is under way: in
 * front of whatever reads or writes them but forward and backward. */
void arrival_finish(struct model *model);

/* Local. Whether elements [first, first + count) may be read. */
bool arrival_has(const struct model_group *group, int64_t first, int64_t count);

#endif
