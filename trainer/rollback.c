#include "trainer/rollback.h"

#include <stdlib.h>

static bool was_due(const struct config *config, int64_t step)
{
    const int64_t every = config->checkpoint.mtbf_hours > 0 ? 0 : config->checkpoint.every_steps;
    return every == 0 || step % every == 0;
}

enum status rollback_load(struct model *model, const char *root, int64_t trouble,
                          struct progress_state *at, bool *found)
{
    struct comm *world = model->mesh->world;
    *found = false;
    for (int64_t step = trouble;;) {
        char *path = NULL;
        TRY(state_newest(world, root, step, &path, &step));
        if (path == NULL) {
            return STATUS_OK;
        }
        if (!was_due(model->config, step)) {
            free(path);
            continue;
        }
        const enum status status = state_load(model, path, at);
        free(path);
        *found = status == STATUS_OK;
        if (*found || !state_try_older(world, status)) {
            return status;
        }
    }
}

void rollback_place(struct progress_state *now, const struct progress_state *was, int64_t trouble,
                    int64_t sequences)
{
    guard_went_back(&now->guard, &was->guard, trouble, now->step);
    now->position = was->position + sequences;
}
