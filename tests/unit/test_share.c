/* share: every task once, a thread's own first, then those of others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <omp.h>

#include "kernels/cpu/share.h"

enum { THREADS = 4, MOST = 1000, LOOPS = 50 };

/* Times that each task is taken, in LOOPS loops that take two sets of shares in turn. */
static void count_takes(int *taken, int64_t tasks)
{
    static struct share shares[2][THREADS];
#pragma omp parallel num_threads(THREADS)
    {
        const int self = omp_get_thread_num(), threads = omp_get_num_threads();
        for (int loop = 0; loop < LOOPS; loop++) {
            struct share *now = shares[loop % 2];
            now[self] = share_even(tasks, threads, self);
#pragma omp barrier
            int64_t task;
            while ((task = share_take(now, threads, self)) >= 0) {
#pragma omp atomic
                taken[task]++;
            }
        }
    }
}

static void test_once(void **state)
{
    (void)state;
    static const int64_t tasks[] = {0, 1, THREADS - 1, THREADS, THREADS + 1, MOST};
    for (size_t i = 0; i < sizeof tasks / sizeof tasks[0]; i++) {
        int taken[MOST] = {0};
        count_takes(taken, tasks[i]);
        for (int64_t task = 0; task < MOST; task++) {
            assert_int_equal(taken[task], task < tasks[i] ? LOOPS : 0);
        }
    }
}

static void test_own_first(void **state)
{
    (void)state;
    enum { EACH = 5, THREAD = 2 };
    struct share shares[THREADS];
    for (int t = 0; t < THREADS; t++) {
        shares[t] = share_even((int64_t)EACH * THREADS, THREADS, t);
    }
    for (int64_t i = 0; i < EACH; i++) {
        assert_int_equal(share_take(shares, THREADS, THREAD), THREAD * EACH + i);
    }
    for (int other = 1; other < THREADS; other++) { /* from the last on */
        const int64_t end = ((THREAD + other) % THREADS + 1) * EACH;
        for (int64_t i = 1; i <= EACH; i++) {
            assert_int_equal(share_take(shares, THREADS, THREAD), end - i);
        }
    }
    for (int t = 0; t < THREADS; t++) {
        assert_true(share_take(shares, THREADS, t) < 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_once),
        cmocka_unit_test(test_own_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
