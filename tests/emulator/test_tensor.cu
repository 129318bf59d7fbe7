/* Tensor instructions by themselves, each against float64: mma with ldmatrix and cp.async; wgmma of
 * bf16 with operands K-major and MN-major, every swizzle; stmatrix. Only emulated: tests/gpu does
 * the like. */
#include "check_tensor.h"

#include "kernels/cuda/ptx.cuh"

/* One warp: C[16, 8] = A[16, 32] B[8, 32]^T. */
__global__ void mma_kernel(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c)
{
    SMEM(__nv_bfloat16, tile_a, [16][32]);
    SMEM(__nv_bfloat16, tile_b, [8][32]);
    int lane = threadIdx.x;
    for (int i = lane; i < 64; i += 32)
        cp_async_16(&tile_a[i / 4][i % 4 * 8], a + 8 * i, 16);
    cp_async_16(&tile_b[lane / 4][lane % 4 * 8], b + 8 * lane, 16);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    float sum[4] = {};
    uint32_t all_b[4];
    ldmatrix_x4(all_b, &tile_b[lane % 8][lane / 8 * 8]);
    for (int k = 0; k < 2; k++) {
        uint32_t part_a[4], part_b[2] = {all_b[2 * k], all_b[2 * k + 1]};
        ldmatrix_x4(part_a, &tile_a[lane % 16][16 * k + lane / 16 * 8]);
        mma_m16n8k16_bf16(sum, part_a, part_b);
    }
    for (int i = 0; i < 4; i++)
        c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

/* One warp: y = x^T of 16 x 16, by ldmatrix_trans and stmatrix. */
__global__ void matrix_transpose_kernel(const uint16_t *x, uint16_t *y)
{
    SMEM(uint16_t, in, [16][16]);
    SMEM(uint16_t, out, [16][16]);
    int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32)
        in[i / 16][i % 16] = x[i];
    __syncwarp();
    uint32_t r[4];
    /* Matrix i stands at rows 8 (i / 2), columns 8 (i % 2), and goes to the mirrored place. */
    ldmatrix_x4_trans(r, &in[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]);
    stmatrix_x4(&out[lane % 8 + lane / 8 % 2 * 8][lane / 16 * 8], r);
    __syncwarp();
    for (int i = lane; i < 256; i += 32)
        y[i] = out[i / 16][i % 16];
}

/* One warpgroup: C[64, N] = A B^T with K = 64; tiles come swizzled from the host by tma_load_1d. */
template <int n, int a_mn_major, int b_mn_major>
__global__ void __launch_bounds__(128)
    wgmma_kernel(const uint8_t *a, const uint8_t *b, float *c, uint32_t a_bytes, uint32_t b_bytes,
                 struct operand_layout la, struct operand_layout lb)
{
    SMEM_DYN(raw);
    uint8_t *tile_a = raw, *tile_b = raw + 8192;
    uint64_t *full = reinterpret_cast<uint64_t *>(raw + 8192 + n * 128);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(full, a_bytes + b_bytes);
        tma_load_1d(tile_a, a, a_bytes, full);
        tma_load_1d(tile_b, b, b_bytes, full);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    float sum[n / 2];
    wgmma_hold(sum);
    wgmma_fence();
    for (int k = 0; k < 4; k++)
        wgmma_bf16<a_mn_major, b_mn_major>(
            sum,
            wgmma_descriptor(tile_a + k * la.k_step, la.leading, la.stride,
                             (enum wgmma_swizzle)la.swizzle),
            wgmma_descriptor(tile_b + k * lb.k_step, lb.leading, lb.stride,
                             (enum wgmma_swizzle)lb.swizzle),
            k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sum);
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        c[(row + i / 2 % 2 * 8) * n + i / 4 * 8 + column + i % 2] = sum[i];
}

extern "C" void launch_mma(const uint16_t *a, const uint16_t *b, float *c)
{
    LAUNCH(mma_kernel, 1, 32, 0, nullptr, (const __nv_bfloat16 *)a, (const __nv_bfloat16 *)b, c);
}

extern "C" void launch_matrix_transpose(const uint16_t *x, uint16_t *y)
{
    LAUNCH(matrix_transpose_kernel, 1, 32, 0, nullptr, x, y);
}

template <int n, int a_mn_major, int b_mn_major> static void launch(const struct wgmma_case *w)
{
    LAUNCH((wgmma_kernel<n, a_mn_major, b_mn_major>), 1, 128, 8192 + n * 128 + 8, nullptr, w->a,
           w->b, w->c, 8192u, (uint32_t)n * 128, w->layout_a, w->layout_b);
}

extern "C" void launch_wgmma(const struct wgmma_case *w)
{
    if (w->n == 128)
        launch<128, 0, 0>(w);
    else if (w->a_mn_major && w->b_mn_major)
        launch<64, 1, 1>(w);
    else if (w->a_mn_major)
        launch<64, 1, 0>(w);
    else if (w->b_mn_major)
        launch<64, 0, 1>(w);
    else
        launch<64, 0, 0>(w);
}
