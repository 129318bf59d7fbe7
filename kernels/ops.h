/* ops: what a device can do. One table per device; the trainer never asks which one it has.
 *
 * An op is a stage a device may want to fuse whole. Argument order: device, outputs, inputs, sizes,
 * scalars. Every tensor and array is memory of the device (on the CPU: the host's), unless its
 * comment says host. Ops run in the order they are called, after the call where the device can:
 * only download and synchronize wait. Tensors are contiguous row-major views. "act" below means the
 * activation dtype, f32 or bf16; weights have the same dtype; gradients of weights are always f32.
 * Backward mirrors forward: `dx` overwrites unless the comment says "adds", `dw` always adds.
 * Shapes are checked once on entry (assert: they are our own bug). Results never depend on the
 * number of threads, and, where device_info says batch_invariant, a row's result never on the other
 * rows of a call.
 *
 * Letters: B batch, T sequence, N = B*T tokens, C hidden, H query heads, G key/value heads, D head
 * dim, V vocab, E experts, K top-k, F expert width, R rows (token copies) in expert order.
 */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include <stdint.h>

#include "kernels/base/tensor.h"

struct device; /* opaque: threads, scratch, cached primitives; see kernels/device.h */

/* Attention over q, k, v that live in rows of possibly wider tensors. Causal always. */
struct attention_shape {
    int64_t batch;         /* B samples, attended separately */
    int64_t sequence;      /* T */
    int64_t heads;         /* H query heads; head h reads key/value head h / (H / kv_heads) */
    int64_t kv_heads;      /* G */
    int64_t qk_dim, v_dim; /* elements per head; they may differ (MLA) */
    int64_t q_stride, k_stride, v_stride, o_stride; /* elements from one token's row to the next */
    int64_t k_head_stride, v_head_stride; /* elements from one kv head to the next inside a row */
    int64_t rope_dim;      /* 0: keys are whole in k. Else a key is [k: qk_dim - rope_dim | k_rope:
                              rope_dim]: all heads share the rope part (MLA), which is never copied */
    int64_t k_rope_stride; /* elements from one token's row of k_rope to the next */
    int64_t window;        /* 0 = none; else token t sees (t - window, t] */
    float scale;           /* of q.k */
    const int32_t *first;  /* [N] first visible position (within the sample) of each token, never
                              falling along a sample, or NULL for 0: document mask */
    enum dtype dtype;      /* of q, k, v, o and their gradients */
    /* A part of a longer attention; keys 0: queries and keys are the same tokens. Else a sample has
     * `keys` keys and values, neighbours in their sequence, of which `before` tokens come before
     * the first; query t stands where key ahead + t does or would. Results are f32 then, o and dq
     * in rows of H*v_dim and H*qk_dim whatever the strides: partial ones, which add up over the
     * parts. */
    int64_t keys, ahead, before;
    bool merges; /* forward: o and lse hold what came of other keys; else of none so far */
};

/* Attention of one new token per sequence over a cache of the tokens before it. */
struct decode_shape {
    int64_t batch;              /* B sequences */
    int64_t heads;              /* H query heads */
    int64_t kv_heads;           /* G; attention_decode only */
    int64_t qk_dim, v_dim;      /* elements per head of q and o, as in struct attention_shape */
    int64_t rope_dim;           /* of qk_dim, last; mla_decode only */
    int64_t rank;               /* r, elements of the latent c'; mla_decode only */
    int64_t q_stride, o_stride; /* elements from one sequence's row to the next */
    int64_t capacity;           /* cached tokens a sequence has room for */
    int64_t window;             /* 0 = none; attention_decode only */
    float scale;                /* of q.k */
    enum dtype dtype;           /* of q, o, the caches and w_kv_b */
};

/* Rotary pairs inside rows: head h at column first + h * head_stride, `dim` columns wide. */
struct rope_shape {
    int64_t heads, head_stride, first, dim;
    bool interleaved; /* pairs (2j, 2j+1); else (j, j + dim/2), the "half" layout */
};

