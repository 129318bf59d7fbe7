/* plan's pieces against hand counts: where tokens go and how many bytes that is, stages, and the
 * figures of DeepSeek-V3's published run.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "plan_check.h"
#include "trainer/model/stages.h"
#include "trainer/plan/search.h"

/* --- messages --- */

/* Parts of `bins` that a set of experts touches. */
static int parts_of(unsigned set, int experts, int bins)
{
    unsigned parts = 0;
    for (int e = 0; e < experts; e++) {
        parts |= set >> e & 1u ? 1u << (e / (experts / bins)) : 0;
    }
    return __builtin_popcount(parts);
}

/* The mean over every choice of top_groups groups and then of top_k of their experts. */
static double count_spread(const struct exchange_shape *s, int bins)
{
    const int experts = (int)s->experts, groups = (int)s->groups, each = experts / groups;
    double sum = 0, choices = 0;
    for (unsigned chosen = 0; chosen < 1u << groups; chosen++) {
        unsigned allowed = 0;
        for (int g = 0; g < groups; g++) {
            allowed |= chosen >> g & 1u ? ((1u << each) - 1) << (g * each) : 0;
        }
        if (__builtin_popcount(chosen) != (int)s->top_groups) {
            continue;
        }
        for (unsigned set = allowed;; set = (set - 1) & allowed) {
            if (__builtin_popcount(set) == (int)s->top_k) {
                sum += parts_of(set, experts, bins);
                choices++;
            }
            if (set == 0) {
                break;
            }
        }
    }
    return sum / choices;
}

