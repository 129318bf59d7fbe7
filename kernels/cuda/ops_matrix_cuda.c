/* Ops of the CUDA device that are matrix products at heart: dense and per expert, attention, the
 * head with its loss. */
#include <assert.h>

#include "kernels/cuda/cuda_device.h"

void cuda_op_linear_forward(struct device *device, struct tensor y, struct tensor x,
                            struct tensor w, bool add)
{
    struct cuda_device *self = cuda_begin(device, "linear_forward");
    if (!cublaslt_linear_forward(self->blas, self->stream, y, x, w, add)) {
        cuda_linear_forward(self->stream, y, x, w, add);
    }
    cuda_end(self);
}

void cuda_op_linear_backward_input(struct device *device, struct tensor dx, struct tensor dy,
                                   struct tensor w, bool add)
{
    struct cuda_device *self = cuda_begin(device, "linear_backward_input");
    if (!cublaslt_linear_backward_input(self->blas, self->stream, dx, dy, w, add)) {
        cuda_linear_backward_input(self->stream, dx, dy, w, add);
    }
    cuda_end(self);
}

void cuda_op_linear_backward_weight(struct device *device, struct tensor dw, struct tensor dy,
                                    struct tensor x)
{
    struct cuda_device *self = cuda_begin(device, "linear_backward_weight");
    if (!cublaslt_linear_backward_weight(self->blas, self->stream, dw, dy, x)) {
        cuda_linear_backward_weight(self->stream, dw, dy, x);
    }
    cuda_end(self);
}

void cuda_op_grouped_forward(struct device *device, struct tensor y, struct tensor x, const void *w,
                             int64_t w_stride, const int64_t *offset, int64_t experts)
{
    struct cuda_device *self = cuda_begin(device, "grouped_forward");
    cuda_grouped_forward(self->stream, y, x, w, w_stride, offset, experts);
    cuda_end(self);
}

void cuda_op_grouped_backward_input(struct device *device, struct tensor dx, struct tensor dy,
                                    const void *w, int64_t w_stride, const int64_t *offset,
                                    int64_t experts)
{
    struct cuda_device *self = cuda_begin(device, "grouped_backward_input");
    cuda_grouped_backward_input(self->stream, dx, dy, w, w_stride, offset, experts);
    cuda_end(self);
}

void cuda_op_grouped_backward_weight(struct device *device, float *dw, int64_t w_stride,
                                     struct tensor dy, struct tensor x, const int64_t *offset,
                                     int64_t experts)
{
    struct cuda_device *self = cuda_begin(device, "grouped_backward_weight");
    cuda_grouped_backward_weight(self->stream, dw, w_stride, dy, x, offset, experts);
    cuda_end(self);
}

void cuda_op_attention_forward(struct device *device, void *o, float *lse, const void *q,
                               const void *k, const void *k_rope, const void *v,
                               const struct attention_shape *shape)
{
    struct cuda_device *self = cuda_begin(device, "attention_forward");
    bool done = false;
    if (self->cudnn != NULL && cudnn_attention_supports(self->cudnn, shape, false)) {
        const size_t bytes = cudnn_attention_scratch(self->cudnn, shape, false);
        void *scratch = cuda_scratch(self, CUDA_SLOT_OP, bytes);
        done = cudnn_attention_forward(self->cudnn, self->stream, o, lse, q, k, k_rope, v, shape,
                                       scratch);
    }
    if (!done) {
        cuda_attention_forward(self->stream, o, lse, q, k, k_rope, v, shape);
    }
    cuda_end(self);
}

void cuda_op_attention_backward(struct device *device, void *dq, void *dk, void *dk_rope, void *dv,
                                const void *d_o, const void *o, const float *lse, const void *q,
                                const void *k, const void *k_rope, const void *v,
                                const struct attention_shape *shape)
{
    struct cuda_device *self = cuda_begin(device, "attention_backward");
    bool done = false;
    if (self->cudnn != NULL && cudnn_attention_supports(self->cudnn, shape, true)) {
        const size_t bytes = cudnn_attention_scratch(self->cudnn, shape, true);
        void *scratch = cuda_scratch(self, CUDA_SLOT_OP, bytes);
        done = cudnn_attention_backward(self->cudnn, self->stream, dq, dk, dk_rope, dv, d_o, o, lse,
                                        q, k, k_rope, v, shape, scratch);
    }
    if (!done) {
        void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_attention_backward_scratch(shape));
        cuda_attention_backward(self->stream, dq, dk, dk_rope, dv, d_o, o, lse, q, k, k_rope, v,
                                shape, scratch);
    }
    cuda_end(self);
}

