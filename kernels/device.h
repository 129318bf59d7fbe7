/* device: one compute device of this rank and its table of ops. */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/base/status.h"
#include "kernels/ops.h"

struct device_options {
    const char *name; /* "cpu" */
    int threads;      /* > 0: OpenMP threads of this rank */
    const int
        *cores; /* [threads] core numbers to pin to, borrowed during open, or NULL: no pinning */
};

struct device_info {
    char cpu[128];        /* processor's name */
    char isa[64];         /* what oneDNN uses, e.g. "AVX2", "AVX512_CORE_BF16" */
    char onednn[32];      /* its version */
    char gemm[32];        /* "oneDNN brgemm", or "own" where that is missing or not invariant */
    char bf16_gemm[16];   /* "native", or "float32" where the machine has no bf16 instructions */
    bool batch_invariant; /* rows of a GEMM do not depend on the other rows (tested at open on a few
                             shapes) */
    int threads;
};

/* Opens the device of this rank. Errors: STATUS_USAGE for a device this binary lacks,
 * STATUS_RESOURCE. */
enum status device_open(struct device **device, const struct device_options *options)
    __attribute__((warn_unused_result));
void device_close(struct device *device); /* accepts NULL */

const struct ops *device_ops(const struct device *device);
const struct device_info *device_info(const struct device *device);

/* The stream of the device's ops (CUDA's cudaStream_t); NULL where there is none, because memory of
 * the device is the host's. */
void *device_stream(const struct device *device);

/* Measured peak of a large GEMM on this device, FLOP/s; takes about a second. */
double device_peak_flops(struct device *device, enum dtype dtype);

#endif
