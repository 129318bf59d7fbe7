/* simt: what every .cu file of this folder includes instead of CUDA's own headers.
 *
 * nvcc sees real CUDA. Any other C++ compiler sees the emulator (tests/emulator), which executes the
 * same source on the CPU: one fiber per CUDA thread, checked for races, deadlocks and divergence.
 * Only these are spelled differently from plain CUDA, because C++ has no syntax for them:
 *
 *   SMEM(type, name, dims)     a static shared array: SMEM(float, partial, [8][32]);
 *   SMEM_DYN(name)             unsigned char *name, the block's dynamic shared memory, 1024-aligned
 *   LAUNCH(kernel, grid, block, smem_bytes, stream, args...)    kernel with commas: in parentheses
 *   LAUNCH_CLUSTER(kernel, cluster, grid, ...)    the same in clusters of so many blocks, neighbours
 *                              in x, of which the grid has a multiple
 *   ALLOW_SMEM(kernel, bytes)  needed once before a launch with more than 48 KiB of dynamic shared
 *                              memory; gives a cudaError_t
 *
 * Shared memory holds garbage at block start (the emulator makes it NaN). Loops that wait for other
 * threads belong in ptx.cuh: a bare polling loop hangs the emulator. Warp collectives name their
 * lanes; nothing may rely on a warp's lanes running in step.
 */
#ifndef KERNELS_CUDA_SIMT_CUH
#define KERNELS_CUDA_SIMT_CUH

#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#define SMEM(type, name, dims) __shared__ type name dims
#define SMEM_DYN(name) extern __shared__ __align__(1024) unsigned char name[]
#define LAUNCH(kernel, grid, block, smem_bytes, stream, ...)                                       \
    ((kernel)<<<(grid), (block), (smem_bytes), (stream)>>>(__VA_ARGS__))
#define LAUNCH_CLUSTER(kernel, cluster, grid, block, smem_bytes, stream, ...)                      \
    cluster_launch((cluster), dim3(grid), dim3(block), (size_t)(smem_bytes), (stream),             \
                   (kernel)__VA_OPT__(, ) __VA_ARGS__)
#define ALLOW_SMEM(kernel, bytes)                                                                  \
    cudaFuncSetAttribute((kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes))

/* A launch that fails is found as those of LAUNCH are. */
template <class... P, class... A>
static inline void cluster_launch(unsigned cluster, dim3 grid, dim3 block, size_t bytes,
                                  cudaStream_t stream, void (*kernel)(P...), A &&...arguments)
{
    cudaLaunchAttribute size = {};
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim.x = cluster, size.val.clusterDim.y = size.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = bytes;
    config.stream = stream, config.attrs = &size, config.numAttrs = 1;
    (void)cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...);
}
#else
#include <emulator/simt_host.h> /* on the include path of emulated builds only */
#endif

#endif
