/* Whole keys of MLA, put together and taken apart, against plain loops. */
#include "ops_case.h"

struct sizes {
    int64_t tokens, heads, own, rope, v_dim,
        latent; /* latent: columns of k_rope's rows before it */
};

/* k as in the models: rows of [heads][own keys | values]; k_rope behind the latent. */
static struct attention_shape shape_of(const sizes &z)
{
    struct attention_shape s = {};
    s.batch = 1;
    s.sequence = z.tokens;
    s.heads = s.kv_heads = z.heads;
    s.qk_dim = z.own + z.rope;
    s.v_dim = z.v_dim;
    s.k_head_stride = z.own + z.v_dim;
    s.k_stride = z.heads * s.k_head_stride;
    s.rope_dim = z.rope;
    s.k_rope_stride = z.latent + z.rope;
    s.dtype = DTYPE_BF16;
    return s;
}

static void join(const struct attention_shape &s, uint16_t *keys, const uint16_t *k,
                 const uint16_t *k_rope)
{
    const int64_t own = s.qk_dim - s.rope_dim;
    for (int64_t n = 0; n < s.sequence; n++) {
        for (int64_t h = 0; h < s.kv_heads; h++) {
            for (int64_t d = 0; d < s.qk_dim; d++) {
                keys[(n * s.kv_heads + h) * s.qk_dim + d] =
                    d < own ? k[n * s.k_stride + h * s.k_head_stride + d]
                            : k_rope[n * s.k_rope_stride + d - own];
            }
        }
    }
}

static void split(const struct attention_shape &s, uint16_t *dk, uint16_t *dk_rope,
                  const uint16_t *dkeys)
{
    const int64_t own = s.qk_dim - s.rope_dim;
    for (int64_t n = 0; n < s.sequence; n++) {
        for (int64_t d = 0; d < s.qk_dim; d++) {
            float sum = 0;
            for (int64_t h = 0; h < s.kv_heads; h++) {
                const uint16_t part = dkeys[(n * s.kv_heads + h) * s.qk_dim + d];
                if (d < own) {
                    dk[n * s.k_stride + h * s.k_head_stride + d] = part;
                }
                sum += bf16_to_float(part);
            }
            if (d >= own) {
                dk_rope[n * s.k_rope_stride + d - own] = bf16_from_float(sum);
            }
        }
    }
}

/* Bits, not tolerances: the sums run in the same order. */
static bool test()
{
    const sizes all[] = {{0, 2, 16, 8, 8, 0},        {1, 1, 8, 8, 8, 0},   {3, 5, 24, 16, 8, 40},
                         {2, 17, 128, 64, 128, 512}, {37, 3, 0, 8, 16, 8}, {5, 128, 8, 24, 8, 0}};
    bool right = true;
    for (const sizes &z : all) {
        const struct attention_shape s = shape_of(z);
        ops_case c(cpu_device(), DTYPE_BF16, SHIFT_NONE, "keys N=%d G=%d of %d + %d", (int)z.tokens,
                   (int)z.heads, (int)z.own, (int)z.rope);
        operand &k = c.random("k", DTYPE_BF16, z.tokens, s.k_stride);
        operand &k_rope = c.random("k_rope", DTYPE_BF16, z.tokens, s.k_rope_stride);
        operand &keys = c.poison("keys", DTYPE_BF16, z.tokens, z.heads * s.qk_dim);
        operand &dkeys = c.random("dkeys", DTYPE_BF16, z.tokens, z.heads * s.qk_dim);
        operand &dk = c.poison("dk", DTYPE_BF16, z.tokens, s.k_stride);
        operand &dk_rope = c.poison("dk_rope", DTYPE_BF16, z.tokens, s.k_rope_stride);
        c.upload();
        join(s, keys.on_cpu<uint16_t>(), k.on_cpu<uint16_t>(), k_rope.on_cpu<uint16_t>());
        split(s, dk.on_cpu<uint16_t>(), dk_rope.on_cpu<uint16_t>(), dkeys.on_cpu<uint16_t>());
        cuda_attention_join_keys(nullptr, keys.cuda.data, k.cuda.data, k_rope.cuda.data, &s);
        cuda_attention_split_keys(nullptr, dk.cuda.data, dk_rope.cuda.data, dkeys.cuda.data, &s);
        c.download();
        right = c.finish() && right; /* the columns between stay poison on both */
    }
    return right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
