/* cpu: private to the CPU device: its state and its ops, one function per field of struct ops (see
 * kernels/ops.h). */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/device_kind.h"

/* Hot loops are compiled for several x86 levels; the loader picks one. Sanitizers don't survive its
 * resolver: there loops are of the oldest level (CPU_CLONED 0), without multiply-adds. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__x86_64__)
#define CPU_CLONES
enum { CPU_CLONED = 0 };
#else
enum { CPU_CLONED = 1 };
#define CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif

enum cpu_slot {
    CPU_SLOT_BATCH,    /* the products of one gemm_run, */
    CPU_SLOT_PLAN,     /* how our own kernel goes about them, */
    CPU_SLOT_WIDE,     /* which of them the wide kernel takes, */
    CPU_SLOT_PRODUCTS, /* its tasks, */
    CPU_SLOT_GEMM,     /* and packed operands */
    CPU_SLOT_SHARE,    /* shares of a loop's tasks (share.h) */
    CPU_SLOT_ATTENTION,
    CPU_SLOT_LOSS,
    CPU_SLOT_ROUTER, /* tokens by expert, and rounded gradients of logits */
    CPU_SLOT_FP8,    /* operands of FP8 products as numbers */
    CPU_SLOT_OTHER,
    CPU_SLOTS
};

/* How attention multiplies: tile.h, attention_wide.h, and that by pairs of bf16 where the dtype is.
 */
enum cpu_attention { ATTENTION_NARROW, ATTENTION_WIDE, ATTENTION_PAIRS };

/* Which products go by gemm_wide.h, where it takes them: gradients of weights, those whose sizes
 * vary, those with vast weights, those of f32 by bf16 (gemm.h), and those of bf16, by pairs unless
 * they have few columns, or all of them, widened to f32. */
enum cpu_wide { CPU_WIDE_OFF, CPU_WIDE_PAIRS, CPU_WIDE_WIDENED };

struct cpu_device {
    struct device head;
    struct onednn *onednn; /* owned; NULL: products by our own kernels */
    enum cpu_wide wide;
    enum cpu_attention attention;
    bool vectors; /* loops by AVX-512's intrinsics: it is there, and not capped */
    struct {
        void *data; /* owned */
        size_t bytes;
    } scratch[CPU_SLOTS]; /* grow to powers of two, then stay */
};

/* The ops of this folder are only ever handed a CPU device. */
static inline struct cpu_device *cpu_device_of(struct device *device)
{
    return (struct cpu_device *)device;
}

/* A power of two that holds `bytes`, at least a page: what scratch grows to. Sizes that follow the
 * routing differ from step to step, and this way settle in the first few; memory beyond what is
 * used is never touched. */
size_t cpu_scratch_bytes(size_t bytes);

/* At least `bytes` of scratch, 64-byte aligned; each op uses a slot its callees don't. Out of
 * memory ends the process: sizes follow from the layout that was reserved, so this is as good as a
 * bug. */
void *cpu_scratch(struct device *device, enum cpu_slot slot, size_t bytes);

void *cpu_memory_alloc(struct device *, size_t bytes);
void cpu_memory_free(struct device *, void *data, size_t bytes);
void cpu_zero(struct device *, void *data, size_t bytes);
void cpu_fill(struct device *, float *x, int64_t count, float value);
void cpu_copy(struct device *, void *to, const void *from, size_t bytes);
void cpu_fetch(struct device *, int window, void *to, const void *host, size_t bytes);
void cpu_fetched(struct device *, int window);
void cpu_put(struct device *, int window, void *host, const void *from, size_t bytes);
void cpu_synchronize(struct device *);
bool cpu_graph_begin(struct device *, uint64_t key);
void cpu_graph_end(struct device *);
void cpu_graph_forget(struct device *);
void cpu_embedding_forward(struct device *, struct tensor y, const int32_t *ids, struct tensor w);
void cpu_embedding_backward(struct device *, struct tensor dw, const int32_t *ids,
                            struct tensor dy);
void cpu_norm_forward(struct device *, struct tensor y, struct tensor sum, float *rstd,
                      struct tensor x, struct tensor delta, struct tensor w, float eps);
void cpu_norm_backward(struct device *, struct tensor dx, struct tensor dw, struct tensor dy,
                       struct tensor x, const float *rstd, struct tensor w);
void cpu_linear_forward(struct device *, struct tensor y, struct tensor x, struct tensor w,
                        bool add);
