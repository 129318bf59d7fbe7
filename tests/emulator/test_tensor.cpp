#include "check_tensor.h"

#include "check.h"

enum { DEPTH = 64, NONE, SW128, SW64, SW32 };

static std::vector<uint16_t> random_bf16(size_t count, size_t from)
{
    std::vector<uint16_t> x(count);
    for (size_t i = 0; i < count; i++)
        x[i] = bf16_bits(pattern(i + from, 37));
    return x;
}

static std::vector<double> product(const std::vector<uint16_t> &a, const std::vector<uint16_t> &b,
                                   int m, int n, int k)
{
    std::vector<double> c((size_t)(m * n), 0.0);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
            for (int l = 0; l < k; l++)
                c[(size_t)(i * n + j)] +=
                    (double)bf16_value(a[(size_t)(i * k + l)]) * bf16_value(b[(size_t)(j * k + l)]);
    return c;
}

static bool test_mma()
{
    std::vector<uint16_t> a = random_bf16(16 * 32, 1), b = random_bf16(8 * 32, 2);
    std::vector<float> c(16 * 8, -1.0f);
    device_vector<uint16_t> da(a), db(b);
    device_vector<float> dc(c);
    launch_mma(da.data, db.data, dc.data);
    return same("mma", dc.get().data(), product(a, b, 16, 8, 32).data(), c.size(), 1e-6);
}

static bool test_transpose()
{
    std::vector<uint16_t> x(256), y(256);
    for (size_t i = 0; i < 256; i++)
        x[i] = (uint16_t)i;
    device_vector<uint16_t> dx(x), dy(y);
    launch_matrix_transpose(dx.data, dy.data);
    y = dy.get();
    for (size_t i = 0; i < 256; i++)
        if (y[i] != x[i % 16 * 16 + i / 16]) {
            printf("matrix transpose: WRONG at %zu\n", i);
            return false;
        }
    return true;
}

/* Byte of element (mn, k) of an operand of `rows` rows, by the manual's canonical layouts: swizzled
 * rows of 128, 64 or 32 bytes in groups of 8, one panel after another along k (K-major), or of 64
 * columns (MN). */
static size_t place(int rows, int mn, int k, bool mn_major, int swizzle)
{
    if (mn_major) {
        size_t at = (size_t)(mn / 64 * DEPTH * 128 + k * 128 + mn % 64 * 2);
        return at ^ (at >> 7 & 7) << 4;
    }
    if (swizzle == NONE) /* 8 x 16-byte core matrices; along k a whole column of them further */
        return (size_t)(k / 8 * rows * 16 + mn * 16 + k % 8 * 2);
    int width = swizzle == SW128 ? 128 : swizzle == SW64 ? 64 : 32;
    size_t at = (size_t)(k * 2 / width * rows * width + mn * width + k * 2 % width);
    return at ^ (at >> 7 & (size_t)(width / 16 - 1)) << 4;
}

static struct operand_layout layout_of(int rows, bool mn_major, int swizzle)
{
    uint32_t panel = (uint32_t)rows;
    if (mn_major)
        return {DEPTH * 128, 1024, 2048, 1};
    switch (swizzle) {
    case SW128:
        return {16, 1024, 32, 1};
    case SW64:
        return {16, 512, 0, 2}; /* k_step 0: two k in a panel; only the first panel is tested */
    case SW32:
        return {16, 256, panel * 32, 3};
    default:
        return {panel * 16, 128, panel * 32, 0};
    }
}

static std::vector<uint8_t> laid_out(const std::vector<uint16_t> &x, int rows, bool mn_major,
                                     int swizzle)
{
    std::vector<uint8_t> bytes(x.size() * 2);
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < DEPTH; k++) {
            uint16_t value = x[(size_t)(r * DEPTH + k)];
            size_t at = place(rows, r, k, mn_major, swizzle);
            bytes[at] = (uint8_t)value;
            bytes[at + 1] = (uint8_t)(value >> 8);
        }
    return bytes;
}

static bool test_wgmma(int n, bool a_mn_major, bool b_mn_major, int swizzle)
{
    std::vector<uint16_t> a = random_bf16(64 * DEPTH, 3), b = random_bf16((size_t)(n * DEPTH), 4);
    if (swizzle == SW64) /* k repeats every 16: the four products of the first 16 are equal */
        for (std::vector<uint16_t> *x : {&a, &b})
            for (size_t i = 0; i < x->size(); i++)
                (*x)[i] = (*x)[i / DEPTH * DEPTH + i % 16];
    std::vector<float> c((size_t)(64 * n), -1.0f);
    device_vector<uint8_t> da(laid_out(a, 64, a_mn_major, swizzle)),
        db(laid_out(b, n, b_mn_major, swizzle));
    device_vector<float> dc(c);
    struct wgmma_case w = {n,
                           a_mn_major,
                           b_mn_major,
                           da.data,
                           db.data,
                           dc.data,
                           layout_of(64, a_mn_major, swizzle),
                           layout_of(n, b_mn_major, swizzle)};
    launch_wgmma(&w);
    char name[64];
    snprintf(name, sizeof name, "wgmma n %d, mn-major %d %d, swizzle %d", n, a_mn_major, b_mn_major,
             swizzle);
    return same(name, dc.get().data(), product(a, b, 64, n, DEPTH).data(), c.size(), 1e-5);
}

static bool test()
{
    bool right = test_mma();
    right = test_transpose() && right;
    right = test_wgmma(128, false, false, SW128) && right;
    for (int swizzle : {NONE, SW128, SW64, SW32})
        right = test_wgmma(64, false, false, swizzle) && right;
    right = test_wgmma(64, true, false, SW128) && right;
    right = test_wgmma(64, false, true, SW128) && right;
    return test_wgmma(64, true, true, SW128) && right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
