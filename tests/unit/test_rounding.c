/* rounding: what is judged together, what is allowed, and which is the worst, on numbers by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "trainer/rounding.h"

static const double UNIT = 0x1p-8;

/* Of layer 0 rounding moves a tenth, of all layers together a fifth; norms 2 and, of the pool of
 * both, 4. */
static struct rounding made(struct rounding_pool pools[4])
{
    static const struct rounding_pool hand[4] = {
        {"moment1/layers.0.experts.*.w", 4, 0.04, 0, 1},
        {"moment1/layers.*.experts.*.w", 16, 0.64, 0, 1},
        {"moment1/layers.1.experts.*.w", 4, 0.36, 0, 1},
        {"master/norm", 1, 0.0001, 0, 3},
    };
    memcpy(pools, hand, sizeof hand);
    return (struct rounding){.pool = pools, .count = 4, .unit = UNIT};
}

static void expect(struct rounding_verdict got, const char *name, double difference, double allowed)
{
    assert_string_equal(got.name, name);
    assert_true(fabs(got.difference - difference) < 1e-12);
    assert_true(fabs(got.allowed - allowed) < 1e-12);
}

static void test_verdicts(void **state)
{
    (void)state;
    struct rounding_pool pools[4];
    struct rounding rounding = made(pools);
    assert_null(rounding_worst(&rounding, "moment1/", false).name);
    /* experts of a layer are one: 0.3 and 0.4 are 0.5 of a norm of 2; allowed as all layers */
    assert_true(rounding_add(&rounding, "moment1/layers.0.experts.3.w", 0.3));
    assert_true(rounding_add(&rounding, "moment1/layers.0.experts.12.w", 0.4));
    expect(rounding_worst(&rounding, "moment1/", false), "moment1/layers.0.experts.*.w", 0.25,
           2 * 0.2 + UNIT);
    /* layer 1 rounds more than all: 0.3 */
    assert_true(rounding_add(&rounding, "moment1/layers.1.experts.0.w", 1.5));
    expect(rounding_worst(&rounding, "moment1/", false), "moment1/layers.1.experts.*.w", 0.75,
           2 * 0.3 + UNIT);
    assert_null(rounding_worst(&rounding, "moment1/", true).name);
    assert_true(rounding_add(&rounding, "master/norm", 0.015));
    expect(rounding_worst(&rounding, "moment1/", true), "master/norm", 0.015, 2 * 0.01 + UNIT);
    assert_false(rounding_add(&rounding, "moment2/layers.0.experts.3.w", 1));
}

static void test_not_a_number(void **state)
{
    (void)state;
    struct rounding_pool pools[4];
    struct rounding rounding = made(pools);
    assert_true(rounding_add(&rounding, "master/norm", (double)NAN));
    const struct rounding_verdict worst = rounding_worst(&rounding, "moment1/", true);
    assert_string_equal(worst.name, "master/norm");
    assert_true(worst.difference > worst.allowed);
}

static void test_numbers(void **state)
{
    (void)state;
    const struct rounding rounding = {.unit = UNIT};
    assert_true(rounding_of(2, 2) == 0);
    assert_true(fabs(rounding_of(2.2, 2) - 0.1) < 1e-12 && fabs(rounding_of(1.8, 2) - 0.1) < 1e-12);
    assert_true(fabs(rounding_allowed(&rounding, 0.1) - (0.2 + 4 * UNIT)) < 1e-12);
    assert_true(rounding_of_norm(&rounding) == 0);
    const struct rounding moved = {.exact = 100, .alone = 4};
    assert_true(fabs(rounding_of_norm(&moved) - 0.04) < 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_not_a_number),
        cmocka_unit_test(test_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
