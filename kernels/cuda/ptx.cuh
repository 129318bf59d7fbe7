/* ptx: Hopper's instructions that CUDA C++ has no function for, one line each, named for what they
 * do.
 *
 * The only file with inline assembly. Every wrapper is the whole idiom (mbarrier_wait is the loop),
 * so the emulator can model what it means; its half is tests/emulator/ptx_host.h. What needs
 * sm_90a: mbarrier_*, tma_*, cluster_*, wgmma_*, registers_*, stmatrix_*, elect_one. From sm_80 on:
 * mma_*, cp_async_*, max_nan; from sm_89 on: e4m3x2_*. ldmatrix_*, named_barrier_*: anywhere.
 *
 * mbarrier: 8 bytes of shared memory. `parity` starts at 0 and flips each time the barrier
 * completes; mbarrier_wait(bar, p) returns once the phase of parity p has completed, so a consumer
 * first waits for 0, and a producer that finds all stages free waits for 1 (which passes at once).
 * TMA: destination and source in shared memory 128-byte aligned (1024 with 128-byte swizzle), sizes
 *   multiples of 16 bytes; rows outside the tensor read as zero and are not written. Written by one
 *   thread. Generic writes to shared memory need fence_proxy_async by the writers, then a barrier,
 *   before a TMA store or a wgmma reads them.
 * Clusters: blocks launched by LAUNCH_CLUSTER run at once, numbered by cluster_rank. Another one's
 *   shared memory may be touched (mbarrier_arrive_at, multicast) once cluster_sync has followed its
 *   mbarrier_init, and as long as it has not returned: hence a cluster_sync at the end too. A phase
 *   counts bytes that another block's TMA delivers, before its own thread has announced them too.
 * wgmma: all 128 threads of a warpgroup. D[64, N] += A[64, K] B[N, K]^T, A and B in shared memory;
 *   thread t holds rows 16 (t / 32) + (t % 32) / 4 (+ 8 for elements 4i + 2, 4i + 3) and columns
 *   8 i + 2 (t % 4) (+ 1). wgmma_fence before the first of a group and whenever registers of the
 *   accumulator were touched; accumulators must not be touched before wgmma_wait.
 */
#ifndef KERNELS_CUDA_PTX_CUH
#define KERNELS_CUDA_PTX_CUH

#include "kernels/cuda/simt.cuh"

#include <cuda.h>

/* Swizzle field of a matrix descriptor. */
enum wgmma_swizzle { SWIZZLE_NONE = 0, SWIZZLE_128B = 1, SWIZZLE_64B = 2, SWIZZLE_32B = 3 };

#ifdef __CUDACC__
#define PTX static __device__ __forceinline__

PTX uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- mbarrier ---- */

PTX void mbarrier_init(uint64_t *bar, uint32_t arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals)
                 : "memory");
}

/* Makes initialised barriers visible to the async proxy; __syncthreads must follow. */
PTX void fence_mbarrier_init()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

PTX void mbarrier_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}

/* Arrives and announces `bytes` that TMA will deliver before the phase can complete. */
PTX void mbarrier_arrive_expect_tx(uint64_t *bar, uint32_t bytes)
{
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)),
        "r"(bytes)
        : "memory");
}

/* Arrives at the mbarrier that block `rank` of the cluster has at this place. */
PTX void mbarrier_arrive_at(uint64_t *bar, uint32_t rank)
{
    asm volatile("{\n.reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n}" ::"r"(
                     shared_address(bar)),
                 "r"(rank)
                 : "memory");
}

PTX bool mbarrier_test(uint64_t *bar, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(bar)), "r"(parity)
                 : "memory");
    return done != 0;
}

PTX void mbarrier_wait(uint64_t *bar, uint32_t parity)
{
    asm volatile("{\n.reg .pred p;\n"
                 "again_%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra done_%=;\n"
                 "bra again_%=;\n"
                 "done_%=:\n}" ::"r"(shared_address(bar)),
                 "r"(parity)
                 : "memory");
}

/* ---- TMA ---- */

PTX void fence_proxy_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

PTX void tma_prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

PTX void tma_load_1d(void *shared, const void *global, uint32_t bytes, uint64_t *bar)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(shared)),
        "l"(global), "r"(bytes), "r"(shared_address(bar))
        : "memory");
}

/* The box of `map` whose first element is column x, row y. */
PTX void tma_load_2d(void *shared, const CUtensorMap *map, uint64_t *bar, int x, int y)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y)
                 : "memory");
}

/* ... into every block of the cluster whose bit of `mask` is set, at the same place of each, whose
 * mbarrier at that place counts the bytes. */
PTX void tma_load_2d_multicast(void *shared, const CUtensorMap *map, uint64_t *bar, int x, int y,
                               uint16_t mask)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(shared)),
        "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "h"(mask)
        : "memory");
}

/* A box of plane z. */
PTX void tma_load_3d(void *shared, const CUtensorMap *map, uint64_t *bar, int x, int y, int z)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
                 "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

