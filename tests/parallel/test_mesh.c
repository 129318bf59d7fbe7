/* mesh: who is in which group, for every shape that the ranks can have, and what is refused. */
#include "kernels/device.h"
#include "parallel/mesh.h"
#include "parallel/ranks.h"

enum { MOST = 8 };

static struct mesh_shape shape_of(int pp, int tp, int cp, int ep, int etp)
{
    return (struct mesh_shape){.pp = pp, .tp = tp, .cp = cp, .ep = ep, .etp = etp};
}

/* The next legal shape of `ranks` ranks behind *shape (all 0: the first); false: there is none. */
static bool next_shape(struct mesh_shape *shape, int ranks)
{
    int *const axis[] = {&shape->etp, &shape->ep, &shape->cp, &shape->tp, &shape->pp};
    enum { AXES = sizeof axis / sizeof axis[0] };
    const bool first = shape->pp == 0;
    for (int i = 0; first && i < AXES; i++) {
        *axis[i] = 1;
    }
    for (bool stepped = first; !stepped || mesh_check(shape, ranks, 840) != STATUS_OK;) {
        int i = 0;
        stepped = true;
        while (i < AXES && *axis[i] == ranks) {
            *axis[i++] = 1;
        }
        if (i == AXES) {
            return false;
        }
        ++*axis[i];
    }
    return true;
}

/* Ranks of the group: first + i * stride, i < count. */
struct expected {
    int first, count, stride;
};

/* Written out from the definition in mesh.h, not from its code. */
static struct expected expected_of(const struct mesh_shape *s, int ranks, enum mesh_group group,
                                   int rank)
{
    const int stage = ranks / s->pp, dp = stage / s->cp / s->tp, edp = stage / s->ep / s->etp,
              p = rank / stage, d = rank / (s->cp * s->tp) % dp, c = rank / s->tp % s->cp,
              t = rank % s->tp, x = rank / (s->ep * s->etp) % edp, e = rank / s->etp % s->ep,
              f = rank % s->etp;
    switch (group) {
    case MESH_PP:
        return (struct expected){rank % stage, s->pp, stage};
    case MESH_DP:
        return (struct expected){p * stage + c * s->tp + t, dp, s->cp * s->tp};
    case MESH_CP:
        return (struct expected){p * stage + d * s->cp * s->tp + t, s->cp, s->tp};
    case MESH_TP:
        return (struct expected){rank - t, s->tp, 1};
    case MESH_REPLICAS:
        return (struct expected){p * stage + t, dp * s->cp, s->tp};
    case MESH_STAGE:
        return (struct expected){p * stage, stage, 1};
    case MESH_EP:
        return (struct expected){p * stage + x * s->ep * s->etp + f, s->ep, s->etp};
    case MESH_ETP:
        return (struct expected){rank - f, s->etp, 1};
    case MESH_EXPERTS:
        return (struct expected){rank - rank % (s->ep * s->etp), s->ep * s->etp, 1};
    default:
        return (struct expected){p * stage + e * s->etp + f, edp, s->ep * s->etp};
    }
}

/* Groups of every legal shape up to 8 ranks: the members that mesh.h says, every rank in one group
 * of each kind. Needs no ranks. */
static void test_shapes(struct comm *world)
{
    int shapes = 0;
    for (int ranks = 1; ranks <= MOST; ranks++) {
        struct mesh_shape shape = {0};
        while (next_shape(&shape, ranks)) {
            shapes++;
            for (int i = 0; i < MESH_GROUPS * ranks; i++) {
                const enum mesh_group group = (enum mesh_group)(i / ranks);
                const struct expected want = expected_of(&shape, ranks, group, i % ranks);
                int members = 0;
                for (int r = 0; r < ranks; r++) {
                    const bool in = r >= want.first && (r - want.first) % want.stride == 0 &&
                                    (r - want.first) / want.stride < want.count;
                    const bool same = mesh_first(&shape, ranks, group, r) ==
                                      mesh_first(&shape, ranks, group, i % ranks);
                    CHECK(world, in == same);
                    members += in;
                }
                CHECK_EQUAL(world, members, want.count);
                CHECK_EQUAL(world, mesh_first(&shape, ranks, group, i % ranks), want.first);
            }
        }
    }
    CHECK(world, shapes > 100); /* 1 of one rank ... */
}

static void expect_group(struct comm *world, struct comm *group, const struct expected *want)
{
    int32_t members[16];
    const int32_t own = world->rank;
    CHECK_EQUAL(world, group->size, want->count);
    comm_all_gather(group, members, &own, sizeof own);
    for (int i = 0; i < want->count; i++) {
        CHECK_EQUAL(world, members[i], want->first + i * want->stride);
    }
    CHECK_EQUAL(world, members[group->rank], world->rank);
}

