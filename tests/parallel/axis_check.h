/* axis_check: what tests of one axis of parallelism (tensor, context, pipeline) share: folders,
 * checkpoints that must be equal, and verify, with a wire that leaves a reduction out.
 */
#ifndef TESTS_AXIS_CHECK_H
#define TESTS_AXIS_CHECK_H

#include <stddef.h>
#include <unistd.h>

#include "checkpoints/difference.h"
#include "kernels/base/io.h"
#include "parallel/transports.h"
#include "ranks.h"
#include "tiny_model.h"
#include "trainer/state.h"
#include "trainer/verify.h"

/* More layouts and steps. */
static inline bool axis_full(void)
{
    const char *full = getenv("SWITCHYARD_FULL");
    return full != NULL && strcmp(full, "1") == 0;
}

/* A folder that all ranks see; rank 0 makes it. */
static inline void axis_folder(struct comm *world, char *path, size_t bytes)
{
    snprintf(path, bytes, "/tmp/switchyard-axis-XXXXXX");
    CHECK(world, world->rank != 0 || mkdtemp(path) != NULL);
    comm_broadcast(world, path, bytes, 0);
}

static inline void axis_folder_end(struct comm *world, const char *path)
{
    comm_barrier(world);
    CHECK(world, world->rank != 0 || io_remove_tree(path) == STATUS_OK);
}

/* Step 1 of the model in folder/name; checkpoint <- its folder. */
static inline void axis_save(struct comm *world, struct tiny *tiny, const char *folder,
                             const char *name, char *checkpoint, size_t bytes)
{
    char root[128];
    const struct progress_state at = {.step = 1};
    snprintf(root, sizeof root, "%s/%s", folder, name);
    CHECK(world, world->rank != 0 || io_make_dir(root) == STATUS_OK);
    comm_barrier(world);
    CHECK(world, state_save(&tiny->model, root, &at, "none") == STATUS_OK);
    snprintf(checkpoint, bytes, "%s/00000001", root);
}

static inline void axis_tell(void *context, const struct difference *d)
{
    (void)context;
    fprintf(stderr, "%s differs\n", d->name);
}

/* Every tensor of the two. */
static inline void axis_same(struct comm *world, const char *a, const char *b)
{
    struct difference_figures figures = {0};
    CHECK(world, difference_find(a, b, &figures, axis_tell, NULL) == STATUS_OK);
    CHECK_EQUAL(world, figures.different, 0);
    CHECK(world, figures.same > 0);
}

/* A wire whose reductions keep this rank's part: what a missing reduction does. */
static inline void axis_keep_own(struct comm *comm, void *out, const void *in, int64_t count,
                                 enum dtype dtype)
{
    const size_t bytes = (size_t)count * dtype_bytes(dtype);
    memcpy(out, (const char *)in + (size_t)comm->rank * bytes, bytes);
}

/* The same of what goes round a ring: its gradients are lost. */
static inline void axis_pass(struct comm *comm, const char *name, void *recv, const void *send,
                             size_t bytes)
{
    struct comm_request request;
    comm_pass_start(comm, name, recv, send, bytes, &request);
    comm_exchange_finish(comm, &request);
    if (strncmp(name, "gradients", strlen("gradients")) == 0) {
        memset(recv, 0, bytes);
    }
}

static inline void axis_detach(struct comm *comm)
{
    (void)comm;
}

static const struct comm_wire axis_lying = {.name = "lying",
                                            .all_reduce = comm_all_reduce,
                                            .reduce_scatter = axis_keep_own,
                                            .all_gather = comm_all_gather,
                                            .pass = axis_pass,
                                            .detach = axis_detach};

/* What verify says of the tiny model's layout, at rank 0; lies: over the group of the mesh at
 * offset `group` no sum is made. Closes the model. */
static inline bool axis_verified(struct comm *world, struct tiny *tiny, const char *folder,
                                 size_t group, bool lies)
{
    static struct session session;
    struct verify_report report;
    char dir[96];
    snprintf(dir, sizeof dir, "%s/run", folder);
    session = (struct session){
        .config = tiny->config, .world = *world, .device = tiny->device, .mesh = tiny->mesh};
    session.config.run.dir = dir;
    session.mesh.world = &session.world;
    if (lies) {
        ((struct comm *)(void *)((char *)&session.mesh + group))->wire = &axis_lying;
    }
    CHECK(world, verify_run(&session, &report) == STATUS_OK);
    if (world->rank == 0 && report.good == lies) {
        verify_print(stderr, &report);
    }
    tiny_close(tiny);
    return report.good;
}

#endif
