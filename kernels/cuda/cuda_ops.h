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

/* ---- attention_layout.cu ---- */
/* Whole keys for kernels that cannot take MLA's in parts; bf16, everything 16-byte aligned. keys
 * [N,G,qk_dim] = [k: qk_dim - rope_dim | k_rope]. */
void cuda_attention_join_keys(void *stream, void *keys, const void *k, const void *k_rope,
                              const struct attention_shape *shape);
/* Of the gradient of such keys: dk the own parts, dk_rope the rope parts summed in f32 in the order
 * of the heads, rounded once. Strides as in the shape. */
void cuda_attention_split_keys(void *stream, void *dk, void *dk_rope, const void *dkeys,
                               const struct attention_shape *shape);

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

/* ---- balance.cu ---- */
void cuda_router_count(void *stream, int64_t *count, const int64_t *routed, int64_t rows,
                       int64_t experts);
void cuda_router_even(void *stream, int32_t *expert, float *weight, struct router_counts counts,
                      struct router_shape shape);
void cuda_balance(void *stream, double *loss, float *gradient, const double *sums,
                  struct router_counts counts, const int64_t *chosen, const float *lse,
                  struct router_shape shape, const struct balance_terms *terms);

/* ---- expert.cu ---- */
size_t cuda_expert_sort_scratch(int64_t slots, int64_t experts); /* bytes */
void cuda_expert_sort(void *stream, int64_t *offset, int32_t *token, int32_t *slot_row,
                      const int32_t *expert, int64_t slots, int64_t top_k, int64_t experts,
                      void *scratch);
size_t cuda_expert_regroup_scratch(int64_t local, int64_t ranks); /* bytes */
void cuda_expert_regroup(void *stream, int32_t *regroup, int32_t *ungroup, int64_t *offset,
                         const int64_t *taken, int64_t local, int64_t ranks, void *scratch);
size_t cuda_expert_unique_scratch(struct dispatch_shape shape); /* bytes */
void cuda_expert_unique(void *stream, int64_t *begin, int32_t *token, int32_t *place,
                        const int32_t *expert, const int32_t *slot_row, struct dispatch_shape shape,
                        void *scratch);
void cuda_expert_fan_out(void *stream, int32_t *fan, const int32_t *ungroup, const int32_t *place,
                         const int64_t *arrived, const int64_t *unique, int64_t ranks,
                         int64_t rows);
void cuda_expert_relay(void *stream, int32_t *relay, const int64_t *begin, const int32_t *token,
                       const int32_t *place, const int32_t *expert, const int32_t *slot_row,
                       struct dispatch_shape shape);
void cuda_expert_pad(void *stream, int32_t *message, int32_t *token, int32_t *row, int32_t *back,
                     const int64_t *offset, const int64_t *begin, const int32_t *unique_token,
                     const int32_t *place, struct padded_shape shape);
size_t cuda_expert_unpad_scratch(struct padded_shape shape); /* bytes */
void cuda_expert_unpad(void *stream, int32_t *regroup, int32_t *ungroup, int32_t *fan,
                       int64_t *offset, const int32_t *message, struct padded_shape shape,
                       void *scratch);
void cuda_expert_drop(void *stream, int32_t *kept, const int32_t *expert, const float *weight,
                      int64_t slots, int64_t experts, int64_t groups, int64_t capacity);
void cuda_expert_spread(void *stream, int32_t *spread, float *spread_weight, const int32_t *expert,
                        const float *weight, int64_t slots, int64_t slices, int64_t local);
void cuda_expert_fold(void *stream, float *weight, const float *spread_weight, int64_t slots,
                      int64_t slices);

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
void cuda_swiglu_backward(void *stream, struct tensor dgate_up, struct tensor h, struct tensor dh,
                          struct tensor gate_up);

/* ---- cross_entropy.cu ---- */
/* The rows between the head's products: logits f32 [rows, V] of a chunk; loss f64 [rows] = -log p
 * of the label, 0 where it is negative. grad [rows, V] f32 (may be the logits themselves) or bf16
 * (not their memory) = loss_scale * (p - onehot), 0 where the label is negative; data NULL: no
 * gradient.
 */
