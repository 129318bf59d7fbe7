/* The CUDA device of binaries without CUDA. */
#include "kernels/device_kind.h"

#include <math.h>

enum status cuda_device_open(struct device **device, const struct device_options *options)
{
    *device = NULL;
    return status_fail(
        STATUS_USAGE,
        "run.device %s: not built in this binary: install the CUDA toolkit (nvcc) or "
        "set -DSWITCHYARD_CUDA=fetch, then build again; or use run.device=cpu",
        options->name);
}

struct device_fp8_product cuda_device_fp8_product(bool weight, int64_t rows, int64_t out,
                                                  int64_t in, int64_t groups)
{
    (void)weight, (void)rows, (void)out, (void)in, (void)groups;
    return (struct device_fp8_product){.seconds = (double)NAN};
}

const char *cuda_device_built(void)
{
    return "";
}
