#include "kernels/cpu/swiglu_wide.h"

#include <assert.h>

#include "kernels/cpu/wide_math.h"

#ifdef __x86_64__
enum { LANES = WIDE_LANES, ALL = 0xffff };

/* Gradients of sixteen elements, and h. */
struct gradients {
    __m512 dgate, dup, h;
};

WIDE_MATH __m512 forward(__m512 gate, __m512 up)
{
    return _mm512_mul_ps(_mm512_mul_ps(gate, wide_sigmoid(gate)), up);
}

/* du = dh a s; da = dh u s (1 + a (1 - s)), a = gate, s = sigmoid(a) */
WIDE_MATH struct gradients backward(__m512 dh, __m512 gate, __m512 up)
{
    const __m512 one = _mm512_set1_ps(1.0F), s = wide_sigmoid(gate), silu = _mm512_mul_ps(gate, s),
                 slope = _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one);
    return (struct gradients){.dgate =
                                  _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(dh, up), s), slope),
                              .dup = _mm512_mul_ps(dh, silu),
                              .h = _mm512_mul_ps(silu, up)};
}

WIDE_MATH __m512 forward_at(const uint16_t *gate, const uint16_t *up, __mmask16 some)
{
    return forward(wide_load_bf16(gate, some), wide_load_bf16(up, some));
}

WIDE_MATH struct gradients backward_at(const uint16_t *dh, const uint16_t *gate, const uint16_t *up,
                                       __mmask16 some)
{
    return backward(wide_load_bf16(dh, some), wide_load_bf16(gate, some), wide_load_bf16(up, some));
}

WIDE_FUNCTION void swiglu_wide_forward(float *h, const float *gate, const float *up, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 some = wide_first(count - i);
        const __m512 a = _mm512_maskz_loadu_ps(some, gate + i),
                     b = _mm512_maskz_loadu_ps(some, up + i);
        _mm512_mask_storeu_ps(h + i, some, forward(a, b));
    }
}

WIDE_FUNCTION void swiglu_wide_forward_bf16(uint16_t *h, const uint16_t *gate, const uint16_t *up,
                                            int64_t count)
{
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const int64_t next = i + LANES;
        _mm512_storeu_si512(h + i, wide_narrow(forward_at(gate + i, up + i, ALL),
                                               forward_at(gate + next, up + next, ALL)));
    }
    for (; i < count; i += LANES) {
        const __mmask16 some = wide_first(count - i);
        wide_store_some(h + i, forward_at(gate + i, up + i, some), some);
    }
}

WIDE_FUNCTION void swiglu_wide_backward(float *dgate, float *dup, float *h, const float *dh,
                                        const float *gate, const float *up, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 some = wide_first(count - i);
        const struct gradients of =
            backward(_mm512_maskz_loadu_ps(some, dh + i), _mm512_maskz_loadu_ps(some, gate + i),
                     _mm512_maskz_loadu_ps(some, up + i));
        _mm512_mask_storeu_ps(dgate + i, some, of.dgate);
        _mm512_mask_storeu_ps(dup + i, some, of.dup);
        if (h != NULL) {
            _mm512_mask_storeu_ps(h + i, some, of.h);
        }
    }
}

WIDE_FUNCTION void swiglu_wide_backward_bf16(uint16_t *dgate, uint16_t *dup, uint16_t *h,
                                             const uint16_t *dh, const uint16_t *gate,
                                             const uint16_t *up, int64_t count)
{
    int64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const int64_t next = i + LANES;
        const struct gradients low = backward_at(dh + i, gate + i, up + i, ALL),
                               high = backward_at(dh + next, gate + next, up + next, ALL);
        _mm512_storeu_si512(dgate + i, wide_narrow(low.dgate, high.dgate));
        _mm512_storeu_si512(dup + i, wide_narrow(low.dup, high.dup));
        if (h != NULL) {
            _mm512_storeu_si512(h + i, wide_narrow(low.h, high.h));
        }
    }
    for (; i < count; i += LANES) {
        const __mmask16 some = wide_first(count - i);
        const struct gradients of = backward_at(dh + i, gate + i, up + i, some);
        wide_store_some(dgate + i, of.dgate, some);
        wide_store_some(dup + i, of.dup, some);
        if (h != NULL) {
            wide_store_some(h + i, of.h, some);
        }
    }
}
#else
void swiglu_wide_forward(float *h, const float *gate, const float *up, int64_t count)
{
    (void)h, (void)gate, (void)up, (void)count;
    assert(false);
}

void swiglu_wide_forward_bf16(uint16_t *h, const uint16_t *gate, const uint16_t *up, int64_t count)
{
    (void)h, (void)gate, (void)up, (void)count;
    assert(false);
}

void swiglu_wide_backward(float *dgate, float *dup, float *h, const float *dh, const float *gate,
                          const float *up, int64_t count)
{
    (void)dgate, (void)dup, (void)h, (void)dh, (void)gate, (void)up, (void)count;
    assert(false);
}

void swiglu_wide_backward_bf16(uint16_t *dgate, uint16_t *dup, uint16_t *h, const uint16_t *dh,
                               const uint16_t *gate, const uint16_t *up, int64_t count)
{
    (void)dgate, (void)dup, (void)h, (void)dh, (void)gate, (void)up, (void)count;
    assert(false);
}
#endif
