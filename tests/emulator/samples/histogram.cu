/* histogram: tokens per expert, counted in shared memory with integer atomics (order-free). */
#include "samples.h"

#include "kernels/cuda/simt.cuh"

__global__ void histogram_kernel(const int *__restrict__ expert, int n, int experts, int *count)
{
    SMEM(int, local, [64]);
    for (int i = threadIdx.x; i < experts; i += blockDim.x)
        local[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&local[expert[i]], 1);
    __syncthreads();
    for (int i = threadIdx.x; i < experts; i += blockDim.x)
        atomicAdd(&count[i], local[i]);
}

extern "C" void launch_histogram(cudaStream_t stream, const int *expert, int n, int experts,
                                 int *count, int blocks)
{
    LAUNCH(histogram_kernel, blocks, 128, 0, stream, expert, n, experts, count);
}