/* Tokens stand in rows of `row_tokens` (a sequence, or all tokens): statistics are per row. */
struct router_shape {
    int64_t tokens, experts, top_k;
    int64_t row_tokens;  /* tokens = rows * row_tokens */
    bool sigmoid;        /* scores are sigmoid(logit), else softmax over E */
    int64_t groups;      /* contiguous blocks of E / groups experts; 1: all compete */
    int64_t top_groups;  /* groups a token may use: by largest score (softmax), or by the sum of the
                            two largest of score + bias (sigmoid) */
    bool normalize;      /* chosen weights divided by their sum + 1e-20 */
    float scale;         /* of the weights */
    int64_t loss_groups; /* groups whose visitors are counted */
};

/* Slots of tokens (token n, choice k: n*top_k+k), experts, and the ranks these are spread over, the
 * same number on each. */
struct dispatch_shape {
    int64_t slots, top_k, experts, ranks;
};

/* Messages of a fixed size between the ranks that share experts: a capacity of rows for each pair
 * of ranks, with the counts of those that are real inside. P = pair_slots, U = pair_tokens, local =
 * experts / ranks. */
struct padded_shape {
    int64_t slots, experts, ranks; /* of dispatch_shape */
    int64_t pair_slots;            /* slots that a rank may have for the experts of one rank */
    int64_t pair_tokens;           /* tokens of these, <= pair_slots */
};

/* Integer statistics of a router, all rows; scored, group: NULL: not wanted. */
struct router_counts {
    int64_t *routed; /* [rows, E] tokens that chose an expert */
    int64_t *scored; /* [rows, E] tokens with an expert in the top-k of bare scores, no groups */
    int64_t *group;  /* [rows, loss_groups] tokens that chose an expert of the group */
};

/* Which logits of a token have gradients: those of its choice, and of all others, what `rest` says.
 */
struct router_chosen {
    const int32_t *expert; /* [N,top_k], none < 0, all of a token different; NULL: any may have */
    int64_t top_k;
    bool rest; /* the others have some, too, which a device may round to act; else theirs are 0 */
};

/* How moments (AdamW's two, Muon's one) are kept. F32, or BF16 with stochastic rounding: the new
 * value, computed in f32, is rounded up or down with the odds that make it right on average.
 * Rounding to nearest would not do: near 1 - beta < 2^-9 the step towards a smaller square is less
 * than half a unit of the 8 bits kept, so the second moment would never fall again. The noise of
 * element `first + i` is a pure function of (key, first + i) (rng.h), so that shares, threads and
 * resumes give the same bits. */
struct moments {
    enum dtype dtype;
    uint64_t key, first; /* of the parameter and step; element of the parameter at index 0 */
};

struct adamw {
    float lr, beta1, beta2, eps;
    float grad_scale; /* gradient multiplier (clipping) */
    int64_t step;     /* from 1, for bias correction */
    enum dtype moments;
    float quantum; /* of gradients in integers: what 1 is, a power of two */
};

/* Neighbouring elements of one parameter. */
struct adamw_piece {
    float *param; /* f32 master */
    void *m, *v;  /* as adamw.moments says */
    void *out;    /* bf16 copy of param, or NULL */
    const float *grad;
    int64_t count;
    float weight_decay;
    uint64_t key, first; /* of struct moments */
    const int64_t *sum;  /* not NULL: the gradient in integers (ops_fixed.h), instead of grad: the
                            bits of fixed_ops.decode */
};

/* Balance losses of one block (models.md 2.9): each is the sum over rows and experts of a weight,
 * which has no gradient, times P[row,e], the mean over the row's tokens of the (normalised) scores.
 * Coefficients of 0 are off. */