PTX void tma_store_1d(void *global, const void *shared, uint32_t bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
                 "r"(shared_address(shared)), "r"(bytes)
                 : "memory");
}

PTX void tma_store_2d(const CUtensorMap *map, const void *shared, int x, int y)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
        "r"(shared_address(shared)), "r"(x), "r"(y)
        : "memory");
}

/* Adds the box to global memory, element by element (order between CTAs is free). */
PTX void tma_reduce_add_2d(const CUtensorMap *map, const void *shared, int x, int y)
{
    asm volatile(
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2, %3}], [%1];" ::
            "l"(map),
        "r"(shared_address(shared)), "r"(x), "r"(y)
        : "memory");
}

PTX void tma_store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* Waits until all but the newest `pending` groups of this thread have read shared memory ... */
template <int pending> PTX void tma_store_wait_read()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

/* ... or have written global memory too. */
template <int pending> PTX void tma_store_wait()
{
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(pending) : "memory");
}

/* ---- clusters ---- */

PTX uint32_t cluster_rank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of all blocks of the cluster. */
PTX void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release;\n"
                 "barrier.cluster.wait.acquire;" ::
                     : "memory");
}

/* ---- registers, barriers, election ---- */

template <int count> PTX void registers_increase()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count> PTX void registers_decrease()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

PTX void named_barrier_sync(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

PTX void named_barrier_arrive(int id, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* True in one lane of a converged warp. */
PTX bool elect_one()
{
    uint32_t elected;
    asm volatile("{\n.reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(elected));
    return elected != 0;
}

/* ---- cp.async, ldmatrix, stmatrix, mma ---- */

/* 16 bytes of which the first `valid` (0 or 16) come from global memory, the rest are zero. */
PTX void cp_async_16(void *shared, const void *global, int valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid)
                 : "memory");
}

PTX void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int pending> PTX void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/* Matrices of 8 rows of 16 bytes; lane 8 i + r gives the address of row r of matrix i. Lane l gets
 * the 4 bytes at row l / 4, bytes 4 (l % 4) of each; _trans: of the transposed 16-bit matrix. */
PTX void ldmatrix_x4(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

PTX void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

PTX void stmatrix_x2(void *row, const uint32_t (&r)[2])
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)),
        "r"(r[0]), "r"(r[1])
        : "memory");
}

