/* describe: the first lines of a run: what of its files was ignored or assumed, what changed since
 * the checkpoint, its data, layout and memory; and what its profile says of communication.
 */
#ifndef TRAINER_DESCRIBE_H
#define TRAINER_DESCRIBE_H

#include "trainer/metrics.h"
#include "trainer/model/model.h"
#include "trainer/profile.h"
#include "trainer/saving.h"
#include "trainer/session.h"
#include "trainer/sources.h"

/* resumed: what changed, "": nothing did. Says it on rank 0. */
void describe_run(const struct session *session, const struct model *model,
                  const struct sources *train, const struct saving *saving, const char *resumed,
                  struct metrics *metrics);
/* Once a profile is written, and once: in the log, and in run.json, for the report. On rank 0. */
void describe_profile(const struct session *session, struct profile *profile,
                      struct metrics *metrics);

#endif
