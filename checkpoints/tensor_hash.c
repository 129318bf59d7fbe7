#include "checkpoints/tensor_hash.h"

#include <assert.h>
#include <string.h>

#define STEP UINT64_C(0x9e3779b97f4a7c15)
#define MIX UINT64_C(0xd6e8feb86659fd93)

/* The loops vectorise where the processor multiplies 64-bit lanes. Sanitizers run before the
 * choice of a clone could. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

static inline uint64_t term(uint64_t index, uint64_t bits)
{
    uint64_t t = (index + 1) * STEP ^ (bits + 1) * MIX;
    t = (t ^ t >> 32) * MIX;
    return t ^ t >> 32;
}

CLONES static uint64_t sum_8(const unsigned char *data, uint64_t first, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += term(first + i, data[i]);
    }
    return sum;
}

CLONES static uint64_t sum_16(const unsigned char *data, uint64_t first, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, data + 2 * i, sizeof bits);
        sum += term(first + i, bits);
    }
    return sum;
}

CLONES static uint64_t sum_32(const unsigned char *data, uint64_t first, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, data + 4 * i, sizeof bits);
        sum += term(first + i, bits);
    }
    return sum;
}

void tensor_hash_start(struct tensor_hash *hash, int64_t first, size_t width)
{
    assert(width == 1 || width == 2 || width == 4);
    *hash = (struct tensor_hash){.next = first, .width = width, .left = INT64_MAX};
}

void tensor_hash_runs(struct tensor_hash *hash, int64_t run, int64_t stride)
{
    hash->run = run;
    hash->stride = stride;
    hash->left = run > 0 ? run : INT64_MAX;
}

/* Behind `count` elements of the run. */
static void advance(struct tensor_hash *hash, int64_t count)
{
    hash->next += count;
    hash->left -= count;
    if (hash->left == 0) {
        hash->next += hash->stride - hash->run;
        hash->left = hash->run;
    }
}

/* Bytes one by one, until an element is complete or there are no more. */
static size_t complete(struct tensor_hash *hash, const unsigned char *data, size_t bytes)
{
    size_t used = 0;
    while (used < bytes && hash->held < hash->width) {
        hash->bits |= (uint32_t)data[used++] << (8 * hash->held++);
    }
    if (hash->held == hash->width) {
        hash->sum += term((uint64_t)hash->next, hash->bits);
        advance(hash, 1);
        hash->held = 0;
        hash->bits = 0;
    }
    return used;
}

void tensor_hash_add(struct tensor_hash *hash, const void *data, size_t bytes)
{
    const unsigned char *from = data;
    size_t used = hash->held > 0 ? complete(hash, from, bytes) : 0;
    for (size_t whole = (bytes - used) / hash->width; whole > 0;) {
        const size_t count = (uint64_t)hash->left < whole ? (size_t)hash->left : whole;
        const uint64_t first = (uint64_t)hash->next;
        hash->sum += hash->width == 4   ? sum_32(from + used, first, count)
                     : hash->width == 2 ? sum_16(from + used, first, count)
                                        : sum_8(from + used, first, count);
        advance(hash, (int64_t)count);
        used += count * hash->width;
        whole -= count;
    }
    if (used < bytes) {
        complete(hash, from + used, bytes - used);
    }
}
