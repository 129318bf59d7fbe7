#include "kernels/cuda/fp8_tile.cuh"

/* ---- E4M3 on the wire ---- */

/* Kernel: fp8_tile.cuh, "the whole". Bytes per number: 2 read, 1 written, 4 per tile of 128. Bound
 * by memory. */
void cuda_fp8_pack(void *stream, uint8_t *packed, struct tensor x, const int32_t *row, int64_t rows,
                   const struct fp8_how *how)
{
    const int64_t cols = x.dim[1];
    assert(row != nullptr || rows <= x.dim[0]);
    fp8_launch<struct fp8_from_bf16, true, false>(stream, {fp8_from_tensor(x, row),
                                                           fp8_sink_packed(packed, cols),
                                                           {},
                                                           rows,
                                                           cols,
                                                           nullptr,
                                                           0,
                                                           how->power_of_two,
                                                           how->counters});
}

enum { UNPACK_ROWS = 32, UNPACK_BYTES = 2048 /* of a row, by one block */ };

/* A block: 32 rows of up to 2048 columns; 4 rows of codes per warp, then tiles of scales, a row per
 * lane, so that they leave side by side. Bytes per number: 1 read, 1 written, 8 per tile of 128.
 * Bound by memory. */
__global__ void __launch_bounds__(FP8_THREADS)
    fp8_unpack_kernel(struct fp8_rows q, const uint8_t *__restrict__ packed, int64_t rows,
                      const int32_t *__restrict__ row, int64_t row_bytes)
{
    const int64_t top = (int64_t)blockIdx.x * UNPACK_ROWS,
                  left = (int64_t)blockIdx.y * UNPACK_BYTES;
    const int64_t end = min(left + UNPACK_BYTES, q.cols);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    for (int i = warp; i < UNPACK_ROWS && top + i < q.rows; i += FP8_WARPS) {
        const int64_t from = row != nullptr ? row[top + i] : top + i;
        if (from >= rows) {
            __trap();
        }
#pragma unroll
        for (int j = 0; j < UNPACK_BYTES / 512; j++) {
            const int64_t c = left + 16 * (lane + 32 * j);
            if (c < end) {
                *(uint4 *)(q.code + (top + i) * q.cols + c) =
                    from < 0 ? uint4{} : __ldg((const uint4 *)(packed + from * row_bytes + c));
            }
        }
    }
    const int64_t r = top + lane;
    if (r < q.rows) {
        const int64_t from = row != nullptr ? row[r] : r;
        if (from >= rows) {
            __trap();
        }
        const float *scale = (const float *)(packed + from * row_bytes + q.cols);
        for (int64_t tile = left / FP8_TILE + warp; tile * FP8_TILE < end; tile += FP8_WARPS) {
            q.scale[tile * q.pitch + r] = from < 0 ? 1.0F : __ldg(scale + tile);
        }
    }
}

void cuda_fp8_unpack(void *stream, struct fp8_rows q, const uint8_t *packed, int64_t rows,
                     const int32_t *row)
{
    (void)fp8_sink_of(q); /* its checks */
    assert(aligned(packed) && (row != nullptr || q.rows <= rows));
    if (q.rows > 0 && q.cols > 0) {
        LAUNCH(fp8_unpack_kernel,
               dim3((unsigned)((q.rows + UNPACK_ROWS - 1) / UNPACK_ROWS),
                    (unsigned)((q.cols + UNPACK_BYTES - 1) / UNPACK_BYTES)),
               FP8_THREADS, 0, (cudaStream_t)stream, q, packed, rows, row,
               fp8_packed_bytes(q.cols));
    }
}

/* ---- E5M6: 16 codes are 6 words ---- */

enum { E5M6_WORDS = 6, E5M6_ROWS = FP8_THREADS / 8 };

DEVICE void e5m6_join(uint32_t (&word)[E5M6_WORDS], const uint32_t (&code)[FP8_PART])
{
#pragma unroll
    for (int side = 0; side < 2; side++) {
        const uint32_t *c = code + 8 * side;
        word[3 * side] = c[0] | c[1] << 12 | c[2] << 24;
        word[3 * side + 1] = c[2] >> 8 | c[3] << 4 | c[4] << 16 | c[5] << 28;
        word[3 * side + 2] = c[5] >> 4 | c[6] << 8 | c[7] << 20;
    }
}

DEVICE uint32_t e5m6_code(const uint32_t (&word)[E5M6_WORDS], int c)
{
    const int bit = 12 * c, shift = bit % 32;
    const uint32_t low = word[bit / 32] >> shift;
    const uint32_t high = shift > 20 ? word[bit / 32 + 1] << (32 - shift) : 0;
    return (low | high) & 0xfffu;
}

/* Two lanes side by side have 48 bytes, three places of 16: one each, and the middle one half each,
 * which the even lane writes. `alone`: the odd lane has no columns. */
