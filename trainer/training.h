/* training: the whole of `train`: data, model, resume, step loop, evaluation, samples, saves,
 * summary. */
#ifndef TRAINER_TRAINING_H
#define TRAINER_TRAINING_H

#include "trainer/session.h"

/* Collective. STATUS_PREEMPTED when a signal asked for a save. */
enum status training_run(struct session *session, bool fresh) __attribute__((warn_unused_result));

#endif
