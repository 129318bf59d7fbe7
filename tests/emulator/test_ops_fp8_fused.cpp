/* FP8's fused movers: the bytes of the plain CUDA kernels followed by quantize; beside the CPU
 * device's at most neighbouring codes. */
#include "fp8_case.h"

/* Codes that may differ from the CPU's. A number is off by 2^-21 of itself at most, so it rounds to
 * another bf16 with a chance of about 2^-12, which becomes another code with one of about 2^-4. */
static constexpr double FLIPS = 0x1p-13;

static void quantized(fp8_operand &want, operand &x, const fp8_how *how)
{
    cuda_fp8_quantize(nullptr, want.on_cuda(), {}, x.cuda, nullptr, want.rows, nullptr, 0, how);
}

static bool norm(struct device *device)
{
    const int64_t shapes[][3] = {{0, 48, 1},  {1, 16, 0},   {3, 144, 1},
                                 {5, 528, 0}, {2, 2064, 1}, {2, 7168, 1}};
    bool right = true;
    for (const int64_t(&s)[3] : shapes) {
        for (int two = 0; two < 2; two++) {
            const int64_t rows = s[0], width = s[1];
            ops_case c(device, DTYPE_BF16, SHIFT_NONE, "norm R=%d C=%d", (int)rows, (int)width);
            operand &x = fp8_numbers(c, "x", rows, width, width == 528);
            operand &delta = s[2] ? c.random("delta", DTYPE_BF16, rows, width) : c.none("delta");
            operand &w = c.random("w", DTYPE_BF16, 1, width);
            operand &plain_y = c.poison("plain y", DTYPE_BF16, rows, width);
            operand &plain_sum = c.poison("plain sum", DTYPE_BF16, rows, width);
            operand &plain_rstd = c.poison("plain rstd", DTYPE_F32, rows, 1);
            operand &y = two ? c.poison("y", DTYPE_BF16, rows, width) : c.none("y");
            operand &sum = c.poison("sum", DTYPE_BF16, rows, width);
            operand &rstd = c.poison("rstd", DTYPE_F32, rows, 1);
            fp8_operand q = fp8_rows_of(c, "q", rows, width),
                        want = fp8_rows_of(c, "want", rows, width);
            fp8_hows how = fp8_hows_of(c, two), plain = fp8_hows_of(c, two);
            c.upload();
            c.ops->fp8->norm_forward(device, q.on_cpu(), y.cpu, sum.cpu, rstd.on_cpu<float>(),
                                     x.cpu, delta.cpu, w.cpu, 1e-5F, &how.cpu);
            cuda_fp8_norm_forward(nullptr, q.on_cuda(), y.cuda, sum.cuda, rstd.on_cuda<float>(),
                                  x.cuda, delta.cuda, w.cuda, 1e-5F, &how.cuda);
            cuda_norm_forward(nullptr, plain_y.cuda, plain_sum.cuda, plain_rstd.on_cuda<float>(),
                              x.cuda, delta.cuda, w.cuda, 1e-5F);
            quantized(want, plain_y, &plain.cuda);
            c.download();
            fp8_fused(c, q, want, FLIPS);
            same_bytes(c, rstd, plain_rstd);
            same_bytes(c, sum, plain_sum);
            same_bytes(c, how.counters, plain.counters);
            plain_y.compared = true;
            if (two) {
                same_bytes(c, y, plain_y);
            }
            right = c.finish() && right;
        }
    }
    return right;
}

/* R, F, groups; tiles of F end where gate does, or not. */
static const int64_t swiglu_shapes[][3] = {{0, 128, 0},   {1, 16, 1},   {7, 48, 0},   {129, 144, 3},
                                           {129, 128, 4}, {40, 272, 2}, {130, 256, 0}};

