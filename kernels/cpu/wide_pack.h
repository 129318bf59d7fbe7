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
#define WIDE __attribute__((target("arch=x86-64-v4,avx512bf16,prfchw")))
#define WIDE_INLINE                                                                                \
    __attribute__((target("arch=x86-64-v4,avx512bf16,prfchw"), always_inline)) inline

/* The cache line that is so many bytes from there. It may lie behind the array: nothing is read.
 * Inlined by force: a function that does nothing else has no effect to GCC, which leaves it out. */
enum { LINE = 64 };
__attribute__((always_inline)) static inline void wide_prefetch(const void *from, int64_t bytes)
{
    _mm_prefetch((const char *)((uintptr_t)from + (uintptr_t)bytes), _MM_HINT_T0);
}

/* The same of a line that is to be written: no other core has it then. One that is only read may
 * be shared with the core that wrote it last, and a store waits until that has given it up. */
WIDE_INLINE static void wide_prefetch_write(const void *from, int64_t bytes)
{
    __builtin_prefetch((const char *)((uintptr_t)from + (uintptr_t)bytes), 1, 3);
}

/* One operand, whose lines lie side by side in a panel. Bytes from one line to the next, and from
 * one k to the next; one of the two is an element. */
struct operand {
    const char *data;
    int64_t line, step, k;
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

/* Adjacent lines [first, first + lines) in at most BLOCKS blocks of even height, of at most LANES
 * lines, so that a block's words of one k are a line of the cache: out[blocks][words][LANES]. What
 * stands there behind a block's lines is of no use. */
enum { BLOCKS = 4 };
void wide_pack_blocks(float *out, const struct operand *from, int64_t first, int64_t lines,
                      int64_t blocks);

/* Where block i of so many begins. */
static inline int64_t block_begin(int64_t lines, int64_t blocks, int64_t i)
{
    return lines * i / blocks;
}

/* Lines [first, first + count) in panels, zeros beyond the last:
 * out[ceil(count / COLS)][words][COLS]. */
void wide_pack_columns(float *out, const struct operand *from, int64_t first, int64_t count);
#endif

#endif
