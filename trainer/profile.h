/* profile: debug.profile, a trace of what every rank did, for chrome://tracing or Perfetto.
 *
 * In the steps debug.profile_from ... + profile_steps - 1 each rank keeps its phases, the
 * operations of each layer, its messages with bytes and group (parallel/spans.h), and what its
 * writer thread does, in a buffer of fixed size. Behind the last one, or at the end of the run,
 * however it ends, rank 0 writes them as one file of the Trace Event Format: a process for each
 * rank, a thread for each thread, times in microseconds of rank 0's clock. `otherData` says per
 * rank how far its clock was off and how well that is known, what was lost, and how long the steps,
 * the communication and the all-to-alls took; of the communication how much waited for ranks that
 * had not come yet, how much was under way beside computing or not, and which share passed beside
 * computing (hidden.h). Where the device has it (nccl) its own events say so, but for messages
 * between stages, or nothing does: null where they do not tell of all (CUDA graphs). Other times
 * are the host's: on CUDA, when work was handed to the device. Where a rank dies or hangs, nothing
 * is collective any more: each one that is left writes a file of its own, PROFILE.rankN.
 *
 * Clocks: no rank leaves a gather before all have entered it. So with a rank's times of entering
 * and leaving, a and b, its clock less rank 0's lies between a - b0 and b - a0; the narrowest of
 * many rounds count, and 0 where it is possible: ranks of one machine have one clock.
 */
#ifndef TRAINER_PROFILE_H
#define TRAINER_PROFILE_H

#include "parallel/mesh.h"
#include "parallel/spans.h"
#include "trainer/config/config.h"

struct profile {
    struct comm *world;          /* borrowed */
    struct mesh *mesh;           /* borrowed */
    const struct config *config; /* borrowed */
    /* Of the communication, ms; NAN: not known. Means over ranks when it is written. */
    double hidden_ms, exposed_ms, idle_ms;
    struct {
        double hidden, exposed, idle;
    } mean_ms;
    struct spans spans;
    _Atomic bool recording;     /* read by the watchdog, too */
    bool written, told;         /* told: describe_profile's */
    double offset_us, error_us; /* this rank's clock less rank 0's: at most error_us off */
    int64_t origin_ns;          /* of rank 0's clock: time 0 of the trace */
};

/* Collective over the mesh's world. Without debug.profile nothing happens, here and below. Errors,
 * agreed: STATUS_RESOURCE; STATUS_IO when the file cannot be written, before the run has cost
 * anything. */
enum status profile_open(struct profile *profile, struct mesh *mesh, const struct config *config)
    __attribute__((warn_unused_result));
/* Collective where the recording begins or ends, else local: at the start of step `step`. Errors,
 * agreed: STATUS_IO, STATUS_RESOURCE. */
enum status profile_step(struct profile *profile, int64_t step) __attribute__((warn_unused_result));
/* Collective. The end of the run, or of what failed on every rank: writes what is not written
 * yet. */
enum status profile_end(struct profile *profile) __attribute__((warn_unused_result));
/* Local, from the watchdog's thread, before it ends a job in which not every rank answers: writes
 * what this rank has kept so far into PROFILE.rankN. context: the profile. */
void profile_alone(void *context);
/* Local. Which share of all ranks' communication passed beside computing; NAN: not known, or not
 * written yet. */
double profile_hidden(const struct profile *profile);
void profile_close(struct profile *profile); /* local; accepts a zeroed one */

/* Bounds of a clock's offset after one more round, ns: entered and left, by rank 0's clock
 * (from0, to0) and this one's (from, to). */
void profile_bounds(int64_t bounds[2], int64_t from0, int64_t to0, int64_t from, int64_t to);

#endif
