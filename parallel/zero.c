#include "parallel/zero.h"

#include <assert.h>
#include <stdlib.h>

enum { ALIGNMENT = 64 };

int64_t zero_padded(int64_t count, int size)
{
    const int64_t unit = (int64_t)size * ALIGNMENT;
    return (count + unit - 1) / unit * unit;
}

enum status zero_init(struct zero *zero, struct comm *comm, const int64_t *begin, int64_t parts,
                      int64_t elements)
{
    *zero = (struct zero){.comm = comm,
                          .count = zero_padded(elements, comm->size),
                          .parts = parts,
                          .part = calloc((size_t)parts, sizeof *zero->part)};
    if (zero->part == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld parts of the parameters",
                           (long long)parts);
    }
    for (int64_t p = 0; p < parts; p++) {
        const int64_t end = p + 1 < parts ? begin[p + 1] : zero->count, count = end - begin[p];
        assert(count >= 0 && count % ((int64_t)comm->size * ALIGNMENT) == 0);
        zero->part[p] = (struct zero_part){.first = begin[p],
                                           .count = count,
                                           .share = count / comm->size,
                                           .at = begin[p] / comm->size};
    }
    zero->share = zero->count / comm->size;
    return STATUS_OK;
}

void zero_free(struct zero *zero)
{
    free(zero->part);
    *zero = (struct zero){0};
}

/* The last one that begins there or before: those of no elements are passed by. */
int64_t zero_find(const struct zero *zero, int64_t at)
{
    int64_t low = 0, high = zero->parts - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (zero->part[middle].first <= at) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

int64_t zero_first(const struct zero *zero, int64_t part, int rank)
{
    return zero->part[part].first + rank * zero->part[part].share;
}

int64_t zero_place(const struct zero *zero, int64_t at)
{
    const int64_t part = zero_find(zero, at);
    return zero->part[part].at + at - zero_first(zero, part, zero->comm->rank);
}

void zero_reduce_start(const struct zero *zero, const void *sums, void *scratch, enum dtype dtype)
{
    assert(zero->parts == 1);
    if (zero->comm->size > 1) {
        comm_device_reduce_scatter_start(zero->comm, scratch, sums, zero->share, dtype);
    }
}

void *zero_reduce_finish(const struct zero *zero, void *sums, void *scratch)
{
    if (zero->comm->size == 1) {
        return sums;
    }
    comm_device_finish(zero->comm);
    return scratch;
}

void zero_all_gather(const struct zero *zero, void *params, enum dtype dtype)
{
    const size_t width = dtype_bytes(dtype);
    for (int64_t p = 0; p < zero->parts; p++) {
        const struct zero_part *part = &zero->part[p];
        const size_t bytes = (size_t)part->share * width;
        char *all = (char *)params + (size_t)part->first * width;
        if (bytes > 0) {
            comm_device_all_gather(zero->comm, all, all + (size_t)zero->comm->rank * bytes, bytes);
        }
    }
}

void zero_flight_start(const struct zero *zero, struct zero_flight *flight, int64_t part,
                       const void *sums, void *room, enum dtype dtype)
{
    const int64_t share = zero->part[part].share;
    assert(!flight->under_way && share > 0);
    *flight = (struct zero_flight){.under_way = true, .part = part, .dtype = dtype};
    if (comm_device_on_host(zero->comm)) {
        comm_exchange_start(zero->comm, room, sums, (size_t)share * dtype_bytes(dtype),
                            &flight->request);
    } else {
        assert(dtype == DTYPE_F32);
        comm_device_reduce_scatter_start(zero->comm, room, sums, share, dtype);
        flight->mark = comm_device_mark(zero->comm);
    }
}

static void add_integers(int64_t *restrict sum, const int64_t *restrict x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        sum[i] += x[i];
    }
}

void zero_flight_finish(const struct zero *zero, struct zero_flight *flight, void *room,
                        void *shard, struct device *device, const struct ops *ops)
{
    const struct zero_part *part = &zero->part[flight->part];
    const int64_t share = part->share;
    const bool host = comm_device_on_host(zero->comm);
    if (!flight->under_way) {
        return;
    }
    flight->under_way = false;
    if (host) {
        comm_exchange_finish(zero->comm, &flight->request);
    } else {
        comm_device_wait(zero->comm, &flight->mark);
    }
    if (flight->dtype == DTYPE_I64) {
        for (int r = 0; r < zero->comm->size; r++) {
            add_integers((int64_t *)shard + part->at, (int64_t *)room + r * share, share);
        }
        return;
    }
    const struct tensor sum = tensor_1d(room, DTYPE_F32, share);
    for (int r = 1; host && r < zero->comm->size; r++) {
        ops->add(device, sum, tensor_1d((float *)room + r * share, DTYPE_F32, share));
    }
    ops->add(device, tensor_1d((float *)shard + part->at, DTYPE_F32, share), sum);
}
