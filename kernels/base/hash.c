#include "kernels/base/hash.h"

#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

void hash_hex(char out[17], uint64_t hash)
{
    snprintf(out, 17, "%016" PRIx64, hash);
}
