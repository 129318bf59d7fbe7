/* hash: XXH3-64 of bytes (xxHash library), for integrity against accidents, not attackers. */
#ifndef KERNELS_BASE_HASH_H
#define KERNELS_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash_bytes(const void *data, size_t bytes);
void hash_hex(char out[17], uint64_t hash); /* 16 lower-case digits and NUL */

#endif
