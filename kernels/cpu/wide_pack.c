#include "kernels/cpu/wide_pack.h"

#include <assert.h>

#ifdef __x86_64__
/* Where lines go that are adjacent in memory: words of a k lie side by side in panels of COLS, so
 * many words apart. What lies beyond `lines` is zero. */
struct panels {
    float *out;
    int64_t apart, lines;
};

/* Words of COLS lines, some of which may not be there. */
WIDE_INLINE static void pack_pairs(float *out, const char *row, const char *next, int64_t lines)
{
    const __m512i low_order =
        _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high_order = _mm512_add_epi16(low_order, _mm512_set1_epi16(16));
    const __mmask32 in = lines >= COLS ? 0xffffffffU : lines <= 0 ? 0 : (1U << lines) - 1;
    const __m512i a = _mm512_maskz_loadu_epi16(in, row),
                  b = next != NULL ? _mm512_maskz_loadu_epi16(in, next) : _mm512_setzero_si512();
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, low_order, b));
    _mm512_storeu_si512(out + LANES, _mm512_permutex2var_epi16(a, high_order, b));
}

/* Row by row, as they lie in memory. */
WIDE static void pack_rows_pairs(const struct panels *to, const struct operand *from,
                                 const char *at)
{
    float *out = to->out;
    for (int64_t k = 0; k < from->k; k += 2, out += COLS) {
        const char *row = at + k * from->step, *next = k + 1 < from->k ? row + from->step : NULL;
        int64_t j = 0;
        float *panel = out;
        for (; j + COLS <= to->lines && next != NULL; j += COLS, panel += to->apart) {
            pack_pairs(panel, row + j * 2, next + j * 2, COLS);
        }
        for (; j < to->lines; j += COLS, panel += to->apart) {
            pack_pairs(panel, row + j * 2, next == NULL ? NULL : next + j * 2, to->lines - j);
        }
    }
}

/* Words that are f32 are loaded as they are, or widened. */
WIDE_INLINE static __m512 load_word(bool widened, __mmask16 some, const char *from)
{
    return widened ? wide_load_bf16((const void *)from, some) : _mm512_maskz_loadu_ps(some, from);
}

/* The same of words of one k. */
WIDE_INLINE static void pack_words(float *out, bool widened, const char *row, int64_t lines)
{
    for (int64_t j = 0; j < COLS; j += LANES, row += LANES * (widened ? 2 : 4)) {
        _mm512_storeu_ps(out + j, load_word(widened, wide_first(lines - j), row));
    }
}

WIDE_INLINE static void pack_rows_words(bool widened, const struct panels *to,
                                        const struct operand *from, const char *at)
{
    const int64_t element = widened ? 2 : 4;
    float *out = to->out;
    for (int64_t k = 0; k < from->k; k++, out += COLS) {
        const char *row = at + k * from->step;
        float *panel = out;
        int64_t j = 0;
        for (; j + COLS <= to->lines; j += COLS, panel += to->apart) {
            pack_words(panel, widened, row + j * element, COLS);
        }
        for (; j < to->lines; j += COLS, panel += to->apart) {
            pack_words(panel, widened, row + j * element, to->lines - j);
        }
    }
}

WIDE static void pack_rows_f32(const struct panels *to, const struct operand *from, const char *at)
{
    pack_rows_words(false, to, from, at);
}

WIDE static void pack_rows_widened(const struct panels *to, const struct operand *from,
                                   const char *at)
{
    pack_rows_words(true, to, from, at);
}

/* --- blocks of lines --- */

/* 16 lines' words of one k; a pair's second one is `step` bytes behind, where it is there. */
WIDE_INLINE static __m512 block_word(enum gemm_way way, const char *row, int64_t step,
                                     __mmask16 some, bool second)
{
    if (way != GEMM_PAIRS) {
        return load_word(way == GEMM_WIDENED, some, row);
    }
    const __m256i low = _mm256_maskz_loadu_epi16(some, row),
                  high = _mm256_maskz_loadu_epi16(second ? some : 0, row + step);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                               _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
}

