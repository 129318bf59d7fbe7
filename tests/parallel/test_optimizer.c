/* optimizer: on any number of replicas, with any layout of experts, the same bits as on one rank:
 * gradients are small integers, so their sums are exact. Frozen parameters stay; Muon's matrices
 * are shared out whole and evenly. */
#include <math.h>

#include "kernels/base/rng.h"
#include "parallel/ranks.h"
#include "trainer/optimizer.h"

static const char BASE[] = "run: {seed: 5, steps: 9}\n"
                           "model:\n"
                           "  vocab_size: 67\n"
                           "  hidden_size: 24\n"
                           "  intermediate_size: 20\n"
                           "  num_hidden_layers: 2\n"
                           "  num_attention_heads: 3\n"
                           "  num_key_value_heads: 1\n"
                           "  num_local_experts: 4\n"
                           "train: {sequence_length: 16, micro_batch: 1, global_batch: 4}\n";

/* Latent attention, a dense layer, shared experts, multi-token prediction. */
static const char LATENT[] = "run: {seed: 5, steps: 9}\n"
                             "model:\n"
                             "  family: deepseek_v3\n"
                             "  vocab_size: 67\n"
                             "  hidden_size: 24\n"
                             "  intermediate_size: 36\n"
                             "  moe_intermediate_size: 20\n"
                             "  num_hidden_layers: 2\n"
                             "  first_k_dense_replace: 1\n"
                             "  num_attention_heads: 3\n"
                             "  n_routed_experts: 4\n"
                             "  num_experts_per_tok: 2\n"
                             "  q_lora_rank: 12\n"
                             "  kv_lora_rank: 10\n"
                             "  qk_nope_head_dim: 6\n"
                             "  qk_rope_head_dim: 4\n"
                             "  v_head_dim: 5\n"
                             "  num_nextn_predict_layers: 1\n"
                             "train: {sequence_length: 16, micro_batch: 1, global_batch: 4}\n";

enum { STEPS = 3, MOST_OVERRIDES = 6 };

struct variant {
    const char *overrides[MOST_OVERRIDES];
    const char *base; /* NULL: BASE */
    int tp, etp;      /* 0: 1 */
};

/* One model and what it stands on. */
struct place {
    struct config config;
    struct mesh mesh;
    struct device *device;
    struct model model;
};

static enum status place_open(struct comm *world, struct comm *ranks, int ep,
                              const struct variant *variant, struct place *place)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    char *list[MOST_OVERRIDES];
    int count = 0;
    for (; count < MOST_OVERRIDES && variant->overrides[count] != NULL; count++) {
        list[count] = (char *)(uintptr_t)variant->overrides[count];
    }
    *place = (struct place){0};
    config_init(&place->config);
    const char *base = variant->base != NULL ? variant->base : BASE;
    CHECK(world, config_parse(&place->config, "base", base, strlen(base)) == STATUS_OK);
    CHECK(world, config_override(&place->config, list, count) == STATUS_OK);
    TRY(optimizer_check(&place->config));
    CHECK(world, device_open(&place->device, &options) == STATUS_OK);
    const bool alone = ranks->size == 1;
    const struct mesh_shape shape = {.pp = 1,
                                     .tp = alone || variant->tp == 0 ? 1 : variant->tp,
                                     .cp = 1,
                                     .ep = ep,
                                     .etp = alone || variant->etp == 0 ? 1 : variant->etp};
    CHECK(world, mesh_init(&place->mesh, ranks, &shape, 4) == STATUS_OK);
    return model_init(&place->model, &place->config, &place->mesh, place->device, 1, 16, true);
}

static void place_close(struct place *place)
{
    model_free(&place->model);
    mesh_free(&place->mesh);
    device_close(place->device);
    config_free(&place->config);
}

