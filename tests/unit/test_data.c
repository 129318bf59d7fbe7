/* token files: what goes in comes out, and damaged or foreign ones are refused; loader: which
 * tokens and labels belong to which sample, checked against a second, plain statement of the rules.
 */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <hdf5.h>
#include <stdio.h>

#include "data/loader.h"
#include "data/token_writer.h"
#include "kernels/base/rng.h"

/* libhdf5 1.10 forgets some memory when it meets damaged metadata; ours is still watched. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libhdf5\n";
}

/* A source in memory: documents cut tokens. */
enum { MOST_TOKENS = 4096, MOST_DOCUMENTS = 256 };

struct source {
    uint32_t ids[MOST_TOKENS];
    uint8_t mask[MOST_TOKENS];
    int64_t length[MOST_DOCUMENTS]; /* of each document */
    int64_t documents, tokens, vocab;
    bool masked;
};

static uint32_t draw(uint64_t key, uint64_t index, uint32_t below)
{
    uint32_t bits[4];
    rng_bits(key, index, bits);
    return bits[0] % below;
}

/* Documents of 0 to `longest` tokens, ids over the whole vocabulary. */
static void fill(struct source *source, int64_t documents, uint32_t longest, int64_t vocab,
                 bool masked, uint64_t key)
{
    *source = (struct source){.documents = documents, .vocab = vocab, .masked = masked};
    for (int64_t d = 0; d < documents; d++) {
        source->length[d] = draw(key, (uint64_t)d, longest + 1);
        source->tokens += source->length[d];
    }
    if (source->tokens == 0) {
        source->length[0] = source->tokens = 1;
    }
    assert_true(source->tokens <= MOST_TOKENS);
    for (int64_t i = 0; i < source->tokens; i++) {
        source->ids[i] = draw(key + 1, (uint64_t)i, (uint32_t)vocab);
        source->mask[i] = draw(key + 2, (uint64_t)i, 3) > 0;
    }
    source->ids[0] = (uint32_t)vocab - 1; /* the largest there is */
}

static enum status write_source(const struct source *source, const char *path)
{
    const struct token_writer_options options = {.vocab_size = source->vocab,
                                                 .eos_id = 7,
                                                 .tokenizer = "none",
                                                 .tokenizer_hash = "abc",
                                                 .loss_mask = source->masked};
    struct token_writer *writer = NULL;
    enum status status = token_writer_open(&writer, path, &options);
    for (int64_t d = 0, at = 0; d < source->documents && status == STATUS_OK; d++) {
        status = token_writer_add(writer, source->ids + at,
                                  source->masked ? source->mask + at : NULL, source->length[d]);
        at += source->length[d];
    }
    if (status != STATUS_OK) {
        token_writer_abandon(writer);
        return status;
    }
    return token_writer_close(writer);
}

static void expect_same(const struct token_store *store, const struct source *source)
{
    assert_int_equal(store->tokens, source->tokens);
    assert_int_equal(store->documents, source->documents);
    assert_int_equal(store->vocab_size, source->vocab);
    assert_int_equal(store->eos_id, 7);
    assert_int_equal(store->width, source->vocab <= 65536 ? 2 : 4);
    assert_string_equal(store->tokenizer, "none");
    assert_string_equal(store->tokenizer_hash, "abc");
    assert_int_equal(store->mask_at > 0, source->masked);
    for (int64_t d = 0, at = 0; d < source->documents; d++) {
        assert_int_equal(store->document_offsets[d], at);
        for (int64_t i = 0; i < source->length[d]; i++, at++) {
            assert_int_equal(token_store_get(store, at), source->ids[at]);
            assert_int_equal(token_store_document(store, at), d);
            assert_int_equal(token_store_counts(store, at),
                             !source->masked || source->mask[at] != 0);
        }
        int32_t ids[100]; /* of this document and beyond */
        uint8_t counts[100];
        const int64_t left = store->tokens - at, some = left < 100 ? left : 100;
        token_store_run(store, at, some, ids, counts);
        for (int64_t i = 0; i < some; i++) {
            assert_int_equal(ids[i], source->ids[at + i]);
            assert_true(counts[i] == (!source->masked || source->mask[at + i] != 0));
        }
    }
}

