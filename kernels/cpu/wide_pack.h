/* wide_pack: operands of the wide kernel (gemm_wide.h) as panels, and what both files are made of.
 * x86-64 only. */
#ifndef KERNELS_CPU_WIDE_PACK_H
#define KERNELS_CPU_WIDE_PACK_H

#include <stdint.h>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/wide_math.h"

/* Bytes of a word; words of a vector; columns of a panel of B. */
enum { WORD = 4, LANES = 16, COLS = 32 };

#ifdef __x86_64__

/* Any AVX-512: instructions of AVX512_BF16 come by their intrinsics alone, on the way of pairs. */
#define WIDE __attribute__((target("arch=x86-64-v4,avx512bf16")))
#define WIDE_INLINE __attribute__((target("arch=x86-64-v4,avx512bf16"), always_inline)) inline

/* One operand: `lines` of it lie side by side in a panel. Bytes from one line to the next, and from
 * one k to the next; one of the two is an element. */
struct operand {
    const char *data;
    int64_t line, step, lines, k;
    enum gemm_way way;
};

/* Bytes of an element of an operand; elements of k in a word of a panel. */
static inline int64_t operand_bytes(enum gemm_way way)
{
    return way == GEMM_F32 ? 4 : 2;
}

static inline int64_t word_elements(enum gemm_way way)
{
    return way == GEMM_PAIRS ? 2 : 1;
}

/* Lines [first, first + width) side by side, zeros beyond the last: out[words][width]. width a
 * multiple of 16, or any where lines are adjacent in memory. */
void wide_pack_panel(float *out, const struct operand *from, int64_t first, int64_t width);
#endif

#endif
