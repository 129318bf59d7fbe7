/* Generation with the key/value cache: logits and tokens of a full forward of the context at every
 * token, for every family; the same tokens alone and in a batch. */
#include "unit/scratch.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/base/rng.h"
#include "trainer/model/cache.h"
#include "trainer/sample.h"

enum { CONTEXT = 24, PROMPTS = 4, TOKENS = 40, ROOM = CONTEXT + TOKENS + 8 };

#define SHARED_KEYS                                                                                \
    "  vocab_size: 61\n  hidden_size: 32\n  intermediate_size: 48\n  num_hidden_layers: 3\n"       \
    "  num_attention_heads: 4\n  num_experts_per_tok: 2\n  initializer_range: 0.15\n"
#define LATENT_KEYS                                                                                \
    "  moe_intermediate_size: 24\n  n_routed_experts: 8\n  first_k_dense_replace: 1\n"             \
    "  kv_lora_rank: 20\n  qk_nope_head_dim: 12\n  qk_rope_head_dim: 6\n  v_head_dim: 10\n"        \
    "  n_group: 4\n  topk_group: 2\n"
#define END "train: {sequence_length: 24, micro_batch: 1, global_batch: 1, precision: fp32}\n"

static const char *const models[] = {
    "model:\n  family: mixtral\n" SHARED_KEYS "  num_key_value_heads: 2\n" END,
    "model:\n  family: mixtral\n" SHARED_KEYS "  num_key_value_heads: 2\n  sliding_window: 7\n" END,
    "model:\n  family: deepseek_v2\n" SHARED_KEYS LATENT_KEYS END,
    "model:\n  family: deepseek_v2\n" SHARED_KEYS LATENT_KEYS
    "  q_lora_rank: 14\n  topk_method: group_limited_greedy\n" END,
    "model:\n  family: deepseek_v3\n" SHARED_KEYS LATENT_KEYS
    "  q_lora_rank: 14\n  num_nextn_predict_layers: 1\n" END,
};
enum { MODELS = sizeof models / sizeof models[0] };

struct rig {
    struct config config;
    struct comm world;
    struct mesh mesh;
    struct device *device;
    struct model model;
};

static void check(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("status %d: %s", status, status_message());
    }
}

static void rig_open(struct rig *rig, const char *text, int precision)
{
    const struct device_options options = {.name = "cpu", .threads = 2};
    *rig = (struct rig){0};
    config_init(&rig->config);
    check(config_parse(&rig->config, "test", text, strlen(text)));
    rig->config.train.precision = precision;
    struct architecture arch;
    architecture_init(&arch, &rig->config);
    check(comm_open(&rig->world, "self"));
    const struct mesh_shape shape = mesh_shape_of(1, 1);
    check(mesh_init(&rig->mesh, &rig->world, &shape, arch.experts));
    check(device_open(&rig->device, &options));
    check(model_init(&rig->model, &rig->config, &rig->mesh, rig->device, 1, CONTEXT, false));
    model_initialize(&rig->model);
}

static void rig_close(struct rig *rig)
{
    model_free(&rig->model);
    device_close(rig->device);
    mesh_free(&rig->mesh);
    comm_close(&rig->world);
    config_free(&rig->config);
}

/* Prompts of 1, CONTEXT / 2, CONTEXT and more than CONTEXT tokens. */
static void make_prompts(struct sample_sequence prompts[PROMPTS], int32_t ids[PROMPTS][ROOM])
{
    const int64_t counts[PROMPTS] = {1, CONTEXT / 2, CONTEXT, CONTEXT + 5};
    for (int64_t s = 0; s < PROMPTS; s++) {
        prompts[s] = (struct sample_sequence){ids[s], counts[s]};
        for (int64_t i = 0; i < counts[s]; i++) {
            ids[s][i] = (int32_t)(rng_uniform(3, (uint64_t)(100 * s + i)) * 61);
        }
    }
}

static int32_t largest(const float *logits, int64_t vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return best;
}