static void test_round_trip(void **state)
{
    (void)state;
    static const struct {
        int64_t documents, vocab;
        uint32_t longest;
        bool masked;
    } cases[] = {
        {1, 2, 0, false},       {1, 65536, 100, false},   {50, 65536, 20, true},
        {50, 65537, 20, false}, {200, 16777216, 1, true}, {3, 300, 1300, true},
    };
    static struct source source;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct token_store store;
        fill(&source, cases[i].documents, cases[i].longest, cases[i].vocab, cases[i].masked, i);
        assert_int_equal(write_source(&source, "folder/made/here.h5"), STATUS_OK);
        assert_int_equal(token_store_open(&store, "folder/made/here.h5"), STATUS_OK);
        expect_same(&store, &source);
        token_store_close(&store);
        token_store_close(&store);
    }
    assert_false(io_exists("folder/made/here.h5.tmp"));
    assert_false(io_exists("folder/made/here.h5.tokens.tmp"));
    assert_false(io_exists("folder/made/here.h5.mask.tmp"));
}

static void test_writer_refuses(void **state)
{
    (void)state;
    static struct source source;
    fill(&source, 3, 10, 300, true, 1);
    source.ids[source.tokens - 1] = 300;
    assert_int_equal(write_source(&source, "a.h5"), STATUS_DATA);
    expect_message("token id 300 is not below the vocabulary size 300");
    source.documents = 0;
    assert_int_equal(write_source(&source, "a.h5"), STATUS_DATA);
    expect_message("a.h5: the inputs hold no tokens");
    put("plain", "");
    fill(&source, 3, 10, 300, true, 1);
    assert_int_equal(write_source(&source, "plain/a.h5"), STATUS_IO);
    expect_message("plain");
    assert_false(io_exists("a.h5") || io_exists("a.h5.tokens.tmp") || io_exists("a.h5.mask.tmp"));
}

/* --- bad files --- */

static enum status try_open(const char *path)
{
    struct token_store store;
    const enum status status = token_store_open(&store, path);
    if (status == STATUS_OK) { /* what was accepted can be used whole */
        for (int64_t i = 0; i < store.tokens; i++) {
            assert_true(token_store_get(&store, i) < store.vocab_size);
            (void)token_store_counts(&store, i);
            assert_true(token_store_document(&store, i) < store.documents);
        }
    }
    token_store_close(&store);
    return status;
}

static void test_not_a_token_file(void **state)
{
    (void)state;
    static const char zeros[4096];
    assert_int_equal(try_open("gone.h5"), STATUS_IO);
    expect_message("gone.h5");
    put("empty.h5", "");
    assert_int_equal(try_open("empty.h5"), STATUS_DATA);
    expect_message("empty.h5: the file is empty");
    put("text.h5", "hello, this is text\n");
    assert_int_equal(try_open("text.h5"), STATUS_DATA);
    expect_message("text.h5: not a whole HDF5 file");
    assert_int_equal(io_write_file("zeros.h5", zeros, sizeof zeros), STATUS_OK);
    assert_int_equal(try_open("zeros.h5"), STATUS_DATA);
    assert_int_equal(io_make_dir("folder.h5"), STATUS_OK);
    assert_int_not_equal(try_open("folder.h5"), STATUS_OK);
    expect_message("folder.h5");
}

static char *good_file(size_t *bytes)
{
    static struct source source;
    char *data = NULL;
    fill(&source, 20, 40, 300, true, 3);
    assert_int_equal(write_source(&source, "good.h5"), STATUS_OK);
    assert_int_equal(io_read_file("good.h5", &data, bytes, (size_t)1 << 20), STATUS_OK);
    return data;
}

static void test_truncated_at_any_length(void **state)
{
    (void)state;
    size_t bytes = 0;
    char *data = good_file(&bytes);
    struct io_file file;
    assert_int_equal(io_create(&file, "cut.h5"), STATUS_OK);
    assert_int_equal(io_pwrite(&file, data, bytes, 0), STATUS_OK);
    for (size_t length = bytes - 1; length > 11; length -= length > 200 ? 11 : 1) {
        assert_int_equal(io_truncate(&file, (int64_t)length), STATUS_OK);
        assert_int_equal(try_open("cut.h5"), STATUS_DATA);
        expect_message("cut.h5");
    }
    assert_int_equal(io_close(&file), STATUS_OK);
    free(data);
}

