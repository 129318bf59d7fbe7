/* zero: shares cover the group; sums and gathers are exact. */
#include "parallel/ranks.h"
#include "parallel/zero.h"

static void test_padding(struct comm *world)
{
    static const struct {
        int64_t count;
        int size;
        int64_t padded;
    } cases[] = {{0, 4, 0},     {1, 1, 64},
                 {64, 1, 64},   {65, 1, 128},
                 {1, 4, 256},   {256, 4, 256},
                 {257, 4, 512}, {1000, 3, 1152},
                 {192, 3, 192}, {(int64_t)1 << 40, 2, (int64_t)1 << 40}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK_EQUAL(world, zero_padded(cases[i].count, cases[i].size), cases[i].padded);
    }
}

static float gradient(int rank, int64_t i)
{
    return (float)((rank + 1) * (i % 777) - rank);
}

static void test_reduce_scatter(struct comm *world)
{
    static const int64_t counts[] = {1, 100, 5000};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        struct zero zero;
        zero_init(&zero, world, zero_padded(counts[c], world->size));
        CHECK_EQUAL(world, zero.share * world->size, zero.count);
        CHECK_EQUAL(world, zero.first, world->rank * zero.share);
        CHECK_EQUAL(world, zero.share % 64, 0);
        float *grads = ranks_memory(world, (size_t)zero.count * sizeof *grads),
              *scratch = ranks_memory(world, (size_t)zero.share * sizeof *scratch);
        int64_t *sums = ranks_memory(world, (size_t)zero.count * sizeof *sums),
                *room = ranks_memory(world, (size_t)zero.share * sizeof *room);
        for (int64_t i = 0; i < zero.count; i++) {
            grads[i] = gradient(world->rank, i);
            sums[i] = (int64_t)gradient(world->rank, i) * ((int64_t)1 << 40);
        }
        zero_reduce_start(&zero, grads, scratch, DTYPE_F32);
        const float *share = zero_reduce_finish(&zero, grads, scratch);
        zero_reduce_start(&zero, sums, room, DTYPE_I64);
        const int64_t *whole = zero_reduce_finish(&zero, sums, room);
        for (int64_t i = 0; i < zero.share; i++) {
            float sum = 0;
            for (int r = 0; r < world->size; r++) {
                sum += gradient(r, zero.first + i);
            }
            CHECK(world, share[i] == sum);
            CHECK(world, whole[i] == (int64_t)sum * ((int64_t)1 << 40));
        }
        free(sums);
        free(room);
        free(grads);
        free(scratch);
    }
}

static void test_all_gather(struct comm *world)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    for (int d = 0; d < 2; d++) {
        struct zero zero;
        zero_init(&zero, world, zero_padded(1000, world->size));
        const size_t width = dtype_bytes(dtypes[d]);
        unsigned char *params = ranks_memory(world, (size_t)zero.count * width);
        for (size_t i = 0; i < (size_t)zero.share * width; i++) { /* only its own share is right */
            params[(size_t)zero.first * width + i] =
                (unsigned char)((size_t)zero.first * width + i + 3);
        }
        zero_all_gather(&zero, params, dtypes[d]);
        for (size_t i = 0; i < (size_t)zero.count * width; i++) {
            CHECK_EQUAL(world, params[i], (unsigned char)(i + 3));
        }
        free(params);
    }
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_padding),
        RANKS_TEST(test_reduce_scatter),
        RANKS_TEST(test_all_gather),
    };
    return RANKS_MAIN(tests);
}
