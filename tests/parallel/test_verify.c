/* verify in bf16 and FP8 where sums are rounded in other places than one rank's: a right layout
 * passes; a reduction over tp, of cp's ring, over the replicas of etp's slices that is missing does
 * not. In fp32: test_tensor.c, test_context.c, test_combinations.c.
 */
#include "axis_check.h"

/* Parts of 128; 256 tokens, so that choices that fall the other way are few of many. */
static const char MIXTRAL[] =
    "run: {steps: 8, seed: 5}\n"
    "model: {family: mixtral, vocab_size: 61, hidden_size: 64, intermediate_size: 256,\n"
    "  num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 4, head_dim: 64,\n"
    "  num_local_experts: 4, num_experts_per_tok: 2, initializer_range: 0.1}\n"
    "train: {sequence_length: 64, micro_batch: 4, global_batch: 16}\n"
    "schedule: {kind: constant, warmup_steps: 0}\n";
static const char V3[] =
    "run: {steps: 8, seed: 5}\n"
    "model: {family: deepseek_v3, vocab_size: 61, hidden_size: 64, intermediate_size: 128,\n"
    "  moe_intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,\n"
    "  first_k_dense_replace: 1, n_routed_experts: 8, n_shared_experts: 1,\n"
    "  num_experts_per_tok: 3, n_group: 4, topk_group: 2, q_lora_rank: 32, kv_lora_rank: 32,\n"
    "  qk_nope_head_dim: 16, qk_rope_head_dim: 16, v_head_dim: 16, initializer_range: 0.1}\n"
    "router: {bias_update_speed: 0.001}\n"
    "train: {sequence_length: 64, micro_batch: 4, global_batch: 16}\n"
    "schedule: {kind: constant, warmup_steps: 0}\n";

static const struct {
    const char *text, *axis, *precision;
    size_t group; /* over which nothing is added up */
    int ranks;    /* at least */
} cases[] = {
    {MIXTRAL, "parallel.tp=2", "train.precision=bf16", offsetof(struct mesh, tp), 2},
    {MIXTRAL, "parallel.tp=2", "train.precision=fp8", offsetof(struct mesh, tp), 2},
    {V3, "parallel.tp=2", "train.precision=bf16", offsetof(struct mesh, tp), 2},
    {V3, "parallel.cp=2", "train.precision=bf16", offsetof(struct mesh, cp), 2},
    {MIXTRAL, "parallel.cp=2", "train.precision=bf16", offsetof(struct mesh, cp), 2},
    {V3, "parallel.etp=2", "train.precision=bf16", offsetof(struct mesh, edp), 4},
    {MIXTRAL, "parallel.etp=2", "train.precision=fp8", offsetof(struct mesh, edp), 4},
};

static bool verified(struct comm *world, size_t i, const char *folder, bool lies)
{
    static struct tiny tiny;
    const char *overrides[TINY_OVERRIDES] = {cases[i].axis, cases[i].precision};
    CHECK(world, tiny_open(&tiny, world, cases[i].text, overrides) == STATUS_OK);
    return axis_verified(world, &tiny, folder, cases[i].group, lies);
}

static void test_verify(struct comm *world)
{
    char folder[64];
    axis_folder(world, folder, sizeof folder);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (world->size < cases[i].ranks || (world->size > cases[i].ranks && !axis_full())) {
            continue;
        }
        const bool right = verified(world, i, folder, false),
                   wrong = verified(world, i, folder, true);
        CHECK(world, world->rank != 0 || right);
        CHECK(world, world->rank != 0 || !wrong);
    }
    axis_folder_end(world, folder);
}

int main(void)
{
    static const struct ranks_test tests[] = {RANKS_TEST(test_verify)};
    return RANKS_MAIN(tests);
}
