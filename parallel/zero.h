/* zero: which elements of a flat group of parameters each rank keeps (ZeRO, Rajbhandari et al.
 * 2020). The group is replicated over `comm`; it is a row of parts, and of each part every rank
 * keeps an equal, contiguous share. One part: ZeRO-1. A part for every block: ZeRO-2, whose
 * gradients are reduced a part at a time (struct zero_flight).
 */
#ifndef PARALLEL_ZERO_H
#define PARALLEL_ZERO_H

#include "kernels/ops.h"
#include "parallel/comm.h"

struct zero_part {
    int64_t first, count; /* elements of the group; count: a multiple of comm->size * 64, or 0 */
    int64_t share;        /* count / comm->size: rank r's begins at first + r * share */
    int64_t at;           /* where a rank's share of this part begins in what it keeps of all */
};

struct zero {
    struct comm *comm; /* borrowed: stage or replicas for dense parameters, edp for experts */
    int64_t count;     /* elements of the group, padded */
    int64_t share;     /* count / comm->size: what a rank keeps */
    int64_t parts;
    struct zero_part *part; /* [parts] owned */
};

int64_t zero_padded(int64_t count, int size); /* next multiple of size * 64 */
/* begin[parts]: where each part begins, padded but for the end of the last; elements: of the group.
 * Local. Errors: STATUS_RESOURCE. */
enum status zero_init(struct zero *zero, struct comm *comm, const int64_t *begin, int64_t parts,
                      int64_t elements) __attribute__((warn_unused_result));
void zero_free(struct zero *zero); /* accepts a zeroed one */

/* The part that element `at` of the group is in. */
int64_t zero_find(const struct zero *zero, int64_t at);
/* The first element of a rank's share of a part. */
int64_t zero_first(const struct zero *zero, int64_t part, int rank);
/* Where in what this rank keeps element `at` is, which is its own. */
int64_t zero_place(const struct zero *zero, int64_t at);

/* Collective over zero->comm, of a group of one part. sums[count], F32 or I64, holds this rank's
 * gradient sums; finish returns where the sum over ranks of this rank's share is: in `scratch` with
 * room for `share` elements, or, of one rank, sums. Memory of the device comm is attached to. What
 * is called between the halves may run beside the exchange (comm_device_finish). */
void zero_reduce_start(const struct zero *zero, const void *sums, void *scratch, enum dtype dtype);
void *zero_reduce_finish(const struct zero *zero, void *sums, void *scratch);
/* Collective. params[count] of dtype: every rank's shares go to all, in place. */
void zero_all_gather(const struct zero *zero, void *params, enum dtype dtype);

/* One part's gradients on their way. */
struct zero_flight {
    bool under_way;
    int64_t part;
    enum dtype dtype;
    struct comm_request request; /* on the host's memory, */
    struct comm_mark mark;       /* or a device's own */
};

/* Collective over zero->comm. sums[part's count], F32 or I64: this rank's gradients of the part.
 * room: [part's count], of a device with memory of its own [part's share]. Neither is touched until
 * finish. The exchange goes on beside whatever follows, other groups' messages included, on the
 * host's memory and by nccl (comm_device_mark); staged it is done on return. Of a device with
 * memory of its own I64 is not built. */
void zero_flight_start(const struct zero *zero, struct zero_flight *flight, int64_t part,
                       const void *sums, void *room, enum dtype dtype);
/* Collective. shard[share], what this rank keeps of the group, adds the sum over ranks, in rank
 * order, of its share of the part. Nothing where nothing is under way. */
void zero_flight_finish(const struct zero *zero, struct zero_flight *flight, void *room,
                        void *shard, struct device *device, const struct ops *ops);

#endif
