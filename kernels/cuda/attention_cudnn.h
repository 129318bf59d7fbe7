/* attention_cudnn: the ops attention_forward and attention_backward by cuDNN's fused kernels.
 *
 * bf16 only; causal, window, grouped queries, document mask (`first`), strided rows without copies,
 * head dims up to 256 that are multiples of 8, sequences that are multiples of 128. On sm_90 all of
 * that; on other GPUs cuDNN takes less, wide heads and `first` backward above all.
 * Everything else, and whatever cuDNN itself refuses, is `false`: the caller has kernels of its
 * own. MLA's shared rope keys (rope_dim > 0) are put beside the others in scratch first, since
 * cuDNN wants whole keys; see cuda_attention_join_keys.
 *
 * The first use of a shape (its sizes, strides, window, with or without `first`; not the scale)
 * builds plans, 1 to 2 s of CPU time each for forward and backward. They are kept until close:
 * supports or scratch in time, and the step waits for none. Every other call only enqueues.
 *
 * Against the other devices: p and the gradient of the scores are rounded to bf16 before they are
 * multiplied. Gradients of the keys and values of a group are rounded to bf16 per query head, then
 * summed in f32, dk_rope likewise per kv head. cuDNN does not skip the tiles that `first` hides
 * whole, so with it the work is that of the causal mask.
 *
 * Deterministic: gradients of q are then sums in fixed order, else by atomics. The cost is memory,
 * 2 bytes a score, which is bounded by running heads in groups (cudnn_plan.h).
 *
 * A handle belongs to one GPU, the current one at open, and to one thread at a time.
 */
#ifndef KERNELS_CUDA_ATTENTION_CUDNN_H
#define KERNELS_CUDA_ATTENTION_CUDNN_H

#include "kernels/base/status.h"
#include "kernels/ops.h"

struct cudnn_attention;

/* Loads cuDNN. STATUS_RESOURCE: it is not there, too old, or has no GPU; the caller goes on
 * without. */
enum status cudnn_attention_open(struct cudnn_attention **attention, bool deterministic)
    __attribute__((warn_unused_result));
void cudnn_attention_close(struct cudnn_attention *attention); /* accepts NULL */

/* Bytes that a backward's buffers may take beyond whole keys, before the first shape; 1 GiB if
 * never called. */
void cudnn_attention_limit(struct cudnn_attention *attention, size_t bytes);

bool cudnn_attention_supports(struct cudnn_attention *attention,
                              const struct attention_shape *shape, bool backward);

/* Bytes of device memory that one call needs, 256-byte aligned: cuDNN's workspace and our own
 * buffers. Never 0, but for shapes that are not supported. */
size_t cudnn_attention_scratch(struct cudnn_attention *attention,
                               const struct attention_shape *shape, bool backward);

/* The arguments of the ops, device memory, on a cudaStream_t. False: not supported (a shape, or a
 * pointer that is not aligned to 16 bytes), or cuDNN failed; outputs hold garbage then. */
bool cudnn_attention_forward(struct cudnn_attention *attention, void *stream, void *o, float *lse,
                             const void *q, const void *k, const void *k_rope, const void *v,
                             const struct attention_shape *shape, void *scratch);
bool cudnn_attention_backward(struct cudnn_attention *attention, void *stream, void *dq, void *dk,
                              void *dk_rope, void *dv, const void *d_o, const void *o,
                              const float *lse, const void *q, const void *k, const void *k_rope,
                              const void *v, const struct attention_shape *shape, void *scratch);

#endif