void cpu_linear_backward_input(struct device *, struct tensor dx, struct tensor dy, struct tensor w,
                               bool add);
void cpu_linear_backward_weight(struct device *, struct tensor dw, struct tensor dy,
                                struct tensor x);
void cpu_rope(struct device *, struct tensor x, const int32_t *positions, const float *table,
              struct rope_shape shape, bool inverse);
void cpu_attention_forward(struct device *, void *o, float *lse, const void *q, const void *k,
                           const void *k_rope, const void *v, const struct attention_shape *shape);
void cpu_attention_backward(struct device *, void *dq, void *dk, void *dk_rope, void *dv,
                            const void *d_o, const void *o, const float *lse, const void *q,
                            const void *k, const void *k_rope, const void *v,
                            const struct attention_shape *shape);
void cpu_attention_decode(struct device *, void *o, const void *q, const void *k_cache,
                          const void *v_cache, const int32_t *lengths,
                          const struct decode_shape *shape);
void cpu_mla_decode(struct device *, void *o, const void *q, const void *w_kv_b,
                    const void *c_cache, const void *rope_cache, const int32_t *lengths,
                    const struct decode_shape *shape);
void cpu_router_logits(struct device *, struct tensor logits, struct tensor x, struct tensor w);
void cpu_router_logits_backward(struct device *, struct tensor dx, struct tensor dw,
                                struct tensor dlogits, struct tensor x, struct tensor w,
                                struct router_chosen chosen);
void cpu_router_forward(struct device *, int32_t *expert, float *weight, float *score, float *lse,
                        struct router_counts counts, const float *logits, const float *bias,
                        struct router_shape shape);
void cpu_router_backward(struct device *, float *dlogits, const float *dweight,
                         const int32_t *expert, const float *weight, const float *score,
                         const float *logits, const float *lse, const float *aux, float z_scale,
                         struct router_shape shape);
void cpu_router_sums(struct device *, double *sums, const float *score, struct router_shape shape);
void cpu_router_count(struct device *, int64_t *count, const int64_t *routed, int64_t rows,
                      int64_t experts);
void cpu_router_even(struct device *, int32_t *expert, float *weight, struct router_counts counts,
                     struct router_shape shape);
void cpu_balance(struct device *, double *loss, float *gradient, const double *sums,
                 struct router_counts counts, const int64_t *chosen, const float *lse,
                 struct router_shape shape, const struct balance_terms *terms);
void cpu_expert_sort(struct device *, int64_t *offset, int32_t *token, int32_t *slot_row,
                     const int32_t *expert, int64_t slots, int64_t top_k, int64_t experts);
void cpu_expert_regroup(struct device *, int32_t *regroup, int32_t *ungroup, int64_t *offset,
                        const int64_t *taken, int64_t local, int64_t ranks);
void cpu_expert_unique(struct device *, int64_t *begin, int32_t *token, int32_t *place,
                       const int32_t *expert, const int32_t *slot_row, struct dispatch_shape shape);
void cpu_expert_relay(struct device *, int32_t *relay, const int64_t *begin, const int32_t *token,
                      const int32_t *place, const int32_t *expert, const int32_t *slot_row,
                      struct dispatch_shape shape);
void cpu_expert_fan_out(struct device *, int32_t *fan, const int32_t *ungroup, const int32_t *place,
                        const int64_t *arrived, const int64_t *unique, int64_t ranks, int64_t rows);
void cpu_expert_pad(struct device *, int32_t *message, int32_t *token, int32_t *row, int32_t *back,
                    const int64_t *offset, const int64_t *begin, const int32_t *unique_token,
                    const int32_t *place, const struct padded_shape *shape);
void cpu_expert_unpad(struct device *, int32_t *regroup, int32_t *ungroup, int32_t *fan,
                      int64_t *offset, const int32_t *message, const struct padded_shape *shape);
void cpu_expert_drop(struct device *, int32_t *kept, const int32_t *expert, const float *weight,
                     int64_t slots, int64_t experts, int64_t groups, int64_t capacity);
void cpu_expert_spread(struct device *, int32_t *spread, float *spread_weight,
                       const int32_t *expert, const float *weight, int64_t slots, int64_t slices,
                       int64_t local);
void cpu_expert_fold(struct device *, float *weight, const float *spread_weight, int64_t slots,
                     int64_t slices);
