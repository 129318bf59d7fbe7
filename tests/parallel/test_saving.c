/* saving: a run that saves beside its steps has the same losses and the same checkpoints, file for
 * file, as one that waits for its saves; when saves are due, what failures do, what is printed of
 * costs. */
#define _GNU_SOURCE
#include "trainer/saving.h"

#include <dirent.h>
#include <unistd.h>

#include "kernels/base/io.h"
#include "parallel/gate.h"
#include "parallel/ranks.h"
#include "tiny_model.h"

enum { STEPS = 8, MOST_PATH = 512, MOST_NAME = 4 * MOST_PATH };

/* A run of a tiny model. */
struct rig {
    struct comm *world;
    struct tiny tiny;
    struct metrics metrics;
    struct saving saving;
    struct progress_state at;
    char root[MOST_PATH];
    double loss; /* of the last step */
};

/* The thread is slow to copy: the step comes to its end before. */
static enum status (*read_fast)(const struct checkpoint_slice *, int64_t, void *, size_t);
static pthread_t caller;

static enum status read_slowly(const struct checkpoint_slice *slice, int64_t offset, void *to,
                               size_t bytes)
{
    if (!pthread_equal(pthread_self(), caller)) {
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    return read_fast(slice, offset, to, bytes);
}

static void slow_down(struct saving *saving)
{
    caller = pthread_self();
    for (int64_t i = 0; i < saving->slices.count; i++) {
        read_fast = saving->slices.slice[i].read;
        saving->slices.slice[i].read = read_slowly;
    }
}

static void rig_open(struct rig *rig, struct comm *world, const char *text,
                     const char *const *overrides)
{
    *rig = (struct rig){.world = world};
    if (world->rank == 0) {
        snprintf(rig->root, sizeof rig->root, "%s/switchyard-test-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        CHECK(world, mkdtemp(rig->root) != NULL);
    }
    comm_broadcast(world, rig->root, sizeof rig->root, 0);
    CHECK_EQUAL(world, tiny_open(&rig->tiny, world, text, overrides), STATUS_OK);
    CHECK_EQUAL(world,
                saving_init(&rig->saving, &rig->tiny.model, &rig->metrics, rig->root, "none",
                            &rig->at, false),
                STATUS_OK);
    rig->tiny.stepper.hold = saving_hold;
    rig->tiny.stepper.hold_context = &rig->saving;
}

static void rig_close(struct rig *rig)
{
    saving_close(&rig->saving);
    tiny_close(&rig->tiny);
    comm_barrier(rig->world);
    if (rig->world->rank == 0) {
        CHECK_EQUAL(rig->world, io_remove_tree(rig->root), STATUS_OK);
    }
    comm_barrier(rig->world);
}

/* A step and its edge. */
static enum status go(struct rig *rig)
{
    struct step_result result;
    const int64_t step = rig->at.step + 1;
    CHECK_EQUAL(rig->world, stepper_step(&rig->tiny.stepper, step, rig->at.position, &result),
                STATUS_OK);
    rig->at =
        (struct progress_state){.step = step, .position = rig->at.position + result.sequences};
    rig->loss = result.loss;
    return saving_edge(&rig->saving, &rig->at, result.step_ms / 1e3);
}

static void run(struct rig *rig, int64_t until)
{
    while (rig->at.step < until) {
        CHECK_EQUAL(rig->world, go(rig), STATUS_OK);
    }
}

static bool holds(const struct rig *rig, int64_t step)
{
    char name[MOST_NAME];
    snprintf(name, sizeof name, "%s/%08lld/manifest.json", rig->root, (long long)step);
    return io_exists(name);
}

/* Of a step: every file but state.json, which names the way it was saved. */
static void compare(struct comm *world, const struct rig *one, const struct rig *two, int64_t step)
{
    static const char *const tails[] = {"model.h5", "shard-00000.h5", "shard-00001.h5",
                                        "shard-00002.h5", "shard-00003.h5"};
    for (int i = 0; i < 1 + world->size; i++) {
        char name[MOST_NAME], *a = NULL, *b = NULL;
        size_t a_bytes = 0, b_bytes = 0;
        snprintf(name, sizeof name, "%s/%08lld/%s", one->root, (long long)step, tails[i]);
        CHECK_EQUAL(world, io_read_file(name, &a, &a_bytes, (size_t)1 << 30), STATUS_OK);
        snprintf(name, sizeof name, "%s/%08lld/%s", two->root, (long long)step, tails[i]);
        CHECK_EQUAL(world, io_read_file(name, &b, &b_bytes, (size_t)1 << 30), STATUS_OK);
        CHECK(world, a_bytes == b_bytes && memcmp(a, b, a_bytes) == 0);
        free(a);
        free(b);
    }
}

static void same_as_waiting(struct comm *world, const char *text, const char *first,
                            const char *second, const char *third)
{
    static struct rig beside, waiting;
    const char *overrides[TINY_OVERRIDES] = {"checkpoint.every_steps=3",
                                             "checkpoint.keep_last=9",
                                             "checkpoint.async=true",
                                             first,
                                             second,
                                             third};
    rig_open(&beside, world, text, overrides);
    overrides[2] = "checkpoint.async=false";
    rig_open(&waiting, world, text, overrides);
    CHECK(world, beside.saving.async && !waiting.saving.async);
    slow_down(&beside.saving);
    for (int64_t step = 1; step < STEPS; step++) {
        CHECK_EQUAL(world, go(&beside), STATUS_OK);
        CHECK_EQUAL(world, go(&waiting), STATUS_OK);
        CHECK(world, beside.loss == waiting.loss);
    }
    CHECK_EQUAL(world, saving_last(&beside.saving, &beside.at), STATUS_OK);
    CHECK_EQUAL(world, saving_last(&waiting.saving, &waiting.at), STATUS_OK);
    compare(world, &beside, &waiting, 3);
    compare(world, &beside, &waiting, 6);
    compare(world, &beside, &waiting, STEPS - 1);
    rig_close(&beside);
    rig_close(&waiting);
}

static void test_same_as_waiting(struct comm *world)
{
    same_as_waiting(world, TINY_V3, "router.bias_update_speed=0.001", "optimizer.ema=0.9", NULL);
    same_as_waiting(world, TINY_MIXTRAL, "train.precision=bf16", "optimizer.name=muon",
                    "optimizer.moments=bf16");
}

/* A disk that takes longer than two steps: the second save waits for the first, both are there. */
static void test_second_waits(struct comm *world)
{
    static struct rig rig;
    const char *const overrides[TINY_OVERRIDES] = {"checkpoint.every_steps=2",
                                                   "checkpoint.keep_last=9"};
    rig_open(&rig, world, TINY_MIXTRAL, overrides);
    gate_close();
    run(&rig, 3);
    CHECK(world, rig.saving.background.phase == BACKGROUND_WRITING && !holds(&rig, 2));
    CHECK(world, saving_held_up(&rig.saving) > 0);
    gate_open();
    run(&rig, 4);
    CHECK(world, holds(&rig, 2) && rig.saving.saved_step == 2 && rig.saving.step == 4);
    CHECK_EQUAL(world, saving_last(&rig.saving, &rig.at), STATUS_OK); /* of 4: waited for */
    io_observe(NULL, NULL);
    CHECK(world, holds(&rig, 4) && rig.saving.saved_step == 4);
    rig_close(&rig);
}

static void test_failures(struct comm *world)
{
    static struct rig rig;
    for (int async = 0; async < 2; async++) {
        const char *const overrides[TINY_OVERRIDES] = {"checkpoint.every_steps=1",
                                                       async != 0 ? "checkpoint.async=true"
                                                                  : "checkpoint.async=false"};
        rig_open(&rig, world, TINY_MIXTRAL, overrides);
        run(&rig, 1);
        CHECK_EQUAL(world, saving_last(&rig.saving, &rig.at), STATUS_OK);
        io_fault_arm(world->rank == world->size - 1 ? IO_FAULT_EIO : IO_FAULT_NONE, 1, true);
        enum status status = STATUS_OK;
        while (status == STATUS_OK && rig.at.step < STEPS) {
            status = go(&rig);
        }
        CHECK_EQUAL(world, status, STATUS_IO); /* the third in a row */
        CHECK_EQUAL(world, rig.saving.failures, 3);
        CHECK(world, rig.at.step == (async != 0 ? 5 : 4) || async != 0);
        CHECK_EQUAL(world, saving_last(&rig.saving, &rig.at), STATUS_IO);
        io_fault_arm(IO_FAULT_NONE, 0, false);
        CHECK_EQUAL(world, saving_last(&rig.saving, &rig.at), STATUS_OK);
        CHECK(world, rig.saving.failures == 0 && rig.saving.saved_step == rig.at.step);
        CHECK(world, holds(&rig, rig.at.step));
        rig_close(&rig);
    }
}

/* Two runs of the same steps, one of them with saves. */
struct pair {
    struct rig saves, plain;
};

static enum status go_both(struct pair *pair)
{
    const enum status status = go(&pair->saves);
    CHECK_EQUAL(pair->saves.world, go(&pair->plain), STATUS_OK);
    CHECK(pair->saves.world, pair->saves.loss == pair->plain.loss);
    return status;
}

/* A save from a step edge to the one where it is known to have ended. */
static enum status save_beside(struct pair *pair)
{
    struct saving *saving = &pair->saves.saving;
    saving->interval = 1e-12; /* due */
    enum status status = go_both(pair);
    saving->interval = 3600;
    while (status == STATUS_OK && saving->background.phase != BACKGROUND_IDLE) {
        saving_hold(saving); /* not needed, but the thread's work need not be waited for then */
        while (!atomic_load(&saving->background.finished) && saving->background.running) {
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        }
        status = go_both(pair);
    }
    return status;
}

static void arm(struct comm *world, int rank, enum io_fault fault, int64_t k, bool sticky)
{
    io_fault_arm(world->rank == rank ? fault : IO_FAULT_NONE, k, sticky);
}

/* Operation k of a rank fails, in the thread: training goes on, its losses as without any save, and
 * the next save is good. False: a save has no such operation. */
static bool fails_at(struct pair *pair, int rank, int64_t k)
{
    struct comm *world = pair->saves.world;
    struct saving *saving = &pair->saves.saving;
    const int64_t good = saving->saved_step;
    arm(world, rank, IO_FAULT_EIO, k, false);
    CHECK_EQUAL(world, save_beside(pair), STATUS_OK);
    const bool met = saving->failures == 1;
    CHECK(world, saving->saved_step == (met ? good : saving->step));
    CHECK(world, holds(&pair->saves, good));
    arm(world, rank, IO_FAULT_NONE, 0, false);
    CHECK_EQUAL(world, save_beside(pair), STATUS_OK);
    CHECK(world, saving->failures == 0 && saving->saved_step == saving->step);
    return met;
}

/* From operation k on all fail: the third save in a row ends the run. Where they fail behind the
 * publication only, the new one may stand instead of the good one. */
static void fails_from(struct pair *pair, int rank, int64_t k)
{
    struct comm *world = pair->saves.world;
    struct saving *saving = &pair->saves.saving;
    const int64_t good = saving->saved_step;
    arm(world, rank, IO_FAULT_ENOSPC, k, true);
    for (int i = 1; i <= 3; i++) {
        CHECK_EQUAL(world, save_beside(pair), i < 3 ? STATUS_OK : STATUS_IO);
        CHECK_EQUAL(world, saving->failures, i);
        CHECK(world, holds(&pair->saves, good) || holds(&pair->saves, saving->step));
    }
    arm(world, rank, IO_FAULT_NONE, 0, false);
    CHECK_EQUAL(world, save_beside(pair), STATUS_OK);
    CHECK_EQUAL(world, saving->failures, 0);
}

static void test_failures_at_every_operation(struct comm *world)
{
    static struct pair pair;
    const char *const full = getenv("SWITCHYARD_FULL");
    const int64_t stride = full == NULL || strcmp(full, "1") != 0 ? 11 : world->size > 1 ? 4 : 1;
    const char *const overrides[TINY_OVERRIDES] = {"checkpoint.mtbf_hours=1e-9",
                                                   "checkpoint.keep_last=2", "run.steps=1000000",
                                                   "train.micro_batch=1", "train.global_batch=4"};
    rig_open(&pair.saves, world, TINY_MIXTRAL, overrides);
    rig_open(&pair.plain, world, TINY_MIXTRAL, overrides);
    pair.plain.saving.interval = 1e9;
    CHECK_EQUAL(world, save_beside(&pair), STATUS_OK);
    CHECK_EQUAL(world, save_beside(&pair), STATUS_OK); /* from now on each prunes one */
    for (int rank = 0; rank<world->size; rank += world->size> 1 ? world->size - 1 : 1) {
        int64_t k = 1;
        for (; fails_at(&pair, rank, k); k += stride) {
            if (k % 5 == 1) {
                fails_from(&pair, rank, k);
            }
        }
        CHECK(world, k > 5);
    }
    rig_close(&pair.saves);
    rig_close(&pair.plain);
}

/* mtbf_hours: the first save after 10 steps; then as often as costs say. every_minutes: by the
 * clock. */
static void test_intervals(struct comm *world)
{
    static struct rig rig;
    const char *overrides[TINY_OVERRIDES] = {"checkpoint.mtbf_hours=1e-9",
                                             "checkpoint.every_steps=1", "run.steps=100"};
    rig_open(&rig, world, TINY_MIXTRAL, overrides);
    for (rig.at.step = 1; rig.at.step < 10; rig.at.step++) {
        CHECK_EQUAL(world, saving_edge(&rig.saving, &rig.at, 0.001), STATUS_OK);
        CHECK(world, rig.saving.background.phase == BACKGROUND_IDLE);
    }
    CHECK_EQUAL(world, saving_edge(&rig.saving, &rig.at, 0.001), STATUS_OK);
    CHECK_EQUAL(world, saving_last(&rig.saving, &rig.at), STATUS_OK);
    CHECK(world, holds(&rig, 10) && rig.saving.interval > 0 && rig.saving.saves == 1);
    rig.saving.interval = 3600;
    rig.at.step = 11;
    CHECK_EQUAL(world, saving_edge(&rig.saving, &rig.at, 0.001), STATUS_OK);
    CHECK_EQUAL(world, rig.saving.step, 10);
    rig.saving.interval = world->rank == 0 ? 1e-9 : 3600; /* one rank's clock is enough */
    CHECK_EQUAL(world, saving_edge(&rig.saving, &rig.at, 0.001), STATUS_OK);
    CHECK_EQUAL(world, rig.saving.step, 11);
    rig_close(&rig);
    overrides[0] = "checkpoint.every_minutes=1e-9";
    overrides[1] = "checkpoint.every_steps=0";
    rig_open(&rig, world, TINY_MIXTRAL, overrides);
    rig.at.step = 1;
    CHECK_EQUAL(world, saving_edge(&rig.saving, &rig.at, 0.001), STATUS_OK);
    CHECK_EQUAL(world, rig.saving.step, 1);
    rig_close(&rig);
    overrides[0] = "checkpoint.every_minutes=0"; /* nothing to save on the way: no memory for it */
    rig_open(&rig, world, TINY_MIXTRAL, overrides);
    CHECK_EQUAL(world, saving_bytes(&rig.saving), 0);
    rig_close(&rig);
}

/* A run that ends with an error of its own still publishes what was under way. */
static void test_closed_in_the_middle(struct comm *world)
{
    static struct rig rig;
    const char *const overrides[TINY_OVERRIDES] = {"checkpoint.every_steps=2"};
    rig_open(&rig, world, TINY_MIXTRAL, overrides);
    gate_close();
    run(&rig, 2);
    CHECK(world, !holds(&rig, 2));
    gate_open();
    const enum status error = status_fail(STATUS_DIVERGED, "not finite");
    saving_close(&rig.saving);
    io_observe(NULL, NULL);
    CHECK(world, error == STATUS_DIVERGED && holds(&rig, 2));
    CHECK_MESSAGE(world, "not finite");
    rig_close(&rig);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_same_as_waiting), RANKS_TEST(test_second_waits),
        RANKS_TEST(test_failures),        RANKS_TEST(test_failures_at_every_operation),
        RANKS_TEST(test_intervals),       RANKS_TEST(test_closed_in_the_middle),
    };
    return RANKS_MAIN(tests);
}
