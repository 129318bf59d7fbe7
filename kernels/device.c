#include "kernels/device_kind.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum status device_open(struct device **device, const struct device_options *options)
{
    *device = NULL;
    if (strcmp(options->name, "cpu") == 0) {
        return cpu_device_open(device, options);
    }
    if (strcmp(options->name, "cuda") == 0) {
        return cuda_device_open(device, options);
    }
    return status_fail(STATUS_USAGE, "run.device %s: no such device (cpu, cuda)", options->name);
}

void device_close(struct device *device)
{
    if (device != NULL) {
        device->close(device);
    }
}

const struct ops *device_ops(const struct device *device)
{
    return device->ops;
}

const struct device_info *device_info(const struct device *device)
{
    return &device->info;
}

void *device_stream(const struct device *device)
{
    return device->stream;
}

double device_peak_flops(struct device *device, enum dtype dtype)
{
    return device->peak_flops(device, dtype);
}

bool device_ceilings(struct device *device, enum dtype dtype, struct device_ceilings *out)
{
    *out = (struct device_ceilings){0};
    if (device->ceilings != NULL) {
        device->ceilings(device, dtype, out);
    }
    return device->ceilings != NULL;
}

bool device_meter(struct device *device, struct meter *meter)
{
    if (device->stream != NULL) {
        return false;
    }
    *meter = (struct meter){.ops = device->ops, .counting = *device->ops};
    meter_wrap(&meter->counting);
    device->meter = meter;
    device->ops = &meter->counting;
    return true;
}

int device_kernels(const struct device_kernel **list)
{
    return cuda_device_kernels(list);
}

struct device_fp8_product device_fp8_product(bool weight, int64_t rows, int64_t out, int64_t in,
                                             int64_t groups)
{
    return cuda_device_fp8_product(weight, rows, out, in, groups);
}

void device_built(char *out, size_t bytes)
{
    const char *cuda = cuda_device_built();
    snprintf(out, bytes, "cpu (oneDNN)%s%s", cuda[0] != '\0' ? ", " : "", cuda);
}

void device_fact(struct device_info *info, const char *key, const char *format, ...)
{
    va_list args;
    assert(info->fact_count < DEVICE_FACTS);
    struct device_fact *fact = &info->fact[info->fact_count++];
    fact->key = key;
    va_start(args, format);
    vsnprintf(fact->value, sizeof fact->value, format, args);
    va_end(args);
}

void host_cpu_name(char *out, size_t bytes)
{
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(out, bytes, "unknown");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *value = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
        if (value != NULL) {
            snprintf(out, bytes, "%.*s", (int)strcspn(value + 2, "\n"), value + 2);
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}
