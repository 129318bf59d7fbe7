/* device: one compute device of this rank and its table of ops. */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/base/status.h"
#include "kernels/ops.h"

struct device_options {
    const char *name; /* "cpu", "cuda" */
    int threads;      /* > 0: threads of the host for this rank */
    const int
        *cores; /* [threads] core numbers to pin to, borrowed during open, or NULL: no pinning.
                   A GPU's rank is pinned to cores near the GPU instead, if they are known */
    bool deterministic;       /* the same calls give the same bits; the CPU always does so */
    bool layout;              /* nor do they depend on the number of threads, as far as a quick test
                                 at open shows; CPU: libraries that fail it are not used; CUDA: own
                                 kernels alone */
    int node_rank, node_size; /* of the world: choose the GPU and its cores; size 0: alone */
};

/* One line of `doctor`, one key of run.json: what is true of this kind of device. */
struct device_fact {
    const char *key; /* literal, [a-z0-9_]+ */
    char value[256];
};
enum { DEVICE_FACTS = 12 };

struct device_info {
    const char *name;     /* "cpu", "cuda" */
    int threads;          /* of the host */
    char cpu[128];        /* the host processor's name */
    bool batch_invariant; /* rows of a GEMM do not depend on the other rows of the batch. CPU:
                             oneDNN is tested at open on a few shapes, and not used where it
                             fails. CUDA: by choice of kernels */
    size_t memory_bytes;  /* of the device itself; 0 on the CPU, whose memory is the host's */
    size_t memory_used;   /* of memory_bytes, by this rank's tensors and scratch, now */
    char bus[32]; /* which GPU of the machine: "0000:17:00.0"; "" on the CPU. Ranks of a node
                     with the same bus share a GPU, which NCCL refuses */
    struct device_fact fact[DEVICE_FACTS];
    int fact_count; /* CPU: onednn (version), isa (what it uses), gemm (its kernels or our own),
                       bf16_gemm, loops (the level our own are compiled for). CUDA: gpu,
                       compute_capability, gpu_memory, cuda, libraries, ... */
};

/* Opens the device of this rank. Errors: STATUS_USAGE for a device this binary lacks,
 * STATUS_RESOURCE where the machine lacks it. One line says what is missing. */
enum status device_open(struct device **device, const struct device_options *options)
    __attribute__((warn_unused_result));
void device_close(struct device *device); /* accepts NULL */

const struct ops *device_ops(const struct device *device);
const struct device_info *device_info(const struct device *device);
/* The cudaStream_t that ops are queued on, in order; NULL on the CPU, whose ops are done when they
 * return. */
void *device_stream(const struct device *device);

/* Measured peak of a large GEMM on this device, FLOP/s; takes a tenth of a second. */
double device_peak_flops(struct device *device, enum dtype dtype);

/* What nothing can exceed here, measured: products of registers alone (of the widest instruction
 * for this dtype, on all threads of this rank), FLOP/s; and memory copied from one place to
 * another, read and written, bytes/s. */
struct device_ceilings {
    double fma_flops, copy_bytes;
};
/* Takes a third of a second. False: this kind of device does not measure them. */
bool device_ceilings(struct device *device, enum dtype dtype, struct device_ceilings *out);

struct meter;
/* From now on device_ops() counts in `meter` (kernels/meter.h), borrowed; before anybody asks for
 * the ops. False: this kind of device's ops are not done when they return. */
bool device_meter(struct device *device, struct meter *meter);

/* Instructions in a kernel's SASS, for sm_90a (kernels/cuda/sass_counts.awk); all: -1 where there
 * was no disassembler when the binary was built. */
struct device_sass {
    int all;
    int qgmma, hgmma, hmma; /* of tensor cores: wgmma of 8 and of 16 bits, mma.sync */
    int tma;                /* tensors to and from shared memory */
    int ffma;               /* multiply-adds in f32 */
    int load, store;        /* of global memory, */
    int local;              /* both, of local memory */
};

/* What the compiler says of a CUDA kernel in this binary, for sm_90a. */
struct device_kernel {
    const char *name;         /* "norm_forward_kernel<float>" */
    int registers;            /* of a thread, at launch */
    int shared_bytes;         /* static, of a block */
    int spilled, stack_bytes; /* bytes of a thread */
    struct device_sass sass;
};
/* By name, *list[0 .. result). Without nvcc there are none. */
int device_kernels(const struct device_kernel **list);

/* How FP8's product y[rows,out] = x[rows,in] w^T, of `groups` w, would be computed on an H100 by
 * the model that chooses its tiles; weight: dw[out,in] of so many tokens. */
struct device_fp8_product {
    double seconds;   /* NAN where the binary has no such kernels */
    int rows, cols;   /* of the result's tiles */
    int stages;       /* of 128 terms of the sum, in shared memory */
    int cluster;      /* blocks that load together */
    int shared_bytes; /* of a block, taken at launch */
};
struct device_fp8_product device_fp8_product(bool weight, int64_t rows, int64_t out, int64_t in,
                                             int64_t groups);

/* The devices in this binary: "cpu (oneDNN), cuda 13.0 (sm_80, sm_90a)". */
void device_built(char *out, size_t bytes);

#endif
