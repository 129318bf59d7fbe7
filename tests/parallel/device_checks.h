/* device_checks: every comm_device_ function with small whole numbers, so that sums are exact and
 * compared with ==, on whatever memory the rig gives: the host's, or an emulated or real device's.
 * Bytes around every output are checked too. */
#ifndef TESTS_PARALLEL_DEVICE_CHECKS_H
#define TESTS_PARALLEL_DEVICE_CHECKS_H

#include "parallel/ranks.h"

struct rig {
    struct comm *world; /* ends the job when a check fails */
    struct comm *group; /* what is checked; at most 16 ranks */
    void *(*take)(size_t bytes);
    void (*give)(void *memory);
    /* In the order of the compute stream; get waits. */
    void (*put)(void *to, const void *host, size_t bytes);
    void (*get)(void *host, const void *from, size_t bytes);
};

enum { DEVICE_GUARD = 16, DEVICE_RANKS = 16 };

/* Device memory of `bytes`, a guard before and behind; contents of it are 0x5a. */
static inline unsigned char *device_take(const struct rig *rig, size_t bytes)
{
    const size_t all = bytes + 2 * DEVICE_GUARD;
    unsigned char *host = ranks_memory(rig->world, all), *device = rig->take(all);
    CHECK(rig->world, device != NULL);
    memset(host, 0x5a, all);
    rig->put(device, host, all);
    free(host);
    return device + DEVICE_GUARD;
}

static inline void device_give(const struct rig *rig, unsigned char *device)
{
    rig->give(device - DEVICE_GUARD);
}

static inline unsigned char *device_copy(const struct rig *rig, const void *host, size_t bytes)
{
    unsigned char *device = device_take(rig, bytes);
    if (bytes > 0) {
        rig->put(device, host, bytes);
    }
    return device;
}

static inline void device_expect(const struct rig *rig, const char *what, const void *device,
                                 const void *expected, size_t bytes)
{
    unsigned char guard[DEVICE_GUARD];
    unsigned char *got = ranks_memory(rig->world, bytes + 2 * DEVICE_GUARD);
    rig->get(got, (const unsigned char *)device - DEVICE_GUARD, bytes + 2 * DEVICE_GUARD);
    memset(guard, 0x5a, sizeof guard);
    CHECK(rig->world, memcmp(got, guard, sizeof guard) == 0);
    CHECK(rig->world, memcmp(got + DEVICE_GUARD + bytes, guard, sizeof guard) == 0);
    for (size_t i = 0; i < bytes; i++) {
        if (got[DEVICE_GUARD + i] != ((const unsigned char *)expected)[i]) {
            fprintf(stderr, "%s of %zu bytes, %s, rank %d of %d: byte %zu is %d, expected %d\n",
                    what, bytes, comm_wire_name(rig->group), rig->group->rank, rig->group->size, i,
                    got[DEVICE_GUARD + i], ((const unsigned char *)expected)[i]);
            comm_abort(rig->world, 1);
        }
    }
    free(got);
}

/* What rank r holds at i. */
static inline int64_t device_value(int rank, int64_t i)
{
    return (rank + 1) * (i % 1000 - 300) + rank;
}

static inline void device_set(void *data, enum dtype dtype, int64_t i, int64_t number)
{
    if (dtype == DTYPE_F32) {
        ((float *)data)[i] = (float)number;
    } else if (dtype == DTYPE_F64) {
        ((double *)data)[i] = (double)number;
    } else {
        ((int64_t *)data)[i] = number;
    }
}

static inline void check_all_reduce(const struct rig *rig, int64_t count, enum dtype dtype,
                                    enum reduce op)
{
    const size_t bytes = (size_t)count * dtype_bytes(dtype);
    void *mine = ranks_memory(rig->world, bytes), *expected = ranks_memory(rig->world, bytes);
    for (int64_t i = 0; i < count; i++) {
        int64_t sum = 0, most = device_value(0, i);
        for (int r = 0; r < rig->group->size; r++) {
            const int64_t value = device_value(r, i);
            sum += value;
            most = value > most ? value : most;
        }
        device_set(mine, dtype, i, device_value(rig->group->rank, i));
        device_set(expected, dtype, i, op == REDUCE_SUM ? sum : most);
    }
    unsigned char *data = device_copy(rig, mine, bytes);
    comm_device_all_reduce(rig->group, data, count, dtype, op);
    device_expect(rig, "all-reduce", data, expected, bytes);
    device_give(rig, data);
    free(mine);
    free(expected);
}

