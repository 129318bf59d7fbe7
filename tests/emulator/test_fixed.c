/* Sums of gradients as integers (kernels/ops_fixed.h): the CUDA device, on the emulator, and the
 * CPU give the same bits of the same numbers; products are of small integers, so that theirs are
 * exact. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/rng.h"
#include "kernels/device.h"
#include "kernels/ops_fixed.h"

enum { DEVICES = 2, MOST_OUT = 1 << 20 };
static struct device *devices[DEVICES];
static bool right = true;

/* On one device. */
struct side {
    struct device *device;
    const struct ops *ops;
    char *out; /* [MOST_OUT] host: everything that was read back, */
    size_t used;
    void *kept[32]; /* and what to free */
    size_t bytes[32];
    int count;
};

static void *give(struct side *s, const void *host, size_t bytes)
{
    void *data = s->ops->memory_alloc(s->device, bytes + 1);
    s->kept[s->count] = data;
    s->bytes[s->count++] = bytes + 1;
    if (host != NULL) {
        s->ops->upload(s->device, data, host, bytes);
    }
    return data;
}

static void take(struct side *s, const void *data, size_t bytes)
{
    if (s->used + bytes > MOST_OUT) {
        abort();
    }
    s->ops->download(s->device, s->out + s->used, data, bytes);
    s->used += bytes;
}

/* Runs on both devices; everything taken is the same bits. */
static void compare(const char *what, void (*run)(struct side *s, int64_t size), int64_t size)
{
    struct side side[DEVICES];
    for (int d = 0; d < DEVICES; d++) {
        side[d] = (struct side){.device = devices[d], .ops = device_ops(devices[d])};
        side[d].out = malloc(MOST_OUT);
        run(&side[d], size);
        for (int i = 0; i < side[d].count; i++) {
            side[d].ops->memory_free(side[d].device, side[d].kept[i], side[d].bytes[i]);
        }
    }
    if (side[0].used != side[1].used || memcmp(side[0].out, side[1].out, side[0].used) != 0) {
        size_t at = 0;
        while (at < side[0].used && side[0].out[at] == side[1].out[at]) {
            at++;
        }
        printf("%s of %lld: WRONG at byte %zu of %zu\n", what, (long long)size, at, side[0].used);
        right = false;
    }
    free(side[0].out);
    free(side[1].out);
}

static const struct fixed_point scale = {.scale = 0x1p40F, .limit = 0x1p61F};

static void add(struct side *s, int64_t count)
{
    float *x = calloc((size_t)count + 1, sizeof *x);
    int64_t *sum = calloc((size_t)count + 1, sizeof *sum);
    for (int64_t i = 0; i < count; i++) { /* far below a quantum to beyond the limit */
        x[i] = (float)ldexp(rng_normal(1, (uint64_t)i), (int)(i % 90) - 60);
        x[i] = i % 101 == 100 ? (float)NAN : i % 211 == 99 ? -INFINITY : x[i];
        x[i] = i % 97 == 50 ? 0x1p120F : i % 7 == 6 ? ldexpf(1.5F + (float)(i % 4), -40) : x[i];
        sum[i] = (i - count / 2) << 20;
    }
    int64_t *device_sum = give(s, sum, (size_t)count * sizeof *sum);
    float *device_x = give(s, x, (size_t)count * sizeof *x);
    struct fixed_point *fixed = give(s, &scale, sizeof scale);
    s->ops->fixed->add(s->device, device_sum, device_x, count, fixed);
    take(s, device_sum, (size_t)count * sizeof *sum);
    take(s, device_x, (size_t)count * sizeof *x);
    take(s, fixed, sizeof *fixed);
    free(x);
    free(sum);
}

static void decode(struct side *s, int64_t count)
{
    int64_t *sum = calloc((size_t)count + 1, sizeof *sum);
    for (int64_t i = 0; i < count;
         i++) { /* of every size up to 2^62, ties of rounding among them */
        sum[i] = (int64_t)(rng_subkey(2, (uint64_t)i) >> (1 + i % 62)) / 2;
        sum[i] = i % 2 == 0 ? sum[i] : -sum[i];
        sum[i] = i % 13 == 5 ? (1 << 24) + 1 + 2 * (i % 3) : sum[i];
    }
    const int64_t limbs[FIXED_LIMBS] = {1, 2, 3, 4, 5};
    int64_t *square = give(s, limbs, sizeof limbs);
    float *out = give(s, NULL, (size_t)count * sizeof *out);
    const int64_t *own = give(s, sum, (size_t)count * sizeof *sum);
    s->ops->fixed->squares(s->device, square, own, count);
    s->ops->fixed->decode(s->device, out, own, count, 0x1p-40F);
    take(s, out, (size_t)count * sizeof *out);
    take(s, square, sizeof limbs);
    free(sum);
}

