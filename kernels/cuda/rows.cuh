/* rows: elements of f32 or bf16 storage as f32, sixteen bytes at a time where they are aligned;
 * sums in fixed trees; the shapes of launches. For kernels that compute in f32 whatever the
 * storage.
 */
#ifndef KERNELS_CUDA_ROWS_CUH
#define KERNELS_CUDA_ROWS_CUH

#include <assert.h>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/simt.cuh"

#define DEVICE static __device__ __forceinline__

using bf16 = __nv_bfloat16;

/* ---- elements ---- */

DEVICE float to_float(float x)
{
    return x;
}

DEVICE float to_float(bf16 x)
{
    return __bfloat162float(x);
}

DEVICE void store_one(float *p, float x)
{
    *p = x;
}

DEVICE void store_one(bf16 *p, float x)
{
    *p = __float2bfloat16_rn(x);
}

/* What a store to T rounds to. */
template <class T> DEVICE float round_to(float x)
{
    T stored;
    store_one(&stored, x);
    return to_float(stored);
}

/* x = V elements from p on. V of 2, 4 and 8: p is aligned to all of them, up to 16 bytes. */
template <int V> DEVICE void load(float (&x)[V], const float *p)
{
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            const float4 part = *(const float4 *)(p + i);
            x[i] = part.x, x[i + 1] = part.y, x[i + 2] = part.z, x[i + 3] = part.w;
        }
    } else if constexpr (V == 2) {
        const float2 part = *(const float2 *)p;
        x[0] = part.x, x[1] = part.y;
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) {
            x[i] = p[i];
        }
    }
}

DEVICE void unpack(float *x, uint32_t pair)
{
    x[0] = __uint_as_float(pair << 16);
    x[1] = __uint_as_float(pair & 0xffff0000u);
}

template <int V> DEVICE void load(float (&x)[V], const bf16 *p)
{
    if constexpr (V == 8) {
        const uint4 part = *(const uint4 *)p;
        unpack(x, part.x), unpack(x + 2, part.y), unpack(x + 4, part.z), unpack(x + 6, part.w);
    } else if constexpr (V == 4) {
        const uint2 part = *(const uint2 *)p;
        unpack(x, part.x), unpack(x + 2, part.y);
    } else if constexpr (V == 2) {
        unpack(x, *(const uint32_t *)p);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) {
            x[i] = to_float(p[i]);
        }
    }
}

template <int V> DEVICE void store(float *p, const float (&x)[V])
{
    if constexpr (V % 4 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 4) {
            *(float4 *)(p + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
        }
    } else if constexpr (V == 2) {
        *(float2 *)p = make_float2(x[0], x[1]);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) {
            p[i] = x[i];
        }
    }
}

DEVICE uint32_t pack(const float *x)
{
    return (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(x[0])) |
           (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(x[1])) << 16;
}

template <int V> DEVICE void store(bf16 *p, const float (&x)[V])
{
    if constexpr (V == 8) {
        *(uint4 *)p = make_uint4(pack(x), pack(x + 2), pack(x + 4), pack(x + 6));
    } else if constexpr (V == 4) {
        *(uint2 *)p = make_uint2(pack(x), pack(x + 2));
    } else if constexpr (V == 2) {
        *(uint32_t *)p = pack(x);
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) {
            store_one(p + i, x[i]);
        }
    }
}

DEVICE float sigmoid(float x)
{
    return 1.0F / (1.0F + expf(-x));
}

/* ---- sums: every lane or thread gets the result ---- */

template <class S> DEVICE S warp_sum(S x)
{
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, bits);
    }
    return x;
}

/* Of a block of whole warps, threadIdx.x only; `part`: 32 shared elements, free again on return. */
template <class S> DEVICE S block_sum(S x, S *part)
{
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) {
        part[threadIdx.x / 32] = x;
    }
    __syncthreads();
    S sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) {
        sum += part[warp];
    }
    __syncthreads();
    return sum;
}

/* ---- arrays: element i of `count` ---- */

enum { FLAT_THREADS = 256 };

template <int v> struct elements {
    static constexpr int value = v;
};

/* Calls body(elements<V>, i) for the thread's V elements, or body(elements<1>, i) for each of the
 * array's last ones. */
template <int V, class F> DEVICE void flat(int64_t count, F body)
{
    int64_t i = ((int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x) * V;
    if (i + V <= count) {
        body(elements<V>(), i);
        return;
    }
    for (; i < count; i++) {
        body(elements<1>(), i);
    }
}

static inline unsigned flat_blocks(int64_t count, int v)
{
    const int64_t per_block = (int64_t)FLAT_THREADS * v;
    return (unsigned)((count + per_block - 1) / per_block);
}

/* ---- rows side by side: threads (x, y), y a row, x along it ---- */

enum { TILE_THREADS = 128 };

struct tile {
    dim3 grid, block;
};

/* As many threads along a row as it has parts, a power of two. */
static inline struct tile tile_of(int64_t rows, int64_t parts)
{
    unsigned x = 1;
    while (x < TILE_THREADS && x < parts) {
        x *= 2;
    }
    const unsigned y = TILE_THREADS / x;
    return {dim3((unsigned)((rows + y - 1) / y)), dim3(x, y)};
}

DEVICE int64_t tile_row()
{
    return (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
}

/* ---- choice of the kernel on the host ---- */

/* Threads of a block that works on one row of `parts`: whole warps, up to 256. */
static inline unsigned row_threads(int64_t parts)
{
    return parts >= 256 ? 256 : parts <= 32 ? 32 : (unsigned)((parts + 31) / 32 * 32);
}

static inline bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0; /* NULL too: an operand that is not there */
}

static inline int pack_of(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : 8;
}

template <class T, int V> struct storage {
    using type = T;
    static constexpr int pack = V;
};

/* Calls run(storage<T, V>): V elements are 16 bytes, or one where the operands are not `wide`. */
template <class F> static inline void dispatch(enum dtype dtype, bool wide, F run)
{
    assert(dtype == DTYPE_F32 || dtype == DTYPE_BF16);
    if (dtype == DTYPE_F32) {
        wide ? run(storage<float, 4>()) : run(storage<float, 1>());
    } else {
        wide ? run(storage<bf16, 8>()) : run(storage<bf16, 1>());
    }
}

#endif
