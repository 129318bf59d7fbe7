/* libFuzzer target: any text as a manifest. What is accepted prints to a text that reads back as
 * the same. The hash over the text is made right first, so that what lies behind it is reached. */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/manifest.h"
#include "kernels/base/hash.h"

static const char KEY[] = "\"manifest_hash\"";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* The text up to its hash, with the right one; owned by caller. */
static char *hashed(const uint8_t *data, size_t bytes)
{
    char *text = malloc(bytes + 64), hex[17];
    assert(text != NULL);
    memcpy(text, data, bytes);
    text[bytes] = '\0';
    char *key = strstr(text, KEY);
    const size_t length = key != NULL ? (size_t)(key - text) : strlen(text);
    hash_hex(hex, hash_bytes(text, length));
    snprintf(text + length, 64, "%s:\"%s\"}\n", KEY, hex);
    return text;
}

static void read_back(const struct manifest *manifest)
{
    struct manifest again;
    char *text = manifest_print(manifest);
    assert(text != NULL);
    const enum status status = manifest_parse(&again, "again", text);
    assert(status == STATUS_OK && again.files == manifest->files &&
           again.tensors == manifest->tensors && again.step == manifest->step);
    for (int64_t i = 0; i < again.tensors; i++) {
        const struct manifest_tensor *a = &again.tensor[i], *b = &manifest->tensor[i];
        assert(strcmp(a->name, b->name) == 0 && a->pieces == b->pieces && a->hash == b->hash &&
               a->hashed == b->hashed);
        assert(manifest_find(&again, a->name) != NULL);
        for (int64_t p = 0; p < a->pieces; p++) {
            const struct manifest_piece *piece = &a->piece[p];
            assert(piece->file < again.files && piece->offset >= 0 && piece->count >= 0);
            assert(piece->offset + piece->count * (int64_t)dtype_bytes(a->dtype) <=
                   again.file[piece->file].bytes);
            assert(piece->run == 0 || (piece->run > 0 && piece->run < piece->stride &&
                                       piece->stride == a->shape[a->ndim - 1]));
        }
    }
    manifest_free(&again);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct manifest manifest;
    char *text = hashed(data, bytes);
    if (manifest_parse(&manifest, "fuzz", text) == STATUS_OK) {
        read_back(&manifest);
    }
    manifest_free(&manifest);
    free(text);
    return 0;
}