static void test_spread(void **state)
{
    (void)state;
    static const struct {
        int experts, top_k, groups, top_groups, bins;
    } cases[] = {
        {8, 2, 1, 1, 8},  {8, 2, 1, 1, 2},  {8, 3, 1, 1, 4},  {12, 4, 4, 2, 4}, {12, 4, 4, 2, 12},
        {12, 3, 4, 2, 2}, {12, 3, 2, 1, 4}, {16, 4, 8, 4, 4}, {16, 4, 8, 3, 2}, {16, 2, 8, 7, 4},
        {12, 4, 4, 4, 2}, {12, 2, 6, 1, 3}, {8, 8, 1, 1, 4},  {12, 4, 4, 2, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct exchange_shape shape = {.experts = cases[i].experts,
                                             .top_k = cases[i].top_k,
                                             .groups = cases[i].groups,
                                             .top_groups = cases[i].top_groups};
        char what[32];
        snprintf(what, sizeof what, "case %zu", i);
        expect_near(exchange_spread(&shape, cases[i].bins), count_spread(&shape, cases[i].bins),
                    1e-12, what);
    }
}

/* 64 ranks of 8 on a node, 4096 tokens, 256 experts of which 8, 4 of 8 groups: as DeepSeek-V3. */
static const struct exchange_shape v3 = {.tokens = 4096,
                                         .experts = 256,
                                         .top_k = 8,
                                         .groups = 8,
                                         .top_groups = 4,
                                         .ep = 64,
                                         .etp = 1,
                                         .ranks_per_node = 8,
                                         .by_node = true,
                                         .row_out = 7168 + 56 * 4,
                                         .row_back = 7168 * 2};

static void test_bytes_of_messages(void **state)
{
    (void)state;
    struct exchange_shape x = v3;
    /* one of 4 nodes is missed by all 8 experts with chance C(96,8) / C(128,8) */
    double missed = 1;
    for (int i = 0; i < 8; i++) {
        missed *= (96.0 - i) / (128.0 - i);
    }
    const double nodes = 4 * (1 - missed);
    expect_near(exchange_bytes(&x, EXCHANGE_DISPATCH).network, 4096 * nodes * 7 / 8 * 7392, 1e-12,
                "dispatch by node");
    expect_near(exchange_bytes(&x, EXCHANGE_COMBINE_BACK).network, 4096 * nodes * 7 / 8 * 14336,
                1e-12, "combine by node");
    /* rank to rank, what comes back by slot: 63 of 64 slots leave, 7 of them inside the node */
    x.by_node = false;
    expect_near(exchange_bytes(&x, EXCHANGE_COMBINE).nvlink, 4096.0 * 8 / 64 * 7 * 14336, 1e-12,
                "combine in the node");
    expect_near(exchange_bytes(&x, EXCHANGE_COMBINE).network, 4096.0 * 8 / 64 * 56 * 14336, 1e-12,
                "combine across");
    /* as training does where ranks stand on nodes: tokens by node, all else by slot */
    x.apart = true;
    assert_true(exchange_relays(&x));
    expect_near(exchange_bytes(&x, EXCHANGE_DISPATCH).network, 4096 * nodes * 7 / 8 * 7392, 1e-12,
                "tokens by node");
    expect_near(exchange_bytes(&x, EXCHANGE_DISPATCH_BACK).network, 4096 * nodes * 7 / 8 * 7392,
                1e-12, "gradients by node");
    x.codes = true;
    expect_near(exchange_bytes(&x, EXCHANGE_DISPATCH_BACK).network, 4096.0 * 8 / 64 * 56 * 7392,
                1e-12, "gradients by slot");
    expect_near(exchange_bytes(&x, EXCHANGE_COMBINE).network, 4096.0 * 8 / 64 * 56 * 14336, 1e-12,
                "outputs by slot");
    const struct hardware links = {
        .nvlink = 1e9, .network = 1e8, .link = 1, .network_share = 1, .message = 0.25};
    expect_near(exchange_seconds(&links, &x, EXCHANGE_DISPATCH, false),
                exchange_bytes(&x, EXCHANGE_DISPATCH).network / 1e8 +
                    exchange_bytes(&x, EXCHANGE_DISPATCH).nvlink / 1e9 + 0.5,
                1e-12, "one way behind the other");
    x.top_k = 1; /* one expert is on one node and one rank */
    x.top_groups = 1;
    assert_false(exchange_relays(&x));
    x = v3;
    x.by_node = false;
    /* Mixtral on 8 ranks: two different experts are two different ranks */
    const struct exchange_shape mixtral = {.tokens = 1000,
                                           .experts = 8,
                                           .top_k = 2,
                                           .groups = 1,
                                           .top_groups = 1,
                                           .ep = 8,
                                           .etp = 1,
                                           .ranks_per_node = 8,
                                           .row_out = 100,
                                           .row_back = 10};
    expect_near(exchange_bytes(&mixtral, EXCHANGE_DISPATCH).nvlink, 1000.0 * 2 * 7 / 8 * 100, 1e-12,
                "Mixtral");
    assert_true(exchange_bytes(&mixtral, EXCHANGE_DISPATCH).network == 0);
    /* padded: the worst case to every other rank */
    x.padded = true;
    expect_near(exchange_bytes(&x, EXCHANGE_DISPATCH).network, 56.0 * 4096 * 7392, 1e-12, "padded");
    expect_near(exchange_bytes(&x, EXCHANGE_COMBINE).nvlink, 7.0 * 4096 * 4 * 14336, 1e-12,
                "padded, back");
    x.ep = 1;
    assert_true(exchange_bytes(&x, EXCHANGE_DISPATCH).network == 0);
}

/* Ranks relay in pairs; what is network the cluster's nodes say. */
static void test_relays_are_not_nodes(void **state)
{
    (void)state;
    const double row = 100, tokens = 1000;
    struct exchange_shape x = {.tokens = 1000,
                               .experts = 8,
                               .top_k = 2,
                               .groups = 1,
                               .top_groups = 1,
                               .ep = 8,
                               .etp = 1,
                               .relay_ranks = 2,
                               .apart = true,
                               .row_out = row,
                               .row_back = row};
    /* 2 of 8 experts miss one of 4 pairs with chance (6 5) / (8 7), and hit 2 ranks; of pairs 3 in
     * 4 are others', of a pair's ranks 1 in 2 is another */
    const double first = tokens * 4 * (1 - 30.0 / 56) * 3 / 4 * row, then = tokens * 2 / 2 * row;
    static const struct {
        int ranks_per_node;
        double first, then; /* shares that cross the network */
    } cases[] = {{8, 0, 0}, {4, 2.0 / 3, 0}, {2, 1, 0}, {1, 1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        x.ranks_per_node = cases[i].ranks_per_node;
        const struct exchange_bytes got = exchange_bytes(&x, EXCHANGE_DISPATCH);
        assert_true(exchange_relays(&x));
        expect_near(got.network, first * cases[i].first + then * cases[i].then, 1e-12, "network");
        expect_near(got.nvlink, first * (1 - cases[i].first) + then * (1 - cases[i].then), 1e-12,
                    "within nodes");
    }
    x.relay_ranks = 4; /* of which a node has 2: 1 of 3 others is near */
    x.ranks_per_node = 2;
    const double halves = tokens * 2 * (1 - 12.0 / 56) / 2 * row, rest = tokens * 2 * 3 / 4 * row;
    expect_near(exchange_bytes(&x, EXCHANGE_DISPATCH).network, halves + rest * 2 / 3, 1e-12,
                "relays wider than nodes");
}

/* --- stages --- */

static void test_stages(void **state)
{
    (void)state;
    double cost[62];
    struct stage stage[16];
    for (int pairs = 0; pairs <= 1; pairs++) {
        for (int64_t pp = 2; pp <= 16; pp *= 2) {
            int64_t next = 0;
            double most = 0;
            for (int b = 0; b < 62; b++) {
                cost[b] = b == 61 ? 3.4 : 1;
            }
            stages_divide(stage, cost, 62, 61, pp, pairs);
            for (int64_t s = 0; s < pp; s++) {
                double sum = 0;
                assert_int_equal(stage[s].first, next);
                assert_true(stage[s].blocks > 0);
                for (int64_t b = 0; b < stage[s].blocks; b++) {
                    sum += cost[next + b];
                    sum += pairs && b < stage[pp - 1 - s].blocks ? cost[stage[pp - 1 - s].first + b]
                                                                 : 0;
                }
                most = sum > most ? sum : most;
                next += stage[s].blocks;
            }
            assert_int_equal(next, 62);
            assert_true(most <= (pairs ? 2 : 1) * 64.4 / (double)pp + 2.4);
        }
    }
}

static void test_stages_by_hand(void **state)
{
    (void)state;
    struct stage stage[4];
    struct config_reals list = {.item = {3, 4, 1, 2}, .count = 4};
    assert_int_equal(stages_listed(stage, &list, 10, 8, 4), STATUS_OK);
    assert_true(stage[0].embedding && !stage[1].embedding);
    assert_true(stage[2].head && !stage[3].head && !stage[1].head); /* then two modules */
    assert_int_equal(stage[3].first, 8);
    assert_int_equal(stage[1].blocks, 4);
    assert_int_equal(stages_listed(stage, &list, 11, 9, 4), STATUS_USAGE);
    list.count = 3;
    assert_int_equal(stages_listed(stage, &list, 10, 8, 4), STATUS_USAGE);
}

/* --- a published run --- */

/* DeepSeek-V3 (2024), sections 3 and 4, and its hardware paper (2025): 14.8T tokens on 2048 H800,
 * PP16, EP64, ZeRO-1, DualPipe, FP8. */
static void test_deepseek_v3_as_published(void **state)
{
    (void)state;
    static struct plan plan;
    struct config config;
    struct hardware hardware;
    char *overrides[] = {(char[]){"train.precision=fp8"},
                         (char[]){"parallel.pp=16"},
                         (char[]){"parallel.ep=64"},
                         (char[]){"cluster.nodes=256"},
                         (char[]){"cluster.gpu=h800"},
                         (char[]){"parallel.schedule=dualpipe"},
                         (char[]){"train.batch_ramp.start=15360"}};
    config_init(&config);
    config.planning = true;
    assert_int_equal(config_load(&config, SOURCE_DIR "/configs/deepseek-v3.yaml", overrides, 7),
                     STATUS_OK);
    assert_int_equal(hardware_init(&hardware, &config), STATUS_OK);
    assert_int_equal(plan_make(&plan, &config, &hardware), STATUS_OK);
    assert_int_equal(plan.total, 671026419200);
    assert_int_equal(plan.mtp, 11610067968);
    assert_int_equal(plan.shape.schedule, PIPELINE_DUALPIPE);
    expect_near(plan_gpu_hours(&plan, 1e12), 180e3, 0.05, "GPU-hours a trillion tokens");
    expect_near(plan_gpu_hours(&plan, 14.8e12), 2.664e6, 0.05, "GPU-hours of the run");
    expect_near(plan.tokens_per_s * 86400, 272.8e9, 0.05, "tokens a day");
    expect_near(plan.time.step, 19.926, 0.05, "s a step");
    expect_near(plan.mfu, 0.3894, 0.05, "MFU, causal");
    expect_near(plan.mfu_whole, 0.4373, 0.05, "MFU, not causal");
    expect_near(plan.mfu * plan.hardware.peak_bf16, 385e12, 0.05, "FLOP/s");
    hardware_free(&hardware);
    config_free(&config);
}

/* --- layouts on CPUs --- */

/* A cluster of the config's own layout: every layout's memory and messages are of its nodes. */
static void test_search_has_one_cluster(void **state)
{
    (void)state;
    static const char *const lists[2][4] = {
        {"cluster.nodes=2", "parallel.ep=8"},
        {"cluster.nodes=2", "parallel.ep=8", "cluster.gpus_per_node=4"},
    };
    static struct search search[2];
    struct config config[2];
    struct hardware hardware[2];
    char text[512];
    for (int i = 0; i < 2; i++) {
        open_small(&config[i], &hardware[i], lists[i]);
        assert_int_equal(hardware[i].ranks_per_node, 4);
        assert_int_equal(search_run(&search[i], &config[i], &hardware[i], false), STATUS_OK);
    }
    assert_int_equal(search[0].count, search[1].count);
    assert_true(search[0].legal > 100);
    for (int64_t k = 0; k < search[0].legal; k++) {
        const struct search_result *a = &search[0].result[k], *b = &search[1].result[k];
        assert_true(a->memory == b->memory && a->tokens_per_s == b->tokens_per_s);
    }
    /* what is pasted is of that cluster too */
    search_overrides(&search[0], search[0].result, text, sizeof text);
    assert_non_null(strstr(text, " cluster.gpus_per_node=4"));
    search_overrides(&search[1], search[1].result, text, sizeof text);
    assert_null(strstr(text, "gpus_per_node"));
    for (int i = 0; i < 2; i++) {
        search_free(&search[i]);
        hardware_free(&hardware[i]);
        config_free(&config[i]);
    }
}

/* --- routers --- */

/* Links on which two ranks take half of the bytes over 1e9 and, twice, half a second. */
static double pair(double bytes)
{
    return bytes / 2 / 1e9 + 1;
}

static struct hardware links(void)
{
    return (struct hardware){.ranks_per_node = 8,
                             .nvlink = 1e9,
                             .network = 1e9,
                             .reduce = 1,
                             .message = 0.5,
                             .peak = 1e12,
                             .peak_f32 = 1e10,
                             .gemm_memory = 0.5,
                             .memory_rate = 1e9,
                             .start = 1e-3,
                             .share = {[KERNEL_DENSE] = 0.8, [KERNEL_OPTIMIZER] = 0.25}};
}

/* Two sequences of 128 tokens, of which a rank of cp has 128, 2 of 8 experts each. */
static void test_router_messages(void **state)
{
    (void)state;
    static const char *const list[] = {"train.micro_batch=2", "parallel.tp=2", "parallel.cp=2",
                                       "parallel.ep=1", NULL};
    struct config config;
    struct hardware hardware, own = links();
    struct workload load;
    open_small(&config, &hardware, list);
    workload_init(&load, &config, &own, false);
    const double balance = 2 * 4 * pair(2 * 8 * 8), /* two sums over each of tp and cp */
        capacity = 2 * pair(4.0 * 128 * 2) + 4 * pair(4.0 * 128 * 2);
    expect_near(work_router_messages(&load, false), balance, 1e-12, "balance");
    assert_true(work_router_messages(&load, true) == 0);
    config.router.capacity_factor = 1;
    expect_near(work_router_messages(&load, false), balance + capacity, 1e-12, "capacity");
    assert_true(work_router_messages(&load, true) == 0);
    config.train.recompute = CONFIG_RECOMPUTE_BLOCK;
    expect_near(work_router_messages(&load, true), capacity, 1e-12, "again");
    load.arch.balance.z = 0.1; /* a number of each token: over cp a sequence at a time */
    load.arch.balance.communication = 0.1;
    load.arch.loss_groups = 4;
    load.arch.balance.sequence = 0.1;
    load.arch.balance.score_counts = true;
    expect_near(work_router_messages(&load, false),
                balance + capacity + 2 * 2 * pair(2 * 8 * 8) + 2 * 2 * pair(8.0 * 2 * 4) +
                    pair(4.0 * 128) + 2 * pair(4.0 * 128),
                1e-12, "every loss");
    hardware_free(&hardware);
    config_free(&config);
}

/* They are part of the forward pass of every block with experts. */
static void test_router_messages_are_planned(void **state)
{
    (void)state;
    static const char *const list[] = {"train.micro_batch=2", "parallel.cp=2", "parallel.ep=1",
                                       NULL};
    static struct plan plan;
    struct config config;
    struct hardware hardware;
    open_small(&config, &hardware, list);
    assert_int_equal(plan_make(&plan, &config, &hardware), STATUS_OK);
    const double without = plan.time.forward;
    config.router.capacity_factor = 1;
    assert_int_equal(plan_make(&plan, &config, &hardware), STATUS_OK);
    expect_near(plan.time.forward - without,
                2 * 4 * exchange_reduce_seconds(&hardware, 4.0 * 128 * 2, 2, 1), 1e-9,
                "capacity of two blocks");
    hardware_free(&hardware);
    config_free(&config);
}

/* --- Muon --- */

/* A Newton-Schulz step of [rows, cols]: multiply-adds. */
static double products(double side, double length)
{
    return side * side * (2 * length + side);
}

/* Two layers: q and o 256 x 256, k and v 128 x 256; 8 experts of three 512 x 256. */
static const double Q = 256.0 * 256, K = 128.0 * 256, EXPERT = 512.0 * 256;

static void expect_load(const struct muon_load *got, double matrices, double cost, double entries,
                        double squares)
{
    assert_true((double)got->matrices == matrices);
    assert_true((double)got->cost == cost);
    assert_true((double)got->entries == entries);
    assert_true((double)got->squares == squares);
}

static void measure(struct stage_memory *memory, struct config *config, struct hardware *hardware,
                    const char *const *list, int64_t ranks)
{
    const struct stage whole = {.blocks = 2, .embedding = true, .head = true};
    open_small(config, hardware, list);
    assert_int_equal(memory_of_stage(memory, config, &whole, hardware->device, ranks,
                                     config->parallel.ep, false),
                     STATUS_OK);
}

static void test_muon_loads(void **state)
{
    (void)state;
    static const char *const alone[] = {"optimizer.name=muon", "parallel.ep=1", NULL},
                             *const parts[] = {"optimizer.name=muon", "parallel.ep=1",
                                               "parallel.tp=2", "parallel.etp=2", NULL};
    const double q = products(256, 256), k = products(128, 256), e = products(256, 512);
    struct stage_memory memory;
    struct config config;
    struct hardware hardware;
    for (int ranks = 1; ranks <= 2; ranks++) { /* each rank has half of the matrices */
        measure(&memory, &config, &hardware, alone, ranks);
        expect_load(&memory.muon[PARAM_DENSE], 8 / ranks, (4 * q + 4 * k) / ranks,
                    (4 * Q + 4 * K) / ranks, (4 * Q + 4 * 128 * 128) / ranks);
        expect_load(&memory.muon[PARAM_EXPERT], 48 / ranks, 48 / ranks * e, 48 / ranks * EXPERT,
                    48 / ranks * Q);
        assert_true((double)memory.muon[PARAM_EXPERT].received == 48 / ranks * EXPERT);
        hardware_free(&hardware);
        config_free(&config);
    }
    /* of every two that are divided the rank has one, and receives a half of both */
    measure(&memory, &config, &hardware, parts, 2);
    assert_int_equal(memory.muon[PARAM_DENSE].matrices, 0);
    expect_load(&memory.muon[PARAM_TENSOR], 4, 2 * q + 2 * k, 2 * Q + 2 * K, 2 * Q + 2 * 128 * 128);
    assert_true((double)memory.muon[PARAM_TENSOR].received == 2 * Q + 2 * K);
    expect_load(&memory.muon[PARAM_EXPERT], 24, 24 * e, 24 * EXPERT, 24 * Q);
    hardware_free(&hardware);
    config_free(&config);
}

static void test_muon_times(void **state)
{
    (void)state;
    struct config config;
    struct hardware own = links();
    config_init(&config);
    const struct workload load = {.config = &config, .hardware = &own};
    const struct muon_load muon = {
        .matrices = 3, .cost = 1000, .entries = 600, .squares = 50, .received = 700};
    const struct muon_ranks whole = {2, 1, 1}, parts = {2, 1, 2}, one = {1, 1, 1};
    const double steps =
        5 * (2000 / (0.8 * 1e10) + 4.0 * (7 * 600 + 8 * 50) / (0.5 * 1e9) + 5 * 3 * 1e-3);
    config.optimizer.moments = CONFIG_MOMENTS_FP32;
    expect_near(work_muon(&load, &muon), steps, 1e-12, "five steps");
    config.optimizer.moments = CONFIG_MOMENTS_BF16;
    expect_near(work_muon(&load, &muon), steps + 4.0 * 700 / (0.25 * 1e9), 1e-12, "bf16 moments");
    expect_near(work_muon_messages(&load, &muon, &whole), 2 * pair(4 * 700), 1e-12,
                "to owners and back");
    expect_near(work_muon_messages(&load, &muon, &parts), 2 * pair(4 * 700) + 2 * 3 * pair(4 * 200),
                1e-12, "and in turns");
    assert_true(work_muon_messages(&load, &muon, &one) == 0);
    config_free(&config);
}

/* All of it is in the step. */
static void test_muon_is_planned(void **state)
{
    (void)state;
    static const char *const list[] = {"parallel.ep=1", "parallel.tp=2", "cluster.gpus_per_node=4",
                                       "optimizer.name=muon", NULL};
    static struct plan muon, adamw;
    struct config config;
    struct hardware hardware;
    struct workload load;
    struct stage_memory memory;
    measure(&memory, &config, &hardware, list, 4);
    workload_init(&load, &config, &hardware, false);
    const struct muon_ranks divided = {2, 2, 2}, experts = {4, 1, 1};
    assert_int_equal(plan_make(&muon, &config, &hardware), STATUS_OK);
    config.optimizer.name = CONFIG_ADAMW;
    assert_int_equal(plan_make(&adamw, &config, &hardware), STATUS_OK);
    expect_near(muon.time.optimizer - adamw.time.optimizer,
                work_muon(&load, &memory.muon[PARAM_TENSOR]) +
                    work_muon(&load, &memory.muon[PARAM_EXPERT]),
                1e-9, "work");
    expect_near(muon.time.reduce - adamw.time.reduce,
                work_muon_messages(&load, &memory.muon[PARAM_TENSOR], &divided) +
                    work_muon_messages(&load, &memory.muon[PARAM_EXPERT], &experts),
                1e-9, "messages");
    expect_near(muon.time.step - adamw.time.step,
                muon.time.optimizer + muon.time.reduce - adamw.time.optimizer - adamw.time.reduce,
                1e-9, "step");
    hardware_free(&hardware);
    config_free(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_bytes_of_messages),
        cmocka_unit_test(test_relays_are_not_nodes),
        cmocka_unit_test(test_search_has_one_cluster),
        cmocka_unit_test(test_router_messages),
        cmocka_unit_test(test_router_messages_are_planned),
        cmocka_unit_test(test_muon_loads),
        cmocka_unit_test(test_muon_times),
        cmocka_unit_test(test_muon_is_planned),
        cmocka_unit_test(test_stages),
        cmocka_unit_test(test_stages_by_hand),
        cmocka_unit_test(test_deepseek_v3_as_published),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
