/* attention_tiles: one query head of one sample, tile by tile, in the scratch of the thread that
 * computes it (attention.c): f32, or pairs of bf16 (attention_wide.h).
 */
#ifndef KERNELS_CPU_ATTENTION_TILES_H
#define KERNELS_CPU_ATTENTION_TILES_H

#include <stddef.h>

#include "kernels/cpu/attention_wide.h"
#include "kernels/cpu/cpu.h"

/* What a task needs; rows padded to whole tiles, columns to whole vectors, with zeros (T: keys or
 * queries, what there are more of; Q: queries, of forward those of a tile): f32, or pairs of bf16,
 * side by side in 32 bits, of which there are half as many. Pairs are of columns in what is
 * multiplied along a row, of rows in what is multiplied along tokens. */
struct work {
    int64_t padded, qk, v; /* T, qk_dim, v_dim rounded up */
    int64_t ahead;         /* of attention_shape */
    int64_t loaded;        /* sample * kv_heads + group of the keys and values held; -1: none */
    bool backward;
    bool wide, pairs; /* as attention_wide.h has it; not wide: tile.h */
    bool shared; /* several heads read the same keys: dk and dv are of all keys, else of a tile */
    float *q, *k, *vals, *d_out; /* [Q,qk] (scaled if not wide), [T,qk], [T,v], [T,v]; pairs of
                                    rows: [T/2,qk] ... */
    float *k_t, *v_t;            /* [T/TILE, qk, TILE] [T/TILE, v, TILE]: a tile of keys is
                                    contiguous; pairs of columns, [T/TILE, qk/2, TILE] ... */
    float *q_pairs, *do_pairs;   /* [Q,qk/2] [T,v/2] pairs of columns of q and dO */
    float *k_tile, *v_tile;      /* [TILE,qk/2] [TILE,v/2] pairs of columns, on their way */
    float *out;                  /* [Q,v], f32 */
    float *dq, *dk, *dv; /* [T,qk] [T,qk] [T,v], without the scale but for dk if not wide; dk, dv
                            not shared: [TILE,qk] [TILE,v] */
    float *rope;         /* [T,rope_dim] the shared part of dk, if that is of a tile */
    float *delta;        /* [T] rowsum(dO * O) */
    float *log_sum;      /* [T] lse; if wide to the base 2 */
    struct wide_softmax softmax;
    union {
        struct {
            _Alignas(64) float score[TILE * TILE];
            float dscore[TILE * TILE];
        };
        struct wide_factors factors;
    };
};

/* Floats of a thread's scratch: of whole vectors, so that every thread's begin with one. */
size_t work_floats(const struct attention_shape *shape, bool backward, enum cpu_attention way);
/* Zeroed: padding stays zero because only real rows and columns are loaded. */
struct work *work_init(float *memory, const struct attention_shape *shape, bool backward,
                       enum cpu_attention way);

/* Queries [q0, q0 + TILE), which w holds, against all keys they see: w->out normalised, and
 * lse[TILE]. */
void work_forward_tile(struct work *w, const struct attention_shape *shape, int64_t sample,
                       int64_t q0, float *lse);
/* w->dq is 0; lse of all queries. */
void work_begin_backward(struct work *w, const struct attention_shape *shape, const float *lse);
/* dk and dv of keys [k0, k0 + TILE), and what these add to dq; in ascending order. */
void work_backward_tile(struct work *w, const struct attention_shape *shape, int64_t sample,
                        int64_t k0);

static inline float *work_dk(const struct work *w, int64_t k0)
{
    return w->dk + (w->shared ? k0 * w->qk : 0);
}

static inline float *work_dv(const struct work *w, int64_t k0)
{
    return w->dv + (w->shared ? k0 * w->v : 0);
}

#endif
