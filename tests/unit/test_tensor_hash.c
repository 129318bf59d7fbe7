/* tensor_hash: the formula of FORMAT.md, whatever pieces it comes in; every change shows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "checkpoints/tensor_hash.h"
#include "kernels/base/rng.h"

enum { BYTES = 1024 };

static void fill(unsigned char *data)
{
    for (size_t i = 0; i < BYTES; i++) {
        data[i] = (unsigned char)(i * i * 31 + i * 7 + 3);
    }
}

/* As FORMAT.md has it. */
static uint64_t slow_hash(const unsigned char *data, size_t bytes, size_t width, uint64_t first)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes / width; i++) {
        uint64_t bits = 0;
        for (size_t b = 0; b < width; b++) {
            bits |= (uint64_t)data[i * width + b] << (8 * b);
        }
        uint64_t t = ((first + i + 1) * UINT64_C(0x9e3779b97f4a7c15)) ^
                     ((bits + 1) * UINT64_C(0xd6e8feb86659fd93));
        t = (t ^ (t >> 32)) * UINT64_C(0xd6e8feb86659fd93);
        sum += t ^ (t >> 32);
    }
    return sum;
}

static uint64_t hash(const unsigned char *data, size_t bytes, size_t width, int64_t first)
{
    struct tensor_hash sum;
    tensor_hash_start(&sum, first, width);
    tensor_hash_add(&sum, data, bytes);
    return sum.sum;
}

static void test_formula(void **state)
{
    (void)state;
    unsigned char data[BYTES];
    fill(data);
    for (size_t width = 1; width <= 4; width *= 2) {
        for (size_t count = 0; count <= 67; count++) {
            assert_true(hash(data, count * width, width, 5) ==
                        slow_hash(data, count * width, width, 5));
        }
    }
    const float one = 1;
    assert_true(hash((const unsigned char *)&one, 4, 4, 0) == UINT64_C(0x4ba61f65b991a596));
}

/* Pieces of any length, also within an element; parts that begin anywhere add up. */
static void test_pieces_add_up(void **state)
{
    (void)state;
    unsigned char data[BYTES];
    fill(data);
    for (size_t width = 1; width <= 4; width *= 2) {
        const uint64_t whole = hash(data, BYTES, width, 0);
        for (uint64_t trial = 0; trial < 200; trial++) {
            struct tensor_hash sum;
            size_t at = 0;
            tensor_hash_start(&sum, 0, width);
            for (uint64_t i = 0; at < BYTES; i++) {
                const size_t left = BYTES - at;
                size_t piece = (size_t)(rng_uniform(trial + 1, i) * (trial % 2 == 0 ? 9 : 300));
                piece = piece < left ? piece : left;
                tensor_hash_add(&sum, data + at, piece);
                at += piece;
            }
            assert_true(sum.sum == whole && sum.held == 0);
            const size_t cut = (size_t)(rng_uniform(trial + 1, 1000) * (double)(BYTES / width));
            assert_true(hash(data, cut * width, width, 0) +
                            hash(data + cut * width, BYTES - cut * width, width, (int64_t)cut) ==
                        whole);
        }
    }
}

/* Columns of a matrix, in pieces of any length: as their elements one by one. */
static void test_runs(void **state)
{
    (void)state;
    unsigned char data[BYTES];
    fill(data);
    for (size_t width = 1; width <= 4; width *= 2) {
        for (int64_t run = 1; run <= 9; run++) {
            const int64_t stride = run + 5, rows = 20, first = 3;
            struct tensor_hash sum;
            uint64_t expected = 0;
            for (int64_t r = 0; r < rows; r++) {
                expected += slow_hash(data + (size_t)(r * run) * width, (size_t)run * width, width,
                                      (uint64_t)(first + r * stride));
            }
            const size_t all = (size_t)(rows * run) * width;
            for (size_t piece = 1; piece <= all; piece += piece < 40 ? 1 : all / 3) {
                tensor_hash_start(&sum, first, width);
                tensor_hash_runs(&sum, run, stride);
                for (size_t at = 0; at < all; at += piece) {
                    tensor_hash_add(&sum, data + at, all - at < piece ? all - at : piece);
                }
                assert_true(sum.sum == expected && sum.held == 0);
            }
        }
    }
}

static void test_changes_show(void **state)
{
    (void)state;
    unsigned char data[BYTES];
    fill(data);
    for (size_t width = 1; width <= 4; width *= 2) {
        const uint64_t whole = hash(data, BYTES, width, 0);
        for (size_t bit = 0; bit < 8 * (size_t)BYTES; bit++) {
            data[bit / 8] = (unsigned char)(data[bit / 8] ^ (1 << bit % 8));
            assert_true(hash(data, BYTES, width, 0) != whole);
            data[bit / 8] = (unsigned char)(data[bit / 8] ^ (1 << bit % 8));
        }
        assert_true(hash(data, BYTES, width, 1) != whole); /* shifted */
        assert_true(hash(data, BYTES - width, width, 0) != whole);
    }
    memset(data, 0, sizeof data);
    assert_true(hash(data, 8, 4, 0) != hash(data, 12, 4, 0)); /* zeros count */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formula),
        cmocka_unit_test(test_pieces_add_up),
        cmocka_unit_test(test_runs),
        cmocka_unit_test(test_changes_show),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
