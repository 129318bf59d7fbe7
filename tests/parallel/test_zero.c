/* zero: shares cover the group, part by part; sums and gathers are exact. */
#include "kernels/device.h"
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
        CHECK(world, zero_init(&zero, world, &(int64_t){0}, 1, counts[c]) == STATUS_OK);
        const int64_t first = zero_first(&zero, 0, world->rank);
        CHECK_EQUAL(world, zero.share * world->size, zero.count);
        CHECK_EQUAL(world, first, world->rank * zero.share);
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
                sum += gradient(r, first + i);
            }
            CHECK(world, share[i] == sum);
            CHECK(world, whole[i] == (int64_t)sum * ((int64_t)1 << 40));
        }
        free(sums);
        free(room);
        free(grads);
        free(scratch);
        zero_free(&zero);
    }
}

static void test_all_gather(struct comm *world)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16};
    for (int d = 0; d < 2; d++) {
        struct zero zero;
        CHECK(world, zero_init(&zero, world, &(int64_t){0}, 1, 1000) == STATUS_OK);
        const size_t width = dtype_bytes(dtypes[d]),
                     own = (size_t)zero_first(&zero, 0, world->rank) * width;
        unsigned char *params = ranks_memory(world, (size_t)zero.count * width);
        for (size_t i = 0; i < (size_t)zero.share * width; i++) { /* only its own share is right */
            params[own + i] = (unsigned char)(own + i + 3);
        }
        zero_all_gather(&zero, params, dtypes[d]);
        for (size_t i = 0; i < (size_t)zero.count * width; i++) {
            CHECK_EQUAL(world, params[i], (unsigned char)(i + 3));
        }
        free(params);
        zero_free(&zero);
    }
}

/* Parts of several sizes, one of them empty: every element has its place, and only one rank's. */
static void test_parts(struct comm *world)
{
    const int64_t unit = zero_padded(1, world->size);
    const int64_t begin[] = {0, 3 * unit, 3 * unit, 4 * unit, 9 * unit};
    struct zero zero;
    CHECK(world, zero_init(&zero, world, begin, 5, 9 * unit + 5) == STATUS_OK);
    CHECK_EQUAL(world, zero.count, 10 * unit);
    int64_t next = 0;
    for (int64_t p = 0; p < zero.parts; p++) {
        const int64_t first = zero_first(&zero, p, world->rank);
        for (int64_t i = 0; i < zero.part[p].share; i++) {
            CHECK_EQUAL(world, zero_find(&zero, first + i), p);
            CHECK_EQUAL(world, zero_place(&zero, first + i), next);
            next++;
        }
    }
    CHECK_EQUAL(world, next, zero.share);
    zero_free(&zero);
}

/* Two parts one after the other, each added twice, beside other messages of the same group. */
static void check_flights(struct comm *world, struct zero *zero, struct device *device,
                          enum dtype dtype)
{
    const size_t width = dtype_bytes(dtype);
    char *sums = ranks_memory(world, (size_t)zero->count * width),
         *room = ranks_memory(world, (size_t)zero->count * width),
         *shard = ranks_memory(world, (size_t)zero->share * width);
    struct zero_flight flight = {0};
    for (int64_t i = 0; i < zero->count; i++) {
        const float own = gradient(world->rank, i);
        if (dtype == DTYPE_F32) {
            ((float *)(void *)sums)[i] = own;
        } else {
            ((int64_t *)(void *)sums)[i] = (int64_t)own * ((int64_t)1 << 40);
        }
    }
    for (int64_t n = 0; n < 2 * zero->parts; n++) {
        const int64_t p = n % zero->parts;
        int64_t ranks = 1;
        zero_flight_start(zero, &flight, p, sums + (size_t)zero->part[p].first * width, room,
                          dtype);
        comm_all_reduce(world, &ranks, 1, DTYPE_I64, REDUCE_SUM);
        CHECK_EQUAL(world, ranks, world->size);
        zero_flight_finish(zero, &flight, room, shard, device, device_ops(device));
        zero_flight_finish(zero, &flight, room, shard, device, device_ops(device)); /* nothing */
    }
    for (int64_t p = 0; p < zero->parts; p++) {
        const int64_t first = zero_first(zero, p, world->rank);
        for (int64_t i = 0; i < zero->part[p].share; i++) {
            float sum = 0;
            for (int r = 0; r < world->size; r++) {
                sum += gradient(r, first + i);
            }
            const char *got = shard + (size_t)(zero->part[p].at + i) * width;
            CHECK(world, dtype == DTYPE_F32 ? *(const float *)(const void *)got == 2 * sum
                                            : *(const int64_t *)(const void *)got ==
                                                  2 * (int64_t)sum * ((int64_t)1 << 40));
        }
    }
    free(sums);
    free(room);
    free(shard);
}

static void test_flights(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    const int64_t unit = zero_padded(1, world->size), begin[] = {0, 3 * unit};
    struct device *device = NULL;
    struct zero zero;
    CHECK(world, device_open(&device, &options) == STATUS_OK);
    CHECK(world, zero_init(&zero, world, begin, 2, 8 * unit) == STATUS_OK);
    check_flights(world, &zero, device, DTYPE_F32);
    check_flights(world, &zero, device, DTYPE_I64);
    zero_free(&zero);
    device_close(device);
}

/* Two gathers in place, other messages between their halves. */
static void test_gathers(struct comm *world)
{
    enum { BYTES = 3 * COMM_EXCHANGE_UNIT };
    const size_t all = (size_t)world->size * BYTES;
    unsigned char *data[2] = {ranks_memory(world, all), ranks_memory(world, all)};
    struct comm_request request[2];
    for (int n = 0; n < 2; n++) {
        memset(data[n] + (size_t)world->rank * BYTES, world->rank * 2 + n + 1, BYTES);
        comm_gather_start(world, data[n], BYTES, &request[n]);
    }
    comm_barrier(world);
    comm_exchange_test(world, &request[0]);
    for (int n = 1; n >= 0; n--) {
        comm_exchange_finish(world, &request[n]);
        for (size_t i = 0; i < all; i++) {
            CHECK_EQUAL(world, data[n][i], i / BYTES * 2 + (size_t)n + 1);
        }
        free(data[n]);
    }
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_padding), RANKS_TEST(test_reduce_scatter), RANKS_TEST(test_all_gather),
        RANKS_TEST(test_parts),   RANKS_TEST(test_flights),        RANKS_TEST(test_gathers),
    };
    return RANKS_MAIN(tests);
}
