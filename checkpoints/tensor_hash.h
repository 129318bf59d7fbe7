/* tensor_hash: a hash of a tensor's elements that does not depend on how they were divided.
 *
 * The sum, modulo 2^64, of term(i, bits of element i) over the flattened tensor, so that the sums
 * of parts, in any order, add up to that of the whole. With 64-bit arithmetic modulo 2^64:
 *   t = (i + 1) * 0x9e3779b97f4a7c15 ^ (bits + 1) * 0xd6e8feb86659fd93
 *   t = (t ^ t >> 32) * 0xd6e8feb86659fd93;  term = t ^ t >> 32
 * For one i it differs for any two values, so a change of one element always shows. It finds
 * accidents, not attackers.
 */
#ifndef CHECKPOINTS_TENSOR_HASH_H
#define CHECKPOINTS_TENSOR_HASH_H

#include <stddef.h>
#include <stdint.h>

/* A run of elements on its way, in pieces of any length. */
struct tensor_hash {
    uint64_t sum;        /* of the elements that are complete */
    int64_t next;        /* index of the next element */
    int64_t run, stride; /* run 0: elements in one; else in runs, their firsts so far apart */
    int64_t left;        /* elements of the run from `next` on */
    size_t width;        /* bytes of an element: 1, 2 or 4 */
    size_t held;         /* bytes of `next` seen so far */
    uint32_t bits;       /* these, little-endian */
};

/* Elements from index `first` on. */
void tensor_hash_start(struct tensor_hash *hash, int64_t first, size_t width);
/* Right behind the start: in runs of `run` elements whose firsts are `stride` apart. */
void tensor_hash_runs(struct tensor_hash *hash, int64_t run, int64_t stride);
/* The next `bytes` bytes. */
void tensor_hash_add(struct tensor_hash *hash, const void *data, size_t bytes);

#endif
