#include "kernels/ops_fixed.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/fp8.h"
#include "kernels/cpu/gemm.h"

enum { PART = 1024 }; /* floats: stays in L1 */

static const float MOST = 4611686018427387904.0F; /* 2^62 */

/* Returns how many were left out. */
CPU_CLONES static int64_t add_part(int64_t *sum, const float *x, int64_t count, float scale,
                                   float limit)
{
    int64_t left_out = 0;
    for (int64_t i = 0; i < count; i++) {
        const float value = x[i] * scale; /* exact, or beyond any limit */
        const float kept = fabsf(value) <= limit ? value : 0.0F;
        sum[i] += (int64_t)rintf(kept);
        left_out += fabsf(value) <= limit ? 0 : 1;
    }
    return left_out;
}

/* Rows of the embedding whose token does not occur: most of them. */
CPU_CLONES static bool is_zero(const float *x, int64_t count)
{
    uint32_t any = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        any |= bits;
    }
    return any == 0;
}

static void count_left_out(struct fixed_point *fixed, const float *x, int64_t count)
{
    int64_t saturated = 0, bad = 0;
    for (int64_t i = 0; i < count; i++) {
        const bool finite = isfinite(x[i]);
        bad += !finite;
        saturated += finite && !(fabsf(x[i] * fixed->scale) <= fixed->limit);
    }
#pragma omp atomic
    fixed->saturated += saturated;
#pragma omp atomic
    fixed->bad += bad;
}

static void cpu_fixed_add(struct device *device, int64_t *sum, float *x, int64_t count,
                          struct fixed_point *fixed)
{
    const float scale = fixed->scale, limit = fixed->limit;
    assert(limit <= MOST);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i += PART) {
        const int64_t part = count - i < PART ? count - i : PART;
        if (is_zero(x + i, part)) {
            continue;
        }
        if (add_part(sum + i, x + i, part, scale, limit) > 0) {
            count_left_out(fixed, x + i, part);
        }
        memset(x + i, 0, (size_t)part * sizeof *x);
    }
}

static bool is_empty(const struct fixed_rows *rows)
{
    return rows->first >= rows->last;
}

/* The wanted rows of unit[out, in], which is zeros again. */
static void add_live(struct device *device, int64_t *sum, float *unit, int64_t out, int64_t in,
                     const struct fixed_rows *live, struct fixed_point *fixed)
{
    const struct fixed_rows rows = live != NULL ? *live : (struct fixed_rows){0, out};
    cpu_fixed_add(device, sum + rows.first * in, unit + rows.first * in,
                  (rows.last - rows.first) * in, fixed);
    if (live != NULL) {
        memset(unit, 0, (size_t)(rows.first * in) * sizeof *unit);
        memset(unit + rows.last * in, 0, (size_t)((out - rows.last) * in) * sizeof *unit);
    }
}

/* The experts' products of one source side by side, added as they are finished, where gemm_run does
 * that; the others one after the other through `unit`. */
static void grouped_backward_weight(struct device *device, int64_t *sum, int64_t w_stride,
                                    float *unit, struct tensor dy, struct tensor x,
                                    const int64_t *offset, int64_t experts, int64_t sources,
                                    const struct fixed_rows *live, struct fixed_point *fixed)
{
    struct gemm *batch = cpu_scratch(device, CPU_SLOT_BATCH, (size_t)experts * sizeof *batch);
    const int64_t out = dy.dim[1], in = x.dim[1];
    for (int64_t s = 0, count; s < sources; s++, gemm_run(device, batch, count)) {
        count = 0;
        for (int64_t e = 0; e < experts; e++) {
            const int64_t at = offset[e * sources + s], rows = offset[e * sources + s + 1] - at;
            const struct fixed_rows some = live != NULL ? live[e] : (struct fixed_rows){0, out};
            const struct tensor own = tensor_rows(&dy, at, rows), other = tensor_rows(&x, at, rows);
            struct gemm gemm = gemm_weight(unit, own, other);
            gemm.varies = true;
            if (rows == 0 || is_empty(&some)) {
                continue;
            }
            if (!gemm_is_wide(device, &gemm)) {
                cpu_linear_backward_weight(device, tensor_2d(unit, DTYPE_F32, out, in), own, other);
                add_live(device, sum + e * w_stride, unit, out, in, &some, fixed);
                continue;
            }
            gemm.m = some.last - some.first;
            gemm.a = (const char *)own.data + (size_t)some.first * dtype_bytes(own.dtype);
            gemm.c = sum + e * w_stride + some.first * in;
            gemm.c_dtype = DTYPE_I64;
            gemm.fixed = fixed;
            batch[count++] = gemm;
        }
    }
}

