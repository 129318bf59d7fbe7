/* gemm: batches of matrix products whose rows do not depend on the other rows or on the threads.
 *
 * oneDNN's brgemm kernels where this machine has them (gemm_onednn.h); with AVX-512 and no AMX the
 * wide kernel (gemm_wide.h) for nearly all of bf16, for f32 by bf16, and of f32 for gradients of
 * weights, sizes that vary with the routing, and vast weights; else the kernel of gemm.c, where
 * every element of C is a chain of fused multiply-adds over k in ascending order, whatever M, N,
 * the other rows, or the number of threads. It packs operands to f32 panels on the way, so any
 * strides and f32 or bf16 storage cost the same.
 */
#ifndef KERNELS_CPU_GEMM_H
#define KERNELS_CPU_GEMM_H

#include "kernels/cpu/cpu.h"
#include "kernels/ops_fixed.h"

/* How the wide kernel multiplies: f32; bf16 by pairs (AVX512_BF16); bf16 whose elements become f32
 * on the way, where multiply-adds of f32 are as fast as those of pairs or these are not there. */
enum gemm_way { GEMM_F32, GEMM_PAIRS, GEMM_WIDENED };

/* A head's product x = A B makes powers instead: C[m,n] = e^(x[m,n] - shift[m]), of differences
 * from -87 to 88 (wide_math.h), 0 at the row's label. What softmax and its loss need besides is of
 * pieces of so many columns, each in the same order whatever the rows and threads. */
enum { GEMM_EXP_COLUMNS = 128 };
struct gemm_exp {
    const float *shift;   /* [m] */
    const int32_t *label; /* [m] a column; < 0: the row is zeros, and so are its sums */
    float *own;           /* [m] x at the label */
    float *sum, *most;    /* [m, gemm_exp_pieces(n)] of e^(x - shift), the label's too; largest
                             x - shift */
};

static inline int64_t gemm_exp_pieces(int64_t n)
{
    return (n + GEMM_EXP_COLUMNS - 1) / GEMM_EXP_COLUMNS;
}

/* C[m,n] = (add ? C : 0) + sum_k A[m,k] B[k,n]. Strides in elements. */
struct gemm {
    int64_t m, n, k;
    const void *a, *b;
    void *c;
    int64_t a_row, a_col, b_row, b_col, c_row;
    enum dtype a_dtype, b_dtype, c_dtype;
    bool add;
    bool varies;       /* m or k is how many tokens chose an expert: another one at every call */
    bool vast;         /* with gemm_is_vast weights */
    bool sums_tokens;  /* k is tokens: a gradient of weights */
    bool past;         /* C is not read soon: it may go past the caches; without add */
    enum gemm_way way; /* gemm_run chooses */
    struct fixed_point *fixed; /* not NULL: C is of int64 and each sum over k is added to it as
                                  fixed_ops.add does; gemm_is_wide must say so */
    /* Not NULL: powers; C may be NULL. gemm_is_wide must say so. */
    const struct gemm_exp *exp;
};

/* Whether weights [O,I] are many times as long as they are wide, as a head's or kv_b of
 * DeepSeek-V3: in f32, too, products with them go by the wide kernel, which lets head_wide make
 * powers of logits as it goes. Nothing but the weights decides it: rows keep their bits whatever
 * their number. */
static inline bool gemm_is_vast(int64_t out, int64_t in)
{
    return out >= 16 * in;
}

/* Sums over tokens, or over a matrix's rows, of which oneDNN would have each thread take some. */
static inline bool gemm_is_long(const struct gemm *g)
{
    return g->sums_tokens || g->a_col != 1;
}

/* y[M,O] = x[M,I] w[O,I]^T. */
struct gemm gemm_forward(struct tensor y, struct tensor x, struct tensor w);

/* dw[O,I] += dy[M,O]^T x[M,I], f32. */
struct gemm gemm_weight(float *dw, struct tensor dy, struct tensor x);

/* Whether gemm_run takes this product with `fixed` or `exp` on this device. */
bool gemm_is_wide(struct device *device, const struct gemm *gemm);

/* Runs `count` independent products (no C overlaps another). */
void gemm_run(struct device *device, const struct gemm *batch, int64_t count);

#endif