static void sources(struct side *s, int64_t local)
{
    enum { RANKS = 3, SLOTS = 5 };
    const struct padded_shape shape = {
        .slots = SLOTS, .experts = local * RANKS, .ranks = RANKS, .pair_slots = SLOTS};
    const int64_t line = local + SLOTS;
    int32_t *message = calloc((size_t)(RANKS * line), sizeof *message);
    for (int64_t i = 0; i < RANKS * line; i++) {
        message[i] = (int32_t)(rng_subkey(3, (uint64_t)i) % 5);
    }
    int64_t *offset = give(s, NULL, (size_t)(local * RANKS + 1) * sizeof *offset);
    s->ops->fixed->expert_sources(
        s->device, offset, give(s, message, (size_t)(RANKS * line) * sizeof *message), &shape);
    take(s, offset, (size_t)(local * RANKS + 1) * sizeof *offset);
    free(message);
}

/* AdamW from integers, and of what decode makes of them: the same bits on the device. */
static void adamw_both(struct side *s, enum dtype moments, int64_t count)
{
    const size_t bytes = (size_t)count * sizeof(float);
    const struct adamw args = {.lr = 0.01F,
                               .beta1 = 0.9F,
                               .beta2 = 0.95F,
                               .eps = 1e-8F,
                               .grad_scale = 0.3F,
                               .step = 2,
                               .moments = moments,
                               .quantum = 0x1p-48F};
    int64_t *host = calloc((size_t)count + 1, sizeof *host);
    char *got[2][4];
    for (int64_t i = 0; i < count; i++) {
        host[i] = (int64_t)(rng_normal(9, (uint64_t)i) * ldexp(1, (int)(i % 62)));
    }
    const int64_t *sum = give(s, host, (size_t)count * sizeof *host);
    float *grad = give(s, NULL, bytes);
    s->ops->fixed->decode(s->device, grad, sum, count, args.quantum);
    for (int k = 0; k < 2; k++) {
        void *const data[4] = {give(s, NULL, bytes), give(s, NULL, bytes), give(s, NULL, bytes),
                               give(s, NULL, bytes)};
        const struct adamw_piece piece = {.param = data[0],
                                          .m = data[1],
                                          .v = data[2],
                                          .out = data[3],
                                          .grad = k == 0 ? grad : NULL,
                                          .sum = k == 0 ? NULL : sum,
                                          .count = count,
                                          .weight_decay = 0.1F,
                                          .key = 5,
                                          .first = 3};
        s->ops->adamw(s->device, &piece, 1, args);
        for (int i = 0; i < 4; i++) {
            got[k][i] = malloc(bytes + 1);
            s->ops->download(s->device, got[k][i], data[i], bytes);
        }
    }
    for (int i = 0; i < 4; i++) {
        if (memcmp(got[0][i], got[1][i], bytes) != 0) {
            printf("adamw of %lld integers, moments of %s: result %d: WRONG\n", (long long)count,
                   dtype_name(moments), i);
            right = false;
        }
        free(got[0][i]);
        free(got[1][i]);
    }
    free(host);
}

static void adamw(struct side *s, int64_t count)
{
    adamw_both(s, DTYPE_F32, count);
    adamw_both(s, DTYPE_BF16, count);
}

/* Rows of (expert, source): some groups have none, the first among them. */
enum { EXPERTS = 3, SOURCES = 2, GROUPS = EXPERTS * SOURCES, OUT = 48, IN = 32 };
static const int64_t boundaries[GROUPS + 1] = {0, 0, 5, 134, 135, 135, 200};
enum { ROWS = 207 /* behind the last group: not there */ };

static void *small_integers(struct side *s, enum dtype dtype, uint64_t key, int64_t count)
{
    char *host = calloc((size_t)count, dtype_bytes(dtype));
    for (int64_t i = 0; i < count; i++) {
        const float value = (float)(rng_subkey(key, (uint64_t)i) % 5) - 2;
        if (dtype == DTYPE_F32) {
            ((float *)(void *)host)[i] = value;
        } else {
            ((uint16_t *)(void *)host)[i] = bf16_from_float(value);
        }
    }
    void *data = give(s, host, (size_t)count * dtype_bytes(dtype));
    free(host);
    return data;
}

/* Some experts' rows are not wanted. */
static const struct fixed_rows live[EXPERTS] = {{0, OUT / 2}, {OUT, OUT}, {OUT / 2, OUT}};

