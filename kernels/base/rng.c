#include "kernels/base/rng.h"

#include <assert.h>
#include <math.h>

uint64_t rng_key(uint64_t seed, const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u ^ (seed * 0x9e3779b97f4a7c15u); /* FNV-1a, seeded */
    for (const char *c = name; *c != '\0'; c++) {
        hash = (hash ^ (uint8_t)*c) * 0x100000001b3u;
    }
    hash ^= hash >> 33; /* final mix: short names must differ in every bit */
    hash *= 0xff51afd7ed558ccdu;
    return hash ^ (hash >> 33);
}

void rng_bits(uint64_t key, uint64_t index, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = 0, c3 = 0;
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

uint64_t rng_subkey(uint64_t key, uint64_t index)
{
    uint32_t bits[4];
    rng_bits(key, index, bits);
    return ((uint64_t)bits[0] << 32) | bits[1];
}

static double unit(uint32_t high, uint32_t low)
{
    return (double)((((uint64_t)high << 32) | low) >> 11) * 0x1p-53;
}

double rng_uniform(uint64_t key, uint64_t index)
{
    uint32_t bits[4];
    rng_bits(key, index, bits);
    return unit(bits[0], bits[1]);
}

double rng_normal(uint64_t key, uint64_t index)
{
    uint32_t bits[4];
    rng_bits(key, index, bits);
    const double radius = sqrt(-2.0 * log(1.0 - unit(bits[0], bits[1]))); /* 1 - u is never 0 */
    return radius * cos(6.283185307179586 * unit(bits[2], bits[3]));
}

static uint64_t feistel(uint64_t key, uint64_t value, int half_bits)
{
    const uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t left = value >> half_bits, right = value & mask;
    for (uint64_t round = 0; round < 4; round++) {
        uint32_t bits[4];
        rng_bits(key + round, right, bits);
        const uint64_t next = left ^ ((((uint64_t)bits[1] << 32) | bits[0]) & mask);
        left = right;
        right = next;
    }
    return (left << half_bits) | right;
}

uint64_t rng_permute(uint64_t key, uint64_t i, uint64_t count)
{
    assert(i < count);
    int half_bits = 1;
    while (half_bits < 32 && ((uint64_t)1 << (2 * half_bits)) < count) {
        half_bits++;
    }
    do { /* the domain is at most 4 * count, so few steps bring the walk back below count */
        i = feistel(key, i, half_bits);
    } while (i >= count);
    return i;
}
