/* ptx_host: the emulator's half of kernels/cuda/ptx.cuh, with the same names and arguments. */
#ifndef EMULATOR_PTX_HOST_H
#define EMULATOR_PTX_HOST_H

#include "emulator/emulator.h"

inline uint32_t shared_address(const void *p, EMU_AT)
{
    return emu_shared_address(p, EMU_HERE);
}

/* ---- mbarrier ---- */
inline void mbarrier_init(uint64_t *bar, uint32_t arrivals, EMU_AT)
{
    emu_mbarrier_init(bar, arrivals, EMU_HERE);
}
inline void fence_mbarrier_init()
{
    emu_mbarrier_fence_init();
}
inline void mbarrier_arrive(uint64_t *bar, EMU_AT)
{
    emu_mbarrier_arrive(bar, 0, EMU_HERE);
}
inline void mbarrier_arrive_expect_tx(uint64_t *bar, uint32_t bytes, EMU_AT)
{
    emu_mbarrier_arrive(bar, bytes, EMU_HERE);
}
inline void mbarrier_arrive_at(uint64_t *bar, uint32_t rank, EMU_AT)
{
    emu_mbarrier_arrive_at(bar, (int)rank, EMU_HERE);
}
inline bool mbarrier_test(uint64_t *bar, uint32_t parity, EMU_AT)
{
    return emu_mbarrier_test(bar, parity, EMU_HERE);
}
inline void mbarrier_wait(uint64_t *bar, uint32_t parity, EMU_AT)
{
    emu_mbarrier_wait(bar, parity, EMU_HERE);
}

/* ---- TMA ---- */
inline void fence_proxy_async()
{
    emu_fence_proxy_async();
}
inline void tma_prefetch_map(const CUtensorMap *)
{
}
inline void tma_load_1d(void *shared, const void *global, uint32_t bytes, uint64_t *bar, EMU_AT)
{
    emu_tma_load(shared, global, bytes, bar, EMU_HERE);
}
inline void tma_load_2d(void *shared, const CUtensorMap *map, uint64_t *bar, int x, int y, EMU_AT)
{
    emu_tma_load_box(shared, map, bar, x, y, EMU_HERE);
}
inline void tma_load_2d_multicast(void *shared, const CUtensorMap *map, uint64_t *bar, int x, int y,
                                  uint16_t mask, EMU_AT)
{
    emu_tma_load_multicast(shared, map, bar, x, y, mask, EMU_HERE);
}
inline void tma_load_3d(void *shared, const CUtensorMap *map, uint64_t *bar, int x, int y, int z,
                        EMU_AT)
{
    emu_tma_load_plane(shared, map, bar, x, y, z, EMU_HERE);
}
inline void tma_store_1d(void *global, const void *shared, uint32_t bytes, EMU_AT)
{
    emu_tma_store(global, shared, bytes, EMU_HERE);
}
inline void tma_store_2d(const CUtensorMap *map, const void *shared, int x, int y, EMU_AT)
{
    emu_tma_store_box(map, shared, x, y, false, EMU_HERE);
}
inline void tma_reduce_add_2d(const CUtensorMap *map, const void *shared, int x, int y, EMU_AT)
{
    emu_tma_store_box(map, shared, x, y, true, EMU_HERE);
}
inline void tma_store_commit()
{
    emu_tma_store_commit();
}
template <int pending> void tma_store_wait_read(EMU_AT)
{
    emu_tma_store_wait(pending, true, EMU_HERE);
}
template <int pending> void tma_store_wait(EMU_AT)
{
    emu_tma_store_wait(pending, false, EMU_HERE);
}

/* ---- clusters ---- */
inline uint32_t cluster_rank()
{
    return (uint32_t)emu_cluster_rank();
}
inline void cluster_sync(EMU_AT)
{
    emu_cluster_sync(EMU_HERE);
}

/* ---- registers, barriers, election ---- */
template <int count> void registers_increase(EMU_AT)
{
    emu_registers(count, EMU_HERE);
}
template <int count> void registers_decrease(EMU_AT)
{
    emu_registers(count, EMU_HERE);
}
inline void named_barrier_sync(int id, int threads, EMU_AT)
{
    emu_barrier(id, threads, 0, nullptr, EMU_HERE);
}
inline void named_barrier_arrive(int id, int threads, EMU_AT)
{
    emu_barrier_arrive(id, threads, EMU_HERE);
}
inline bool elect_one(EMU_AT)
{
    emu_warp(0xffffffffu, EMU_ELECT, 0, false, EMU_HERE);
    /* Any lane may be elected on the device; nothing may rely on lane 0. */
    return emu_lane() == (int)(emu_seed() * 11 % 32);
}