static bool swiglu_forward(struct device *device)
{
    bool right = true;
    for (const int64_t(&s)[3] : swiglu_shapes) {
        for (int two = 0; two < 2; two++) {
            const int64_t rows = s[0], width = s[1];
            const bool keep = two || width == 128;
            ops_case c(device, DTYPE_BF16, SHIFT_NONE, "swiglu R=%d F=%d%s", (int)rows, (int)width,
                       keep ? " kept" : "");
            operand &gate_up = fp8_numbers(c, "gate_up", rows, 2 * width, rows == 129);
            operand &offset = fp8_groups_of(c, rows, s[2]);
            operand &plain_h = c.poison("plain h", DTYPE_BF16, rows, width);
            fp8_operand h = fp8_rows_of(c, "h", rows, width);
            fp8_operand want = fp8_rows_of(c, "want", rows, width);
            fp8_operand kept = fp8_rows_of(c, "kept", rows, 2 * width, keep);
            fp8_operand plain_kept = fp8_rows_of(c, "plain kept", rows, 2 * width, keep);
            fp8_hows how = fp8_hows_of(c, two), plain = fp8_hows_of(c, two);
            c.upload();
            c.ops->fp8->swiglu_forward(device, h.on_cpu(), kept.on_cpu(), gate_up.cpu,
                                       offset.on_cpu<int64_t>(), s[2], &how.cpu);
            cuda_fp8_swiglu_forward(nullptr, h.on_cuda(), kept.on_cuda(), gate_up.cuda,
                                    offset.on_cuda<int64_t>(), s[2], &how.cuda);
            cuda_swiglu_forward(nullptr, plain_h.cuda, gate_up.cuda);
            cuda_fp8_quantize(nullptr, want.on_cuda(), {}, plain_h.cuda, nullptr, rows,
                              offset.on_cuda<int64_t>(), s[2], &plain.cuda);
            if (keep) {
                cuda_fp8_quantize(nullptr, plain_kept.on_cuda(), {}, gate_up.cuda, nullptr, rows,
                                  offset.on_cuda<int64_t>(), s[2], &plain.cuda);
            }
            c.download();
            plain_h.compared = true;
            fp8_fused(c, h, want, FLIPS);
            fp8_fused(c, kept, plain_kept, 0);
            same_bytes(c, how.counters, plain.counters);
            right = c.finish() && right;
        }
    }
    return right;
}

/* From gate_up itself, or from the codes kept of it; both gradients' orientations and h. */
static bool swiglu_backward(struct device *device)
{
    bool right = true;
    for (const int64_t(&s)[3] : swiglu_shapes) {
        for (int codes = 0; codes < 2; codes++) {
            const int64_t rows = s[0], width = s[1], groups = s[2];
            /* Values of codes with power-of-two scales are bf16's: the plain kernel can read them.
             */
            const bool two = codes || width != 144;
            ops_case c(device, DTYPE_BF16, SHIFT_NONE, "swiglu backward R=%d F=%d groups=%d%s",
                       (int)rows, (int)width, (int)groups, codes ? " of codes" : "");
            operand &gate_up = fp8_numbers(c, "gate_up", rows, 2 * width, rows == 129 && !codes);
            operand &dh = fp8_numbers(c, "dh", rows, width);
            operand &offset = fp8_groups_of(c, rows, groups);
            operand &gradient = c.poison("gradient", DTYPE_BF16, rows, 2 * width);
            operand &plain_h = c.poison("plain h", DTYPE_BF16, rows, width);
            fp8_operand kept = fp8_rows_of(c, "kept", rows, 2 * width);
            fp8_operand d = fp8_rows_of(c, "d", rows, 2 * width);
            fp8_operand dt = fp8_tokens_of(c, "dt", rows, 2 * width, groups);
            fp8_operand ht = fp8_tokens_of(c, "ht", rows, width, groups);
            fp8_operand want_d = fp8_rows_of(c, "want d", rows, 2 * width);
            fp8_operand want_dt = fp8_tokens_of(c, "want dt", rows, 2 * width, groups);
            fp8_operand want_ht = fp8_tokens_of(c, "want ht", rows, width, groups);
            fp8_hows how = fp8_hows_of(c, two), plain = fp8_hows_of(c, two);
            const struct fp8_how quiet = {two, FP8_ACCUMULATE_DEVICE, nullptr};
            if (codes) { /* gate_up becomes what they stand for */
                c.ops->fp8->quantize(device, kept.on_cpu(), {}, gate_up.cpu, nullptr, rows, nullptr,
                                     0, &quiet);
                for (int64_t i = 0; i < rows * 2 * width; i++) {
                    const int64_t r = i / (2 * width), tile = i % (2 * width) / 128;
                    gate_up.on_cpu<uint16_t>()[i] =
                        bf16_from_float(e4m3_to_float(kept.code.on_cpu<uint8_t>()[i]) *
                                        kept.scale.on_cpu<float>()[tile * kept.pitch + r]);
                }
            }
            c.upload();
            const struct tensor none = {};
            c.ops->fp8->swiglu_backward(device, d.on_cpu(), dt.on_cpu(), ht.on_cpu(), dh.cpu,
                                        codes ? none : gate_up.cpu, kept.on_cpu(),
                                        offset.on_cpu<int64_t>(), groups, &how.cpu);
            cuda_fp8_swiglu_backward(nullptr, d.on_cuda(), dt.on_cuda(), ht.on_cuda(), dh.cuda,
                                     codes ? none : gate_up.cuda, kept.on_cuda(),
                                     offset.on_cuda<int64_t>(), groups, &how.cuda);
            cuda_swiglu_backward(nullptr, gradient.cuda, tensor{}, dh.cuda, gate_up.cuda);
            cuda_swiglu_forward(nullptr, plain_h.cuda, gate_up.cuda);
            cuda_fp8_quantize(nullptr, want_d.on_cuda(), want_dt.on_cuda(), gradient.cuda, nullptr,
                              rows, offset.on_cuda<int64_t>(), groups, &plain.cuda);
            cuda_fp8_quantize(nullptr, {}, want_ht.on_cuda(), plain_h.cuda, nullptr, rows,
                              offset.on_cuda<int64_t>(), groups, &quiet);
            c.download();
            gradient.compared = plain_h.compared = true;
            fp8_fused(c, d, want_d, FLIPS);
            fp8_fused(c, dt, want_dt, FLIPS);
            fp8_fused(c, ht, want_ht, FLIPS);
            same_bytes(c, how.counters, plain.counters);
            right = c.finish() && right;
        }
    }
    return right;
}