void cuda_cross_entropy_rows(void *stream, double *loss, struct tensor grad, struct tensor logits,
                             const int32_t *labels, float loss_scale);
/* Of columns that are a part of the vocabulary (ops.h: loss_stats, which leaves the logits as they
 * are, and loss_gradient); loss f64 [rows]. */
void cuda_loss_stats(void *stream, double *stats, struct tensor logits, const int32_t *labels,
                     int64_t first);
void cuda_loss_gradient(void *stream, double *loss, struct tensor grad, struct tensor logits,
                        const struct loss_parts *parts, const int32_t *labels, float loss_scale);

/* ---- gemm.cu, gemm_f32.cu, gemm_mma.cu ---- */
/* offset: device memory, read by the kernels; x.dim[0] (dy.dim[0]) is what offset[experts] can be
 * at most. Rows past offset[experts] are not written. Products of two bf16 operands run on tensor
 * cores, others on CUDA cores in f32. */
void cuda_linear_forward(void *stream, struct tensor y, struct tensor x, struct tensor w, bool add);
void cuda_linear_backward_input(void *stream, struct tensor dx, struct tensor dy, struct tensor w,
                                bool add);
void cuda_linear_backward_weight(void *stream, struct tensor dw, struct tensor dy, struct tensor x);
void cuda_grouped_forward(void *stream, struct tensor y, struct tensor x, const void *w,
                          int64_t w_stride, const int64_t *offset, int64_t experts);
void cuda_grouped_backward_input(void *stream, struct tensor dx, struct tensor dy, const void *w,
                                 int64_t w_stride, const int64_t *offset, int64_t experts);
void cuda_grouped_backward_weight(void *stream, float *dw, int64_t w_stride, struct tensor dy,
                                  struct tensor x, const int64_t *offset, int64_t experts);
void cuda_router_logits(void *stream, struct tensor logits, struct tensor x, struct tensor w);
void cuda_router_logits_backward(void *stream, struct tensor dx, struct tensor dw,
                                 struct tensor dlogits, struct tensor x, struct tensor w);

/* ---- elementwise.cu ---- */
void cuda_fill(void *stream, float *x, int64_t count, float value);
void cuda_add(void *stream, struct tensor y, struct tensor x);
void cuda_cast(void *stream, struct tensor y, struct tensor x);
void cuda_init_normal(void *stream, float *x, uint64_t key, uint64_t first, int64_t count,
                      float std);
void cuda_jitter(void *stream, struct tensor x, uint64_t key, uint64_t first, float eps);
/* *sum = (add ? *sum : 0) + the elements of x, in a fixed tree. cuda_sum_squares adds. */
void cuda_sum(void *stream, double *sum, const double *x, int64_t count, bool add);
size_t cuda_sum_squares_scratch(int64_t count); /* bytes */
void cuda_sum_squares(void *stream, double *sum, const float *x, int64_t count, void *scratch);

/* ---- optimizer.cu ---- */
/* All pieces in one launch. piece [pieces]: device memory; part [pieces + 1], device memory: the
 * sum of cuda_adamw_parts(count) of the pieces before each, the last one `parts`. */
int64_t cuda_adamw_parts(int64_t count);
void cuda_adamw(void *stream, const struct adamw_piece *piece, const int64_t *part, int64_t pieces,
                int64_t parts, struct adamw args);
void cuda_muon_momentum(void *stream, float *grad, void *m, int64_t count, struct muon args);
size_t cuda_muon_orthogonalize_scratch(int64_t rows, int64_t cols); /* bytes; muon.cu */
void cuda_muon_orthogonalize(void *stream, struct tensor x, void *scratch);
void cuda_muon_update(void *stream, float *param, void *out_bf16, const float *update,
                      int64_t count, struct muon args);
void cuda_ema(void *stream, float *ema, const float *x, int64_t count, double decay);

#ifdef __cplusplus
}
#endif

#endif
