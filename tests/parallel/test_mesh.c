/* mesh: who is in which group, for every ep that divides the ranks, and what is refused. */
#include "kernels/device.h"
#include "parallel/mesh.h"
#include "parallel/ranks.h"

/* The world ranks of a group's members, in the group's order. */
static void expect_members(struct comm *world, struct comm *group, int first, int stride, int count)
{
    int32_t members[16];
    const int32_t own = world->rank;
    CHECK_EQUAL(world, group->size, count);
    comm_all_gather(group, members, &own, sizeof own);
    for (int i = 0; i < count; i++) {
        CHECK_EQUAL(world, members[i], first + i * stride);
    }
    CHECK_EQUAL(world, members[group->rank], world->rank);
}

static void test_groups(struct comm *world)
{
    CHECK(world, world->size <= 16);
    for (int ep = 1; ep <= world->size; ep++) {
        struct mesh mesh;
        if (world->size % ep != 0) {
            continue;
        }
        CHECK_EQUAL(world, mesh_init(&mesh, world, ep, 48), STATUS_OK);
        CHECK(world, mesh.world == world);
        CHECK_EQUAL(world, mesh.ep.rank, world->rank % ep);
        CHECK_EQUAL(world, mesh.edp.rank, world->rank / ep);
        expect_members(world, &mesh.dp, 0, 1, world->size);
        expect_members(world, &mesh.ep, world->rank / ep * ep, 1, ep);
        expect_members(world, &mesh.edp, world->rank % ep, ep, world->size / ep);
        mesh_free(&mesh);
        mesh_free(&mesh);
    }
}

static void test_refused(struct comm *world)
{
    struct mesh mesh;
    char part[64];
    for (int ep = 1; ep <= 2 * world->size; ep++) {
        if (world->size % ep != 0) {
            CHECK_EQUAL(world, mesh_init(&mesh, world, ep, 48), STATUS_USAGE);
            snprintf(part, sizeof part, "parallel.ep %d does not divide the %d ranks", ep,
                     world->size);
            CHECK_MESSAGE(world, part);
            mesh_free(&mesh);
        }
    }
    if (world->size > 1) {
        CHECK_EQUAL(world, mesh_init(&mesh, world, world->size, 7), STATUS_USAGE);
        CHECK_MESSAGE(world, "does not divide the 7 experts");
        mesh_free(&mesh);
    }
}

static void test_attach(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    struct mesh mesh;
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    CHECK_EQUAL(world, mesh_init(&mesh, world, world->size, 48), STATUS_OK);
    CHECK_EQUAL(world, mesh_attach(&mesh, device, "auto"), STATUS_OK);
    CHECK(world, mesh.dp.device == device && mesh.ep.device == device && mesh.edp.device == device);
    CHECK(world, strcmp(comm_wire_name(&mesh.ep), "direct") == 0);
    mesh_free(&mesh);
    CHECK_EQUAL(world, mesh_init(&mesh, world, world->size, 48), STATUS_OK);
    CHECK_EQUAL(world, mesh_attach(&mesh, device, "nccl"), STATUS_USAGE);
    CHECK_MESSAGE(world, "run.comm nccl");
    mesh_free(&mesh);
    device_close(device);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_groups),
        RANKS_TEST(test_refused),
        RANKS_TEST(test_attach),
    };
    return RANKS_MAIN(tests);
}