struct balance_terms {
    double sequence;      /* of E / (K T) x the row's count of e, routed or scored */
    bool score_counts;    /* sequence counts `scored` */
    double device;        /* of groups / (K T) x the row's slots in e's group */
    double communication; /* of groups / (top_groups T) x the row's visitors of e's group */
    int64_t top_groups;   /* groups a token may visit, for `communication` */
    double batch_weight, batch_share; /* weight batch_weight x chosen[e], times batch_share x the
                                         sum of the scores */
    double z;                         /* of the mean of lse^2 */
    double unit;                      /* multiplies gradients, not losses */
};

struct muon {
    float lr, momentum, weight_decay;
    float grad_scale; /* gradient multiplier (clipping) */
    float scale;      /* of the orthogonal update */
    struct moments moments;
};

struct fp8_ops;
struct fixed_ops;

/* Of fetch: one fills while one is worked on and one empties. */
enum { OPS_WINDOWS = 3 };

/* Of loss_gradient: what loss_stats gave on each of the ranks that divide the vocabulary. */
struct loss_parts {
    const double *stats; /* [ranks, N, 3] */
    int ranks, rank;
    int64_t first; /* this rank's first column */
};

struct ops {
    const char *name;

    /* Memory of the device, zero filled, 256-byte aligned; NULL where there is not so much. It may
     * wait for what runs. memory_free: bytes as allocated; NULL is accepted. */
    void *(*memory_alloc)(struct device *, size_t bytes);
    void (*memory_free)(struct device *, void *data, size_t bytes);
    void (*zero)(struct device *, void *data, size_t bytes);
    void (*fill)(struct device *, float *x, int64_t count, float value);
    /* Inside the device's memory; the two do not overlap. */
    void (*copy)(struct device *, void *to, const void *from, size_t bytes);
    /* From host memory, which may be reused at return. */
    void (*upload)(struct device *, void *to, const void *host, size_t bytes);
    /* To host memory: waits for everything called before. */
    void (*download)(struct device *, void *host, const void *from, size_t bytes);
    /* Memory of the host that the device copies to by itself, NULL where there is not so much.
     * host_free: bytes as allocated; NULL is accepted. */
    void *(*host_alloc)(struct device *, size_t bytes);
    void (*host_free)(struct device *, void *data, size_t bytes);
    /* To memory of host_alloc, of what is there after everything called before, beside what is
     * called next: `host` is not read, nor `from` changed, until download_wait has returned, which
     * waits for all that were begun. */
    void (*download_begin)(struct device *, void *host, const void *from, size_t bytes);
    void (*download_wait)(struct device *);
    /* Memory of host_alloc passes through `windows` of the device's memory beside ops, OPS_WINDOWS
     * at a time, numbered from 0. fetch: host to window, as both are behind the last window_settle,
     * the window behind its last put too. fetched: ops called from here on find there what was
     * fetched. put: window to host, as it is after everything called before. Of 0 bytes: fetch
     * waits for the window and put gives it back, no more. window_settle: what is called next,
     * fetches included, comes after everything here, and so does the return of synchronize, behind
     * which the host may look. */
    void (*fetch)(struct device *, int window, void *to, const void *host, size_t bytes);
    void (*fetched)(struct device *, int window);
    void (*put)(struct device *, int window, void *host, const void *from, size_t bytes);
    void (*window_settle)(struct device *);
    /* Waits for everything called before. */
    void (*synchronize)(struct device *);
    /* A run of ops that is the same at every call with this key: same arguments, no download, no
     * value that changes from step to step. True: call them now, then graph_end; false: the device
     * has recorded them and does them now. Not nested. */
    bool (*graph_begin)(struct device *, uint64_t key);
    void (*graph_end)(struct device *);
    /* Forgets all runs recorded so far; waits for them. Keys may be used anew. */
    void (*graph_forget)(struct device *);

    /* y[N,C] act = w[ids[n]], ids int32 [N], w [V,C] act. */
    void (*embedding_forward)(struct device *, struct tensor y, const int32_t *ids,
                              struct tensor w);
    /* dw[V,C] f32 adds the rows of dy[N,C] act, in token order; those with a negative id are
     * nowhere. */
    void (*embedding_backward)(struct device *, struct tensor dw, const int32_t *ids,
                               struct tensor dy);

