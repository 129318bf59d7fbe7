/* resave CONFIG CHECKPOINT ROOT [key=value ...]: loads a checkpoint on these ranks as training does
 * and saves it again under ROOT, so that a test can compare both, whatever the layouts. */
#include <stdio.h>

#include "trainer/session.h"
#include "trainer/state.h"

static enum status resave(struct session *session, const char *path, const char *root)
{
    const struct config *config = &session->config;
    struct model model = {0};
    struct progress_state at;
    enum status status =
        comm_agree(&session->world,
                   model_init(&model, config, &session->mesh, session->device,
                              config->train.micro_batch, config->train.sequence_length, true),
                   NULL);
    status = status == STATUS_OK ? state_load(&model, path, &at) : status;
    status = status == STATUS_OK ? state_save(&model, root, &at, "bytes") : status;
    model_free(&model);
    return status;
}

int main(int argc, char **argv)
{
    struct session session;
    if (argc < 4) {
        fprintf(stderr, "usage: resave CONFIG CHECKPOINT ROOT [key=value ...]\n");
        return 64;
    }
    enum status status = session_open(&session, SESSION_TRAIN, argv[1], argv + 4, argc - 4);
    status = status == STATUS_OK ? resave(&session, argv[2], argv[3]) : status;
    return status_exit_code(session_close(&session, status));
}
