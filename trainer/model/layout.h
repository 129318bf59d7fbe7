/* layout: which buffers of a block are its own and which all blocks share.
 *
 * What backward computes again, and everything when nothing is trained, need not be kept per block:
 * such buffers are lent by one block state that serves all. The classes say when.
 */
#ifndef TRAINER_LAYOUT_H
#define TRAINER_LAYOUT_H

#include "kernels/base/arena.h"
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
};

void layout_init(struct layout *layout, struct arena *arena, bool training, int recompute);

/* The next buffer of a state: its own, or `lent`, that of the lending state. */
void *layout_buffer(const struct layout *layout, enum memory_class kind, void *lent, size_t bytes);

#endif
