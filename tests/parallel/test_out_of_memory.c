/* One rank runs out of memory, at each of its allocations in turn: every rank gets the same status
 * and none waits for another for ever (then this test times out). */
#include "allocations.h"

#include <unistd.h>

#include "kernels/base/io.h"
#include "parallel/ranks.h"
#include "tiny_model.h"
#include "trainer/saving.h"

enum { MOST = 400 };

struct rig {
    struct comm *world;
    struct tiny tiny;
    char root[256];
};

/* Calls `work` until the last rank has no allocation left that could fail; at least `least` did. */
static void starve(struct rig *rig, enum status (*work)(struct rig *), int least)
{
    struct comm *world = rig->world;
    const bool ours = world->rank == world->size - 1;
    int failed = 0;
    for (int k = 1; k < MOST; k++) {
        allocations_failing = ours ? k : 0;
        const enum status status = work(rig);
        int32_t agreed = (int32_t)status, met = ours && allocations_failing == 0;
        allocations_failing = 0;
        comm_all_reduce(world, &agreed, 1, DTYPE_I32, REDUCE_MAX);
        comm_all_reduce(world, &met, 1, DTYPE_I32, REDUCE_MAX);
        CHECK_EQUAL(world, status, agreed);
        CHECK_EQUAL(world, status, met ? STATUS_RESOURCE : STATUS_OK);
        if (!met) {
            CHECK(world, failed >= least);
            return;
        }
        failed++;
    }
    CHECK(world, false);
}

static enum status evaluate(struct rig *rig)
{
    double loss = 0;
    int64_t labels = 0;
    return step_evaluate(&rig->tiny.model, &rig->tiny.loader, 3, NULL, &loss, &labels);
}

/* A step has nothing to allocate, so it cannot fail for that. */
static enum status step(struct rig *rig)
{
    struct step_result result;
    return stepper_step(&rig->tiny.stepper, 1, 0, &result);
}

static enum status make_model(struct rig *rig)
{
    const struct tiny *tiny = &rig->tiny;
    struct model model = {0};
    const enum status status = comm_agree(rig->world,
                                          model_init(&model, &tiny->config, &tiny->mesh,
                                                     tiny->device, tiny->config.train.micro_batch,
                                                     tiny->config.train.sequence_length, true),
                                          NULL);
    model_free(&model);
    return status;
}

static enum status make_stepper(struct rig *rig)
{
    struct stepper stepper = {0};
    const enum status status =
        comm_agree(rig->world, stepper_init(&stepper, &rig->tiny.model, &rig->tiny.mixture), NULL);
    stepper_free(&stepper);
    return status;
}

static enum status make_saving(struct rig *rig)
{
    struct saving saving = {0};
    struct metrics metrics = {0};
    const struct progress_state at = {0};
    const enum status status = comm_agree(
        rig->world, saving_init(&saving, &rig->tiny.model, &metrics, rig->root, "none", &at, false),
        NULL);
    saving_close(&saving);
    return status;
}

static void rig_open(struct rig *rig, struct comm *world)
{
    static const char *const overrides[TINY_OVERRIDES] = {"optimizer.freeze=*embed*",
                                                          "optimizer.name=muon"};
    *rig = (struct rig){.world = world};
    CHECK(world, tiny_open(&rig->tiny, world, TINY_MIXTRAL, overrides) == STATUS_OK);
    if (world->rank == 0) {
        snprintf(rig->root, sizeof rig->root, "/tmp/switchyard-test-XXXXXX");
        CHECK(world, mkdtemp(rig->root) != NULL);
    }
    comm_broadcast(world, rig->root, sizeof rig->root, 0);
}

static void rig_close(struct rig *rig)
{
    comm_barrier(rig->world);
    if (rig->world->rank == 0) {
        CHECK(rig->world, io_remove_tree(rig->root) == STATUS_OK);
    }
    tiny_close(&rig->tiny);
}

/* Only what state.c itself allocates: the table of slices, the names, and rank 0's or the others'
 * text. The rest of a save agrees by itself (test_checkpoint_faults). */
static void test_save(struct comm *world)
{
    static struct rig rig;
    rig_open(&rig, world);
    const bool ours = world->rank == world->size - 1;
    for (int k = 1; k <= 3; k++) {
        const struct progress_state at = {.step = k};
        allocations_failing = ours ? k : 0;
        const enum status status = state_save(&rig.tiny.model, rig.root, &at, "none");
        CHECK(world, allocations_failing == 0);
        CHECK_EQUAL(world, status, STATUS_RESOURCE);
    }
    const struct progress_state at = {.step = 4};
    CHECK_EQUAL(world, state_save(&rig.tiny.model, rig.root, &at, "none"), STATUS_OK);
    rig_close(&rig);
}

static void test_phases(struct comm *world)
{
    static struct rig rig;
    rig_open(&rig, world);
    CHECK_EQUAL(world, evaluate(&rig), STATUS_OK); /* the device's scratch has grown */
    starve(&rig, evaluate, 2);
    starve(&rig, make_model, 10);
    starve(&rig, make_stepper, 5);
    starve(&rig, make_saving, 5);
    CHECK_EQUAL(world, step(&rig), STATUS_OK);
    const long long before = allocations;
    CHECK_EQUAL(world, step(&rig), STATUS_OK);
    CHECK_EQUAL(world, allocations - before, 0);
    rig_close(&rig);
}

int main(void)
{
    static const struct ranks_test tests[] = {RANKS_TEST(test_phases), RANKS_TEST(test_save)};
    return RANKS_MAIN(tests);
}
