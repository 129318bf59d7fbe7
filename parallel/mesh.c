#include "parallel/mesh.h"

enum status mesh_init(struct mesh *mesh, struct comm *world, int ep, int64_t experts)
{
    *mesh = (struct mesh){.world = world};
    if (world->size % ep != 0) {
        return status_fail(STATUS_USAGE,
                           "parallel.ep %d does not divide the %d ranks: change one of them", ep,
                           world->size);
    }
    if (experts % ep != 0) {
        return status_fail(STATUS_USAGE,
                           "parallel.ep %d does not divide the %lld experts of a layer", ep,
                           (long long)experts);
    }
    comm_split(world, 0, world->rank, &mesh->dp);
    comm_split(world, world->rank / ep, world->rank, &mesh->ep);
    comm_split(world, world->rank % ep, world->rank, &mesh->edp);
    mesh->dp.name = "dp";
    mesh->ep.name = "ep";
    mesh->edp.name = "edp";
    return STATUS_OK;
}

enum status mesh_attach(struct mesh *mesh, struct device *device, const char *kind)
{
    struct comm *const groups[] = {&mesh->dp, &mesh->ep, &mesh->edp};
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        /* One ep group may fail where another does not. */
        TRY(comm_agree(mesh->world, comm_attach(groups[i], device, kind), NULL));
    }
    return STATUS_OK;
}

void mesh_free(struct mesh *mesh)
{
    comm_free(&mesh->dp);
    comm_free(&mesh->ep);
    comm_free(&mesh->edp);
    *mesh = (struct mesh){0};
}