/* The same with the ranks there are. */
static void test_groups(struct comm *world)
{
    struct mesh_shape shape = {0};
    CHECK(world, world->size <= 16);
    while (next_shape(&shape, world->size)) {
        struct mesh mesh;
        CHECK_EQUAL(world, mesh_init(&mesh, world, &shape, 840), STATUS_OK);
        struct comm *const groups[MESH_GROUPS] = {
            [MESH_PP] = &mesh.pp,   [MESH_DP] = &mesh.dp,
            [MESH_CP] = &mesh.cp,   [MESH_TP] = &mesh.tp,
            [MESH_EP] = &mesh.ep,   [MESH_REPLICAS] = &mesh.replicas,
            [MESH_ETP] = &mesh.etp, [MESH_STAGE] = &mesh.stage,
            [MESH_EDP] = &mesh.edp, [MESH_EXPERTS] = &mesh.experts};
        CHECK(world, mesh.world == world);
        for (int g = 0; g < MESH_GROUPS; g++) {
            const struct expected want =
                expected_of(&shape, world->size, (enum mesh_group)g, world->rank);
            expect_group(world, groups[g], &want);
        }
        if (shape.pp > 1) {
            const int stage = world->size / shape.pp, own = world->rank / stage;
            const bool end = own == 0 || own == shape.pp - 1;
            int32_t members[16];
            const int32_t rank = world->rank;
            const int copies = stage / shape.tp;
            CHECK_EQUAL(world, mesh.ends.size, end ? 2 * copies : copies);
            comm_all_gather(&mesh.ends, members, &rank, sizeof rank);
            for (int i = 0; i < mesh.ends.size; i++) {
                const int first = !end ? own * stage : i < copies ? 0 : world->size - stage;
                CHECK_EQUAL(world, members[i],
                            first + i % copies * shape.tp + world->rank % shape.tp);
            }
        }
        mesh_free(&mesh);
        mesh_free(&mesh);
    }
}

static void expect_refused(struct comm *world, struct mesh_shape shape, int64_t experts,
                           const char *part)
{
    struct mesh mesh;
    CHECK_EQUAL(world, mesh_init(&mesh, world, &shape, experts), STATUS_USAGE);
    CHECK_MESSAGE(world, part);
    mesh_free(&mesh);
}

static void test_refused(struct comm *world)
{
    char part[64];
    for (int n = 1; n <= 2 * world->size; n++) {
        if (world->size % n != 0) {
            snprintf(part, sizeof part, "parallel.ep %d does not divide the %d ranks", n,
                     world->size);
            expect_refused(world, shape_of(1, 1, 1, n, 1), 840, part);
            snprintf(part, sizeof part, "tp %d x cp 1 does not divide the %d ranks", n,
                     world->size);
            expect_refused(world, shape_of(1, n, 1, 1, 1), 840, part);
        }
    }
    if (world->size > 1) {
        expect_refused(world, shape_of(1, 1, 1, world->size, 1), 7,
                       "does not divide the 7 experts");
        expect_refused(world, shape_of(world->size, 1, 1, 2, 1), 840, "ranks of a stage");
        expect_refused(world, shape_of(1, 1, 1, 1, 3 * world->size), 840, "etp");
    }
}

static void test_attach(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    const struct mesh_shape shape = shape_of(1, 1, 1, world->size, 1);
    struct mesh mesh;
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    CHECK_EQUAL(world, mesh_init(&mesh, world, &shape, 48), STATUS_OK);
    CHECK_EQUAL(world, mesh_attach(&mesh, device, "auto"), STATUS_OK);
    CHECK(world, mesh.stage.device == device && mesh.experts.device == device &&
                     mesh.edp.device == device);
    CHECK(world, strcmp(comm_wire_name(&mesh.ep), "direct") == 0);
    CHECK(world, !mesh.staged);
    mesh_free(&mesh);
    CHECK_EQUAL(world, mesh_init(&mesh, world, &shape, 48), STATUS_OK);
    CHECK_EQUAL(world, mesh_attach(&mesh, device, "nccl"), STATUS_USAGE);
    CHECK_MESSAGE(world, "run.comm nccl");
    mesh_free(&mesh);
    device_close(device);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_shapes),
        RANKS_TEST(test_groups),
        RANKS_TEST(test_refused),
        RANKS_TEST(test_attach),
    };
    return RANKS_MAIN(tests);
}
