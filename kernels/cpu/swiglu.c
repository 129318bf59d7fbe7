#include <assert.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/swiglu_wide.h"
#include "kernels/cpu/vector_math.h"

enum { PART = 512 };

/* The arrays of a part never overlap, and the compiler is told: to find out, it would compare each
 * output with each input, and of six arrays gives up on vectors. */
CPU_CLONES static void forward_part(float *restrict h, const float *restrict gate,
                                    const float *restrict up, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        h[i] = gate[i] * fast_sigmoid(gate[i]) * up[i];
    }
}

/* du = dh a s; da = dh u s (1 + a (1 - s)), a = gate, s = sigmoid(a); h as forward makes it. */
CPU_CLONES static void backward_part(float *restrict dgate, float *restrict dup, float *restrict h,
                                     const float *restrict dh, const float *restrict gate,
                                     const float *restrict up, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const float s = fast_sigmoid(gate[i]), silu = gate[i] * s;
        h[i] = silu * up[i];
        dup[i] = dh[i] * silu;
        dgate[i] = dh[i] * up[i] * s * (1.0F + gate[i] * (1.0F - s));
    }
}

void cpu_swiglu_forward_part(bool vectors, float *h, const float *gate, const float *up,
                             int64_t count)
{
    (vectors ? swiglu_wide_forward : forward_part)(h, gate, up, count);
}

void cpu_swiglu_backward_part(bool vectors, float *dgate, float *dup, float *h, const float *dh,
                              const float *gate, const float *up, int64_t count)
{
    (vectors ? swiglu_wide_backward : backward_part)(dgate, dup, h, dh, gate, up, count);
}

static void forward_row(bool vectors, struct tensor h, struct tensor gate_up, int64_t r)
{
    const int64_t width = h.dim[1], at = r * 2 * width;
    float gate[PART], up[PART], out[PART];
    for (int64_t i = 0; i < width; i += PART) {
        const int64_t count = width - i < PART ? width - i : PART;
        row_load(gate, gate_up.data, gate_up.dtype, at + i, count);
        row_load(up, gate_up.data, gate_up.dtype, at + width + i, count);
        cpu_swiglu_forward_part(vectors, out, gate, up, count);
        row_store(h.data, h.dtype, r * width + i, out, count);
    }
}

void cpu_swiglu_forward(struct device *device, struct tensor h, struct tensor gate_up)
{
    const int64_t rows = h.dim[0], width = h.dim[1];
    const bool vectors = cpu_device_of(device)->vectors,
               wide = h.dtype == DTYPE_BF16 && gate_up.dtype == DTYPE_BF16 && vectors,
               plain = h.dtype == DTYPE_F32 && gate_up.dtype == DTYPE_F32 && vectors;
    assert(gate_up.dim[0] == rows && gate_up.dim[1] == 2 * width);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *gate = (const uint16_t *)gate_up.data + r * 2 * width;
        if (wide) {
            swiglu_wide_forward_bf16((uint16_t *)h.data + r * width, gate, gate + width, width);
        } else if (plain) {
            const float *gate_f32 = (const float *)gate_up.data + r * 2 * width;
            swiglu_wide_forward((float *)h.data + r * width, gate_f32, gate_f32 + width, width);
        } else {
            forward_row(vectors, h, gate_up, r);
        }
    }
}

static void backward_row(bool vectors, struct tensor dgate_up, struct tensor h, struct tensor dh,
                         struct tensor gate_up, int64_t r)
{
    const int64_t width = dh.dim[1];
    float gate[PART], up[PART], grad[PART], dgate[PART], dup[PART], out[PART];
    for (int64_t i = 0; i < width; i += PART) {
        const int64_t count = width - i < PART ? width - i : PART, at = r * 2 * width + i;
        row_load(gate, gate_up.data, gate_up.dtype, at, count);
        row_load(up, gate_up.data, gate_up.dtype, at + width, count);
        row_load(grad, dh.data, dh.dtype, r * width + i, count);
        cpu_swiglu_backward_part(vectors, dgate, dup, out, grad, gate, up, count);
        row_store(dgate_up.data, dgate_up.dtype, at, dgate, count);
        row_store(dgate_up.data, dgate_up.dtype, at + width, dup, count);
        if (h.data != NULL) {
            row_store(h.data, h.dtype, r * width + i, out, count);
        }
    }
}

void cpu_swiglu_backward(struct device *device, struct tensor dgate_up, struct tensor h,
                         struct tensor dh, struct tensor gate_up)
{
    const int64_t rows = dh.dim[0], width = dh.dim[1];
    const bool vectors = cpu_device_of(device)->vectors;
    const bool wide = dgate_up.dtype == DTYPE_BF16 && dh.dtype == DTYPE_BF16 &&
                      gate_up.dtype == DTYPE_BF16 && (h.data == NULL || h.dtype == DTYPE_BF16) &&
                      vectors,
               plain = dgate_up.dtype == DTYPE_F32 && dh.dtype == DTYPE_F32 &&
                       gate_up.dtype == DTYPE_F32 && (h.data == NULL || h.dtype == DTYPE_F32) &&
                       vectors;
    assert(gate_up.dim[0] == rows && gate_up.dim[1] == 2 * width && dgate_up.dim[1] == 2 * width);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r * 2 * width;
        if (wide) {
            const uint16_t *gate = (const uint16_t *)gate_up.data + at;
            uint16_t *dgate = (uint16_t *)dgate_up.data + at;
            swiglu_wide_backward_bf16(
                dgate, dgate + width, h.data != NULL ? (uint16_t *)h.data + r * width : NULL,
                (const uint16_t *)dh.data + r * width, gate, gate + width, width);
        } else if (plain) {
            const float *gate = (const float *)gate_up.data + at;
            float *dgate = (float *)dgate_up.data + at;
            swiglu_wide_backward(dgate, dgate + width,
                                 h.data != NULL ? (float *)h.data + r * width : NULL,
                                 (const float *)dh.data + r * width, gate, gate + width, width);
        } else {
            backward_row(vectors, dgate_up, h, dh, gate_up, r);
        }
    }
}
