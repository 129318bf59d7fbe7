#define _GNU_SOURCE /* sched_setaffinity */
#include <assert.h>
#include <ctype.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops_fp8.h"

#ifdef CUDA_NVTX
#include <nvtx3/nvToolsExt.h>
#endif

enum { OLDEST = 80, GIB = 1 << 30 }; /* compute capability times ten */

void cuda_check(struct cuda_device *self, cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        fprintf(stderr, "switchyard: cuda %d (%s): %s: %s: %s (%s)\n", self->ordinal,
                self->head.info.bus, self->op, what, cudaGetErrorName(error),
                cudaGetErrorString(error));
        fflush(stderr);
        exit(status_exit_code(STATUS_INTERNAL));
    }
}

struct cuda_device *cuda_begin(struct device *device, const char *op)
{
    struct cuda_device *self = cuda_device_of(device);
    self->op = op;
#ifdef CUDA_NVTX
    nvtxRangePushA(op);
#endif
    return self;
}

void cuda_end(struct cuda_device *self)
{
#ifdef CUDA_NVTX
    nvtxRangePop();
#endif
    cuda_check(self, cudaGetLastError(), "launch");
}

/* ---- which GPU ---- */

/* One line for what cudaGetDeviceCount says where there is nothing to use. */
static enum status no_device(cudaError_t error)
{
    int driver = 0;
    (void)cudaDriverGetVersion(&driver);
    if (driver == 0) {
        return status_fail(STATUS_RESOURCE, "run.device cuda: no NVIDIA driver on this machine "
                                            "(libcuda.so.1); use run.device=cpu");
    }
    if (error == cudaErrorInsufficientDriver) {
        return status_fail(STATUS_RESOURCE,
                           "run.device cuda: the driver is of CUDA %d.%d, this binary needs %d.%d: "
                           "update the driver",
                           driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                           CUDART_VERSION % 1000 / 10);
    }
    if (error == cudaErrorNoDevice || error == cudaSuccess) {
        return status_fail(STATUS_RESOURCE,
                           "run.device cuda: no GPU is visible (CUDA_VISIBLE_DEVICES and the job's "
                           "share of the node decide)");
    }
    return status_fail(STATUS_RESOURCE, "run.device cuda: %s (%s)", cudaGetErrorName(error),
                       cudaGetErrorString(error));
}

/* Opens GPU `ordinal` as far as a stream on it, with the messages of what may be missing. */
static enum status open_gpu(struct cuda_device *self, struct cudaDeviceProp *gpu)
{
    int low = 0, high = 0;
    cudaError_t error = cudaGetDeviceProperties(gpu, self->ordinal);
    if (error == cudaSuccess && gpu->major * 10 + gpu->minor < OLDEST) {
        return status_fail(STATUS_RESOURCE,
                           "run.device cuda: GPU %d is a %s of compute capability %d.%d, %d.%d is "
                           "the least",
                           self->ordinal, gpu->name, gpu->major, gpu->minor, OLDEST / 10,
                           OLDEST % 10);
    }
    if (error == cudaSuccess) {
        error =
            cudaDeviceGetPCIBusId(self->head.info.bus, sizeof self->head.info.bus, self->ordinal);
    }
    if (error == cudaSuccess) {
        error = cudaSetDevice(self->ordinal);
    }
    if (error == cudaSuccess) {
        error = cudaDeviceGetStreamPriorityRange(&low, &high);
    }
    if (error == cudaSuccess) {
        error = cudaStreamCreateWithPriority(&self->stream, cudaStreamNonBlocking, low);
    }
    if (error == cudaErrorMemoryAllocation) {
        return status_fail(
            STATUS_RESOURCE,
            "run.device cuda: GPU %d (%s) has no memory left for a process: nvidia-smi "
            "shows who uses it",
            self->ordinal, self->head.info.bus);
    }
    if (error != cudaSuccess) {
        return status_fail(STATUS_RESOURCE, "run.device cuda: GPU %d: %s (%s)", self->ordinal,
                           cudaGetErrorName(error), cudaGetErrorString(error));
    }
    return STATUS_OK;
}

