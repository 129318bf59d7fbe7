/* resume: what changed between the settings that a checkpoint was saved with and the run that goes
 * on from it, and where in the data that run goes on.
 */
#ifndef TRAINER_RESUME_H
#define TRAINER_RESUME_H

#include "trainer/config/config.h"
#include "trainer/state.h"

enum { RESUME_NOTE_BYTES = 4096 };

/* Where `position` (samples of `from` tokens consumed of a source of `tokens` tokens, over all
 * epochs) lies in samples of `to` tokens: in the same epoch, at the first sample that begins behind
 * all that was consumed of it. */
int64_t resume_position(int64_t position, int64_t tokens, int64_t from, int64_t to);

/* Local. Compares the settings saved in the checkpoint `path` with `now`, for a source of `tokens`
 * tokens, and sets `note`, "" when nothing that matters to training differs: one line of `key old
 * -> new`, and what that does to the order of the data. at->position is carried over when
 * train.sequence_length differs. Errors: STATUS_DATA, STATUS_RESOURCE. */
enum status resume_settings(const char *path, const struct config *now, int64_t tokens,
                            struct progress_state *at, char note[RESUME_NOTE_BYTES])
    __attribute__((warn_unused_result));

#endif
