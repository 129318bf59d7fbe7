/* What plan says a rank reserves is what a model on that rank reserves, to the byte, for every
 * family, precision and way to save memory; the kinds add up; and planning allocates none of it.
 */
#include <sys/resource.h>

#include "ranks.h"
#include "tiny_model.h"
#include "trainer/plan/memory.h"
#include "trainer/saving.h"

static void measure(struct comm *world, const struct config *config, struct device *device,
                    int64_t ranks, struct stage_memory *memory)
{
    struct architecture arch;
    architecture_init(&arch, config);
    const struct stage whole = {
        .blocks = architecture_blocks(&arch), .embedding = true, .head = true};
    CHECK(world, memory_of_stage(memory, config, &whole, device, ranks, config->parallel.ep,
                                 true) == STATUS_OK);
}

/* The copy that saves are written from: what is planned is the first rank's, to the byte, and once
 * what it saves; others have the same but for its router biases and the padding of their slices. */
static void compare_copy(struct comm *world, const struct tiny *tiny,
                         const struct stage_memory *planned)
{
    struct saving saving;
    const struct progress_state at = {0};
    size_t saved = 0;
    CHECK(world, saving_init(&saving, &tiny->model, NULL, "", "none", &at, false) == STATUS_OK);
    for (int64_t i = 0; i < saving.slices.count; i++) {
        saved += (size_t)saving.slices.slice[i].count * dtype_bytes(saving.slices.slice[i].dtype);
    }
    const size_t padding = 64 * ((size_t)saving.slices.count + 1), bytes = saving_bytes(&saving);
    CHECK(world, bytes >= saved && bytes <= saved + padding);
    CHECK(world, world->rank > 0 || bytes == planned->staging);
    CHECK(world, bytes <= planned->staging + padding);
    saving_close(&saving);
}

static void compare(struct comm *world, const char *text, const char *const *overrides)
{
    struct tiny tiny;
    struct stage_memory planned;
    size_t sum = 0;
    CHECK(world, tiny_open(&tiny, world, text, overrides) == STATUS_OK);
    measure(world, &tiny.config, tiny.device, world->size, &planned);
    for (int k = 0; k < MODEL_MEMORIES; k++) {
        int64_t most = (int64_t)tiny.model.memory[k]; /* Muon's scratch differs between ranks */
        comm_all_reduce(world, &most, 1, DTYPE_I64, REDUCE_MAX);
        CHECK_EQUAL(world, planned.kind[k], most);
        sum += tiny.model.memory[k];
    }
    CHECK_EQUAL(world, sum, model_bytes(&tiny.model));
    CHECK_EQUAL(world, planned.host, model_host_bytes(&tiny.model));
    compare_copy(world, &tiny, &planned);
    for (int g = 0; g < PARAM_GROUPS; g++) {
        CHECK_EQUAL(world, planned.elements[g], tiny.model.group[g].zero.count);
    }
    tiny_close(&tiny);
}

static void test_planned_is_reserved(struct comm *world)
{
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V2, TINY_V3};
    static const char *const cases[][TINY_OVERRIDES - 1] = {
        {NULL},
        {"train.precision=bf16", "train.recompute=norms"},
        {"train.precision=bf16", "train.recompute=experts", "optimizer.moments=bf16"},
        {"train.precision=bf16", "train.recompute=block", "optimizer.ema=0.99"},
        {"train.precision=bf16", "router.dispatch=padded", "run.deterministic=layout"},
        {"optimizer.name=muon", "router.buffer_factor=1.3", "router.capacity_factor=1"},
        {"parallel.zero=2", "train.precision=bf16"},
        {"parallel.zero=3", "train.precision=bf16"},
        {"parallel.zero=3", "optimizer.ema=0.9"},
        {"parallel.zero=2", "optimizer.name=muon", "run.deterministic=layout"},
        {"run.device=cuda", "optimizer.offload=true", "train.precision=bf16", "optimizer.ema=0.9"},
        {"run.device=cuda", "optimizer.offload=true", "parallel.zero=2", "optimizer.name=muon"},
        {"train.micro_batch=1", "router.z_loss_coef=0.1", "router.sequence_loss_coef=0.1"},
    };
    for (size_t f = 0; f < sizeof texts / sizeof texts[0]; f++) {
        const size_t count = f == 2 ? sizeof cases / sizeof cases[0] : 2; /* V3 has all parts */
        for (size_t i = 0; i < count; i++) {
            for (int ep = 1; ep <= world->size; ep *= 2) {
                const char *overrides[TINY_OVERRIDES] = {0};
                char own[32];
                snprintf(own, sizeof own, "parallel.ep=%d", ep);
                overrides[0] = own;
                memcpy(overrides + 1, cases[i], sizeof cases[i]);
                compare(world, texts[f], overrides);
            }
        }
    }
}

