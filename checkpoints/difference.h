/* difference: two checkpoints compared tensor by tensor, whatever layouts they were saved on.
 */
#ifndef CHECKPOINTS_DIFFERENCE_H
#define CHECKPOINTS_DIFFERENCE_H

#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.h"

struct difference {
    const char *name;
    const struct manifest_tensor *a, *b; /* NULL: only the other has it */
    /* Of two with the same dtype and shape; compared bit by bit, so that -0 is not 0. */
    int64_t elements, different;
    int64_t first;           /* index of the first that differs */
    double first_a, first_b; /* its values */
    double most;             /* largest |a - b|; NaN when one of the two is not a number */
    double relative;         /* ||a - b|| / ||b||, 2-norms */
    double distance, norm;   /* ||a - b||, ||b|| */
};

struct difference_figures {
    int64_t same, different; /* tensors */
};

/* Local. Calls `tell` for every tensor that differs, in the order of names. Every block is verified
 * before use. Errors: those of checkpoint_open and checkpoint_read. */
enum status difference_find(const char *a, const char *b, struct difference_figures *figures,
                            void (*tell)(void *context, const struct difference *difference),
                            void *context) __attribute__((warn_unused_result));

/* Local. One tensor of each of two open checkpoints, whatever their names. a == NULL or b == NULL:
 * not of the same dtype and shape, or not there; then no figure is one. Errors: those of
 * checkpoint_read, STATUS_RESOURCE. */
enum status difference_tensor(struct checkpoint_reader *a, const char *name_a,
                              struct checkpoint_reader *b, const char *name_b,
                              struct difference *difference) __attribute__((warn_unused_result));

#endif
