#include <string.h>

#include "kernels/cpu/fp8.h"

/* Numbers to E4M3 codes and back, by integer arithmetic that vectorises. */

enum { LEAST_NORMAL = 121 << 23 }; /* bits of 2^-6 */

/* The code nearest to y (not NaN), ties to even, at most 448. The magnitude is cut off first: then
 * rounding cannot reach NaN's code. Subnormals are counted in units of 2^-9: adding 2^14 leaves 9
 * bits behind the point. */
static inline uint32_t encode(float y)
{
    union {
        float f;
        uint32_t u;
    } in = {.f = y};
    const int32_t most = (int32_t)fp8_bits(FP8_LARGEST), magnitude = (int32_t)fp8_bits(y);
    const uint32_t u = (uint32_t)(magnitude < most ? magnitude : most);
    const uint32_t normal = (u - (120U << 23) + 0x7ffffU + (u >> 20 & 1U)) >> 20;
    const uint32_t small = fp8_bits(fp8_from_bits(u) + 16384.0F) - fp8_bits(16384.0F);
    return ((int32_t)u < LEAST_NORMAL ? small : normal) | (in.u >> 24 & 0x80U);
}

static inline float decode(uint32_t code)
{
    const uint32_t magnitude = code & 0x7fU, sign = (code & 0x80U) << 24;
    const uint32_t normal = (magnitude << 20) + (120U << 23);
    const uint32_t small = fp8_bits((float)(int32_t)magnitude * 0x1p-9F);
    const uint32_t finite = magnitude < 8 ? small : normal;
    union {
        uint32_t u;
        float f;
    } value = {.u = (magnitude == FP8_NAN ? 0x7fc00000U : finite) | sign};
    return value.f;
}

/* The largest bits without sign. */
CPU_CLONES static uint32_t largest(const float *x, int64_t count)
{
    int32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        const int32_t bits = (int32_t)fp8_bits(x[i]);
        most = bits > most ? bits : most;
    }
    return (uint32_t)most;
}

CPU_CLONES static void encode_all(uint8_t *restrict code, const float *restrict x, float inverse,
                                  int64_t count, struct fp8_counters *tally)
{
    uint32_t under = 0, over = 0;
    for (int64_t i = 0; i < count; i++) {
        const float y = x[i] * inverse;
        const uint32_t c = encode(y);
        code[i] = (uint8_t)c;
        under += fp8_bits(x[i]) != 0 && (c & 0x7fU) == 0 ? 1U : 0U;
        over += (int32_t)fp8_bits(y) > (int32_t)fp8_bits(FP8_LARGEST) ? 1U : 0U;
    }
    tally->underflows += under;
    tally->saturated += over;
}

static void tally_amax(struct fp8_counters *tally, uint32_t amax)
{
    tally->amax = amax > tally->amax ? amax : tally->amax;
}

float fp8_encode(uint8_t *code, const float *x, int64_t count, bool power_of_two,
                 struct fp8_counters *tally)
{
    const uint32_t amax = largest(x, count);
    tally->values += (uint64_t)count;
    if (fp8_is_bad(amax)) {
        memset(code, FP8_NAN, (size_t)count);
        tally->bad_tiles++;
        return 1.0F;
    }
    const struct fp8_scale s = fp8_scale_of(amax, power_of_two);
    tally_amax(tally, amax);
    encode_all(code, x, s.inverse, count, tally);
    return s.scale;
}

float fp8_encode_block(uint8_t *codes, const float *tile, int64_t rows, int64_t cols,
                       bool power_of_two, struct fp8_counters *tally)
{
    uint32_t amax = 0;
    for (int64_t r = 0; r < rows; r++) {
        const uint32_t row = largest(tile + r * FP8_TILE, cols);
        amax = row > amax ? row : amax;
    }
    tally->values += (uint64_t)(rows * cols);
    if (fp8_is_bad(amax)) {
        memset(codes, FP8_NAN, (size_t)(rows * FP8_TILE));
        tally->bad_tiles++;
        return 1.0F;
    }
    const struct fp8_scale s = fp8_scale_of(amax, power_of_two);
    tally_amax(tally, amax);
    for (int64_t r = 0; r < rows; r++) {
        encode_all(codes + r * FP8_TILE, tile + r * FP8_TILE, s.inverse, cols, tally);
    }
    return s.scale;
}

/* most[cols]: the largest bits of each column. */
CPU_CLONES static void largest_columns(int32_t *restrict most, const float *restrict tile,
                                       int64_t rows, int64_t cols)
{
    memset(most, 0, (size_t)cols * sizeof *most);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) {
            const int32_t bits = (int32_t)fp8_bits(tile[r * FP8_TILE + c]);
            most[c] = bits > most[c] ? bits : most[c];
        }
    }
}

