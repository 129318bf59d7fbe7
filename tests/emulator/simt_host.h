/* simt_host: CUDA C++ for a host compiler, the emulator's half of kernels/cuda/simt.cuh. */
#ifndef EMULATOR_SIMT_HOST_H
#define EMULATOR_SIMT_HOST_H

#include "emulator/emulator.h"

#include <algorithm>
#include <cmath>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <tuple>
#include <type_traits>
#include <vector_functions.h>

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)
#define threadIdx emu_thread_index
#define blockIdx emu_block_index
#define blockDim emu_block_dim
#define gridDim emu_grid_dim
static const int warpSize __attribute__((unused)) = 32;
using std::max;
using std::min;

#define SMEM(type, name, dims)                                                                     \
    using name##_shared_type = type dims;                                                          \
    static char name##_shared_key;                                                                 \
    name##_shared_type &name = *(name##_shared_type *)emu_shared_static(                           \
        &name##_shared_key, sizeof(name##_shared_type), alignof(name##_shared_type))
#define SMEM_DYN(name) unsigned char *name = (unsigned char *)emu_shared_dynamic()
#define ALLOW_SMEM(kernel, bytes) emu_allow_shared((const void *)(kernel), (size_t)(bytes))
#define LAUNCH(kernel, grid, block, smem_bytes, stream, ...)                                       \
    LAUNCH_CLUSTER(kernel, 1, grid, block, smem_bytes, stream __VA_OPT__(, ) __VA_ARGS__)
#define LAUNCH_CLUSTER(kernel, cluster, grid, block, smem_bytes, stream, ...)                      \
    emu_launch((kernel),                                                                           \
               emu_grid{dim3(grid),                                                                \
                        dim3(block),                                                               \
                        (size_t)(smem_bytes),                                                      \
                        (const void *)(kernel),                                                    \
                        #kernel,                                                                   \
                        {__FILE__, __LINE__},                                                      \
                        (cluster)},                                                                \
               (stream)__VA_OPT__(, ) __VA_ARGS__)

/* ---- launch: arguments converted to the kernel's own parameter types and captured by value ----
 */
template <class... P> struct emu_call {
    void (*kernel)(P...);
    std::tuple<std::decay_t<P>...> arguments;
    static void run(void *self)
    {
        emu_call *call = (emu_call *)self;
        std::apply(call->kernel, call->arguments);
    }
};
template <class... P, class... A>
void emu_launch(void (*kernel)(P...), const emu_grid &grid, cudaStream_t stream, A &&...arguments)
{
    static_assert((std::is_trivially_copyable_v<std::decay_t<P>> && ...),
                  "kernel parameters are copied as bytes");
    emu_call<P...> call{kernel, {static_cast<P>(arguments)...}};
    emu_enqueue_grid(stream, &grid, &emu_call<P...>::run, &call, sizeof call);
}

/* ---- block and warp collectives ---- */
#define EMU_FULL_WARP 0xffffffffu
inline void __syncthreads(EMU_AT)
{
    emu_barrier(0, 0, 0, nullptr, EMU_HERE);
}
inline int __syncthreads_count(int predicate, EMU_AT)
{
    int votes;
    emu_barrier(0, 0, predicate != 0, &votes, EMU_HERE);
    return votes;
}
inline int __syncthreads_or(int predicate, EMU_AT)
{
    return __syncthreads_count(predicate, emu_file, emu_line) != 0;
}
inline int __syncthreads_and(int predicate, EMU_AT)
{
    return __syncthreads_count(!predicate, emu_file, emu_line) == 0;
}
inline void __syncwarp(unsigned mask = EMU_FULL_WARP, EMU_AT)
{
    emu_warp(mask, EMU_SYNCWARP, 0, true, EMU_HERE);
}
template <class T> uint64_t emu_bits(T value)
{
    static_assert(sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T> T emu_value(uint64_t bits)
{
    T value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
template <class T> T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMU_AT)
{
    const uint64_t *slots = emu_warp(mask, EMU_SHUFFLE, emu_bits(value), false, EMU_HERE);
    return emu_value<T>(slots[(emu_lane() & ~(width - 1)) + (lane & (width - 1))]);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_AT)
{
    const uint64_t *slots = emu_warp(mask, EMU_SHUFFLE, emu_bits(value), false, EMU_HERE);
    int own = emu_lane(), other = own ^ bits;
    return emu_value<T>(slots[(other & ~(width - 1)) <= (own & ~(width - 1)) ? other : own]);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_AT)
{
    const uint64_t *slots = emu_warp(mask, EMU_SHUFFLE, emu_bits(value), false, EMU_HERE);
    int own = emu_lane(), other = own + (int)delta;
    return emu_value<T>(slots[(own & (width - 1)) + (int)delta < width ? other : own]);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_AT)
{
    const uint64_t *slots = emu_warp(mask, EMU_SHUFFLE, emu_bits(value), false, EMU_HERE);
    int own = emu_lane();
    return emu_value<T>(slots[(own & (width - 1)) >= (int)delta ? own - (int)delta : own]);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_AT)
{
    const uint64_t *slots = emu_warp(mask, EMU_VOTE, predicate != 0, false, EMU_HERE);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
        votes |= (mask >> i & 1 && slots[i]) ? 1u << i : 0;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, EMU_AT)
{
    return __ballot_sync(mask, predicate, emu_file, emu_line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMU_AT)
{
    return __ballot_sync(mask, predicate, emu_file, emu_line) == mask;
}
template <class T> unsigned __match_any_sync(unsigned mask, T value, EMU_AT)
{
    const uint64_t *slots = emu_warp(mask, EMU_MATCH, emu_bits(value), false, EMU_HERE);
    unsigned equal = 0;
    for (int i = 0; i < 32; i++)
        equal |= (mask >> i & 1 && slots[i] == emu_bits(value)) ? 1u << i : 0;
    return equal;
}
template <class T, class F> T emu_warp_reduce(unsigned mask, T value, F combine, struct emu_at at)
{
    static_assert(std::is_integral_v<T> && sizeof(T) == 4,
                  "__reduce_*_sync is for 32-bit integers");
    const uint64_t *slots = emu_warp(mask, EMU_REDUCE, emu_bits(value), false, at);
    int first = __builtin_ctz(mask);
    T sum = emu_value<T>(slots[first]);
    for (int i = first + 1; i < 32; i++)
        if (mask >> i & 1)
            sum = combine(sum, emu_value<T>(slots[i]));
    return sum;
}
#define EMU_REDUCE_SYNC(name, expression)                                                          \
    template <class T> T __reduce_##name##_sync(unsigned mask, T value, EMU_AT)                    \
    {                                                                                              \
        return emu_warp_reduce(                                                                    \
            mask, value, [](T a, T b) { return (T)(expression); }, EMU_HERE);                      \
    }
EMU_REDUCE_SYNC(add, (unsigned)a + (unsigned)b)
EMU_REDUCE_SYNC(min, a < b ? a : b)
EMU_REDUCE_SYNC(max, a > b ? a : b)
EMU_REDUCE_SYNC(and, a &b)
EMU_REDUCE_SYNC(or, a | b)
EMU_REDUCE_SYNC(xor, a ^ b)
#undef EMU_REDUCE_SYNC
inline void __threadfence()
{
}
inline void __threadfence_block()
{
}
inline void __nanosleep(unsigned, EMU_AT)
{
    emu_yield(EMU_HERE);
}
inline void __trap(EMU_AT)
{
    emu_fail(EMU_HERE, "__trap");
}

#include "emulator/intrinsics_host.h"

#endif
