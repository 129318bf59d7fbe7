/* What the emulated device says of itself, and the tensor map encoder: an H100 as far as limits go.
 */
#include "emulator/block.h"
#include "emulator/stream.h"
#include "emulator/tensor_map.h"

#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>

enum { KERNELS_MAX = 1024, OPT_IN_BYTES = 48 << 10, MULTIPROCESSORS = 132, REGISTERS = 65536 };

static struct {
    const void *kernel;
    size_t bytes;
} allowed[KERNELS_MAX];
static int allowed_count, current_device, capability_major = 9;
static size_t shared_most = EMU_SHARED_MAX;
static cudaError_t last_error;

static int device_count()
{
    const char *text = getenv("EMU_DEVICES");
    return text ? atoi(text) : 8;
}

static cudaError_t failed(cudaError_t error)
{
    last_error = error;
    return error;
}

void emu_set_capability(int major)
{
    capability_major = major;
}

void emu_set_shared_most(size_t bytes)
{
    shared_most = bytes;
    allowed_count = 0;
}

int stream_device()
{
    return current_device;
}

cudaError_t emu_allow_shared(const void *kernel, size_t bytes)
{
    if (bytes > shared_most)
        return failed(cudaErrorInvalidValue);
    int at = 0;
    while (at < allowed_count && allowed[at].kernel != kernel)
        at++;
    if (at == KERNELS_MAX)
        return failed(cudaErrorMemoryAllocation);
    if (at == allowed_count)
        allowed_count++;
    allowed[at].kernel = kernel;
    allowed[at].bytes = bytes;
    return cudaSuccess;
}

size_t device_shared_allowed(const void *kernel)
{
    for (int i = 0; i < allowed_count; i++)
        if (allowed[i].kernel == kernel)
            return allowed[i].bytes > OPT_IN_BYTES ? allowed[i].bytes : (size_t)OPT_IN_BYTES;
    return OPT_IN_BYTES;
}

size_t device_shared_most(const void *kernel)
{
    for (int i = 0; i < allowed_count; i++)
        if (allowed[i].kernel == kernel)
            return shared_most;
    return OPT_IN_BYTES;
}

extern "C" {

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = device_count();
    return *count > 0 ? cudaSuccess : failed(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= device_count())
        return failed(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    if (device < 0 || device >= device_count())
        return failed(cudaErrorInvalidDevice);
    size_t available;
    *p = {};
    snprintf(p->name, sizeof p->name, "emulated sm_90a");
    cudaMemGetInfo(&available, &p->totalGlobalMem);
    p->major = capability_major;
    p->warpSize = 32;
    p->multiProcessorCount = MULTIPROCESSORS;
    p->maxThreadsPerBlock = EMU_THREADS_MAX;
    p->sharedMemPerBlock = OPT_IN_BYTES;
    p->sharedMemPerBlockOptin = shared_most;
    p->regsPerBlock = REGISTERS;
    p->concurrentKernels = 1;
    p->asyncEngineCount = 3;
    p->pciBusID = device + 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    if (device < 0 || device >= device_count())
        return failed(cudaErrorInvalidDevice);
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
        *value = capability_major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = 0;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = MULTIPROCESSORS;
        break;
    case cudaDevAttrMaxThreadsPerBlock:
        *value = EMU_THREADS_MAX;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = OPT_IN_BYTES;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)shared_most;
        break;
    case cudaDevAttrWarpSize:
        *value = 32;
        break;
    case cudaDevAttrL2CacheSize:
        *value = 50 << 20;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
        *value = REGISTERS;
        break;
    default:
        return failed(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int device)
{
    snprintf(text, (size_t)bytes, "0000:%02x:00.0", device + 1);
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetLastError()
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError()
{
    return last_error;
}

const char *cudaGetErrorName(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorInvalidValue:
        return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorNotReady:
        return "cudaErrorNotReady";
    case cudaErrorNoDevice:
        return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
        return "cudaErrorInvalidDevice";
    case cudaErrorNotSupported:
        return "cudaErrorNotSupported";
    default:
        return "cudaError (emulated)";
    }
}

const char *cudaGetErrorString(cudaError_t error)
{
    return cudaGetErrorName(error);
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    return attribute == cudaFuncAttributeMaxDynamicSharedMemorySize
               ? emu_allow_shared(kernel, (size_t)value)
               : cudaSuccess;
}

/* One block where shared memory is large, else what 2048 threads allow: no truth, only plausible.
 */
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int threads,
                                                          size_t shared_bytes)
{
    int by_threads = threads > 0 ? 2048 / threads : 0;
    int by_shared = shared_bytes ? (int)(EMU_SHARED_MAX / shared_bytes) : 32;
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    return cudaSuccess;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *base, const cuuint64_t *dim, const cuuint64_t *stride,
                                const cuuint32_t *box, const cuuint32_t *step,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill)
{
    static const uint32_t sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    static const uint32_t spans[] = {0, 32, 64, 128};
    if (rank < 1 || rank > 3 || (size_t)type >= sizeof sizes / sizeof *sizes ||
        (size_t)swizzle > 3 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
        fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
        return CUDA_ERROR_NOT_SUPPORTED; /* by the model */
    struct tensor_map m = {};
    m.base = (uint64_t)(uintptr_t)base;
    m.element_bytes = sizes[type];
    m.type = type;
    m.swizzle = swizzle;
    m.rank = rank;
    m.dim[1] = m.box[1] = m.planes = 1;
    for (cuuint32_t i = 0; i < rank && i < 2; i++) {
        if (dim[i] == 0 || dim[i] > (cuuint64_t)1 << 32 || box[i] == 0 || box[i] > 256 ||
            step[i] != 1)
            return CUDA_ERROR_INVALID_VALUE;
        m.dim[i] = dim[i];
        m.box[i] = box[i];
    }
    m.row_bytes = rank >= 2 ? stride[0] : dim[0] * m.element_bytes;
    if (rank == 3) {
        if (dim[2] == 0 || dim[2] > (cuuint64_t)1 << 32 || stride[1] % 16 || step[2] != 1)
            return CUDA_ERROR_INVALID_VALUE;
        if (box[2] != 1)
            return CUDA_ERROR_NOT_SUPPORTED; /* by the model */
        m.planes = dim[2];
        m.plane_bytes = stride[1];
    }
    uint32_t inner = m.box[0] * m.element_bytes;
    if ((uintptr_t)base % 16 || (rank >= 2 && stride[0] % 16) || inner % 16 ||
        (swizzle && inner > spans[swizzle]) || (uintptr_t)map % 64)
        return CUDA_ERROR_INVALID_VALUE;
    m.magic = TENSOR_MAP_MAGIC;
    fill_bytes(map, 0, sizeof *map);
    copy_bytes(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned,
                                             unsigned long long,
                                             enum cudaDriverEntryPointQueryResult *status)
{
    const char *name = "cuTensorMapEncodeTiled";
    int i = 0;
    while (name[i] && symbol[i] == name[i])
        i++;
    *function = symbol[i] == name[i] ? (void *)cuTensorMapEncodeTiled : nullptr;
    if (status)
        *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
}
