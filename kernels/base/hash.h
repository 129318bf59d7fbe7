/* hash: XXH3-64 of bytes (xxHash library), for integrity against accidents, not attackers. */
#ifndef KERNELS_BASE_HASH_H
#define KERNELS_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t bytes);
/* XXH3-128, to tell contents apart without keeping them. */
struct hash128 {
    uint64_t low, high;
};
struct hash128 hash_bytes_128(const void *data, size_t bytes, uint64_t seed);
void hash_hex(char out[17], uint64_t hash); /* 16 lower-case digits and NUL */

#endif