DEVICE void e5m6_store(uint8_t *pair, const uint32_t (&word)[E5M6_WORDS], bool there, bool alone)
{
    const bool odd = threadIdx.x % 2 != 0;
    const uint32_t a = __shfl_down_sync(0xffffffffu, word[0], 1);
    const uint32_t b = __shfl_down_sync(0xffffffffu, word[1], 1);
    if (there) {
        *(uint4 *)(pair + (odd ? 32 : 0)) = odd ? make_uint4(word[2], word[3], word[4], word[5])
                                                : make_uint4(word[0], word[1], word[2], word[3]);
    }
    if (there && !odd && alone) {
        *(uint2 *)(pair + 16) = make_uint2(word[4], word[5]);
    } else if (there && !odd) {
        *(uint4 *)(pair + 16) = make_uint4(word[4], word[5], a, b);
    }
}

/* 8 lanes per tile of a row, 16 numbers each; 32 rows per block. Bytes per number: 2 read, 1.5
 * written, 4 per tile of 128. FLOPs: about 10, of integers mostly. Bound by memory. */
__global__ void __launch_bounds__(FP8_THREADS)
    e5m6_pack_kernel(uint8_t *packed, const bf16 *x, int64_t rows, int64_t cols, int64_t bytes)
{
    const int64_t r = (int64_t)blockIdx.y * E5M6_ROWS + threadIdx.x / 8, tile = blockIdx.x;
    const int64_t column = tile * FP8_TILE + fp8_own_column();
    const bool there = r < rows && column < cols;
    struct fp8_bf16s own = {};
    if (there) {
        fp8_load(own, x + r * cols + column);
    }
    float y[FP8_PART];
    fp8_values(y, own);
    const uint32_t most = fp8_row_most(y);
    const bool bad = fp8_is_bad(most);
    const struct fp8_scale s = e5m6_scale_of(bad ? 0 : most);
    uint32_t code[FP8_PART], word[E5M6_WORDS];
#pragma unroll
    for (int c = 0; c < FP8_PART; c++) {
        code[c] = bad ? 0 : e5m6_from_float(__fmul_rn(y[c], s.inverse));
    }
    e5m6_join(word, code);
    uint8_t *line = packed + r * bytes;
    e5m6_store(line + (column / 32 * 32) / 2 * 3, word, there, column + FP8_PART == cols);
    if (threadIdx.x % 8 == 0 && r < rows) {
        float *scale = (float *)(line + cols / 2 * 3);
        scale[tile] = bad ? __uint_as_float(0x7fc00000u) : s.scale;
        for (int64_t i = tile + 1; tile + 1 == gridDim.x && (uint8_t *)(scale + i) < line + bytes;
             i++) {
            scale[i] = 0;
        }
    }
}

/* The way back. Bytes per number: 1.5 read, 2 written. Bound by memory. */
__global__ void __launch_bounds__(FP8_THREADS)
    e5m6_unpack_kernel(bf16 *x, const uint8_t *__restrict__ packed, int64_t rows, int64_t cols,
                       int64_t bytes)
{
    const int64_t r = (int64_t)blockIdx.y * E5M6_ROWS + threadIdx.x / 8, tile = blockIdx.x;
    const int64_t column = tile * FP8_TILE + fp8_own_column();
    if (r >= rows || column >= cols) {
        return;
    }
    const uint8_t *line = packed + r * bytes;
    const uint2 *part = (const uint2 *)(line + column / 2 * 3);
    const uint2 a = __ldg(part), b = __ldg(part + 1), c = __ldg(part + 2);
    const uint32_t word[E5M6_WORDS] = {a.x, a.y, b.x, b.y, c.x, c.y};
    const float scale = __ldg((const float *)(line + cols / 2 * 3) + tile);
#pragma unroll
    for (int side = 0; side < 2; side++) {
        float y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            y[i] = __fmul_rn(e5m6_to_float(e5m6_code(word, 8 * side + i)), scale);
        }
        store(x + r * cols + column + 8 * side, y);
    }
}

static dim3 e5m6_grid(struct tensor x)
{
    const int64_t blocks = (x.dim[0] + E5M6_ROWS - 1) / E5M6_ROWS;
    assert(x.dtype == DTYPE_BF16 && x.dim[1] % FP8_PART == 0 && aligned(x.data));
    assert(blocks <= 65535);
    return dim3((unsigned)fp8_tiles(x.dim[1]), (unsigned)blocks);
}

void cuda_fp8_e5m6_pack(void *stream, uint8_t *packed, struct tensor x)
{
    const dim3 grid = e5m6_grid(x);
    assert(aligned(packed));
    if (grid.x > 0 && grid.y > 0) {
        LAUNCH(e5m6_pack_kernel, grid, FP8_THREADS, 0, (cudaStream_t)stream, packed,
               (const bf16 *)x.data, x.dim[0], x.dim[1], fp8_e5m6_bytes(x.dim[1]));
    }
}

void cuda_fp8_e5m6_unpack(void *stream, struct tensor x, const uint8_t *packed)
{
    const dim3 grid = e5m6_grid(x);
    assert(aligned(packed));
    if (grid.x > 0 && grid.y > 0) {
        LAUNCH(e5m6_unpack_kernel, grid, FP8_THREADS, 0, (cudaStream_t)stream, (bf16 *)x.data,
               packed, x.dim[0], x.dim[1], fp8_e5m6_bytes(x.dim[1]));
    }
}
