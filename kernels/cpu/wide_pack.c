#include "kernels/cpu/wide_pack.h"

#include <assert.h>

#ifdef __x86_64__
/* At most 32 adjacent lines from `at` on: rows k and k + 1 become words, out_row words apart;
 * `room` words may be written. */
WIDE static void pack_rows_pairs(float *out, int64_t out_row, int64_t room,
                                 const struct operand *from, const char *at, int64_t lines)
{
    const __mmask32 in = lines >= 32 ? 0xffffffffU : (1U << lines) - 1;
    const __mmask16 low = wide_first(room), high = wide_first(room - LANES);
    const __m512i low_order =
        _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high_order = _mm512_add_epi16(low_order, _mm512_set1_epi16(16));
    for (int64_t k = 0; k < from->k; k += 2, out += out_row) {
        const char *row = at + k * from->step;
        const __m512i a = _mm512_maskz_loadu_epi16(in, row);
        const __m512i b = k + 1 < from->k ? _mm512_maskz_loadu_epi16(in, row + from->step)
                                          : _mm512_setzero_si512();
        _mm512_mask_storeu_epi32(out, low, _mm512_permutex2var_epi16(a, low_order, b));
        _mm512_mask_storeu_epi32(out + LANES, high, _mm512_permutex2var_epi16(a, high_order, b));
    }
}

/* Words that are f32 are loaded as they are, or widened. */
WIDE_INLINE static __m512 load_word(enum gemm_way way, __mmask16 some, const void *from)
{
    return way == GEMM_WIDENED ? wide_load_bf16(from, some) : _mm512_maskz_loadu_ps(some, from);
}

WIDE static void pack_rows_f32(float *out, int64_t out_row, int64_t room,
                               const struct operand *from, const char *at, int64_t lines)
{
    const __mmask16 in[2] = {wide_first(lines), wide_first(lines - LANES)};
    const __mmask16 to[2] = {wide_first(room), wide_first(room - LANES)};
    for (int64_t k = 0; k < from->k; k++, out += out_row) {
        const char *row = at + k * from->step;
        const char *next = row + LANES * operand_bytes(from->way);
        _mm512_mask_storeu_ps(out, to[0], load_word(from->way, in[0], row));
        _mm512_mask_storeu_ps(out + LANES, to[1], load_word(from->way, in[1], next));
    }
}

/* 16 lines of 16 words become 16 words of 16 lines. */
WIDE_INLINE static void transpose(__m512i r[LANES])
{
    __m512i t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* 16 lines, contiguous along k, from `at` on; what lies beyond `lines` is zero. */
WIDE static void pack_lines(float *out, int64_t out_row, const struct operand *from, const char *at,
                            int64_t lines)
{
    const int64_t words = from->k / word_elements(from->way),
                  bytes = operand_bytes(from->way) * word_elements(from->way);
    for (int64_t w = 0; w < words; w += LANES) {
        const __mmask16 some = wide_first(words - w);
        __m512i r[LANES];
        for (int i = 0; i < LANES; i++) {
            const char *line = at + i * from->line + w * bytes;
            r[i] = i >= lines ? _mm512_setzero_si512()
                   : from->way == GEMM_WIDENED
                       ? _mm512_castps_si512(wide_load_bf16((const void *)line, some))
                       : _mm512_maskz_loadu_epi32(some, line);
            /* The next panel's: a line is too short for the hardware to see a stream. */
            _mm_prefetch(line + LANES * from->line, _MM_HINT_T0);
        }
        transpose(r);
        for (int i = 0; i < LANES && w + i < words; i++) {
            _mm512_storeu_si512(out + (w + i) * out_row, r[i]);
        }
    }
}

void wide_pack_panel(float *out, const struct operand *from, int64_t first, int64_t width)
{
    const bool adjacent = from->line == operand_bytes(from->way);
    const char *at = from->data + first * from->line;
    assert(adjacent || width % LANES == 0);
    for (int64_t j = 0; j < width; j += adjacent ? COLS : LANES) {
        const int64_t lines = from->lines - first - j;
        if (!adjacent) {
            pack_lines(out + j, width, from, at + j * from->line, lines);
        } else if (from->way == GEMM_PAIRS) {
            pack_rows_pairs(out + j, width, width - j, from, at + j * from->line,
                            lines < 0 ? 0 : lines);
        } else {
            pack_rows_f32(out + j, width, width - j, from, at + j * from->line, lines);
        }
    }
}
#endif
