/* state: a model's place in a checkpoint: which slices this rank owns, and the scalars beside them.
 */
#ifndef TRAINER_STATE_H
#define TRAINER_STATE_H

#include "checkpoints/checkpoint.h"
#include "trainer/model/model.h"

/* Where a run stands. */
struct progress_state {
    int64_t step;     /* optimizer steps done */
    int64_t position; /* samples consumed */
};

/* Collective. Saves weights, masters, moments, the running average if there is one, and where the
 * run stands, under run.dir/checkpoints. */
enum status state_save(const struct model *model, const char *root, const struct progress_state *at)
    __attribute__((warn_unused_result));
/* Collective. Loads a whole training state; the device form of the weights is made from it. Moments
 * of the other dtype are converted (the gradients are scratch for that); a checkpoint without a
 * running average starts one from its weights, and says so. */
enum status state_load(struct model *model, const char *path, struct progress_state *at)
    __attribute__((warn_unused_result));
/* Collective. Weights only (masters where the checkpoint has them). */
enum status state_load_weights(struct model *model, const char *path)
    __attribute__((warn_unused_result));

/* Collective. Newest valid checkpoint under `root`, passing over `skip`; *found NULL: there is
 * none. Skipped ones are warned of. */
enum status state_newest(struct comm *world, const char *root, int skip, char **found,
                         int64_t *step) __attribute__((warn_unused_result));

/* Local. Whether `path` is a run directory or a checkpoint (rather than a config file). */
bool state_is_place(const char *path);

/* Collective. Weights of `path`: a checkpoint itself, or a run directory's newest one that loads.
 * average: the running average (ema/NAME) instead of the weights. */
enum status state_load_newest(struct model *model, const char *path, bool average)
    __attribute__((warn_unused_result));

/* Local. Whether after a load that ended with `status` an older checkpoint may do: this one is
 * damaged, rather than of another model. Then rank 0 warns of it. */
bool state_try_older(const struct comm *world, enum status status);

#endif
