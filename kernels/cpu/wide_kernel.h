/* wide_kernel: the products of the wide kernel (gemm_wide.h) that are made in registers: rows of A,
 * each word of which is multiplied with a panel of B. x86-64 only. */
#ifndef KERNELS_CPU_WIDE_KERNEL_H
#define KERNELS_CPU_WIDE_KERNEL_H

#include "kernels/cpu/wide_pack.h"

/* Rows at most. */
enum { WIDE_ROWS = 14 };

#ifdef __x86_64__
/* What comes into the caches while a kernel multiplies: every LANES words, so that fills are
 * spread, a line for each of its rows, so many bytes from where it reads A, and WIDE_NEXT_LINES
 * lines from `next` on, twice as many if `twice`, which then moves by `step`. The hardware sees no
 * streams in rows this short. */
struct wide_ahead {
    int64_t a;
    const char *next;
    int64_t step;
    bool twice;
};
enum { WIDE_NEXT_LINES = 4 };

/* Where rows of A stand. Bytes from row to row, from word to word. */
struct wide_left {
    const char *data;
    int64_t row, step;
};

/* Where sums of 32 columns go, added to those that are in acc if `more`: to C, of which so many
 * columns are theirs, or, where that is NULL, to acc. */
struct wide_sums {
    float *acc; /* [rows][WIDE_TILE_N] */
    bool more;
    char *c;
    int64_t row; /* bytes from row to row */
    int64_t columns;
    const struct gemm *gemm;
};

/* Sums over `words` of `rows` of A and of b's panel [words][COLS], by to->gemm's way. */
void wide_kernel(int64_t rows, const struct wide_sums *to, struct wide_left left, const float *b,
                 int64_t words, struct wide_ahead ahead);
#endif

#endif
