#include "check.h"
#include "samples/samples.h"

static bool test()
{
    const int m = 200, n = 68; /* neither a multiple of the tile: TMA cuts the edges */
    std::vector<float> x(m * n), y(n * m, -1.0f);
    std::vector<double> want(n * m);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            want[j * m + i] = x[i * n + j] = (float)(i * n + j);
    device_vector<float> dx(x), dy(y);
    CUtensorMap map_x = tensor_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, dx.data, n, m, n * 4, 32, 32,
                                   CU_TENSOR_MAP_SWIZZLE_NONE);
    CUtensorMap map_y = tensor_map(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, dy.data, m, n, m * 4, 32, 32,
                                   CU_TENSOR_MAP_SWIZZLE_NONE);
    launch_tma_transpose(nullptr, &map_x, &map_y, m, n, 4);
    return same("tma_transpose", dy.get().data(), want.data(), want.size(), 0);
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
