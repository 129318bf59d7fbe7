/* intrinsics_host: atomics and one-instruction functions of CUDA C++; part of simt_host.h. */
#ifndef EMULATOR_INTRINSICS_HOST_H
#define EMULATOR_INTRINSICS_HOST_H

/* ---- atomics: relaxed, as on the device; really atomic, so that the race checker knows them ----
 */
template <class T, class F> T emu_atomic(T *p, F change)
{
    T old, next;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do
        next = change(old);
    while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
#define EMU_ATOMIC(name, expression)                                                               \
    template <class T> T atomic##name(T *p, std::common_type_t<T> v)                               \
    {                                                                                              \
        return emu_atomic(p, [v](T old) { return (T)(expression); });                              \
    }
EMU_ATOMIC(Add, old + v)
EMU_ATOMIC(Sub, old - v)
EMU_ATOMIC(Max, v > old ? v : old)
EMU_ATOMIC(Min, v < old ? v : old)
EMU_ATOMIC(And, old &v)
EMU_ATOMIC(Or, old | v)
EMU_ATOMIC(Xor, old ^ v)
EMU_ATOMIC(Exch, ((void)old, v))
EMU_ATOMIC(Inc, old >= v ? 0 : old + 1)
#undef EMU_ATOMIC
template <class T> T atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> v)
{
    T old = expected;
    __atomic_compare_exchange(p, &old, &v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
}

/* ---- loads and stores with cache hints ---- */
#define EMU_LOAD(name)                                                                             \
    template <class T> T name(const T *p)                                                          \
    {                                                                                              \
        return *p;                                                                                 \
    }
EMU_LOAD(__ldg)
EMU_LOAD(__ldca)
EMU_LOAD(__ldcg)
EMU_LOAD(__ldcs)
EMU_LOAD(__ldlu)
EMU_LOAD(__ldcv)
#undef EMU_LOAD
#define EMU_STORE(name)                                                                            \
    template <class T> void name(T *p, std::common_type_t<T> value)                                \
    {                                                                                              \
        *p = value;                                                                                \
    }
EMU_STORE(__stwb)
EMU_STORE(__stcg)
EMU_STORE(__stcs)
EMU_STORE(__stwt)
#undef EMU_STORE

/* ---- bits ---- */
inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline unsigned __brev(unsigned x)
{
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++)
        reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector)
{
    uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned nibble = selector >> (4 * i);
        unsigned byte = (unsigned)(bytes >> (8 * (nibble & 7))) & 0xff;
        if (nibble & 8)
            byte = byte & 0x80 ? 0xff : 0;
        result |= byte << (8 * i);
    }
    return result;
}
inline unsigned __float_as_uint(float x)
{
    return emu_value<unsigned>(emu_bits(x));
}
inline int __float_as_int(float x)
{
    return emu_value<int>(emu_bits(x));
}
inline float __uint_as_float(unsigned x)
{
    return emu_value<float>(emu_bits(x));
}
inline float __int_as_float(int x)
{
    return emu_value<float>(emu_bits(x));
}

/* ---- arithmetic: correctly rounded where the device approximates ---- */
inline int __float2int_rn(float x)
{
    return (int)nearbyintf(x);
}
inline int __float2int_rz(float x)
{
    return (int)x;
}
inline int __float2int_rd(float x)
{
    return (int)floorf(x);
}
inline int __float2int_ru(float x)
{
    return (int)ceilf(x);
}
inline float __int2float_rn(int x)
{
    return (float)x;
}
inline float __fdividef(float a, float b)
{
    return a / b;
}
inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
inline float __fadd_rn(float a, float b)
{
    return a + b;
}
inline float __fsub_rn(float a, float b)
{
    return a - b;
}
inline float __fmul_rn(float a, float b)
{
    return a * b;
}
inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
inline float __frcp_rn(float x)
{
    return 1 / x;
}
inline float __fsqrt_rn(float x)
{
    return sqrtf(x);
}
inline float __frsqrt_rn(float x)
{
    return (float)(1 / sqrt((double)x));
}
inline float rsqrtf(float x)
{
    return (float)(1 / sqrt((double)x));
}
inline float __saturatef(float x)
{
    return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;
}
/* Macros: glibc declares some of these names itself. */
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, (x))
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf((x), (y))
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanhf(x) tanhf(x)

/* ---- bf16 functions that NVIDIA's header has for the device only ---- */
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c)
{
    return __float2bfloat16_rn(fmaf(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c)
{
    return __nv_bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}

#endif
