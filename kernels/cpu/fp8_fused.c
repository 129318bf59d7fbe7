#include <assert.h>

#include "kernels/cpu/fp8.h"
#include "kernels/cpu/rows.h"

/* Ops whose results become codes without having been in memory. The numbers are those of the plain
 * ops, by the same functions, rounded to bf16 as these store them. */

void cpu_fp8_norm_forward(struct device *device, struct fp8_rows q, struct tensor y,
                          struct tensor sum, float *rstd, struct tensor x, struct tensor delta,
                          struct tensor w, float eps, const struct fp8_how *how)
{
    const struct norm_row from = {x, delta, sum, eps, DTYPE_BF16};
    const struct fp8_out out = fp8_out_rows(q);
    const int64_t width = x.dim[1];
    assert(width <= NORM_MAX_WIDTH && width % 16 == 0 && q.rows == x.dim[0] && q.cols == width);
    assert(x.dtype == DTYPE_BF16 && (y.data == NULL || y.dtype == DTYPE_BF16));
#pragma omp parallel num_threads(device->threads)
    {
        float row[NORM_MAX_WIDTH], normed[NORM_MAX_WIDTH], weight[NORM_MAX_WIDTH];
        struct fp8_counters tally = {0};
        row_load(weight, w.data, w.dtype, 0, width);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < x.dim[0]; n++) {
            rstd[n] = cpu_norm_row(normed, row, &from, weight, n);
            row_round(normed, DTYPE_BF16, width);
            if (y.data != NULL) {
                row_store(y.data, y.dtype, n * width, normed, width);
            }
            fp8_out_row(&out, n, normed, width, how, &tally);
        }
        fp8_count(how->counters, &tally);
    }
}

/* gate_up of SwiGLU, as act or as codes, and dh where it is backward. */
struct swiglu {
    struct tensor gate_up; /* data NULL: kept */
    struct fp8_rows kept;
    struct tensor dh;
    int64_t width; /* F */
    bool vectors;  /* of cpu.h */
};

static void load_gate_up(float *out, const struct swiglu *s, int64_t row, int64_t col,
                         int64_t count)
{
    if (s->gate_up.data != NULL) {
        row_load(out, s->gate_up.data, s->gate_up.dtype, row * 2 * s->width + col, count);
    } else {
        fp8_decode_row(out, &s->kept, row, col, count);
    }
}

CPU_CLONES static void fill_swiglu(float *tile, const void *from, struct fp8_window w)
{
    const struct swiglu *s = from;
    float gate[FP8_TILE], up[FP8_TILE];
    for (int64_t r = 0; r < w.rows; r++) {
        load_gate_up(gate, s, w.row + r, w.col, w.cols);
        load_gate_up(up, s, w.row + r, s->width + w.col, w.cols);
        cpu_swiglu_forward_part(s->vectors, tile + r * FP8_TILE, gate, up, w.cols);
        row_round(tile + r * FP8_TILE, DTYPE_BF16, w.cols);
    }
}

static void fill_gate_up(float *tile, const void *from, struct fp8_window w)
{
    const struct swiglu *s = from;
    for (int64_t r = 0; r < w.rows; r++) {
        load_gate_up(tile + r * FP8_TILE, s, w.row + r, w.col, w.cols);
    }
}

/* Columns [col, col + count) of the gradients of gate and up, all of one of the two. */
CPU_CLONES static void gradient_part(float *out, const struct swiglu *s, int64_t row, int64_t col,
                                     int64_t count)
{
    const bool is_up = col >= s->width;
    const int64_t at = is_up ? col - s->width : col;
    float gate[FP8_TILE], up[FP8_TILE], dh[FP8_TILE], other[FP8_TILE], h[FP8_TILE];
    load_gate_up(gate, s, row, at, count);
    load_gate_up(up, s, row, s->width + at, count);
    row_load(dh, s->dh.data, s->dh.dtype, row * s->width + at, count);
    cpu_swiglu_backward_part(s->vectors, is_up ? other : out, is_up ? out : other, h, dh, gate, up,
                             count);
    row_round(out, DTYPE_BF16, count);
}

static void fill_gradient(float *tile, const void *from, struct fp8_window w)
{
    const struct swiglu *s = from;
    const int64_t end = w.col + w.cols,
                  middle = s->width < w.col ? w.col : (s->width < end ? s->width : end);
    for (int64_t r = 0; r < w.rows; r++) {
        float *out = tile + r * FP8_TILE;
        if (middle > w.col) {
            gradient_part(out, s, w.row + r, w.col, middle - w.col);
        }
        if (middle < end) {
            gradient_part(out + (middle - w.col), s, w.row + r, middle, end - middle);
        }
    }
}

