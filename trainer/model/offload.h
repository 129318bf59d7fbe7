/* offload: a GPU's optimizer state in the host's memory (optimizer.offload).
 *
 * Masters, moments and average of this rank's shares are in pinned host memory; only where masters
 * are the weights themselves (fp32) they stay. The update stays on the GPU: what it needs passes
 * through three windows of the GPU's memory, one filling, one worked on, one emptying, so that both
 * directions of the link and the kernels work at the same time (ops->fetch). The GPU's own kernels
 * run on the same numbers, so that every bit is that of a run without.
 *
 * Why not on the host's cores: of bf16 weights with f32 moments 12 bytes a parameter come and 12
 * go, both at once: 0.22 ns at a link's 55 GB/s. With all eight GPUs of a node at it, its memory is
 * the limit, 500 GB/s or so: 24 bytes, 0.4 ns. An update by the cores sends 4 bytes of gradient and
 * takes 2 of weight, but moves 36 of that memory: 6 by the link, 16 read and 14 written by the
 * cores: 0.6 ns. And Muon's products are the GPU's in any case.
 */
#ifndef TRAINER_OFFLOAD_H
#define TRAINER_OFFLOAD_H

#include "kernels/base/arena.h"
#include "kernels/ops.h"
#include "trainer/model/params.h"

struct model;
struct model_group;

/* Bits: what of the state. */
enum offload_state {
    OFFLOAD_MASTER = 1,
    OFFLOAD_MOMENT1 = 2,
    OFFLOAD_MOMENT2 = 4,
    OFFLOAD_EMA = 8,
    OFFLOAD_STATES = 4
};

struct offload {
    bool on;
    struct arena arena;                        /* the host's memory */
    int64_t room;                              /* elements of a window */
    void *window[OPS_WINDOWS][OFFLOAD_STATES]; /* [room] each; NULL: nothing of that passes */
};

/* Elements [first, first + count) of this rank's share of a group, on the device. NULL: not asked
 * for, or not there. */
struct offload_part {
    int64_t first, count;
    float *master;
    void *moment1, *moment2;
    float *ema;
};

/* The host's memory, for what comes next to be measured or handed out. */
struct arena offload_arena(const struct model *model);
/* Whether the group's masters are in host memory, of a model whose offload is on. */
bool offload_masters(const struct model *model, const struct model_group *group);
/* Windows. After the state. Measures, then hands out. */
void offload_layout(struct model *model, struct arena *arena);

/* Local. visit(context, part) for one part of the share after the other, in order, which together
 * are all of it; without offload the share is one part. `in`: what of the state it reads, `out`:
 * what it changes; of parts of what is only in `out` it writes everything. It calls ops. At return
 * what is called next comes after. */
void offload_pass(struct model *model, enum param_group group, unsigned in, unsigned out,
                  void (*visit)(void *context, const struct offload_part *part), void *context);

/* What of a parameter lies in a part. */
struct offload_piece {
    int64_t first, at, count; /* its first element, counted in the group and in the share */
};
/* From zero; goes on where the last part ended. */
struct offload_walk {
    int64_t index, done; /* the parameter at hand; of the share: what was told of */
};
/* The next parameter that has elements in the part, in the order of the table; NULL: no more. */
const struct param *offload_next(const struct model *model, enum param_group group,
                                 const struct offload_part *part, struct offload_walk *walk,
                                 struct offload_piece *piece);

/* Local. Memory of the state, as the host sees it where it is the host's: nothing is under way. */
void offload_wait(const struct model *model);

#endif