/* A small integer of a parameter's element, part 0 the gradient itself. */
static float number(const struct param *param, int64_t i, int step, int part)
{
    const uint64_t key = rng_subkey(rng_key((uint64_t)step, param->name), (uint64_t)part);
    uint32_t bits[4];
    rng_bits(key, (uint64_t)i, bits);
    return (float)((int)(bits[0] % 17) - 8);
}

/* Every replica has a part of it. */
static void fill_gradient(const struct model *model, const struct param *param, int step)
{
    const struct model_group *group = &model->group[param->group];
    const struct comm *comm = group->zero.comm;
    float *grad = shards_grad(group, param->offset);
    for (int64_t i = 0; i < param->count; i++) {
        const int64_t at = param_run(param, i, i + 1).whole;
        float own = number(param, at, step, comm->rank);
        for (int r = 1; r < comm->size && comm->rank == 0; r++) {
            own -= number(param, at, step, r);
        }
        grad[i] = own;
    }
}

/* As backward does: a part after the other, from behind. */
static void fill_gradients(struct model *model, int step)
{
    model_zero_grads(model);
    for (int64_t part = model->params.parts - 1; part >= 0; part--) {
        shards_open(model, part);
        for (int64_t p = 0; p < model->params.count; p++) {
            const struct param *param = &model->params.table[p];
            const struct model_group *group = &model->group[param->group];
            if (group->shards.on ? zero_find(&group->zero, param->offset) == part : part == 0) {
                fill_gradient(model, param, step);
            }
        }
        shards_close(model, part);
    }
}

/* Of the gradients that count, from the integers. */
static double expected_norm(const struct model *whole, int step)
{
    double sum = 0;
    for (int64_t p = 0; p < whole->params.count; p++) {
        const struct param *param = &whole->params.table[p];
        for (int64_t i = 0; i < param->count && !param->frozen; i++) {
            sum += (double)number(param, i, step, 0) * (double)number(param, i, step, 0);
        }
    }
    return sqrt(sum);
}

static const struct param *find(const struct model *model, const char *name)
{
    for (int64_t p = 0; p < model->params.count; p++) {
        if (strcmp(model->params.table[p].name, name) == 0) {
            return &model->params.table[p];
        }
    }
    return NULL;
}

/* `width` bytes an element: elements [from, to) of a part, the first of which stands at `own`, and
 * where the whole parameter, which begins at `all`, has them. */
static bool same_runs(const struct param *param, int64_t from, int64_t to, const void *own,
                      const void *all, size_t width)
{
    const char *a = own;
    while (from < to) {
        const struct param_run run = param_run(param, from, to);
        const size_t bytes = (size_t)run.count * width;
        if (memcmp(a, (const char *)all + (size_t)run.whole * width, bytes) != 0) {
            return false;
        }
        a += bytes;
        from += run.count;
    }
    return true;
}

/* Weights everywhere; of this rank's share masters, moments and average: the bits of the model on
 * one rank. */
static void expect_same(struct comm *world, const struct model *model, const struct model *whole)
{
    for (int64_t p = 0; p < model->params.count; p++) {
        const struct param *param = &model->params.table[p], *other = find(whole, param->name);
        const struct model_group *a = &model->group[param->group];
        const struct param_piece piece = param_piece(param, &a->zero, a->zero.comm->rank);
        const size_t act = dtype_bytes(model->act), moment = dtype_bytes(model->moments);
        CHECK(world, other != NULL);
        const struct model_group *b = &whole->group[other->group];
        CHECK(world,
              same_runs(param, 0, param->count, (char *)a->weights + (size_t)param->offset * act,
                        (char *)b->weights + (size_t)other->offset * act, act));
        if (piece.first >= piece.last) {
            continue;
        }
        const int64_t from = piece.first - param->offset, to = piece.last - param->offset,
                      whole_at = other->offset;
        const size_t at = (size_t)zero_place(&a->zero, piece.first), there = (size_t)whole_at;
        CHECK(world, same_runs(param, from, to, a->master + at, b->master + there, sizeof(float)));
        CHECK(world, same_runs(param, from, to, (char *)a->moment1 + at * moment,
                               (char *)b->moment1 + there * moment, moment));
        CHECK(world, param->muon || same_runs(param, from, to, (char *)a->moment2 + at * moment,
                                              (char *)b->moment2 + there * moment, moment));
        CHECK(world, a->ema == NULL ||
                         same_runs(param, from, to, a->ema + at, b->ema + there, sizeof(float)));
    }
}

