/* invariance_fp8: those of invariance_families.h that compute in FP8 (act: bf16). Included there.
 */
#ifndef TESTS_INVARIANCE_FP8_H
#define TESTS_INVARIANCE_FP8_H

/* Codes of rows, and their scales row by row: results. */
static struct fp8_rows iv_codes(struct invariance *v, int64_t cols, bool compared)
{
    const int64_t pitch = (v->count + 3) / 4 * 4;
    struct fp8_rows q = {.rows = v->count, .cols = cols, .pitch = pitch};
    q.code = invariance_memory(v, (size_t)(v->count * cols));
    q.scale = invariance_memory(v, (size_t)(fp8_tiles(cols) * pitch) * sizeof(float));
    if (compared) {
        invariance_compare(v, q.code, (size_t)cols, (size_t)(v->count * cols));
        for (int64_t t = 0; t < fp8_tiles(cols); t++) {
            invariance_compare(v, q.scale + t * pitch, sizeof(float),
                               (size_t)v->count * sizeof(float));
        }
    }
    return q;
}

static const struct fp8_rows iv_no_codes = {0};
static const struct fp8_how iv_how = {.power_of_two = false, .accumulate = FP8_ACCUMULATE_DEVICE};

static void iv_fp8_quantize(struct invariance *v)
{
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0);
    const int64_t bytes = fp8_packed_bytes(v->width), small = fp8_e5m6_bytes(v->width);
    v->ops->fp8->quantize(v->device, iv_codes(v, v->width, true), iv_no_codes, x, NULL, v->count,
                          NULL, 1, &iv_how);
    v->ops->fp8->pack(v->device, invariance_out(v, DTYPE_U8, bytes).data, x, NULL, v->count,
                      &iv_how);
    v->ops->fp8->e5m6_pack(v->device, invariance_out(v, DTYPE_U8, small).data, x);
}

static void iv_fp8_combine(struct invariance *v)
{
    int32_t slot[INVARIANCE_POOL];
    for (int64_t i = 0; i < v->count; i++) {
        slot[i] = (int32_t)i;
    }
    const int32_t *slots = invariance_upload(v, slot, (size_t)v->count * sizeof *slot);
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0),
                        dy = invariance_in(v, "dy", v->act, v->width, 0),
                        weight = invariance_in(v, "weight", DTYPE_F32, 1, 0),
                        dweight = invariance_out(v, DTYPE_F32, 1);
    v->ops->fp8->combine_rows_backward(v->device, iv_codes(v, v->width, true), NULL, dweight.data,
                                       dy, x, slots, weight.data, 1, &iv_how);
}

static void iv_fp8_norm(struct invariance *v)
{
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0),
                        w = iv_vector(invariance_fixed(v, "norm", v->act, 1, v->width)),
                        rstd = invariance_out(v, DTYPE_F32, 1), none = {0};
    v->ops->fp8->norm_forward(v->device, iv_codes(v, v->width, true),
                              invariance_out(v, v->act, v->width), none, rstd.data, x, none, w,
                              1e-6F, &iv_how);
}

static void iv_fp8_swiglu(struct invariance *v)
{
    const struct tensor gate_up = invariance_in(v, "gate_up", v->act, 2 * v->inner, 0),
                        dh = invariance_in(v, "dh", v->act, v->inner, 0);
    const int64_t columns = fp8_token_columns(v->count, 1);
    struct fp8_rows t[2] = {{.rows = 2 * v->inner, .cols = columns, .pitch = 2 * v->inner},
                            {.rows = v->inner, .cols = columns, .pitch = v->inner}};
    for (int i = 0; i < 2; i++) { /* of all tokens together: sums */
        t[i].code = invariance_sum(v, DTYPE_U8, t[i].rows, columns).data;
        t[i].scale = invariance_memory(v, (size_t)(t[i].rows * fp8_tiles(columns)) * sizeof(float));
    }
    v->ops->fp8->swiglu_forward(v->device, iv_codes(v, v->inner, true), iv_no_codes, gate_up, NULL,
                                1, &iv_how);
    v->ops->fp8->swiglu_backward(v->device, iv_codes(v, 2 * v->inner, true), t[0], t[1], dh,
                                 gate_up, iv_no_codes, NULL, 1, &iv_how);
}

