/* Newton-Schulz orthogonalisation against the CPU device.
 *
 * Tolerance: a product of k terms is off by U (4 + 2 sqrt(k)) of its typical element (see
 * test_ops_gemm), three of them a step. A step passes earlier errors on times at most 3.9, the
 * largest slope of a s + b s^3 + c s^5 on [0, 1.2]: after five steps 310 times the error of one. */
#include "ops_case.h"

static double error_of(int64_t rows, int64_t cols)
{
    return 310 * U * 3 * (4 + 2 * sqrt((double)(rows > cols ? rows : cols)));
}

static bool orthogonalize(struct device *device, int shift, int64_t rows, int64_t cols,
                          double scale)
{
    ops_case c(device, DTYPE_F32, shift, "muon %d x %d", (int)rows, (int)cols);
    operand &x = c.random("x", DTYPE_F32, rows, cols, scale);
    std::vector<float> work((size_t)(rows * cols + 2 * (rows < cols ? rows * rows : cols * cols)));
    scratch device_work(cuda_muon_orthogonalize_scratch(rows, cols));
    c.upload();
    c.ops->muon_orthogonalize(device, x.cpu, work.data());
    cuda_muon_orthogonalize(nullptr, x.cuda, device_work.data);
    c.download();
    c.close(x, error_of(rows, cols));
    return c.finish();
}

static bool test()
{
    struct device *device = cpu_device();
    const int64_t shapes[][2] = {{1, 1}, {3, 7}, {40, 24}, {64, 136}, {130, 66}};
    bool right = true;
    for (const int64_t(&s)[2] : shapes) {
        for (int shift : {SHIFT_NONE, SHIFT_ALL}) {
            if (!SLOW || s[0] < 64) {
                right = orthogonalize(device, shift, s[0], s[1], 1e-3) && right;
            }
        }
    }
    right = orthogonalize(device, SHIFT_NONE, 0, 4, 1) && right;
    return orthogonalize(device, SHIFT_NONE, 5, 4, 0) && right; /* all zeros stay so */
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