static inline void check_reduce_scatter(const struct rig *rig, int64_t count)
{
    const size_t all = (size_t)count * (size_t)rig->group->size;
    float *mine = ranks_memory(rig->world, all * sizeof *mine);
    float *expected = ranks_memory(rig->world, (size_t)count * sizeof *expected);
    for (size_t i = 0; i < all; i++) {
        mine[i] = (float)device_value(rig->group->rank, (int64_t)i);
    }
    for (int64_t i = 0; i < count; i++) {
        for (int r = 0; r < rig->group->size; r++) {
            expected[i] += (float)device_value(r, rig->group->rank * count + i);
        }
    }
    unsigned char *in = device_copy(rig, mine, all * sizeof *mine);
    unsigned char *out = device_take(rig, (size_t)count * sizeof *expected);
    comm_device_reduce_scatter(rig->group, out, in, count, DTYPE_F32);
    device_expect(rig, "reduce-scatter", out, expected, (size_t)count * sizeof *expected);
    device_expect(rig, "input of reduce-scatter", in, mine, all * sizeof *mine);
    device_give(rig, in);
    device_give(rig, out);
    free(mine);
    free(expected);
}

/* Of a wire that has it: every rank's turn to be root; others' `out` is left alone. Integers too.
 */
static inline void check_reduce(const struct rig *rig, int64_t count, enum dtype dtype)
{
    const size_t bytes = (size_t)count * dtype_bytes(dtype);
    unsigned char *mine = ranks_memory(rig->world, bytes), *sums = ranks_memory(rig->world, bytes),
                  *before = ranks_memory(rig->world, bytes);
    for (int64_t i = 0; i < count; i++) {
        int64_t sum = 0;
        for (int r = 0; r < rig->group->size; r++) {
            sum += device_value(r, i);
        }
        device_set(mine, dtype, i, device_value(rig->group->rank, i));
        device_set(sums, dtype, i, sum);
    }
    for (int root = 0; root < rig->group->size && comm_device_reduces(rig->group); root++) {
        unsigned char *in = device_copy(rig, mine, bytes), *out = device_copy(rig, before, bytes);
        comm_device_reduce_start(rig->group, out, in, count, dtype, root);
        comm_device_finish(rig->group);
        device_expect(rig, "reduce", out, root == rig->group->rank ? sums : before, bytes);
        device_expect(rig, "input of reduce", in, mine, bytes);
        device_give(rig, in);
        device_give(rig, out);
    }
    free(mine);
    free(sums);
    free(before);
}

static inline void check_all_gather(const struct rig *rig, size_t bytes, bool in_place)
{
    const size_t all = bytes * (size_t)rig->group->size;
    unsigned char *expected = ranks_memory(rig->world, all);
    for (size_t i = 0; i < all; i++) {
        expected[i] = (unsigned char)(device_value((int)(i / bytes), (int64_t)(i % bytes)) & 0xff);
    }
    const size_t own = (size_t)rig->group->rank * bytes;
    unsigned char *in = device_copy(rig, expected + own, bytes), *out = device_take(rig, all);
    if (in_place && bytes > 0) {
        rig->put(out + own, expected + own, bytes);
    }
    comm_device_all_gather(rig->group, out, in_place ? out + own : in, bytes);
    device_expect(rig, "all-gather", out, expected, all);
    device_give(rig, in);
    device_give(rig, out);
    free(expected);
}

/* Rows from `from` to `to`: uneven, none for some pairs, none at all in the last pattern. */
static inline int64_t device_rows(int pattern, int from, int to)
{
    static const int64_t many = 700;
    switch (pattern) {
    case 0:
        return 2 * from + 3 * to + 1;
    case 1:
        return (from + to) % 2 == 0 ? 0 : 5 + from;
    case 2:
        return to == 0 ? many : 0; /* all to one */
    case 3:
        return from == 0 ? many + to : 0; /* all from one */
    case 4:
        return from == to ? 4 : 0; /* only to oneself */
    default:
        return 0;
    }
}

static inline unsigned char device_byte(size_t i, int from, int to)
{
    return (unsigned char)(i * 31 + (size_t)(16 * to + from));
}

static inline void check_all_to_all(const struct rig *rig, int pattern, size_t row_bytes)
{
    int64_t send_rows[DEVICE_RANKS], recv_rows[DEVICE_RANKS], sent = 0, received = 0;
    const int rank = rig->group->rank, size = rig->group->size;
    CHECK(rig->world, size <= DEVICE_RANKS);
    for (int r = 0; r < size; r++) {
        sent += send_rows[r] = device_rows(pattern, rank, r);
        received += recv_rows[r] = device_rows(pattern, r, rank);
    }
    const size_t out = (size_t)sent * row_bytes, in = (size_t)received * row_bytes;
    unsigned char *mine = ranks_memory(rig->world, out), *expected = ranks_memory(rig->world, in);
    unsigned char *to = mine, *from = expected;
    for (int r = 0; r < size; r++) {
        for (size_t i = 0; i < (size_t)send_rows[r] * row_bytes; i++) {
            *to++ = device_byte(i, rank, r);
        }
        for (size_t i = 0; i < (size_t)recv_rows[r] * row_bytes; i++) {
            *from++ = device_byte(i, r, rank);
        }
    }
    unsigned char *send = device_copy(rig, mine, out), *recv = device_take(rig, in);
    comm_device_all_to_all(rig->group, recv, recv_rows, send, send_rows, row_bytes);
    memset(send_rows, 0x7f, sizeof send_rows); /* theirs no longer */
    memset(recv_rows, 0x7f, sizeof recv_rows);
    device_expect(rig, "all-to-all", recv, expected, in);
    device_give(rig, send);
    device_give(rig, recv);
    free(mine);
    free(expected);
}

