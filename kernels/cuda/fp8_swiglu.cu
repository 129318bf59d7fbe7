#include "kernels/cuda/fp8_swiglu.cuh"

struct swiglu_job {
    struct fp8_from_bf16 gate_up;
    struct fp8_sink h, kept; /* of 128 n columns and of twice as many */
    int64_t rows;
    const int64_t *last; /* device: how many of them there are; NULL: all */
    bool power_of_two;
    struct fp8_counters *counters;
};

/* A block: 128 rows of 128 columns of h, and the same of gate and of up. Bytes per number of h: 4
 * read, 1 and 2 written, 12 per tile of 128. FLOPs: about 40, of integers mostly, and an exp. Bound
 * by memory. */
__global__ void __launch_bounds__(FP8_THREADS, 2) fp8_swiglu_kernel(const struct swiglu_job job)
{
    const int64_t width = job.h.cols, column = (int64_t)blockIdx.x * FP8_TILE + fp8_own_column();
    const int64_t rows = job.last != nullptr ? *job.last : job.rows,
                  top = (int64_t)blockIdx.y * FP8_TILE;
    if (top >= rows) {
        return;
    }
    const int64_t row = top + fp8_own_row(), left = rows - row;
    const bool counted = job.counters != nullptr, two = job.power_of_two;
    struct fp8_counts own = {0, 0, 0, 0};
    float scale[3] = {0, 0, 0};
#pragma unroll 2
    for (int j = 0; j < FP8_HOLD; j++) {
        struct fp8_bf16s gate = {}, up = {}, h;
        if (j < left) {
            fp8_gate_up(job.gate_up, gate, up, row + j, column, width);
        }
        fp8_swiglu(h, gate, up);
        const bool mine = (int)(threadIdx.x % 8) == j;
        const float a = fp8_row_tile(job.h, h, row + j, column, j < left, two, counted, own);
        const float b = fp8_row_tile(job.kept, gate, row + j, column, j < left, two, counted, own);
        const float c =
            fp8_row_tile(job.kept, up, row + j, width + column, j < left, two, counted, own);
        scale[0] = mine ? a : scale[0], scale[1] = mine ? b : scale[1];
        scale[2] = mine ? c : scale[2];
    }
    const int count = (int)max((int64_t)0, min(left, (int64_t)FP8_HOLD));
    fp8_row_scales(job.h, scale[0], row, blockIdx.x, count, false);
    fp8_row_scales(job.kept, scale[1], row, blockIdx.x, count, false);
    fp8_row_scales(job.kept, scale[2], row, gridDim.x + blockIdx.x, count, false);
    if (counted) {
        const bool only = blockIdx.x == 0 && blockIdx.y == 0;
        fp8_count(job.counters, own, only ? rows * width * 3 : 0);
    }
}

void cuda_fp8_swiglu_forward(void *stream, struct fp8_rows h, struct fp8_rows kept,
                             struct tensor gate_up, const int64_t *offset, int64_t groups,
                             const struct fp8_how *how)
{
    const struct fp8_from_bf16 from = fp8_from_tensor(gate_up, nullptr);
    const unsigned tiles = fp8_place_most(h.rows, false, 0);
    const bool keep = kept.code != nullptr;
    assert(gate_up.dim[0] == h.rows && gate_up.dim[1] == 2 * h.cols);
    assert(!keep || (kept.rows == h.rows && kept.cols == 2 * h.cols));
    if (keep && h.cols % FP8_TILE == 0 && h.rows > 0 && h.cols > 0) {
        LAUNCH(fp8_swiglu_kernel, dim3((unsigned)fp8_tiles(h.cols), tiles), FP8_THREADS, 0,
               (cudaStream_t)stream,
               swiglu_job{from, fp8_sink_of(h), fp8_sink_of(kept), h.rows,
                          offset != nullptr ? offset + groups : nullptr, how->power_of_two,
                          how->counters});
        return;
    }
    fp8_launch<struct fp8_from_swiglu<struct fp8_from_bf16>, true, false>(stream,
                                                                          {{from, h.cols},
                                                                           fp8_sink_of(h),
                                                                           {},
                                                                           h.rows,
                                                                           h.cols,
                                                                           offset,
                                                                           (int)groups,
                                                                           how->power_of_two,
                                                                           how->counters});
    if (keep) { /* its tiles are not tiles of gate and of up: read once more */
        fp8_launch<struct fp8_from_bf16, true, false>(stream, {from,
                                                               fp8_sink_of(kept),
                                                               {},
                                                               h.rows,
                                                               kept.cols,
                                                               offset,
                                                               (int)groups,
                                                               how->power_of_two,
                                                               how->counters});
    }
}