/* A few steps: the same bits behind each. */
static void step_both(struct comm *world, struct model *model, struct model *whole)
{
    struct model *models[] = {whole, model};
    for (int m = 0; m < 2; m++) {
        model_initialize(models[m]);
        optimizer_start_average(models[m]);
    }
    for (int step = 1; step <= STEPS; step++) {
        for (int m = 0; m < 2; m++) {
            fill_gradients(models[m], step);
            const double norm = optimizer_reduce(models[m]);
            CHECK(world, norm == expected_norm(whole, step));
            optimizer_step(models[m], norm, 0.01, step);
        }
        expect_same(world, model, whole);
    }
}

static void run_variant(struct comm *world, struct comm *self, int ep,
                        const struct variant *variant)
{
    struct place place, whole;
    CHECK(world, place_open(world, self, 1, variant, &whole) == STATUS_OK);
    CHECK(world, place_open(world, world, ep, variant, &place) == STATUS_OK);
    step_both(world, &place.model, &whole.model);
    place_close(&place);
    place_close(&whole);
}

/* The same with the state in memory of the host's, brought in parts that cut parameters: of one
 * rank's share and of several. The CPU's windows are copies. */
static void test_offloaded(struct comm *world)
{
    static const struct variant both[][2] = {
        {{.overrides = {"run.device=cuda", "train.precision=bf16", "optimizer.ema=0.9"}},
         {.overrides = {"run.device=cuda", "train.precision=bf16", "optimizer.ema=0.9",
                        "optimizer.offload=true"}}},
        {{.overrides = {"run.device=cuda", "train.precision=fp32", "parallel.zero=2",
                        "optimizer.moments=bf16"}},
         {.overrides = {"run.device=cuda", "train.precision=fp32", "parallel.zero=2",
                        "optimizer.moments=bf16", "optimizer.offload=true"}}},
        {{.overrides = {"run.device=cuda", "train.precision=fp32", "optimizer.name=muon",
                        "optimizer.ema=0.5", "optimizer.freeze=*q_proj*,*experts.3.w2*"}},
         {.overrides = {"run.device=cuda", "train.precision=fp32", "optimizer.name=muon",
                        "optimizer.ema=0.5", "optimizer.freeze=*q_proj*,*experts.3.w2*",
                        "optimizer.offload=true"}}},
        {{.overrides = {"run.device=cuda", "train.precision=bf16", "optimizer.name=muon",
                        "optimizer.ema=0.5", "parallel.zero=2"},
          .base = LATENT},
         {.overrides = {"run.device=cuda", "train.precision=bf16", "optimizer.name=muon",
                        "optimizer.ema=0.5", "parallel.zero=2", "optimizer.offload=true"},
          .base = LATENT}},
    };
    struct comm self;
    comm_split(world, world->rank, 0, &self);
    for (size_t i = 0; i < sizeof both / sizeof both[0]; i++) {
        struct place place, whole;
        CHECK(world, place_open(world, &self, 1, &both[i][0], &whole) == STATUS_OK);
        CHECK(world, place_open(world, world, 1, &both[i][1], &place) == STATUS_OK);
        const int64_t share = place.model.group[PARAM_EXPERT].zero.share;
        CHECK(world, place.model.offload.on && !whole.model.offload.on);
        CHECK(world, place.model.offload.room < share || world->size > 1);
        CHECK(world, model_host_bytes(&place.model) > 0);
        step_both(world, &place.model, &whole.model);
        place_close(&place);
        place_close(&whole);
    }
    comm_free(&self);
}

