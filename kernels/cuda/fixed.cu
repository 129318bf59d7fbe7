/* fixed: gradients of weights as sums of integers: whatever the order, the same bits. */
#include <float.h>

#include "kernels/cuda/cuda_ops_fixed.h"
#include "kernels/cuda/rows.cuh"

typedef unsigned long long count;

/* One element per thread. Bytes: 4 in and out, 8 in and out. FLOPs: 2. Bound by memory. Counters
 * are integers, and what they count is rare. */
__global__ void __launch_bounds__(FLAT_THREADS)
    fixed_add_kernel(int64_t *sum, float *x, int64_t elements, struct fixed_point *fixed)
{
    const int64_t i = (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    if (i >= elements) {
        return;
    }
    const float value = x[i] * fixed->scale; /* exact, or beyond any limit */
    if (fabsf(value) <= fixed->limit) {
        sum[i] += (int64_t)rintf(value);
    } else {
        atomicAdd((count *)(fabsf(x[i]) <= FLT_MAX ? &fixed->saturated : &fixed->bad), 1ULL);
    }
    x[i] = 0;
}

void cuda_fixed_add(void *stream, int64_t *sum, float *x, int64_t elements,
                    struct fixed_point *fixed)
{
    if (elements > 0) {
        LAUNCH(fixed_add_kernel, flat_blocks(elements, 1), FLAT_THREADS, 0, (cudaStream_t)stream,
               sum, x, elements, fixed);
    }
}

/* Every step is exact: a power of two, and the leading bits of what is left. */
DEVICE void add_square(int64_t (&limb)[FIXED_LIMBS], double square)
{
    constexpr double unit[FIXED_LIMBS] = {0x1p0, 0x1p32, 0x1p64, 0x1p96, 0x1p128},
                     inverse[FIXED_LIMBS] = {0x1p0, 0x1p-32, 0x1p-64, 0x1p-96, 0x1p-128};
#pragma unroll
    for (int i = FIXED_LIMBS - 1; i >= 0; i--) {
        const int64_t digits = (int64_t)(square * inverse[i]);
        limb[i] += digits;
        square -= (double)digits * unit[i];
    }
}

enum { LANES = 8, SQUARE_CHUNKS = 4 * FLAT_THREADS / LANES /* of a block: four each */ };

/* Eight threads per chunk, whose squares add up as on the CPU: each thread's own in ascending
 * order, then the eight. Bytes an element: 8 in. FLOPs: 2. Bound by memory. */
__global__ void __launch_bounds__(FLAT_THREADS)
    fixed_squares_kernel(int64_t *square, const int64_t *__restrict__ sum, int64_t elements)
{
    const int lane = (int)threadIdx.x % LANES, in_warp = (int)threadIdx.x % 32;
    const int64_t chunks = elements / FIXED_CHUNK, first = (int64_t)blockIdx.x * SQUARE_CHUNKS;
    int64_t limb[FIXED_LIMBS] = {};
    for (int at = (int)threadIdx.x / LANES; at < SQUARE_CHUNKS; at += FLAT_THREADS / LANES) {
        const bool there = first + at < chunks;
        double own = 0, total = 0;
        for (int64_t i = lane; there && i < FIXED_CHUNK; i += LANES) {
            const double value = (double)(float)sum[(first + at) * FIXED_CHUNK + i];
            own += value * value; /* the product is exact: fused or not */
        }
        for (int j = 0; j < LANES; j++) {
            total += __shfl_sync(0xffffffffu, own, in_warp / LANES * LANES + j);
        }
        add_square(limb, there && lane == 0 ? total : 0);
    }
#pragma unroll
    for (int i = 0; i < FIXED_LIMBS; i++) {
        if (lane == 0 && limb[i] != 0) {
            atomicAdd((count *)&square[i], (count)limb[i]);
        }
    }
}

void cuda_fixed_squares(void *stream, int64_t *square, const int64_t *sum, int64_t elements)
{
    const int64_t chunks = elements / FIXED_CHUNK;
    assert(elements % FIXED_CHUNK == 0);
    if (chunks > 0) {
        LAUNCH(fixed_squares_kernel, (unsigned)((chunks + SQUARE_CHUNKS - 1) / SQUARE_CHUNKS),
               FLAT_THREADS, 0, (cudaStream_t)stream, square, sum, elements);
    }
}

/* To nearest, ties to even, like the CPU. Bytes an element: 8 in, 4 out. Bound by memory. */
__global__ void __launch_bounds__(FLAT_THREADS)
    fixed_decode_kernel(float *out, const int64_t *__restrict__ sum, int64_t elements,
                        float quantum)
{
    flat<1>(elements, [&](auto, int64_t i) { out[i] = (float)sum[i] * quantum; });
}

void cuda_fixed_decode(void *stream, float *out, const int64_t *sum, int64_t elements,
                       float quantum)
{
    if (elements > 0) {
        LAUNCH(fixed_decode_kernel, flat_blocks(elements, 1), FLAT_THREADS, 0, (cudaStream_t)stream,
               out, sum, elements, quantum);
    }
}

/* One warp: prefix sums of local * ranks counts, 32 at a time. Bound by latency. */
__global__ void __launch_bounds__(32)
    fixed_sources_kernel(int64_t *offset, const int32_t *__restrict__ message, int64_t local,
                         int64_t ranks, int64_t line)
{
    const int lane = (int)threadIdx.x;
    int64_t before = 0;
    for (int64_t first = 0; first < local * ranks; first += 32) {
        const int64_t i = first + lane;
        const bool there = i < local * ranks;
        const int64_t own = there ? message[i % ranks * line + i / ranks] : 0;
        int64_t sum = own;
        for (int step = 1; step < 32; step *= 2) {
            const int64_t other = __shfl_up_sync(0xffffffffu, sum, step);
            sum += lane >= step ? other : 0;
        }
        if (there) {
            offset[i] = before + sum - own;
        }
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
    if (lane == 0) {
        offset[local * ranks] = before;
    }
}

void cuda_fixed_expert_sources(void *stream, int64_t *offset, const int32_t *message,
                               struct padded_shape shape)
{
    const int64_t local = shape.experts / shape.ranks;
    LAUNCH(fixed_sources_kernel, 1, 32, 0, (cudaStream_t)stream, offset, message, local,
           shape.ranks, local + shape.pair_slots);
}