static void test_machines_are_reserved(struct comm *world)
{
    static const char *const cases[][TINY_OVERRIDES] = {
        {"parallel.ep=4", "parallel.ranks_per_node=2"},
        {"parallel.ep=4", "parallel.ranks_per_node=2", "train.precision=bf16",
         "router.buffer_factor=3.3"},
        {"parallel.ep=2", "parallel.etp=2", "parallel.ranks_per_node=2"},
        {"parallel.ep=4", "parallel.ranks_per_node=3"},
    };
    for (size_t i = 0; world->size == 4 && i < sizeof cases / sizeof cases[0]; i++) {
        compare(world, TINY_MIXTRAL, cases[i]);
        compare(world, TINY_V3, cases[i]);
    }
}

static void test_tensor_is_reserved(struct comm *world)
{
    static const char *const cases[][TINY_OVERRIDES] = {
        {"parallel.tp=2", "parallel.ep=2"},
        {"parallel.tp=2", "train.precision=bf16", "train.recompute=norms"},
        {"parallel.tp=2", "parallel.zero=2"},
    };
    for (size_t i = 0; world->size % 2 == 0 && i < sizeof cases / sizeof cases[0]; i++) {
        compare(world, TINY_MIXTRAL, cases[i]);
        compare(world, TINY_V3, cases[i]);
    }
}

/* Two micro-batches, and what a pass has on its way, twice. */
static void test_pairs_are_reserved(struct comm *world)
{
    static const char *const cases[][TINY_OVERRIDES] = {
        {"parallel.ep=2", "parallel.overlap=on", "train.micro_batch=1"},
        {"parallel.ep=2", "parallel.overlap=on", "train.micro_batch=1", "train.precision=bf16",
         "train.recompute=block"},
        {"parallel.etp=2", "parallel.overlap=on", "train.micro_batch=1", "parallel.zero=2"},
    };
    for (size_t i = 0; world->size % 2 == 0 && i < sizeof cases / sizeof cases[0]; i++) {
        compare(world, TINY_MIXTRAL, cases[i]);
        compare(world, TINY_V3, cases[i]);
    }
}

/* Codes where tp divides matrices, Muon's turns, capacities of divided sequences. */
static void test_divided_is_reserved(struct comm *world)
{
    static const char *const cases[][TINY_OVERRIDES] = {
        {"parallel.tp=2", "train.precision=fp8", "model.hidden_size=32", "model.head_dim=128",
         "model.num_key_value_heads=2", "model.intermediate_size=16", "model.num_hidden_layers=1"},
        {"parallel.tp=2", "optimizer.name=muon", "model.num_key_value_heads=2"},
        {"parallel.tp=2", "optimizer.name=muon", "parallel.zero=2"},
        {"parallel.etp=2", "optimizer.name=muon"},
        {"parallel.tp=2", "router.capacity_factor=1"},
        {"parallel.cp=2", "router.capacity_factor=1"},
    };
    for (size_t i = 0; world->size % 2 == 0 && i < sizeof cases / sizeof cases[0]; i++) {
        compare(world, TINY_MIXTRAL, cases[i]);
    }
}

