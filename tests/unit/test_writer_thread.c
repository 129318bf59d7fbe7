/* background: training and the thread that writes have nothing in common but what is locked. With
 * --full this is also built with -fsanitize=thread, and must then be told of a race that
 * SWITCHYARD_RACE=1 puts in (tests/CMakeLists.txt). */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <stdlib.h>

#include "checkpoints/background.h"

enum { ELEMENTS = 3 << 20, TENSORS = 3, STEPS = 12 };

static struct comm self;
static float values[TENSORS][ELEMENTS];

static const struct checkpoint_slice like = {
    .dtype = DTYPE_F32, .ndim = 2, .shape = {ELEMENTS / 4, 4}, .count = ELEMENTS};

static void describe(struct checkpoint_slice slices[TENSORS], float (*memory)[ELEMENTS])
{
    static const char *const names[TENSORS] = {"a", "master/a", "moment1/a"};
    for (int i = 0; i < TENSORS; i++) {
        slices[i] = like;
        slices[i].name = names[i];
        slices[i].data = memory[i];
    }
}

/* A step changes all that is saved. */
static void train(int64_t step)
{
    for (int i = 0; i < TENSORS; i++) {
        for (int64_t e = 0; e < ELEMENTS; e++) {
            values[i][e] = (float)(step * 1000 + i) + (float)(e % 1000) / 1000;
        }
    }
}

static void expect_step(int64_t step)
{
    static float loaded[TENSORS][ELEMENTS];
    struct checkpoint_slice slices[TENSORS];
    char path[64];
    describe(slices, loaded);
    snprintf(path, sizeof path, "root/%08d", (int)step);
    assert_int_equal(checkpoint_load(&self, path, slices, TENSORS), STATUS_OK);
    for (int i = 0; i < TENSORS; i++) {
        for (int64_t e = 0; e < ELEMENTS; e++) {
            const float expected = (float)(step * 1000 + i) + (float)(e % 1000) / 1000;
            if (loaded[i][e] != expected) {
                fail_msg("step %d, tensor %d, element %d: %g, expected %g", (int)step, i, (int)e,
                         (double)loaded[i][e], (double)expected);
            }
        }
    }
}

/* Saves begin as soon as the one before has ended; files of the caller's own go on beside them. */
static void test_threads(void **state)
{
    (void)state;
    const bool race = getenv("SWITCHYARD_RACE") != NULL;
    struct checkpoint_slice slices[TENSORS];
    static struct background background;
    int64_t under_way = 0, saved = 0;
    assert_int_equal(comm_open(&self, "self"), STATUS_OK);
    describe(slices, values);
    assert_int_equal(background_init(&background, &self, slices, TENSORS, NULL, true), STATUS_OK);
    for (int64_t step = 1; step <= STEPS; step++) {
        enum status status = STATUS_OK;
        if (!race) {
            background_hold(&background);
        }
        train(step);
        put("metrics", "a line");
        if (background_poll(&background, &status)) {
            assert_int_equal(status, STATUS_OK);
            expect_step(under_way);
            saved++;
            under_way = 0;
        }
        if (under_way == 0) {
            under_way = step;
            assert_int_equal(background_start(&background, "root", step, strdup("{}"), 2),
                             STATUS_OK);
        }
    }
    assert_int_equal(background_finish(&background), STATUS_OK);
    expect_step(under_way);
    background_free(&background);
    comm_close(&self);
    printf("  %d saves beside %d steps\n", (int)saved + 1, STEPS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {SCRATCH_TEST(test_threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