/* Slots in shuffled rows; every fifth dropped, so that some rows belong to nobody. */
static bool combine(struct device *device)
{
    const int64_t shapes[][3] = {{0, 2, 16}, {1, 1, 16}, {7, 3, 48}, {9, 8, 144}, {2, 6, 7168}};
    bool right = true;
    for (const int64_t(&s)[3] : shapes) {
        for (int packs = 0; packs < 2; packs++) {
            const int64_t tokens = s[0], top_k = s[1], width = s[2], rows = tokens * top_k;
            ops_case c(device, DTYPE_BF16, SHIFT_NONE, "combine N=%d K=%d C=%d%s", (int)tokens,
                       (int)top_k, (int)width, packs ? " packed" : "");
            operand &x = fp8_numbers(c, "x", rows, width),
                    &dy = fp8_numbers(c, "dy", tokens, width, width == 144);
            operand &slot_row = c.fill("slot_row", DTYPE_I32, tokens, top_k, [=](int64_t i) {
                return i % 5 == 4 ? -1.0 : (double)rng_permute(3, (uint64_t)i, (uint64_t)rows);
            });
            operand &weight = c.random("weight", DTYPE_F32, tokens, top_k);
            operand &dweight = c.poison("dweight", DTYPE_F32, tokens, top_k);
            operand &plain_dweight = c.poison("plain dweight", DTYPE_F32, tokens, top_k);
            operand &plain_dx = c.poison("plain dx", DTYPE_BF16, rows, width);
            fp8_operand q = fp8_rows_of(c, "q", rows, width, !packs);
            operand &packed = packs ? c.poison("packed", DTYPE_U8, rows, fp8_packed_bytes(width))
                                    : c.none("packed");
            fp8_hows how = fp8_hows_of(c, tokens != 7);
            c.upload();
            c.ops->fp8->combine_rows_backward(
                device, q.on_cpu(), packed.on_cpu<uint8_t>(), dweight.on_cpu<float>(), dy.cpu,
                x.cpu, slot_row.on_cpu<int32_t>(), weight.on_cpu<float>(), top_k, &how.cpu);
            cuda_fp8_combine_rows_backward(
                nullptr, q.on_cuda(), packed.on_cuda<uint8_t>(), dweight.on_cuda<float>(), dy.cuda,
                x.cuda, slot_row.on_cuda<int32_t>(), weight.on_cuda<float>(), top_k, &how.cuda);
            cuda_combine_rows_backward(nullptr, plain_dx.cuda, plain_dweight.on_cuda<float>(),
                                       dy.cuda, x.cuda, slot_row.on_cuda<int32_t>(),
                                       weight.on_cuda<float>(), top_k);
            c.download();
            plain_dx.compared = true;
            same_bytes(c, dweight, plain_dweight);
            right = c.finish() && right; /* codes, scales and counters: the CPU's */
        }
    }
    return right;
}

static bool test()
{
    bool right = true;
    for (auto part : {norm, swiglu_forward, swiglu_backward, combine}) {
        right = part(cpu_device()) && right;
    }
    return right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
