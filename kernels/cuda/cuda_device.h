/* cuda_device: private to the C files of the CUDA device: its state, and what every op does around
 * its launches.
 *
 * Ops enqueue on one stream and return. A launch that fails is found when the op ends, a kernel
 * that fails when the host next waits; either ends the rank with one line, for nothing after it
 * would be right: "switchyard: cuda 3 (NVIDIA H100): linear_forward: cudaErrorIllegalAddress ...".
 */
#ifndef KERNELS_CUDA_CUDA_DEVICE_H
#define KERNELS_CUDA_CUDA_DEVICE_H

#include <cuda_runtime_api.h>

#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm_cublaslt.h"
#include "kernels/device_kind.h"

/* Scratch that lives while ops of another slot run. */
enum cuda_slot {
    CUDA_SLOT_OP,   /* of one op */
    CUDA_SLOT_LOSS, /* of cross_entropy, which calls others */
    CUDA_SLOTS
};

/* Uploads pass through pinned memory: a ring of parts, each free again once its copy is done. */
enum { STAGE_BYTES = 32 << 20, STAGE_MOST = 4 << 20, STAGE_PARTS = 128 };
struct cuda_stage {
    char *ring; /* owned, pinned, STAGE_BYTES; from the first upload on */
    size_t at;  /* where the next part begins */
    struct {
        size_t first, end;
        cudaEvent_t done; /* owned; made when first used */
    } part[STAGE_PARTS];  /* in order of use, a ring as well */
    int oldest, parts;    /* those whose copies may run */
};

/* What graph_begin knows of a key. */
struct cuda_graph {
    uint64_t key;
    cudaGraphExec_t exec; /* owned; NULL: not recorded */
    int64_t generation;   /* of the scratch, at the last run */
};

struct cuda_device {
    struct device head;
    int ordinal;
    cudaStream_t stream;   /* owned; head.stream */
    const char *op;        /* the one that runs, or ran last */
    bool layout;           /* run.deterministic layout: nothing is chosen by rows of experts */
    struct cublaslt *blas; /* owned; NULL: dense products by our own kernels */
    struct cudnn_attention *cudnn; /* owned; NULL: attention by our own kernels */
    struct {
        void *data; /* owned */
        size_t bytes;
    } scratch[CUDA_SLOTS];
    int64_t generation; /* counts the scratch's moves, which outdate graphs */
    struct cuda_stage stage;
    struct {
        cudaStream_t stream; /* owned, NULL before the first: downloads beside ops */
        cudaEvent_t called;  /* owned: what was called before a download */
    } downloads;
    struct {
        cudaStream_t in, out; /* owned, NULL before the first: what passes through windows */
        cudaEvent_t called, ended[2]; /* owned: where the ops, these two have come */
        cudaEvent_t here[OPS_WINDOWS], free[OPS_WINDOWS]; /* owned: fetched, and given back */
    } windows;
    struct cuda_graph *graphs; /* owned; [graph_count] */
    int graph_count;
    char *list;               /* owned, host: the pieces of adamw, grows in the first step */
    size_t list_bytes;        /* of it */
    struct cuda_graph *graph; /* between graph_begin and graph_end, or NULL */
    bool recording;           /* its ops are recorded, not run */
};

static inline struct cuda_device *cuda_device_of(struct device *device)
{
    return (struct cuda_device *)device;
}

/* The frame of every op: names it for messages and for the profiler; checks the launches. */
struct cuda_device *cuda_begin(struct device *device, const char *op);
void cuda_end(struct cuda_device *self);

/* Ends the rank with one line if `error` is one. `what` failed, during self->op. */
void cuda_check(struct cuda_device *self, cudaError_t error, const char *what);

/* At least `bytes`, 256-byte aligned, until the next call with this slot. Grows, which waits for
 * the device, so sizes settle in the first steps; never while a graph is recorded. Out of memory
 * ends the rank. */
void *cuda_scratch(struct cuda_device *self, enum cuda_slot slot, size_t bytes);

