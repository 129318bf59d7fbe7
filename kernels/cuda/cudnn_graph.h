/* cudnn_graph: attention forward and backward as cuDNN operation graphs, down to execution plans.
 *
 * The graphs are FlashAttention spelled out (Dao et al. 2022): matmul, scale, masks, softmax,
 * matmul, with [B,H,T,T] intermediates that exist on paper only; cuDNN recognises the pattern and
 * has one kernel for it. It recognises exactly these orders of operations, those of NVIDIA's C++
 * frontend: another that means the same is refused, or crashes inside cuDNN. tests/cudnn builds
 * every kind of graph without a GPU.
 */
#ifndef KERNELS_CUDA_CUDNN_GRAPH_H
#define KERNELS_CUDA_CUDNN_GRAPH_H

#include "kernels/cuda/cudnn_api.h"
#include "kernels/ops.h"

/* What a run binds to memory: the ids of the graphs' tensors. Strides as in struct attention_shape.
 * Scalars are host memory that cuDNN reads during the call. */
enum cudnn_operand {
    OPERAND_Q = 1,
    OPERAND_K,
    OPERAND_V,
    OPERAND_O,
    OPERAND_LSE,   /* f32 [B,H,T] */
    OPERAND_FIRST, /* int32 [B,T], where the shape has `first` */
    OPERAND_D_O,
    OPERAND_DQ,
    OPERAND_DK,
    OPERAND_DV,
    OPERAND_SUMS,            /* f32 [B,H,T], written: sum of d_o * o */
    OPERAND_ACCUMULATOR,     /* f32 [B,H,T,qk_dim], zeroed by the caller; not deterministic only */
    OPERAND_SCALE,           /* f32 scalar */
    OPERAND_ONE,             /* f32 scalar 1; backward only */
    OPERAND_WINDOW,          /* f32 scalar, where the shape has a window */
    OPERAND_HIDDEN_DOCUMENT, /* f32 scalars -infinity, one for each mask there is */
    OPERAND_HIDDEN_FUTURE,
    OPERAND_HIDDEN_WINDOW,
    OPERAND_COUNT
};

/* One run. The shape's keys are whole (rope_dim 0); of `first` only whether it is NULL counts. */
struct cudnn_problem {
    struct attention_shape shape;
    bool backward;
    bool deterministic; /* backward: dq without atomics, at B*H*T*T*2 bytes of workspace */
};

/* Where plans are to run: a handle, or the properties of a device that need not be there. */
struct cudnn_target {
    const struct cudnn_api *api;         /* borrowed */
    cudnnHandle_t handle;                /* borrowed, or NULL */
    cudnnBackendDescriptor_t properties; /* borrowed, or NULL */
};

enum { CUDNN_DESCRIPTORS = 192 };

struct cudnn_plan {
    const struct cudnn_api *api;                             /* borrowed */
    cudnnBackendDescriptor_t descriptors[CUDNN_DESCRIPTORS]; /* owned, in order of creation */
    int count;
    cudnnBackendDescriptor_t plan; /* one of them */
    int64_t workspace_bytes;
    int64_t engines;             /* that cuDNN offered */
    bool operand[OPERAND_COUNT]; /* bound by a run */
    const char *failed;          /* what cuDNN refused first, or NULL */
    cudnnStatus_t status;        /* with which */
};

/* Builds graph and plan; 1 to 2 s of CPU time. False: cuDNN has none, `failed` says why. Free
 * in either case. */
bool cudnn_plan_build(struct cudnn_plan *plan, const struct cudnn_target *target,
                      const struct cudnn_problem *problem);
void cudnn_plan_free(struct cudnn_plan *plan);

#endif
