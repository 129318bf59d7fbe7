#include "trainer/rollback.h"

#include <stdio.h>
#include <stdlib.h>

#include "checkpoints/checkpoint.h"

static bool was_due(const struct config *config, int64_t step)
{
    const int64_t every = config->checkpoint.mtbf_hours > 0 ? 0 : config->checkpoint.every_steps;
    return every == 0 || step % every == 0;
}

/* Collective. Of those `due` alone, or of all. */
static enum status load_newest(struct model *model, const char *root, int64_t trouble, bool due,
                               struct progress_state *at, bool *found)
{
    struct comm *world = model->mesh->world;
    for (int64_t step = trouble;;) {
        char *path = NULL;
        enum status status = state_newest(world, root, step, &path, &step);
        if (status != STATUS_OK || path == NULL) { /* the same on every rank */
            return due && status == STATUS_DATA ? STATUS_OK : status;
        }
        if (due && !was_due(model->config, step)) {
            free(path);
            continue;
        }
        status = state_load(model, path, at);
        free(path);
        *found = status == STATUS_OK;
        if (*found || !state_try_older(world, status)) {
            return status;
        }
    }
}

enum status rollback_load(struct model *model, const char *root, int64_t trouble,
                          struct progress_state *at, bool *found)
{
    *found = false;
    TRY(load_newest(model, root, trouble, true, at, found));
    if (!*found) {
        TRY(load_newest(model, root, trouble, false, at, found));
    }
    return STATUS_OK;
}

bool rollback_forget(struct comm *world, const char *root, int64_t step, bool first)
{
    const enum status status = checkpoint_forget(world, root, step);
    if (status != STATUS_OK && first && world->rank == 0) {
        fprintf(stderr,
                "switchyard: warning: %s: checkpoints of the steps given up are deleted at a later "
                "step; training goes on\n",
                status_message());
    }
    return status == STATUS_OK;
}

void rollback_place(struct progress_state *now, const struct progress_state *was, int64_t trouble,
                    int64_t sequences)
{
    guard_went_back(&now->guard, &was->guard, trouble, now->step);
    now->position = was->position + sequences;
}
