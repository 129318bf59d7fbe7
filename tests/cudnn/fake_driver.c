/* A libcuda.so.1 for machines without a GPU: as much of a driver as cuDNN needs to finish execution
 * plans for the properties of a device that is not there. It loads every module, finds every
 * kernel, answers questions about them as a kernel of 168 registers and 384 threads would, and can
 * run nothing.
 *
 * Parameters that no answer depends on are left out: callers clean up after themselves (x86-64,
 * aarch64).
 */
#include <stddef.h>

enum { SUCCESS = 0, STUB_LIBRARY = 34 };
enum { MAX_THREADS_PER_BLOCK = 0, REGISTERS = 4 };

static char thing[64]; /* what handles point at */

#define GIVES_A_THING(name)                                                                        \
    int name(void **out);                                                                          \
    int name(void **out)                                                                           \
    {                                                                                              \
        *out = thing;                                                                              \
        return SUCCESS;                                                                            \
    }
#define GIVES_A_NUMBER(name, number)                                                               \
    int name(int *out);                                                                            \
    int name(int *out)                                                                             \
    {                                                                                              \
        *out = number;                                                                             \
        return SUCCESS;                                                                            \
    }
#define GIVES_A_NAME(name)                                                                         \
    int name(int error, const char **out);                                                         \
    int name(int error, const char **out)                                                          \
    {                                                                                              \
        (void)error;                                                                               \
        *out = "no driver";                                                                        \
        return SUCCESS;                                                                            \
    }
#define GIVES_AN_ATTRIBUTE(name)                                                                   \
    int name(int *out, int attribute);                                                             \
    int name(int *out, int attribute)                                                              \
    {                                                                                              \
        *out = attribute == REGISTERS ? 168 : attribute == MAX_THREADS_PER_BLOCK ? 384 : 0;        \
        return SUCCESS;                                                                            \
    }
#define RETURNS(name, result)                                                                      \
    int name(void);                                                                                \
    int name(void)                                                                                 \
    {                                                                                              \
        return result;                                                                             \
    }

GIVES_A_THING(cuLibraryLoadData)
GIVES_A_THING(cuLibraryGetKernel)
GIVES_A_THING(cuLibraryGetModule)
GIVES_A_THING(cuKernelGetFunction)
GIVES_A_THING(cuModuleLoadData)
GIVES_A_THING(cuModuleLoadDataEx)
GIVES_A_THING(cuModuleGetFunction)
GIVES_A_NUMBER(cuDriverGetVersion, 13000)
GIVES_A_NUMBER(cuLibraryGetKernelCount, 0)
GIVES_A_NUMBER(cuOccupancyMaxActiveBlocksPerMultiprocessor, 1)
GIVES_AN_ATTRIBUTE(cuKernelGetAttribute)
GIVES_AN_ATTRIBUTE(cuFuncGetAttribute)
GIVES_A_NAME(cuGetErrorName)
GIVES_A_NAME(cuGetErrorString)
RETURNS(cuKernelSetAttribute, SUCCESS)
RETURNS(cuFuncSetAttribute, SUCCESS)
RETURNS(cuLibraryUnload, SUCCESS)
RETURNS(cuModuleUnload, SUCCESS)

RETURNS(cuInit, STUB_LIBRARY)
RETURNS(cuDeviceGet, STUB_LIBRARY)
RETURNS(cuDeviceGetCount, STUB_LIBRARY)
RETURNS(cuCtxGetCurrent, STUB_LIBRARY)
RETURNS(cuCtxGetLimit, STUB_LIBRARY)
RETURNS(cuCtxPopCurrent, STUB_LIBRARY)
RETURNS(cuCtxPushCurrent, STUB_LIBRARY)
RETURNS(cuStreamGetCtx, STUB_LIBRARY)
RETURNS(cuLaunchKernel, STUB_LIBRARY)
RETURNS(cuLaunchKernelEx, STUB_LIBRARY)
RETURNS(cuLaunchCooperativeKernel, STUB_LIBRARY)
RETURNS(cuLibraryLoadFromFile, STUB_LIBRARY)
RETURNS(cuLinkCreate, STUB_LIBRARY)
RETURNS(cuLinkAddData, STUB_LIBRARY)
RETURNS(cuLinkComplete, STUB_LIBRARY)
RETURNS(cuLinkDestroy, STUB_LIBRARY)
RETURNS(cuOccupancyMaxPotentialClusterSize, STUB_LIBRARY)
