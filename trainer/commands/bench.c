#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/json_out.h"
#include "trainer/commands/bench_checkpoint.h"
#include "trainer/commands/bench_kernels.h"
#include "trainer/commands/bench_roofline.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/figures.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/session.h"
#include "trainer/step.h"
#include "trainer/synthetic.h"

enum { MOST_STEPS = 1000 };

struct bench {
    struct session *session;
    struct model model;
    struct stepper stepper;
    struct synthetic data;
    int64_t steps, warmup;
    bool learned_only;
    double peak_flops; /* GEMM, all ranks */
    int64_t done;      /* steps so far, for the schedule */
    struct meter meter;
    struct roofline roofline; /* of the steps with learned routing */
};

/* Of one routing. */
struct bench_result {
    double tokens_per_s, slowest, fastest; /* median and range over the steps */
    double loss, load;                     /* of the last step; worst layer's max/mean */
    int64_t extra_rounds;
    struct phase_ms phase; /* means */
};

static enum status open_bench(struct bench *bench)
{
    struct session *session = bench->session;
    const struct config *config = &session->config;
    session->config.train.batch_ramp.start = 0; /* the full batch, from the first step */
    bench->roofline.there = device_meter(session->device, &bench->meter);
    TRY(comm_agree(&session->world, optimizer_check(config), NULL));
    TRY(comm_agree(&session->world, synthetic_init(&bench->data, config), NULL));
    TRY(comm_agree(&session->world,
                   model_init(&bench->model, config, &session->mesh, session->device,
                              config->train.micro_batch, config->train.sequence_length, true),
                   NULL));
    TRY(comm_agree(&session->world,
                   stepper_init(&bench->stepper, &bench->model, &bench->data.mixture), NULL));
    model_initialize(&bench->model);
    comm_barrier(&session->world);
    bench->peak_flops = device_peak_flops(session->device, bench->model.act);
    comm_all_reduce(&session->world, &bench->peak_flops, 1, DTYPE_F64, REDUCE_SUM);
    roofline_ceilings(&bench->roofline, session, bench->model.act);
    return STATUS_OK;
}

static void add_phase(struct phase_ms *sum, const struct phase_ms *add, double scale)
{
    sum->data += scale * add->data;
    sum->data_wait += scale * add->data_wait;
    sum->forward_backward += scale * add->forward_backward;
    sum->reduce += scale * add->reduce;
    sum->optimizer += scale * add->optimizer;
}

static enum status measure(struct bench *bench, bool balanced, struct bench_result *result)
{
    struct config *config = &bench->session->config;
    struct step_result step;
    double rate[MOST_STEPS];
    *result = (struct bench_result){0};
    config->router.force_balanced = balanced;
    for (int64_t i = -bench->warmup; i < bench->steps; i++) {
        const int64_t position = bench->done * config->train.global_batch;
        TRY(stepper_step(&bench->stepper, ++bench->done, position, &step));
        if (i < 0) {
            memset(bench->meter.line, 0, sizeof bench->meter.line);
        } else {
            rate[i] = (double)step.tokens / (step.step_ms / 1e3);
            add_phase(&result->phase, &step.phase_ms, 1.0 / (double)bench->steps);
            result->extra_rounds += step.extra_rounds;
        }
    }
    figure_sort(rate, bench->steps);
    result->tokens_per_s = rate[bench->steps / 2];
    result->slowest = rate[0];
    result->fastest = rate[bench->steps - 1];
    result->loss = step.loss;
    for (int64_t m = 0; m < bench->stepper.moe_blocks; m++) {
        const double load = bench->stepper.expert_load[m];
        result->load = load > result->load ? load : result->load;
    }
    return STATUS_OK;
}

/* Of all ranks together, bytes. Collective. */
static int64_t peak_memory(struct session *session)
{
    int64_t bytes = metrics_memory(session->device);
    comm_all_reduce(&session->world, &bytes, 1, DTYPE_I64, REDUCE_SUM);
    return bytes;
}

static double flops_per_token(const struct bench *bench)
{
    return architecture_flops_per_token(&bench->model.whole,
                                        bench->session->config.train.sequence_length);
}

static void print_text(const struct bench *bench, const char *name, const struct bench_result *r)
{
    const double data = r->phase.data + r->phase.data_wait;
    const double flops = r->tokens_per_s * flops_per_token(bench);
    printf("%-16s %8.0f tokens/s (%.0f to %.0f)  %7.1f GFLOP/s = %.0f %% of GEMM peak  load %.2f  "
           "extra rounds %lld\n",
           name, r->tokens_per_s, r->slowest, r->fastest, flops / 1e9,
           100 * flops / bench->peak_flops, r->load, (long long)r->extra_rounds);
    printf("%-16s %8.1f ms a step: data %.1f, forward and backward %.1f, reduce %.1f, optimizer "
           "%.1f\n",
           "", data + r->phase.forward_backward + r->phase.reduce + r->phase.optimizer, data,
           r->phase.forward_backward, r->phase.reduce, r->phase.optimizer);
}

static void print_json(const struct bench *bench, const char *name, const struct bench_result *r)
{
    const double flops = r->tokens_per_s * flops_per_token(bench);
    const struct {
        const char *before;
        double value;
        int digits;
    } numbers[] = {
        {"{\"tokens_per_s\":", r->tokens_per_s, 6},
        {",\"slowest\":", r->slowest, 6},
        {",\"fastest\":", r->fastest, 6},
        {",\"flops\":", flops, 6},
        {",\"share_of_peak\":", flops / bench->peak_flops, 4},
        {",\"expert_load\":", r->load, 4},
        {",\"loss\":", r->loss, 9},
        {",\"phase_ms\":{\"data\":", r->phase.data, 4},
        {",\"data_wait\":", r->phase.data_wait, 4},
        {",\"forward_backward\":", r->phase.forward_backward, 6},
        {",\"reduce\":", r->phase.reduce, 6},
        {",\"optimizer\":", r->phase.optimizer, 6},
    };
    printf("\"%s\":", name);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        json_out_number(stdout, numbers[i].before, numbers[i].value, numbers[i].digits);
    }
    printf("},\"extra_rounds\":%lld},", (long long)r->extra_rounds);
}

