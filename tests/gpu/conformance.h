/* conformance: what the wrappers of kernels/cuda/ptx.cuh do, recorded and compared. The same source
 * is compiled by nvcc for a device and by the host compiler for the emulator.
 *
 * Every case feeds a wrapper seeded random input and compares its output with a plain loop written
 * from the PTX manual. The outputs of a run can be saved (goldens) and compared with another run's:
 * a device's goldens are what the emulator's models have to give. Inputs are small integers
 * wherever the sums are then exact in every format, so that most cases agree bit for bit.
 */
#ifndef TESTS_GPU_CONFORMANCE_H
#define TESTS_GPU_CONFORMANCE_H

#include "emulator/check.h"

#include <string.h>
#include <string>

struct conformance_result {
    std::string name;
    double tolerance;           /* 0: the same bytes; else of floats, relative to 1 + |value| */
    std::vector<uint8_t> bytes; /* floats where tolerance > 0 */
};

struct conformance {
    uint64_t seed; /* of the inputs */
    bool right;
    std::vector<conformance_result> results;
};

/* Random bits of (seed, case, index): splitmix64. */
static inline uint64_t conformance_bits(uint64_t seed, const char *name, uint64_t index)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + index;
    for (; *name; name++)
        x = (x ^ (uint64_t)(unsigned char)*name) * 0x100000001b3u;
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}
/* A signed integer of magnitude up to `most`. */
static inline int conformance_integer(uint64_t seed, const char *name, uint64_t index, int most)
{
    return (int)(conformance_bits(seed, name, index) % (unsigned)(2 * most + 1)) - most;
}
static inline std::vector<uint8_t> conformance_bytes(uint64_t seed, const char *name, size_t count)
{
    std::vector<uint8_t> bytes(count);
    for (size_t i = 0; i < count; i++)
        bytes[i] = (uint8_t)conformance_bits(seed, name, i);
    return bytes;
}

/* Records `got`, which must be `want` byte for byte; `unit` bytes are one element of the report. */
void conformance_exact(struct conformance *c, const std::string &name, const void *got,
                       const void *want, size_t bytes, size_t unit);
/* Records floats, which must be within tolerance (1 + |want|). */
void conformance_close(struct conformance *c, const std::string &name,
                       const std::vector<float> &got, const std::vector<double> &want,
                       double tolerance);
template <class T>
void conformance_exact(struct conformance *c, const std::string &name, const std::vector<T> &got,
                       const std::vector<T> &want)
{
    conformance_exact(c, name, got.data(), want.data(), want.size() * sizeof(T), sizeof(T));
}

/* The cases. */
void conformance_barriers(struct conformance *c); /* ptx_barriers.cu */
void conformance_copies(struct conformance *c);   /* ptx_copies.cu */
void conformance_convert(struct conformance *c);  /* ptx_convert.cu */
void conformance_matrix(struct conformance *c);   /* ptx_matrix.cu */
void conformance_wgmma(struct conformance *c);    /* ptx_wgmma.cu */

#endif
