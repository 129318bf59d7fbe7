/* gathered: weights of which a rank keeps its share alone (parallel.zero 3).
 *
 * A group whose weights are gathered has no room for all of them. Each part (params.h) is gathered
 * from all ranks' shares into a window before it is used, forward and again backward: two windows
 * for blocks and the final norm, taken by turns, so that the next part is on its way while this one
 * computes; one for embedding and head, or, where modules of prediction read
 * both by turns, one each. What a window holds stays until another part wants it, or the weights
 * change.
 */
#ifndef TRAINER_GATHERED_H
#define TRAINER_GATHERED_H

#include "kernels/base/arena.h"
#include "parallel/zero.h"
#include "trainer/model/params.h"

struct model;
struct model_group;

enum { GATHERED_EMBED = 2, GATHERED_HEAD, GATHERED_WINDOWS };

/* Of one group. */
struct gathered {
    bool on;                        /* else weights are whole and all below is zero */
    bool apart;                     /* embedding and head have windows of their own */
    int64_t head;                   /* the part that the head is */
    void *kept;                     /* [zero.share] act: this rank's share; fp32: the masters */
    void *window[GATHERED_WINDOWS]; /* act */
    int64_t held[GATHERED_WINDOWS]; /* the part that is in it, or on its way; -1: none */
    int64_t coming;                 /* the part on its way; -1: none */
    struct comm_request request;    /* of that, on the host's memory, */
    struct comm_mark mark;          /* or a device's own */
};

/* Local. Whether a training model of this config gathers a group's weights, over `ranks`. */
bool gathered_wanted(const struct config *config, enum param_group group, int ranks);
/* Windows, and what is kept unless `kept`, which are the masters, is given. Measures, then hands
 * out. */
void gathered_layout(struct model_group *group, const struct architecture *arch, enum dtype act,
                     struct arena *arena);

/* Where element `offset` of the group is when its part is in its window. NULL before there is
 * memory. */
void *gathered_place(const struct model_group *group, int64_t offset, enum dtype act);

/* Collective over the replicas of each group; nothing where weights are whole, or where the rank
 * has nothing of a part. use: `part` is in its window on return, in FP8 with its codes, and `next`
 * (-1: none) on its way where nothing else is. forget: the weights have changed. */
void gathered_use(struct model *model, int64_t part, int64_t next);
/* The second half alone: `next` is on its way where nothing else is, unless `part`, which is in its
 * window, stands in its place. */
void gathered_ahead(struct model *model, int64_t part, int64_t next);
void gathered_forget(struct model *model);
/* Local. What is on its way may move on. */
void gathered_progress(struct model *model);

#endif
