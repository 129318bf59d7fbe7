/* state: a model's place in a checkpoint: which slices this rank owns, and the scalars beside them.
 */
#ifndef TRAINER_STATE_H
#define TRAINER_STATE_H

#include "checkpoints/checkpoint.h"
#include "trainer/data_state.h"
#include "trainer/guard.h"
#include "trainer/model/model.h"

/* Where a run stands. */
struct progress_state {
    int64_t step;           /* optimizer steps done */
    int64_t position;       /* samples consumed */
    struct data_state data; /* where each source stands */
    struct guard_state guard;
};

enum { STATE_TOKENIZER_BYTES = 64, STATE_NAME_BYTES = 128 };

/* This rank's slices of a model's tensors. */
struct state_slices {
    struct checkpoint_slice *slice; /* owned; on memory of the model, through its ops */
    char (*name)[STATE_NAME_BYTES]; /* owned */
    int64_t count, names;           /* one name of all slices of a tensor */
    enum dtype moments; /* of the moments; when not the model's, they are staged in the gradients,
                           one kind at a time */
};

/* Local. What a save of this rank writes; of a model that is only measured without `data`. Errors:
 * STATUS_RESOURCE. */
enum status state_slices_init(struct state_slices *slices, const struct model *model)
    __attribute__((warn_unused_result));
void state_slices_free(struct state_slices *slices); /* accepts a zeroed one */

/* Local. The scalars beside them as JSON; owned by the caller, NULL: out of memory. */
char *state_text(const struct model *model, const struct progress_state *at, const char *tokenizer);

/* Collective. Saves weights, masters, moments, the running average if there is one, where the run
 * stands, and the name of its data's tokenizer, under run.dir/checkpoints. */
enum status state_save(const struct model *model, const char *root, const struct progress_state *at,
                       const char *tokenizer) __attribute__((warn_unused_result));
/* Collective. Loads a whole training state; the device form of the weights is made from it. Moments
 * of the other dtype are converted (the gradients are scratch for that); a checkpoint without a
 * running average starts one from its weights, and says so. One that lacks what the model has, has
 * it in another shape, or has weights besides is of another model: STATUS_MISMATCH. */
enum status state_load(struct model *model, const char *path, struct progress_state *at)
    __attribute__((warn_unused_result));
/* Collective. Weights only (masters where the checkpoint has them). */
enum status state_load_weights(struct model *model, const char *path)
    __attribute__((warn_unused_result));

/* Collective. Newest valid checkpoint under `root` of a step before `before`; *found NULL: there is
 * none. Skipped ones are warned of. */
enum status state_newest(struct comm *world, const char *root, int64_t before, char **found,
                         int64_t *step) __attribute__((warn_unused_result));

/* Collective. For readers: `use`, a collective that returns the same on every rank, of the
 * checkpoint `path`, or of the newest one of the run directory `path` that it can read (errors but
 * STATUS_DATA end the search). A run that goes on beside may prune the one in hand: then the newest
 * is taken. One line in all: a warning when an older one did, else the error. */
enum status state_use_newest(struct comm *world, const char *path,
                             enum status (*use)(void *context, const char *checkpoint),
                             void *context) __attribute__((warn_unused_result));

/* Local. Whether `path` is a run directory or a checkpoint (rather than a config file). */
bool state_is_place(const char *path);

/* Collective. Weights of `path`: a checkpoint itself, or a run directory's newest one that loads.
 * average: the running average (ema/NAME) instead of the weights. */
enum status state_load_newest(struct model *model, const char *path, bool average)
    __attribute__((warn_unused_result));

/* Collective. Whether weights may be loaded from `path` (state_load_newest) after the folder
 * `moved` (NULL: none) is renamed: there is a checkpoint there, and it does not go with it. Errors:
 * STATUS_DATA, STATUS_USAGE. */
enum status state_check_start(struct comm *world, const char *path, const char *moved)
    __attribute__((warn_unused_result));

/* Collective. Name of the tokenizer of the data that the checkpoint which state_load_newest takes
 * was trained on. Where that says nothing (written by import, or before this was recorded): "bytes"
 * with that tokenizer's vocabulary, else "unknown". */
enum status state_tokenizer(struct comm *world, const char *path, int64_t vocab,
                            char name[STATE_TOKENIZER_BYTES]) __attribute__((warn_unused_result));

/* Local. Whether after a load that ended with `status` an older checkpoint may do: this one is
 * damaged, rather than of another model. Then rank 0 warns of it. */
bool state_try_older(const struct comm *world, enum status status);

#endif