static void test_context_is_reserved(struct comm *world)
{
    static const char *const cases[][TINY_OVERRIDES] = {
        {"parallel.cp=2", "parallel.ep=2", "router.z_loss_coef=0.1"},
        {"parallel.cp=2", "train.precision=bf16", "train.recompute=norms"},
    };
    for (size_t i = 0; world->size % 2 == 0 && i < sizeof cases / sizeof cases[0]; i++) {
        compare(world, TINY_MIXTRAL, cases[i]);
        compare(world, TINY_V3, cases[i]);
    }
}

/* The weights and codes of a stage, as the stage for itself is estimated; a layer's are 30 KB. */
static void compare_stage(struct comm *world, const struct tiny *tiny)
{
    const struct config *config = &tiny->config;
    const double *blocks = config->parallel.stages.item;
    const bool behind = tiny->mesh.pp.rank > 0;
    const struct stage stage = {.first = behind ? (int64_t)blocks[0] : 0,
                                .blocks = (int64_t)blocks[behind],
                                .embedding = !behind,
                                .head = behind};
    struct stage_memory alone;
    CHECK(world, memory_of_stage(&alone, config, &stage, tiny->device, tiny->mesh.stage.size,
                                 tiny->mesh.ep.size, false) == STATUS_OK);
    const int64_t real = (int64_t)tiny->model.memory[MODEL_WEIGHTS],
                  estimated = (int64_t)alone.kind[MODEL_WEIGHTS];
    CHECK(world, llabs(estimated - real) <= 1024); /* it has a norm at the end, too */
}

/* Every rank of a pipeline: those of a stage alike. */
static void compare_ranks(struct comm *world, const char *text, const char *const *overrides)
{
    struct tiny tiny;
    struct stage_memory planned;
    CHECK(world, tiny_open(&tiny, world, text, overrides) == STATUS_OK);
    CHECK(world,
          memory_of_rank(&planned, &tiny.config, tiny.mesh.pp.size, tiny.mesh.pp.rank, tiny.device,
                         tiny.mesh.stage.size, tiny.mesh.ep.size, false) == STATUS_OK);
    for (int k = 0; k < MODEL_MEMORIES; k++) {
        CHECK_EQUAL(world, tiny.model.memory[k], planned.kind[k]);
    }
    for (int g = 0; g < PARAM_GROUPS; g++) {
        CHECK_EQUAL(world, planned.elements[g], tiny.model.group[g].zero.count);
    }
    if (tiny.config.parallel.stages.count > 0) {
        compare_stage(world, &tiny);
    }
    tiny_close(&tiny);
}

#define FP8_STAGES                                                                                 \
    "parallel.pp=2", "train.precision=fp8", "model.num_hidden_layers=4", "model.hidden_size=32",   \
        "model.intermediate_size=48", "model.moe_intermediate_size=16", "model.q_lora_rank=16",    \
        "model.kv_lora_rank=16", "model.qk_nope_head_dim=16", "model.qk_rope_head_dim=16",         \
        "model.v_head_dim=16", "model.vocab_size=60"

static void test_pipeline_is_reserved(struct comm *world)
{
    static const char *const cases[][TINY_OVERRIDES] = {
        {"parallel.pp=2", "train.precision=bf16"},
        {"parallel.pp=2", "parallel.virtual_stages=2", "model.num_hidden_layers=4"},
        {"parallel.pp=2", "parallel.zero=2"},
        {"parallel.pp=2", "train.recompute=block", "run.deterministic=layout"},
        {"parallel.pp=2", "parallel.schedule=zero_bubble", "train.precision=bf16"},
        {"parallel.pp=2", "parallel.schedule=zero_bubble", "train.recompute=block"},
        {"parallel.pp=2", "parallel.schedule=zero_bubble", "parallel.tp=2"},
        {"parallel.pp=2", "parallel.schedule=dualpipe_v", "train.micro_batch=1",
         "model.num_hidden_layers=4", "train.recompute=norms"}};
    static const char *const coded[][TINY_OVERRIDES] = {
        {FP8_STAGES, "parallel.stages=[2,2]"},
        {FP8_STAGES, "parallel.stages=[2,2]", "fp8.first_bf16=1"},
        {FP8_STAGES, "parallel.stages=[3,1]", "fp8.first_bf16=1", "fp8.last_bf16=2"},
        {FP8_STAGES, "parallel.stages=[1,3]", "fp8.first_bf16=2"},
        {FP8_STAGES, "parallel.stages=[3,2]", "fp8.last_bf16=1",
         "model.num_nextn_predict_layers=1"}};
    for (size_t i = 0; world->size == 2 && i < sizeof coded / sizeof coded[0]; i++) {
        compare_ranks(world, TINY_V3, coded[i]);
    }
    for (size_t i = 0; world->size % 2 == 0 && i < sizeof cases / sizeof cases[0]; i++) {
        if (cases[i][2] != NULL && strcmp(cases[i][2], "parallel.tp=2") == 0 && world->size < 4) {
            continue;
        }
        compare_ranks(world, TINY_MIXTRAL, cases[i]);
        compare_ranks(world, TINY_V3, cases[i]);
    }
}

