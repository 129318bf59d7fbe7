/* The CUDA device of binaries without CUDA. */
#include "kernels/device_kind.h"

enum status cuda_device_open(struct device **device, const struct device_options *options)
{
    *device = NULL;
    return status_fail(
        STATUS_USAGE,
        "run.device %s: not built in this binary: install the CUDA toolkit (nvcc) or "
        "set -DSWITCHYARD_CUDA=fetch, then build again; or use run.device=cpu",
        options->name);
}

const char *cuda_device_built(void)
{
    return "";
}
