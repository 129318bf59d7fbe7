#include "kernels/cuda/fp8_tile.cuh"

struct weights_job {
    struct fp8_weights w, t; /* t.code NULL: not wanted */
    const bf16 *src;
    int64_t stride;
    bool power_of_two;
    struct fp8_counters *counters;
};

/* The block's largest bits; every thread gets them. */
DEVICE uint32_t block_most(const float (&x)[FP8_HOLD][FP8_PART])
{
    SMEM(uint32_t, part, [FP8_WARPS]);
    float own = 0;
#pragma unroll
    for (int j = 0; j < FP8_HOLD; j++) {
#pragma unroll
        for (int c = 0; c < FP8_PART; c++) {
            own = max_nan(own, fabsf(x[j][c]));
        }
    }
    uint32_t most = __reduce_max_sync(0xffffffffu, fp8_bits(own));
    if (threadIdx.x % 32 == 0) {
        part[threadIdx.x / 32] = most;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < FP8_WARPS; i++) {
        most = max(most, part[i]);
    }
    return most;
}

/* A block per tile of 128 x 128. Bytes per weight: 2 read, 1 written, 1 more for the transpose.
 * FLOPs: about 10, of integers mostly. Bound by memory. */
__global__ void __launch_bounds__(FP8_THREADS, 2) fp8_weights_kernel(const struct weights_job job)
{
    SMEM(float4, inverse, [FP8_TILE / 4]);
    SMEM(uint4, code, [FP8_TILE][FP8_TILE / 16]);
    const int64_t rows = job.w.rows, cols = job.w.cols, m = blockIdx.z;
    const int64_t first = (int64_t)blockIdx.x * FP8_TILE, top = (int64_t)blockIdx.y * FP8_TILE;
    const int64_t column = first + fp8_own_column(), row = top + fp8_own_row();
    const bool counted = job.counters != nullptr;
    struct fp8_counts own = {0, 0, 0, 0};
    float x[FP8_HOLD][FP8_PART];
#pragma unroll
    for (int j = 0; j < FP8_HOLD; j++) {
        struct fp8_bf16s held = {};
        if (column < cols && row + j < rows) {
            fp8_load(held, job.src + m * job.stride + (row + j) * cols + column);
        }
        fp8_values(x[j], held);
    }
    const uint32_t most = block_most(x);
    const struct fp8_scale s = fp8_tile_scale(most, job.power_of_two);
    if (threadIdx.x == 0) {
        job.w.scale[(m * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x] = s.scale;
        fp8_count_tile(own, most);
    }
#pragma unroll
    for (int j = 0; j < FP8_HOLD; j++) {
        uint8_t *to = column < cols && row + j < rows
                          ? job.w.code + (m * rows + row + j) * cols + column
                          : nullptr;
        fp8_row_codes(to, x[j], s.inverse, counted, own);
    }
    if (job.t.code != nullptr) {
        if (threadIdx.x < FP8_TILE / 4) {
            inverse[threadIdx.x] = make_float4(s.inverse, s.inverse, s.inverse, s.inverse);
        }
        if (threadIdx.x == 0) {
            job.t.scale[(m * gridDim.x + blockIdx.x) * gridDim.y + blockIdx.y] = s.scale;
        }
        __syncthreads();
        fp8_column_words((uint32_t *)code, inverse, x, 0xffffffffu);
        __syncthreads();
        fp8_column_store(job.t.code + m * rows * cols, cols, rows, code, first, top);
    }
    if (counted) {
        const bool only = blockIdx.x == 0 && blockIdx.y == 0 && m == 0;
        fp8_count(job.counters, own, only ? job.w.matrices * rows * cols : 0);
    }
}

void cuda_fp8_quantize_weights(void *stream, struct fp8_weights w, struct fp8_weights t,
                               const void *src, int64_t stride, const struct fp8_how *how)
{
    const int64_t tiles = fp8_tiles(w.rows);
    assert(w.cols % FP8_PART == 0 && stride % 8 == 0 && aligned(src) && aligned(w.code));
    assert(t.code == nullptr || (t.matrices == w.matrices && t.rows == w.cols && t.cols == w.rows &&
                                 w.rows % FP8_PART == 0 && aligned(t.code)));
    assert(tiles <= 65535 && w.matrices <= 65535);
    if (w.matrices > 0 && w.rows > 0 && w.cols > 0) {
        LAUNCH(fp8_weights_kernel,
               dim3((unsigned)fp8_tiles(w.cols), (unsigned)tiles, (unsigned)w.matrices),
               FP8_THREADS, 0, (cudaStream_t)stream,
               weights_job{w, t, (const bf16 *)src, stride, how->power_of_two, how->counters});
    }
}
