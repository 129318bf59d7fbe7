/* zero: ZeRO-1 (Rajbhandari et al. 2020). One flat group of parameters, replicated over `comm`;
 * each rank keeps optimizer state for an equal contiguous share.
 */
#ifndef PARALLEL_ZERO_H
#define PARALLEL_ZERO_H

#include "parallel/comm.h"

struct zero {
    struct comm *comm; /* borrowed: dp for dense parameters, edp for experts */
    int64_t count; /* elements of the group, a multiple of comm->size * 64: padded by zero_padded */
    int64_t share; /* count / comm->size */
    int64_t first; /* this rank's first element: rank * share */
};

int64_t zero_padded(int64_t count, int size); /* next multiple of size * 64 */
void zero_init(struct zero *zero, struct comm *comm, int64_t padded_count);

/* Collective over zero->comm. sums[count], F32 or I64, holds this rank's gradient sums; finish
 * returns where the sum over ranks of this rank's share is: in `scratch` with room for `share`
 * elements, or, of one rank, sums. Memory of the device comm is attached to. What is called between
 * the halves may run beside the exchange (comm_device_finish). */
void zero_reduce_start(const struct zero *zero, const void *sums, void *scratch, enum dtype dtype);
void *zero_reduce_finish(const struct zero *zero, void *sums, void *scratch);
/* Collective. params[count] of dtype: every rank's share goes to all, in place. */
void zero_all_gather(const struct zero *zero, void *params, enum dtype dtype);

#endif
