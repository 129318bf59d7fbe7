#include "parallel/zero.h"

#include <assert.h>

enum { ALIGNMENT = 64 };

int64_t zero_padded(int64_t count, int size)
{
    const int64_t unit = (int64_t)size * ALIGNMENT;
    return (count + unit - 1) / unit * unit;
}

void zero_init(struct zero *zero, struct comm *comm, int64_t padded_count)
{
    assert(padded_count % comm->size == 0);
    const int64_t share = padded_count / comm->size;
    *zero = (struct zero){
        .comm = comm, .count = padded_count, .share = share, .first = comm->rank * share};
}

void zero_reduce_start(const struct zero *zero, const void *sums, void *scratch, enum dtype dtype)
{
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
    const size_t bytes = (size_t)zero->share * dtype_bytes(dtype);
    comm_device_all_gather(zero->comm, params, (char *)params + (size_t)zero->comm->rank * bytes,
                           bytes);
}
