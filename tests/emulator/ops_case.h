/* ops_case: the frame of the tests that run a launcher of kernels/cuda beside the CPU device's op,
 * on the same inputs: on the emulator, and by tests/gpu/run on a device.
 *
 * A case makes operands, calls upload(), both ops, download(), says how outputs must agree (exact
 * or close), and ends with finish(), which looks at the guard bytes round every operand and at what
 * must not have changed: whatever was not compared has the CPU's bits. `shifted`: every operand
 * starts one element after a 16-byte boundary, which takes the kernels' scalar paths.
 */
#ifndef EMULATOR_OPS_CASE_H
#define EMULATOR_OPS_CASE_H

#include <deque>
#include <functional>
#include <stdarg.h>
#include <string.h>
#include <string>

#include "check.h"
#include "kernels/cuda/cuda_ops.h"

extern "C" {
#include "kernels/base/rng.h"
#include "kernels/device.h"
}

enum { SHIFT_NONE = -1, SHIFT_ALL = -2 }; /* or the number of the only one, in order of creation */

static const bool SLOW = side_slow(); /* fewer passes */
static constexpr double U = 0x1p-24;        /* half a unit in the last place of an f32 */
static constexpr double EXP_ERROR = 3.5e-7; /* of the CPU's exp and expf together */

struct operand {
    const char *name;
    struct tensor cpu, cuda; /* views */
    std::vector<unsigned char> host, got;
    unsigned char *device; /* owned */
    bool compared;

    bool there() const
    {
        return cpu.data != nullptr;
    }
    template <class T> T *on_cpu() const
    {
        return (T *)cpu.data;
    }
    template <class T> T *on_cuda() const
    {
        return (T *)cuda.data;
    }
};

static inline double value_at(const struct tensor &t, const void *data, int64_t i)
{
    switch (t.dtype) {
    case DTYPE_F32:
        return (double)((const float *)data)[i];
    case DTYPE_BF16:
        return (double)bf16_to_float(((const uint16_t *)data)[i]);
    case DTYPE_I32:
        return (double)((const int32_t *)data)[i];
    case DTYPE_I64:
        return (double)((const int64_t *)data)[i];
    case DTYPE_U8:
        return (double)((const uint8_t *)data)[i];
    default:
        return ((const double *)data)[i];
    }
}

/* What every download of a pass brought: the same bits whatever the order of threads and blocks. */
struct pass {
    std::vector<uint64_t> hashes;
    std::vector<std::string> names;
};
static struct pass *current_pass;

struct ops_case {
    static constexpr size_t GUARD = 128;
    static constexpr unsigned char GUARD_BYTE = 0xA5, POISON_BYTE = 0xFF; /* poison is a NaN */

    struct device *device; /* borrowed */
    const struct ops *ops;
    enum dtype dtype; /* the activation dtype */
    int shift;        /* see above */
    bool right;
    char what[200];
    std::deque<operand> operands;

    ops_case(struct device *cpu, enum dtype act, int shifted, const char *format, ...)
        __attribute__((format(printf, 5, 6)))
        : device(cpu), ops(device_ops(cpu)), dtype(act), shift(shifted), right(true)
    {
        va_list args;
        va_start(args, format);
        vsnprintf(what, sizeof what, format, args);
        va_end(args);
    }
    ops_case(const ops_case &) = delete;
    ~ops_case()
    {
        for (operand &o : operands) {
            cudaFree(o.device);
        }
    }

    /* ---- operands ---- */

