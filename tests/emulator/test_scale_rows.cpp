#include "check.h"
#include "samples/samples.h"

static bool test()
{
    const int rows = 5;
    std::vector<float> x(rows * 256), y(rows * 256);
    std::vector<double> want(rows * 256);
    for (int r = 0; r < rows; r++) {
        float largest = 0;
        for (int i = 256 * r; i < 256 * (r + 1); i++)
            largest = fmaxf(largest, fabsf(x[i] = pattern((size_t)i, 29) + 0.1f));
        for (int i = 256 * r; i < 256 * (r + 1); i++)
            want[i] = (double)x[i] / largest;
    }
    device_vector<float> dx(x), dy(y);
    launch_scale_rows(nullptr, dx.data, dy.data, rows);
    return same("scale_rows", dy.get().data(), want.data(), want.size(), 1e-6);
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
