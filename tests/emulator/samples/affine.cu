/* affine: y = scale * x + shift, for tests of streams and transports. */
#include "samples.h"

#include "kernels/cuda/simt.cuh"

__global__ void affine_kernel(const float *x, float *y, int n, float scale, float shift)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        y[i] = scale * x[i] + shift;
}

extern "C" void launch_affine(cudaStream_t stream, const float *x, float *y, int n, float scale,
                              float shift)
{
    LAUNCH(affine_kernel, (n + 127) / 128, 128, 0, stream, x, y, n, scale, shift);
}