WIDE_INLINE static void pack_blocks(enum gemm_way way, float *out, const struct operand *from,
                                    const char *at, int64_t lines, int64_t blocks)
{
    const int64_t unit = word_elements(way), words = (from->k + unit - 1) / unit;
    int64_t begin[BLOCKS] = {0}; /* bytes */
    __mmask16 some[BLOCKS] = {0};
    for (int64_t i = 0; i < blocks; i++) {
        begin[i] = block_begin(lines, blocks, i) * operand_bytes(way);
        some[i] = wide_first(lines - block_begin(lines, blocks, i));
    }
    for (int64_t w = 0; w < words; w++, at += unit * from->step) {
        const bool second = w * unit + 1 < from->k;
        for (int64_t i = 0; i < blocks; i++) {
            _mm512_storeu_ps(out + (i * words + w) * LANES,
                             block_word(way, at + begin[i], from->step, some[i], second));
        }
    }
}

#define PACK_BLOCKS(NAME, WAY)                                                                     \
    WIDE static void NAME(float *out, const struct operand *from, const char *at, int64_t lines,   \
                          int64_t blocks)                                                          \
    {                                                                                              \
        pack_blocks(WAY, out, from, at, lines, blocks);                                            \
    }
PACK_BLOCKS(pack_blocks_f32, GEMM_F32)
PACK_BLOCKS(pack_blocks_pairs, GEMM_PAIRS)
PACK_BLOCKS(pack_blocks_widened, GEMM_WIDENED)
#undef PACK_BLOCKS

/* --- lines that are contiguous along k --- */

WIDE_INLINE static void pack_16_lines(float *out, int64_t out_row, const struct operand *from,
                                      const char *at, int64_t lines, bool widened)
{
    const int64_t words = from->k / word_elements(from->way),
                  bytes = operand_bytes(from->way) * word_elements(from->way);
    for (int64_t w = 0; w < words; w += LANES) {
        const __mmask16 some = wide_first(words - w);
        __m512i r[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            const char *line = at + i * from->line + w * bytes;
            r[i] = i >= lines ? _mm512_setzero_si512()
                   : widened  ? _mm512_castps_si512(wide_load_bf16((const void *)line, some))
                              : _mm512_maskz_loadu_epi32(some, line);
            /* The next panel's: a line is too short for the hardware to see a stream. */
            wide_prefetch(line, LANES * from->line);
        }
        wide_transpose_words(r);
        for (int i = 0; i < LANES && w + i < words; i++) {
            _mm512_storeu_si512(out + (w + i) * out_row, r[i]);
        }
    }
}

/* 16 lines, contiguous along k, from `at` on; what lies beyond `lines` is zero. All at once where
 * all are there: else they would go through memory. */
WIDE static void pack_lines(float *out, int64_t out_row, const struct operand *from, const char *at,
                            int64_t lines)
{
    if (lines >= LANES && from->way != GEMM_WIDENED) {
        pack_16_lines(out, out_row, from, at, LANES, false);
    } else {
        pack_16_lines(out, out_row, from, at, lines, from->way == GEMM_WIDENED);
    }
}

static bool adjacent(const struct operand *from)
{
    return from->line == operand_bytes(from->way);
}

void wide_pack_blocks(float *out, const struct operand *from, int64_t first, int64_t lines,
                      int64_t blocks)
{
    static void (*const pack[])(float *, const struct operand *, const char *, int64_t,
                                int64_t) = {[GEMM_F32] = pack_blocks_f32,
                                            [GEMM_PAIRS] = pack_blocks_pairs,
                                            [GEMM_WIDENED] = pack_blocks_widened};
    assert(adjacent(from) && blocks <= BLOCKS && lines <= blocks * LANES);
    pack[from->way](out, from, from->data + first * from->line, lines, blocks);
}

void wide_pack_columns(float *out, const struct operand *from, int64_t first, int64_t count)
{
    const int64_t panels = (count + COLS - 1) / COLS,
                  words = (from->k + word_elements(from->way) - 1) / word_elements(from->way);
    if (adjacent(from)) {
        static void (*const pack[])(const struct panels *, const struct operand *,
                                    const char *) = {[GEMM_F32] = pack_rows_f32,
                                                     [GEMM_PAIRS] = pack_rows_pairs,
                                                     [GEMM_WIDENED] = pack_rows_widened};
        const struct panels to = {.out = out, .apart = words * COLS, .lines = count};
        pack[from->way](&to, from, from->data + first * from->line);
        return;
    }
    for (int64_t j = 0; j < panels * COLS; j += LANES) {
        pack_lines(out + j / COLS * COLS * words + j % COLS, COLS, from,
                   from->data + (first + j) * from->line, count - j);
    }
}
#endif
