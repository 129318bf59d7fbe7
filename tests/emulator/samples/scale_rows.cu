/* scale_rows: divides each row by its largest magnitude. One block of 64 threads per row of 256. */
#include "samples.h"

#include "kernels/cuda/simt.cuh"

__global__ void __launch_bounds__(64)
    scale_rows_kernel(const float *__restrict__ x, float *__restrict__ y)
{
    SMEM(float, warp_largest, [2]);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#if defined(MUTANT_MISALIGNED)
    const float *from = x + (size_t)blockIdx.x * 256 + (threadIdx.x < 63 ? 1 : 0);
#elif defined(MUTANT_GLOBAL_OOB)
    const float *from = x + (size_t)blockIdx.x * 256 + 4;
#else
    const float *from = x + (size_t)blockIdx.x * 256;
#endif
    float4 four = *reinterpret_cast<const float4 *>(from + 4 * threadIdx.x);
    float value[4] = {four.x, four.y, four.z, four.w};
    float largest = 0;
    for (int i = 0; i < 4; i++)
        largest = fmaxf(largest, fabsf(value[i]));
#ifdef MUTANT_LOCAL_OOB
    value[lane - 27 * warp] = largest;
#endif
#ifdef MUTANT_DIVERGENT_SHUFFLE
    if (lane < 16)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 8));
    else
        __syncwarp();
#endif
    for (int bits = 16; bits; bits /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, bits));
    if (lane == 0)
        warp_largest[warp] = largest;
#ifdef MUTANT_MISSING_AT_BARRIER
    if (threadIdx.x == 40)
        return;
#endif
    __syncthreads();
    largest = fmaxf(warp_largest[0], warp_largest[1]);
    float *to = y + (size_t)blockIdx.x * 256 + 4 * threadIdx.x;
    *reinterpret_cast<float4 *>(to) =
        make_float4(value[0] / largest, value[1] / largest, value[2] / largest, value[3] / largest);
}

extern "C" void launch_scale_rows(cudaStream_t stream, const float *x, float *y, int rows)
{
#if defined(MUTANT_TOO_MANY_THREADS)
    LAUNCH(scale_rows_kernel, rows, 1056, 0, stream, x, y);
#elif defined(MUTANT_TOO_MUCH_SHARED)
    LAUNCH(scale_rows_kernel, rows, 64, (227 << 10) + 16, stream, x, y);
#elif defined(MUTANT_NO_ALLOW_SMEM)
    LAUNCH(scale_rows_kernel, rows, 64, 64 << 10, stream, x, y);
#else
    LAUNCH(scale_rows_kernel, rows, 64, 0, stream, x, y);
#endif
}