    /* RMSNorm (Zhang & Sennrich 2019), fused with the residual sum before it: sum = x + delta
     * (delta.data NULL: sum is not written), y = w * cast(sum * rstd), rstd[N] f32 = (mean(sum^2) +
     * eps)^-1/2. All [N,C] act, w [C] act. */
    void (*norm_forward)(struct device *, struct tensor y, struct tensor sum, float *rstd,
                         struct tensor x, struct tensor delta, struct tensor w, float eps);
    /* dx[N,C] act ADDS the gradient through the norm to what it holds (the residual's gradient);
     * dw[C] f32 adds. x is the `sum` of forward. */
    void (*norm_backward)(struct device *, struct tensor dx, struct tensor dw, struct tensor dy,
                          struct tensor x, const float *rstd, struct tensor w);

    /* y[N,O] = x[N,I] w[O,I]^T; y act or f32. `add`: y += instead. */
    void (*linear_forward)(struct device *, struct tensor y, struct tensor x, struct tensor w,
                           bool add);
    /* dx[N,I] = dy[N,O] w[O,I]; `add`: dx +=. */
    void (*linear_backward_input)(struct device *, struct tensor dx, struct tensor dy,
                                  struct tensor w, bool add);
    /* dw[O,I] f32 += dy[N,O]^T x[N,I]. */
    void (*linear_backward_weight)(struct device *, struct tensor dw, struct tensor dy,
                                   struct tensor x);

    /* Rotates rows of `x` [N, columns] act in place. table [T_max, dim] f32: cos of the dim/2
     * angles, then sin. positions int32 [N]. inverse: angle negated (backward). */
    void (*rope)(struct device *, struct tensor x, const int32_t *positions, const float *table,
                 struct rope_shape shape, bool inverse);

    /* o = softmax(scale q k^T + mask) v per head, lse[B,H,T] f32 = log-sum-exp of the scaled
     * scores. No T x T matrix is stored (Dao et al. 2022). o rows hold H*v_dim. k_rope NULL where
     * rope_dim is 0. Of a part both are of the keys so far: with `merges` o becomes the mean of
     * what it was and that of these keys, weighted by exp(lse). Of a query that has seen no key o
     * is anything finite and lse below -1e29, of which merging takes nothing. */
    void (*attention_forward)(struct device *, void *o, float *lse, const void *q, const void *k,
                              const void *k_rope, const void *v,
                              const struct attention_shape *shape);
    /* dq, dk, dk_rope, dv overwrite; they have the strides of q, k, k_rope, v; d_o has o's. dk_rope
     * is summed over the heads in f32, in their order, and rounded once. Of a part all four add,
     * and o, which has act and its stride here, and lse are those of all keys. */
    void (*attention_backward)(struct device *, void *dq, void *dk, void *dk_rope, void *dv,
                               const void *d_o, const void *o, const float *lse, const void *q,
                               const void *k, const void *k_rope, const void *v,
                               const struct attention_shape *shape);

    /* o[B, H*v_dim]: attention of one query a sequence, q [B, H*qk_dim], over the first lengths[b]
     * (int32 [B]; the new token's own included) rows of k_cache [B, capacity, G*qk_dim] and v_cache
     * [B, capacity, G*v_dim]. Length 0: an idle row, o is 0. A sequence's result does not depend on
     * the others, nor on what lies behind its length. */
    void (*attention_decode)(struct device *, void *o, const void *q, const void *k_cache,
                             const void *v_cache, const int32_t *lengths,
                             const struct decode_shape *shape);
    /* The same for MLA in its absorbed form (DeepSeek-V2, 2.1): c_cache [B, capacity, r] holds the
     * normed latents, rope_cache [B, capacity, rope_dim] the rotated shared keys, w_kv_b
     * [H*(qk_dim - rope_dim + v_dim), r]. Keys and values of the heads are never made: q~ = W_uk^T
     * q_nope, score = (q~.c' + q_rope.k_rope) scale, o = W_uv sum P c'; f32 from q to o. */
    void (*mla_decode)(struct device *, void *o, const void *q, const void *w_kv_b,
                       const void *c_cache, const void *rope_cache, const int32_t *lengths,
                       const struct decode_shape *shape);

