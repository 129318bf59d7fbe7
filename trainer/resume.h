/* resume: what changed between the settings that a checkpoint was saved with and the run that goes
 * on from it, and where in its data that run goes on.
 *
 * Each source goes on where it was: the same file by its name, or under another name by its
 * contents. A new one starts at its beginning; one that is gone is told with what was read of it.
 * Another length of samples, seed, shuffle or rate of fill-in-the-middle leaves the epoch under way
 * as it was begun (loader.h). Nothing comes twice or is left out unsaid: documents that are packed
 * otherwise than before, and a file whose contents are not those the run began with, are told.
 */
#ifndef TRAINER_RESUME_H
#define TRAINER_RESUME_H

#include "trainer/config/config.h"
#include "trainer/sources.h"
#include "trainer/state.h"

enum { RESUME_NOTE_BYTES = 4096 };

/* Samples of `to` tokens that hold what `position` samples of `from` tokens do, the last one begun:
 * where schedules go on. */
int64_t resume_position(int64_t position, int64_t from, int64_t to);

/* `key old -> new` of the keys that change what is trained, or on what; not where it runs or what
 * it prints. "": none. */
void resume_differences(const struct config *saved, const struct config *now, char *out,
                        size_t bytes);

/* Local. Compares the settings saved in the checkpoint `path` with `now` and its open `sources`,
 * and sets `note`, "" when nothing that matters to training differs: one line of `key old -> new`,
 * and what that does to the data. at->data: as the checkpoint says in, out what sources_start
 * takes; at->position is in samples of now. *alarm: the contents of a file changed. Errors:
 * STATUS_DATA, STATUS_RESOURCE. */
enum status resume_settings(const char *path, const struct config *now,
                            const struct sources *sources, struct progress_state *at,
                            char note[RESUME_NOTE_BYTES], bool *alarm)
    __attribute__((warn_unused_result));

#endif