/* A first kernel: is there code for this GPU in the binary, and does it run? */
static enum status try_kernel(struct cuda_device *self, const struct cudaDeviceProp *gpu)
{
    enum { COUNT = 32 };
    float *x = NULL, back[COUNT] = {0};
    cudaError_t error = cudaMalloc((void **)&x, sizeof back);
    if (error == cudaSuccess) {
        cuda_fill(self->stream, x, COUNT, 1);
        error = cudaGetLastError();
    }
    if (error == cudaSuccess) {
        error = cudaMemcpyAsync(back, x, sizeof back, cudaMemcpyDeviceToHost, self->stream);
    }
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize(self->stream);
    }
    (void)cudaFree(x);
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
        return status_fail(
            STATUS_RESOURCE,
            "run.device cuda: this binary has no code for the %s (compute capability "
            "%d.%d; built: %s): build it with -DSWITCHYARD_CUDA_QUICK=OFF",
            gpu->name, gpu->major, gpu->minor, CUDA_CODE);
    }
    if (error != cudaSuccess || back[COUNT - 1] != 1) {
        return status_fail(STATUS_RESOURCE,
                           "run.device cuda: GPU %d (%s): a first kernel failed: %s", self->ordinal,
                           gpu->name, cudaGetErrorName(error));
    }
    return STATUS_OK;
}

/* ---- cores near the GPU ---- */

/* Sets the cores of a list as in "0-23,96-119". */
static void parse_cores(const char *text, cpu_set_t *set)
{
    while (isdigit((unsigned char)*text)) {
        char *end;
        const long first = strtol(text, &end, 10);
        const long last = *end == '-' ? strtol(end + 1, &end, 10) : first;
        for (long core = first; core <= last && core < CPU_SETSIZE; core++) {
            CPU_SET((size_t)core, set);
        }
        text = *end == ',' ? end + 1 : end;
    }
}

/* The cores near GPU `ordinal` that this process may use; empty where nothing is known. */
static void near_cores(int ordinal, cpu_set_t *set)
{
    char bus[32] = "", path[128], text[4096] = "";
    cpu_set_t allowed;
    CPU_ZERO(set);
    if (cudaDeviceGetPCIBusId(bus, sizeof bus, ordinal) != cudaSuccess ||
        sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return;
    }
    for (char *c = bus; *c != '\0'; c++) {
        *c = (char)tolower((unsigned char)*c);
    }
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/local_cpulist", bus);
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return;
    }
    if (fgets(text, sizeof text, file) != NULL) {
        parse_cores(text, set);
    }
    fclose(file);
    CPU_AND(set, set, &allowed);
}

/* Keeps this rank's share of `set`, which `sharers` ranks want, of whom it is number `place`. */
static void keep_share(cpu_set_t *set, int place, int sharers)
{
    const int count = CPU_COUNT(set), each = count / sharers;
    for (int core = 0, seen = 0; core < CPU_SETSIZE && each > 0; core++) {
        if (CPU_ISSET((size_t)core, set)) {
            if (seen < place * each || seen >= (place + 1) * each) {
                CPU_CLR((size_t)core, set);
            }
            seen++;
        }
    }
}

/* Moves the process to its share of the cores near its GPU, or, where they are not known, to its
 * share of the node's. A set, not a core a thread: the threads of CUDA, NCCL and MPI, which are
 * started from here on, get the same. */
static void pin_near(const struct cuda_device *self, const struct device_options *options,
                     int visible)
{
    cpu_set_t own;
    int place = 0, sharers = 0;
    near_cores(self->ordinal, &own);
    for (int rank = 0; rank < options->node_size; rank++) {
        cpu_set_t other;
        near_cores(rank % visible, &other);
        place += rank < options->node_rank && CPU_EQUAL(&own, &other);
        sharers += CPU_EQUAL(&own, &other);
    }
    keep_share(&own, place, sharers > 0 ? sharers : 1);
    if (CPU_COUNT(&own) == 0) {
        for (int i = 0; i < options->threads; i++) {
            CPU_SET((size_t)options->cores[i], &own);
        }
    }
    (void)sched_setaffinity(0, sizeof own, &own); /* refused: slower, never wrong */
}

/* ---- the device ---- */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Rate of square products that grow until one takes a few milliseconds. Numbers as those of a
 * model: zeros draw less power and run at higher clocks. */
static double peak_flops(struct device *device, enum dtype dtype)
{
    enum { SMALLEST = 64, LARGEST = 8192, MOST = 10, FEWEST = 2 };
    const double enough = 2e-3, long_enough = 0.05; /* slow ones, an emulated GPU's, repeat less */
    double best = 0, took = 0;
    for (int64_t n = SMALLEST; n <= LARGEST && took < enough; n *= 2) {
        const size_t bytes = (size_t)(n * n) * sizeof(float);
        char *data = cuda_memory_alloc(device, 3 * bytes);
        if (data == NULL) {
            break; /* the model needs it more */
        }
        const struct tensor y = tensor_2d(data, dtype, n, n),
                            x = tensor_2d(data + bytes, dtype, n, n),
                            w = tensor_2d(data + 2 * bytes, dtype, n, n),
                            wide = tensor_2d(data, DTYPE_F32, n, n);
        device->ops->init_normal(device, wide.data, 1, 0, n * n, 1);
        device->ops->cast(device, x, wide);
        device->ops->init_normal(device, wide.data, 2, 0, n * n, 1);
        device->ops->cast(device, w, wide);
        const double begin = seconds();
        for (int i = 0; i < MOST && (i < FEWEST || seconds() - begin < long_enough); i++) {
            cuda_synchronize(device);
            const double start = seconds();
            device->ops->linear_forward(device, y, x, w, false);
            cuda_synchronize(device);
            took = seconds() - start;
            const double rate = 2.0 * (double)(n * n * n) / took;
            best = rate > best ? rate : best;
        }
        cuda_memory_free(device, data, 3 * bytes);
    }
    return best;
}

