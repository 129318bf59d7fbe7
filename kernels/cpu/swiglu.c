#include <assert.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector_math.h"

enum { PART = 512 };

CPU_CLONES void cpu_swiglu_forward_part(float *h, const float *gate, const float *up, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        h[i] = gate[i] * fast_sigmoid(gate[i]) * up[i];
    }
}

/* du = dh a s; da = dh u s (1 + a (1 - s)), a = gate, s = sigmoid(a); h as forward makes it. */
CPU_CLONES void cpu_swiglu_backward_part(float *dgate, float *dup, float *h, const float *dh,
                                         const float *gate, const float *up, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const float s = fast_sigmoid(gate[i]);
        h[i] = gate[i] * s * up[i];
        dup[i] = dh[i] * gate[i] * s;
        dgate[i] = dh[i] * up[i] * s * (1.0F + gate[i] * (1.0F - s));
    }
}

void cpu_swiglu_forward(struct device *device, struct tensor h, struct tensor gate_up)
{
    const int64_t rows = h.dim[0], width = h.dim[1];
    assert(gate_up.dim[0] == rows && gate_up.dim[1] == 2 * width);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float gate[PART], up[PART], out[PART];
        for (int64_t i = 0; i < width; i += PART) {
            const int64_t count = width - i < PART ? width - i : PART;
            row_load(gate, gate_up.data, gate_up.dtype, r * 2 * width + i, count);
            row_load(up, gate_up.data, gate_up.dtype, r * 2 * width + width + i, count);
            cpu_swiglu_forward_part(out, gate, up, count);
            row_store(h.data, h.dtype, r * width + i, out, count);
        }
    }
}

void cpu_swiglu_backward(struct device *device, struct tensor dgate_up, struct tensor h,
                         struct tensor dh, struct tensor gate_up)
{
    const int64_t rows = dh.dim[0], width = dh.dim[1];
    assert(gate_up.dim[0] == rows && gate_up.dim[1] == 2 * width && dgate_up.dim[1] == 2 * width);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float gate[PART], up[PART], grad[PART], dgate[PART], dup[PART], out[PART];
        for (int64_t i = 0; i < width; i += PART) {
            const int64_t count = width - i < PART ? width - i : PART, at = r * 2 * width + i;
            row_load(gate, gate_up.data, gate_up.dtype, at, count);
            row_load(up, gate_up.data, gate_up.dtype, at + width, count);
            row_load(grad, dh.data, dh.dtype, r * width + i, count);
            cpu_swiglu_backward_part(dgate, dup, out, grad, gate, up, count);
            row_store(dgate_up.data, dgate_up.dtype, at, dgate, count);
            row_store(dgate_up.data, dgate_up.dtype, at + width, dup, count);
            if (h.data != NULL) {
                row_store(h.data, h.dtype, r * width + i, out, count);
            }
        }
    }
}
