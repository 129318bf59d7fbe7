#include <assert.h>

#include "kernels/cpu/fp8.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/rows.h"

/* Products of codes. As the device does best: operands become numbers, in bf16 where scales are
 * powers of two (a code times a power of two is a bf16), else in f32, and the device's GEMM sums
 * in f32. The models of the tensor cores: fp8_hopper.c. */

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static void decode(void *out, enum dtype dtype, int64_t at, const uint8_t *code, float scale,
                   int64_t count)
{
    if (dtype == DTYPE_BF16) {
        fp8_decode_bf16((uint16_t *)out + at, code, scale, count);
    } else {
        fp8_decode((float *)out + at, code, scale, count);
    }
}

/* out[rows, cols] = the first rows and columns of x. */
static void decode_rows(struct device *device, void *out, enum dtype dtype, struct fp8_rows x,
                        int64_t rows, int64_t cols)
{
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t col = 0; col < cols; col += FP8_TILE) {
            decode(out, dtype, r * cols + col, x.code + r * x.cols + col,
                   x.scale[col / FP8_TILE * x.pitch + r],
                   cols - col < FP8_TILE ? cols - col : FP8_TILE);
        }
    }
}

/* out[w.matrices, w.rows, w.cols] = w, but for the matrices of groups without rows. */
static void decode_weights(struct device *device, void *out, enum dtype dtype,
                           const struct fp8_weights *w, const int64_t *offset)
{
    const int64_t down = fp8_tiles(w->rows), across = fp8_tiles(w->cols);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < w->matrices * w->rows; r++) {
        const int64_t matrix = r / w->rows;
        const float *scale = w->scale + (matrix * down + r % w->rows / FP8_TILE) * across;
        for (int64_t t = 0; t < across && offset[matrix + 1] > offset[matrix]; t++) {
            const int64_t at = r * w->cols + t * FP8_TILE, left = w->cols - t * FP8_TILE;
            decode(out, dtype, at, w->code + at, scale[t], left < FP8_TILE ? left : FP8_TILE);
        }
    }
}

/* y rounds what was summed in f32. */
static void store_sums(struct device *device, struct tensor y, const float *sums, int64_t rows,
                       bool add)
{
    const int64_t cols = y.dim[1];
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float part[FP8_TILE];
        for (int64_t col = 0; col < cols; col += FP8_TILE) {
            const int64_t count = cols - col < FP8_TILE ? cols - col : FP8_TILE;
            row_load(part, y.data, y.dtype, r * cols + col, count);
            for (int64_t i = 0; i < count; i++) {
                part[i] = sums[r * cols + col + i] + (add ? part[i] : 0.0F);
            }
            row_store(y.data, y.dtype, r * cols + col, part, count);
        }
    }
}

/* Rows by matrix. */
struct rows_by {
    const int64_t *offset; /* [matrices + 1] */
    bool vary;             /* from call to call: they are tokens of experts */
};

/* One product per group with rows. f32 operands give sums in f32 first: y's rows must not depend
 * on which kernels there are for f32 in and bf16 out. */
static void linear_numbers(struct device *device, struct tensor y, struct fp8_rows x,
                           struct fp8_weights w, const struct rows_by *by, bool add,
                           enum dtype dtype)
{
    const int64_t *offset = by->offset;
    const int64_t rows = offset[w.matrices], in = x.cols, out = w.rows;
    const size_t width = dtype_bytes(dtype), left = aligned((size_t)(rows * in) * width),
                 right = aligned((size_t)(w.matrices * out * in) * width),
                 sums = dtype == DTYPE_F32 ? (size_t)(rows * out) * sizeof(float) : 0;
    struct gemm *batch = cpu_scratch(device, CPU_SLOT_BATCH, (size_t)w.matrices * sizeof *batch);
    char *a = cpu_scratch(device, CPU_SLOT_FP8, left + right + sums), *b = a + left;
    void *c = dtype == DTYPE_F32 ? b + right : y.data;
    const enum dtype c_dtype = dtype == DTYPE_F32 ? DTYPE_F32 : y.dtype;
    int64_t count = 0;
    decode_rows(device, a, dtype, x, rows, in);
    decode_weights(device, b, dtype, &w, offset);
    for (int64_t g = 0; g < w.matrices; g++) {
        if (offset[g + 1] > offset[g]) {
            batch[count++] = (struct gemm){
                .m = offset[g + 1] - offset[g],
                .n = out,
                .k = in,
                .a = a + (size_t)(offset[g] * in) * width,
                .b = b + (size_t)(g * out * in) * width,
                .c = (char *)c + (size_t)(offset[g] * out) * dtype_bytes(c_dtype),
                .a_row = in,
                .a_col = 1,
                .b_row = 1,
                .b_col = in,
                .c_row = out,
                .a_dtype = dtype,
                .b_dtype = dtype,
                .c_dtype = c_dtype,
                .add = add && dtype != DTYPE_F32,
                .varies = by->vary,
            };
        }
    }
    gemm_run(device, batch, count);
    if (dtype == DTYPE_F32) {
        store_sums(device, y, c, rows, add);
    }
}

