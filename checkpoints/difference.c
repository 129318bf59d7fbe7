#include "checkpoints/difference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/blocks.h"
#include "checkpoints/checkpoint.h"
#include "kernels/base/small_float.h"

/* One comparison on its way. */
struct comparison {
    struct checkpoint_reader *a, *b;
    char *buffer_a, *buffer_b; /* a block each */
    struct difference_figures *figures;
    void (*tell)(void *, const struct difference *);
    void *context;
};

static double value(enum dtype dtype, const char *at)
{
    uint32_t word = 0;
    uint16_t half = 0;
    float single;
    switch (dtype) {
    case DTYPE_F32:
        memcpy(&single, at, sizeof single);
        return (double)single;
    case DTYPE_BF16:
        memcpy(&half, at, sizeof half);
        word = (uint32_t)half << 16;
        memcpy(&single, &word, sizeof single);
        return (double)single;
    case DTYPE_F16:
        memcpy(&half, at, sizeof half);
        return (double)f16_to_float(half);
    case DTYPE_E4M3:
        return (double)e4m3_to_float(*(const uint8_t *)at);
    default:
        return 0; /* no tensor of a checkpoint has another */
    }
}

/* Adds `count` elements from index `first` on; sums: of (a - b)^2 and of b^2. */
static void add(struct difference *found, enum dtype dtype, const char *a, const char *b,
                int64_t first, int64_t count, double sums[2])
{
    const size_t width = dtype_bytes(dtype);
    for (int64_t i = 0; i < count; i++) {
        const char *x = a + (size_t)i * width, *y = b + (size_t)i * width;
        const double v = value(dtype, y);
        sums[1] += v * v;
        if (memcmp(x, y, width) == 0) {
            continue;
        }
        const double u = value(dtype, x), gap = fabs(u - v);
        if (found->different++ == 0) {
            found->first = first + i;
            found->first_a = u;
            found->first_b = v;
        }
        sums[0] += gap * gap;
        found->most = isnan(gap) || gap > found->most ? gap : found->most;
    }
}

static bool same_kind(const struct manifest_tensor *a, const struct manifest_tensor *b)
{
    return a->dtype == b->dtype && a->ndim == b->ndim &&
           memcmp(a->shape, b->shape, (size_t)a->ndim * sizeof a->shape[0]) == 0;
}

static enum status compare_values(struct comparison *c, struct difference *found)
{
    const enum dtype dtype = found->a->dtype;
    const int64_t width = (int64_t)dtype_bytes(dtype), step = MANIFEST_BLOCK_BYTES / width;
    double sums[2] = {0, 0};
    found->elements = manifest_elements(found->a);
    for (int64_t at = 0; at < found->elements; at += step) {
        const int64_t some = found->elements - at < step ? found->elements - at : step;
        TRY(checkpoint_read(c->a, found->a->name, at, some, c->buffer_a));
        TRY(checkpoint_read(c->b, found->b->name, at, some, c->buffer_b));
        add(found, dtype, c->buffer_a, c->buffer_b, at, some, sums);
    }
    found->distance = sqrt(sums[0]);
    found->norm = sqrt(sums[1]);
    found->relative = sums[0] == 0 ? 0 : found->distance / found->norm;
    return STATUS_OK;
}

static enum status compare(struct comparison *c, const struct manifest_tensor *a,
                           const struct manifest_tensor *b)
{
    struct difference found = {.name = a != NULL ? a->name : b->name, .a = a, .b = b};
    const bool comparable = a != NULL && b != NULL && same_kind(a, b);
    if (comparable) {
        TRY(compare_values(c, &found));
    }
    if (comparable && found.different == 0) {
        c->figures->same++;
        return STATUS_OK;
    }
    c->figures->different++;
    c->tell(c->context, &found);
    return STATUS_OK;
}

/* Both lists are sorted by name. */
static enum status walk(struct comparison *c)
{
    const struct manifest *a = checkpoint_contents(c->a), *b = checkpoint_contents(c->b);
    int64_t i = 0, j = 0;
    while (i < a->tensors || j < b->tensors) {
        const int order = i == a->tensors   ? 1
                          : j == b->tensors ? -1
                                            : strcmp(a->tensor[i].name, b->tensor[j].name);
        TRY(compare(c, order <= 0 ? &a->tensor[i] : NULL, order >= 0 ? &b->tensor[j] : NULL));
        i += order <= 0;
        j += order >= 0;
    }
    return STATUS_OK;
}

enum status difference_find(const char *a, const char *b, struct difference_figures *figures,
                            void (*tell)(void *, const struct difference *), void *context)
{
    struct comparison c = {.buffer_a = blocks_buffer(),
                           .buffer_b = blocks_buffer(),
                           .figures = figures,
                           .tell = tell,
                           .context = context};
    *figures = (struct difference_figures){0};
    enum status status = c.buffer_a != NULL && c.buffer_b != NULL
                             ? checkpoint_open(&c.a, a)
                             : status_fail(STATUS_RESOURCE, "out of memory for a comparison");
    status = status == STATUS_OK ? checkpoint_open(&c.b, b) : status;
    status = status == STATUS_OK ? walk(&c) : status;
    checkpoint_close(c.a);
    checkpoint_close(c.b);
    free(c.buffer_a);
    free(c.buffer_b);
    return status;
}

enum status difference_tensor(struct checkpoint_reader *a, const char *name_a,
                              struct checkpoint_reader *b, const char *name_b,
                              struct difference *difference)
{
    struct comparison c = {
        .a = a, .b = b, .buffer_a = blocks_buffer(), .buffer_b = blocks_buffer()};
    const struct manifest_tensor *own = manifest_find(checkpoint_contents(a), name_a),
                                 *other = manifest_find(checkpoint_contents(b), name_b);
    enum status status = c.buffer_a != NULL && c.buffer_b != NULL
                             ? STATUS_OK
                             : status_fail(STATUS_RESOURCE, "out of memory for a comparison");
    *difference = (struct difference){.name = name_a};
    if (status == STATUS_OK && own != NULL && other != NULL && same_kind(own, other)) {
        difference->a = own;
        difference->b = other;
        status = compare_values(&c, difference);
    }
    free(c.buffer_a);
    free(c.buffer_b);
    return status;
}
