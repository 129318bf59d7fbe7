/* What this machine's cores can do at most: products that never leave the registers, and copies of
 * more than the caches hold. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/tile.h"

enum { CHAINS = 12, TURNS = 200000, ROUNDS = 4, LANES = 16 };
static const size_t COPIED = (size_t)128 << 20; /* bytes, of all threads */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

typedef float lanes __attribute__((vector_size(64), may_alias));

/* Chains that do not wait for one another; 2 FLOPs an element, TURNS times. */
CPU_CLONES static float chains_f32(void)
{
    lanes sum[CHAINS] = {0}, factor = {0}, scale = {0};
    factor += 0.5F;
    scale += 1e-3F;
    for (int i = 0; i < CHAINS; i++) {
        sum[i] += (float)i; /* equal chains would become one */
    }
    for (int turn = 0; turn < TURNS; turn++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = sum[i] * factor + scale;
        }
    }
    for (int i = 1; i < CHAINS; i++) {
        sum[0] += sum[i];
    }
    return sum[0][0];
}

#ifdef __x86_64__
__attribute__((target("arch=x86-64-v4,avx512bf16"))) static float chains_pairs(void)
{
    const __m512bh factor = (__m512bh)_mm512_set1_ps(1e-3F);
    __m512 sum[CHAINS];
    for (int i = 0; i < CHAINS; i++) {
        sum[i] = _mm512_set1_ps((float)i);
    }
    for (int turn = 0; turn < TURNS; turn++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            sum[i] = _mm512_dpbf16_ps(sum[i], factor, factor);
        }
    }
    for (int i = 1; i < CHAINS; i++) {
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    }
    return _mm512_reduce_add_ps(sum[0]);
}
#else
static float chains_pairs(void)
{
    return 0;
}
#endif

static double fma_flops(const struct device *device, bool pairs)
{
    double best = 0;
    float sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        const double start = now();
#pragma omp parallel num_threads(device->threads) reduction(+ : sum)
        sum += pairs ? chains_pairs() : chains_f32();
        const double rate = (pairs ? 4.0 : 2.0) * LANES * CHAINS * TURNS * (double)device->threads /
                            (now() - start);
        best = rate > best ? rate : best;
    }
    return sum == -1 ? 0 : best; /* never: the sums are used */
}

static double copy_bytes(const struct device *device)
{
    const size_t part = COPIED / (size_t)device->threads / 64 * 64;
    char *from = malloc(2 * COPIED), *to = from + COPIED;
    double best = 0;
    for (int round = 0; from != NULL && round <= ROUNDS; round++) {
        const double start = now();
#pragma omp parallel for num_threads(device->threads) schedule(static)
        for (int i = 0; i < device->threads; i++) {
            if (round == 0) {
                memset(from + (size_t)i * part, 1, part); /* or all pages would be one, of zeros */
            }
            memcpy(to + (size_t)i * part, from + (size_t)i * part, part);
        }
        const double rate = 2.0 * (double)part * (double)device->threads / (now() - start);
        best = round > 0 && rate > best ? rate : best; /* the first brings the pages */
    }
    free(from);
    return best;
}

void cpu_ceilings(struct device *device, enum dtype dtype, struct device_ceilings *out)
{
    const double pairs = dtype == DTYPE_BF16 && tile_has_pairs() ? fma_flops(device, true) : 0,
                 f32 = fma_flops(device, false);
    out->fma_flops = pairs > f32 ? pairs : f32;
    out->copy_bytes = copy_bytes(device);
}