static const struct variant variants[] = {
    {.overrides = {"train.precision=fp32"}},
    {.overrides = {"train.precision=bf16", "optimizer.moments=bf16", "optimizer.ema=0.9"}},
    {.overrides = {"optimizer.name=muon", "train.precision=fp32", "optimizer.ema=0.5"}},
    {.overrides = {"optimizer.name=muon", "train.precision=bf16", "optimizer.moments=bf16"}},
    {.overrides = {"optimizer.name=muon",
                   "optimizer.freeze=*.1.self_attn.o*,*q_proj*,*experts.3.w2*,*norm*"}},
    {.overrides = {"optimizer.freeze=*"}},
    {.overrides = {"optimizer.name=muon", "optimizer.ema=0.5"}, .base = LATENT},
    {.overrides = {"parallel.zero=2", "train.precision=fp32", "optimizer.ema=0.9"}},
    {.overrides = {"parallel.zero=2", "optimizer.moments=bf16",
                   "optimizer.freeze=*.1.self_attn.o*,*q_a*,*experts.3.up*,*norm*"},
     .base = LATENT},
    {.overrides = {"parallel.zero=2", "optimizer.name=muon", "optimizer.ema=0.5"}, .base = LATENT},
};

/* Matrices that tp or etp divides: heads 4, widths that both divide. bf16 moments are rounded by a
 * noise that is keyed by the element in the part, so fp32 ones. */
static const char DIVIDED[] = "run: {seed: 5, steps: 9}\n"
                              "model:\n"
                              "  vocab_size: 67\n"
                              "  hidden_size: 24\n"
                              "  intermediate_size: 20\n"
                              "  num_hidden_layers: 2\n"
                              "  num_attention_heads: 4\n"
                              "  num_key_value_heads: 4\n"
                              "  num_local_experts: 4\n"
                              "train: {sequence_length: 16, micro_batch: 1, global_batch: 4}\n";

static const struct variant divided[] = {
    {.overrides = {"optimizer.name=muon", "train.precision=fp32", "optimizer.ema=0.5"}},
    {.overrides = {"optimizer.name=muon", "train.precision=bf16",
                   "optimizer.freeze=*.1.self_attn.o*,*q_proj*,*experts.3.w2*,*norm*"}},
    {.overrides = {"optimizer.name=muon", "parallel.zero=2"}},
};

/* Muon's matrices, divided among 2 or all ranks: parts travel, each has its turn. */
static void test_divided(struct comm *world)
{
    struct comm self;
    comm_split(world, world->rank, 0, &self);
    for (size_t i = 0; i < sizeof divided / sizeof divided[0]; i++) {
        for (int ways = 2; ways <= world->size; ways *= 2) {
            struct variant variant = divided[i];
            variant.base = DIVIDED;
            variant.tp = ways;
            run_variant(world, &self, 1, &variant);
            variant.tp = 1;
            variant.etp = ways;
            run_variant(world, &self, world->size / ways, &variant);
            variant.tp = ways;
            run_variant(world, &self, 1, &variant);
        }
    }
    comm_free(&self);
}

static void test_same_bits(struct comm *world)
{
    struct comm self;
    comm_split(world, world->rank, 0, &self);
    for (size_t i = 0; i < sizeof variants / sizeof variants[0]; i++) {
        for (int ep = 1; ep <= world->size; ep *= 2) {
            run_variant(world, &self, ep, &variants[i]);
        }
    }
    comm_free(&self);
}

