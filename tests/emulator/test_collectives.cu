/* Warp and block collectives, named barriers and atomics against what the manual says of each. One
 * block of 96 threads writes result[check][thread], the host compares. */
#include "check_collectives.h"

#include "kernels/cuda/ptx.cuh"

__global__ void __launch_bounds__(96) collectives_kernel(int *result, int *counter)
{
    int t = threadIdx.x, lane = t % 32;
    unsigned all = 0xffffffffu;
    int *out = result + t;
#define PUT(check, value) out[(check)*96] = (int)(value)
    PUT(SHUFFLE, __shfl_sync(all, t, 5));
    PUT(SHUFFLE_WIDTH, __shfl_sync(all, t, 9, 8));
    PUT(SHUFFLE_XOR, __shfl_xor_sync(all, t, 17));
    PUT(SHUFFLE_XOR_WIDTH, __shfl_xor_sync(all, t, 9, 8));
    PUT(SHUFFLE_DOWN, __shfl_down_sync(all, t, 3));
    PUT(SHUFFLE_UP, __shfl_up_sync(all, t, 3, 16));
    PUT(BALLOT, __ballot_sync(all, lane % 3 == 0));
    PUT(ANY_ALL, 2 * __any_sync(all, lane == 7) + __all_sync(all, lane < 32));
    PUT(MATCH, __match_any_sync(all, lane % 5));
    PUT(REDUCE_ADD, __reduce_add_sync(all, t));
    PUT(REDUCE_MAX, __reduce_max_sync(all, t));
    if (lane < 16) /* half a warp by itself */
        PUT(HALF, __shfl_xor_sync(0x0000ffffu, t, 8));
    else
        PUT(HALF, __shfl_xor_sync(0xffff0000u, t, 4));
    PUT(COUNT, __syncthreads_count(t % 4 == 0));
    PUT(AND_OR, 2 * __syncthreads_and(t >= 0) + __syncthreads_or(t == 95));
    PUT(ELECTED, __popc(__ballot_sync(all, elect_one())));
    SMEM(int, box, [1]);
    /* Warp 0 hands over to warp 1 by a named barrier; warp 2 has no part in it. */
    if (t == 0)
        box[0] = 42;
    if (t < 32)
        named_barrier_arrive(1, 64);
    else if (t < 64)
        named_barrier_sync(1, 64);
    PUT(NAMED, t >= 32 && t < 64 ? box[0] : 0);
    atomicAdd(counter, t);
    atomicMax(counter + 1, t);
    if (atomicCAS(counter + 2, 0, t + 1) == 0)
        atomicExch(counter + 3, 7);
    PUT(BYTES, __byte_perm(0x33221100u, 0x77665544u, 0x7250u));
    PUT(BITS, __popc(t) + 100 * __ffs(t) + 10000 * __clz(t));
#undef PUT
}

extern "C" void launch_collectives(int *result, int *counter)
{
    LAUNCH(collectives_kernel, 1, 96, 0, nullptr, result, counter);
}
