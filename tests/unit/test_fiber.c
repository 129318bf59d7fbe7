/* fiber: who runs when, that a stack keeps what stands on it and serves again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "kernels/base/fiber.h"

/* The thread that ThreadSanitizer takes this for; NULL without it. */
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define THREAD() __tsan_get_current_fiber()
#else
#define THREAD() NULL
#endif

/* What ran, in order. */
static char order[64];

static void note(char what)
{
    const size_t at = strlen(order);
    assert_true(at + 1 < sizeof order);
    order[at] = what;
}

struct turns {
    char name;
    int count;
    double sum; /* of numbers that stand on its stack meanwhile */
    void *thread;
};

static void take_turns(void *arg)
{
    struct turns *turns = arg;
    double own[1024]; /* larger than a red zone */
    for (int i = 0; i < 1024; i++) {
        own[i] = turns->name + i;
    }
    turns->thread = THREAD();
    for (int turn = 0; turn < turns->count; turn++) {
        assert_true(turns->thread == THREAD());
        note(turns->name);
        if (turn + 1 < turns->count) {
            fiber_yield();
        }
    }
    for (int i = 0; i < 1024; i++) {
        turns->sum += own[i];
    }
}

static void test_turns(void **state)
{
    (void)state;
    struct fiber a, b;
    struct turns of_a = {'a', 3, 0, NULL}, of_b = {'b', 5, 0, NULL};
    void *const own = THREAD();
    assert_true(fiber_init(&a) == STATUS_OK && fiber_init(&b) == STATUS_OK);
    for (int again = 0; again < 2; again++) { /* a stack serves again */
        memset(order, 0, sizeof order);
        of_a.sum = of_b.sum = 0;
        fiber_start(&a, take_turns, &of_a);
        fiber_start(&b, take_turns, &of_b);
        while (!a.done || !b.done) {
            if (!a.done) {
                fiber_resume(&a);
            }
            note('-');
            if (!b.done) {
                fiber_resume(&b);
            }
            assert_true(own == THREAD());
        }
        assert_true(own == NULL || (of_a.thread != own && of_b.thread != own));
        assert_true(strcmp(order, "a-ba-ba-b-b-b") == 0);
        assert_true(of_a.sum == 1024.0 * 'a' + 1023.0 * 512);
        assert_true(of_b.sum == 1024.0 * 'b' + 1023.0 * 512);
    }
    fiber_free(&a);
    fiber_free(&b);
}

/* Outside of a fiber there is nobody to go back to. */
static void test_outside(void **state)
{
    (void)state;
    memset(order, 0, sizeof order);
    struct turns alone = {'x', 2, 0, NULL};
    take_turns(&alone);
    assert_true(strcmp(order, "xx") == 0);
    struct fiber none = {0};
    fiber_free(&none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_turns),
        cmocka_unit_test(test_outside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