/* Logits behind ids[count] by a forward of all of it. */
static void whole(struct model *model, const int32_t *ids, int64_t count, float *logits)
{
    int32_t all[CONTEXT], positions[CONTEXT], labels[CONTEXT], zeros[CONTEXT] = {0};
    for (int32_t i = 0; i < count; i++) {
        all[i] = ids[i];
        positions[i] = i;
        labels[i] = -1;
    }
    const struct batch batch = {all, labels, positions, zeros};
    model_logits(model, &batch, 1, count, count - 1, logits);
}

/* Greedy, in fp32: every token is the one of a full forward of the same context. */
static void test_greedy(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        struct rig rig;
        struct sample_sequence prompts[PROMPTS];
        int32_t ids[PROMPTS][ROOM];
        float logits[64];
        rig_open(&rig, models[m], CONFIG_FP32);
        make_prompts(prompts, ids);
        const struct sample_options options = {.top_p = 1, .eos_id = -1, .context = CONTEXT};
        check(sample_tokens(&rig.model, prompts, PROMPTS, TOKENS, &options));
        make_prompts(prompts, ids);
        for (int64_t s = 0; s < PROMPTS; s++) {
            int64_t start = 0;
            for (int64_t i = prompts[s].count; i < prompts[s].count + TOKENS; i++) {
                while (i - start > CONTEXT) {
                    start += CONTEXT / 2;
                }
                whole(&rig.model, ids[s] + start, i - start, logits);
                if (ids[s][i] != largest(logits, 61)) {
                    fail_msg("model %d, prompt %d, token %d: %d, expected %d", m, (int)s, (int)i,
                             ids[s][i], largest(logits, 61));
                }
            }
        }
        rig_close(&rig);
    }
}

/* Tokens drawn at random, bf16 and fp32: a sequence alone and among others. */
static void test_alone(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * MODELS; i++) {
        struct rig rig;
        struct sample_sequence batch[PROMPTS], alone[PROMPTS];
        int32_t ids[PROMPTS][ROOM], own[PROMPTS][ROOM];
        rig_open(&rig, models[i / 2], i % 2 == 0 ? CONFIG_FP32 : CONFIG_BF16);
        make_prompts(batch, ids);
        make_prompts(alone, own);
        const struct sample_options options = {.temperature = 1,
                                               .top_k = 40,
                                               .top_p = 0.95,
                                               .seed = 5,
                                               .eos_id = 7, /* some end early */
                                               .context = CONTEXT};
        check(sample_tokens(&rig.model, batch, PROMPTS, TOKENS, &options));
        for (int s = 0; s < PROMPTS; s++) {
            check(sample_tokens(&rig.model, &alone[s], 1, TOKENS, &options));
            assert_int_equal(alone[s].count, batch[s].count);
            assert_memory_equal(own[s], ids[s], (size_t)batch[s].count * sizeof(int32_t));
        }
        rig_close(&rig);
    }
}

/* Logits by the cache and by a full forward differ by rounding alone: f32 sums in another order,
 * carried through three layers. */
static void test_logits(void **state)
{
    (void)state;
    for (int m = 0; m < MODELS; m++) {
        struct rig rig;
        struct cache cache;
        struct sample_sequence prompts[PROMPTS];
        int32_t ids[PROMPTS][ROOM];
        float cached[64], full[64];
        rig_open(&rig, models[m], CONFIG_FP32);
        make_prompts(prompts, ids);
        check(cache_init(&cache, &rig.model, 1, CONTEXT));
        cache_prefill(&rig.model, &cache, 0, ids[2], 5, cached);
        for (int32_t length = 5; length <= CONTEXT; length++) {
            double error = 0, norm = 0;
            if (length > 5) {
                cache_decode(&rig.model, &cache, &ids[2][length - 1], &length, cached);
            }
            whole(&rig.model, ids[2], length, full);
            for (int i = 0; i < 61; i++) {
                error += pow((double)cached[i] - (double)full[i], 2);
                norm += pow((double)full[i], 2);
            }
            if (!(sqrt(error) <= 1e-5 * sqrt(norm))) {
                fail_msg("model %d, %d tokens: relative error %g", m, length, sqrt(error / norm));
            }
        }
        cache_free(&cache);
        rig_close(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
