/* wgmma of bf16 and e4m3: every N of ptx.cuh, K-major with every swizzle, MN-major, accumulating.
 */
#include "conformance.h"

#include "kernels/cuda/ptx.cuh"

/* A row of an operand is 128 bytes of k: four wgmma of 32 bytes each. */
enum { DEPTH_BYTES = 128, STEPS = 4, ROWS = 64 };

/* How an operand lies in shared memory: the fields of its descriptor, and where each step begins.
 */
struct layout {
    uint32_t leading, stride, step[STEPS];
    int swizzle; /* enum wgmma_swizzle */
};

template <int n, bool fp8, int a_mn_major, int b_mn_major>
__global__ void __launch_bounds__(128)
    wgmma_kernel(const uint8_t *a, const uint8_t *b, float *c, struct layout la, struct layout lb,
                 int accumulate)
{
    SMEM_DYN(raw);
    uint8_t *tile_a = raw, *tile_b = raw + ROWS * DEPTH_BYTES;
    uint64_t *full = reinterpret_cast<uint64_t *>(tile_b + n * DEPTH_BYTES);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(full, (ROWS + n) * DEPTH_BYTES);
        tma_load_1d(tile_a, a, ROWS * DEPTH_BYTES, full);
        tma_load_1d(tile_b, b, n * DEPTH_BYTES, full);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    float sum[n / 2];
    int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        sum[i] = c[(row + i / 2 % 2 * 8) * n + i / 4 * 8 + column + i % 2];
    wgmma_hold(sum);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        uint64_t da = wgmma_descriptor(tile_a + la.step[k], la.leading, la.stride,
                                       (enum wgmma_swizzle)la.swizzle);
        uint64_t db = wgmma_descriptor(tile_b + lb.step[k], lb.leading, lb.stride,
                                       (enum wgmma_swizzle)lb.swizzle);
        if constexpr (fp8)
            wgmma_e4m3(sum, da, db, accumulate || k > 0);
        else
            wgmma_bf16<a_mn_major, b_mn_major>(sum, da, db, accumulate || k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(sum);
#pragma unroll
    for (int i = 0; i < n / 2; i++)
        c[(row + i / 2 % 2 * 8) * n + i / 4 * 8 + column + i % 2] = sum[i];
}

/* The fields of a descriptor but its address. */
__global__ void descriptor_kernel(uint64_t *fields)
{
    SMEM(uint4, tile, [8]);
    uint64_t d = wgmma_descriptor(tile, 1024 * threadIdx.x, 16 * threadIdx.x,
                                  (enum wgmma_swizzle)(threadIdx.x % 4));
    fields[threadIdx.x] = d - (shared_address(tile) >> 4);
}

/* ---- operands on the host ---- */

struct shape {
    int n;
    bool fp8, a_mn_major, b_mn_major;
    int swizzle;
    bool accumulate, integers;
};

static size_t row_bytes(int swizzle)
{
    static const size_t width[] = {16, 128, 64, 32}; /* by enum wgmma_swizzle */
    return width[swizzle];
}

/* Byte of k byte `byte` of row `row`: panels of rows of 16 (no swizzle), 32, 64 or 128 bytes, one
 * after the other along k; MN-major (128-byte swizzle): panels of 64 columns, 128 bytes for each k.
 */
static size_t place(size_t rows, size_t row, size_t byte, bool mn_major, int swizzle)
{
    if (mn_major) {
        size_t at = row / 64 * 64 * DEPTH_BYTES + byte / 2 * 128 + row % 64 * 2 + byte % 2;
        return at ^ (at >> 7 & 7) << 4;
    }
    size_t width = row_bytes(swizzle);
    size_t at = byte / width * rows * width + row * width + byte % width;
    return swizzle == SWIZZLE_NONE ? at : at ^ (at >> 7 & (width / 16 - 1)) << 4;
}

static struct layout layout_of(size_t rows, bool mn_major, int swizzle)
{
    struct layout l = {};
    size_t width = row_bytes(swizzle);
    l.swizzle = swizzle;
    if (mn_major) {
        l.leading = 64 * DEPTH_BYTES;
        l.stride = 1024;
    } else {
        l.leading = swizzle == SWIZZLE_NONE ? (uint32_t)(rows * 16) : 16;
        l.stride = (uint32_t)(8 * width);
    }
    for (size_t k = 0; k < STEPS; k++)
        l.step[k] =
            (uint32_t)(mn_major ? k * 16 * 128 : 32 * k / width * rows * width + 32 * k % width);
    return l;
}

/* Values of e4m3 and bf16 and their bytes. Integers up to 8: exact, and sums stay below 2^13. */
struct operand {
    std::vector<float> value; /* [rows, elements of k] */
    std::vector<uint8_t> bytes;
};
static struct operand operand_make(const struct conformance *c, const struct shape *s,
                                   const char *name, size_t rows, bool mn_major)
{
    struct operand o;
    const size_t element = s->fp8 ? 1 : 2, depth = DEPTH_BYTES / element;
    o.value.resize(rows * depth);
    o.bytes.resize(rows * DEPTH_BYTES);
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < depth; k++) {
            const uint64_t i = r * depth + k;
            float x = s->integers
                          ? (float)conformance_integer(c->seed, name, i, 7)
                          : (float)conformance_integer(c->seed, name, i, 1 << 20) * 0x1p-21F;
            uint8_t *at = &o.bytes[0];
            if (s->fp8) {
                __nv_fp8_e4m3 narrow(x);
                x = (float)narrow;
                at[place(rows, r, k, mn_major, s->swizzle)] = narrow.__x;
            } else {
                uint16_t bits = bf16_bits(x);
                x = bf16_value(bits);
                at[place(rows, r, 2 * k, mn_major, s->swizzle)] = (uint8_t)bits;
                at[place(rows, r, 2 * k + 1, mn_major, s->swizzle)] = (uint8_t)(bits >> 8);
            }
            o.value[i] = x;
        }
    return o;
}