static void linear_model(struct device *device, struct tensor y, struct fp8_rows x,
                         struct fp8_weights w, const int64_t *offset, bool add, bool promoted)
{
    const int64_t across = fp8_tiles(w.cols);
    for (int64_t g = 0; g < w.matrices; g++) {
        const struct fp8_product product = {.a = {.code = x.code + offset[g] * x.cols,
                                                  .scale = x.scale + offset[g],
                                                  .row_bytes = x.cols,
                                                  .scale_row = 1,
                                                  .scale_tile = x.pitch},
                                            .b = {.code = w.code + g * w.rows * w.cols,
                                                  .scale = w.scale + g * fp8_tiles(w.rows) * across,
                                                  .row_bytes = w.cols,
                                                  .scale_row = across,
                                                  .scale_tile = 1,
                                                  .row_shift = 7},
                                            .m = offset[g + 1] - offset[g],
                                            .n = w.rows,
                                            .k = x.cols,
                                            .c = (char *)y.data + (size_t)(offset[g] * w.rows) *
                                                                      dtype_bytes(y.dtype),
                                            .c_dtype = y.dtype,
                                            .add = add,
                                            .promoted = promoted};
        fp8_hopper_run(device, &product);
    }
}

void cpu_fp8_linear(struct device *device, struct tensor y, struct fp8_rows x, struct fp8_weights w,
                    const int64_t *offset, bool add, const struct fp8_how *how)
{
    const int64_t all[2] = {0, x.rows};
    const int64_t *mine = offset != NULL ? offset : all;
    const struct rows_by by = {mine, offset != NULL};
    assert(y.dtype == DTYPE_BF16 || y.dtype == DTYPE_F32);
    assert(tensor_is(&y, y.dtype, x.rows, w.rows) && x.cols == w.cols && x.cols % 16 == 0);
    assert((offset != NULL || w.matrices == 1) && mine[0] == 0 && mine[w.matrices] <= x.rows);
    if (how->accumulate == FP8_ACCUMULATE_DEVICE) {
        linear_numbers(device, y, x, w, &by, add, how->power_of_two ? DTYPE_BF16 : DTYPE_F32);
    } else {
        linear_model(device, y, x, w, mine, add, how->accumulate == FP8_ACCUMULATE_PROMOTED);
    }
}

static void weight_numbers(struct device *device, float *dw, int64_t stride, struct fp8_rows dyt,
                           struct fp8_rows xt, const struct rows_by *by, int64_t groups,
                           enum dtype dtype)
{
    const int64_t *offset = by->offset;
    const int64_t columns = fp8_filled_columns(offset, groups), out = dyt.rows, in = xt.rows;
    const size_t width = dtype_bytes(dtype), left = aligned((size_t)(out * columns) * width);
    struct gemm *batch = cpu_scratch(device, CPU_SLOT_BATCH, (size_t)groups * sizeof *batch);
    char *a = cpu_scratch(device, CPU_SLOT_FP8, left + (size_t)(in * columns) * width),
         *b = a + left;
    int64_t count = 0, begin = 0;
    decode_rows(device, a, dtype, dyt, out, columns);
    decode_rows(device, b, dtype, xt, in, columns);
    for (int64_t g = 0; g < groups; g++) {
        const int64_t rows = offset[g + 1] - offset[g];
        if (rows > 0) {
            batch[count++] = (struct gemm){.m = out,
                                           .n = in,
                                           .k = rows,
                                           .a = a + (size_t)begin * width,
                                           .b = b + (size_t)begin * width,
                                           .c = dw + g * stride,
                                           .a_row = columns,
                                           .a_col = 1,
                                           .b_row = 1,
                                           .b_col = columns,
                                           .c_row = in,
                                           .a_dtype = dtype,
                                           .b_dtype = dtype,
                                           .c_dtype = DTYPE_F32,
                                           .add = true,
                                           .varies = by->vary,
                                           .sums_tokens = true};
        }
        begin += fp8_tiles(rows) * FP8_TILE;
    }
    gemm_run(device, batch, count);
}

static struct fp8_operand tokens_from(const struct fp8_rows *t, int64_t column)
{
    return (struct fp8_operand){.code = t->code + column,
                                .scale = t->scale + column / FP8_TILE * t->pitch,
                                .row_bytes = t->cols,
                                .scale_row = 1,
                                .scale_tile = t->pitch};
}

static void weight_model(struct device *device, float *dw, int64_t stride, struct fp8_rows dyt,
                         struct fp8_rows xt, const int64_t *offset, int64_t groups, bool promoted)
{
    int64_t begin = 0;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t columns = fp8_tiles(offset[g + 1] - offset[g]) * FP8_TILE;
        const struct fp8_product product = {.a = tokens_from(&dyt, begin),
                                            .b = tokens_from(&xt, begin),
                                            .m = dyt.rows,
                                            .n = xt.rows,
                                            .k = columns,
                                            .c = dw + g * stride,
                                            .c_dtype = DTYPE_F32,
                                            .add = true,
                                            .promoted = promoted};
        if (columns > 0) {
            fp8_hopper_run(device, &product);
        }
        begin += columns;
    }
}

void cpu_fp8_linear_weight(struct device *device, float *dw, int64_t stride, struct fp8_rows dyt,
                           struct fp8_rows xt, const int64_t *offset, int64_t groups,
                           int64_t tokens, const struct fp8_how *how)
{
    const int64_t all[2] = {0, tokens};
    const int64_t *mine = offset != NULL ? offset : all, count = offset != NULL ? groups : 1;
    const struct rows_by by = {mine, offset != NULL};
    assert(mine[count] <= tokens && fp8_filled_columns(mine, count) <= dyt.cols &&
           fp8_filled_columns(mine, count) <= xt.cols);
    if (how->accumulate == FP8_ACCUMULATE_DEVICE) {
        weight_numbers(device, dw, stride, dyt, xt, &by, count,
                       how->power_of_two ? DTYPE_BF16 : DTYPE_F32);
    } else {
        weight_model(device, dw, stride, dyt, xt, mine, count,
                     how->accumulate == FP8_ACCUMULATE_PROMOTED);
    }
}
