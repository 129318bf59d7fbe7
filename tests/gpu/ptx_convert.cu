/* E4M3 conversions: the hardware's (or their model), and the integer arithmetic of older GPUs. */
#include "conformance.h"

#include "kernels/cuda/fp8_code.cuh"

/* code[i] of x[2 i] and x[2 i + 1]. */
template <bool soft> __global__ void to_codes_kernel(const float *x, uint16_t *code, unsigned pairs)
{
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i < pairs) {
        const float a = x[2 * i], b = x[2 * i + 1];
        code[i] = (uint16_t)(soft ? e4m3_from_float_soft(a) | e4m3_from_float_soft(b) << 8
                                  : e4m3x2_from_floats(a, b));
    }
}

/* bits[256] of all codes; every NaN is 0x7fc00000. */
template <bool soft> __global__ void from_codes_kernel(uint32_t *bits)
{
    const unsigned i = threadIdx.x;
    float x[2] = {e4m3_to_float_soft(2 * i), e4m3_to_float_soft(2 * i + 1)};
    if (!soft) {
        e4m3x2_to_floats(x[0], x[1], 2 * i | (2 * i + 1) << 8);
    }
    for (unsigned j = 0; j < 2; j++) {
        bits[2 * i + j] = x[j] == x[j] ? __float_as_uint(x[j]) : 0x7fc00000u;
    }
}

__global__ void max_nan_kernel(const float *x, float *most, unsigned count)
{
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i + 1 < count) {
        most[i] = max_nan(x[i], x[i + 1]);
        most[i] = most[i] == most[i] ? most[i] : -1.0f;
    }
}

/* OCP's definition: 1.mmm 2^(e - 7), 0.mmm 2^-6 where e = 0; 0x7f is NaN. */
static double magnitude(int code)
{
    const int e = code >> 3, m = code & 7;
    return e == 0 ? ldexp(m, -9) : ldexp(8 + m, e - 10);
}

static uint8_t nearest(float x)
{
    if (x != x) {
        return 0x7f;
    }
    int best = 0;
    for (int code = 1; code <= 0x7e; code++) {
        const double a = fabs(magnitude(code) - fabs((double)x)),
                     b = fabs(magnitude(best) - fabs((double)x));
        if (a < b || (a == b && code % 2 == 0)) {
            best = code;
        }
    }
    return (uint8_t)(isinf(x) ? 0x7e : best) | (uint8_t)(signbit(x) ? 0x80 : 0);
}

/* Every 16th bf16, every E4M3 number, every middle of two, and the floats on both sides of each. */
static std::vector<float> numbers()
{
    std::vector<float> x;
    for (unsigned bits = 0; bits < 65536; bits += 16) {
        x.push_back(bf16_value((uint16_t)bits));
    }
    for (int code = 0; code < 0x7e; code++) {
        for (float y :
             {(float)magnitude(code), (float)((magnitude(code) + magnitude(code + 1)) / 2)}) {
            for (float z : {y, nextafterf(y, 1e9f), nextafterf(y, -1e9f)}) {
                x.push_back(z);
                x.push_back(-z);
            }
        }
    }
    for (float y : {448.0f, 464.0f, 465.0f, 1e30f, INFINITY, NAN}) {
        x.push_back(y);
        x.push_back(-y);
    }
    return x;
}

void conformance_convert(struct conformance *c)
{
    const std::vector<float> x = numbers();
    const unsigned pairs = (unsigned)x.size() / 2;
    std::vector<uint16_t> want(pairs);
    for (unsigned i = 0; i < pairs; i++) {
        want[i] = (uint16_t)(nearest(x[2 * i]) | nearest(x[2 * i + 1]) << 8);
    }
    device_vector<float> from(x);
    device_vector<uint16_t> code(std::vector<uint16_t>(pairs, 0));
    const unsigned blocks = (pairs + 255) / 256;
    LAUNCH(to_codes_kernel<false>, blocks, 256, 0, nullptr, from.data, code.data, pairs);
    conformance_exact(c, "e4m3x2_from_floats", code.get(), want);
    LAUNCH(to_codes_kernel<true>, blocks, 256, 0, nullptr, from.data, code.data, pairs);
    conformance_exact(c, "e4m3 from float by integers", code.get(), want);

    std::vector<uint32_t> bits(256);
    for (int i = 0; i < 256; i++) {
        const float value = (float)magnitude(i & 0x7f);
        memcpy(&bits[(size_t)i], &value, sizeof value);
        bits[(size_t)i] = (i & 0x7f) == 0x7f ? 0x7fc00000u : bits[(size_t)i] | (i & 0x80u) << 24;
    }
    device_vector<uint32_t> to(std::vector<uint32_t>(256, 0));
    LAUNCH(from_codes_kernel<false>, 1, 128, 0, nullptr, to.data);
    conformance_exact(c, "e4m3x2_to_floats", to.get(), bits);
    LAUNCH(from_codes_kernel<true>, 1, 128, 0, nullptr, to.data);
    conformance_exact(c, "e4m3 to float by integers", to.get(), bits);

    std::vector<float> most(x.size(), 0);
    for (size_t i = 0; i + 1 < x.size(); i++) {
        const bool nan = x[i] != x[i] || x[i + 1] != x[i + 1];
        most[i] = nan ? -1.0f : std::max(x[i], x[i + 1]) + 0.0f; /* no zero of the other sign */
    }
    device_vector<float> larger(std::vector<float>(x.size(), 0));
    LAUNCH(max_nan_kernel, (unsigned)(x.size() + 255) / 256, 256, 0, nullptr, from.data,
           larger.data, (unsigned)x.size());
    std::vector<float> got = larger.get();
    for (float &y : got) {
        y += 0.0f;
    }
    conformance_exact(c, "max_nan", got, most);
}
