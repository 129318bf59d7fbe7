/* attention_cudnn of a build without cuDNN's headers: refuses. */
#include "kernels/cuda/attention_cudnn.h"

#include <assert.h>

enum status cudnn_attention_open(struct cudnn_attention **attention, bool deterministic)
{
    (void)deterministic;
    *attention = NULL;
    return status_fail(STATUS_RESOURCE, "cuDNN is not used: built without its header, cudnn.h");
}

void cudnn_attention_close(struct cudnn_attention *attention)
{
    assert(attention == NULL);
}

void cudnn_attention_limit(struct cudnn_attention *attention, size_t bytes)
{
    (void)attention, (void)bytes;
}

bool cudnn_attention_supports(struct cudnn_attention *attention,
                              const struct attention_shape *shape, bool backward)
{
    (void)attention, (void)shape, (void)backward;
    return false;
}

size_t cudnn_attention_scratch(struct cudnn_attention *attention,
                               const struct attention_shape *shape, bool backward)
{
    (void)attention, (void)shape, (void)backward;
    return 0;
}

bool cudnn_attention_forward(struct cudnn_attention *attention, void *stream, void *o, float *lse,
                             const void *q, const void *k, const void *k_rope, const void *v,
                             const struct attention_shape *shape, void *scratch)
{
    (void)attention, (void)stream, (void)o, (void)lse, (void)q, (void)k, (void)k_rope;
    (void)v, (void)shape, (void)scratch;
    return false;
}

bool cudnn_attention_backward(struct cudnn_attention *attention, void *stream, void *dq, void *dk,
                              void *dk_rope, void *dv, const void *d_o, const void *o,
                              const float *lse, const void *q, const void *k, const void *k_rope,
                              const void *v, const struct attention_shape *shape, void *scratch)
{
    (void)attention, (void)stream, (void)dq, (void)dk, (void)dk_rope, (void)dv, (void)d_o;
    (void)o, (void)lse, (void)q, (void)k, (void)k_rope, (void)v, (void)shape, (void)scratch;
    return false;
}