    /* logits[N,E] f32 = x[N,C] act w[E,C]^T act, accumulated in f32. */
    void (*router_logits)(struct device *, struct tensor logits, struct tensor x, struct tensor w);
    /* dx[N,C] act ADDS dlogits w; dw[E,C] f32 adds dlogits^T x. What chosen says may spare a
     * device work; one that rounds the rest may round dx twice. It is the same whatever the layout:
     * bits depend on it. */
    void (*router_logits_backward)(struct device *, struct tensor dx, struct tensor dw,
                                   struct tensor dlogits, struct tensor x, struct tensor w,
                                   struct router_chosen chosen);
    /* Scores of the logits, the K experts with the largest score + bias in the allowed groups
     * (ties: lowest index; bias f32 [E] or NULL, used for nothing else), their weights from the
     * bare scores. expert int32 [N,K] by falling score + bias, weight f32 [N,K], score f32 [N,E],
     * lse f32 [N] = log-sum-exp of the logits (NULL: not wanted). models.md 2.7. */
    void (*router_forward)(struct device *, int32_t *expert, float *weight, float *score,
                           float *lse, struct router_counts counts, const float *logits,
                           const float *bias, struct router_shape shape);
    /* dlogits f32 [N,E]: through the weights (dweight [N,K]; 0 where a slot was dropped), the
     * balance losses (aux[rows,E] = d loss / d score, of sigmoid scores divided by their sum over
     * E), and the z-loss (z_scale * lse^2 summed over tokens; 0: lse, logits may be NULL). */
    void (*router_backward)(struct device *, float *dlogits, const float *dweight,
                            const int32_t *expert, const float *weight, const float *score,
                            const float *logits, const float *lse, const float *aux, float z_scale,
                            struct router_shape shape);
    /* sums[rows, E]: over the tokens of a row, in double, of the scores; of sigmoid ones divided by
     * their sum over E + 1e-20. */
    void (*router_sums)(struct device *, double *sums, const float *score,
                        struct router_shape shape);
    /* count[E] adds the rows of routed[rows, E]. */
    void (*router_count)(struct device *, int64_t *count, const int64_t *routed, int64_t rows,
                         int64_t experts);
    /* Every expert the same number of slots with equal weights, whatever the router said: slot i
     * goes to expert i % E. counts.routed accordingly. For benchmarks. */
    void (*router_even)(struct device *, int32_t *expert, float *weight,
                        struct router_counts counts, struct router_shape shape);
    /* *loss adds the terms; gradient[rows,E] = d loss / d score x unit, without z's (which
     * router_backward makes). sums: router_sums; chosen[E]: of batch_weight; lse[N]: of z. What a
     * coefficient of 0 leaves out may be NULL. */
    void (*balance)(struct device *, double *loss, float *gradient, const double *sums,
                    struct router_counts counts, const int64_t *chosen, const float *lse,
                    struct router_shape shape, const struct balance_terms *terms);