/* Every byte of the file damaged in turn: refused, or harmless; never a crash. */
static void test_damaged_anywhere(void **state)
{
    (void)state;
    size_t bytes = 0;
    int refused = 0;
    char *data = good_file(&bytes);
    struct io_file file;
    assert_int_equal(io_create(&file, "bad.h5"), STATUS_OK);
    assert_int_equal(io_pwrite(&file, data, bytes, 0), STATUS_OK);
    for (size_t at = 0; at < bytes; at += at < 2048 ? 1 : 5) {
        const char flipped = (char)(data[at] ^ (1 << draw(9, at, 8)));
        assert_int_equal(io_pwrite(&file, &flipped, 1, (int64_t)at), STATUS_OK);
        const enum status status = try_open("bad.h5");
        assert_true(status == STATUS_OK || status == STATUS_DATA);
        refused += status == STATUS_DATA;
        assert_int_equal(io_pwrite(&file, &data[at], 1, (int64_t)at), STATUS_OK);
    }
    assert_int_equal(try_open("bad.h5"), STATUS_OK);
    assert_true(refused > 500); /* the metadata alone is that much */
    assert_int_equal(io_close(&file), STATUS_OK);
    free(data);
}

/* A file as somebody else's program might write it. */
struct foreign {
    const char *what; /* as the message should say, "" when it is a good file */
    hid_t token_type; /* 0: uint16 */
    int rank;         /* of tokens; 0: 1 */
    bool chunked, unwritten, no_offsets, no_attributes, variable_text, mask_first;
    int64_t version, vocab; /* 0: 1; 100 */
    int64_t offsets[3];     /* 0, 0, 0: good ones */
    int64_t masks;          /* length of loss_mask, 0: none */
};

