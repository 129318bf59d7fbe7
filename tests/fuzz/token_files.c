/* libFuzzer target: any bytes as a file of tokens: ours, Megatron's index (its .bin has as many
 * bytes as the first two say) or llm.c's. What is accepted can be used whole. */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "data/token_store.h"

/* libhdf5 1.10 forgets some memory when it meets damaged metadata; ours is still watched. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libhdf5\n";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void put(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "w");
    assert(file != NULL && fwrite(data, 1, bytes, file) == bytes && fclose(file) == 0);
}

/* One folder in memory for all, removed at the end. */
static char folder[] = "/dev/shm/switchyard-fuzz-XXXXXX";

static void leave(void)
{
    rmdir(folder);
}

static void enter(void)
{
    static int there;
    if (!there) {
        there = mkdtemp(folder) != NULL && chdir(folder) == 0 && atexit(leave) == 0;
        assert(there);
    }
}

static void use(const struct token_store *store)
{
    assert(store->tokens >= 1 && store->documents >= 1 && store->vocab_size >= 1);
    int32_t ids[300] = {0};
    uint8_t counts[300] = {0};
    for (int64_t i = 0; i < store->tokens; i++) {
        if (i % 300 == 0) {
            token_store_run(store, i, store->tokens - i < 300 ? store->tokens - i : 300, ids,
                            counts);
        }
        const int64_t id = token_store_get(store, i), document = token_store_document(store, i);
        assert(id >= 0 && id < store->vocab_size);
        assert(store->document_offsets[document] <= i && i < store->document_offsets[document + 1]);
        assert(ids[i % 300] == id && counts[i % 300] == token_store_counts(store, i));
    }
    volatile unsigned sum = 0;
    for (size_t i = 0; i < store->tokenizer_file_bytes; i++) {
        sum += (unsigned char)store->tokenizer_file[i];
    }
    assert(token_store_status(store) == STATUS_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static uint8_t tokens[1 << 16];
    struct token_store store;
    if (bytes < 2) {
        return 0;
    }
    enter();
    put("f.idx", data + 2, bytes - 2);
    put("f.bin", tokens, (size_t)data[0] + 256u * data[1]);
    if (token_store_open(&store, "f.idx") == STATUS_OK) {
        use(&store);
    }
    token_store_close(&store);
    unlink("f.idx");
    unlink("f.bin");
    return 0;
}
