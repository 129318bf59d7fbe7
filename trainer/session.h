/* session: what every command on a model opens first: config, ranks, device, mesh. */
#ifndef TRAINER_SESSION_H
#define TRAINER_SESSION_H

#include "kernels/device.h"
#include "parallel/mesh.h"
#include "trainer/config/config.h"

/* Training keeps the layout of the config. Using a trained model gives the same results with any
 * layout, so parallel.ep, unless overridden, shrinks to what the ranks at hand allow, and
 * parallel.tp and cp are 1. */
enum session_use { SESSION_TRAIN, SESSION_USE };

struct session {
    struct config config;
    struct comm world;
    struct device *device; /* owned */
    struct mesh mesh;
    int threads; /* of this rank */
};

/* Collective. `path` is a config file, a run directory (its config.yaml, or where that is gone what
 * its newest checkpoint was saved with) or a checkpoint (the config it was saved with). On error
 * every rank has the same status and message. The session must be closed either way. */
enum status session_open(struct session *session, enum session_use use, const char *path,
                         char *const *overrides, int count) __attribute__((warn_unused_result));
/* Local. The same config without a session. */
enum status session_read_config(struct config *config, const char *path, char *const *overrides,
                                int count) __attribute__((warn_unused_result));
/* Local. The config that the checkpoint in folder `path` was saved with. */
enum status session_saved_config(struct config *config, const char *path)
    __attribute__((warn_unused_result));
/* Collective. Prints status_message() on rank 0 when status is not OK, closes everything, and
 * returns status with the message cleared, so that one line is printed. */
enum status session_close(struct session *session, enum status status);

bool session_main_rank(const struct session *session);

#endif