/* Weights, moments and average of what is frozen do not move by a bit, though they would decay. */
static void test_frozen(struct comm *world)
{
    static const struct variant variant = {
        .overrides = {"optimizer.freeze=*embed*,*experts.2.w1*,*norm*", "optimizer.decay=all",
                      "optimizer.ema=0.3", "train.precision=fp32"}};
    struct place place;
    CHECK(world, place_open(world, world, world->size, &variant, &place) == STATUS_OK);
    struct model *model = &place.model;
    model_initialize(model);
    optimizer_start_average(model);
    float *before[PARAM_GROUPS];
    for (int g = 0; g < model->params.groups; g++) {
        const size_t bytes = (size_t)model->group[g].zero.count * sizeof(float);
        before[g] = ranks_memory(world, bytes);
        memcpy(before[g], model->group[g].weights, bytes);
    }
    for (int step = 1; step <= STEPS; step++) {
        fill_gradients(model, step);
        optimizer_step(model, optimizer_reduce(model), 0.1, step);
    }
    for (int64_t p = 0; p < model->params.count; p++) {
        const struct param *param = &model->params.table[p];
        const struct model_group *group = &model->group[param->group];
        const bool listed = strstr(param->name, "embed") != NULL ||
                            strstr(param->name, "experts.2.w1") != NULL ||
                            strstr(param->name, "norm") != NULL;
        const struct param_piece piece = param_piece(param, &group->zero, group->zero.comm->rank);
        CHECK_EQUAL(world, param->frozen, listed);
        CHECK_EQUAL(world,
                    memcmp(before[param->group] + param->offset,
                           (const float *)group->weights + param->offset,
                           (size_t)param->count * sizeof(float)) == 0,
                    listed);
        for (int64_t i = piece.first; i < piece.last && listed; i++) {
            const int64_t at = zero_place(&group->zero, i);
            CHECK(world, group->ema[at] == group->master[at]);
            CHECK(world, ((const float *)group->moment1)[at] == 0.0F);
            CHECK(world, ((const float *)group->moment2)[at] == 0.0F);
        }
    }
    for (int g = 0; g < model->params.groups; g++) {
        free(before[g]);
    }
    place_close(&place);
}

/* Frozen from a resume on: the average, behind at first, still comes to the weights. */
static void test_frozen_average(struct comm *world)
{
    static const struct variant variant = {
        .overrides = {"optimizer.freeze=*", "optimizer.ema=0.25", "train.precision=fp32"}};
    struct place place;
    CHECK(world, place_open(world, world, world->size, &variant, &place) == STATUS_OK);
    struct model *model = &place.model;
    model_initialize(model);
    for (int g = 0; g < model->params.groups; g++) {
        memset(model->group[g].ema, 0, (size_t)model->group[g].zero.share * sizeof(float));
    }
    for (int step = 1; step <= 20; step++) {
        fill_gradients(model, step);
        optimizer_step(model, optimizer_reduce(model), 0.1, step);
    }
    for (int g = 0; g < model->params.groups; g++) {
        const struct model_group *group = &model->group[g];
        for (int64_t i = 0; i < group->zero.share; i++) {
            CHECK(world,
                  fabsf(group->ema[i] - group->master[i]) <= 1e-6F * fabsf(group->master[i]));
        }
    }
    place_close(&place);
}

/* A pattern is good when it matches on any rank, and refused on all when it matches on none. */
static void test_patterns(struct comm *world)
{
    static const struct variant
        good = {.overrides = {"optimizer.freeze=model.layers.1.*.experts.3.w[12].weight"}},
        bad = {.overrides = {"optimizer.freeze=lm_head.*,*.experts.4.*"}};
    struct place place;
    CHECK(world, place_open(world, world, world->size, &good, &place) == STATUS_OK);
    place_close(&place);
    CHECK_EQUAL(world, place_open(world, world, world->size, &bad, &place), STATUS_USAGE);
    CHECK_MESSAGE(world, "optimizer.freeze: '*.experts.4.*' matches no parameter");
    place_close(&place);
}

/* An update of Muon's is lr 0.2 sqrt(max(rows, cols)) times a nearly orthogonal matrix: so each
 * matrix was orthogonalised whole, as itself. Embedding, head, gate and norms are AdamW's. */
