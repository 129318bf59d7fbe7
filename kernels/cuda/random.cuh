/* random: rng.h's numbers on the device (Philox 4x32-10, Salmon et al. 2011), bit for bit. */
#ifndef KERNELS_CUDA_RANDOM_CUH
#define KERNELS_CUDA_RANDOM_CUH

#include "kernels/cuda/rows.cuh"

DEVICE uint4 random_bits(uint64_t key, uint64_t index)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = 0, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

/* In [0, 1), 53 bits; exact. */
DEVICE double random_unit(uint32_t high, uint32_t low)
{
    return (double)((((uint64_t)high << 32) | low) >> 11) * 0x1p-53;
}

DEVICE double random_uniform(uint64_t key, uint64_t index)
{
    const uint4 bits = random_bits(key, index);
    return random_unit(bits.x, bits.y);
}

DEVICE double random_normal(uint64_t key, uint64_t index)
{
    const uint4 bits = random_bits(key, index);
    const double radius = sqrt(-2.0 * log(1.0 - random_unit(bits.x, bits.y)));
    return radius * cos(6.283185307179586 * random_unit(bits.z, bits.w));
}

/* Words of stochastic rounding of V elements from `first` on: word first % 4 of bits(first / 4). */
template <int V> DEVICE void noise_words(uint32_t (&words)[V], uint64_t key, uint64_t first)
{
    uint4 bits = random_bits(key, first / 4);
#pragma unroll
    for (int i = 0; i < V; i++) {
        const unsigned at = (unsigned)(first + (uint64_t)i) % 4;
        if (i > 0 && at == 0) {
            bits = random_bits(key, (first + (uint64_t)i) / 4);
        }
        words[i] = at == 0 ? bits.x : at == 1 ? bits.y : at == 2 ? bits.z : bits.w;
    }
}

/* bf16_from_float_noise of tensor.h. */
DEVICE uint32_t bf16_bits_noise(float x, uint32_t noise)
{
    const uint32_t bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return (nan ? bits | 0x400000u : bits + (noise & 0xffffu)) >> 16;
}

template <int V> DEVICE void store_noise(bf16 *p, const float (&x)[V], const uint32_t (&noise)[V])
{
    if constexpr (V == 4) {
        *(uint2 *)p =
            make_uint2(bf16_bits_noise(x[0], noise[0]) | bf16_bits_noise(x[1], noise[1]) << 16,
                       bf16_bits_noise(x[2], noise[2]) | bf16_bits_noise(x[3], noise[3]) << 16);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) {
            p[i] = __ushort_as_bfloat16((unsigned short)bf16_bits_noise(x[i], noise[i]));
        }
    }
}

#endif
