#include "emulator/block.h"
#include "emulator/stream.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Large pages, where the system has them: opening and closing small ones is a third of all time. */
enum { RANGES_MAX = 8192, ALIGN_BYTES = 512, PAGE_BYTES = 2 << 20 };

/* Device memory: one address range, allocations and holes in ascending order, a gap after each. */
struct range {
    size_t offset, bytes, asked; /* asked 0: a hole */
};
static struct range ranges[RANGES_MAX];
static int range_count;
static uint8_t *arena;
static size_t arena_bytes, touched; /* touched: what mprotect has to cover */
static bool is_open;

static void host_access(int signal_number, siginfo_t *info, void *)
{
    if (memory_is_device(info->si_addr) && !is_open) {
        static const char text[] = "emulator: the host touched device memory\n";
        if (write(2, text, sizeof text - 1) < 0)
            _exit(EMU_EXIT + 1);
        _exit(EMU_EXIT);
    }
    signal(signal_number, SIG_DFL); /* a fault of another kind: it comes again */
}

static void arena_init()
{
    if (arena)
        return;
    const char *text = getenv("EMU_DEVICE_BYTES");
    arena_bytes = text ? strtoull(text, nullptr, 0) : (size_t)4 << 30;
    void *p = mmap(nullptr, arena_bytes + PAGE_BYTES, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("emulator: device memory");
        exit(71);
    }
    arena = (uint8_t *)(((uintptr_t)p + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES);
    (void)madvise(arena, arena_bytes, MADV_HUGEPAGE); /* refused: slower, never wrong */
    ranges[0] = {0, arena_bytes, 0};
    range_count = 1;
    struct sigaction action = {};
    action.sa_sigaction = host_access;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
}

void memory_open(bool open)
{
    if (open == is_open || touched == 0)
        return;
    if (mprotect(arena, touched, open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0) {
        perror("emulator: mprotect of device memory");
        exit(71);
    }
    is_open = open;
}

bool memory_is_device(const void *p)
{
    return arena && (const uint8_t *)p >= arena && (const uint8_t *)p < arena + arena_bytes;
}

void memory_check(const void *p, size_t bytes, const char *what)
{
    if (!memory_is_device(p) || bytes == 0)
        return;
    size_t offset = (size_t)((const uint8_t *)p - arena);
    for (int i = 0; i < range_count; i++)
        if (ranges[i].asked && offset >= ranges[i].offset &&
            offset + bytes <= ranges[i].offset + ranges[i].asked)
            return;
    emu_fail({"cudart", 0}, "%s: %zu bytes of device memory that are not inside one allocation",
             what, bytes);
}

static void range_insert(int at, struct range r)
{
    if (range_count == RANGES_MAX)
        emu_fail({"cudart", 0}, "more than %d device allocations", RANGES_MAX);
    for (int i = range_count++; i > at; i--)
        ranges[i] = ranges[i - 1];
    ranges[at] = r;
}

static void range_join(int at) /* with the next, both holes */
{
    if (at < 0 || at + 1 >= range_count || ranges[at].asked || ranges[at + 1].asked)
        return;
    ranges[at].bytes += ranges[at + 1].bytes;
    range_count--;
    for (int i = at + 1; i < range_count; i++)
        ranges[i] = ranges[i + 1];
}

extern "C" {

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    arena_init();
    *p = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    size_t whole = (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES + ALIGN_BYTES;
    int at = 0;
    while (at < range_count && (ranges[at].asked || ranges[at].bytes < whole))
        at++;
    if (at == range_count)
        return cudaErrorMemoryAllocation;
    size_t offset = ranges[at].offset,
           end = (offset + whole + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    if (ranges[at].bytes > whole)
        range_insert(at + 1, {offset + whole, ranges[at].bytes - whole, 0});
    ranges[at] = {offset, whole, bytes};
    memory_open(false);
    if (end > touched)
        touched = end > arena_bytes ? arena_bytes : end;
    memory_open(true);
    fill_bytes(arena + offset, 0xff, bytes); /* NaN: device memory is not zero */
    asan_unpoison(arena + offset, bytes);
    asan_poison(arena + offset + bytes, whole - bytes);
    memory_open(false);
    *p = arena + offset;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (!p)
        return cudaSuccess;
    stream_synchronize_all();
    size_t offset = (size_t)((uint8_t *)p - arena);
    for (int i = 0; i < range_count; i++)
        if (ranges[i].asked && ranges[i].offset == offset && memory_is_device(p)) {
            asan_poison(p, ranges[i].asked);
            ranges[i].asked = 0;
            range_join(i);
            range_join(i - 1);
            return cudaSuccess;
        }
    emu_fail({"cudart", 0}, "cudaFree of what cudaMalloc did not return, or twice");
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t)
{
    return cudaMalloc(p, bytes);
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t)
{
    return cudaFree(p);
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    arena_init();
    *available = 0;
    *total = arena_bytes;
    for (int i = 0; i < range_count; i++)
        *available += ranges[i].asked ? 0 : ranges[i].bytes;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    *p = nullptr;
    return posix_memalign(p, PAGE_BYTES, bytes ? bytes : 1) ? cudaErrorMemoryAllocation
                                                            : cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    return cudaHostAlloc(p, bytes, 0);
}

cudaError_t cudaFreeHost(void *p)
{
    stream_synchronize_all();
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *, size_t, unsigned)
{
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *)
{
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *p)
{
    *attributes = {};
    attributes->type = memory_is_device(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    if (memory_is_device(p))
        attributes->devicePointer = (void *)p;
    else
        attributes->hostPointer = (void *)p;
    return cudaSuccess;
}

/* ---- copies ---- */

struct transfer {
    uint8_t *to;
    const uint8_t *from; /* NULL: fill with value */
    size_t to_pitch, from_pitch, width, height;
    int value;
};

static bool transfer_step(void *state)
{
    const struct transfer *t = (const struct transfer *)state;
    for (size_t row = 0; row < t->height; row++) {
        race_write(t->to + row * t->to_pitch, t->width);
        if (t->from) {
            race_read(t->from + row * t->from_pitch, t->width);
            copy_bytes(t->to + row * t->to_pitch, t->from + row * t->from_pitch, t->width);
        } else {
            fill_bytes(t->to + row * t->to_pitch, t->value, t->width);
        }
    }
    return true;
}

static void kind_check(const void *to, const void *from, enum cudaMemcpyKind kind)
{
    bool to_device = memory_is_device(to), from_device = memory_is_device(from);
    bool right =
        kind == cudaMemcpyDefault ||
        (to_device == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
         from_device == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice));
    if (!right)
        emu_fail({"cudart", 0}, "copy of kind %d: the destination is %s, the source %s", (int)kind,
                 to_device ? "device" : "host", from_device ? "device" : "host");
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream)
{
    if (width == 0 || height == 0)
        return cudaSuccess;
    kind_check(to, from, kind);
    memory_check(to, (height - 1) * to_pitch + width, "copy to");
    memory_check(from, (height - 1) * from_pitch + width, "copy from");
    struct transfer t = {
        (uint8_t *)to, (const uint8_t *)from, to_pitch, from_pitch, width, height, 0};
    stream_push(stream, "cudaMemcpyAsync", transfer_step, &t, sizeof t);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    return cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                         size_t width, size_t height, enum cudaMemcpyKind kind)
{
    cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, nullptr);
    return cudaStreamSynchronize(nullptr);
}

cudaError_t cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream)
{
    if (width == 0 || height == 0)
        return cudaSuccess;
    if (!memory_is_device(to))
        emu_fail({"cudart", 0}, "cudaMemset of host memory");
    memory_check(to, (height - 1) * pitch + width, "cudaMemset");
    struct transfer t = {(uint8_t *)to, nullptr, pitch, 0, width, height, value};
    stream_push(stream, "cudaMemsetAsync", transfer_step, &t, sizeof t);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    return cudaMemset2DAsync(to, bytes, value, bytes, 1, stream);
}

cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    return cudaMemsetAsync(to, value, bytes, nullptr);
}
}