void cpu_gather_rows(struct device *, struct tensor y, struct tensor x, const int32_t *row);
void cpu_scatter_rows(struct device *, struct tensor y, const void *x, int64_t x_stride,
                      const int32_t *row, int64_t rows);
void cpu_combine_rows(struct device *, struct tensor y, struct tensor x, const int32_t *slot_row,
                      const float *weight, int64_t top_k);
void cpu_combine_rows_backward(struct device *, struct tensor dx, float *dweight, struct tensor dy,
                               struct tensor x, const int32_t *slot_row, const float *weight,
                               int64_t top_k);
void cpu_grouped_forward(struct device *, struct tensor y, struct tensor x, const void *w,
                         int64_t w_stride, const int64_t *offset, int64_t experts);
void cpu_grouped_backward_input(struct device *, struct tensor dx, struct tensor dy, const void *w,
                                int64_t w_stride, const int64_t *offset, int64_t experts);
void cpu_grouped_backward_weight(struct device *, float *dw, int64_t w_stride, struct tensor dy,
                                 struct tensor x, const int64_t *offset, int64_t experts);
void cpu_grouped_first_weight(struct device *, float *dw, int64_t w_stride, struct tensor dy,
                              struct tensor x, const int64_t *offset, int64_t experts);
void cpu_swiglu_forward(struct device *, struct tensor h, struct tensor gate_up);
void cpu_swiglu_backward(struct device *, struct tensor dgate_up, struct tensor h, struct tensor dh,
                         struct tensor gate_up);
void cpu_cross_entropy(struct device *, double *loss, struct tensor dx, struct tensor dw,
                       struct tensor x, struct tensor w, const int32_t *labels, float loss_scale);
void cpu_loss_stats(struct device *, double *stats, struct tensor logits, const int32_t *labels,
                    int64_t first);
void cpu_loss_gradient(struct device *, double *loss, struct tensor grad, struct tensor logits,
                       const struct loss_parts *parts, const int32_t *labels, float loss_scale);
void cpu_jitter(struct device *, struct tensor x, uint64_t key, uint64_t first, float eps);
void cpu_init_normal(struct device *, float *x, uint64_t key, uint64_t first, int64_t count,
                     float std);
void cpu_add(struct device *, struct tensor y, struct tensor x);
void cpu_copy_columns(struct device *, struct tensor y, int64_t y_first, struct tensor x,
                      int64_t x_first, int64_t columns);
void cpu_cast(struct device *, struct tensor y, struct tensor x);
void cpu_sum_squares(struct device *, double *sum, const float *x, int64_t count);
void cpu_adamw(struct device *, const struct adamw_piece *piece, int64_t pieces, struct adamw args);
void cpu_muon_momentum(struct device *, float *grad, void *m, int64_t count, struct muon args);
void cpu_muon_orthogonalize(struct device *, struct tensor x, float *scratch);
void cpu_muon_update(struct device *, float *param, void *out_bf16, const float *update,
                     int64_t count, struct muon args);
void cpu_ema(struct device *, float *ema, const float *x, int64_t count, double decay);

/* Pieces of ops that the FP8 ops share: the same compiled code gives the same bits, and so does
 * rows_wide.h, by which the ops themselves go where they can. */
enum { NORM_MAX_WIDTH = 32768, CPU_COMBINE_PART = 512 };
struct norm_row {
    struct tensor x, delta, sum; /* of norm_forward */
    float eps;
    enum dtype dtype; /* of y */
};
/* Row n: y[width] before it is rounded; row[width] scratch. Returns its rstd. */
float cpu_norm_row(float *y, float *row, const struct norm_row *from, const float *w, int64_t n);
/* vectors: as the device has it. */
void cpu_swiglu_forward_part(bool vectors, float *h, const float *gate, const float *up,
                             int64_t count);
void cpu_swiglu_backward_part(bool vectors, float *dgate, float *dup, float *h, const float *dh,
                              const float *gate, const float *up, int64_t count);
/* Of at most CPU_COMBINE_PART elements, a row's parts in ascending order. */
float cpu_combine_backward_part(float *out, const float *dy, const float *x, float weight,
                                int64_t count);

extern const struct fp8_ops cpu_fp8_ops;
extern const struct fixed_ops cpu_fixed_ops;
/* fixed_ops.decode of a part, by one thread. */
void cpu_fixed_decode(float *out, const int64_t *sum, int64_t count, float quantum);

/* device_ceilings. */
void cpu_ceilings(struct device *device, enum dtype dtype, struct device_ceilings *out);

#endif