PTX void stmatrix_x4(void *row, const uint32_t (&r)[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

/* D[16, 8] += A[16, 16] B[16, 8], fragments as the PTX manual lays them out. */
PTX void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* ---- numbers ---- */

/* The larger one; NaN where either is NaN. */
PTX float max_nan(float a, float b)
{
    float most;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
    return most;
}

/* ---- E4M3: two numbers, the first in the low bits ---- */

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
/* To nearest even, at most 448; NaN becomes 0x7f. */
PTX uint32_t e4m3x2_from_floats(float low, float high)
{
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

PTX void e4m3x2_to_floats(float &low, float &high, uint32_t pair)
{
    asm("{\n.reg .b32 both;\n.reg .b16 first, second;\n"
        "cvt.rn.f16x2.e4m3x2 both, %2;\n"
        "mov.b32 {first, second}, both;\n"
        "cvt.f32.f16 %0, first;\n"
        "cvt.f32.f16 %1, second;\n}"
        : "=f"(low), "=f"(high)
        : "h"((uint16_t)pair));
}
#endif

/* ---- wgmma ---- */

/* Matrix descriptor. K-major, swizzled: stride_bytes from 8 rows to the next 8 (1024 with 128-byte
 * swizzle), leading_bytes ignored. MN-major, 128-byte swizzle: leading_bytes from 64 columns to the
 * next 64, stride_bytes from 8 k to the next 8. Advance along K inside a swizzled row: tile +
 * bytes. */
PTX uint64_t wgmma_descriptor(const void *tile, uint32_t leading_bytes, uint32_t stride_bytes,
                              enum wgmma_swizzle swizzle)
{
    return (uint64_t)((shared_address(tile) & 0x3FFFF) >> 4) |
           (uint64_t)(leading_bytes >> 4) << 16 | (uint64_t)(stride_bytes >> 4) << 32 |
           (uint64_t)swizzle << 62;
}

PTX void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

PTX void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int pending> PTX void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

/* Keeps the compiler from moving accesses of the accumulator across this point. */
template <int count> PTX void wgmma_hold(float (&d)[count])
{
#pragma unroll
    for (int i = 0; i < count; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* Operand numbers and constraints of 8 accumulator registers from 8 i on. */
#define WGMMA_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_R1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_R2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_R3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_R4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_R5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_R6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_R7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_R8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_R9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_R10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_R11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_R12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_R13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_R14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_R15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_D8(i)                                                                                \
    "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]),                    \
        "+f"(d[8 * i + 4]), "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])

#define WGMMA_LIST_16 WGMMA_R0
#define WGMMA_LIST_32 WGMMA_R0 ", " WGMMA_R1
#define WGMMA_LIST_48 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2
#define WGMMA_LIST_64 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3
#define WGMMA_LIST_80 WGMMA_LIST_64 ", " WGMMA_R4
#define WGMMA_LIST_96 WGMMA_LIST_80 ", " WGMMA_R5
#define WGMMA_LIST_112 WGMMA_LIST_96 ", " WGMMA_R6
#define WGMMA_LIST_128 WGMMA_LIST_112 ", " WGMMA_R7
#define WGMMA_LIST_160 WGMMA_LIST_128 ", " WGMMA_R8 ", " WGMMA_R9
#define WGMMA_LIST_192 WGMMA_LIST_160 ", " WGMMA_R10 ", " WGMMA_R11
#define WGMMA_LIST_256 WGMMA_LIST_192 ", " WGMMA_R12 ", " WGMMA_R13 ", " WGMMA_R14 ", " WGMMA_R15
#define WGMMA_OUT_16 WGMMA_D8(0)
#define WGMMA_OUT_32 WGMMA_OUT_16, WGMMA_D8(1)
#define WGMMA_OUT_48 WGMMA_OUT_32, WGMMA_D8(2)
#define WGMMA_OUT_64 WGMMA_OUT_48, WGMMA_D8(3)
#define WGMMA_OUT_80 WGMMA_OUT_64, WGMMA_D8(4)
#define WGMMA_OUT_96 WGMMA_OUT_80, WGMMA_D8(5)
#define WGMMA_OUT_112 WGMMA_OUT_96, WGMMA_D8(6)
#define WGMMA_OUT_128 WGMMA_OUT_112, WGMMA_D8(7)
#define WGMMA_OUT_160 WGMMA_OUT_128, WGMMA_D8(8), WGMMA_D8(9)
#define WGMMA_OUT_192 WGMMA_OUT_160, WGMMA_D8(10), WGMMA_D8(11)
#define WGMMA_OUT_256 WGMMA_OUT_192, WGMMA_D8(12), WGMMA_D8(13), WGMMA_D8(14), WGMMA_D8(15)

/* %a, %b, %p, %s, %t: operand numbers of the descriptors, the accumulate flag, the transposes. */
#define WGMMA_E4M3(n, a, b, p)                                                                     \
    PTX void wgmma_e4m3(float(&d)[n / 2], uint64_t desc_a, uint64_t desc_b, int accumulate)        \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n"                              \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" WGMMA_LIST_##n   \
                     "}, %" #a ", %" #b ", p, 1, 1;\n}"                                            \
                     : WGMMA_OUT_##n                                                               \
                     : "l"(desc_a), "l"(desc_b), "r"(accumulate));                                 \
    }
#define WGMMA_BF16(n, a, b, p, s, t)                                                               \
    template <int a_mn_major = 0, int b_mn_major = 0>                                              \
    PTX void wgmma_bf16(float(&d)[n / 2], uint64_t desc_a, uint64_t desc_b, int accumulate)        \
    {                                                                                              \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n"                              \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" WGMMA_LIST_##n   \
                     "}, %" #a ", %" #b ", p, 1, 1, %" #s ", %" #t ";\n}"                          \
                     : WGMMA_OUT_##n                                                               \
                     : "l"(desc_a), "l"(desc_b), "r"(accumulate), "n"(a_mn_major),                 \
                       "n"(b_mn_major));                                                           \
    }

/* m64nNk32 of e4m3, both K-major; N = twice the accumulator's registers. accumulate 0: D = A B. */
WGMMA_E4M3(16, 8, 9, 10)
WGMMA_E4M3(32, 16, 17, 18)
WGMMA_E4M3(48, 24, 25, 26)
WGMMA_E4M3(64, 32, 33, 34)
WGMMA_E4M3(80, 40, 41, 42)
WGMMA_E4M3(96, 48, 49, 50)
WGMMA_E4M3(112, 56, 57, 58)
WGMMA_E4M3(128, 64, 65, 66)
WGMMA_E4M3(160, 80, 81, 82)
WGMMA_E4M3(192, 96, 97, 98)
WGMMA_E4M3(256, 128, 129, 130)
/* m64nNk16 of bf16; _mn_major 1: the operand lies with M (or N) contiguous. */
WGMMA_BF16(16, 8, 9, 10, 11, 12)
WGMMA_BF16(32, 16, 17, 18, 19, 20)
WGMMA_BF16(48, 24, 25, 26, 27, 28)
WGMMA_BF16(64, 32, 33, 34, 35, 36)
WGMMA_BF16(80, 40, 41, 42, 43, 44)
WGMMA_BF16(96, 48, 49, 50, 51, 52)
WGMMA_BF16(112, 56, 57, 58, 59, 60)
WGMMA_BF16(128, 64, 65, 66, 67, 68)
WGMMA_BF16(160, 80, 81, 82, 83, 84)
WGMMA_BF16(192, 96, 97, 98, 99, 100)
WGMMA_BF16(256, 128, 129, 130, 131, 132)

#undef WGMMA_E4M3
#undef WGMMA_BF16
#undef PTX
#else
#include <emulator/ptx_host.h>
#endif

#endif
