/* deferred: gradients of weights that wait, where a schedule divides backward into gradients of
 * inputs and of weights (parallel/pipeline.h).
 *
 * A micro-batch of a part whose backward is of inputs only has a drawer. linear_backward_weight
 * puts each product there with what it reads: in place, where that is the slot's own and stays (a
 * norm that is kept, gates of an MLP), else as a copy, since gradients, gathered rows, hidden rows
 * and codes of FP8 stand in buffers that all layers share. The weight action makes the products in
 * the same order. What is small or is not a linear layer of a block is made at once: gradients of
 * norms, routers, embedding, head, and the projection of multi-token prediction; also kv_b where cp
 * divides sequences, whose keys are gathered one sequence at a time, and experts whose rows came in
 * several rounds, which overwrite each other.
 */
#ifndef TRAINER_DEFERRED_H
#define TRAINER_DEFERRED_H

#include "kernels/base/arena.h"
#include "trainer/model/linear.h"

struct model;

/* A product that waits. */
struct deferred_product {
    const struct linear *linear;
    struct operand dy, x;
    const int64_t *offset; /* of the slot's dispatch plan; NULL: one matrix */
    int64_t tokens;
};

/* Where a layer's product has its copies. */
struct deferred_room {
    bool waits;                          /* whether it is put off at all */
    bool keeps_dy, keeps_x;              /* they stay where they are: no copy */
    void *dy, *x;                        /* [R,out], [R,in] act */
    struct fp8_buffer dy_codes, x_codes; /* in FP8, transposed */
};

/* Of one micro-batch of a part, between its gradients of inputs and of weights. */
struct drawer {
    struct deferred_room *room;       /* [layers] owned: the part's blocks x LINEARS */
    struct deferred_product *product; /* [layers] owned */
    int64_t layers, count;
    int64_t first; /* of room, in linears.table */
    int64_t part;
    int32_t batch; /* -1: free */
};

struct deferred {
    struct drawer *drawer; /* [count] owned */
    int64_t count;
};

/* Local. As many drawers for each part of the slice as off[parts] says. Errors: STATUS_RESOURCE. */
enum status deferred_init(struct deferred *deferred, const struct model *model, const int64_t *off)
    __attribute__((warn_unused_result));
void deferred_free(struct deferred *deferred); /* accepts a zeroed one */
/* After linears_layout. Measures, then hands out. */
void deferred_layout(struct deferred *deferred, const struct model *model, struct arena *arena);

/* The drawer of (part, batch); batch -1: a free one. */
struct drawer *deferred_find(const struct deferred *deferred, int64_t part, int32_t batch);
/* Whether the product was put off; copies what does not stay. */
bool deferred_put(const struct linears *linears, const struct deferred_product *product);
/* Makes all products of a drawer, which is free then. Where gradients are sharded collective over
 * their replicas: a block's go to their owners once more, behind what its backward made at once;
 * likewise of the step's last micro-batch (`last`), where they are reduced (reduction.h). */
void deferred_make(struct model *model, struct drawer *drawer, bool last);

#endif
