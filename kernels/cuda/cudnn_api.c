#include "kernels/cuda/cudnn_api.h"

#include <string.h>

#include "kernels/base/library.h"

#define SYMBOL(name, field)                                                                        \
    {                                                                                              \
        name, (void (**)(void)) & api->field                                                       \
    }

enum status cudnn_api_open(struct cudnn_api *api)
{
    static const char *const names[] = {"libcudnn.so.9", NULL};
    memset(api, 0, sizeof *api);
    const struct library_symbol symbols[] = {
        SYMBOL("cudnnGetVersion", version),
        SYMBOL("cudnnGetErrorString", error),
        SYMBOL("cudnnCreate", open),
        SYMBOL("cudnnDestroy", close),
        SYMBOL("cudnnSetStream", set_stream),
        SYMBOL("cudnnBackendCreateDescriptor", create),
        SYMBOL("cudnnBackendDestroyDescriptor", destroy),
        SYMBOL("cudnnBackendSetAttribute", set),
        SYMBOL("cudnnBackendGetAttribute", get),
        SYMBOL("cudnnBackendFinalize", finalize),
        SYMBOL("cudnnBackendExecute", execute),
    };
    TRY(library_open(&api->library, names, symbols, sizeof symbols / sizeof *symbols));
    if (api->version() < CUDNN_OLDEST) {
        const size_t version = api->version();
        cudnn_api_close(api);
        return status_fail(STATUS_RESOURCE, "libcudnn.so.9 is version %zu, the oldest used is %d",
                           version, CUDNN_OLDEST);
    }
    return STATUS_OK;
}

void cudnn_api_close(struct cudnn_api *api)
{
    if (api->library != NULL) {
        library_close(api->library);
    }
    memset(api, 0, sizeof *api);
}
