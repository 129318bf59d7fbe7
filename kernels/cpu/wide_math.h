/* wide_math: sixteen f32 at a time on processors with AVX-512 (tile_has_wide), for loops that the
 * compiler's own vectors leave far from their bound: bf16 in and out, transposing, exp and sigmoid.
 * Every lane is computed alike: where an element stands decides nothing. */
#ifndef KERNELS_CPU_WIDE_MATH_H
#define KERNELS_CPU_WIDE_MATH_H

#ifdef __x86_64__
#include <immintrin.h>
#include <stdint.h>

enum { WIDE_LANES = 16 };
#define WIDE_FUNCTION __attribute__((target("arch=x86-64-v4")))
#define WIDE_MATH __attribute__((target("arch=x86-64-v4"), always_inline)) static inline

/* The first `count` of 16 lanes; none where it is not above 0. */
WIDE_MATH __mmask16 wide_first(int64_t count)
{
    return (__mmask16)(count >= WIDE_LANES ? 0xffffU : count <= 0 ? 0 : (1U << count) - 1);
}

WIDE_MATH __m512 wide_widen(__m256i bf16)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

/* `some` of 16 elements; the others are 0. */
WIDE_MATH __m512 wide_load_bf16(const uint16_t *in, __mmask16 some)
{
    return wide_widen(some == 0xffffU ? _mm256_loadu_si256((const __m256i *)(const void *)in)
                                      : _mm256_maskz_loadu_epi16(some, in));
}

/* bf16_from_float in the upper half of each lane; what is below is of no use. */
WIDE_MATH __m512i wide_round_bf16(__m512 x)
{
    const __m512i bits = _mm512_castps_si512(x),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1)),
                  up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    return _mm512_mask_or_epi32(_mm512_add_epi32(bits, up), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q),
                                bits, _mm512_set1_epi32(0x400000));
}

/* Rounded to bf16: 32 elements of two vectors, */
WIDE_MATH __m512i wide_narrow(__m512 low, __m512 high)
{
    const __m512i upper =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(wide_round_bf16(low), upper, wide_round_bf16(high));
}

/* and `some` of one. */
WIDE_MATH void wide_store_some(uint16_t *out, __m512 x, __mmask16 some)
{
    const __m256i bf16 = _mm512_cvtepi32_epi16(_mm512_srli_epi32(wide_round_bf16(x), 16));
    if (some == 0xffffU) { /* without a mask: quicker */
        _mm256_storeu_si256((__m256i *)(void *)out, bf16);
    } else {
        _mm256_mask_storeu_epi16(out, some, bf16);
    }
}

/* 16 vectors of 16 words become 16 words of 16 vectors. */
WIDE_MATH void wide_transpose_words(__m512i r[WIDE_LANES])
{
    __m512i t[WIDE_LANES];
#pragma GCC unroll 8
    for (int i = 0; i < WIDE_LANES; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < WIDE_LANES; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* e^x as fast_exp makes it, above 88 e^88, but below -87 e^-87. */
WIDE_MATH __m512 wide_exp(__m512 x)
{
    /* Bounds come first: of them and NaN, NaN stays. */
    const __m512 in =
        _mm512_max_ps(_mm512_set1_ps(-87.0F), _mm512_min_ps(_mm512_set1_ps(88.0F), x));
    const __m512 shift = _mm512_set1_ps(12582912.0F); /* 1.5 * 2^23: rounds to an integer */
    const __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(in, _mm512_set1_ps(1.44269504F), shift), shift);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), in),
           p = _mm512_set1_ps(1.38888889e-3F);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4F), r);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.33333333e-3F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.16666667e-2F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.66666667e-1F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0e-1F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0F));
    return _mm512_scalef_ps(p, n);
}

/* 1 / (1 + e^-x) */
WIDE_MATH __m512 wide_sigmoid(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0F), minus = _mm512_sub_ps(_mm512_setzero_ps(), x);
    return _mm512_div_ps(one, _mm512_add_ps(one, wide_exp(minus)));
}
#endif

#endif