void cuda_op_attention_decode(struct device *device, void *o, const void *q, const void *k_cache,
                              const void *v_cache, const int32_t *lengths,
                              const struct decode_shape *shape)
{
    struct cuda_device *self = cuda_begin(device, "attention_decode");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_attention_decode_scratch(shape));
    cuda_attention_decode(self->stream, o, q, k_cache, v_cache, lengths, shape, scratch);
    cuda_end(self);
}

void cuda_op_mla_decode(struct device *device, void *o, const void *q, const void *w_kv_b,
                        const void *c_cache, const void *rope_cache, const int32_t *lengths,
                        const struct decode_shape *shape)
{
    struct cuda_device *self = cuda_begin(device, "mla_decode");
    void *scratch = cuda_scratch(self, CUDA_SLOT_OP, cuda_mla_decode_scratch(shape));
    cuda_mla_decode(self->stream, o, q, w_kv_b, c_cache, rope_cache, lengths, shape, scratch);
    cuda_end(self);
}

/* Rows of logits that fit LOGITS_BYTES, a multiple of ROW_STEP: many, for every chunk reads and
 * writes the whole of dw. The same for every call of a model, so sums repeat. */
static int64_t chunk_rows(int64_t rows, int64_t vocab)
{
    enum { LOGITS_BYTES = 1 << 30, ROW_STEP = 128 };
    const int64_t fit = LOGITS_BYTES / (vocab * (int64_t)sizeof(float)) / ROW_STEP * ROW_STEP;
    const int64_t chunk = fit > ROW_STEP ? fit : ROW_STEP;
    return rows < chunk ? rows : chunk;
}

/* bf16 gradients of the logits stand beside the logits, f32 ones in their place. */
void cuda_op_cross_entropy(struct device *device, double *total, struct tensor dx, struct tensor dw,
                           struct tensor x, struct tensor w, const int32_t *labels,
                           float loss_scale)
{
    const int64_t rows = x.dim[0], vocab = w.dim[0], chunk = chunk_rows(rows, vocab);
    const size_t losses = ((size_t)chunk * sizeof(double) + 255) / 256 * 256;
    const size_t cells = ((size_t)chunk * (size_t)vocab + 63) / 64 * 64;
    const bool narrow = dx.data != NULL && x.dtype == DTYPE_BF16;
    struct cuda_device *self = cuda_begin(device, "cross_entropy");
    char *scratch =
        cuda_scratch(self, CUDA_SLOT_LOSS, losses + cells * (sizeof(float) + (narrow ? 2 : 0)));
    double *loss = (double *)(void *)scratch;
    float *logits = (float *)(void *)(scratch + losses);
    assert(w.dim[1] == x.dim[1]);
    for (int64_t first = 0; first < rows; first += chunk) {
        const int64_t count = rows - first < chunk ? rows - first : chunk;
        const struct tensor part = tensor_2d(logits, DTYPE_F32, count, vocab),
                            own = tensor_rows(&x, first, count);
        struct tensor grad = narrow ? tensor_2d(logits + cells, DTYPE_BF16, count, vocab) : part;
        if (dx.data == NULL) {
            grad.data = NULL;
        }
        cuda_op_linear_forward(device, part, own, w, false);
        cuda_cross_entropy_rows(self->stream, loss, grad, part, labels + first, loss_scale);
        cuda_sum(self->stream, total, loss, count, true);
        if (dx.data != NULL) {
            cuda_op_linear_backward_input(device, tensor_rows(&dx, first, count), grad, w, false);
            cuda_op_linear_backward_weight(device, dw, grad, own);
        }
    }
    cuda_end(self);
}

void cuda_op_loss_stats(struct device *device, double *stats, struct tensor logits,
                        const int32_t *labels, int64_t first)
{
    struct cuda_device *self = cuda_begin(device, "loss_stats");
    cuda_loss_stats(self->stream, stats, logits, labels, first);
    cuda_end(self);
}

void cuda_op_loss_gradient(struct device *device, double *total, struct tensor grad,
                           struct tensor logits, const struct loss_parts *parts,
                           const int32_t *labels, float loss_scale)
{
    const int64_t rows = logits.dim[0];
    struct cuda_device *self = cuda_begin(device, "loss_gradient");
    double *loss = cuda_scratch(self, CUDA_SLOT_LOSS, (size_t)rows * sizeof *loss);
    cuda_loss_gradient(self->stream, loss, grad, logits, parts, labels, loss_scale);
    if (total != NULL) {
        cuda_sum(self->stream, total, loss, rows, true);
    }
    cuda_end(self);
}
