/* ldmatrix, stmatrix, mma.sync: registers and shared memory as they are, lane by lane. */
#include "conformance.h"

#include "kernels/cuda/ptx.cuh"

/* registers[lane][4] of the four matrices that stand in x[32][8], one below the other. */
template <bool transposed> __global__ void ldmatrix_kernel(const uint16_t *x, uint32_t *registers)
{
    SMEM(uint16_t, tile, [32][8]);
    uint32_t r[4];
    for (int i = 0; i < 8; i++)
        tile[threadIdx.x][i] = x[8 * threadIdx.x + i];
    __syncwarp();
    if (transposed)
        ldmatrix_x4_trans(r, tile[threadIdx.x]);
    else
        ldmatrix_x4(r, tile[threadIdx.x]);
    for (int i = 0; i < 4; i++)
        registers[4 * threadIdx.x + i] = r[i];
}

/* The way back: x2 fills rows 0..15 of y[48][8], x4 the rest. */
__global__ void stmatrix_kernel(const uint32_t *registers, uint16_t *y)
{
    SMEM(uint16_t, tile, [48][8]);
    const uint32_t *own = registers + 4 * threadIdx.x;
    const uint32_t two[2] = {own[0], own[1]}, four[4] = {own[0], own[1], own[2], own[3]};
    stmatrix_x2(tile[threadIdx.x % 16], two);
    stmatrix_x4(tile[16 + threadIdx.x], four);
    __syncwarp();
    for (int i = threadIdx.x; i < 48 * 8; i += 32)
        y[i] = tile[i / 8][i % 8];
}

/* One mma on fragments as they come: a[lane][4], b[lane][2], d[lane][4] in and out. */
__global__ void mma_kernel(const uint32_t *a, const uint32_t *b, float *d)
{
    uint32_t part_a[4], part_b[2];
    float sum[4];
    for (int i = 0; i < 4; i++) {
        part_a[i] = a[4 * threadIdx.x + i];
        sum[i] = d[4 * threadIdx.x + i];
    }
    for (int i = 0; i < 2; i++)
        part_b[i] = b[2 * threadIdx.x + i];
    mma_m16n8k16_bf16(sum, part_a, part_b);
    for (int i = 0; i < 4; i++)
        d[4 * threadIdx.x + i] = sum[i];
}

static void ldmatrix(struct conformance *c)
{
    std::vector<uint16_t> x(256);
    for (size_t i = 0; i < 256; i++)
        x[i] = (uint16_t)conformance_bits(c->seed, "ldmatrix", i);
    std::vector<uint32_t> plain(128), transposed(128);
    for (size_t lane = 0; lane < 32; lane++)
        for (size_t i = 0; i < 4; i++) {
            /* Elements 2 (lane % 4) and the next of row lane / 4, or of that column. */
            const uint16_t *matrix = &x[64 * i];
            size_t row = lane / 4, at = 2 * (lane % 4);
            plain[4 * lane + i] = (uint32_t)matrix[8 * row + at + 1] << 16 | matrix[8 * row + at];
            transposed[4 * lane + i] =
                (uint32_t)matrix[8 * (at + 1) + row] << 16 | matrix[8 * at + row];
        }
    device_vector<uint16_t> dx(x);
    device_vector<uint32_t> r(std::vector<uint32_t>(128, 0));
    LAUNCH(ldmatrix_kernel<false>, 1, 32, 0, nullptr, dx.data, r.data);
    conformance_exact(c, "ldmatrix_x4", r.get(), plain);
#ifdef MUTANT_NOT_TRANSPOSED
    LAUNCH(ldmatrix_kernel<false>, 1, 32, 0, nullptr, dx.data, r.data);
#else
    LAUNCH(ldmatrix_kernel<true>, 1, 32, 0, nullptr, dx.data, r.data);
#endif
    conformance_exact(c, "ldmatrix_x4_trans", r.get(), transposed);

    std::vector<uint16_t> want(x.begin(), x.begin() + 128);
    want.insert(want.end(), x.begin(), x.end());
    device_vector<uint32_t> registers(plain);
    device_vector<uint16_t> dy(std::vector<uint16_t>(want.size(), 0));
    LAUNCH(stmatrix_kernel, 1, 32, 0, nullptr, registers.data, dy.data);
    conformance_exact(c, "stmatrix_x2, x4", dy.get(), want);
}

/* PTX manual, fragments of mma.m16n8k16: a0,a1 row g, a2,a3 row g + 8, a4..a7 the same at k + 8;
 * b0,b1 k = 2 t, b2,b3 k + 8, column g; c0,c1 row g, c2,c3 row g + 8, columns 2 t and the next;
 * g = lane / 4, t = lane % 4. */
static void mma(struct conformance *c, bool integers)
{
    std::vector<float> a(16 * 16), b(16 * 8), d(16 * 8);
    const char *name = integers ? "mma_m16n8k16_bf16" : "mma_m16n8k16_bf16 of fractions";
    auto fill = [&](std::vector<float> &x, uint64_t from) {
        for (size_t i = 0; i < x.size(); i++)
            x[i] = bf16_value(bf16_bits(
                integers
                    ? (float)conformance_integer(c->seed, name, from + i, 15)
                    : (float)conformance_integer(c->seed, name, from + i, 1 << 20) * 0x1p-19F));
    };
    fill(a, 0);
    fill(b, 1000);
    fill(d, 2000);
    std::vector<uint32_t> part_a(128), part_b(64);
    std::vector<float> part_d(128);
    std::vector<double> want(128);
    auto pair = [](float low, float high) {
        return (uint32_t)bf16_bits(high) << 16 | bf16_bits(low);
    };
    for (size_t lane = 0; lane < 32; lane++) {
        size_t g = lane / 4, t = lane % 4;
        for (size_t i = 0; i < 4; i++) {
            size_t row = g + 8 * (i % 2), k = 2 * t + 8 * (i / 2);
            part_a[4 * lane + i] = pair(a[16 * row + k], a[16 * row + k + 1]);
            size_t out_row = g + 8 * (i / 2), column = 2 * t + i % 2;
            double sum = part_d[4 * lane + i] = d[8 * out_row + column];
            for (size_t l = 0; l < 16; l++)
                sum += (double)a[16 * out_row + l] * (double)b[8 * l + column];
            want[4 * lane + i] = sum;
        }
        for (size_t i = 0; i < 2; i++)
            part_b[2 * lane + i] = pair(b[8 * (2 * t + 8 * i) + g], b[8 * (2 * t + 8 * i + 1) + g]);
    }
    device_vector<uint32_t> da(part_a), db(part_b);
    device_vector<float> dd(part_d);
    LAUNCH(mma_kernel, 1, 32, 0, nullptr, da.data, db.data, dd.data);
    if (integers)
        conformance_exact(c, name, dd.get(), std::vector<float>(want.begin(), want.end()));
    else
        conformance_close(c, name, dd.get(), want, 1e-5);
}

void conformance_matrix(struct conformance *c)
{
    ldmatrix(c);
    mma(c, true);
    mma(c, false);
}