/* The same transposed rows from a group's first column on. */
static struct fp8_rows from_column(struct fp8_rows t, int64_t column)
{
    t.code += column;
    t.scale += column / FP8_TILE * t.pitch;
    return t;
}

/* Group by group: the operands of a product, and how far apart their rows are, are then the same
 * whatever the other groups. */
static void fp8_linear_weight(struct device *device, int64_t *sum, int64_t w_stride, float *unit,
                              struct fp8_rows dyt, struct fp8_rows xt, const int64_t *offset,
                              int64_t experts, int64_t sources, int64_t tokens,
                              const struct fixed_rows *live, const struct fp8_how *how,
                              struct fixed_point *fixed)
{
    int64_t column = 0;
    assert(offset[experts * sources] <= tokens);
    for (int64_t g = 0; g < experts * sources; g++) {
        const int64_t rows = offset[g + 1] - offset[g], own[2] = {0, rows};
        const struct fixed_rows *some = live != NULL ? &live[g / sources] : NULL;
        if (rows > 0 && (some == NULL || !is_empty(some))) {
            cpu_fp8_linear_weight(device, unit, 0, from_column(dyt, column),
                                  from_column(xt, column), own, 1, rows, how);
            add_live(device, sum + g / sources * w_stride, unit, dyt.rows, xt.rows, some, fixed);
        }
        column += fp8_tiles(rows) * FP8_TILE;
    }
    (void)tokens;
}

/* ---- the sum of squares, and back to f32 ---- */

/* Every step is exact: a power of two, and the leading bits of what is left. */
static inline void add_square(int64_t limb[FIXED_LIMBS], double square)
{
    static const double unit[FIXED_LIMBS] = {0x1p0, 0x1p32, 0x1p64, 0x1p96, 0x1p128},
                        inverse[FIXED_LIMBS] = {0x1p0, 0x1p-32, 0x1p-64, 0x1p-96, 0x1p-128};
    for (int i = FIXED_LIMBS - 1; i >= 0; i--) {
        const int64_t digits = (int64_t)(square * inverse[i]);
        limb[i] += digits;
        square -= (double)digits * unit[i];
    }
}

/* limb adds the sum of f(sum)^2: an integer, as every term is. */
CPU_CLONES static void square_chunk(int64_t limb[FIXED_LIMBS], const int64_t *sum)
{
    enum { LANES = 8 };
    double square[LANES] = {0}, total = 0;
    for (int64_t i = 0; i < FIXED_CHUNK; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            const double value = (double)(float)sum[i + j];
            square[j] += value * value;
        }
    }
    for (int j = 0; j < LANES; j++) {
        total += square[j];
    }
    add_square(limb, total);
}

static void squares(struct device *device, int64_t *square, const int64_t *sum, int64_t count)
{
    int64_t all[FIXED_LIMBS] = {0};
    assert(count % FIXED_CHUNK == 0);
#pragma omp parallel num_threads(device->threads)
    {
        int64_t own[FIXED_LIMBS] = {0};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; i += FIXED_CHUNK) {
            square_chunk(own, sum + i);
        }
#pragma omp critical(fixed_squares)
        for (int i = 0; i < FIXED_LIMBS; i++) {
            all[i] += own[i];
        }
    }
    for (int i = 0; i < FIXED_LIMBS; i++) {
        square[i] += all[i];
    }
}

CPU_CLONES void cpu_fixed_decode(float *out, const int64_t *sum, int64_t count, float quantum)
{
    for (int64_t i = 0; i < count; i++) {
        out[i] = (float)sum[i] * quantum;
    }
}

static void decode(struct device *device, float *out, const int64_t *sum, int64_t count,
                   float quantum)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t i = 0; i < count; i += PART) {
        cpu_fixed_decode(out + i, sum + i, count - i < PART ? count - i : PART, quantum);
    }
}

/* ---- whose rows are whose ---- */

static void expert_sources(struct device *device, int64_t *offset, const int32_t *message,
                           const struct padded_shape *shape)
{
    const int64_t local = shape->experts / shape->ranks, line = local + shape->pair_slots;
    int64_t row = 0;
    (void)device;
    for (int64_t e = 0; e < local; e++) {
        for (int64_t from = 0; from < shape->ranks; from++) {
            *offset++ = row;
            row += message[from * line + e];
        }
    }
    *offset = row;
}

const struct fixed_ops cpu_fixed_ops = {
    .add = cpu_fixed_add,
    .grouped_backward_weight = grouped_backward_weight,
    .fp8_linear_weight = fp8_linear_weight,
    .squares = squares,
    .decode = decode,
    .expert_sources = expert_sources,
};
