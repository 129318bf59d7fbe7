#include "kernels/cpu/gemm_onednn.h"

#include <assert.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/hash.h"

/* Slots of the table, a power of two; at three quarters full it is emptied: shapes of experts vary
 * from step to step, memory must not grow with them. */
enum { SLOTS = 4096, MOST_ENTRIES = SLOTS / 4 * 3 };
enum { ARGS = 4 }; /* a, b, c, scratchpad */
/* Of so many terms long sums are made at a time: of 2048 and more, if there are few columns for its
 * threads, or with AMX of more than 1024, oneDNN would have each thread sum some
 * (brgemm_matmul_utils.cpp, nthr_k), and the bits would be those of so many threads. Rows that are
 * not whole in memory it has no kernels for: with AMX sums of bf16 that are long in another way, a
 * layer's over its inputs, are made by so few threads that it does not (nthr / 8 share a sum). */
enum { TERMS = 1024, AMX_THREADS = 15 };

struct key {
    int64_t m, n, k, a_row, a_col, b_row, b_col, c_row;
    int32_t a_dtype, b_dtype, c_dtype, add, threads, used;
};
_Static_assert(sizeof(struct key) == 8 * 8 + 6 * 4, "hashed as bytes: no padding");

struct entry {
    struct key key;
    dnnl_primitive_t primitive; /* NULL: no brgemm kernel for this shape */
    dnnl_memory_t memory[ARGS];
};

struct onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct entry *table; /* [SLOTS] owned */
    int entries;
    void *scratch; /* owned; one for all: left to itself every primitive keeps its own */
    size_t scratch_bytes;
};

struct onednn *onednn_open(void)
{
    struct onednn *self = calloc(1, sizeof *self);
    if (self == NULL) {
        return NULL;
    }
    self->table = calloc(SLOTS, sizeof *self->table);
    if (self->table == NULL || dnnl_engine_create(&self->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&self->stream, self->engine, dnnl_stream_default_flags) !=
            dnnl_success) {
        onednn_close(self);
        return NULL;
    }
    (void)dnnl_set_primitive_cache_capacity(0); /* the table here is the cache */
    return self;
}

static void forget_entry(struct entry *entry)
{
    if (entry->primitive != NULL) {
        dnnl_primitive_destroy(entry->primitive);
        entry->primitive = NULL;
    }
    for (int i = 0; i < ARGS; i++) {
        if (entry->memory[i] != NULL) {
            dnnl_memory_destroy(entry->memory[i]);
            entry->memory[i] = NULL;
        }
    }
}

static void empty_table(struct onednn *self)
{
    for (int i = 0; self->table != NULL && i < SLOTS; i++) {
        forget_entry(&self->table[i]);
        self->table[i] = (struct entry){0};
    }
    self->entries = 0;
}

void onednn_close(struct onednn *self)
{
    if (self == NULL) {
        return;
    }
    empty_table(self);
    free(self->table);
    free(self->scratch);
    if (self->stream != NULL) {
        dnnl_stream_destroy(self->stream);
    }
    if (self->engine != NULL) {
        dnnl_engine_destroy(self->engine);
    }
    free(self);
}

static dnnl_data_type_t data_type(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
}

/* The two generations of the C API differ in who owns a description and in how a primitive is
 * described; the functions of this block are the whole difference. */
#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t description_view;

static bool describe(dnnl_memory_desc_t *out, const dnnl_dims_t dims, const dnnl_dims_t strides,
                     enum dtype dtype)
{
    return dnnl_memory_desc_create_with_strides(out, 2, dims, data_type(dtype), strides) ==
           dnnl_success;
}

static description_view view(const dnnl_memory_desc_t *description)
{
    return *description;
}

static void forget(dnnl_memory_desc_t *description)
{
    dnnl_memory_desc_destroy(*description);
}

static bool append_sum(dnnl_post_ops_t after)
{
    return dnnl_post_ops_append_sum(after, 1.0F, 0, dnnl_data_type_undef) == dnnl_success;
}

static bool describe_matmul(dnnl_primitive_desc_t *out, const struct onednn *self,
                            const dnnl_memory_desc_t d[3], dnnl_primitive_attr_t attributes)
{
    return dnnl_matmul_primitive_desc_create(out, self->engine, d[0], d[1], NULL, d[2],
                                             attributes) == dnnl_success;
}
#else
typedef const dnnl_memory_desc_t *description_view;

static bool describe(dnnl_memory_desc_t *out, const dnnl_dims_t dims, const dnnl_dims_t strides,
                     enum dtype dtype)
{
    return dnnl_memory_desc_init_by_strides(out, 2, dims, data_type(dtype), strides) ==
           dnnl_success;
}

static description_view view(const dnnl_memory_desc_t *description)
{
    return description;
}

static void forget(dnnl_memory_desc_t *description)
{
    (void)description; /* a plain value in this generation */
}