static void add_dataset(hid_t file, const char *name, hid_t type, int rank, int64_t count,
                        const void *data, const struct foreign *f)
{
    const hsize_t dims[2] = {(hsize_t)count, 1};
    const hid_t space = H5Screate_simple(rank, dims, NULL), list = H5Pcreate(H5P_DATASET_CREATE);
    if (f->chunked) {
        H5Pset_chunk(list, rank, dims);
    }
    const hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    if (!f->unwritten || strcmp(name, "tokens") != 0) {
        const hid_t memory = H5Tget_class(type) == H5T_FLOAT ? H5T_NATIVE_FLOAT : type;
        assert_true(H5Dwrite(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    }
    H5Dclose(set);
    H5Pclose(list);
    H5Sclose(space);
}

static void add_attribute(hid_t file, const char *name, const char *text, int64_t number,
                          bool variable)
{
    const hid_t space = H5Screate(H5S_SCALAR),
                type = text != NULL ? H5Tcopy(H5T_C_S1) : H5Tcopy(H5T_STD_I64LE);
    if (text != NULL) {
        H5Tset_size(type, variable ? H5T_VARIABLE : strlen(text) + 1);
    }
    const hid_t set = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    const void *fixed = text != NULL ? (const void *)text : (const void *)&number;
    assert_true(H5Awrite(set, type, variable ? (const void *)&text : fixed) >= 0);
    H5Aclose(set);
    H5Tclose(type);
    H5Sclose(space);
}

static void write_foreign(const struct foreign *f)
{
    enum { TOKENS = 6 };
    static const uint64_t ids[TOKENS] = {0}; /* zeros in every type */
    static const uint8_t mask[2 * TOKENS] = {1, 1, 1, 1, 1, 1};
    const bool given = f->offsets[0] != 0 || f->offsets[1] != 0 || f->offsets[2] != 0;
    const int64_t good[3] = {0, 2, TOKENS}, version = f->version != 0 ? f->version : 1;
    const hid_t file = H5Fcreate("foreign.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    if (f->masks > 0 && f->mask_first) {
        add_dataset(file, "loss_mask", H5T_STD_U8LE, 1, f->masks, mask, f);
    }
    add_dataset(file, "tokens", f->token_type != 0 ? f->token_type : H5T_STD_U16LE,
                f->rank != 0 ? f->rank : 1, TOKENS, ids, f);
    if (!f->no_offsets) {
        add_dataset(file, "document_offsets", H5T_STD_I64LE, 1, 3, given ? f->offsets : good, f);
    }
    if (f->masks > 0 && !f->mask_first) {
        add_dataset(file, "loss_mask", H5T_STD_U8LE, 1, f->masks, mask, f);
    }
    if (!f->no_attributes) {
        add_attribute(file, "format_version", NULL, version, false);
        add_attribute(file, "vocab_size", NULL, f->vocab != 0 ? f->vocab : 100, false);
        add_attribute(file, "eos_id", NULL, -1, false);
        add_attribute(file, "tokenizer", "none", 0, f->variable_text);
        add_attribute(file, "tokenizer_hash", "", 0, f->variable_text);
    }
    assert_true(H5Fclose(file) >= 0);
}

static void test_foreign_hdf5(void **state)
{
    (void)state;
    const struct foreign cases[] = {
        {.what = ""},
        {.what = "", .masks = 6},
        {.what = "", .masks = 6, .mask_first = true, .token_type = H5T_STD_U32LE},
        {.what = "", .token_type = H5T_STD_I32LE},
        {.what = "", .offsets = {0, 0, 6}},
        {.what = "", .offsets = {0, 6, 6}},
        {.what = "chunked", .chunked = true},
        {.what = "of not whole numbers", .token_type = H5T_IEEE_F32LE},
        {.what = "not a token file", .token_type = H5T_STD_U16BE},
        {.what = "not a token file", .token_type = H5T_STD_U8LE},
        {.what = "not a token file", .token_type = H5T_STD_U64LE},
        {.what = "not a token file", .rank = 2},
        {.what = "not a token file", .unwritten = true},
        {.what = "not a token file", .no_offsets = true},
        {.what = "an attribute is missing", .no_attributes = true},
        {.what = "attribute", .variable_text = true},
        {.what = "format version 2, this program reads 1", .version = 2},
        {.what = "token id 0, but its vocab_size is -1", .vocab = -1},
        {.what = "document_offsets", .offsets = {1, 2, 6}},
        {.what = "document_offsets", .offsets = {0, 2, 5}},
        {.what = "document_offsets", .offsets = {0, 2, 7}},
        {.what = "document_offsets", .offsets = {0, 7, 6}},
        {.what = "document_offsets", .offsets = {0, -1, 6}},
        {.what = "not a token file", .masks = 5},
        {.what = "not a token file", .masks = 7},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_foreign(&cases[i]);
        const enum status status = try_open("foreign.h5");
        const bool good = cases[i].what[0] == '\0';
        if (status != (good ? STATUS_OK : STATUS_DATA)) {
            fail_msg("case %zu (%s): status %d, %s", i, cases[i].what, status, status_message());
        }
        if (!good) {
            expect_message("foreign.h5");
            expect_message(strncmp(cases[i].what, "of not", 6) == 0 ? "whole numbers"
                                                                    : cases[i].what);
        }
    }
}

/* An id that the file's own vocab_size excludes would index past the embedding. */
static void test_token_beyond_vocabulary(void **state)
{
    (void)state;
    size_t bytes = 0;
    char *data = good_file(&bytes);
    static struct source source;
    fill(&source, 20, 40, 300, true, 3); /* as in good_file */
    char *at = NULL;
    uint16_t first[8];
    for (int i = 0; i < 8; i++) {
        first[i] = (uint16_t)source.ids[i];
    }
    at = memmem(data, bytes, first, sizeof first);
    assert_non_null(at);
    first[3] = 300;
    memcpy(at, first, sizeof first);
    assert_int_equal(io_write_file("bad.h5", data, bytes), STATUS_OK);
    assert_int_equal(try_open("bad.h5"), STATUS_DATA);
    expect_message("bad.h5: token id 300, but its vocab_size is 300");
    free(data);
}

/* --- loader --- */

enum { MOST_BATCH = 64 };

struct arrays {
    int32_t ids[MOST_BATCH], labels[MOST_BATCH], positions[MOST_BATCH], first[MOST_BATCH];
};

static struct batch batch_of(struct arrays *arrays)
{
    return (struct batch){arrays->ids, arrays->labels, arrays->positions, arrays->first};
}

/* The rules of design "Batches", said token by token. */
static int64_t expected_sample(const struct source *source, const struct loader *loader,
                               int64_t sample, struct arrays *out)
{
    const int64_t length = loader->sequence_length;
    int64_t document[MOST_TOKENS], start[MOST_TOKENS], labels = 0;
    for (int64_t d = 0, at = 0; d < source->documents; d++) {
        const int64_t begin = at;
        for (int64_t i = 0; i < source->length[d]; i++, at++) {
            document[at] = d;
            start[at] = begin;
        }
    }
    for (int64_t t = 0; t < length; t++) {
        const int64_t token = sample * length + t, next = token + 1;
        const int64_t from = start[token] - sample * length;
        const bool counts = next < source->tokens && (!source->masked || source->mask[next] != 0) &&
                            (!loader->mask_documents || document[next] == document[token]);
        out->ids[t] = (int32_t)source->ids[token];
        out->labels[t] = counts ? (int32_t)source->ids[next] : -1;
        out->first[t] = loader->mask_documents && from > 0 ? (int32_t)from : 0;
        out->positions[t] = (int32_t)t - out->first[t];
        labels += counts;
    }
    return labels;
}

static void expect_sample(const struct source *source, const struct loader *loader,
                          const struct arrays *got, int64_t slot, int64_t sample, int64_t *labels)
{
    static struct arrays expected;
    const int64_t length = loader->sequence_length, at = slot * length;
    const size_t bytes = (size_t)length * sizeof(int32_t);
    *labels += expected_sample(source, loader, sample, &expected);
    assert_memory_equal(got->ids + at, expected.ids, bytes);
    assert_memory_equal(got->labels + at, expected.labels, bytes);
    assert_memory_equal(got->positions + at, expected.positions, bytes);
    assert_memory_equal(got->first + at, expected.first, bytes);
}

static void check_loader(const struct source *source, const struct token_store *store,
                         int64_t length, bool shuffle, bool mask_documents)
{
    struct loader loader;
    static struct arrays arrays;
    struct batch batch = batch_of(&arrays);
    const int64_t count = MOST_BATCH / length;
    assert_int_equal(loader_init(&loader, store, length, shuffle, mask_documents, 11), STATUS_OK);
    assert_int_equal(loader.samples, source->tokens / length);
    for (int64_t position = 0; position < 2 * loader.samples + 1; position += count) {
        int64_t labels = 0;
        const int64_t counted = loader_batch(&loader, &batch, position, count);
        for (int64_t i = 0; i < count; i++) {
            const int64_t sample = loader_sample(&loader, position + i);
            assert_true(sample >= 0 && sample < loader.samples);
            assert_true(shuffle || sample == (position + i) % loader.samples);
            expect_sample(source, &loader, &arrays, i, sample, &labels);
        }
        assert_int_equal(counted, labels);
    }
}

static void test_batches_follow_the_rules(void **state)
{
    (void)state;
    static const int64_t lengths[] = {1, 3, 4, 7, 16};
    static struct source source;
    for (uint64_t i = 0; i < 8; i++) {
        struct token_store store;
        fill(&source, 12, i % 2 == 0 ? 9 : 40, i < 4 ? 300 : 70000, (i & 2) != 0, 100 + i);
        assert_int_equal(write_source(&source, "a.h5"), STATUS_OK);
        assert_int_equal(token_store_open(&store, "a.h5"), STATUS_OK);
        for (size_t l = 0; l < sizeof lengths / sizeof lengths[0]; l++) {
            for (int flags = 0; flags < 4; flags++) {
                check_loader(&source, &store, lengths[l], (flags & 1) != 0, (flags & 2) != 0);
            }
        }
        token_store_close(&store);
    }
}

/* A worked example by hand: 10 tokens, T = 4; two samples, the last two tokens are no input. */
static void test_worked_example(void **state)
{
    (void)state;
    static struct source source = {.ids = {10, 11, 12, 13, 14, 15, 16, 17, 18, 19},
                                   .mask = {1, 1, 0, 1, 1, 1, 1, 1, 1, 1},
                                   .length = {3, 3, 4},
                                   .documents = 3,
                                   .tokens = 10,
                                   .vocab = 20,
                                   .masked = true};
    static const int32_t labels[] = {11, -1, -1, 14, 15, -1, 17, 18};
    static const int32_t positions[] = {0, 1, 2, 0, 0, 1, 0, 1}, first[] = {0, 0, 0, 3, 0, 0, 2, 2};
    static struct arrays arrays;
    struct batch batch = batch_of(&arrays);
    struct token_store store;
    struct loader loader;
    assert_int_equal(write_source(&source, "a.h5"), STATUS_OK);
    assert_int_equal(token_store_open(&store, "a.h5"), STATUS_OK);
    assert_int_equal(loader_init(&loader, &store, 4, false, true, 0), STATUS_OK);
    assert_int_equal(loader_batch(&loader, &batch, 0, 2), 5);
    assert_memory_equal(arrays.labels, labels, sizeof labels);
    assert_memory_equal(arrays.positions, positions, sizeof positions);
    assert_memory_equal(arrays.first, first, sizeof first);
    /* One sample of all: its last label lies beyond the last token. */
    assert_int_equal(loader_init(&loader, &store, 10, false, false, 0), STATUS_OK);
    assert_int_equal(loader_batch(&loader, &batch, 5, 1), 8);
    assert_int_equal(arrays.labels[8], 19);
    assert_int_equal(arrays.labels[9], -1);
    assert_int_equal(loader_init(&loader, &store, 11, false, false, 0), STATUS_DATA);
    expect_message("a.h5: 10 tokens hold no sample of 11");
    token_store_close(&store);
}

/* Without shuffle, micro-batch u of step s holds samples (s-1)G + u*m ..., on every layout. */
static void test_file_order(void **state)
{
    (void)state;
    enum { T = 2, G = 6, M = 2, SAMPLES = 100 };
    static struct source source;
    static struct arrays arrays;
    struct batch batch = batch_of(&arrays);
    struct token_store store;
    struct loader loader;
    source = (struct source){.documents = 1, .tokens = T * SAMPLES, .vocab = T * SAMPLES};
    source.length[0] = source.tokens;
    for (uint32_t i = 0; i < T * SAMPLES; i++) {
        source.ids[i] = i;
    }
    assert_int_equal(write_source(&source, "a.h5"), STATUS_OK);
    assert_int_equal(token_store_open(&store, "a.h5"), STATUS_OK);
    assert_int_equal(loader_init(&loader, &store, T, false, false, 5), STATUS_OK);
    for (int64_t s = 1; s <= 40; s++) {
        for (int64_t u = 0; u < G / M; u++) {
            const int64_t from = (s - 1) * G + u * M;
            (void)loader_batch(&loader, &batch, from, M);
            for (int64_t i = 0; i < M; i++) {
                assert_int_equal(arrays.ids[i * T], (from + i) % SAMPLES * T);
            }
        }
    }
    token_store_close(&store);
}

static void test_shuffle_is_a_permutation_per_epoch(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 2, 3, 5, 64, 1000, 4097};
    static int64_t order[2][4097];
    static uint8_t seen[4097];
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        const int64_t samples = counts[c];
        struct loader loader = {
            .sequence_length = 1, .samples = samples, .shuffle = true, .seed = 42};
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            memset(seen, 0, sizeof seen);
            memcpy(order[1], order[0], sizeof order[0]);
            for (int64_t i = 0; i < samples; i++) {
                const int64_t sample = loader_sample(&loader, epoch * samples + i);
                assert_true(sample >= 0 && sample < samples && seen[sample] == 0);
                seen[sample] = 1;
                order[0][i] = sample;
            }
            const size_t bytes = (size_t)samples * sizeof order[0][0];
            assert_true(samples < 64 || epoch == 0 || memcmp(order[0], order[1], bytes) != 0);
        }
        loader.seed = 43;
        int64_t same = 0;
        for (int64_t i = 0; i < samples; i++) {
            same += loader_sample(&loader, 2 * samples + i) == order[0][i];
        }
        assert_true(samples < 64 || same < samples / 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_round_trip),
        SCRATCH_TEST(test_writer_refuses),
        SCRATCH_TEST(test_not_a_token_file),
        SCRATCH_TEST(test_truncated_at_any_length),
        SCRATCH_TEST(test_damaged_anywhere),
        SCRATCH_TEST(test_foreign_hdf5),
        SCRATCH_TEST(test_token_beyond_vocabulary),
        SCRATCH_TEST(test_batches_follow_the_rules),
        SCRATCH_TEST(test_worked_example),
        SCRATCH_TEST(test_file_order),
        cmocka_unit_test(test_shuffle_is_a_permutation_per_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