    bool moves(int number) const
    {
        return shift == SHIFT_ALL || shift == number;
    }
    operand &poison(const char *name, enum dtype type, int64_t rows, int64_t cols)
    {
        operands.emplace_back();
        operand &o = operands.back();
        o.name = name;
        o.cpu = tensor_2d(nullptr, type, rows, cols);
        const size_t bytes = tensor_bytes(&o.cpu), shifted = dtype_bytes(type);
        const size_t skip = GUARD + (moves((int)operands.size() - 1) ? shifted : 0);
        o.host.assign(bytes + 2 * GUARD + 16, GUARD_BYTE);
        o.got = o.host;
        must(cudaMalloc((void **)&o.device, o.host.size()), "cudaMalloc");
        memset(o.host.data() + skip, POISON_BYTE, bytes);
        o.cuda = o.cpu;
        o.cpu.data = o.host.data() + skip;
        o.cuda.data = o.device + skip;
        o.compared = false;
        return o;
    }
    operand &fill(const char *name, enum dtype type, int64_t rows, int64_t cols,
                  const std::function<double(int64_t)> &value)
    {
        operand &o = poison(name, type, rows, cols);
        for (int64_t i = 0; i < rows * cols; i++) {
            if (type == DTYPE_F32) {
                o.on_cpu<float>()[i] = (float)value(i);
            } else if (type == DTYPE_BF16) {
                o.on_cpu<uint16_t>()[i] = bf16_from_float((float)value(i));
            } else if (type == DTYPE_F64) {
                o.on_cpu<double>()[i] = value(i);
            } else {
                o.on_cpu<int32_t>()[i] = (int32_t)value(i);
            }
        }
        return o;
    }
    operand &random(const char *name, enum dtype type, int64_t rows, int64_t cols, double scale = 1)
    {
        const uint64_t key = rng_key(7, name);
        return fill(name, type, rows, cols,
                    [=](int64_t i) { return scale * rng_normal(key, (uint64_t)i); });
    }
    /* Integers in [least, least + count). */
    operand &integers(const char *name, int64_t rows, int64_t cols, int least, int count)
    {
        const uint64_t key = rng_key(7, name);
        return fill(name, DTYPE_I32, rows, cols, [=](int64_t i) {
            return least + floor(rng_uniform(key, (uint64_t)i) * count);
        });
    }
    /* An operand that is not there. */
    operand &none(const char *name)
    {
        operand &o = poison(name, dtype, 0, 0);
        o.cpu.data = o.cuda.data = nullptr;
        return o;
    }

    void upload()
    {
        for (operand &o : operands) {
            must(cudaMemcpy(o.device, o.host.data(), o.host.size(), cudaMemcpyHostToDevice), what);
        }
    }
    void download()
    {
        uint64_t hash = 0xcbf29ce484222325u;
        must(cudaGetLastError(), what);
        for (operand &o : operands) {
            must(cudaMemcpy(o.got.data(), o.device, o.got.size(), cudaMemcpyDeviceToHost), what);
            for (unsigned char byte : o.got) {
                hash = (hash ^ byte) * 0x100000001b3u;
            }
        }
        current_pass->hashes.push_back(hash);
        current_pass->names.push_back(what);
    }

    /* ---- comparisons ---- */