CPU_CLONES static void encode_columns(uint8_t *restrict codes, const float *restrict tile,
                                      const float *restrict inverse, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) {
            codes[r * FP8_TILE + c] = (uint8_t)encode(tile[r * FP8_TILE + c] * inverse[c]);
        }
    }
}

/* Only where the transposed codes are what is counted. */
static void count_column(const uint8_t *codes, const float *tile, float inverse, int64_t rows,
                         struct fp8_counters *tally)
{
    for (int64_t r = 0; r < rows; r++) {
        const float x = tile[r * FP8_TILE];
        tally->underflows += fp8_bits(x) != 0 && (codes[r * FP8_TILE] & 0x7fU) == 0 ? 1U : 0U;
        tally->saturated += fp8_bits(x * inverse) > fp8_bits(FP8_LARGEST) ? 1U : 0U;
    }
}

void fp8_encode_columns(uint8_t *codes, float *scale, const float *tile, int64_t rows, int64_t cols,
                        bool power_of_two, struct fp8_counters *tally)
{
    int32_t most[FP8_TILE];
    float inverse[FP8_TILE];
    bool bad = false;
    largest_columns(most, tile, rows, cols);
    for (int64_t c = 0; c < cols; c++) {
        const bool good = !fp8_is_bad((uint32_t)most[c]);
        const struct fp8_scale s = fp8_scale_of(good ? (uint32_t)most[c] : 0, power_of_two);
        scale[c] = good ? s.scale : 1.0F;
        inverse[c] = s.inverse;
        bad = bad || !good;
    }
    encode_columns(codes, tile, inverse, rows, cols);
    for (int64_t c = 0; c < cols && (bad || tally != NULL); c++) {
        const bool good = !fp8_is_bad((uint32_t)most[c]);
        for (int64_t r = 0; r < rows && !good; r++) {
            codes[r * FP8_TILE + c] = FP8_NAN;
        }
        if (tally != NULL) {
            tally->values += (uint64_t)rows;
            tally->bad_tiles += good ? 0U : 1U;
            tally_amax(tally, good ? (uint32_t)most[c] : 0);
        }
        if (tally != NULL && good) {
            count_column(codes + c, tile + c, inverse[c], rows, tally);
        }
    }
}

CPU_CLONES void fp8_decode(float *restrict x, const uint8_t *restrict code, float scale,
                           int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        x[i] = decode(code[i]) * scale;
    }
}

CPU_CLONES void fp8_decode_bf16(uint16_t *restrict x, const uint8_t *restrict code, float scale,
                                int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        union {
            float f;
            uint32_t u;
        } value = {.f = decode(code[i]) * scale};
        x[i] = (uint16_t)(value.u >> 16);
    }
}

void fp8_decode_row(float *x, const struct fp8_rows *q, int64_t r, int64_t col, int64_t count)
{
    while (count > 0) {
        const int64_t tile = col / FP8_TILE, left = (tile + 1) * FP8_TILE - col;
        const int64_t n = count < left ? count : left;
        fp8_decode(x, q->code + r * q->cols + col, q->scale[tile * q->pitch + r], n);
        x += n;
        col += n;
        count -= n;
    }
}

/* 8 x 8 bytes: halves, quarters and eighths of the square change places. */
static inline void transpose_square(uint8_t *out, int64_t out_row, const uint8_t *in)
{
    static const uint64_t keep[3] = {0x00000000ffffffffULL, 0x0000ffff0000ffffULL,
                                     0x00ff00ff00ff00ffULL};
    uint64_t row[8];
    for (int64_t i = 0; i < 8; i++) {
        memcpy(&row[i], in + i * FP8_TILE, sizeof row[i]);
    }
#pragma GCC unroll 3
    for (int step = 0; step < 3; step++) {
        const int apart = 4 >> step, bits = 8 * apart;
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            if ((i & apart) == 0) {
                const uint64_t a = row[i], b = row[i + apart];
                row[i] = (a & keep[step]) | (b & keep[step]) << bits;
                row[i + apart] = (a >> bits & keep[step]) | (b & ~keep[step]);
            }
        }
    }
    for (int64_t i = 0; i < 8; i++) {
        memcpy(out + i * out_row, &row[i], sizeof row[i]);
    }
}

void fp8_transpose_codes(uint8_t *out, int64_t out_row, const uint8_t *codes, int64_t cols)
{
    for (int64_t c = 0; c < cols; c += 8) {
        for (int64_t r = 0; r < FP8_TILE; r += 8) {
            transpose_square(out + c * out_row + r, out_row, codes + r * FP8_TILE + c);
        }
    }
}
