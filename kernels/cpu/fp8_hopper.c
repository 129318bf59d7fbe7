#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/fp8.h"
#include "kernels/cpu/rows.h"

/* A model of how Hopper's tensor cores sum products of E4M3 (DeepSeek-V3, arXiv 2412.19437, 3.3.2
 * and 3.5.2): the 32 products of one step and the sum so far are aligned to the largest of them,
 * cut off (towards zero) below 13 bits of fraction, and added exactly. The emulator of
 * tests/emulator/wgmma.cpp models the same.
 *
 * Promoted: every 128 of k the register's sum is multiplied by the scales, added to an f32, and
 * starts from 0 again. Unpromoted: one register over all of k, which no tensor core could do with
 * scales that change on the way, so they are multiplied into the operands: what is shown is the
 * loss of bits, not an instruction. (Arbitrary scales: such products are rounded to f32 first.) */

enum { STEP = 32, LANES = 16, CHUNK = 64, FRACTION = 13, LEAST = FRACTION + 1 };

/* sum[LANES] after one step: a[STEP], b[STEP, LANES]. */
CPU_CLONES static void run_step(float *restrict sum, const float *restrict a,
                                const float *restrict b)
{
    float product[STEP * LANES], unit[LANES], inverse[LANES], total[LANES];
    int32_t most[LANES];
    for (int j = 0; j < LANES; j++) {
        most[j] = (int32_t)fp8_bits(sum[j]);
    }
    for (int k = 0; k < STEP; k++) {
        for (int j = 0; j < LANES; j++) {
            const float p = a[k] * b[k * LANES + j];
            const int32_t bits = (int32_t)fp8_bits(p);
            product[k * LANES + j] = p;
            most[j] = bits > most[j] ? bits : most[j];
        }
    }
    for (int j = 0; j < LANES; j++) {
        const int32_t exponent = most[j] >> 23 > LEAST ? most[j] >> 23 : LEAST;
        unit[j] = fp8_from_bits((uint32_t)(exponent - FRACTION) << 23);
        inverse[j] = fp8_from_bits((uint32_t)(254 - exponent + FRACTION) << 23);
        total[j] = truncf(sum[j] * inverse[j]);
    }
    for (int k = 0; k < STEP; k++) {
        for (int j = 0; j < LANES; j++) {
            total[j] += truncf(product[k * LANES + j] * inverse[j]); /* integers below 2^24 */
        }
    }
    for (int j = 0; j < LANES; j++) {
        sum[j] = total[j] * unit[j]; /* NaN and infinity come through */
    }
}

/* x[k rounded up to STEP] = row r as numbers, or as bare codes where scales come later. */
static void decode_row(float *x, const struct fp8_operand *o, int64_t r, int64_t k, bool bare)
{
    for (int64_t at = 0; at < k; at += FP8_TILE) {
        const float *scale =
            o->scale + (r >> o->row_shift) * o->scale_row + at / FP8_TILE * o->scale_tile;
        fp8_decode(x + at, o->code + r * o->row_bytes + at, bare ? 1.0F : *scale,
                   k - at < FP8_TILE ? k - at : FP8_TILE);
    }
    for (int64_t at = k; at % STEP != 0; at++) {
        x[at] = 0.0F;
    }
}

/* out[LANES] = row r of a times the panel's rows of b, from column n on. */
static void run_row(float *out, const struct fp8_product *p, const float *a, const float *panel,
                    int64_t r, int64_t n)
{
    float sum[LANES] = {0};
    memset(out, 0, LANES * sizeof *out);
    for (int64_t k = 0; k < p->k; k += STEP) {
        run_step(sum, a + k, panel + k * LANES);
        if (!p->promoted || ((k + STEP) % FP8_TILE != 0 && k + STEP < p->k)) {
            continue;
        }
        const int64_t tile = k / FP8_TILE;
        const float scale =
            p->a.scale[(r >> p->a.row_shift) * p->a.scale_row + tile * p->a.scale_tile];
        for (int64_t j = 0; j < LANES && n + j < p->n; j++) {
            out[j] +=
                scale *
                p->b.scale[((n + j) >> p->b.row_shift) * p->b.scale_row + tile * p->b.scale_tile] *
                sum[j];
        }
        memset(sum, 0, sizeof sum);
    }
    if (!p->promoted) {
        memcpy(out, sum, sizeof sum);
    }
}

static void store(const struct fp8_product *p, int64_t r, int64_t n, const float *sum)
{
    const int64_t count = p->n - n < LANES ? p->n - n : LANES;
    float old[LANES];
    row_load(old, p->c, p->c_dtype, r * p->n + n, count);
    for (int64_t j = 0; j < count; j++) {
        old[j] = sum[j] + (p->add ? old[j] : 0.0F);
    }
    row_store(p->c, p->c_dtype, r * p->n + n, old, count);
}

/* Rows [m, m + CHUNK) of LANES columns from n on. a[k], panel[k, LANES]: scratch. */
static void run_task(const struct fp8_product *p, int64_t m, int64_t n, float *a, float *panel)
{
    const int64_t deep = (p->k + STEP - 1) / STEP * STEP;
    float sum[LANES];
    memset(panel, 0, (size_t)(deep * LANES) * sizeof *panel);
    for (int64_t j = 0; j < LANES && n + j < p->n; j++) {
        decode_row(a, &p->b, n + j, p->k, p->promoted);
        for (int64_t k = 0; k < deep; k++) {
            panel[k * LANES + j] = a[k];
        }
    }
    for (int64_t r = m; r < p->m && r < m + CHUNK; r++) {
        decode_row(a, &p->a, r, p->k, p->promoted);
        run_row(sum, p, a, panel, r, n);
        store(p, r, n, sum);
    }
}

void fp8_hopper_run(struct device *device, const struct fp8_product *p)
{
    const int64_t deep = (p->k + STEP - 1) / STEP * STEP, panels = (p->n + LANES - 1) / LANES,
                  chunks = (p->m + CHUNK - 1) / CHUNK;
    const size_t room = (size_t)(deep * (LANES + 1)); /* floats of one thread */
    float *scratch =
        cpu_scratch(device, CPU_SLOT_FP8, (size_t)device->threads * room * sizeof *scratch);
#pragma omp parallel num_threads(device->threads)
    {
        float *a = scratch + (size_t)omp_get_thread_num() * room, *panel = a + deep;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < panels * chunks; task++) {
            run_task(p, task % chunks * CHUNK, task / chunks * LANES, a, panel);
        }
    }
}
