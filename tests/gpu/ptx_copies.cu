/* TMA in one, two and three dimensions, every swizzle, every edge; reduce-add; cp.async. */
#include "conformance.h"

#include "kernels/cuda/ptx.cuh"

enum { COLUMNS = 100, ROWS = 37, BOX_ROWS = 16, BOX_BYTES_MAX = 128 * BOX_ROWS };

/* y = x by way of shared memory, `bytes` at a time; the second half of x is stored from the same
 * memory once the first has been read out of it. */
__global__ void __launch_bounds__(32) bulk_kernel(const uint8_t *x, uint8_t *y, uint32_t bytes)
{
    SMEM_DYN(raw);
    uint64_t *full = reinterpret_cast<uint64_t *>(raw + 8192);
    if (threadIdx.x != 0)
        return;
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    for (int i = 0; i < 2; i++) {
        mbarrier_arrive_expect_tx(full, bytes);
        tma_load_1d(raw, x + i * bytes, bytes, full);
        mbarrier_wait(full, i);
        tma_store_1d(y + i * bytes, raw, bytes);
        tma_store_commit();
        tma_store_wait_read<0>();
    }
    tma_store_wait<0>();
}

/* out = the shared bytes of the box at (x, y). */
__global__ void __launch_bounds__(128) box_load_kernel(const __grid_constant__ CUtensorMap map,
                                                       uint8_t *out, uint32_t bytes, int x, int y)
{
    SMEM_DYN(raw);
    uint64_t *full = reinterpret_cast<uint64_t *>(raw + BOX_BYTES_MAX);
    if (threadIdx.x == 0) {
        tma_prefetch_map(&map);
        mbarrier_init(full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(full, bytes);
        tma_load_2d(raw, &map, full, x, y);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    for (uint32_t i = threadIdx.x; i < bytes; i += 128)
        out[i] = raw[i];
}

/* The same of plane z. */
__global__ void __launch_bounds__(128)
    plane_load_kernel(const __grid_constant__ CUtensorMap map, uint8_t *out, uint32_t bytes, int x,
                      int y, int z)
{
    SMEM_DYN(raw);
    uint64_t *full = reinterpret_cast<uint64_t *>(raw + BOX_BYTES_MAX);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        fence_mbarrier_init();
        mbarrier_arrive_expect_tx(full, bytes);
        tma_load_3d(raw, &map, full, x, y, z);
    }
    __syncthreads();
    mbarrier_wait(full, 0);
    for (uint32_t i = threadIdx.x; i < bytes; i += 128)
        out[i] = raw[i];
}

/* Stores (or adds) in[bytes] as the shared bytes of the box at (x, y), then at (x + 3, y + 5). */
template <bool add>
__global__ void __launch_bounds__(128)
    box_store_kernel(const __grid_constant__ CUtensorMap map, const uint8_t *in, uint32_t bytes,
                     int x, int y)
{
    SMEM_DYN(raw);
    for (uint32_t i = threadIdx.x; i < bytes; i += 128)
        raw[i] = in[i];
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    if (add) {
        tma_reduce_add_2d(&map, raw, x, y);
        tma_reduce_add_2d(&map, raw, x + 3, y + 5);
        tma_store_commit();
    } else {
        tma_store_2d(&map, raw, x, y);
        tma_store_commit();
    }
    tma_store_wait<0>();
}

/* Two groups of 512 bytes, every third 16 bytes left out; each read when only it must be there. */
__global__ void __launch_bounds__(32) cp_async_kernel(const uint8_t *x, uint8_t *y)
{
    SMEM(uint4, slot, [2][32]);
    int lane = threadIdx.x;
    for (int i = 0; i < 2; i++) {
        cp_async_16(&slot[i][lane], x + 16 * (32 * i + lane), lane % 3 == 0 ? 0 : 16);
        cp_async_commit();
    }
    cp_async_wait<1>();
    __syncwarp();
    reinterpret_cast<uint4 *>(y)[31 - lane] = slot[0][31 - lane];
    cp_async_wait<0>();
    __syncwarp();
    reinterpret_cast<uint4 *>(y)[63 - lane] = slot[1][31 - lane];
}

static void bulk(struct conformance *c)
{
    for (uint32_t bytes : {16u, 48u, 4096u}) {
        std::string name = "tma 1d " + std::to_string(bytes);
        std::vector<uint8_t> x = conformance_bytes(c->seed, name.c_str(), 2 * bytes);
        device_vector<uint8_t> dx(x), dy(std::vector<uint8_t>(x.size(), 0));
        LAUNCH(bulk_kernel, 1, 32, 8192 + 8, nullptr, dx.data, dy.data, bytes);
        conformance_exact(c, name, dy.get(), x);
    }
}

/* A tensor of ROWS x COLUMNS elements and a box of BOX_ROWS rows of `span` bytes. */
struct box {
    CUtensorMapDataType type;
    size_t element, span, row_bytes;
    CUtensorMapSwizzle swizzle;
    int x, y;
    std::string name;
};

static size_t box_place(const struct box *b, size_t row, size_t byte)
{
    size_t at = row * b->span + byte;
    switch (b->swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_128B:
        return at ^ (at >> 7 & 7) << 4;
    case CU_TENSOR_MAP_SWIZZLE_64B:
        return at ^ (at >> 7 & 3) << 4;
    case CU_TENSOR_MAP_SWIZZLE_32B:
        return at ^ (at >> 7 & 1) << 4;
    default:
        return at;
    }
}

/* visit(byte of the tensor or -1 outside it, byte of the box in shared memory). */
template <class F> static void box_visit(const struct box *b, int x, int y, F visit)
{
    for (size_t r = 0; r < BOX_ROWS; r++)
        for (size_t byte = 0; byte < b->span; byte++) {
            long row = y + (long)r, column = x + (long)(byte / b->element);
            bool inside = row >= 0 && row < ROWS && column >= 0 && column < COLUMNS;
            long at = row * (long)b->row_bytes + column * (long)b->element;
            visit(inside ? at + (long)(byte % b->element) : -1, box_place(b, r, byte));
        }
}

static void box_load(struct conformance *c, const struct box *b)
{
    std::vector<uint8_t> x = conformance_bytes(c->seed, b->name.c_str(), ROWS * b->row_bytes);
    std::vector<uint8_t> want(BOX_ROWS * b->span, 0);
    device_vector<uint8_t> dx(x), out(std::vector<uint8_t>(want.size(), 0xEE));
    CUtensorMap map = tensor_map(b->type, dx.data, COLUMNS, ROWS, b->row_bytes,
                                 (uint32_t)(b->span / b->element), BOX_ROWS, b->swizzle);
    box_visit(b, b->x, b->y, [&](long from, size_t to) {
        if (from >= 0)
            want[to] = x[(size_t)from];
    });
    LAUNCH(box_load_kernel, 1, 128, BOX_BYTES_MAX + 8, nullptr, map, out.data,
           (uint32_t)want.size(), b->x, b->y);
    conformance_exact(c, "tma_load_2d " + b->name, out.get(), want);
}

static void box_store(struct conformance *c, const struct box *b)
{
    std::vector<uint8_t> in = conformance_bytes(c->seed, b->name.c_str(), BOX_ROWS * b->span);
    std::vector<uint8_t> want(ROWS * b->row_bytes, 0x5A);
    device_vector<uint8_t> din(in), dy(want);
    CUtensorMap map = tensor_map(b->type, dy.data, COLUMNS, ROWS, b->row_bytes,
                                 (uint32_t)(b->span / b->element), BOX_ROWS, b->swizzle);
    box_visit(b, b->x, b->y, [&](long to, size_t from) {
        if (to >= 0)
            want[(size_t)to] = in[from];
    });
    LAUNCH(box_store_kernel<false>, 1, 128, BOX_BYTES_MAX, nullptr, map, din.data,
           (uint32_t)in.size(), b->x, b->y);
    conformance_exact(c, "tma_store_2d " + b->name, dy.get(), want);
}

/* Integers, whose sums are exact in f32 and in bf16, added twice to what is there. */
static void box_add(struct conformance *c, const struct box *b)
{
    const bool wide = b->element == 4;
    auto value = [&](const std::vector<uint8_t> &bytes, size_t at) {
        uint32_t bits = 0;
        memcpy(wide ? (uint8_t *)&bits : (uint8_t *)&bits + 2, &bytes[at], b->element);
        float f;
        memcpy(&f, &bits, 4);
        return f;
    };
    auto put = [&](std::vector<uint8_t> &bytes, size_t at, float f) {
        uint32_t bits;
        memcpy(&bits, &f, 4);
        memcpy(&bytes[at], wide ? (uint8_t *)&bits : (uint8_t *)&bits + 2, b->element);
    };
    std::vector<uint8_t> in(BOX_ROWS * b->span), want(ROWS * b->row_bytes);
    for (size_t i = 0; i < in.size(); i += b->element)
        put(in, i, (float)conformance_integer(c->seed, "in", i, 30));
    for (size_t i = 0; i < want.size(); i += b->element)
        put(want, i, (float)conformance_integer(c->seed, b->name.c_str(), i, 30));
    device_vector<uint8_t> din(in), dy(want);
    CUtensorMap map = tensor_map(b->type, dy.data, COLUMNS, ROWS, b->row_bytes,
                                 (uint32_t)(b->span / b->element), BOX_ROWS, b->swizzle);
    for (int i = 0; i < 2; i++)
        box_visit(b, b->x + 3 * i, b->y + 5 * i, [&](long to, size_t from) {
            if (to >= 0 && (size_t)to % b->element == 0)
                put(want, (size_t)to, value(want, (size_t)to) + value(in, from));
        });
    LAUNCH(box_store_kernel<true>, 1, 128, BOX_BYTES_MAX, nullptr, map, din.data,
           (uint32_t)in.size(), b->x, b->y);
    conformance_exact(c, "tma_reduce_add_2d " + b->name, dy.get(), want);
}

/* Planes of a tensor of three, and those before and after it, which are zero. */
static void planes(struct conformance *c)
{
    enum { PLANES = 3 };
    struct box b = {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,  128, (2 * COLUMNS + 15) / 16 * 16,
                    CU_TENSOR_MAP_SWIZZLE_128B,       60, 30,  ""};
    const size_t plane_bytes = ROWS * b.row_bytes;
    for (int z : {0, 2, 3, -1}) {
        std::string name = "tma_load_3d plane " + std::to_string(z);
        std::vector<uint8_t> x = conformance_bytes(c->seed, name.c_str(), PLANES * plane_bytes);
        std::vector<uint8_t> want(BOX_ROWS * b.span, 0);
        device_vector<uint8_t> dx(x), out(std::vector<uint8_t>(want.size(), 0xEE));
        CUtensorMap map = tensor_map_3d(b.type, dx.data, COLUMNS, ROWS, b.row_bytes, PLANES,
                                        (uint32_t)(b.span / b.element), BOX_ROWS, b.swizzle);
        box_visit(&b, b.x, b.y, [&](long from, size_t to) {
            if (from >= 0 && z >= 0 && z < PLANES)
                want[to] = x[(size_t)z * plane_bytes + (size_t)from];
        });
        LAUNCH(plane_load_kernel, 1, 128, BOX_BYTES_MAX + 8, nullptr, map, out.data,
               (uint32_t)want.size(), b.x, b.y, z);
        conformance_exact(c, name, out.get(), want);
    }
}

static void boxes(struct conformance *c)
{
    static const struct {
        CUtensorMapDataType type;
        size_t element;
        const char *name;
    } types[] = {{CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, "u8"},
                 {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, "bf16"},
                 {CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, "f32"}};
    static const size_t spans[] = {64, 32, 64, 128}; /* by CUtensorMapSwizzle; 64: unswizzled */
    /* inside; over the low corner; over the high corner; outside */
    static const int corners[][2] = {{7, 9}, {-3, -2}, {COLUMNS - 5, ROWS - 3}, {COLUMNS + 8, 0}};
    for (const auto &type : types)
        for (int swizzle = 0; swizzle < 4; swizzle++)
            for (const int(&at)[2] : corners) {
                struct box b = {type.type,
                                type.element,
                                spans[swizzle],
                                (COLUMNS * type.element + 15) / 16 * 16,
                                (CUtensorMapSwizzle)swizzle,
                                at[0],
                                at[1],
                                ""};
                b.name = std::string(type.name) + " swizzle " +
                         std::to_string(swizzle ? spans[swizzle] : 0) + " at " +
                         std::to_string(at[0]) + "," + std::to_string(at[1]);
                box_load(c, &b);
                box_store(c, &b);
                if (type.element > 1)
                    box_add(c, &b);
            }
}

void conformance_copies(struct conformance *c)
{
    bulk(c);
    boxes(c);
    planes(c);
    std::vector<uint8_t> x = conformance_bytes(c->seed, "cp_async", 1024), want(x);
    for (size_t i = 0; i < want.size(); i++)
        if (i / 16 % 32 % 3 == 0)
            want[i] = 0;
    device_vector<uint8_t> dx(x), dy(std::vector<uint8_t>(x.size(), 0xEE));
    LAUNCH(cp_async_kernel, 1, 32, 0, nullptr, dx.data, dy.data);
    conformance_exact(c, "cp_async_16", dy.get(), want);
}