static void close_cuda(struct device *device)
{
    struct cuda_device *self = cuda_device_of(device);
    if (self->stream != NULL) {
        (void)cudaStreamSynchronize(self->stream);
    }
    cublaslt_close(self->blas);
    cudnn_attention_close(self->cudnn);
    cuda_memory_close(self);
    if (self->stream != NULL) {
        (void)cudaStreamDestroy(self->stream);
    }
    free(self);
}

/* What NVIDIA's libraries do of the work, where they are found; else our own kernels do it. */
static void open_libraries(struct cuda_device *self, const struct device_options *options)
{
    struct device_info *info = &self->head.info;
    self->layout = options->layout;
    const enum status blas = cublaslt_open(&self->blas, options->layout);
    info->batch_invariant = self->blas == NULL; /* it chooses by the number of rows */
    device_fact(info, "dense_products", "%s",
                options->layout     ? "own"
                : blas == STATUS_OK ? "cuBLASLt, own where it has none"
                                    : status_message());
    const enum status cudnn =
        options->layout ? STATUS_OK : cudnn_attention_open(&self->cudnn, options->deterministic);
    device_fact(info, "attention", "%s",
                options->layout      ? "own"
                : cudnn == STATUS_OK ? "cuDNN, own where it does not fit (parallel.cp)"
                                     : status_message());
}

static void describe(struct cuda_device *self, const struct cudaDeviceProp *gpu, int visible)
{
    struct device_info *info = &self->head.info;
    int driver = 0, runtime = 0;
    size_t available = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    (void)cudaMemGetInfo(&available, &info->memory_bytes);
    device_fact(info, "gpu", "%s, %s, number %d of %d visible", gpu->name, info->bus, self->ordinal,
                visible);
    device_fact(info, "compute_capability", "%d.%d, %d multiprocessors", gpu->major, gpu->minor,
                gpu->multiProcessorCount);
    device_fact(info, "gpu_memory", "%.1f GiB, %.1f free", (double)info->memory_bytes / GIB,
                (double)available / GIB);
    device_fact(info, "cuda", "%d.%d, driver for %d.%d; code: %s", runtime / 1000,
                runtime % 1000 / 10, driver / 1000, driver % 1000 / 10, CUDA_CODE);
}

enum status cuda_device_open(struct device **device, const struct device_options *options)
{
    struct cudaDeviceProp gpu;
    int visible = 0;
    const cudaError_t error = cudaGetDeviceCount(&visible);
    *device = NULL;
    if (error != cudaSuccess || visible == 0) {
        return no_device(error);
    }
    struct cuda_device *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory");
    }
    self->op = "open";
    self->ordinal = options->node_rank % visible;
    self->head = (struct device){
        .ops = &cuda_ops,
        .info = {.name = "cuda", .threads = options->threads},
        .threads = options->threads,
        .peak_flops = peak_flops,
        .close = close_cuda,
    };
    host_cpu_name(self->head.info.cpu, sizeof self->head.info.cpu);
    if (options->cores != NULL) {
        pin_near(self, options, visible);
    }
    enum status status = open_gpu(self, &gpu);
    if (status == STATUS_OK) {
        self->head.stream = self->stream;
        status = try_kernel(self, &gpu);
    }
    if (status != STATUS_OK) {
        (void)cudaGetLastError();
        close_cuda(&self->head);
        return status;
    }
    describe(self, &gpu, visible);
    open_libraries(self, options);
    *device = &self->head;
    return STATUS_OK;
}

struct device_fp8_product cuda_device_fp8_product(bool weight, int64_t rows, int64_t out,
                                                  int64_t in, int64_t groups)
{
    struct cuda_fp8_tile tile;
    const double seconds = cuda_fp8_seconds(weight, rows, out, in, groups, &tile);
    return (struct device_fp8_product){.seconds = seconds,
                                       .rows = tile.rows,
                                       .cols = tile.cols,
                                       .stages = tile.stages,
                                       .cluster = tile.cluster,
                                       .shared_bytes = tile.shared_bytes};
}

const char *cuda_device_built(void)
{
    return "cuda (" CUDA_CODE "; " CUDA_LIBRARIES ")";
}
