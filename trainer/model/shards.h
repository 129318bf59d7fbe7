/* shards: gradients of which a rank keeps its share alone (parallel.zero 2).
 *
 * A group whose gradients are sharded has no room for all of them. A part of it (params.h: a block,
 * the embedding, the final norm, the head) opens before the first op that adds to its gradient, in
 * a window, and closes behind the last: its gradient starts for the ranks that keep it, where it is
 * added to what earlier micro-batches gave, while the part below is computed. There are two windows
 * for blocks and the final norm, taken by turns, and one for embedding and head, which are never
 * open together. So an op's address is the same in every micro-batch.
 *
 * On host memory one part is on its way at a time, from its close on. On a GPU two may be, whose
 * sums need less room, and they start when shards_start says so: where no exchange with experts
 * follows soon, which would have to wait for them (comm_device_mark).
 */
#ifndef TRAINER_SHARDS_H
#define TRAINER_SHARDS_H

#include "kernels/base/arena.h"
#include "parallel/zero.h"
#include "trainer/model/params.h"

struct model;
struct model_group;

enum { SHARDS_ENDS = 2, SHARDS_WINDOWS, SHARDS_FLIGHTS = 2 };

/* A part that is closed. */
struct shards_flight {
    bool waits; /* for shards_start */
    int64_t part;
    void *room; /* view into shards.room */
    struct zero_flight flight;
};

/* Of one group. */
struct shards {
    bool on;                      /* else gradients are whole and all below is zero */
    int64_t head;                 /* the part that the head is */
    void *window[SHARDS_WINDOWS]; /* f32, or int64 (gradients.h) */
    int64_t open[SHARDS_WINDOWS]; /* the part that is in it; -1: none */
    void *room;                   /* for the exchange of the largest part */
    struct shards_flight flight[SHARDS_FLIGHTS]; /* by turns; on host memory the first alone */
    int next;
};

/* Local. Whether a training model of this config has sharded gradients in a group, over `ranks`. */
bool shards_wanted(const struct config *config, enum param_group group, int ranks);
/* Windows and room. Measures, then hands out. */
void shards_layout(struct model_group *group, const struct architecture *arch, size_t width,
                   struct arena *arena);

/* Where the gradient of element `offset` of the group adds up: f32, or integers. NULL before there
 * is memory. */
float *shards_grad(const struct model_group *group, int64_t offset);
int64_t *shards_sum(const struct model_group *group, int64_t offset);
/* Whether that place is the element's now. */
bool shards_holds(const struct model_group *group, int64_t offset);

/* Local. No window holds anything, shares are 0. */
void shards_clear(struct model *model);
/* Nothing where gradients are whole, or where the rank has nothing of the part. open: all zeros;
 * nothing where it is open. close: collective over the replicas of each group. */
void shards_open(struct model *model, int64_t part);
void shards_close(struct model *model, int64_t part);
/* Collective over the replicas of each group. What is closed starts for those that keep it, beside
 * what follows. */
void shards_start(struct model *model);
/* Local. What is under way may move on. */
void shards_progress(struct model *model);
/* Collective over the group's replicas: nothing is closed but not added, nothing is under way any
 * more. */
void shards_settle(struct model *model, enum param_group group);

#endif
