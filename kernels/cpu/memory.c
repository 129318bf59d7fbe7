/* Memory of the CPU device: the host's. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu.h"

void *cpu_memory_alloc(struct device *device, size_t bytes)
{
    (void)device;
    void *data = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return NULL;
    }
    (void)madvise(data, bytes, MADV_HUGEPAGE); /* advice only: slower without, never wrong */
    return data;
}

void cpu_memory_free(struct device *device, void *data, size_t bytes)
{
    (void)device;
    if (data != NULL) {
        munmap(data, bytes);
    }
}

void cpu_zero(struct device *device, void *data, size_t bytes)
{
    (void)device;
    memset(data, 0, bytes);
}

void cpu_fill(struct device *device, float *x, int64_t count, float value)
{
    (void)device;
    for (int64_t i = 0; i < count; i++) {
        x[i] = value;
    }
}

void cpu_copy(struct device *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    memcpy(to, from, bytes);
}

void cpu_fetch(struct device *device, int window, void *to, const void *host, size_t bytes)
{
    (void)window;
    cpu_copy(device, to, host, bytes);
}

void cpu_fetched(struct device *device, int window)
{
    (void)device;
    (void)window;
}

void cpu_put(struct device *device, int window, void *host, const void *from, size_t bytes)
{
    (void)window;
    cpu_copy(device, host, from, bytes);
}

void cpu_synchronize(struct device *device)
{
    (void)device;
}

/* Nothing is recorded: what is called is done. */
bool cpu_graph_begin(struct device *device, uint64_t key)
{
    (void)device;
    (void)key;
    return true;
}

void cpu_graph_end(struct device *device)
{
    (void)device;
}

void cpu_graph_forget(struct device *device)
{
    (void)device;
}
