#include "check.h"
#include "samples/samples.h"

static bool test()
{
    const int pairs = 3, rows = 9; /* more than twice round the ring */
    std::vector<float> x(pairs * rows * 64), sum(pairs * 2 * 32, -1.0f);
    std::vector<double> want(sum.size());
    for (size_t i = 0; i < x.size(); i++)
        x[i] = pattern(i, 29);
    for (int block = 0; block < 2 * pairs; block++)
        for (int lane = 0; lane < 32; lane++) {
            const float *from = &x[(size_t)(block / 2 * rows) * 64];
            double total = 0;
            for (int r = 0; r < rows; r++)
                total += (double)from[64 * r + lane] + 2 * (double)from[64 * r + 32 + lane];
            want[(size_t)(32 * block + lane)] = total * (block % 2 + 1);
        }
    device_vector<float> dx(x), dsum(sum);
    CUtensorMap map =
        tensor_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, dx.data, 64, (uint64_t)(pairs * rows), 64 * 4,
                   32, 1, CU_TENSOR_MAP_SWIZZLE_NONE);
    launch_pair_sum(nullptr, &map, dsum.data, pairs, rows);
    return same("pair_sum", dsum.get().data(), want.data(), want.size(), 0);
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