    /* Sorts slots (token n, choice k: n*K+k) by expert: a slot's row is its place in (expert, slot)
     * order. expert[slots], < 0: dropped, no row. offset[E+1]: expert e has rows [offset[e],
     * offset[e+1]); token[slots]: the token of each row, -1 past the last; slot_row[slots]: row of
     * each slot, -1 where dropped. */
    void (*expert_sort)(struct device *, int64_t *offset, int32_t *token, int32_t *slot_row,
                        const int32_t *expert, int64_t slots, int64_t top_k, int64_t experts);
    /* Rows that arrive in (source, expert) order, as rows in (expert, source) order: taken[local,
     * ranks] rows of each local expert from each source. regroup[i]: arrival place of row i;
     * ungroup: its inverse; offset[local+1]: expert boundaries. Rows past the last are untouched.
     */
    void (*expert_regroup)(struct device *, int32_t *regroup, int32_t *ungroup, int64_t *offset,
                           const int64_t *taken, int64_t local, int64_t ranks);
    /* Tokens by destination, for a message that holds a token once however many of its slots go
     * there: expert e lives on destination e / (E / ranks); a token's row stands in (destination,
     * token) order. begin[ranks+1]: destination r has rows [begin[r], begin[r+1]); token[slots]:
     * the token of each row, -1 past the last; place[slots]: for each row of expert_sort, its
     * token's row counted from begin[its destination]; past the last: untouched. expert, slot_row:
     * of expert_sort. Bytes per slot: about 30, bound by latency. */
    void (*expert_unique)(struct device *, int64_t *begin, int32_t *token, int32_t *place,
                          const int32_t *expert, const int32_t *slot_row,
                          struct dispatch_shape shape);
    /* fan[ungroup[p]] = unique[r] + place[p] for p < rows, where arrived[r] <= p < arrived[r+1]:
     * which token's row, of those that arrived from all ranks, becomes row i of expert_regroup's
     * order. arrived[ranks+1], unique[ranks+1]: where each source's places and rows begin, the
     * latter in any order of sources, and how many there are; rows = arrived[ranks]. Bytes per row:
     * 12, bound by latency. */
    void (*expert_fan_out)(struct device *, int32_t *fan, const int32_t *ungroup,
                           const int32_t *place, const int64_t *arrived, const int64_t *unique,
                           int64_t ranks, int64_t rows);
    /* For tokens that go first to the ranks of one place, then on: relay[r] of row r < begin[ranks]
     * of expert_unique (begin, token: of shape.ranks) = the row of the same token among those of
     * the same destination in a coarser expert_unique, whose `place` is given: of destinations that
     * are several of shape.ranks each. Past the last: untouched. Bytes per row: about 20, bound by
     * latency. */
    void (*expert_relay)(struct device *, int32_t *relay, const int64_t *begin,
                         const int32_t *token, const int32_t *place, const int32_t *expert,
                         const int32_t *slot_row, struct dispatch_shape shape);
    /* The sending side of padded messages, from what expert_sort (offset) and expert_unique (begin,
     * unique_token, place) left. Row of a message: (destination, place in it).
     * message[ranks, local+P]: rows for each of the destination's experts, then `place` of its
     * rows, 0 past the last. token[ranks*U]: the token of each row of tokens, -1: none.
     * row[ranks*P]: the row of expert_sort of each row of slots, -1: none. back[slots]: its
     * inverse, -1 past the last. Bytes per row of slots: 20, bound by latency. */
    void (*expert_pad)(struct device *, int32_t *message, int32_t *token, int32_t *row,
                       int32_t *back, const int64_t *offset, const int64_t *begin,
                       const int32_t *unique_token, const int32_t *place,
                       const struct padded_shape *shape);
    /* The receiving side: message[ranks, local+P], one of each source; all three maps [ranks*P].
     * Rows in (expert, source, row of the source) order, whose boundaries are offset[local+1]:
     * regroup[i] = arrived row of slots of row i, ungroup its inverse, fan[i] = arrived row of
     * tokens. -1 where there is none. Bytes per row: 28, bound by latency. */
    void (*expert_unpad)(struct device *, int32_t *regroup, int32_t *ungroup, int32_t *fan,
                         int64_t *offset, const int32_t *message, const struct padded_shape *shape);
    /* kept[slots] = expert, -1 where a group of E / groups experts has more than `capacity` slots:
     * of each group the slots of largest weight stay (ties: the earlier slot; NaN is below every
     * number). groups = E:
     * GShard/Switch capacity; else DeepSeek-V2's, of a device's experts (its section 2.2.4). */
    void (*expert_drop)(struct device *, int32_t *kept, const int32_t *expert, const float *weight,
                        int64_t slots, int64_t experts, int64_t groups, int64_t capacity);
    /* Where each expert's matrices are in `slices` parts, slot s is `slices` slots, of the parts:
     * spread[s * slices + f] = (e / local * slices + f) * local + e % local with e = expert[s], -1
     * where that is; their weights are weight[s]. */
    void (*expert_spread)(struct device *, int32_t *spread, float *spread_weight,
                          const int32_t *expert, const float *weight, int64_t slots, int64_t slices,
                          int64_t local);
    /* weight[s] = the sum of spread_weight[s * slices + f] over f, in that order. */
    void (*expert_fold)(struct device *, float *weight, const float *spread_weight, int64_t slots,
                        int64_t slices);