static void weights(struct side *s, int64_t which)
{
    const bool narrow = which % 2 != 0, some = which / 2 != 0;
    const enum dtype dtype = narrow ? DTYPE_BF16 : DTYPE_F32;
    const struct tensor dy = tensor_2d(small_integers(s, dtype, 4, ROWS * OUT), dtype, ROWS, OUT),
                        x = tensor_2d(small_integers(s, dtype, 5, ROWS * IN), dtype, ROWS, IN);
    const size_t bytes = (size_t)(EXPERTS * OUT * IN) * sizeof(int64_t);
    int64_t *sum = give(s, NULL, bytes);
    float *unit = give(s, NULL, (size_t)(OUT * IN) * sizeof *unit);
    struct fixed_point *fixed = give(s, &scale, sizeof scale);
    s->ops->fixed->grouped_backward_weight(s->device, sum, OUT * IN, unit, dy, x,
                                           give(s, boundaries, sizeof boundaries), EXPERTS, SOURCES,
                                           some ? live : NULL, fixed);
    take(s, sum, bytes);
    take(s, unit, (size_t)(OUT * IN) * sizeof *unit);
    take(s, fixed, sizeof *fixed);
}

/* x of 2 small integers' codes, transposed with these groups. */
static struct fp8_rows transposed(struct side *s, uint64_t key, int64_t cols, const int64_t *offset)
{
    static const struct fp8_how how = {.power_of_two = true};
    const int64_t columns = fp8_token_columns(ROWS, GROUPS);
    const struct fp8_rows none = {0};
    struct fp8_rows t = {.rows = cols, .cols = columns, .pitch = cols};
    t.code = give(s, NULL, (size_t)(cols * columns));
    t.scale = give(s, NULL, (size_t)(cols * fp8_tiles(columns)) * sizeof *t.scale);
    s->ops->fp8->quantize(
        s->device, none, t,
        tensor_2d(small_integers(s, DTYPE_BF16, key, ROWS * cols), DTYPE_BF16, ROWS, cols), NULL,
        ROWS, offset, GROUPS, &how);
    return t;
}

static void fp8_weights(struct side *s, int64_t some)
{
    static const struct fp8_how how = {.power_of_two = true, .accumulate = FP8_ACCUMULATE_DEVICE};
    const int64_t *offset = give(s, boundaries, sizeof boundaries);
    const struct fp8_rows dyt = transposed(s, 6, OUT, offset), xt = transposed(s, 7, IN, offset);
    const size_t bytes = (size_t)(EXPERTS * OUT * IN) * sizeof(int64_t);
    int64_t *sum = give(s, NULL, bytes);
    float *unit = give(s, NULL, (size_t)(OUT * IN) * sizeof *unit);
    struct fixed_point *fixed = give(s, &scale, sizeof scale);
    s->ops->fixed->fp8_linear_weight(s->device, sum, OUT * IN, unit, dyt, xt, offset, EXPERTS,
                                     SOURCES, ROWS, some != 0 ? live : NULL, &how, fixed);
    take(s, sum, bytes);
    take(s, unit, (size_t)(OUT * IN) * sizeof *unit);
}

int main(void)
{
    static const char *const names[DEVICES] = {"cpu", "cuda"};
    static const int64_t counts[] = {0, 1, 255, 257, 5000}, chunks[] = {0, 1, 9, 500},
                         locals[] = {1, 2, 40};
    for (int d = 0; d < DEVICES; d++) {
        const struct device_options options = {
            .name = names[d], .threads = 1, .deterministic = true, .layout = true};
        if (device_open(&devices[d], &options) != STATUS_OK) {
            printf("%s\n", status_message());
            return 70;
        }
    }
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        compare("add", add, counts[i]);
    }
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        compare("decode", decode, chunks[i] * FIXED_CHUNK);
    }
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        compare("adamw", adamw, counts[i]);
    }
    for (size_t i = 0; i < sizeof locals / sizeof locals[0]; i++) {
        compare("expert_sources", sources, locals[i]);
    }
    for (int64_t some = 0; some < 2; some++) {
        compare("grouped_backward_weight, f32", weights, 2 * some);
        compare("grouped_backward_weight, bf16", weights, 2 * some + 1);
        compare("fp8_linear_weight", fp8_weights, some);
    }
    if (!device_info(devices[1])->batch_invariant) {
        printf("with `layout` the CUDA device says it is not batch invariant: WRONG\n");
        right = false;
    }
    for (int d = 0; d < DEVICES; d++) {
        device_close(devices[d]);
    }
    return right ? 0 : 1;
}