static bool append_sum(dnnl_post_ops_t after)
{
    return dnnl_post_ops_append_sum(after, 1.0F) == dnnl_success;
}

static bool describe_matmul(dnnl_primitive_desc_t *out, const struct onednn *self,
                            const dnnl_memory_desc_t d[3], dnnl_primitive_attr_t attributes)
{
    dnnl_matmul_desc_t matmul;
    return dnnl_matmul_desc_init(&matmul, &d[0], &d[1], NULL, &d[2]) == dnnl_success &&
           dnnl_primitive_desc_create(out, &matmul, attributes, self->engine, NULL) == dnnl_success;
}
#endif

/* With our scratchpad, and adding to what C holds where that is asked. */
static bool describe_product(dnnl_primitive_desc_t *out, const struct onednn *self,
                             const dnnl_memory_desc_t d[3], bool add)
{
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t after = NULL;
    bool good = dnnl_primitive_attr_create(&attributes) == dnnl_success &&
                dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user) ==
                    dnnl_success &&
                dnnl_post_ops_create(&after) == dnnl_success;
    if (good && add) {
        good = append_sum(after) &&
               dnnl_primitive_attr_set_post_ops(attributes, after) == dnnl_success;
    }
    good = good && describe_matmul(out, self, d, attributes);
    dnnl_post_ops_destroy(after);
    dnnl_primitive_attr_destroy(attributes);
    return good;
}

static bool make_memory(dnnl_memory_t *out, const struct onednn *self, description_view d)
{
    return dnnl_memory_create(out, d, self->engine, DNNL_MEMORY_NONE) == dnnl_success;
}

static bool is_brgemm(dnnl_primitive_desc_t matmul)
{
    const char *name = NULL;
    return dnnl_primitive_desc_query(matmul, dnnl_query_impl_info_str, 0, &name) == dnnl_success &&
           name != NULL && strncmp(name, "brg", 3) == 0;
}

/* Room for the scratchpad of every primitive so far; the old one stays where there is no more. */
static bool grow_scratch(struct onednn *self, size_t bytes)
{
    if (bytes > self->scratch_bytes) {
        const size_t rounded = cpu_scratch_bytes(bytes);
        void *grown = aligned_alloc(4096, rounded);
        if (grown == NULL) {
            return false;
        }
        free(self->scratch);
        self->scratch = grown;
        self->scratch_bytes = rounded;
    }
    return true;
}

/* What running `matmul` takes, when that is a brgemm kernel. */
static bool fill_entry(struct onednn *self, struct entry *entry, const dnnl_memory_desc_t d[3],
                       dnnl_primitive_desc_t matmul)
{
    if (!is_brgemm(matmul) || dnnl_primitive_create(&entry->primitive, matmul) != dnnl_success) {
        return false;
    }
    for (int i = 0; i < 3; i++) {
        if (!make_memory(&entry->memory[i], self, view(&d[i]))) {
            return false;
        }
    }
    const description_view scratch =
        dnnl_primitive_desc_query_md(matmul, dnnl_query_scratchpad_md, 0);
    return make_memory(&entry->memory[3], self, scratch) &&
           grow_scratch(self, dnnl_memory_desc_get_size(scratch));
}

static void make_primitive(struct onednn *self, struct entry *entry)
{
    const struct key *k = &entry->key;
    const struct {
        dnnl_dims_t dims, strides;
        int32_t dtype;
    } operands[3] = {{{k->m, k->k}, {k->a_row, k->a_col}, k->a_dtype},
                     {{k->k, k->n}, {k->b_row, k->b_col}, k->b_dtype},
                     {{k->m, k->n}, {k->c_row, 1}, k->c_dtype}};
    dnnl_memory_desc_t d[3];
    dnnl_primitive_desc_t matmul = NULL;
    int described = 0;
    while (described < 3 &&
           describe(&d[described], operands[described].dims, operands[described].strides,
                    (enum dtype)operands[described].dtype)) {
        described++;
    }
    if (described == 3 && describe_product(&matmul, self, d, k->add != 0)) {
        if (!fill_entry(self, entry, d, matmul)) {
            forget_entry(entry);
        }
        dnnl_primitive_desc_destroy(matmul);
    }
    for (int i = 0; i < described; i++) {
        forget(&d[i]);
    }
}

static struct entry *find(struct onednn *self, const struct key *key)
{
    uint64_t at = hash_bytes(key, sizeof *key);
    if (self->entries == MOST_ENTRIES) {
        empty_table(self);
    }
    for (;; at++) {
        struct entry *entry = &self->table[at % SLOTS];
        if (entry->key.used == 0) {
            entry->key = *key;
            self->entries++;
            make_primitive(self, entry);
            return entry;
        }
        if (memcmp(&entry->key, key, sizeof *key) == 0) {
            return entry;
        }
    }
}