/* memory_cuda.c: ops of memory and of graphs. */
void *cuda_memory_alloc(struct device *device, size_t bytes);
void cuda_memory_free(struct device *device, void *data, size_t bytes);
void cuda_zero(struct device *device, void *data, size_t bytes);
void cuda_copy(struct device *device, void *to, const void *from, size_t bytes);
void cuda_upload(struct device *device, void *to, const void *host, size_t bytes);
void cuda_download(struct device *device, void *host, const void *from, size_t bytes);
void *cuda_host_alloc(struct device *device, size_t bytes);
void cuda_host_free(struct device *device, void *data, size_t bytes);
void cuda_download_begin(struct device *device, void *host, const void *from, size_t bytes);
void cuda_download_wait(struct device *device);
void cuda_fetch(struct device *device, int window, void *to, const void *host, size_t bytes);
void cuda_fetched(struct device *device, int window);
void cuda_put(struct device *device, int window, void *host, const void *from, size_t bytes);
void cuda_window_settle(struct device *device);
void cuda_synchronize(struct device *device);
bool cuda_graph_begin(struct device *device, uint64_t key);
void cuda_graph_end(struct device *device);
void cuda_graph_forget(struct device *device);
/* Scratch, ring and graphs. Errors are of no more use: whatever the host wanted, it has. */
void cuda_memory_close(struct cuda_device *self);

/* ops_matrix_cuda.c */
void cuda_op_linear_forward(struct device *device, struct tensor y, struct tensor x,
                            struct tensor w, bool add);
void cuda_op_linear_backward_input(struct device *device, struct tensor dx, struct tensor dy,
                                   struct tensor w, bool add);
void cuda_op_linear_backward_weight(struct device *device, struct tensor dw, struct tensor dy,
                                    struct tensor x);
void cuda_op_grouped_forward(struct device *device, struct tensor y, struct tensor x, const void *w,
                             int64_t w_stride, const int64_t *offset, int64_t experts);
void cuda_op_grouped_backward_input(struct device *device, struct tensor dx, struct tensor dy,
                                    const void *w, int64_t w_stride, const int64_t *offset,
                                    int64_t experts);
void cuda_op_grouped_backward_weight(struct device *device, float *dw, int64_t w_stride,
                                     struct tensor dy, struct tensor x, const int64_t *offset,
                                     int64_t experts);
void cuda_op_attention_forward(struct device *device, void *o, float *lse, const void *q,
                               const void *k, const void *k_rope, const void *v,
                               const struct attention_shape *shape);
void cuda_op_attention_backward(struct device *device, void *dq, void *dk, void *dk_rope, void *dv,
                                const void *d_o, const void *o, const float *lse, const void *q,
                                const void *k, const void *k_rope, const void *v,
                                const struct attention_shape *shape);
void cuda_op_attention_decode(struct device *device, void *o, const void *q, const void *k_cache,
                              const void *v_cache, const int32_t *lengths,
                              const struct decode_shape *shape);
void cuda_op_mla_decode(struct device *device, void *o, const void *q, const void *w_kv_b,
                        const void *c_cache, const void *rope_cache, const int32_t *lengths,
                        const struct decode_shape *shape);
void cuda_op_loss_stats(struct device *device, double *stats, struct tensor logits,
                        const int32_t *labels, int64_t first);
void cuda_op_loss_gradient(struct device *device, double *total, struct tensor grad,
                           struct tensor logits, const struct loss_parts *parts,
                           const int32_t *labels, float loss_scale);
void cuda_op_cross_entropy(struct device *device, double *total, struct tensor dx, struct tensor dw,
                           struct tensor x, struct tensor w, const int32_t *labels,
                           float loss_scale);

/* ops_fp8_cuda.c */
extern const struct fp8_ops cuda_fp8_ops;
extern const struct fixed_ops cuda_fixed_ops;

/* ops_cuda.c */
extern const struct ops cuda_ops;

#endif
