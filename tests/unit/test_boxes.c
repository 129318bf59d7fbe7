/* boxes: parts of matrices as rectangles; that they cover a matrix is found out, and that they do
 * not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "checkpoints/boxes.h"
#include "kernels/base/rng.h"

enum { MOST = 200, MOST_ELEMENTS = 40 * 40 };

/* The element of the matrix that element `i` of a part is. */
static int64_t place(const struct part *part, int64_t i)
{
    return part->first + (part->run > 0 ? i / part->run * part->stride + i % part->run : i);
}

/* The boxes of a part have its elements, in their order. */
static void test_boxes_of_parts(void **state)
{
    (void)state;
    for (int64_t width = 1; width <= 6; width++) {
        for (int64_t first = 0; first < 4 * width; first++) {
            for (int64_t count = 0; first + count <= 4 * width; count++) {
                struct box boxes[BOXES_OF_PART];
                const struct part part = {first, count, 0, 0};
                const int used = boxes_of(boxes, &part, width);
                int64_t at = 0;
                for (int b = 0; b < used; b++) {
                    for (int64_t i = 0; i < boxes[b].rows * boxes[b].columns; i++) {
                        const int64_t row = boxes[b].row + i / boxes[b].columns,
                                      column = boxes[b].column + i % boxes[b].columns;
                        assert_int_equal(row * width + column, place(&part, at++));
                    }
                }
                assert_int_equal(at, count);
            }
        }
    }
}

static void test_fit(void **state)
{
    (void)state;
    int fit = 0;
    for (int64_t first = 0; first < 45; first++) { /* of 4 rows of 10 */
        for (int64_t run = 0; run < 12; run++) {
            for (int64_t count = 0; count < 45; count++) {
                const struct part part = {first, count, run, 10};
                bool expected = run > 0 && run < 10 && count > run && count % run == 0;
                for (int64_t i = 0; i < count && expected; i++) {
                    expected = place(&part, i) < 40 && i / run == place(&part, i) / 10 - first / 10;
                }
                assert_int_equal(boxes_fit(&part, 40, 10), expected);
                fit += expected;
            }
        }
    }
    assert_int_equal(fit, (2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10) * (3 + 2 + 1)); /* columns, rows */
    assert_false(boxes_fit(&(struct part){0, 8, 4, 9}, 40, 10));
    assert_false(boxes_fit(&(struct part){INT64_MAX - 1, 8, 4, 10}, 40, 10));
    assert_false(boxes_fit(&(struct part){0, INT64_MAX - 3, 4, 10}, 40, 10));
    assert_false(boxes_fit(&(struct part){0, 8, 4, 0}, 0, 0));
}

static int64_t below(uint64_t trial, uint64_t *draws, int64_t limit)
{
    return (int64_t)(rng_uniform(trial + 1, (*draws)++) * (double)limit);
}

/* Columns of a matrix cut at random, each in flat parts cut at random, as ranks hold them. */
static int64_t divide(struct box boxes[MOST], int64_t rows, int64_t width, uint64_t trial,
                      uint64_t *draws)
{
    int64_t used = 0;
    for (int64_t column = 0; column < width;) {
        const int64_t columns = 1 + below(trial, draws, width - column), all = rows * columns;
        for (int64_t first = 0; first < all && used + BOXES_OF_PART <= MOST;) {
            const int64_t left = all - first;
            const int64_t count = used > MOST / 2 ? left : 1 + below(trial, draws, left);
            const struct part part = {first, count, 0, 0};
            const int more = boxes_of(boxes + used, &part, columns);
            for (int b = 0; b < more; b++) {
                boxes[used + b].column += column;
            }
            used += more;
            first += count;
        }
        column += columns;
    }
    return used;
}

/* Element by element. */
static bool covers(const struct box *boxes, int64_t count, int64_t rows, int64_t width)
{
    unsigned char seen[MOST_ELEMENTS] = {0};
    for (int64_t b = 0; b < count; b++) {
        for (int64_t i = 0; i < boxes[b].rows * boxes[b].columns; i++) {
            seen[(boxes[b].row + i / boxes[b].columns) * width + boxes[b].column +
                 i % boxes[b].columns]++;
        }
    }
    for (int64_t i = 0; i < rows * width; i++) {
        if (seen[i] != 1) {
            return false;
        }
    }
    return true;
}

static void test_cover(void **state)
{
    (void)state;
    int whole = 0, broken = 0;
    for (uint64_t trial = 0; trial < 5000; trial++) {
        struct box boxes[MOST], sorted[MOST];
        int64_t scratch[4 * MOST + 2];
        uint64_t draws = 0;
        const int64_t rows = 1 + below(trial, &draws, 20), width = 1 + below(trial, &draws, 20);
        int64_t count = divide(boxes, rows, width, trial, &draws);
        if (trial % 2 == 1) { /* one box is another, or goes */
            struct box *one = &boxes[below(trial, &draws, count)];
            const int64_t row = below(trial, &draws, rows), column = below(trial, &draws, width);
            *one = (struct box){row, 1 + below(trial, &draws, rows - row), column,
                                1 + below(trial, &draws, width - column)};
            if (trial % 3 == 0) {
                *one = boxes[--count];
            }
        }
        const bool expected = covers(boxes, count, rows, width);
        memcpy(sorted, boxes, sizeof sorted);
        assert_int_equal(boxes_cover(sorted, count, rows, width, scratch), expected);
        whole += expected;
        broken += !expected;
    }
    assert_true(whole >= 2500 && broken > 2000);
    int64_t scratch[2];
    assert_false(boxes_cover(NULL, 0, 1, 1, scratch));
}

static void test_meet(void **state)
{
    (void)state;
    const struct box a = {2, 3, 4, 5};
    struct box both;
    int met = 0;
    for (int64_t row = 0; row < 7; row++) {
        for (int64_t column = 0; column < 12; column++) {
            const struct box b = {row, 2, column, 3};
            const bool meets = row + 2 > 2 && row < 5 && column + 3 > 4 && column < 9;
            assert_int_equal(boxes_meet(&both, &a, &b), meets);
            met += meets;
            if (meets) {
                assert_int_equal(both.row, row > 2 ? row : 2);
                assert_int_equal(both.row + both.rows, row + 2 < 5 ? row + 2 : 5);
                assert_int_equal(both.column, column > 4 ? column : 4);
                assert_int_equal(both.column + both.columns, column + 3 < 9 ? column + 3 : 9);
            }
        }
    }
    assert_int_equal(met, 4 * 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_boxes_of_parts),
        cmocka_unit_test(test_fit),
        cmocka_unit_test(test_cover),
        cmocka_unit_test(test_meet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