    const void *got_data(const operand &o) const
    {
        return o.there() ? o.got.data() + ((unsigned char *)o.cuda.data - o.device) : nullptr;
    }
    void wrong(const operand &o, int64_t i, const char *why)
    {
        const int64_t cols = o.cpu.dim[1] > 0 ? o.cpu.dim[1] : 1;
        if (right) {
            printf("%s, %s, shift %d, seed %llu: WRONG %s[%lld,%lld] = %.9g, on the CPU %.9g: %s\n",
                   what, dtype_name(dtype), shift, (unsigned long long)side_seed(), o.name,
                   (long long)(i / cols), (long long)(i % cols), value_at(o.cpu, got_data(o), i),
                   value_at(o.cpu, o.cpu.data, i), why);
        }
        right = false;
    }
    void exact(operand &o)
    {
        const size_t width = dtype_bytes(o.cpu.dtype);
        const unsigned char *a = (const unsigned char *)got_data(o), *b = o.on_cpu<unsigned char>();
        o.compared = true;
        for (int64_t i = 0; i < tensor_count(&o.cpu); i++) {
            if (memcmp(a + (size_t)i * width, b + (size_t)i * width, width) != 0) {
                wrong(o, i, "not the same bits");
                return;
            }
        }
    }
    /* acc: relative error of the arithmetic before the store. f32, f64: NMSE at most acc^2, and no
     * element off by more than 8 acc of itself and the typical one. bf16: an element may be the
     * neighbour, one unit (2^-7) off, for a few: two values acc apart lie on both sides of the
     * middle of two neighbours with a chance of about 2^8 acc, more for small elements. */
    void close(operand &o, double acc)
    {
        const int64_t count = tensor_count(&o.cpu);
        const bool narrow = o.cpu.dtype == DTYPE_BF16;
        double squares = 0, error = 0, flips = 0;
        o.compared = true;
        for (int64_t i = 0; i < count; i++) {
            const double want = value_at(o.cpu, o.cpu.data, i);
            squares += isnan(want) ? 0 : want * want;
        }
        const double scale = count > 0 ? sqrt(squares / (double)count) : 0;
        for (int64_t i = 0; i < count; i++) {
            const double want = value_at(o.cpu, o.cpu.data, i),
                         have = value_at(o.cpu, got_data(o), i);
            const double bound =
                8 * acc * (fabs(want) + scale) + (narrow ? 0x1p-7 * fabs(want) : 0);
            if (isnan(want) ? !isnan(have) : !(fabs(have - want) <= bound)) {
                wrong(o, i, "out of tolerance");
                return;
            }
            error += isnan(want) ? 0 : (have - want) * (have - want);
            flips += have != want && !isnan(want);
        }
        if (narrow ? flips > 4 + 0x1p12 * acc * (double)count : error > acc * acc * squares) {
            char why[100];
            snprintf(why, sizeof why, "NMSE %.3g, %g elements differ", error / squares, flips);
            wrong(o, 0, why);
        }
    }
    bool finish()
    {
        for (operand &o : operands) {
            if (o.there() && !o.compared) {
                exact(o);
            }
            const size_t bytes = tensor_bytes(&o.cpu);
            const size_t begin = o.there() ? (size_t)((unsigned char *)o.cuda.data - o.device) : 0;
            for (size_t i = 0; i < o.got.size(); i++) {
                if ((i < begin || i >= begin + bytes) && o.got[i] != GUARD_BYTE && o.there()) {
                    wrong(o, 0, "guard bytes overwritten");
                    break;
                }
            }
        }
        return right;
    }
};

/* Scratch that a launcher asked for, of garbage. */
struct scratch {
    void *data;
    explicit scratch(size_t bytes)
    {
        must(cudaMalloc(&data, bytes), "cudaMalloc");
        must(cudaMemset(data, 0xFF, bytes), "cudaMemset");
    }
    scratch(const scratch &) = delete;
    ~scratch()
    {
        cudaFree(data);
    }
};

/* Runs body(device, dtype, shift) in both dtypes on aligned operands, on shifted ones, and with
 * each of the first eight shifted alone. */
template <class F> static bool for_kinds(struct device *device, F body)
{
    bool right = true;
    for (int shift = SHIFT_ALL; shift < (SLOW ? 0 : 8); shift++) {
        for (int narrow = 0; narrow < 2; narrow++) {
            if (shift < 0 || shift % 2 == narrow) {
                right = body(device, narrow ? DTYPE_BF16 : DTYPE_F32, shift) && right;
            }
        }
    }
    return right;
}

/* The CPU device of the test program, one thread. */
static inline struct device *cpu_device()
{
    static struct device *device = nullptr;
    const struct device_options options = {"cpu", 1, nullptr};
    if (device == nullptr && device_open(&device, &options) != STATUS_OK) {
        exit(70);
    }
    return device;
}

/* The main of these tests: two passes under every seed, in different orders (on a device in
 * whatever order it takes), same bits. */
template <bool test()> static bool two_passes()
{
    struct pass first, second;
    const uint64_t seed = side_seed();
    current_pass = &first;
    bool right = test();
    if (SLOW) {
        return right;
    }
    side_set_seed(seed + 1000);
    current_pass = &second;
    right = test() && right;
    side_set_seed(seed);
    for (size_t i = 0; i < first.hashes.size(); i++) {
        if (first.hashes[i] != second.hashes[i]) {
            printf("%s: WRONG, seeds %llu and %llu give different bits\n", first.names[i].c_str(),
                   (unsigned long long)seed, (unsigned long long)seed + 1000);
            right = false;
        }
    }
    return right;
}

#endif
