/* sass_bad: what the SASS gate must stop. Compiled by its own tests only. */
#include "kernels/cuda/simt.cuh"

/* More live values than 32 registers hold: spills. */
__global__ void __launch_bounds__(1024, 2) bad_spilling_kernel(float *x)
{
    float kept[64];
#pragma unroll
    for (int i = 0; i < 64; i++)
        kept[i] = x[threadIdx.x + 1024 * i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; i++)
        x[threadIdx.x + 1024 * i] = kept[i] * kept[63 - i];
}

/* An index the compiler does not know: local memory without a spill. */
__global__ void bad_indexed_kernel(float *x, const int *index)
{
    float kept[256];
#pragma unroll
    for (int i = 0; i < 256; i++)
        kept[i] = x[threadIdx.x + i];
    kept[index[0] & 255] = 1;
    x[threadIdx.x] = kept[index[1] & 255];
}

/* A product on CUDA cores in a file that promises tensor cores. */
__global__ void bad_scalar_gemm_kernel(float *c, const float *a, const float *b, int k)
{
    float sum = 0;
    for (int i = 0; i < k; i++)
        sum += a[blockIdx.x * k + i] * b[threadIdx.x * k + i];
    c[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}
