#include "kernels/cuda/fp8_tile.cuh"

/* Kernels: fp8_tile.cuh, "the whole". Bytes per number: 2 read (of rows that `row` repeats, 2 of
 * each), 1 written for each of q and t, 4 per tile of 128. Bound by memory. */
void cuda_fp8_quantize(void *stream, struct fp8_rows q, struct fp8_rows t, struct tensor x,
                       const int32_t *row, int64_t rows, const int64_t *offset, int64_t groups,
                       const struct fp8_how *how)
{
    assert((row != nullptr || rows <= x.dim[0]) && (q.code == nullptr || q.rows == rows));
    fp8_run<struct fp8_from_bf16>(stream,
                                  {fp8_from_tensor(x, row), fp8_sink_of(q), t, rows, x.dim[1],
                                   offset, (int)groups, how->power_of_two, how->counters});
}

/* Bytes per number: 1 read, 1 written, 8 per tile of 128. About 14 instructions per number by its
 * SASS (without counters), where an SM can issue about 20 while those bytes pass at an H100's full
 * bandwidth: bound by memory, narrowly. */
void cuda_fp8_transpose(void *stream, struct fp8_rows t, struct fp8_rows q, const int64_t *offset,
                        int64_t groups, const struct fp8_how *how)
{
    (void)fp8_sink_of(q); /* its checks */
    if (t.code != nullptr) {
        fp8_launch<struct fp8_from_codes, false, true>(stream, {{q.code, q.scale, q.cols, q.pitch},
                                                                {},
                                                                t,
                                                                q.rows,
                                                                q.cols,
                                                                offset,
                                                                (int)groups,
                                                                how->power_of_two,
                                                                how->counters});
    }
}