static void print(const struct bench *bench, const struct bench_result results[2], int64_t memory,
                  bool json)
{
    const int count = bench->learned_only ? 1 : 2;
    static const char *const names[2] = {"learned", "balanced"};
    const struct session *session = bench->session;
    const double per_token = flops_per_token(bench);
    if (!session_main_rank(session)) {
        return;
    }
    if (json) {
        printf("{");
        for (int i = 0; i < count; i++) {
            print_json(bench, names[i], &results[i]);
        }
        printf("\"ranks\":%d,\"threads\":%d,\"parameters\":%lld", session->world.size,
               session->threads, (long long)bench->model.params.total);
        json_out_number(stdout, ",\"flops_per_token\":", per_token, 6);
        json_out_number(stdout, ",\"gemm_peak_flops\":", bench->peak_flops, 6);
        printf(",\"reserved_bytes\":%zu,\"peak_memory_bytes\":%lld", model_bytes(&bench->model),
               (long long)memory);
        roofline_json(&bench->roofline);
        printf("}\n");
        return;
    }
    printf("%.1fM parameters, %.4f GFLOP a token, %d ranks x %d threads, ep %lld, GEMM peak %.0f "
           "GFLOP/s\n",
           (double)bench->model.params.total / 1e6, per_token / 1e9, session->world.size,
           session->threads, (long long)session->config.parallel.ep, bench->peak_flops / 1e9);
    for (int i = 0; i < count; i++) {
        print_text(bench, i == 0 ? "learned routing" : "balanced routing", &results[i]);
    }
    printf("memory           %8.0f MiB at most, all ranks\n", (double)memory / 1048576.0);
    roofline_print(&bench->roofline);
}

static enum status run(struct bench *bench, bool json)
{
    struct bench_result results[2];
    TRY(open_bench(bench));
    memset(bench->meter.line, 0, sizeof bench->meter.line);
    TRY(measure(bench, false, &results[0]));
    if (bench->roofline.there) {
        const double flops = results[0].tokens_per_s * flops_per_token(bench);
        roofline_take(&bench->roofline, &bench->meter, &results[0].phase, bench->steps, flops);
    }
    if (!bench->learned_only) {
        TRY(measure(bench, true, &results[1]));
    }
    print(bench, results, peak_memory(bench->session), json);
    return STATUS_OK;
}

enum status command_bench(int argc, char **argv)
{
    struct option_result options;
    struct session session;
    struct bench bench = {.session = &session, .steps = 10, .warmup = 2};
    bool json = false, kernels = false, facts = false, checkpoint = false;
    const char *other = NULL, *peer = NULL;
    const struct option_spec specs[] = {
        {"--kernels", OPTION_FLAG, &kernels, NULL, "time the kernels of a step one by one instead"},
        {"--facts", OPTION_FLAG, &facts, NULL,
         "with --kernels: run nothing; FLOPs, bytes, predicted times and the compiler's words "
         "only"},
        {"--peer", OPTION_TEXT, &peer, "COMMAND",
         "with --kernels: one that times the same, \"python3 tests/gpu/bench.py\" for PyTorch"},
        {"--checkpoint", OPTION_FLAG, &checkpoint, NULL,
         "save and load the state beside plain files of its size instead"},
        {"--load", OPTION_TEXT, &other, "CKPT_DIR",
         "with --checkpoint: load this one, of any layout, beside them"},
        {"--steps", OPTION_INT, &bench.steps, "N",
         "steps measured, with each routing; saves and loads (default 10)"},
        {"--warmup", OPTION_INT, &bench.warmup, "N", "steps before them (default 2)"},
        {"--learned", OPTION_FLAG, &bench.learned_only, NULL,
         "with learned routing only, not with balanced routing too"},
        {"--json", OPTION_FLAG, &json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(
        &options, argc, argv, specs, "bench CONFIG [key=value ...]",
        "Training speed of a config on random tokens: tokens/s, FLOP/s and its share of the GEMM "
        "peak measured\n"
        "here, time by phase, memory; with learned routing and with routing forced to be balanced; "
        "and on the\n"
        "CPU, for each family of ops, what time it took beside the least that this machine allows.",
        1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    if (bench.steps < 1 || bench.steps > MOST_STEPS || bench.warmup < 0) {
        return status_fail(STATUS_USAGE, "bench: --steps must be 1 to %d and --warmup not negative",
                           MOST_STEPS);
    }
    if ((facts || peer != NULL) && (!kernels || (facts && peer != NULL))) {
        return status_fail(STATUS_USAGE, "bench: --facts and --peer are of --kernels, one of them");
    }
    if (facts) {
        return bench_kernels_facts(options.words[0], options.overrides, options.override_count,
                                   json);
    }
    enum status status = session_open(&session, SESSION_TRAIN, options.words[0], options.overrides,
                                      options.override_count);
    if (status == STATUS_OK) {
        status = kernels      ? bench_kernels(&session, &(struct bench_kernels_options){json, peer})
                 : checkpoint ? bench_checkpoint(&session, bench.steps, other, json)
                              : run(&bench, json);
    }
    stepper_free(&bench.stepper);
    model_free(&bench.model);
    synthetic_free(&bench.data);
    return session_close(&session, status);
}
