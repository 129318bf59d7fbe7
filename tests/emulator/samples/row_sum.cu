/* row_sum: sums a vector, 256 threads per block: shared memory, shuffles, one atomic per block.
 * MUTANT_*: the same kernel with one seeded bug; tests/emulator/CMakeLists.txt says who finds it.
 */
#include "samples.h"

#include "kernels/cuda/simt.cuh"

static __device__ float warp_sum(float x)
{
    for (int bits = 16; bits; bits /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, bits);
    return x;
}

__global__ void __launch_bounds__(256)
    row_sum_kernel(const float *__restrict__ x, float *sum, int n)
{
    SMEM(float, partial, [8]);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float own = 0;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256)
        own += x[i];
    own = warp_sum(own);
    if (lane == 0)
        partial[warp] = own;
#ifndef MUTANT_MISSING_SYNC
    __syncthreads();
#endif
    if (warp == 0) {
#ifdef MUTANT_SHARED_OOB
        own = lane < 8 ? partial[lane + 1] : 0;
#else
        own = lane < 8 ? partial[lane] : 0;
#endif
        own = warp_sum(own);
        if (lane == 0)
            atomicAdd(sum, own);
    }
}

extern "C" void launch_row_sum(cudaStream_t stream, const float *x, float *sum, int n, int blocks)
{
    LAUNCH(row_sum_kernel, blocks, 256, 0, stream, x, sum, n);
}
