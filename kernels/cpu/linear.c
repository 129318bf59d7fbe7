#include <assert.h>

#include "kernels/cpu/gemm.h"

/* y[M,O] = x[M,I] w[O,I]^T */
static struct gemm forward(struct tensor y, struct tensor x, const void *w, enum dtype w_dtype,
                           bool add)
{
    const int64_t in = x.dim[1], out = y.dim[1];
    assert(x.dim[0] == y.dim[0]);
    return (struct gemm){.m = x.dim[0],
                         .n = out,
                         .k = in,
                         .a = x.data,
                         .b = w,
                         .c = y.data,
                         .a_row = in,
                         .a_col = 1,
                         .b_row = 1,
                         .b_col = in,
                         .c_row = out,
                         .a_dtype = x.dtype,
                         .b_dtype = w_dtype,
                         .c_dtype = y.dtype,
                         .add = add,
                         .vast = gemm_is_vast(out, in)};
}

/* dx[M,I] = dy[M,O] w[O,I] */
static struct gemm backward_input(struct tensor dx, struct tensor dy, const void *w,
                                  enum dtype w_dtype, bool add)
{
    const int64_t in = dx.dim[1], out = dy.dim[1];
    assert(dx.dim[0] == dy.dim[0]);
    return (struct gemm){.m = dx.dim[0],
                         .n = in,
                         .k = out,
                         .a = dy.data,
                         .b = w,
                         .c = dx.data,
                         .a_row = out,
                         .a_col = 1,
                         .b_row = in,
                         .b_col = 1,
                         .c_row = in,
                         .a_dtype = dy.dtype,
                         .b_dtype = w_dtype,
                         .c_dtype = dx.dtype,
                         .add = add,
                         .vast = gemm_is_vast(out, in)};
}

struct gemm gemm_forward(struct tensor y, struct tensor x, struct tensor w)
{
    assert(tensor_is(&w, w.dtype, y.dim[1], x.dim[1]));
    return forward(y, x, w.data, w.dtype, false);
}

struct gemm gemm_weight(float *dw, struct tensor dy, struct tensor x)
{
    const int64_t in = x.dim[1], out = dy.dim[1];
    assert(x.dim[0] == dy.dim[0]);
    return (struct gemm){.m = out,
                         .n = in,
                         .k = x.dim[0],
                         .a = dy.data,
                         .b = x.data,
                         .c = dw,
                         .a_row = 1,
                         .a_col = out,
                         .b_row = in,
                         .b_col = 1,
                         .c_row = in,
                         .a_dtype = dy.dtype,
                         .b_dtype = x.dtype,
                         .c_dtype = DTYPE_F32,
                         .add = true,
                         .sums_tokens = true};
}

void cpu_linear_forward(struct device *device, struct tensor y, struct tensor x, struct tensor w,
                        bool add)
{
    assert(tensor_is(&w, w.dtype, y.dim[1], x.dim[1]));
    const struct gemm gemm = forward(y, x, w.data, w.dtype, add);
    gemm_run(device, &gemm, 1);
}

void cpu_linear_backward_input(struct device *device, struct tensor dx, struct tensor dy,
                               struct tensor w, bool add)
{
    assert(tensor_is(&w, w.dtype, dy.dim[1], dx.dim[1]));
    const struct gemm gemm = backward_input(dx, dy, w.data, w.dtype, add);
    gemm_run(device, &gemm, 1);
}

void cpu_linear_backward_weight(struct device *device, struct tensor dw, struct tensor dy,
                                struct tensor x)
{
    assert(tensor_is(&dw, DTYPE_F32, dy.dim[1], x.dim[1]));
    const struct gemm gemm = gemm_weight(dw.data, dy, x);
    gemm_run(device, &gemm, 1);
}

enum pass { PASS_FORWARD, PASS_INPUT, PASS_WEIGHT, PASS_FIRST_WEIGHT };

static void clear_matrix(struct device *device, void *dw, struct tensor dy, struct tensor x)
{
    cpu_zero(device, dw, (size_t)(dy.dim[1] * x.dim[1]) * sizeof(float));
}

/* One product per expert with rows; `out`, `left` are y and x, dx and dy, or (weight passes) dy and
 * x. */
static void grouped(struct device *device, enum pass pass, struct tensor out, struct tensor left,
                    void *w, int64_t w_stride, const int64_t *offset, int64_t experts)
{
    struct gemm *batch = cpu_scratch(device, CPU_SLOT_BATCH, (size_t)experts * sizeof *batch);
    int64_t count = 0;
    for (int64_t e = 0; e < experts; e++) {
        const int64_t rows = offset[e + 1] - offset[e];
        struct tensor mine = tensor_rows(&out, offset[e], rows),
                      other = tensor_rows(&left, offset[e], rows);
        const bool weight = pass == PASS_WEIGHT || pass == PASS_FIRST_WEIGHT;
        const enum dtype dtype = weight ? DTYPE_F32 : left.dtype;
        char *matrix = (char *)w + (size_t)(e * w_stride) * dtype_bytes(dtype);
        if (rows == 0) {
            if (pass == PASS_FIRST_WEIGHT) {
                clear_matrix(device, matrix, out, left);
            }
            continue;
        }
        batch[count] = pass == PASS_FORWARD ? forward(mine, other, matrix, dtype, false)
                       : pass == PASS_INPUT ? backward_input(mine, other, matrix, dtype, false)
                                            : gemm_weight((float *)(void *)matrix, mine, other);
        batch[count].varies = true;
        if (pass == PASS_FIRST_WEIGHT && gemm_is_wide(device, &batch[count])) {
            batch[count].add = false;
            batch[count].past = true;           /* the optimizer reads it */
        } else if (pass == PASS_FIRST_WEIGHT) { /* oneDNN's sums may be others when they add */
            clear_matrix(device, matrix, out, left);
        }
        count++;
    }
    gemm_run(device, batch, count);
}

void cpu_grouped_forward(struct device *device, struct tensor y, struct tensor x, const void *w,
                         int64_t w_stride, const int64_t *offset, int64_t experts)
{
    grouped(device, PASS_FORWARD, y, x, (void *)(uintptr_t)w, w_stride, offset, experts);
}

void cpu_grouped_backward_input(struct device *device, struct tensor dx, struct tensor dy,
                                const void *w, int64_t w_stride, const int64_t *offset,
                                int64_t experts)
{
    grouped(device, PASS_INPUT, dx, dy, (void *)(uintptr_t)w, w_stride, offset, experts);
}

void cpu_grouped_backward_weight(struct device *device, float *dw, int64_t w_stride,
                                 struct tensor dy, struct tensor x, const int64_t *offset,
                                 int64_t experts)
{
    grouped(device, PASS_WEIGHT, dy, x, dw, w_stride, offset, experts);
}

void cpu_grouped_first_weight(struct device *device, float *dw, int64_t w_stride, struct tensor dy,
                              struct tensor x, const int64_t *offset, int64_t experts)
{
    grouped(device, PASS_FIRST_WEIGHT, dy, x, dw, w_stride, offset, experts);
}