/* What FP8 wants of widths: multiples of 16. */
#define CODED_V3                                                                                   \
    "train.precision=fp8", "model.intermediate_size=32", "model.moe_intermediate_size=16",         \
        "model.q_lora_rank=16", "model.kv_lora_rank=32", "model.qk_nope_head_dim=16",              \
        "model.qk_rope_head_dim=16", "model.v_head_dim=16"

static void test_fp8_is_reserved(struct comm *world)
{
    static const char *const wide[TINY_OVERRIDES] = {
        "train.precision=fp8", "model.hidden_size=32",  "model.intermediate_size=48",
        "model.head_dim=16",   "train.recompute=norms", NULL};
    static const char *const mixed[TINY_OVERRIDES] = {
        "train.precision=fp8", "model.hidden_size=32", "model.intermediate_size=48",
        "model.head_dim=16",   "fp8.first_bf16=1",     NULL};
    static const char *const layouts[] = {"parallel.zero=3", "parallel.cp=2", "parallel.pp=2"};
    compare(world, TINY_MIXTRAL, wide);
    compare(world, TINY_MIXTRAL, mixed);
    for (int i = 0; i < 3 && world->size % 2 == 0; i++) {
        const char *const more[TINY_OVERRIDES] = {CODED_V3, layouts[i], i == 2 ? layouts[0] : NULL};
        compare_ranks(world, TINY_V3, more);
    }
}

/* 671 billion parameters on one rank: terabytes, of which none is asked for. */
static void test_nothing_is_allocated(struct comm *world)
{
    struct config config;
    struct device *device = NULL;
    struct stage_memory memory;
    struct rusage usage;
    const struct device_options options = {.name = "cpu", .threads = 1};
    char *overrides[] = {(char[]){"parallel.ep=1"}, (char[]){"parallel.pp=1"}};
    config_init(&config);
    CHECK(world,
          config_load(&config, SOURCE_DIR "/configs/deepseek-v3.yaml", overrides, 2) == STATUS_OK);
    CHECK(world, device_open(&device, &options) == STATUS_OK);
    measure(world, &config, device, 1, &memory);
    CHECK(world, memory.kind[MODEL_MASTERS] > (size_t)2 << 40);
    CHECK(world, getrusage(RUSAGE_SELF, &usage) == 0);
    CHECK(world, usage.ru_maxrss < 300 * 1024);
    device_close(device);
    config_free(&config);
}

int main(void)
{
    const struct ranks_test tests[] = {
        RANKS_TEST(test_planned_is_reserved),   RANKS_TEST(test_tensor_is_reserved),
        RANKS_TEST(test_machines_are_reserved), RANKS_TEST(test_context_is_reserved),
        RANKS_TEST(test_pairs_are_reserved),    RANKS_TEST(test_divided_is_reserved),
        RANKS_TEST(test_pipeline_is_reserved),  RANKS_TEST(test_fp8_is_reserved),
        RANKS_TEST(test_nothing_is_allocated),
    };
    return RANKS_MAIN(tests);
}