/* Padded rows and the counts of the real ones, as a fixed-capacity dispatch sends them. */
static inline void check_all_to_all_fixed(const struct rig *rig, int64_t capacity, size_t row_bytes)
{
    const int rank = rig->group->rank, size = rig->group->size;
    const size_t block = (size_t)capacity * row_bytes, all = block * (size_t)size;
    int64_t counts[DEVICE_RANKS], expected_counts[DEVICE_RANKS];
    unsigned char *mine = ranks_memory(rig->world, all), *expected = ranks_memory(rig->world, all);
    CHECK(rig->world, size <= DEVICE_RANKS);
    for (int r = 0; r < size; r++) {
        counts[r] = 100 * rank + r;
        expected_counts[r] = 100 * r + rank;
        for (size_t i = 0; i < block; i++) {
            mine[(size_t)r * block + i] = device_byte(i, rank, r);
            expected[(size_t)r * block + i] = device_byte(i, r, rank);
        }
    }
    const size_t count_bytes = (size_t)size * sizeof *counts;
    unsigned char *send = device_copy(rig, mine, all), *recv = device_take(rig, all);
    unsigned char *send_counts = device_copy(rig, counts, count_bytes),
                  *recv_counts = device_take(rig, count_bytes);
    comm_device_all_to_all_fixed(rig->group, recv_counts, send_counts, 1, sizeof *counts);
    comm_device_all_to_all_fixed(rig->group, recv, send, capacity, row_bytes);
    device_expect(rig, "counts of the all-to-all", recv_counts, expected_counts, count_bytes);
    device_expect(rig, "all-to-all of fixed capacity", recv, expected, all);
    device_give(rig, send);
    device_give(rig, recv);
    device_give(rig, send_counts);
    device_give(rig, recv_counts);
    free(mine);
    free(expected);
}

/* Two steps of a ring under way at once, another operation behind their start. */
static inline void check_pass(const struct rig *rig, size_t bytes)
{
    struct comm *group = rig->group;
    const int before = (group->rank + group->size - 1) % group->size;
    unsigned char *mine = ranks_memory(rig->world, 2 * bytes),
                  *expected = ranks_memory(rig->world, 2 * bytes);
    struct comm_request request[2];
    for (size_t i = 0; i < 2 * bytes; i++) {
        mine[i] = device_byte(i, group->rank, 1);
        expected[i] = device_byte(i, before, 1);
    }
    unsigned char *send = device_copy(rig, mine, 2 * bytes), *recv = device_take(rig, 2 * bytes);
    for (size_t n = 0; n < 2; n++) {
        if (comm_device_on_host(group)) {
            comm_pass_start(group, "pass", recv + n * bytes, send + n * bytes, bytes, &request[n]);
        } else {
            comm_device_pass_start(group, "pass", recv + n * bytes, send + n * bytes, bytes);
        }
    }
    for (size_t n = 0; n < 2 && comm_device_on_host(group); n++) {
        comm_barrier(group);
        comm_exchange_test(group, &request[n]);
        comm_exchange_finish(group, &request[1 - n]);
    }
    comm_device_finish(group);
    device_expect(rig, "pass", recv, expected, 2 * bytes);
    device_give(rig, send);
    device_give(rig, recv);
    free(mine);
    free(expected);
}

/* `most`: elements of the largest case. */
static inline void check_device_functions(const struct rig *rig, int64_t most)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F64, DTYPE_I64};
    static const size_t row_bytes[] = {1, 6, 512};
    const int64_t counts[] = {0, 1, 2, 63, most};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
            check_all_reduce(rig, counts[c], dtypes[d], REDUCE_SUM);
            check_all_reduce(rig, counts[c], dtypes[d], REDUCE_MAX);
        }
        check_reduce_scatter(rig, counts[c]);
        check_reduce(rig, counts[c], DTYPE_F32);
        check_reduce(rig, counts[c], DTYPE_I64);
        check_all_gather(rig, (size_t)counts[c], false);
        check_all_gather(rig, (size_t)counts[c], true);
        check_all_to_all_fixed(rig, counts[c], 3);
        check_pass(rig, 5 * (size_t)counts[c]);
    }
    for (int pattern = 0; pattern < 6; pattern++) {
        for (size_t i = 0; i < sizeof row_bytes / sizeof row_bytes[0]; i++) {
            check_all_to_all(rig, pattern, row_bytes[i]);
        }
    }
    const int64_t none[DEVICE_RANKS] = {0};
    comm_device_all_to_all(rig->group, NULL, none, NULL, none, 8); /* nothing anywhere */
}

#endif
