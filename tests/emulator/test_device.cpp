/* The CUDA device itself: its memory, uploads that outrun the copies, graphs, FP8 ops by its table,
 * the choice of a GPU. */
#include "check.h"

#include <string.h>

extern "C" {
#include "kernels/device.h"
#include "kernels/ops_fp8.h"
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

/* Downloads beside other ops: of what was called before them, whatever is called after the wait. */
static bool downloads_beside()
{
    enum { COUNT = 1 << 18, PIECES = 8, PIECE = COUNT / PIECES };
    const size_t bytes = COUNT * sizeof(float);
    float *x = (float *)ops->memory_alloc(device, bytes),
          *y = (float *)ops->memory_alloc(device, bytes);
    float *host = (float *)ops->host_alloc(device, bytes);
    bool right = expect(host != nullptr, "pinned memory");
    ops->download_wait(device); /* none was begun */
    for (int save = 1; save <= 3; save++) {
        ops->fill(device, x, COUNT, (float)save);
        for (int i = 0; i < PIECES; i++)
            ops->download_begin(device, host + i * PIECE, x + i * PIECE, PIECE * sizeof(float));
        ops->download_begin(device, host, x, 0);
        ops->copy(device, y, x, bytes);
        ops->download_wait(device);
        ops->fill(device, x, COUNT, -1); /* what the host has stays */
        for (int i = 0; i < COUNT; i++)
            right = right && host[i] == (float)save;
        right = expect(right, "downloads beside ops");
    }
    ops->host_free(device, host, bytes);
    ops->host_free(device, nullptr, 0);
    ops->memory_free(device, x, bytes);
    ops->memory_free(device, y, bytes);
    return right;
}

/* What the host has passes through windows: parts in order, both ways beside the ops, under every
 * order that events allow; what is settled is there for the host, and for what passes next. */
static bool windows()
{
    enum { PARTS = 7, COUNT = 1 << 12, PASSES = 3 };
    const size_t bytes = COUNT * sizeof(float);
    float *host = (float *)ops->host_alloc(device, PARTS * bytes);
    float *window[OPS_WINDOWS], *sum = (float *)ops->memory_alloc(device, bytes);
    bool right = true;
    for (int i = 0; i < PARTS * COUNT; i++)
        host[i] = (float)(i % 1000);
    for (int w = 0; w < OPS_WINDOWS; w++)
        window[w] = (float *)ops->memory_alloc(device, bytes);
    ops->fill(device, sum, COUNT, 1);
    const struct tensor one = tensor_1d(sum, DTYPE_F32, COUNT);
    for (int pass = 1; pass <= PASSES; pass++) {
        for (int p = 0; p < PARTS + OPS_WINDOWS - 1; p++) {
            const int done = p - (OPS_WINDOWS - 1), w = done % OPS_WINDOWS;
            if (p < PARTS)
                ops->fetch(device, p % OPS_WINDOWS, window[p % OPS_WINDOWS], host + p * COUNT,
                           bytes);
            if (done < 0)
                continue;
            ops->fetched(device, w);
            ops->add(device, tensor_1d(window[w], DTYPE_F32, COUNT), one);
            ops->put(device, w, host + done * COUNT, window[w], bytes);
            ops->fill(device, sum, COUNT, 1); /* ops go on */
        }
        ops->window_settle(device);
        if (pass == 2) /* and goes on with what is settled, without the host */
            continue;
        ops->synchronize(device);
        for (int i = 0; i < PARTS * COUNT; i++)
            right = right && host[i] == (float)(i % 1000 + pass);
        right = expect(right, "windows");
    }
    for (int w = 0; w < OPS_WINDOWS; w++)
        ops->memory_free(device, window[w], bytes);
    ops->memory_free(device, sum, bytes);
    ops->host_free(device, host, PARTS * bytes);
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

/* y += x w^T and dw += x^T x in FP8, from quantisation on, recorded: whole numbers, so exact. */
static bool fp8_products()
{
    enum { RUNS = 4, R = 20, C = 32, O = 16, T = 128 };
    struct memory {
        alignas(16) uint16_t x[R * C], w[O * C], y[R * O];
        alignas(16) float dw[C * C];
        alignas(16) uint8_t q[R * C], t[C * T], w_code[O * C];
        alignas(16) float q_scale[R], t_scale[C], w_scale[4];
        alignas(16) struct fp8_counters counters;
    };
    static struct memory host; /* zeros */
    for (int i = 0; i < R * C; i++)
        host.x[i] = bf16_bits((float)(i * 5 % 7 - 3));
    for (int i = 0; i < O * C; i++)
        host.w[i] = bf16_bits((float)(i % 3 - 1));
    struct memory *m = (struct memory *)ops->memory_alloc(device, sizeof *m);
    ops->upload(device, m, &host, sizeof host);
    const struct fp8_how how = {true, FP8_ACCUMULATE_DEVICE, &m->counters};
    const struct fp8_rows q = {m->q, m->q_scale, R, C, R}, t = {m->t, m->t_scale, C, T, C};
    const struct fp8_weights w = {m->w_code, m->w_scale, 1, O, C}, no_t = {};
    for (int run = 0; run < RUNS; run++) {
        if (ops->graph_begin(device, 3)) {
            ops->fp8->quantize_weights(device, w, no_t, m->w, O * C, &how);
            ops->fp8->quantize(device, q, t, tensor_2d(m->x, DTYPE_BF16, R, C), nullptr, R, nullptr,
                               1, &how);
            ops->fp8->linear(device, tensor_2d(m->y, DTYPE_BF16, R, O), q, w, nullptr, true, &how);
            ops->fp8->linear_weight(device, m->dw, C * C, t, t, nullptr, 1, R, &how);
            ops->graph_end(device);
        }
    }
    static struct memory got;
    ops->download(device, &got, m, sizeof got);
    ops->memory_free(device, m, sizeof *m);
    bool right = got.counters.values == RUNS * (R * C + O * C) && got.counters.underflows == 0;
    for (int r = 0; r < R; r++)
        for (int o = 0; o < O; o++) {
            float sum = 0;
            for (int c = 0; c < C; c++)
                sum += bf16_value(host.x[r * C + c]) * bf16_value(host.w[o * C + c]);
            right = right && bf16_value(got.y[r * O + o]) == RUNS * sum;
        }
    for (int i = 0; i < C * C; i++) {
        float sum = 0;
        for (int r = 0; r < R; r++)
            sum += bf16_value(host.x[r * C + i / C]) * bf16_value(host.x[r * C + i % C]);
        right = right && got.dw[i] == RUNS * sum;
    }
    return expect(right, "products in FP8 by graphs");
}

static bool choice()
{
    struct device *third = nullptr;
    const struct device_options options = {"cuda", 1, nullptr, true, false, 10, 16};
    bool right = device_open(&third, &options) == STATUS_OK;
    right = expect(right && strcmp(device_info(third)->bus, "0000:03:00.0") == 0,
                   "rank 10 of a node of 8 GPUs");
    device_close(third);
    must(cudaSetDevice(0), "cudaSetDevice");
    return right;
}

static bool test()
{
    const struct device_options options = {"cuda", 1, nullptr, false, false, 1, 0};
    if (device_open(&device, &options) != STATUS_OK) {
        printf("WRONG: %s\n", status_message());
        return false;
    }
    ops = device_ops(device);
    bool right = expect(device_stream(device) != nullptr, "a stream");
    right = uploads() & downloads_beside() & windows() & out_of_memory() & graphs() &
            fp8_products() & right;
    device_close(device);
    return choice() && right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
