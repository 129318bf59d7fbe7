/* cudnn_api: cuDNN 9's backend interface (https://docs.nvidia.com/deeplearning/cudnn), loaded at
 * run time, so that one program runs with and without the library. Its header is needed to compile.
 */
#ifndef KERNELS_CUDA_CUDNN_API_H
#define KERNELS_CUDA_CUDNN_API_H

#include <cudnn.h>

#include "kernels/base/status.h"

/* The oldest version whose graphs tests/cudnn builds. Older ones have known defects here: NaN
 * gradients from an uninitialised workspace on Hopper before 9.18, another value for -infinity
 * before 9.10. */
enum { CUDNN_OLDEST = 91900 };

struct cudnn_api {
    void *library; /* owned */
    size_t (*version)(void);
    const char *(*error)(cudnnStatus_t);
    cudnnStatus_t (*open)(cudnnHandle_t *);
    cudnnStatus_t (*close)(cudnnHandle_t);
    cudnnStatus_t (*set_stream)(cudnnHandle_t, cudaStream_t);
    cudnnStatus_t (*create)(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t *);
    cudnnStatus_t (*destroy)(cudnnBackendDescriptor_t);
    cudnnStatus_t (*set)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t,
                         cudnnBackendAttributeType_t, int64_t, const void *);
    cudnnStatus_t (*get)(cudnnBackendDescriptor_t const, cudnnBackendAttributeName_t,
                         cudnnBackendAttributeType_t, int64_t, int64_t *, void *);
    cudnnStatus_t (*finalize)(cudnnBackendDescriptor_t);
    cudnnStatus_t (*execute)(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t);
};

/* Loads libcudnn.so.9. STATUS_RESOURCE: it is not there, or too old. */
enum status cudnn_api_open(struct cudnn_api *api);
void cudnn_api_close(struct cudnn_api *api);

#endif