/* NULL: oneDNN has no brgemm kernel for it. */
static const struct entry *entry_of(struct onednn *self, const struct gemm *g, int threads)
{
    const struct key key = {.m = g->m,
                            .n = g->n,
                            .k = g->k,
                            .a_row = g->a_row,
                            .a_col = g->a_col,
                            .b_row = g->b_row,
                            .b_col = g->b_col,
                            .c_row = g->c_row,
                            .a_dtype = (int32_t)g->a_dtype,
                            .b_dtype = (int32_t)g->b_dtype,
                            .c_dtype = (int32_t)g->c_dtype,
                            .add = g->add,
                            .threads = threads,
                            .used = 1};
    omp_set_num_threads(threads); /* oneDNN takes its threads from here */
    const struct entry *entry = find(self, &key);
    return entry->primitive == NULL ? NULL : entry;
}

static bool run_product(struct onednn *self, const struct gemm *g, int threads)
{
    const struct entry *entry = entry_of(self, g, threads);
    if (entry == NULL) {
        return false;
    }
    union {
        const void *in;
        void *out;
    } data[ARGS] = {{.in = g->a}, {.in = g->b}, {.out = g->c}, {.out = self->scratch}};
    static const int roles[ARGS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST,
                                    DNNL_ARG_SCRATCHPAD};
    dnnl_exec_arg_t args[ARGS];
    for (int i = 0; i < ARGS; i++) {
        dnnl_memory_set_data_handle(entry->memory[i], data[i].out);
        args[i] = (dnnl_exec_arg_t){roles[i], entry->memory[i]};
    }
    return dnnl_primitive_execute(entry->primitive, self->stream, ARGS, args) == dnnl_success &&
           dnnl_stream_wait(self->stream) == dnnl_success;
}

/* Whether there are kernels for all parts of so many terms. */
static bool has_parts(struct onednn *self, const struct gemm *g, int64_t most, int threads)
{
    struct gemm part = *g;
    const int64_t rest = g->k % most;
    for (int i = 0; i < 2 && most < g->k; i++) {
        part.k = i == 0 ? most : rest;
        part.add = true;
        if (part.k > 0 && entry_of(self, &part, threads) == NULL) {
            return false;
        }
    }
    return true;
}

bool onednn_gemm(struct onednn *self, const struct gemm *g, int threads)
{
    const bool in_parts = gemm_is_long(g) && g->c_dtype == DTYPE_F32;
    const int64_t most = in_parts && g->k > TERMS ? TERMS : g->k;
    struct gemm part = *g;
    if (most > TERMS && g->a_dtype == DTYPE_BF16 && threads > AMX_THREADS && onednn_has_amx()) {
        threads = AMX_THREADS;
    }
    if (g->a_dtype != g->b_dtype || g->k == 0 || !has_parts(self, g, most, threads)) {
        return false;
    }
    for (int64_t done = 0; done < g->k; done += part.k) {
        const int64_t bytes = done * (int64_t)dtype_bytes(g->a_dtype);
        part.k = g->k - done < most ? g->k - done : most;
        part.a = (const char *)g->a + bytes * g->a_col;
        part.b = (const char *)g->b + bytes * g->b_row;
        part.add = g->add || done > 0;
        const bool ran = run_product(self, &part, threads);
        if (!ran && done == 0) {
            return false;
        }
        assert(ran); /* has_parts found a kernel for it; what has run cannot be taken back */
    }
    return true;
}

void onednn_version(char *out, size_t bytes)
{
    const dnnl_version_t *version = dnnl_version();
    snprintf(out, bytes, "%d.%d.%d", version->major, version->minor, version->patch);
}

/* A set has the bits of all that it includes. */
static bool includes(dnnl_cpu_isa_t isa)
{
    return ((unsigned)dnnl_get_effective_cpu_isa() & (unsigned)isa) == (unsigned)isa;
}

bool onednn_has_amx(void)
{
    return includes(dnnl_cpu_isa_avx512_core_amx);
}

bool onednn_allows(bool pairs)
{
    return includes(pairs ? dnnl_cpu_isa_avx512_core_bf16 : dnnl_cpu_isa_avx512_core);
}

const char *onednn_isa(void)
{
    static const struct {
        dnnl_cpu_isa_t isa;
        const char *name;
    } names[] = {
        {dnnl_cpu_isa_avx512_core_amx, "AVX-512 with AMX"},
        {dnnl_cpu_isa_avx512_core_bf16, "AVX-512 with bf16"},
        {dnnl_cpu_isa_avx512_core_vnni, "AVX-512 with VNNI"},
        {dnnl_cpu_isa_avx512_core, "AVX-512"},
        {dnnl_cpu_isa_avx2_vnni, "AVX2 with VNNI"},
        {dnnl_cpu_isa_avx2, "AVX2"},
        {dnnl_cpu_isa_avx, "AVX"},
        {dnnl_cpu_isa_sse41, "SSE4.1"},
    };
    const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].isa == isa) {
            return names[i].name;
        }
    }
    return isa > dnnl_cpu_isa_avx512_core_amx ? "beyond AVX-512 with AMX" : "baseline";
}