static void iv_fp8_linear(struct invariance *v)
{
    const struct tensor x = invariance_in(v, "x", v->act, v->width, 0),
                        dy = invariance_in(v, "dy", v->act, v->inner, 0),
                        w = invariance_fixed(v, "w", v->act, v->inner, v->width);
    const struct fp8_rows q = iv_codes(v, v->width, false);
    const int64_t columns = fp8_token_columns(v->count, 1);
    struct fp8_weights codes = {.matrices = 1, .rows = v->inner, .cols = v->width};
    struct fp8_rows t[2] = {{.rows = v->width, .cols = columns, .pitch = v->width},
                            {.rows = v->inner, .cols = columns, .pitch = v->inner}};
    codes.code = invariance_memory(v, (size_t)(v->inner * v->width));
    codes.scale =
        invariance_memory(v, (size_t)(fp8_tiles(v->inner) * fp8_tiles(v->width)) * sizeof(float));
    for (int i = 0; i < 2; i++) {
        t[i].code = invariance_memory(v, (size_t)(t[i].rows * columns));
        t[i].scale = invariance_memory(v, (size_t)(t[i].rows * fp8_tiles(columns)) * sizeof(float));
    }
    v->ops->fp8->quantize_weights(v->device, codes, (struct fp8_weights){0}, w.data,
                                  v->inner * v->width, &iv_how);
    v->ops->fp8->quantize(v->device, q, t[0], x, NULL, v->count, NULL, 1, &iv_how);
    v->ops->fp8->quantize(v->device, iv_no_codes, t[1], dy, NULL, v->count, NULL, 1, &iv_how);
    v->ops->fp8->linear(v->device, invariance_out(v, v->act, v->inner), q, codes, NULL, false,
                        &iv_how);
    v->ops->fp8->linear_weight(v->device, invariance_sum(v, DTYPE_F32, v->inner, v->width).data,
                               v->inner * v->width, t[1], t[0], NULL, 1, v->count, &iv_how);
}

/* Rows by expert, each expert's tokens in tiles of their own. */
static void iv_fp8_grouped(struct invariance *v)
{
    const struct iv_order order = iv_sort(v);
    const struct tensor x = iv_gather(v, invariance_in(v, "x", v->act, v->width, 0), order.row),
                        dy = iv_gather(v, invariance_in(v, "dy", v->act, v->inner, 0), order.row),
                        w = invariance_fixed(v, "w", v->act, IV_EXPERTS * v->inner, v->width);
    const int64_t columns = fp8_token_columns(v->count, IV_EXPERTS), matrix = v->inner * v->width;
    const size_t scales = (size_t)(fp8_tiles(v->inner) * fp8_tiles(v->width)) * sizeof(float);
    struct fp8_weights codes = {.matrices = IV_EXPERTS, .rows = v->inner, .cols = v->width};
    struct fp8_rows q = iv_codes(v, v->width, false),
                    t[2] = {{.rows = v->width, .cols = columns, .pitch = v->width},
                            {.rows = v->inner, .cols = columns, .pitch = v->inner}};
    struct tensor y = tensor_2d(NULL, v->act, v->count, v->inner);
    y.data = invariance_memory(v, tensor_bytes(&y));
    codes.code = invariance_memory(v, (size_t)(IV_EXPERTS * matrix));
    codes.scale = invariance_memory(v, IV_EXPERTS * scales);
    for (int i = 0; i < 2; i++) {
        t[i].code = invariance_memory(v, (size_t)(t[i].rows * columns));
        t[i].scale = invariance_memory(v, (size_t)(t[i].rows * fp8_tiles(columns)) * sizeof(float));
    }
    v->ops->fp8->quantize_weights(v->device, codes, (struct fp8_weights){0}, w.data, matrix,
                                  &iv_how);
    v->ops->fp8->quantize(v->device, q, t[0], x, NULL, v->count, order.offset, IV_EXPERTS, &iv_how);
    v->ops->fp8->quantize(v->device, iv_no_codes, t[1], dy, NULL, v->count, order.offset,
                          IV_EXPERTS, &iv_how);
    v->ops->fp8->linear(v->device, y, q, codes, order.offset, false, &iv_how);
    v->ops->gather_rows(v->device, invariance_out(v, v->act, v->inner), y, order.back);
    v->ops->fp8->linear_weight(v->device,
                               invariance_sum(v, DTYPE_F32, IV_EXPERTS * v->inner, v->width).data,
                               matrix, t[1], t[0], order.offset, IV_EXPERTS, v->count, &iv_how);
}

/* As integers: an expert is a row. */
static void iv_fp8_fixed(struct invariance *v)
{
    enum { TOKENS = 7 };
    static const struct fixed_point scale = {.scale = 0x1p40F, .limit = 0x1p62F};
    const int64_t rows = v->count * TOKENS, columns = fp8_token_columns(rows, v->count),
                  matrix = v->inner * v->width, cols[2] = {v->width, v->inner};
    const int64_t *boundaries = iv_boundaries(v, TOKENS);
    struct fixed_point *point = invariance_upload(v, &scale, sizeof scale);
    float *unit = invariance_memory(v, (size_t)matrix * sizeof *unit);
    struct fp8_rows t[2]; /* x, dy */
    for (int i = 0; i < 2; i++) {
        const struct tensor from =
            invariance_in(v, i == 0 ? "x" : "dy", v->act, TOKENS * cols[i], 0);
        t[i] = (struct fp8_rows){.rows = cols[i], .cols = columns, .pitch = cols[i]};
        t[i].code = invariance_memory(v, (size_t)(cols[i] * columns));
        t[i].scale = invariance_memory(v, (size_t)(cols[i] * fp8_tiles(columns)) * sizeof(float));
        v->ops->fp8->quantize(v->device, iv_no_codes, t[i],
                              tensor_2d(from.data, v->act, rows, cols[i]), NULL, rows, boundaries,
                              v->count, &iv_how);
    }
    v->ops->fixed->fp8_linear_weight(v->device, invariance_out(v, DTYPE_I64, matrix).data, matrix,
                                     unit, t[1], t[0], boundaries, v->count, 1, rows, NULL, &iv_how,
                                     point);
}

#endif