    /* y[r] = x[row[r]] for r < R; rows of `C` act; row[r] < 0 gives zeros. */
    void (*gather_rows)(struct device *, struct tensor y, struct tensor x, const int32_t *row);
    /* y[row[n]] = the first y.dim[1] elements of row n of x, rows `x_stride` elements apart, n <
     * rows; row[n] < 0: skipped. Rows are distinct. Fills the caches of the decode ops. */
    void (*scatter_rows)(struct device *, struct tensor y, const void *x, int64_t x_stride,
                         const int32_t *row, int64_t rows);
    /* y[n] = sum over k in slot order of weight[n,k] * x[slot_row[n*K+k]] in f32, rounded once;
     * slot_row < 0: dropped, adds nothing. weight NULL: 1. */
    void (*combine_rows)(struct device *, struct tensor y, struct tensor x, const int32_t *slot_row,
                         const float *weight, int64_t top_k);
    /* dweight[n,k] = <dy[n], x[row]> and dx[row] = weight[n,k] dy[n], row = slot_row[n*K+k];
     * dropped: dweight 0. dx.data NULL: dweight alone. */
    void (*combine_rows_backward)(struct device *, struct tensor dx, float *dweight,
                                  struct tensor dy, struct tensor x, const int32_t *slot_row,
                                  const float *weight, int64_t top_k);

    /* Grouped GEMMs: rows of x are sorted by expert, expert e owns rows [offset[e], offset[e+1]). w
     * [E*O, I] act holds the experts' [O,I] matrices one after another, `w_stride` elements apart.
     */
    void (*grouped_forward)(struct device *, struct tensor y, struct tensor x, const void *w,
                            int64_t w_stride, const int64_t *offset, int64_t experts);
    void (*grouped_backward_input)(struct device *, struct tensor dx, struct tensor dy,
                                   const void *w, int64_t w_stride, const int64_t *offset,
                                   int64_t experts);
    /* dw f32 of expert e, at dw + e * w_stride, adds dy_e^T x_e. */
    void (*grouped_backward_weight)(struct device *, float *dw, int64_t w_stride, struct tensor dy,
                                    struct tensor x, const int64_t *offset, int64_t experts);
    /* dw overwrites: what it would be had it been zero, but for the sign of a zero; of an expert
     * without rows it is. NULL: the device has no faster way than to clear, and then add. */
    void (*grouped_first_weight)(struct device *, float *dw, int64_t w_stride, struct tensor dy,
                                 struct tensor x, const int64_t *offset, int64_t experts);

    /* h[R,F] = silu(gate) * up, gate_up [R,2F]: gate in columns [0,F), up in [F,2F). Shazeer 2020.
     */
    void (*swiglu_forward)(struct device *, struct tensor h, struct tensor gate_up);
    /* dgate_up overwrites; dgate_up may be the same memory as gate_up. h: what swiglu_forward gave,
     * once more; h.data NULL: not wanted. */
    void (*swiglu_backward)(struct device *, struct tensor dgate_up, struct tensor h,
                            struct tensor dh, struct tensor gate_up);

