/* Memory of the CPU device: the host's. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

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

/* Past the caches, which hold none of it when it is used next: a line that is written whole needs
 * not be read first. */
static void stream_zero(char *data, size_t bytes)
{
#ifdef __SSE2__
    enum { LINE = 64, VECTOR = 16 };
    const size_t head = (LINE - (uintptr_t)data % LINE) % LINE, first = head < bytes ? head : bytes,
                 end = first + (bytes - first) / LINE * LINE;
    memset(data, 0, first);
    for (size_t at = first; at < end; at += VECTOR) {
        _mm_stream_si128((__m128i *)(void *)(data + at), _mm_setzero_si128());
    }
    _mm_sfence();
    memset(data + end, 0, bytes - end);
#else
    memset(data, 0, bytes);
#endif
}

void cpu_zero(struct device *device, void *data, size_t bytes)
{
    const size_t large = (size_t)32 << 20, part = (size_t)1 << 20;
    if (bytes < large) {
        memset(data, 0, bytes);
        return;
    }
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (size_t at = 0; at < bytes; at += part) {
        stream_zero((char *)data + at, bytes - at < part ? bytes - at : part);
    }
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
