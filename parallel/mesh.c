#include "parallel/mesh.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* Axes of the two grids, the fastest first. */
enum { TP = 1, CP = 2, DP = 4, ETP = 1, EP = 2, EDP = 4, PP = 8, AXES = 4 };

static const struct {
    const char *name;
    size_t at;    /* in struct mesh */
    int axes;     /* that its ranks differ in */
    bool experts; /* of the experts' grid */
} groups[MESH_GROUPS] = {
    [MESH_PP] = {"pp", offsetof(struct mesh, pp), PP, false},
    [MESH_DP] = {"dp", offsetof(struct mesh, dp), DP, false},
    [MESH_CP] = {"cp", offsetof(struct mesh, cp), CP, false},
    [MESH_TP] = {"tp", offsetof(struct mesh, tp), TP, false},
    [MESH_REPLICAS] = {"replicas", offsetof(struct mesh, replicas), DP | CP, false},
    [MESH_STAGE] = {"stage", offsetof(struct mesh, stage), DP | CP | TP, false},
    [MESH_EP] = {"ep", offsetof(struct mesh, ep), EP, true},
    [MESH_ETP] = {"etp", offsetof(struct mesh, etp), ETP, true},
    [MESH_EXPERTS] = {"ep", offsetof(struct mesh, experts), EP | ETP, true}, /* in messages */
    [MESH_EDP] = {"edp", offsetof(struct mesh, edp), EDP, true},
};

static struct comm *group_of(struct mesh *mesh, enum mesh_group group)
{
    return (struct comm *)((char *)mesh + groups[group].at);
}

enum status mesh_check(const struct mesh_shape *shape, int ranks, int64_t experts)
{
    const int64_t dense = (int64_t)shape->pp * shape->tp * shape->cp,
                  expert = (int64_t)shape->ep * shape->etp;
    if (ranks % dense != 0) {
        return status_fail(STATUS_USAGE,
                           "parallel.pp %d x tp %d x cp %d does not divide the %d ranks: change "
                           "one of them",
                           shape->pp, shape->tp, shape->cp, ranks);
    }
    if (ranks / shape->pp % expert != 0) {
        char etp[32] = "";
        if (shape->etp > 1) {
            snprintf(etp, sizeof etp, " x etp %d", shape->etp);
        }
        return status_fail(STATUS_USAGE,
                           "parallel.ep %d%s does not divide the %d ranks%s: change one of them",
                           shape->ep, etp, ranks / shape->pp, shape->pp > 1 ? " of a stage" : "");
    }
    if (experts % shape->ep != 0) {
        return status_fail(STATUS_USAGE,
                           "parallel.ep %d does not divide the %lld experts of a layer", shape->ep,
                           (long long)experts);
    }
    return STATUS_OK;
}

int mesh_first(const struct mesh_shape *shape, int ranks, enum mesh_group group, int rank)
{
    const int stage = ranks / shape->pp;
    const int dense[AXES] = {shape->tp, shape->cp, stage / (shape->tp * shape->cp), shape->pp},
              expert[AXES] = {shape->etp, shape->ep, stage / (shape->etp * shape->ep), shape->pp};
    const int *size = groups[group].experts ? expert : dense;
    int first = rank, stride = 1;
    for (int axis = 0; axis < AXES; axis++) {
        if ((groups[group].axes & 1 << axis) != 0) {
            first -= rank / stride % size[axis] * stride;
        }
        stride *= size[axis];
    }
    return first;
}

int mesh_ends_first(const struct mesh_shape *shape, int ranks, int rank)
{
    const int stage = ranks / shape->pp, first = mesh_first(shape, ranks, MESH_REPLICAS, rank);
    return first / stage == shape->pp - 1 ? first % stage : first;
}

