#include "kernels/base/hash.h"

#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

struct hash128 hash_bytes_128(const void *data, size_t bytes, uint64_t seed)
{
    const XXH128_hash_t hash = XXH3_128bits_withSeed(data, bytes, seed);
    return (struct hash128){hash.low64, hash.high64};
}

void hash_hex(char out[17], uint64_t hash)
{
    snprintf(out, 17, "%016" PRIx64, hash);
}
