/* check: what the tests of emulated kernels share, here and on a device (side.h). A test is
 * `program [SEED ...]`: it runs once per seed (on a device once) and returns 0 when every result
 * was right, 1 after printing WRONG and the first bad element, 70 when CUDA failed. */
#ifndef EMULATOR_CHECK_H
#define EMULATOR_CHECK_H

#include "side.h"

#include <cuda.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

static inline void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s (%s)\n", what, cudaGetErrorName(error), cudaGetErrorString(error));
    exit(70);
}

/* A device copy of a host vector; freed at the end of the scope. */
template <class T> struct device_vector {
    T *data;
    size_t count;
    explicit device_vector(const std::vector<T> &from) : count(from.size())
    {
        must(cudaMalloc((void **)&data, count * sizeof(T)), "cudaMalloc");
        must(cudaMemcpy(data, from.data(), count * sizeof(T), cudaMemcpyHostToDevice),
             "cudaMemcpy");
    }
    device_vector(const device_vector &) = delete;
    ~device_vector()
    {
        cudaFree(data);
    }
    std::vector<T> get() const
    {
        std::vector<T> to(count);
        must(cudaMemcpy(to.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
        return to;
    }
};

static inline float bf16_value(uint16_t bits)
{
    union {
        uint32_t bits;
        float value;
    } u = {(uint32_t)bits << 16};
    return u.value;
}
/* Rounded toward zero: for inputs, where any bf16 will do. */
static inline uint16_t bf16_bits(float value)
{
    union {
        float value;
        uint32_t bits;
    } u = {value};
    return (uint16_t)(u.bits >> 16);
}

/* Small signed numbers that are exact in every format. */
static inline float pattern(size_t i, int span)
{
    return (float)((int)((i * 2654435761u >> 12) % (unsigned)span) - span / 2) * 0.125f;
}

/* |got - want| <= tolerance (1 + |want|) everywhere; NaN is wrong. */
static inline bool same(const char *name, const float *got, const double *want, size_t count,
                        double tolerance)
{
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)got[i] - want[i]) <= tolerance * (1 + fabs(want[i])))) {
            printf("%s: WRONG at %zu: %g, want %g (seed %llu)\n", name, i, (double)got[i], want[i],
                   (unsigned long long)side_seed());
            return false;
        }
    return true;
}

static inline int for_seeds(int argc, char **argv, bool (*test)())
{
    bool right = true;
#ifdef REAL_CUDA
    argc = 1;
#endif
    for (int i = 1; i < argc || i == 1; i++) {
        side_set_seed(argc > 1 ? strtoull(argv[i], nullptr, 0) : 0);
        right = test() && right;
    }
    printf("%s\n", right ? "ok" : "WRONG");
    return right ? 0 : 1;
}

static inline CUtensorMap tensor_map_of(CUtensorMapDataType type, void *base, uint32_t rank,
                                        const cuuint64_t *dim, const cuuint64_t *stride,
                                        const cuuint32_t *box, CUtensorMapSwizzle swizzle)
{
    CUtensorMap map;
    const cuuint32_t step[3] = {1, 1, 1};
    void *encode = nullptr;
    must(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000, 0, nullptr),
         "cudaGetDriverEntryPointByVersion");
    decltype(&cuTensorMapEncodeTiled) function = (decltype(&cuTensorMapEncodeTiled))encode;
    if (!function ||
        function(&map, type, rank, base, dim, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                 swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
        fprintf(stderr, "cuTensorMapEncodeTiled refused\n");
        exit(70);
    }
    return map;
}
static inline CUtensorMap tensor_map(CUtensorMapDataType type, void *base, uint64_t columns,
                                     uint64_t rows, uint64_t row_bytes, uint32_t box_columns,
                                     uint32_t box_rows, CUtensorMapSwizzle swizzle)
{
    const cuuint64_t dim[2] = {columns, rows}, stride[1] = {row_bytes};
    const cuuint32_t box[2] = {box_columns, box_rows};
    return tensor_map_of(type, base, 2, dim, stride, box, swizzle);
}
/* Planes of such matrices, one after the other; a box lies in one. */
static inline CUtensorMap tensor_map_3d(CUtensorMapDataType type, void *base, uint64_t columns,
                                        uint64_t rows, uint64_t row_bytes, uint64_t planes,
                                        uint32_t box_columns, uint32_t box_rows,
                                        CUtensorMapSwizzle swizzle)
{
    const cuuint64_t dim[3] = {columns, rows, planes}, stride[2] = {row_bytes, rows * row_bytes};
    const cuuint32_t box[3] = {box_columns, box_rows, 1};
    return tensor_map_of(type, base, 3, dim, stride, box, swizzle);
}

#endif
