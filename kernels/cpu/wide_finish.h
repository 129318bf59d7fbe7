/* wide_finish: where sums of the wide kernel (gemm_wide.h) go: to C as it is stored, added to it,
 * to integers, or, as powers, to the softmax of a head. x86-64 only. */
#ifndef KERNELS_CPU_WIDE_FINISH_H
#define KERNELS_CPU_WIDE_FINISH_H

#include "kernels/cpu/wide_pack.h"

/* Columns of a task's sums: from one row of them to the next. A piece of gemm_exp. */
enum { WIDE_TILE_N = GEMM_EXP_COLUMNS };
_Static_assert(WIDE_TILE_N % COLS == 0, "whole panels");

#ifdef __x86_64__
/* Sums acc[m][WIDE_TILE_N], of them n columns, of C's rows from `row` and columns from `col` on. */
void wide_finish_rows(const struct gemm *gemm, int64_t row, int64_t col, const float *acc,
                      int64_t m, int64_t n);
#endif

#endif
