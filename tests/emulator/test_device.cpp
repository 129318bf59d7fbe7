/* The CUDA device itself: its memory, uploads that outrun the copies, graphs, the choice of a GPU.
 */
#include "check.h"

#include <string.h>

extern "C" {
#include "kernels/device.h"
}

static struct device *device;
static const struct ops *ops;

static bool expect(bool right, const char *what)
{
    if (!right)
        printf("%s: WRONG (seed %llu)\n", what, (unsigned long long)side_seed());
    return right;
}

/* The host's buffer is overwritten at once; more parts than the ring has, and more bytes. */
static bool uploads()
{
    enum { PARTS = 400, BYTES = 1000 };
    const size_t large = (40u << 20) + 3;
    unsigned char *many = (unsigned char *)ops->memory_alloc(device, PARTS * BYTES + 1);
    unsigned char *one = (unsigned char *)ops->memory_alloc(device, large);
    std::vector<unsigned char> from(large), got(large);
    for (int part = 0; part < PARTS; part++) {
        memset(from.data(), part % 251, BYTES);
        ops->upload(device, many + part * BYTES, from.data(), BYTES);
    }
    ops->download(device, got.data(), many, PARTS * BYTES + 1);
    bool right = got[PARTS * BYTES] == 0; /* as allocated */
    for (int i = 0; i < PARTS * BYTES; i++)
        right = right && got[(size_t)i] == i / BYTES % 251;
    for (size_t i = 0; i < large; i++)
        from[i] = (unsigned char)(i * 7 % 253);
    const std::vector<unsigned char> want = from;
    ops->upload(device, one, from.data(), large);
    memset(from.data(), 255, large);
    ops->upload(device, one, from.data(), 0);
    ops->download(device, got.data(), one, large);
    right = expect(right, "many uploads") & expect(got == want, "a large upload");
    ops->copy(device, one, many, PARTS * BYTES);
    ops->zero(device, many, PARTS * BYTES);
    ops->download(device, got.data(), one, 2 * BYTES);
    right = expect(got[BYTES] == 1 && got[2 * BYTES - 1] == 1, "copy, then zero") && right;
    ops->memory_free(device, many, PARTS * BYTES + 1);
    ops->memory_free(device, one, large);
    ops->memory_free(device, nullptr, 0);
    return right;
}

static bool out_of_memory()
{
    const size_t most = device_info(device)->memory_bytes;
    void *none = ops->memory_alloc(device, most + 1);
    void *some = ops->memory_alloc(device, 256);
    const bool right = expect(none == nullptr && some != nullptr, "more memory than there is");
    ops->memory_free(device, some, 256);
    return right;
}

/* *sum += 4 * 2^2 at each call, recorded or not; between the calls scratch grows and moves. */
static bool graphs()
{
    enum { COUNT = 4, RUNS = 8, GROWS_BEFORE = 5, EXPERTS = 8192, SLOTS = 32768 };
    const size_t bytes = (4 * EXPERTS + 3 * SLOTS) * sizeof(int32_t);
    float *x = (float *)ops->memory_alloc(device, COUNT * sizeof *x);
    int32_t *large = (int32_t *)ops->memory_alloc(device, bytes);
    double *sum = (double *)ops->memory_alloc(device, 2 * sizeof *sum), got[2] = {0, 0};
    int called = 0;
    for (int run = 0; run < RUNS; run++) {
        for (uint64_t key = 1; key <= 2; key++) {
            if (ops->graph_begin(device, key)) {
                called += key == 1;
                ops->fill(device, x, COUNT, (float)key * 2);
                ops->sum_squares(device, sum + key - 1, x, COUNT);
                ops->graph_end(device);
            }
        }
        if (run == GROWS_BEFORE) /* counts of 128 chunks: 4 MiB of scratch */
            ops->expert_sort(device, (int64_t *)large, large + 4 * EXPERTS,
                             large + 4 * EXPERTS + SLOTS, large + 4 * EXPERTS + 2 * SLOTS, SLOTS, 1,
                             EXPERTS);
    }
    ops->download(device, got, sum, sizeof got);
    const bool before = ops->graph_begin(device, 1);
    ops->graph_forget(device);
    const bool after = ops->graph_begin(device, 1);
    ops->graph_end(device);
    ops->memory_free(device, x, COUNT * sizeof *x);
    ops->memory_free(device, large, bytes);
    ops->memory_free(device, sum, 2 * sizeof *sum);
    /* Called once to settle and once to record, then again when scratch has moved. */
    return expect(got[0] == RUNS * 16 && got[1] == RUNS * 64, "sums by graphs") &
           expect(!before && after, "a graph is forgotten") &
           expect(called == 4, "how often a graph's ops are called");
}

static bool choice()
{
    struct device *third = nullptr;
    const struct device_options options = {"cuda", 1, nullptr, true, 10, 16};
    bool right = device_open(&third, &options) == STATUS_OK;
    right = expect(right && strcmp(device_info(third)->bus, "0000:03:00.0") == 0,
                   "rank 10 of a node of 8 GPUs");
    device_close(third);
    must(cudaSetDevice(0), "cudaSetDevice");
    return right;
}

static bool test()
{
    const struct device_options options = {"cuda", 1, nullptr, 0, 1};
    if (device_open(&device, &options) != STATUS_OK) {
        printf("WRONG: %s\n", status_message());
        return false;
    }
    ops = device_ops(device);
    bool right = expect(device_stream(device) != nullptr, "a stream");
    right = uploads() & out_of_memory() & graphs() & right;
    device_close(device);
    return choice() && right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
