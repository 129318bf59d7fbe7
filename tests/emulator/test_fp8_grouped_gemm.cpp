/* K-tiles >= 2 stages + 1: with as many tiles as stages a missing wait for "empty" cannot show. */
#include "check.h"
#include "samples/samples.h"

#include <cuda_fp8.h>

static float e4m3_value(uint8_t bits)
{
    __nv_fp8_e4m3 x;
    x.__x = bits;
    return (float)x;
}

static bool test()
{
    const int n = 128, k = 9 * 128, groups = 4, offset[groups + 1] = {0, 100, 100, 130, 256},
              m = 256;
    const float scale = 0.5f;
    int tiles = 1; /* one more than needed: the last block finds nothing to do */
    for (int g = 0; g < groups; g++)
        tiles += (offset[g + 1] - offset[g] + 127) / 128;
    std::vector<uint8_t> a(m * k), b(groups * n * k);
    for (size_t i = 0; i < a.size(); i++)
        a[i] = __nv_fp8_e4m3(pattern(i, 31)).__x;
    for (size_t i = 0; i < b.size(); i++)
        b[i] = __nv_fp8_e4m3(pattern(i + 7, 27)).__x;
    std::vector<uint16_t> c(m * n, bf16_bits(-777.0f));
    device_vector<uint8_t> da(a), db(b);
    device_vector<uint16_t> dc(c);
    device_vector<int> doffset(std::vector<int>(offset, offset + groups + 1));
    CUtensorMap map_a = tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, da.data, k, m, k, 128, 128,
                                   CU_TENSOR_MAP_SWIZZLE_128B);
    CUtensorMap map_b = tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, db.data, k, groups * n, k, 128,
                                   128, CU_TENSOR_MAP_SWIZZLE_128B);
    must(launch_fp8_grouped_gemm(nullptr, &map_a, &map_b, dc.data, doffset.data, groups, tiles, n,
                                 k, scale),
         "launch_fp8_grouped_gemm");
    c = dc.get();
    float table[256];
    for (int i = 0; i < 256; i++)
        table[i] = e4m3_value((uint8_t)i);
    std::vector<float> got(m * n), x(k);
    std::vector<double> want(m * n);
    for (int g = 0; g < groups; g++)
        for (int i = offset[g]; i < offset[g + 1]; i++) {
            for (int l = 0; l < k; l++)
                x[l] = table[a[i * k + l]];
            for (int j = 0; j < n; j++) {
                double sum = 0;
                for (int l = 0; l < k; l++)
                    sum += (double)x[l] * table[b[(size_t)(g * n + j) * k + l]];
                want[i * n + j] = sum * scale;
                got[i * n + j] = bf16_value(c[i * n + j]);
            }
        }
    return same("fp8_grouped_gemm", got.data(), want.data(), want.size(), 0.006);
}

int main(int argc, char **argv)
{
    if (getenv("EMU_HOPPER_FP8"))
        emu_set_hopper_fp8(true);
    return for_seeds(argc, argv, test);
}
