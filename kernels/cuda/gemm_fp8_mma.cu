/* gemm_fp8_mma: products of E4M3 codes (gemm_fp8.cuh) where there are no 8-bit tensor cores or
 * none that we know: codes become bfloat16, which holds every E4M3 number, and go through mma.sync
 * with f32 accumulators. From sm_80 on.
 *
 * Tiles of 64 x 64 by 4 warps of 32 x 32, 128 k a step; the next step's codes are on their way in
 * registers while one is multiplied. FLOPs 2 m n k at the rate of 16-bit products (A100: 312
 * TFLOP/s); bytes: codes of A n / 64 times, of B m / 64 times, mostly from L2. Shared memory: 32
 * KiB, two blocks a multiprocessor at least.
 */
#include "kernels/cuda/gemm_fp8.cuh"
#include "kernels/cuda/ptx.cuh"

enum { TILE = 64, THREADS = 128, CHUNK = 16 /* codes */, CHUNKS = FP8_TILE / CHUNK };

/* 64 rows of 128 bfloat16, groups of 8 swizzled: those of one ldmatrix, consecutive rows, lie in
 * different banks. */
struct operand {
    alignas(16) bf16 data[TILE * FP8_TILE];

    __device__ __forceinline__ bf16 *group(int row, int k)
    {
        return data + row * FP8_TILE + (k / 8 ^ row % 8) * 8;
    }
};

/* What a thread carries of an operand: chunks of every 16th row. */
struct chunks {
    uint4 part[TILE * CHUNKS / THREADS];
};

/* Two codes as two bfloat16. Exponent and mantissa are moved to where a float has them; what is
 * too large then is 2^-120 of the number, subnormals too. */
DEVICE uint32_t widen(uint32_t low, uint32_t high)
{
    const uint32_t code[2] = {low & 0xff, high & 0xff};
    uint32_t bits[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint32_t magnitude = code[i] & 0x7f;
        const float value = __uint_as_float(magnitude << 20) * 0x1p120F;
        bits[i] = magnitude == FP8_NAN ? 0x7fc0u : __float_as_uint(value) >> 16;
        bits[i] |= (code[i] & 0x80) << 8;
    }
    return bits[0] | bits[1] << 16;
}

DEVICE uint4 widen_eight(uint32_t low, uint32_t high)
{
    return make_uint4(widen(low, low >> 8), widen(low >> 16, low >> 24), widen(high, high >> 8),
                      widen(high >> 16, high >> 24));
}

/* The thread's chunks of `rows` rows of `left` codes; zeros beyond. */
DEVICE void fetch(struct chunks *to, const uint8_t *codes, int rows, int left, int64_t ld)
{
    const int own = (int)threadIdx.x / CHUNKS, at = (int)threadIdx.x % CHUNKS * CHUNK;
    const int count = TILE * CHUNKS / THREADS, apart = THREADS / CHUNKS;
    codes += own * ld + at;
#pragma unroll
    for (int i = 0; i < count; i++, codes += apart * ld) {
        to->part[i] =
            own + i * apart < rows && at < left ? *(const uint4 *)codes : make_uint4(0, 0, 0, 0);
    }
}

DEVICE void put(struct operand *to, const struct chunks &from)
{
    const int own = (int)threadIdx.x / CHUNKS, at = (int)threadIdx.x % CHUNKS * CHUNK;
    const int count = TILE * CHUNKS / THREADS, apart = THREADS / CHUNKS;
#pragma unroll
    for (int i = 0; i < count; i++) {
        const int row = own + i * apart;
        *(uint4 *)to->group(row, at) = widen_eight(from.part[i].x, from.part[i].y);
        *(uint4 *)to->group(row, at + 8) = widen_eight(from.part[i].z, from.part[i].w);
    }
}

/* part += the products of a step, for rows [row, row + 32) and columns [column, column + 32). */
DEVICE void multiply(float (&part)[2][4][4], struct operand *a, struct operand *b, int row,
                     int column)
{
    const int lane = (int)threadIdx.x % 32, second = lane / 8 % 2 * 8, fourth = lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < FP8_TILE; k += 16) {
        uint32_t left[2][4], right[2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            ldmatrix_x4(left[i], a->group(row + 16 * i + second + lane % 8, k + fourth));
            ldmatrix_x4(right[i], b->group(column + 16 * i + fourth + lane % 8, k + second));
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t pair[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
            mma_m16n8k16_bf16(part[0][j], left[0], pair);
            mma_m16n8k16_bf16(part[1][j], left[1], pair);
        }
    }
}

/* What is left of `count` from `first` on, of a tile. */
DEVICE int left_of(int64_t count, int64_t first)
{
    return (int)min(count - first, (int64_t)TILE);
}

