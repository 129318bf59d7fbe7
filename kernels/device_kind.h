/* device_kind: private to kernels: what every kind of device has in common, and how device.c opens
 * each. A kind's own struct begins with a struct device and is what its ops cast theirs to. */
#ifndef KERNELS_DEVICE_KIND_H
#define KERNELS_DEVICE_KIND_H

#include "kernels/device.h"
#include "kernels/meter.h"

struct device {
    const struct ops *ops; /* borrowed */
    struct device_info info;
    int threads;         /* of the host, of this rank */
    void *stream;        /* device_stream() */
    struct meter *meter; /* borrowed; NULL: nobody counts */
    double (*peak_flops)(struct device *, enum dtype);
    void (*ceilings)(struct device *, enum dtype, struct device_ceilings *); /* NULL: not known */
    void (*close)(struct device *); /* frees the device itself too */
};

/* As device_open. */
enum status cpu_device_open(struct device **device, const struct device_options *options)
    __attribute__((warn_unused_result));

/* One of three is linked, by the choice of the executable: kernels/cuda/device_cuda.c over CUDA or
 * over the emulator (tests), or device_none.c, which refuses with STATUS_USAGE. */
enum status cuda_device_open(struct device **device, const struct device_options *options)
    __attribute__((warn_unused_result));
/* What --version says of it: "cuda 13.0 (sm_80, sm_90a)"; "" where there is none. */
const char *cuda_device_built(void);

/* As device_kernels. A table made from the compiler's words, or kernel_list_none.c. */
int cuda_device_kernels(const struct device_kernel **list);

/* As device_fp8_product. */
struct device_fp8_product cuda_device_fp8_product(bool weight, int64_t rows, int64_t out,
                                                  int64_t in, int64_t groups);

/* Adds a line to what doctor and run.json say (struct device_info). printf style. */
void device_fact(struct device_info *info, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The host processor's name, of /proc/cpuinfo. */
void host_cpu_name(char *out, size_t bytes);

#endif
