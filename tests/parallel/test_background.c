/* background: what is saved beside the training is what there was at the step edge, bit for bit,
 * the same files as a save that training waits for; and an error of any operation of any rank while
 * the threads write is told to all and costs nothing but that save. */
#define _GNU_SOURCE
#include "parallel/checkpoint_state.h"

#include <dirent.h>

#include "checkpoints/background.h"
#include "parallel/gate.h"

enum { OLD = 10, NEW = 20 };

/* A rank's state and what saves it. */
struct rig {
    struct comm *world;
    struct state state;
    struct background background;
    struct device *device; /* copies the state by itself, or nothing does */
    char root[MOST_PATH];
};

/* The thread is slow to copy, so that the state is about to change before it is done. */
static pthread_t caller;

static enum status read_slowly(const struct checkpoint_slice *slice, int64_t offset, void *to,
                               size_t bytes)
{
    if (!pthread_equal(pthread_self(), caller)) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    memcpy(to, (const char *)slice->data + offset, bytes);
    return STATUS_OK;
}

static void rig_open(struct rig *rig, struct comm *world, enum layout layout, bool copies)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    *rig = (struct rig){.world = world};
    CHECK_EQUAL(world, device_open(&rig->device, &options), STATUS_OK);
    make_state(world, &rig->state, layout, 0);
    caller = pthread_self();
    for (int64_t i = 0; i < rig->state.count; i++) {
        rig->state.slice[i].read = read_slowly;
    }
    make_root(world, rig->root);
    CHECK_EQUAL(world,
                background_init(&rig->background, world, rig->state.slice, rig->state.count,
                                copies ? rig->device : NULL, true),
                STATUS_OK);
}

static void rig_close(struct rig *rig)
{
    background_free(&rig->background);
    device_close(rig->device);
    free_state(&rig->state);
    drop_root(rig->world, rig->root);
}

static enum status start(struct rig *rig, int64_t step, int version, int keep)
{
    char text[64];
    fill(&rig->state, version);
    snprintf(text, sizeof text, "{\"version\": %d}", version);
    char *copy = strdup(text);
    CHECK(rig->world, copy != NULL);
    return background_start(&rig->background, rig->root, step, copy, keep);
}

/* Training: the state changes as soon as it may. */
static void move_on(struct rig *rig)
{
    background_hold(&rig->background);
    fill(&rig->state, 777);
}

