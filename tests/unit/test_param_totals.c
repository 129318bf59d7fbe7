/* The parameter table of every published model adds up to the published totals. Nothing but the
 * table is allocated.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "trainer/model/params.h"

#define MIXTRAL                                                                                    \
    "model: {family: mixtral, num_key_value_heads: 8, num_local_experts: 8, num_experts_per_tok: " \
    "2, "
#define MLA "kv_lora_rank: 512, qk_nope_head_dim: 128, qk_rope_head_dim: 64, v_head_dim: 128, "

static const struct published {
    const char *name, *model;
    int64_t total;          /* buffers of the routers included, prediction modules not */
    double active_billions; /* touched per token, two digits published */
    int64_t mtp;            /* prediction modules, without their copies of embedding and head */
} published[] = {
    {"Mixtral 8x7B",
     MIXTRAL "vocab_size: 32000, hidden_size: 4096, intermediate_size: 14336, "
             "num_hidden_layers: 32, num_attention_heads: 32}",
     46702792704, 12.88, 0},
    {"Mixtral 8x22B",
     MIXTRAL "vocab_size: 32000, hidden_size: 6144, intermediate_size: 16384, "
             "num_hidden_layers: 56, num_attention_heads: 48}",
     140620634112, 39.15, 0},
    {"DeepSeek-V2",
     "model: {family: deepseek_v2, vocab_size: 102400, hidden_size: 5120, num_hidden_layers: 60, "
     "num_attention_heads: 128, num_key_value_heads: 128, q_lora_rank: 1536, " MLA
     "first_k_dense_replace: 1, intermediate_size: 12288, moe_intermediate_size: 1536, "
     "n_routed_experts: 160, num_experts_per_tok: 6, n_shared_experts: 2, n_group: 8, "
     "topk_group: 3, topk_method: group_limited_greedy, routed_scaling_factor: 16.0}",
     235741434880, 21.38, 0},
    {"DeepSeek-V2-Lite",
     "model: {family: deepseek_v2, vocab_size: 102400, hidden_size: 2048, num_hidden_layers: 27, "
     "num_attention_heads: 16, num_key_value_heads: 16, q_lora_rank: null, " MLA
     "first_k_dense_replace: 1, intermediate_size: 10944, moe_intermediate_size: 1408, "
     "n_routed_experts: 64, num_experts_per_tok: 6, n_shared_experts: 2, n_group: 1, "
     "topk_group: 1, topk_method: greedy, routed_scaling_factor: 1.0}",
     15706484224, 2.66, 0},
    {"DeepSeek-V3",
     "model: {family: deepseek_v3, vocab_size: 129280, hidden_size: 7168, num_hidden_layers: 61, "
     "num_attention_heads: 128, num_key_value_heads: 128, q_lora_rank: 1536, " MLA
     "first_k_dense_replace: 3, intermediate_size: 18432, moe_intermediate_size: 2048, "
     "n_routed_experts: 256, num_experts_per_tok: 8, n_shared_experts: 1, n_group: 8, "
     "topk_group: 4, routed_scaling_factor: 2.5, num_nextn_predict_layers: 1}",
     671026419200, 37.55, 11610067968},
};

/* Elements of the whole model and of its prediction modules, over the tables of all ranks. */
static void count(const struct architecture *arch, int ep_size, int64_t *total, int64_t *mtp)
{
    *total = *mtp = 0;
    for (int rank = 0; rank < ep_size; rank++) {
        struct params params;
        const struct params_place place = {
            .ep_rank = rank, .ep_size = ep_size, .etp_size = 1, .tp_size = 1};
        assert_int_equal(params_init(&params, arch, false, &place), STATUS_OK);
        for (int64_t i = 0; i < params.count; i++) {
            const struct param *param = &params.table[i];
            int64_t elements = 1;
            int block = -1;
            for (int d = 0; d < param->ndim; d++) {
                elements *= param->shape[d];
            }
            assert_int_equal(elements, param->count);
            (void)sscanf(param->name, "model.layers.%d.", &block);
            if (param->group == PARAM_EXPERT || rank == 0) {
                *(block >= arch->layers ? mtp : total) += elements;
            }
        }
        params_free(&params);
    }
}

static void test_totals(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof published / sizeof published[0]; i++) {
        const struct published *is = &published[i];
        struct config config;
        struct architecture arch;
        struct params params;
        char text[1024];
        snprintf(text, sizeof text, "run: {steps: 1}\ntrain: {sequence_length: 4096}\n%s\n",
                 is->model);
        config_init(&config);
        if (config_parse(&config, is->name, text, strlen(text)) != STATUS_OK) {
            fail_msg("%s", status_message());
        }
        architecture_init(&arch, &config);
        const int64_t buffers =
            arch.has_bias ? (arch.layers - arch.dense_layers) * arch.experts : 0;
        for (int ep_size = 1; ep_size <= 8; ep_size *= 8) {
            int64_t total, mtp;
            count(&arch, ep_size, &total, &mtp);
            print_message("  %s, ep %d: %lld and %lld\n", is->name, ep_size, (long long)total,
                          (long long)mtp);
            assert_true(total + buffers == is->total);
            assert_true(mtp == is->mtp);
        }
        const struct params_place place = {.ep_size = 8, .etp_size = 1, .tp_size = 1};
        assert_int_equal(params_init(&params, &arch, false, &place), STATUS_OK);
        assert_true(params.total == is->total);
        assert_true(params.mtp == is->mtp);
        const double active = (double)params.active / 1e9;
        print_message("  %s: %.4f B active, published %.2f\n", is->name, active,
                      is->active_billions);
        assert_true(active > is->active_billions - 0.005 && active < is->active_billions + 0.005);
        params_free(&params);
        config_free(&config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_totals)};
    return cmocka_run_group_tests_name("param_totals", tests, NULL, NULL);
}
