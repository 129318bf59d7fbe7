#include "kernels/cpu/noise.h"

#include "kernels/cpu/cpu.h"

/* rng_bits (Philox 4x32-10) of LANES counters side by side, for the vector units. */
CPU_CLONES static void fill(uint32_t *out, uint64_t key, uint64_t block, int64_t blocks)
{
    enum { LANES = 64, ROUNDS = 10 }; /* fewer are unrolled, not vectorised */
    for (int64_t at = 0; at < blocks; at += LANES) {
        uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];
        uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
        for (int i = 0; i < LANES; i++) {
            const uint64_t counter = block + (uint64_t)(at + i);
            c0[i] = (uint32_t)counter, c1[i] = (uint32_t)(counter >> 32), c2[i] = c3[i] = 0;
        }
        for (int round = 0; round < ROUNDS; round++) {
            for (int i = 0; i < LANES; i++) {
                const uint64_t p0 = (uint64_t)0xD2511F53u * c0[i],
                               p1 = (uint64_t)0xCD9E8D57u * c2[i];
                c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0;
                c1[i] = (uint32_t)p1;
                c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
                c3[i] = (uint32_t)p0;
            }
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        for (int i = 0; i < LANES && at + i < blocks; i++) {
            uint32_t *words = out + 4 * (at + i);
            words[0] = c0[i], words[1] = c1[i], words[2] = c2[i], words[3] = c3[i];
        }
    }
}

const uint32_t *noise_fill(uint32_t words[NOISE_WORDS], uint64_t key, uint64_t first, int64_t count)
{
    const int64_t skip = (int64_t)(first % 4);
    fill(words, key, first / 4, (skip + count + 3) / 4);
    return words + skip;
}