/* ---- cp.async, ldmatrix, stmatrix, mma ---- */
inline void cp_async_16(void *shared, const void *global, int valid, EMU_AT)
{
    emu_cp_async(shared, global, valid, EMU_HERE);
}
inline void cp_async_commit()
{
    emu_cp_async_commit();
}
template <int pending> void cp_async_wait(EMU_AT)
{
    emu_cp_async_wait(pending, EMU_HERE);
}
/* Row addresses as every lane gave them, checked. */
inline const uint64_t *emu_matrix_rows(const void *row, int matrices, struct emu_at at)
{
    if ((emu_lane() < 8 * matrices && (uintptr_t)row % 16 != 0))
        emu_fail(at, "ldmatrix/stmatrix: row address not 16-byte aligned");
    return emu_warp(0xffffffffu, EMU_MATRIX, (uint64_t)(uintptr_t)row, false, at);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void *row, EMU_AT)
{
    const uint64_t *rows = emu_matrix_rows(row, 4, EMU_HERE);
    int lane = emu_lane();
    for (int i = 0; i < 4; i++)
        r[i] = ((const uint32_t *)(uintptr_t)rows[8 * i + lane / 4])[lane % 4];
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row, EMU_AT)
{
    const uint64_t *rows = emu_matrix_rows(row, 4, EMU_HERE);
    int lane = emu_lane();
    for (int i = 0; i < 4; i++) {
        uint32_t low = ((const uint16_t *)(uintptr_t)rows[8 * i + 2 * (lane % 4)])[lane / 4];
        uint32_t high = ((const uint16_t *)(uintptr_t)rows[8 * i + 2 * (lane % 4) + 1])[lane / 4];
        r[i] = high << 16 | low;
    }
}
template <int count> void emu_stmatrix(void *row, const uint32_t (&r)[count], struct emu_at at)
{
    const uint64_t *rows = emu_matrix_rows(row, count, at);
    int lane = emu_lane();
    for (int i = 0; i < count; i++)
        ((uint32_t *)(uintptr_t)rows[8 * i + lane / 4])[lane % 4] = r[i];
}
inline void stmatrix_x2(void *row, const uint32_t (&r)[2], EMU_AT)
{
    emu_stmatrix(row, r, EMU_HERE);
}
inline void stmatrix_x4(void *row, const uint32_t (&r)[4], EMU_AT)
{
    emu_stmatrix(row, r, EMU_HERE);
}
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], EMU_AT)
{
    emu_mma_bf16(d, a, b, EMU_HERE);
}

/* ---- numbers ---- */
inline float max_nan(float a, float b)
{
    return a != a || b != b ? NAN : a > b ? a : b;
}

/* ---- E4M3: by NVIDIA's own functions for the host ---- */
inline uint32_t e4m3x2_from_floats(float low, float high)
{
    return (uint32_t)__nv_cvt_float_to_fp8(low, __NV_SATFINITE, __NV_E4M3) |
           (uint32_t)__nv_cvt_float_to_fp8(high, __NV_SATFINITE, __NV_E4M3) << 8;
}
inline void e4m3x2_to_floats(float &low, float &high, uint32_t pair)
{
    low = __half2float(__nv_cvt_fp8_to_halfraw((uint8_t)pair, __NV_E4M3));
    high = __half2float(__nv_cvt_fp8_to_halfraw((uint8_t)(pair >> 8), __NV_E4M3));
}

/* ---- wgmma ---- */
inline uint64_t wgmma_descriptor(const void *tile, uint32_t leading_bytes, uint32_t stride_bytes,
                                 enum wgmma_swizzle swizzle, EMU_AT)
{
    uint32_t address = emu_shared_address(tile, EMU_HERE);
    return (uint64_t)((address & 0x3FFFF) >> 4) | (uint64_t)(leading_bytes >> 4) << 16 |
           (uint64_t)(stride_bytes >> 4) << 32 | (uint64_t)swizzle << 62;
}
inline void wgmma_fence()
{
    emu_wgmma_fence();
}
inline void wgmma_commit(EMU_AT)
{
    emu_wgmma_commit(EMU_HERE);
}
template <int pending> void wgmma_wait(EMU_AT)
{
    emu_wgmma_wait(pending, EMU_HERE);
}
template <int count> void wgmma_hold(float (&)[count])
{
}
template <int count>
void wgmma_e4m3(float (&d)[count], uint64_t desc_a, uint64_t desc_b, int accumulate, EMU_AT)
{
    emu_wgmma(d, 2 * count, true, false, false, desc_a, desc_b, accumulate != 0, EMU_HERE);
}
template <int a_mn_major = 0, int b_mn_major = 0, int count>
void wgmma_bf16(float (&d)[count], uint64_t desc_a, uint64_t desc_b, int accumulate, EMU_AT)
{
    emu_wgmma(d, 2 * count, false, a_mn_major != 0, b_mn_major != 0, desc_a, desc_b,
              accumulate != 0, EMU_HERE);
}

#endif
