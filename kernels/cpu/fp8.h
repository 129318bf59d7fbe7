/* fp8: private to the CPU device's FP8 ops (kernels/ops_fp8.h): codes and numbers, and the engine
 * that runs over tiles of 128 x 128 wherever their numbers come from.
 *
 * Everything is computed per tile by one thread, and counters are sums and maxima of integers, so
 * results do not depend on the number of threads. */
#ifndef KERNELS_CPU_FP8_H
#define KERNELS_CPU_FP8_H

#include "kernels/cpu/cpu.h"
#include "kernels/ops_fp8.h"

/* Numbers to codes and back, a tile or a piece of one: count <= FP8_TILE. */

/* Returns the scale. tally adds what became of the numbers. */
float fp8_encode(uint8_t *code, const float *x, int64_t count, bool power_of_two,
                 struct fp8_counters *tally);
/* One scale for tile[rows, FP8_TILE], of whose columns the first `cols` are looked at. */
float fp8_encode_block(uint8_t *codes, const float *tile, int64_t rows, int64_t cols,
                       bool power_of_two, struct fp8_counters *tally);
/* A scale for every column. tally NULL: not counted. */
void fp8_encode_columns(uint8_t *codes, float *scale, const float *tile, int64_t rows, int64_t cols,
                        bool power_of_two, struct fp8_counters *tally);
/* Any count. */
void fp8_decode(float *x, const uint8_t *code, float scale, int64_t count);
/* The scale a power of two: exact. */
void fp8_decode_bf16(uint16_t *x, const uint8_t *code, float scale, int64_t count);
/* Columns [col, col + count) of row r of q. */
void fp8_decode_row(float *x, const struct fp8_rows *q, int64_t r, int64_t col, int64_t count);

/* out[cols, 128] at out + c * out_row = codes[128, FP8_TILE] transposed; cols a multiple of 8. */
void fp8_transpose_codes(uint8_t *out, int64_t out_row, const uint8_t *codes, int64_t cols);

/* Where rows of codes go: as struct fp8_rows, or packed. */
struct fp8_out {
    uint8_t *code; /* row r at code + r * code_row; NULL: nowhere */
    char *scale;   /* a float for row r and tile t at scale + r * scale_row + t * scale_tile */
    int64_t code_row, scale_row, scale_tile; /* bytes */
    int64_t rest;                            /* bytes at the end of a packed row, 0 there */
};
struct fp8_out fp8_out_rows(struct fp8_rows q);
struct fp8_out fp8_out_packed(uint8_t *packed, int64_t cols);
/* Row r whole, from its numbers. */
void fp8_out_row(const struct fp8_out *out, int64_t r, const float *x, int64_t cols,
                 const struct fp8_how *how, struct fp8_counters *tally);
/* How many columns transposed rows have that are filled: b_groups of ops_fp8.h. */
int64_t fp8_filled_columns(const int64_t *offset, int64_t groups);

struct fp8_window {
    int64_t row, rows, col, cols; /* rows, cols <= FP8_TILE; col a multiple of it */
};

/* Quantises x[rows, cols], or the rows of its groups, plain as `out` and transposed as t (code
 * NULL: not wanted). */
struct fp8_work {
    int64_t rows, cols;
    struct fp8_out out;
    struct fp8_rows t;
    const int64_t *offset; /* NULL: one group of all rows */
    int64_t groups;
    const int32_t *row;        /* NULL, or [rows]: those below 0 are not counted */
    const struct fp8_how *how; /* counters NULL there: not counted */
    /* Writes tile[rows, FP8_TILE] of the window. */
    void (*fill)(float *tile, const void *from, struct fp8_window window);
    const void *from;
};
void fp8_work_run(struct device *device, const struct fp8_work *work);

/* One thread's counters into all. NULL: nowhere. */
void fp8_count(struct fp8_counters *all, const struct fp8_counters *tally);

/* Products by the model of Hopper's tensor cores (fp8_hopper.c). Scale of row r and tile t of k:
 * scale[(r >> row_shift) * scale_row + t * scale_tile]. */
struct fp8_operand {
    const uint8_t *code; /* [rows, row_bytes] from the first k on */
    const float *scale;  /* of the first k's tile */
    int64_t row_bytes, scale_row, scale_tile;
    int row_shift; /* 7: blocks of 128 rows share a scale; 0: none do */
};
struct fp8_product { /* c[m, n] = (add ? c : 0) + a[m, k] b[n, k]^T */
    struct fp8_operand a, b;
    int64_t m, n, k;
    void *c; /* [m, n] dense */
    enum dtype c_dtype;
    bool add, promoted;
};
void fp8_hopper_run(struct device *device, const struct fp8_product *product);

void cpu_fp8_quantize(struct device *, struct fp8_rows q, struct fp8_rows t, struct tensor x,
                      const int32_t *row, int64_t rows, const int64_t *offset, int64_t groups,
                      const struct fp8_how *how);
void cpu_fp8_transpose(struct device *, struct fp8_rows t, struct fp8_rows q, const int64_t *offset,
                       int64_t groups, const struct fp8_how *how);
void cpu_fp8_pack(struct device *, uint8_t *packed, struct tensor x, const int32_t *row,
                  int64_t rows, const struct fp8_how *how);
void cpu_fp8_unpack(struct device *, struct fp8_rows q, const uint8_t *packed, int64_t rows,
                    const int32_t *row);
void cpu_fp8_quantize_weights(struct device *, struct fp8_weights w, struct fp8_weights t,
                              const void *src, int64_t stride, const struct fp8_how *how);
void cpu_fp8_norm_forward(struct device *, struct fp8_rows q, struct tensor y, struct tensor sum,
                          float *rstd, struct tensor x, struct tensor delta, struct tensor w,
                          float eps, const struct fp8_how *how);
void cpu_fp8_swiglu_forward(struct device *, struct fp8_rows h, struct fp8_rows kept,
                            struct tensor gate_up, const int64_t *offset, int64_t groups,
                            const struct fp8_how *how);
void cpu_fp8_swiglu_backward(struct device *, struct fp8_rows d, struct fp8_rows dt,
                             struct fp8_rows ht, struct tensor dh, struct tensor gate_up,
                             struct fp8_rows kept, const int64_t *offset, int64_t groups,
                             const struct fp8_how *how);
void cpu_fp8_combine_rows_backward(struct device *, struct fp8_rows q, uint8_t *packed,
                                   float *dweight, struct tensor dy, struct tensor x,
                                   const int32_t *slot_row, const float *weight, int64_t top_k,
                                   const struct fp8_how *how);
void cpu_fp8_linear(struct device *, struct tensor y, struct fp8_rows x, struct fp8_weights w,
                    const int64_t *offset, bool add, const struct fp8_how *how);
void cpu_fp8_linear_weight(struct device *, float *dw, int64_t stride, struct fp8_rows dyt,
                           struct fp8_rows xt, const int64_t *offset, int64_t groups,
                           int64_t tokens, const struct fp8_how *how);
void cpu_e5m6_pack(struct device *, uint8_t *packed, struct tensor x);
void cpu_e5m6_unpack(struct device *, struct tensor x, const uint8_t *packed);

#endif
