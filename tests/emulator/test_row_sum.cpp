#include "check.h"
#include "samples/samples.h"

static bool test()
{
    const int n = 5000, experts = 37;
    std::vector<float> x(n), sum(1, 0.0f);
    std::vector<int> expert(n), count(experts, 0), want(experts, 0);
    double total = 0;
    for (int i = 0; i < n; i++) {
        total += x[i] = pattern((size_t)i, 17);
        want[expert[i] = (int)(i * 2654435761u >> 20) % experts]++;
    }
    device_vector<float> dx(x), dsum(sum);
    device_vector<int> dexpert(expert), dcount(count);
    launch_row_sum(nullptr, dx.data, dsum.data, n, 4);
    launch_histogram(nullptr, dexpert.data, n, experts, dcount.data, 3);
    if (dcount.get() != want) {
        printf("histogram: WRONG\n");
        return false;
    }
    return same("row_sum", dsum.get().data(), &total, 1, 1e-5);
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
