/* cuda_ops: the CUDA device's own kernels, one launcher per op.
 *
 * The signatures are those of struct ops (kernels/ops.h says what each computes) with a stream in
 * place of the device. `stream` is a cudaStream_t. Tensors and arrays are device memory. Launchers
 * only enqueue: they never wait, allocate or copy, so that they can be captured in a graph; where
 * an op needs scratch or a value the CPU's op returns, the caller hands over device memory. Launch
 * errors stay in cudaGetLastError. Empty inputs launch nothing. Ids, rows and labels out of range
 * trap in the kernel, as the CPU asserts. From sm_80 on.
 *
 * Results: computed in f32, rounded once where the CPU rounds; sums run over fixed trees that
 * depend on the width (and on 16-byte alignment, which arena tensors always have) but not on the
 * number of rows; no floating-point atomics. Against the CPU only the order of sums, the
 * contraction of a * b
 * + c and the last bit of exp, log and cos may differ, and the payload of a NaN.
 */
#ifndef KERNELS_CUDA_CUDA_OPS_H
#define KERNELS_CUDA_CUDA_OPS_H

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/ops.h"

/* ---- embedding.cu ---- */
void cuda_embedding_forward(void *stream, struct tensor y, const int32_t *ids, struct tensor w);
size_t cuda_embedding_backward_scratch(int64_t tokens); /* bytes */
void cuda_embedding_backward(void *stream, struct tensor dw, const int32_t *ids, struct tensor dy,
                             void *scratch);

/* ---- norm.cu ---- */
void cuda_norm_forward(void *stream, struct tensor y, struct tensor sum, float *rstd,
                       struct tensor x, struct tensor delta, struct tensor w, float eps);
size_t cuda_norm_backward_scratch(int64_t rows, int64_t width); /* bytes */
void cuda_norm_backward(void *stream, struct tensor dx, struct tensor dw, struct tensor dy,
                        struct tensor x, const float *rstd, struct tensor w, void *scratch);

/* ---- rope.cu ---- */
void cuda_rope(void *stream, struct tensor x, const int32_t *positions, const float *table,
               struct rope_shape shape, bool inverse);

/* ---- attention.cu, attention_backward.cu ---- */
/* qk_dim and v_dim up to 256. Weights (and their gradients) are rounded to the dtype before they
 * multiply rows of it, so in bf16 results are less exact than the CPU's. */
void cuda_attention_forward(void *stream, void *o, float *lse, const void *q, const void *k,
                            const void *k_rope, const void *v, const struct attention_shape *shape);
size_t cuda_attention_backward_scratch(const struct attention_shape *shape); /* bytes */
void cuda_attention_backward(void *stream, void *dq, void *dk, void *dk_rope, void *dv,
                             const void *d_o, const void *o, const float *lse, const void *q,
                             const void *k, const void *k_rope, const void *v,
                             const struct attention_shape *shape, void *scratch);

/* ---- decode.cu, decode_latent.cu ---- */
size_t cuda_attention_decode_scratch(const struct decode_shape *shape); /* bytes */
void cuda_attention_decode(void *stream, void *o, const void *q, const void *k_cache,
                           const void *v_cache, const int32_t *lengths,
                           const struct decode_shape *shape, void *scratch);
size_t cuda_mla_decode_scratch(const struct decode_shape *shape); /* bytes */
void cuda_mla_decode(void *stream, void *o, const void *q, const void *w_kv_b, const void *c_cache,
                     const void *rope_cache, const int32_t *lengths,
                     const struct decode_shape *shape, void *scratch);

/* ---- router.cu, router_backward.cu ---- */
/* counts.routed is required. */
void cuda_router_forward(void *stream, int32_t *expert, float *weight, float *score, float *lse,
                         struct router_counts counts, const float *logits, const float *bias,
                         struct router_shape shape);
void cuda_router_backward(void *stream, float *dlogits, const float *dweight, const int32_t *expert,
                          const float *weight, const float *score, const float *logits,
                          const float *lse, const float *aux, float z_scale,
                          struct router_shape shape);
size_t cuda_router_sums_scratch(struct router_shape shape); /* bytes */
void cuda_router_sums(void *stream, double *sums, const float *score, struct router_shape shape,
                      void *scratch);

/* ---- permute.cu ---- */
void cuda_gather_rows(void *stream, struct tensor y, struct tensor x, const int32_t *row);
void cuda_scatter_rows(void *stream, struct tensor y, const void *x, int64_t x_stride,
                       const int32_t *row, int64_t rows);
void cuda_copy_columns(void *stream, struct tensor y, int64_t y_first, struct tensor x,
                       int64_t x_first, int64_t columns);
void cuda_combine_rows(void *stream, struct tensor y, struct tensor x, const int32_t *slot_row,
                       const float *weight, int64_t top_k);
void cuda_combine_rows_backward(void *stream, struct tensor dx, float *dweight, struct tensor dy,
                                struct tensor x, const int32_t *slot_row, const float *weight,
                                int64_t top_k);

/* ---- swiglu.cu ---- */
void cuda_swiglu_forward(void *stream, struct tensor h, struct tensor gate_up);
void cuda_swiglu_backward(void *stream, struct tensor dgate_up, struct tensor dh,
                          struct tensor gate_up);

/* ---- cross_entropy.cu ---- */
/* The rows between the head's products: logits f32 [rows, V] of a chunk; loss f64 [rows] = -log p
 * of the label, 0 where it is negative. grad [rows, V] f32 (may be the logits themselves) or bf16
 * (not their memory) = loss_scale * (p - onehot), 0 where the label is negative; data NULL: no
 * gradient.
 */
void cuda_cross_entropy_rows(void *stream, double *loss, struct tensor grad, struct tensor logits,
                             const int32_t *labels, float loss_scale);

/* ---- elementwise.cu ---- */
void cuda_add(void *stream, struct tensor y, struct tensor x);
void cuda_cast(void *stream, struct tensor y, struct tensor x);
void cuda_init_normal(void *stream, float *x, uint64_t key, uint64_t first, int64_t count,
                      float std);
void cuda_jitter(void *stream, struct tensor x, uint64_t key, uint64_t first, float eps);
/* *sum = (add ? *sum : 0) + the elements of x, in a fixed tree. */
void cuda_sum(void *stream, double *sum, const double *x, int64_t count, bool add);
size_t cuda_sum_squares_scratch(int64_t count); /* bytes */
void cuda_sum_squares(void *stream, double *sum, const float *x, int64_t count, void *scratch);

/* ---- optimizer.cu ---- */
void cuda_adamw(void *stream, float *param, void *m, void *v, void *out_bf16, const float *grad,
                int64_t count, struct adamw args);
void cuda_muon_momentum(void *stream, float *grad, void *m, int64_t count, struct muon args);
void cuda_muon_update(void *stream, float *param, void *out_bf16, const float *update,
                      int64_t count, struct muon args);
void cuda_ema(void *stream, float *ema, const float *x, int64_t count, double decay);

#ifdef __cplusplus
}
#endif

#endif