static void check_muon_updates(struct comm *world, const char *base)
{
    const struct variant variant = {
        .overrides = {"optimizer.name=muon", "train.precision=fp32", "optimizer.weight_decay=0"},
        .base = base};
    struct place place;
    CHECK(world, place_open(world, world, 1, &variant, &place) == STATUS_OK);
    struct model *model = &place.model;
    model_initialize(model);
    for (int64_t p = 0; p < model->params.count; p++) {
        const char *name = model->params.table[p].name;
        const bool matrix = strstr(name, "_proj") != NULL || strstr(name, "experts.") != NULL;
        CHECK_EQUAL(world, model->params.table[p].muon, matrix);
    }
    CHECK(world, model->group[PARAM_EXPERT].moment2 == NULL);
    float *before[PARAM_GROUPS];
    for (int g = 0; g < model->params.groups; g++) {
        const size_t bytes = (size_t)model->group[g].zero.count * sizeof(float);
        before[g] = ranks_memory(world, bytes);
        memcpy(before[g], model->group[g].weights, bytes);
    }
    fill_gradients(model, 1);
    optimizer_step(model, optimizer_reduce(model), 0.5, 1);
    for (int64_t p = 0; p < model->params.count; p++) {
        const struct param *param = &model->params.table[p];
        const float *after = model->group[param->group].weights;
        const double most = fmax((double)param->shape[0], (double)param->shape[1]),
                     side = fmin((double)param->shape[0], (double)param->shape[1]);
        double squares = 0;
        for (int64_t i = param->offset; i < param->offset + param->count && param->muon; i++) {
            squares += pow((double)(after[i] - before[param->group][i]), 2);
        }
        squares /= 0.25 * 0.04 * most * side; /* the mean squared singular value */
        CHECK(world, !param->muon || (squares > 0.6 && squares < 1.3));
    }
    for (int g = 0; g < model->params.groups; g++) {
        free(before[g]);
    }
    place_close(&place);
}

static void test_muon_updates(struct comm *world)
{
    check_muon_updates(world, BASE);
    check_muon_updates(world, LATENT);
}

/* Owners: every matrix one, no rank has more than an even share and the dearest matrix. */
static void test_owners(struct comm *world)
{
    static const struct variant variant = {.overrides = {"optimizer.name=muon"}};
    struct place place;
    CHECK(world, place_open(world, world, 1, &variant, &place) == STATUS_OK);
    for (int g = 0; g < place.model.params.groups; g++) {
        const struct model_group *group = &place.model.group[g];
        int64_t load[64] = {0}, all = 0, dearest = 0, owned = 0, received = 0;
        for (int64_t p = 0; p < place.model.params.count; p++) {
            const struct param *param = &place.model.params.table[p];
            const int owner = group->muon.owner[p];
            CHECK_EQUAL(world, owner >= 0, param->muon && (int)param->group == g);
            if (owner >= 0) {
                const int64_t a = param->shape[0], b = param->shape[1], side = a < b ? a : b;
                const int64_t cost = side * (2 * a * b + side * side);
                CHECK(world, owner < world->size);
                load[owner] += cost;
                all += cost;
                dearest = cost > dearest ? cost : dearest;
                owned += owner == world->rank ? param->count : 0;
            }
        }
        for (int r = 0; r < world->size; r++) {
            CHECK(world, load[r] <= all / world->size + dearest);
            received += group->muon.receive[r];
        }
        CHECK_EQUAL(world, received, owned);
    }
    place_close(&place);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_same_bits),    RANKS_TEST(test_divided),        RANKS_TEST(test_offloaded),
        RANKS_TEST(test_frozen),       RANKS_TEST(test_frozen_average), RANKS_TEST(test_patterns),
        RANKS_TEST(test_muon_updates), RANKS_TEST(test_owners),
    };
    return RANKS_MAIN(tests);
}