enum status mesh_init(struct mesh *mesh, struct comm *world, const struct mesh_shape *shape,
                      int64_t experts)
{
    *mesh = (struct mesh){.world = world, .shape = *shape};
    TRY(mesh_check(shape, world->size, experts));
    for (int g = 0; g < MESH_GROUPS; g++) {
        struct comm *group = group_of(mesh, (enum mesh_group)g);
        comm_split(world, mesh_first(shape, world->size, (enum mesh_group)g, world->rank),
                   world->rank, group);
        group->name = groups[g].name;
    }
    if (shape->pp > 1) {
        comm_split(world, mesh_ends_first(shape, world->size, world->rank), world->rank,
                   &mesh->ends);
        mesh->ends.name = "ends";
    }
    /* One ep group may fail where another does not. */
    return comm_agree(
        world,
        nodes_init(&mesh->nodes, &mesh->experts, shape->node_dispatch, shape->ranks_per_node),
        NULL);
}

/* Groups that exchange device memory, but for those of stages. */
static const enum mesh_group carriers[] = {MESH_STAGE, MESH_TP,       MESH_CP, MESH_EXPERTS,
                                           MESH_EDP,   MESH_REPLICAS, MESH_ETP};
enum { CARRIERS = sizeof carriers / sizeof carriers[0] };

/* Whether the group is used at all, by itself. */
static bool is_used(const struct mesh *mesh, enum mesh_group group)
{
    return group == MESH_REPLICAS ? mesh->tp.size > 1
           : group == MESH_ETP    ? mesh->etp.size > 1
                                  : true;
}

/* How mail travels, of groups that do by `kind`. NOTE: an NCCL message takes both its ranks at
 * once, so that the tables' sends, which wait for nobody, would need a communicator per direction
 * and pair; messages between stages are few. */
static const char *messages(const char *kind)
{
    return strcmp(kind, "nccl") == 0 || strcmp(kind, "auto") == 0 ? "mpi" : kind;
}

enum status mesh_attach(struct mesh *mesh, struct device *device, const char *kind)
{
    for (int i = 0; i < CARRIERS; i++) {
        if (!is_used(mesh, carriers[i])) {
            continue;
        }
        /* One ep group may fail where another does not. */
        TRY(comm_agree(mesh->world, comm_attach(group_of(mesh, carriers[i]), device, kind), NULL));
    }
    struct comm *const relays[] = {&mesh->nodes.across, &mesh->nodes.within};
    for (int i = 0; i < 2; i++) {
        const enum status status =
            nodes_apart(&mesh->nodes) ? comm_attach(relays[i], device, kind) : STATUS_OK;
        TRY(comm_agree(mesh->world, status, NULL));
    }
    int32_t staged[1] = {strcmp(comm_wire_name(&mesh->experts), "staged") == 0};
    comm_all_reduce(mesh->world, staged, 1, DTYPE_I32, REDUCE_MAX);
    mesh->staged = staged[0] > 0;
    if (mesh->shape.pp == 1) {
        return STATUS_OK;
    }
    TRY(comm_agree(mesh->world, comm_attach(&mesh->pp, device, messages(kind)), NULL));
    return comm_agree(mesh->world, comm_attach(&mesh->ends, device, kind), NULL);
}

struct comm *mesh_each(struct mesh *mesh, int i)
{
    struct comm *const others[] = {mesh->world, &mesh->ends, &mesh->nodes.across,
                                   &mesh->nodes.within, NULL};
    return i < MESH_GROUPS ? group_of(mesh, (enum mesh_group)i) : others[i - MESH_GROUPS];
}

bool mesh_device_times(struct mesh *mesh, double *run_ms, double *waited_ms)
{
    bool all = true;
    struct comm *const others[] = {&mesh->ends, &mesh->nodes.across, &mesh->nodes.within};
    for (int i = 0; i < CARRIERS + 3; i++) {
        struct comm *group = i < CARRIERS ? group_of(mesh, carriers[i]) : others[i - CARRIERS];
        if (strcmp(comm_wire_name(group), "nccl") == 0) {
            all = comm_device_times(group, run_ms, waited_ms) && all;
        }
    }
    return all;
}

void mesh_free(struct mesh *mesh)
{
    for (int g = 0; g < MESH_GROUPS; g++) {
        comm_free(group_of(mesh, (enum mesh_group)g));
    }
    comm_free(&mesh->ends);
    nodes_free(&mesh->nodes);
    *mesh = (struct mesh){0};
}

void mesh_progress(const struct mesh *mesh)
{
    comm_device_progress(&mesh->experts);
    comm_device_progress(&mesh->nodes.across);
}
