/* ops_fp8: what training in FP8 adds to struct ops (kernels/ops.h, whose rules hold here too): the
 * recipe of DeepSeek-V3 (arXiv 2412.19437, 3.3). Products of E4M3 codes in tiles with their own
 * scale; what stays in bf16 (norms, router, attention, embedding, head) uses struct ops.
 *
 *   y  = x w^T     x: tiles of one row and 128 columns; w: of 128 rows and 128 columns
 *   dx = dy w      the same op on dy and w transposed, which has the same codes
 *   dw += dy^T x   both transposed: rows are channels, tiles of 128 tokens of one channel
 *
 * fp8_rule.h says how a tile becomes codes and a scale. A fused op gives bit for bit what the ops
 * it joins give: norm_forward is ops.norm_forward, rounded to bf16, then quantize, and so on. "act"
 * is bf16 here. The last tile of a row may be narrower; columns are a multiple of 16. What a code
 * stands for is code x scale in f32, nowhere rounded to bf16. Rows of index < 0 are zeros that are
 * not counted; rows behind the last group are not there: neither read, nor written, nor counted.
 *
 * Letters as in ops.h; g a group (expert) of rows of x, [offset[g], offset[g+1]).
 */
#ifndef KERNELS_OPS_FP8_H
#define KERNELS_OPS_FP8_H

#include "kernels/base/fp8_rule.h"
#include "kernels/ops.h"

/* Row tiles. The scale of columns [128 t, 128 t + 128) of row r is scale[t * pitch + r]: one load
 * (TMA) brings the scales of neighbouring rows. */
struct fp8_rows {
    uint8_t *code;      /* [rows, cols], 16-byte aligned; NULL: not wanted, not there */
    float *scale;       /* [tiles of cols, pitch], 16-byte aligned */
    int64_t rows, cols; /* cols: what the product sums over, a multiple of 16 */
    int64_t pitch;      /* >= rows, a multiple of 4 */
};

/* Transposed row tiles of x[R,C]: fp8_rows with rows = C and cols >= fp8_token_columns(R, groups).
 * Tokens of group g stand in columns [b_g, b_g + n_g), b_0 = 0, b_{g+1} = b_g + n_g rounded up to
 * 128, so that no tile has tokens of two groups; columns up to b_{g+1} are codes 0, columns from
 * b_groups on are neither written nor read. Without offset all R rows are one group. */
static inline int64_t fp8_token_columns(int64_t rows, int64_t groups)
{
    const int64_t filled = rows < groups ? rows : groups; /* groups that can have rows */
    return rows > 0 ? (rows + filled * (FP8_TILE - 1)) / FP8_TILE * FP8_TILE : 0;
}

/* Matrices one after another, in tiles of 128 x 128; tiles at the far edges may be smaller. */
struct fp8_weights {
    uint8_t *code; /* [matrices, rows, cols], 16-byte aligned */
    float *scale;  /* [matrices, tiles of rows, tiles of cols] */
    int64_t matrices, rows, cols;
};

static inline int64_t fp8_tiles(int64_t count)
{
    return (count + FP8_TILE - 1) / FP8_TILE;
}

/* One row on the wire: cols codes, then the scales of its tiles, then zeros up to a multiple of 16
 * bytes. 7168 + 224 at DeepSeek-V3's width. */
static inline int64_t fp8_packed_bytes(int64_t cols)
{
    return (cols + fp8_tiles(cols) * (int64_t)sizeof(float) + 15) / 16 * 16;
}

/* One row in E5M6: cols * 3/2 bytes of codes (two codes in three bytes, the first in the low 12
 * bits, little-endian), then the scales, then zeros up to a multiple of 16 bytes. */
static inline int64_t fp8_e5m6_bytes(int64_t cols)
{
    return (cols / 2 * 3 + fp8_tiles(cols) * (int64_t)sizeof(float) + 15) / 16 * 16;
}

/* What became of numbers on their way to codes; every op adds, in integers. Of an op that writes
 * both orientations the plain one is counted, of swiglu_forward h and kept. Of the numbers of bad
 * tiles neither underflows nor saturated. */
struct fp8_counters {
    uint64_t values;     /* quantised */
    uint64_t underflows; /* of them not 0, but their code is */
    uint64_t saturated;  /* of them |x inverse| > 448: rounding of arbitrary scales only */
    uint64_t bad_tiles;  /* with NaN or infinity */
    uint32_t amax;       /* bits of the largest absolute value of tiles that are not bad */
    uint32_t unused;
};

/* How products are summed. The tensor cores of Hopper keep about 14 bits. */
enum fp8_accumulate {
    FP8_ACCUMULATE_DEVICE,   /* as the device does best: CPU: f32; CUDA: 128 at a time on the tensor
                                cores, then f32 */
    FP8_ACCUMULATE_PROMOTED, /* CPU only: a model of the latter */
    FP8_ACCUMULATE_UNPROMOTED, /* CPU only: a model of Hopper without promotion: all of K in 14 bits
                                */
};

