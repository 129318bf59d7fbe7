#include "check.h"
#include "samples/samples.h"

static bool test()
{
    const int m = 130, n = 71, k = 128;
    std::vector<uint16_t> a(m * k), b(n * k);
    std::vector<float> c(m * n, -1.0f);
    std::vector<double> want(m * n, 0.0);
    for (size_t i = 0; i < a.size(); i++)
        a[i] = bf16_bits(pattern(i, 23));
    for (size_t i = 0; i < b.size(); i++)
        b[i] = bf16_bits(pattern(i + 5, 19));
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            for (int l = 0; l < k; l++)
                want[i * n + j] += (double)bf16_value(a[i * k + l]) * bf16_value(b[j * k + l]);
    device_vector<uint16_t> da(a), db(b);
    device_vector<float> dc(c);
    launch_tile_gemm(nullptr, da.data, db.data, dc.data, m, n, k);
    return same("tile_gemm", dc.get().data(), want.data(), want.size(), 1e-5);
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