/* sum += part x scales. rows and columns: the scales of the tile's first, of which there are `down`
 * and `across`; one for all columns in the FORWARD pass. m, n: the thread's first. */
template <enum gemm_pass pass>
DEVICE void promote(float (&sum)[2][4][4], const float (&part)[2][4][4], const float *rows,
                    int down, int m, const float *columns, int across, int n)
{
    float column[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        column[j] =
            pass == GEMM_FORWARD ? columns[0] : columns[min(n + j / 2 * 8 + j % 2, across - 1)];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float row = rows[min(m + 8 * i, down - 1)];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int which = i % 2 * 2 + j % 2;
            sum[i / 2][j / 2][which] += row * column[j] * part[i / 2][j / 2][which];
        }
    }
}

template <enum gemm_pass pass>
__global__ void __launch_bounds__(THREADS, 2)
    gemm_fp8_mma_kernel(const __grid_constant__ struct gemm_fp8 p)
{
    SMEM(struct operand, a, [1]);
    SMEM(struct operand, b, [1]);
    const struct gemm &g = p.g;
    struct gemm_tile t;
    if (!find_tile<pass>(&t, g, TILE, TILE)) {
        return;
    }
    int64_t end = g.k; /* of the codes */
    if (pass == GEMM_WEIGHT) {
        const int64_t steps = (t.k_end - t.k + FP8_TILE - 1) / FP8_TILE;
        t.k =
            g.offset == nullptr ? 0 : FP8_TILE * warp_sum(lane_tiles(g.offset, t.expert, FP8_TILE));
        end = t.k + steps * FP8_TILE;
    }
    const int64_t tile = t.k / FP8_TILE, tiles = (end + FP8_TILE - 1) / FP8_TILE;
    const int down = left_of(t.m_end, t.m), across = left_of(g.n, t.n);
    const uint8_t *codes_a = (const uint8_t *)g.a + t.m * g.lda + t.k;
    const uint8_t *codes_b = (const uint8_t *)g.b + t.n * g.ldb + t.k;
    const float *scale_a = p.scale_a + tile * p.pitch_a + t.m, *scale_b = p.scale_b;
    const int64_t step_b = pass == GEMM_WEIGHT ? p.pitch_b : 1;
    if (pass == GEMM_WEIGHT) {
        scale_b += tile * p.pitch_b + t.n;
    } else {
        const int64_t blocks = (g.n + FP8_TILE - 1) / FP8_TILE;
        codes_b += t.expert * g.stride;
        scale_b += (t.expert * blocks + t.n / FP8_TILE) * p.pitch_b;
    }
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int row = warp / 2 * 32, column = warp % 2 * 32;
    const int m = row + lane / 4, n = column + lane % 4 * 2;
    int left = (int)(end - t.k);
    struct chunks next_a, next_b;
    float sum[2][4][4] = {};
    fetch(&next_a, codes_a, down, left, g.lda);
    fetch(&next_b, codes_b, across, left, g.ldb);
    for (int steps = (int)(tiles - tile); steps > 0; steps--) {
        float part[2][4][4] = {};
        put(a, next_a);
        put(b, next_b);
        __syncthreads();
        codes_a += FP8_TILE, codes_b += FP8_TILE, left -= FP8_TILE;
        fetch(&next_a, codes_a, down, left, g.lda);
        fetch(&next_b, codes_b, across, left, g.ldb);
        multiply(part, a, b, row, column);
        promote<pass>(sum, part, scale_a, down, m, scale_b, across, n);
        scale_a += p.pitch_a, scale_b += step_b;
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float pair[2] = {sum[i / 2][j][i % 2 * 2], sum[i / 2][j][i % 2 * 2 + 1]};
            store_c<pass>(g, t, t.m + m + 8 * i, t.n + n + 8 * j, pair);
        }
    }
}

void gemm_fp8_mma_launch(cudaStream_t stream, enum gemm_pass pass, const struct gemm_fp8 *p)
{
    const dim3 grid = gemm_grid(&p->g, pass, TILE, TILE);
    const bool weight = pass == GEMM_WEIGHT;
    struct gemm_fp8 own = *p;
    assert(pass != GEMM_INPUT);
    own.g.wide_c = gemm_wide(own.g.c, own.g.c_dtype, own.g.ldc, weight ? own.g.stride : 0, 2);
    if (weight) {
        LAUNCH((gemm_fp8_mma_kernel<GEMM_WEIGHT>), grid, THREADS, 0, stream, own);
    } else {
        LAUNCH((gemm_fp8_mma_kernel<GEMM_FORWARD>), grid, THREADS, 0, stream, own);
    }
}
