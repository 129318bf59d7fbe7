/* layout: which buffers of a block are its own and which all blocks share.
 *
 * What backward computes again, and everything when nothing is trained, need not be kept per block:
 * such buffers are lent by one block state that serves all. The classes say when.
 */
#ifndef TRAINER_LAYOUT_H
#define TRAINER_LAYOUT_H

#include "kernels/base/arena.h"
#include "kernels/ops_fp8.h"
#include "trainer/config/config.h"

enum memory_class {
    MEMORY_ROUTER, /* small, read after the last block: shared only when nothing is trained */
    MEMORY_INPUT,  /* the stream entering a block: likewise */
    MEMORY_NORM,   /* norms and latent up-projections: shared with recompute norms, block */
    MEMORY_INNER,  /* insides of MLPs and experts: shared with recompute experts, block */
    MEMORY_REST,   /* shared with recompute block */
    MEMORY_CLASSES
};

struct layout {
    struct arena *arena; /* borrowed */
    bool lent[MEMORY_CLASSES];
    bool lending; /* this is the state that lends */
    bool training;
    bool act, fp8; /* which kinds of block this state is of: one, or, lending, both */
};

/* Room for codes and scales of rows of FP8: fp8_view, fp8_turned (linear.h) look at it. */
struct fp8_buffer {
    uint8_t *code;
    float *scale;
};

void layout_init(struct layout *layout, struct arena *arena, bool training, int recompute);

/* The next buffer of a state: its own, or `lent`, that of the lending state. */
void *layout_buffer(const struct layout *layout, enum memory_class kind, void *lent, size_t bytes);
/* The same for the codes of rows x cols values. */
struct fp8_buffer layout_codes(const struct layout *layout, enum memory_class kind,
                               struct fp8_buffer lent, int64_t rows, int64_t cols);

/* Scales from one tile of columns to the next, of so many rows: struct fp8_rows. */
int64_t fp8_pitch(int64_t rows);
size_t fp8_scale_bytes(int64_t rows, int64_t cols);

#endif
