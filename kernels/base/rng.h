/* rng: counter-based random numbers (Philox 4x32-10, Salmon et al. 2011).
 *
 * A number is a pure function of (key, index): nothing is stored, nothing depends on the order of
 * calls, so every layout and every resume draws the same values.
 */
#ifndef KERNELS_BASE_RNG_H
#define KERNELS_BASE_RNG_H

#include <stdint.h>

/* A 64-bit key from a seed and a name, e.g. a parameter's; different names give independent
 * streams. */
uint64_t rng_key(uint64_t seed, const char *name);

/* Key number `index` of a family of keys: no two (key, index) are related. */
uint64_t rng_subkey(uint64_t key, uint64_t index);

/* 128 random bits of (key, index). */
void rng_bits(uint64_t key, uint64_t index, uint32_t out[4]);

double rng_uniform(uint64_t key, uint64_t index); /* in [0, 1), 53 bits */
double rng_normal(uint64_t key, uint64_t index);  /* mean 0, variance 1 (Box-Muller) */

/* Index `i` of a pseudo-random permutation of [0, count), keyed; a Feistel network with cycle
 * walking. */
uint64_t rng_permute(uint64_t key, uint64_t i, uint64_t count);

#endif