    /* Head and cross-entropy in one, by chunks of rows: logits of the whole batch never exist.
     * labels int32 [N], < 0: not counted. *loss adds the sum over counted labels of -log p (double,
     * fixed order). With dx.data != NULL also backward with d loss/d logit = loss_scale * (p -
     * onehot): dx[N,C] act overwrites, dw[V,C] f32 adds. */
    void (*cross_entropy)(struct device *, double *loss, struct tensor dx, struct tensor dw,
                          struct tensor x, struct tensor w, const int32_t *labels,
                          float loss_scale);
    /* The same between the head's products where ranks have parts of the vocabulary. logits f32
     * [N,V'] of the columns from `first` on, V' > 0; labels are of the whole vocabulary.
     * stats[N,3] = the row's largest logit, the sum of exp(logit - largest), the label's logit or 0
     * where it is not here; zeros where the label is not counted. logits become what
     * loss_gradient, called next, takes for them. Bytes per logit: 4 in, on the CPU 4 out. */
    void (*loss_stats)(struct device *, double *stats, struct tensor logits, const int32_t *labels,
                       int64_t first);
    /* *loss adds as in cross_entropy (NULL: not wanted); grad [N,V'] f32, which may be the logits,
     * or bf16, elsewhere, is d loss/d logit; data NULL: not wanted. */
    void (*loss_gradient)(struct device *, double *loss, struct tensor grad, struct tensor logits,
                          const struct loss_parts *parts, const int32_t *labels, float loss_scale);

    /* x[i] *= 1 + eps * (2 u(key, first + i) - 1), u uniform (rng.h): router jitter, and its own
     * backward. */
    void (*jitter)(struct device *, struct tensor x, uint64_t key, uint64_t first, float eps);
    /* x[i] = std * normal(key, first + i) (rng.h). */
    void (*init_normal)(struct device *, float *x, uint64_t key, uint64_t first, int64_t count,
                        float std);
    /* y += x, elementwise, f32 or act. */
    void (*add)(struct device *, struct tensor y, struct tensor x);
    /* Columns [y_first, y_first + columns) of y = columns [x_first, ...) of x; same rows, same
     * dtype.
     */
    void (*copy_columns)(struct device *, struct tensor y, int64_t y_first, struct tensor x,
                         int64_t x_first, int64_t columns);
    /* Copies with conversion between f32 and bf16 (round to nearest even). */
    void (*cast)(struct device *, struct tensor y, struct tensor x);
    /* *sum adds the sum of squares in double; fixed blocks, fixed order. Non-finite elements make
     * it non-finite. */
    void (*sum_squares)(struct device *, double *sum, const float *x, int64_t count);
    /* AdamW (Loshchilov & Hutter 2019, torch's order of operations) on pieces (host array, copied),
     * in place. The step uses the moments before they are rounded. */
    void (*adamw)(struct device *, const struct adamw_piece *piece, int64_t pieces,
                  struct adamw args);

    /* Muon (Jordan et al. 2024) in its three stages. Momentum, Nesterov's, elementwise: with g =
     * grad_scale * grad, m += (1 - momentum) (g - m); grad = g + momentum (m - g). m: args.moments.
     */
    void (*muon_momentum)(struct device *, float *grad, void *m, int64_t count, struct muon args);
    /* x[rows,cols] f32, in place: near the orthogonal matrix next to it, U V^T of x = U S V^T, by
     * five Newton-Schulz steps x = a x + (b A + c A^2) x, A = x x^T (of the shorter side), from x /
     * |x|; singular values end between 0.7 and 1.2. Products in f32. scratch: rows * cols + 2
     * min(rows, cols)^2 floats. */
    void (*muon_orthogonalize)(struct device *, struct tensor x, float *scratch);
    /* param = param (1 - lr weight_decay) - lr scale update; out as in adamw. */
    void (*muon_update)(struct device *, float *param, void *out_bf16, const float *update,
                        int64_t count, struct muon args);

    /* ema += (1 - decay) (x - ema): the average of what stays is exactly it. */
    void (*ema)(struct device *, float *ema, const float *x, int64_t count, double decay);

    const struct fp8_ops *fp8;     /* ops_fp8.h */
    const struct fixed_ops *fixed; /* ops_fixed.h; NULL: the device has none */
};

#endif
