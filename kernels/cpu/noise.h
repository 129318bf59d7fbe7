/* noise: random words for stochastic rounding, many at a time. */
#ifndef KERNELS_CPU_NOISE_H
#define KERNELS_CPU_NOISE_H

#include <stdint.h>

/* Elements a call makes at most, and the words its buffer holds. */
enum { NOISE_MOST = 4096, NOISE_WORDS = NOISE_MOST + 64 };

/* Word of element `first + i`, i < count <= NOISE_MOST: word (first + i) % 4 of rng_bits(key,
 * (first + i) / 4). Returns the word of element `first`, inside `words`. */
const uint32_t *noise_fill(uint32_t words[NOISE_WORDS], uint64_t key, uint64_t first,
                           int64_t count);

#endif