void cpu_fp8_swiglu_forward(struct device *device, struct fp8_rows h, struct fp8_rows kept,
                            struct tensor gate_up, const int64_t *offset, int64_t groups,
                            const struct fp8_how *how)
{
    const struct swiglu from = {
        .gate_up = gate_up, .width = h.cols, .vectors = cpu_device_of(device)->vectors};
    struct fp8_work work = {.rows = h.rows,
                            .cols = h.cols,
                            .out = fp8_out_rows(h),
                            .offset = offset,
                            .groups = groups,
                            .how = how,
                            .fill = fill_swiglu,
                            .from = &from};
    assert(tensor_is(&gate_up, DTYPE_BF16, h.rows, 2 * h.cols));
    fp8_work_run(device, &work);
    if (kept.code != NULL) {
        assert(kept.rows == h.rows && kept.cols == 2 * h.cols);
        work.cols = kept.cols;
        work.out = fp8_out_rows(kept);
        work.fill = fill_gate_up;
        fp8_work_run(device, &work);
    }
}

void cpu_fp8_swiglu_backward(struct device *device, struct fp8_rows d, struct fp8_rows dt,
                             struct fp8_rows ht, struct tensor dh, struct tensor gate_up,
                             struct fp8_rows kept, const int64_t *offset, int64_t groups,
                             const struct fp8_how *how)
{
    const struct swiglu from = {gate_up, kept, dh, dh.dim[1], cpu_device_of(device)->vectors};
    const struct fp8_how uncounted = {.power_of_two = how->power_of_two};
    struct fp8_work work = {.rows = dh.dim[0],
                            .cols = 2 * from.width,
                            .out = fp8_out_rows(d),
                            .t = dt,
                            .offset = offset,
                            .groups = groups,
                            .how = how,
                            .fill = fill_gradient,
                            .from = &from};
    assert(dh.dtype == DTYPE_BF16 && d.rows == dh.dim[0] && d.cols == 2 * from.width);
    assert(gate_up.data == NULL ? kept.cols == d.cols
                                : tensor_is(&gate_up, DTYPE_BF16, d.rows, d.cols));
    fp8_work_run(device, &work);
    if (ht.code != NULL) {
        work.cols = from.width;
        work.out = (struct fp8_out){0};
        work.t = ht;
        work.fill = fill_swiglu;
        work.how = &uncounted;
        fp8_work_run(device, &work);
    }
}

void cpu_fp8_combine_rows_backward(struct device *device, struct fp8_rows q, uint8_t *packed,
                                   float *dweight, struct tensor dy, struct tensor x,
                                   const int32_t *slot_row, const float *weight, int64_t top_k,
                                   const struct fp8_how *how)
{
    const int64_t width = dy.dim[1];
    const struct fp8_out out = q.code != NULL ? fp8_out_rows(q) : fp8_out_packed(packed, width);
    assert(dy.dtype == DTYPE_BF16 && x.dtype == DTYPE_BF16 && x.dim[1] == width);
    assert(width % 16 == 0 && width <= NORM_MAX_WIDTH && (q.code == NULL || q.cols == width));
#pragma omp parallel num_threads(device->threads)
    {
        float grad[CPU_COMBINE_PART], in[CPU_COMBINE_PART], row[NORM_MAX_WIDTH];
        struct fp8_counters tally = {0};
#pragma omp for schedule(static)
        for (int64_t slot = 0; slot < dy.dim[0] * top_k; slot++) {
            float sum = 0;
            for (int64_t i = 0; i < width && slot_row[slot] >= 0; i += CPU_COMBINE_PART) {
                const int64_t count = width - i < CPU_COMBINE_PART ? width - i : CPU_COMBINE_PART;
                row_load(grad, dy.data, dy.dtype, slot / top_k * width + i, count);
                row_load(in, x.data, x.dtype, slot_row[slot] * width + i, count);
                sum += cpu_combine_backward_part(row + i, grad, in, weight[slot], count);
            }
            if (slot_row[slot] >= 0) {
                row_round(row, DTYPE_BF16, width);
                fp8_out_row(&out, slot_row[slot], row, width, how, &tally);
            }
            dweight[slot] = sum;
        }
        fp8_count(how->counters, &tally);
    }
}