template <int n, bool fp8, int a_mn_major, int b_mn_major>
static void launch(const uint8_t *a, const uint8_t *b, float *c, const struct shape *s)
{
    const size_t bytes = (ROWS + n) * DEPTH_BYTES + 8;
    must(ALLOW_SMEM((wgmma_kernel<n, fp8, a_mn_major, b_mn_major>), bytes), "ALLOW_SMEM");
    LAUNCH((wgmma_kernel<n, fp8, a_mn_major, b_mn_major>), 1, 128, bytes, nullptr, a, b, c,
           layout_of(ROWS, s->a_mn_major, s->swizzle), layout_of(n, s->b_mn_major, s->swizzle),
           s->accumulate);
}

/* Fractions are below 1/2, sums of the order of 1. FP8: the tensor cores of Hopper keep 13 fraction
 * bits of the largest term; 2^-14 of it is lost by each of 32 terms and the sum so far, four times.
 */
static void product(struct conformance *c, const struct shape *s,
                    void (*run)(const uint8_t *, const uint8_t *, float *, const struct shape *))
{
    char name[120];
    snprintf(name, sizeof name, "wgmma_%s n %d swizzle %d%s%s%s%s", s->fp8 ? "e4m3" : "bf16", s->n,
             s->swizzle == SWIZZLE_NONE ? 0 : (int)row_bytes(s->swizzle),
             s->a_mn_major ? ", A MN-major" : "", s->b_mn_major ? ", B MN-major" : "",
             s->accumulate ? ", accumulating" : "", s->integers ? "" : ", fractions");
    const size_t n = (size_t)s->n, depth = s->fp8 ? DEPTH_BYTES : DEPTH_BYTES / 2;
    struct operand a = operand_make(c, s, "a", ROWS, s->a_mn_major);
    struct operand b = operand_make(c, s, name, n, s->b_mn_major);
    std::vector<float> start(ROWS * n);
    std::vector<double> want(ROWS * n);
    for (size_t i = 0; i < ROWS * n; i++) {
        start[i] = (float)conformance_integer(c->seed, "c", i, 50) * (s->integers ? 1 : 0x1p-5F);
        double sum = s->accumulate ? (double)start[i] : 0;
        for (size_t k = 0; k < depth; k++)
            sum += (double)a.value[i / n * depth + k] * (double)b.value[i % n * depth + k];
        want[i] = sum;
    }
    device_vector<uint8_t> da(a.bytes), db(b.bytes);
    device_vector<float> dc(start);
    run(da.data, db.data, dc.data, s);
    if (s->integers)
        conformance_exact(c, name, dc.get(), std::vector<float>(want.begin(), want.end()));
    else
        conformance_close(c, name, dc.get(), want, s->fp8 ? 4e-3 : 2e-6);
}

template <int n> static void sizes(struct conformance *c)
{
    const struct shape bf16 = {n, false, false, false, SWIZZLE_128B, false, true},
                       fp8 = {n, true, false, false, SWIZZLE_128B, false, true};
    product(c, &bf16, launch<n, false, 0, 0>);
    product(c, &fp8, launch<n, true, 0, 0>);
}

static void layouts(struct conformance *c)
{
    for (int swizzle : {SWIZZLE_NONE, SWIZZLE_32B, SWIZZLE_64B})
        for (int fp8 = 0; fp8 < 2; fp8++) {
            const struct shape s = {64, fp8 != 0, false, false, swizzle, false, true};
            product(c, &s, fp8 ? launch<64, true, 0, 0> : launch<64, false, 0, 0>);
        }
    struct shape s = {128, false, true, false, SWIZZLE_128B, false, true};
    product(c, &s, launch<128, false, 1, 0>);
    s.b_mn_major = true;
    product(c, &s, launch<128, false, 1, 1>);
    s.a_mn_major = false;
    product(c, &s, launch<128, false, 0, 1>);
    s.n = 256;
    product(c, &s, launch<256, false, 0, 1>);
    for (int n = 0; n < 2; n++) { /* the start counts, and then does not */
        s = {64, n != 0, false, false, SWIZZLE_128B, true, true};
        product(c, &s, n ? launch<64, true, 0, 0> : launch<64, false, 0, 0>);
        s = {128, n != 0, false, false, SWIZZLE_128B, true, false};
        product(c, &s, n ? launch<128, true, 0, 0> : launch<128, false, 0, 0>);
    }
}

void conformance_wgmma(struct conformance *c)
{
    sizes<16>(c);
    sizes<32>(c);
    sizes<48>(c);
    sizes<64>(c);
    sizes<80>(c);
    sizes<96>(c);
    sizes<112>(c);
    sizes<128>(c);
    sizes<160>(c);
    sizes<192>(c);
    sizes<256>(c);
    layouts(c);
    device_vector<uint64_t> fields(std::vector<uint64_t>(32, 0));
    std::vector<uint64_t> want(32);
    for (uint64_t i = 0; i < 32; i++)
        want[i] = i * 64 << 16 | i << 32 | i % 4 << 62;
    LAUNCH(descriptor_kernel, 1, 32, 0, nullptr, fields.data);
    conformance_exact(c, "wgmma_descriptor", fields.get(), want);
}
