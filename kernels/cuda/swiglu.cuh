/* swiglu: the arithmetic, for the kernels that round its results to their dtype and those that
 * quantise them, whose bits must be the same. */
#ifndef KERNELS_CUDA_SWIGLU_CUH
#define KERNELS_CUDA_SWIGLU_CUH

#include "kernels/cuda/rows.cuh"

DEVICE float swiglu(float gate, float up)
{
    return gate * sigmoid(gate) * up;
}

/* du = dh a s; da = dh u s (1 + a (1 - s)), a = gate, s = sigmoid(a), in their places. */
DEVICE void swiglu_gradient(float &gate, float &up, float grad)
{
    const float s = sigmoid(gate), dup = grad * gate * s;
    gate = grad * up * s * (1.0F + gate * (1.0F - s));
    up = dup;
}

#endif
