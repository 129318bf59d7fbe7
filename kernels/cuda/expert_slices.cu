#include <assert.h>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/rows.cuh"

enum { SLICE_THREADS = 256 };

/* One thread per slot of a part. The quotients are of 32 bits: there are no more slots or experts
 * than those hold. Bytes: 8 in for every `slices` slots, 8 out for each. Bound by latency. */
__global__ void __launch_bounds__(SLICE_THREADS)
    spread_kernel(int32_t *spread, float *spread_weight, const int32_t *__restrict__ expert,
                  const float *__restrict__ weight, uint32_t count, uint32_t slices, uint32_t local)
{
    const uint32_t i = blockIdx.x * SLICE_THREADS + threadIdx.x;
    if (i >= count) {
        return;
    }
    const uint32_t slot = i / slices, slice = i % slices;
    const int32_t e = expert[slot];
    const uint32_t u = (uint32_t)e;
    spread[i] = e < 0 ? -1 : (int32_t)((u / local * slices + slice) * local + u % local);
    spread_weight[i] = weight[slot];
}

/* One thread per slot, in the CPU's order. Bytes: 4 in for each part, 4 out. Bound by latency. */
__global__ void __launch_bounds__(SLICE_THREADS)
    fold_kernel(float *weight, const float *__restrict__ spread_weight, uint32_t slots,
                uint32_t slices)
{
    const uint32_t slot = blockIdx.x * SLICE_THREADS + threadIdx.x;
    if (slot >= slots) {
        return;
    }
    float sum = 0;
    for (uint32_t f = 0; f < slices; f++) {
        sum += spread_weight[slot * slices + f];
    }
    weight[slot] = sum;
}

static unsigned blocks_for(int64_t threads)
{
    assert(threads <= INT32_MAX);
    return (unsigned)((threads + SLICE_THREADS - 1) / SLICE_THREADS);
}

void cuda_expert_spread(void *stream, int32_t *spread, float *spread_weight, const int32_t *expert,
                        const float *weight, int64_t slots, int64_t slices, int64_t local)
{
    const int64_t count = slots * slices;
    if (count > 0) {
        LAUNCH(spread_kernel, blocks_for(count), SLICE_THREADS, 0, (cudaStream_t)stream, spread,
               spread_weight, expert, weight, (uint32_t)count, (uint32_t)slices, (uint32_t)local);
    }
}

void cuda_expert_fold(void *stream, float *weight, const float *spread_weight, int64_t slots,
                      int64_t slices)
{
    if (slots > 0) {
        LAUNCH(fold_kernel, blocks_for(slots), SLICE_THREADS, 0, (cudaStream_t)stream, weight,
               spread_weight, (uint32_t)slots, (uint32_t)slices);
    }
}
