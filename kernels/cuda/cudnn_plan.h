/* cudnn_plan: how a shape of attention is run with cuDNN: plans, built once and kept, and where
 * everything lies in scratch. Knows nothing of streams and memory, so that it works without a GPU.
 *
 * A shape is run in equal slices, all by one plan: the largest number of samples, else of one
 * sample's kv heads (with their query heads), whose buffers stay within the limit. Deterministic
 * gradients need B*H*T*T*2 bytes, for 128 heads of 4096 tokens 4 GiB, or 1 GiB 32 heads at a time.
 */
#ifndef KERNELS_CUDA_CUDNN_PLAN_H
#define KERNELS_CUDA_CUDNN_PLAN_H

#include "kernels/cuda/cudnn_graph.h"

/* Where the buffers of a run lie in scratch, bytes from its start, multiples of 256. */
struct cudnn_scratch {
    size_t keys;        /* bf16 [N,G,qk_dim]: whole keys; rope_dim > 0 only */
    size_t dkeys;       /* their gradient; backward, rope_dim > 0 only */
    size_t sums;        /* f32 [slice's B,H,T]; backward only */
    size_t accumulator; /* f32 [slice's B,H,T,qk_dim]; backward that is not deterministic only */
    size_t workspace;   /* cuDNN's own */
    size_t bytes;       /* of all */
};

/* One shape and direction. */
struct cudnn_entry {
    struct attention_shape shape; /* as asked for, without scale and `first`'s address */
    bool backward;
    bool refused; /* nothing below counts, but plan.failed */
    struct cudnn_problem slice;
    int64_t samples, kv_heads; /* of a slice; divisors of the shape's */
    struct cudnn_plan plan;    /* owned */
    struct cudnn_scratch scratch;
};

struct cudnn_plans {
    struct cudnn_target target; /* borrowed */
    bool deterministic;
    size_t limit;                 /* bytes of a slice's workspace, accumulator and head gradients */
    struct cudnn_entry **entries; /* owned, in order of first use */
    int64_t count, capacity;
};

/* What can be seen without cuDNN: bf16, dims up to 256, dims and strides multiples of 8 (16 bytes:
 * cuDNN does not check), T a multiple of 128 (the tiles' edges are where its masks have had
 * errors, and shorter sequences gain nothing). */
bool cudnn_plans_may(const struct attention_shape *shape);

/* The entry of a shape, built on first use (1 to 2 s). NULL: cuDNN cannot, or not within the limit;
 * that too is remembered. Valid until free. */
const struct cudnn_entry *cudnn_plans_find(struct cudnn_plans *plans,
                                           const struct attention_shape *shape, bool backward);
void cudnn_plans_free(struct cudnn_plans *plans);

#endif