/* Step edges until the save has ended. */
static enum status edges(struct rig *rig)
{
    enum status status = STATUS_OK;
    while (!background_poll(&rig->background, &status)) {
        move_on(rig);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    return status;
}

static void compare_folders(struct comm *world, const char *one, const char *two)
{
    char a[4 * MOST_PATH], b[4 * MOST_PATH], first[2 * MOST_PATH];
    int files = 0;
    snprintf(first, sizeof first, "%s", step_path(one, 1));
    DIR *dir = world->rank == 0 ? opendir(first) : NULL;
    for (struct dirent *entry = dir != NULL ? readdir(dir) : NULL; entry != NULL;
         entry = readdir(dir)) {
        char *x = NULL, *y = NULL;
        size_t x_bytes = 0, y_bytes = 0;
        if (entry->d_name[0] == '.') {
            continue;
        }
        snprintf(a, sizeof a, "%s/%s", first, entry->d_name);
        snprintf(b, sizeof b, "%s/%s", step_path(two, 1), entry->d_name);
        CHECK_EQUAL(world, io_read_file(a, &x, &x_bytes, (size_t)1 << 30), STATUS_OK);
        CHECK_EQUAL(world, io_read_file(b, &y, &y_bytes, (size_t)1 << 30), STATUS_OK);
        CHECK(world, x_bytes == y_bytes && memcmp(x, y, x_bytes) == 0);
        free(x);
        free(y);
        files++;
    }
    if (dir != NULL) {
        CHECK_EQUAL(world, files, world->size + 3); /* shards, manifest, state, view */
        closedir(dir);
    }
}

static void test_as_it_was(struct comm *world)
{
    for (int layout = 0; layout < LAYOUTS; layout++) {
        for (int copies = 0; copies < 2; copies++) {
            char beside[MOST_PATH];
            struct rig rig;
            rig_open(&rig, world, (enum layout)layout, copies != 0);
            make_root(world, beside);
            for (int64_t step = 1; step <= 3; step++) { /* the copy's memory is used again */
                CHECK_EQUAL(world, start(&rig, step, (int)step + layout, 3), STATUS_OK);
                move_on(&rig);
                CHECK_EQUAL(world, step == 2 ? background_finish(&rig.background) : edges(&rig),
                            STATUS_OK);
                CHECK_EQUAL(world,
                            load(world, step_path(rig.root, step), REVERSED, (int)step + layout),
                            STATUS_OK);
            }
            CHECK_EQUAL(world, save(world, beside, 1, (enum layout)layout, 1 + layout, 1),
                        STATUS_OK);
            compare_folders(world, rig.root, beside);
            drop_root(world, beside);
            rig_close(&rig);
        }
    }
}

/* Nothing is there under the step's name, nor is training asked to wait, until it is whole. */
static void test_while_it_writes(struct comm *world)
{
    struct rig rig;
    rig_open(&rig, world, EVEN, false);
    CHECK_EQUAL(world, start(&rig, OLD, OLD, 1), STATUS_OK);
    CHECK_EQUAL(world, edges(&rig), STATUS_OK);
    gate_close();
    CHECK_EQUAL(world, start(&rig, NEW, NEW, 1), STATUS_OK);
    move_on(&rig);
    enum status status = STATUS_OK;
    CHECK(world, !background_poll(&rig.background, &status));
    CHECK(world, rig.background.phase == BACKGROUND_WRITING);
    CHECK(world, !io_exists(step_path(rig.root, NEW)));
    CHECK_EQUAL(world, load(world, step_path(rig.root, OLD), EVEN, OLD), STATUS_OK);
    gate_open();
    CHECK_EQUAL(world, edges(&rig), STATUS_OK);
    io_observe(NULL, NULL);
    CHECK_EQUAL(world, load(world, step_path(rig.root, NEW), EVEN, NEW), STATUS_OK);
    CHECK(world, !io_exists(step_path(rig.root, OLD))); /* pruned */
    rig_close(&rig);
}

static void expect_no_leftovers(struct comm *world, const char *root)
{
    DIR *dir = world->rank == 0 ? opendir(root) : NULL;
    for (struct dirent *entry = dir != NULL ? readdir(dir) : NULL; entry != NULL;
         entry = readdir(dir)) {
        CHECK(world, strncmp(entry->d_name, ".t", 2) != 0);
    }
    if (dir != NULL) {
        closedir(dir);
    }
}

/* Whether there is a k-th operation of `rank`, which fails. Behind the publication the save is
 * good. */
static bool fails(struct rig *rig, enum io_fault fault, int rank, int64_t k)
{
    struct comm *world = rig->world;
    io_fault_arm(world->rank == rank ? fault : IO_FAULT_NONE, k, false);
    enum status status = start(rig, NEW, NEW, 2);
    if (status == STATUS_OK) {
        move_on(rig);
        status = k % 2 == 0 ? background_finish(&rig->background) : edges(rig);
    }
    int32_t met = io_operations() >= k;
    comm_broadcast(world, &met, sizeof met, rank);
    io_fault_arm(IO_FAULT_NONE, 0, false);
    CHECK(world, status == STATUS_OK || status == STATUS_IO);
    CHECK(world, status == STATUS_OK || met != 0);
    if (status != STATUS_OK) { /* the same words on every rank, whichever thread met it */
        char text[512], first[512];
        snprintf(text, sizeof text, "%s", status_message());
        memset(first, 0, sizeof first);
        snprintf(first, sizeof first, "%s", text);
        comm_broadcast(world, first, sizeof first, 0);
        CHECK(world, strcmp(first, text) == 0 && strstr(text, "cannot") != NULL);
    }
    expect_no_leftovers(world, rig->root);
    CHECK_EQUAL(world, load(world, step_path(rig->root, OLD), EVEN, OLD), STATUS_OK);
    if (status == STATUS_OK) {
        CHECK_EQUAL(world, load(world, step_path(rig->root, NEW), EVEN, NEW), STATUS_OK);
    }
    comm_barrier(world);
    if (world->rank == 0) {
        CHECK_EQUAL(world, io_remove_tree(step_path(rig->root, NEW)), STATUS_OK);
    }
    comm_barrier(world);
    return met != 0;
}

static void test_every_operation_of_every_rank(struct comm *world)
{
    struct rig rig;
    int64_t failures = 0;
    rig_open(&rig, world, EVEN, false);
    CHECK_EQUAL(world, start(&rig, OLD, OLD, 2), STATUS_OK);
    CHECK_EQUAL(world, edges(&rig), STATUS_OK);
    for (int rank = 0; rank < world->size; rank++) {
        int64_t k = 1;
        for (; fails(&rig, rank == 0 ? IO_FAULT_ENOSPC : IO_FAULT_EIO, rank, k); k++) {
            failures++;
        }
        CHECK(world, k > 5);
    }
    if (world->rank == 0) {
        printf("%lld operations failed on %d ranks, 0 checkpoints lost\n", (long long)failures,
               world->size);
    }
    rig_close(&rig);
}

/* Given up in the middle, as after an error of training: nothing under the step's name. */
static void test_given_up(struct comm *world)
{
    struct rig rig;
    rig_open(&rig, world, EVEN, true);
    CHECK_EQUAL(world, start(&rig, NEW, NEW, 1), STATUS_OK);
    background_free(&rig.background);
    CHECK(world, !io_exists(step_path(rig.root, NEW)));
    rig_close(&rig);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_as_it_was),
        RANKS_TEST(test_while_it_writes),
        RANKS_TEST(test_every_operation_of_every_rank),
        RANKS_TEST(test_given_up),
    };
    return RANKS_MAIN(tests);
}
