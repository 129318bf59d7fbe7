/* checkpoint: one operation of one rank fails in a save of all: every rank is told, the checkpoint
 * before stays whole, nothing half-made stays, and the next save goes through. */
#define _GNU_SOURCE
#include "parallel/checkpoint_state.h"

#include <dirent.h>

enum { OLD = 10, NEW = 20 };

static void warn(void *context, const char *message)
{
    (void)message;
    ++*(int *)context;
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

/* The newest checkpoint is whole, and so is the old one. */
static void expect_resumable(struct comm *world, const char *root)
{
    char *path = NULL;
    int64_t step = 0;
    int skipped = 0;
    CHECK_EQUAL(world, checkpoint_newest(world, root, INT64_MAX, &path, &step, warn, &skipped),
                STATUS_OK);
    CHECK(world, path != NULL && skipped == 0 && (step == OLD || step == NEW));
    CHECK_EQUAL(world, load(world, path, REVERSED, (int)step), STATUS_OK);
    CHECK_EQUAL(world, load(world, step_path(root, OLD), EVEN, OLD), STATUS_OK);
    free(path);
}

/* Whether there is a k-th operation of `rank`, which fails. Behind the publication the save is
 * good. */
static bool fails(struct comm *world, const char *root, enum io_fault fault, int rank, int64_t k)
{
    io_fault_arm(world->rank == rank ? fault : IO_FAULT_NONE, k, false);
    const enum status status = save(world, root, NEW, EVEN, NEW, 2);
    int32_t met = io_operations() >= k;
    comm_broadcast(world, &met, sizeof met, rank);
    io_fault_arm(IO_FAULT_NONE, 0, false);
    CHECK(world, status == STATUS_OK || status == STATUS_IO);
    CHECK(world, status == STATUS_OK || met != 0);
    if (status == STATUS_OK) {
        CHECK_EQUAL(world, load(world, step_path(root, NEW), REVERSED, NEW), STATUS_OK);
    } else { /* the same words on every rank */
        char text[512], first[512];
        snprintf(text, sizeof text, "%s", status_message());
        memset(first, 0, sizeof first);
        snprintf(first, sizeof first, "%s", text);
        comm_broadcast(world, first, sizeof first, 0);
        CHECK(world, strcmp(first, text) == 0 && strstr(text, "cannot") != NULL);
    }
    expect_no_leftovers(world, root);
    expect_resumable(world, root);
    if (world->rank == 0) {
        CHECK_EQUAL(world, io_remove_tree(step_path(root, NEW)), STATUS_OK);
    }
    comm_barrier(world);
    return met != 0;
}

static void test_every_operation_of_every_rank(struct comm *world)
{
    char root[MOST_PATH];
    int64_t failures = 0;
    make_root(world, root);
    CHECK_EQUAL(world, save(world, root, OLD, EVEN, OLD, 2), STATUS_OK);
    for (int fault = IO_FAULT_EIO; fault <= IO_FAULT_EDQUOT; fault++) {
        for (int rank = 0; rank < world->size; rank++) {
            int64_t k = 1;
            for (; fails(world, root, (enum io_fault)fault, rank, k); k++) {
                failures++;
            }
            CHECK(world, k > 5);
        }
    }
    if (world->rank == 0) {
        printf("%d ranks, every operation of each fails: %lld tried, %lld survived, 0 lost\n",
               world->size, (long long)failures, (long long)failures);
    }
    drop_root(world, root);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_every_operation_of_every_rank),
    };
    return RANKS_MAIN(tests);
}