/* Host, read at the call. */
struct fp8_how {
    bool power_of_two; /* scales; else amax / 448 */
    enum fp8_accumulate accumulate;
    struct fp8_counters *counters; /* device memory; NULL: not counted */
};

struct fp8_ops {
    /* Rows of x (those of index `row`, int32 [rows] device, < 0: zeros; NULL: in order) as q, as t,
     * or as both, in one pass. Without q, t.code decides; rows: of the result. x act. Bytes a
     * value: 2 read, 1 written for each. */
    void (*quantize)(struct device *, struct fp8_rows q, struct fp8_rows t, struct tensor x,
                     const int32_t *row, int64_t rows, const int64_t *offset, int64_t groups,
                     const struct fp8_how *how);
    /* t from q: values of q quantised again along tokens. With powers of two only exponents move,
     * but for values that underflow. 1 byte read, 1 written. */
    void (*transpose)(struct device *, struct fp8_rows t, struct fp8_rows q, const int64_t *offset,
                      int64_t groups, const struct fp8_how *how);
    /* packed[i] = row row[i] (NULL: i) of x act, quantised, as it travels; [rows,
     * fp8_packed_bytes(C)]. row[i] < 0: zeros. */
    void (*pack)(struct device *, uint8_t *packed, struct tensor x, const int32_t *row,
                 int64_t rows, const struct fp8_how *how);
    /* Row i of q = packed row row[i] (NULL: i) of `rows`; < 0: codes 0, scales 1. */
    void (*unpack)(struct device *, struct fp8_rows q, const uint8_t *packed, int64_t rows,
                   const int32_t *row);
    /* w and, where wanted (code not NULL), its transpose t (the same codes and scales, rows and
     * cols exchanged) from src act: matrix m at src + m * stride elements. */
    void (*quantize_weights)(struct device *, struct fp8_weights w, struct fp8_weights t,
                             const void *src, int64_t stride, const struct fp8_how *how);

    /* ops.norm_forward whose y is q, and y too where y.data is not NULL. */
    void (*norm_forward)(struct device *, struct fp8_rows q, struct tensor y, struct tensor sum,
                         float *rstd, struct tensor x, struct tensor delta, struct tensor w,
                         float eps, const struct fp8_how *how);
    /* h = quantised ops.swiglu_forward(gate_up); kept = gate_up quantised, where its code is not
     * NULL: what backward reads. Bytes a row: 4F read, F and 2F written. */
    void (*swiglu_forward)(struct device *, struct fp8_rows h, struct fp8_rows kept,
                           struct tensor gate_up, const int64_t *offset, int64_t groups,
                           const struct fp8_how *how);
    /* From dh[R,F] act and gate_up[R,2F] (act, or, where gate_up.data is NULL, the values of
     * `kept`): d, dt: ops.swiglu_backward quantised, plain and transposed; ht: the SwiGLU itself,
     * transposed. Counters: of d. */
    void (*swiglu_backward)(struct device *, struct fp8_rows d, struct fp8_rows dt,
                            struct fp8_rows ht, struct tensor dh, struct tensor gate_up,
                            struct fp8_rows kept, const int64_t *offset, int64_t groups,
                            const struct fp8_how *how);
    /* ops.combine_rows_backward whose dx, rows[R] of them, is quantised: as q, or, where q.code is
     * NULL, packed. Rows of no slot are untouched. */
    void (*combine_rows_backward)(struct device *, struct fp8_rows q, uint8_t *packed,
                                  float *dweight, struct tensor dy, struct tensor x,
                                  const int32_t *slot_row, const float *weight, int64_t top_k,
                                  const struct fp8_how *how);

    /* y[R,O] = x[R,I] w_g[O,I]^T for the rows of each group, w.matrices = groups; offset NULL: all
     * rows are one group. `add`: y += instead. Rows from offset[groups] on are untouched. Sums:
     * f32; y: act, or f32, the same sums not rounded. */
    void (*linear)(struct device *, struct tensor y, struct fp8_rows x, struct fp8_weights w,
                   const int64_t *offset, bool add, const struct fp8_how *how);
    /* dw f32 of group g, at dw + g * stride: [O,I] adds dy_g^T x_g; dyt: rows O, xt: rows I, as
     * transposed with these offsets (NULL: one group of `tokens` rows). Groups without rows: their
     * dw is untouched. */
    void (*linear_weight)(struct device *, float *dw, int64_t stride, struct fp8_rows dyt,
                          struct fp8_rows xt, const int64_t *offset, int64_t groups, int64_t tokens,
                          const struct fp8_how *how);

    /* x act to and from E5M6, packed [rows, fp8_e5m6_bytes(C)]. Bad tiles: codes 0, scale
     * NaN (bits 0x7fc00000). */
    void (*e5m6_pack)(struct device *, uint8_t *packed, struct tensor x);
    void (*e5m6_unpack)(struct device *, struct tensor x, const uint8_t *packed);
};

#endif
