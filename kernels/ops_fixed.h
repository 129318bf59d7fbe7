/* ops_fixed: what run.deterministic layout adds to struct ops (kernels/ops.h, whose rules hold here
 * too): gradients of weights add up as integers, which come to the same bits in whatever order and
 * on however many ranks they were added. docs/determinism.md has the whole.
 *
 * A unit is one micro-batch: what it gives to a parameter is computed in f32 by the ops of ops.h,
 * into zeros, and then added here. Experts see tokens of several ranks at once, which are as many
 * units: theirs are told apart by `sources`. Results are those of one device kind and one
 * instruction set; the number of threads does not matter, nor do the other groups of a call.
 */
#ifndef KERNELS_OPS_FIXED_H
#define KERNELS_OPS_FIXED_H

#include "kernels/ops.h"
#include "kernels/ops_fp8.h"

/* Sums of squares are integers too, in limbs: their value is the sum of limb[i] 2^(32 i). Limbs may
 * exceed 2^32: carries are the reader's; they hold the sum of 2^31 chunks. */
enum { FIXED_LIMBS = 5, FIXED_LIMB_BITS = 32, FIXED_CHUNK = 64 };

/* Device memory, written by upload: what it holds may change between calls that are recorded. */
struct fixed_point {
    float scale;       /* how many integers 1 is: a power of two */
    float limit;       /* of |x scale|, at most 2^62: what is beyond is not added but counted */
    int64_t saturated; /* elements beyond it, */
    int64_t bad;       /* elements that are NaN or infinity; ops count up, exactly */
};

/* Rows [first, last) of a matrix [O,I], whose gradient is wanted. */
struct fixed_rows {
    int64_t first, last;
};

struct fixed_ops {
    /* sum[i] += x[i] scale, rounded to the nearest integer (ties to even); then x[i] = 0. Bytes an
     * element: 4 read and written, 8 read and written; the CPU only reads long runs of zeros. */
    void (*add)(struct device *, int64_t *sum, float *x, int64_t count, struct fixed_point *fixed);

    /* grouped_backward_weight of rows in (expert, source, token) order: those of expert e and
     * source s are [offset[g], offset[g+1]), g = e * sources + s, offset[experts * sources + 1].
     * For each of them with rows dy_g^T x_g [O,I] by itself, as if alone, added to sum + e *
     * w_stride as `add` does; of rows live[e] only (host; NULL: all): others are neither added nor
     * counted. unit[O*I]: scratch, zeros before and after. Bytes an element of a group with rows: 8
     * read and written; and where unit is used another 4 written, read and cleared. */
    void (*grouped_backward_weight)(struct device *, int64_t *sum, int64_t w_stride, float *unit,
                                    struct tensor dy, struct tensor x, const int64_t *offset,
                                    int64_t experts, int64_t sources, const struct fixed_rows *live,
                                    struct fixed_point *fixed);
    /* The same of fp8_ops.linear_weight: dyt, xt are transposed with these offsets, in experts *
     * sources groups. */
    void (*fp8_linear_weight)(struct device *, int64_t *sum, int64_t w_stride, float *unit,
                              struct fp8_rows dyt, struct fp8_rows xt, const int64_t *offset,
                              int64_t experts, int64_t sources, int64_t tokens,
                              const struct fixed_rows *live, const struct fp8_how *how,
                              struct fixed_point *fixed);

    /* square[FIXED_LIMBS] (device) adds the sum of f(sum[i])^2, f: rounded to f32: within chunks of
     * FIXED_CHUNK elements in double in a fixed order, over chunks exactly. count is a multiple of
     * FIXED_CHUNK, |sum[i]| <= 2^62. Bytes an element: 8 read. */
    void (*squares)(struct device *, int64_t *square, const int64_t *sum, int64_t count);
    /* out[i] = f(sum[i]) quantum, a power of two; ops.adamw reads integers the same way. */
    void (*decode)(struct device *, float *out, const int64_t *sum, int64_t count, float quantum);

    /* What expert_unpad makes of a padded message, but by source: offset[local * ranks + 1]:
     * boundaries of (expert, source) in its order of rows. */
    void (*expert_sources)(struct device *, int64_t *offset, const int32_t *message,
                           const struct padded_shape *shape);
};

#endif
