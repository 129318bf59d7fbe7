#include <stdio.h>

#include "kernels/base/json_out.h"
#include "trainer/plan/compare.h"
#include "trainer/plan/plan.h"

static const char *const memory_names[MODEL_MEMORIES] = {
    [MODEL_WEIGHTS] = "weights",   [MODEL_GRADIENTS] = "gradients", [MODEL_MASTERS] = "masters",
    [MODEL_MOMENTS] = "moments",   [MODEL_BLOCKS] = "activations",  [MODEL_LENT] = "shared",
    [MODEL_EXCHANGE] = "exchange", [MODEL_SCRATCH] = "scratch",
};
static const char *const memory_help[MODEL_MEMORIES] = {
    [MODEL_WEIGHTS] = "as the kernels read them, codes included",
    [MODEL_GRADIENTS] = "f32, and room to reduce them",
    [MODEL_MASTERS] = "f32, this rank's share",
    [MODEL_MOMENTS] = "this rank's share; average, Muon's scratch; windows of what is offloaded",
    [MODEL_BLOCKS] = "kept by each block until its backward",
    [MODEL_LENT] = "activations that all blocks share",
    [MODEL_EXCHANGE] = "rows from and to other ranks, at their most",
    [MODEL_SCRATCH] = "streams, gradients of activations, statistics",
};
static const char *schedule_of(const struct plan *plan)
{
    return plan->pp > 1 ? pipeline_names[plan->shape.schedule] : "none";
}

/* --- text --- */

static void print_layout(const struct plan *plan)
{
    const struct hardware *hw = &plan->hardware;
    printf("cluster      %lld ranks: %lld x %lld %s; %.4g TFLOP/s, %.4g GB at %.4g GB/s, "
           "%.4g GB/s in a node, %.4g across\n",
           (long long)hw->ranks, (long long)hw->nodes, (long long)hw->ranks_per_node, hw->name,
           hw->peak_bf16 / 1e12, hw->memory / 1e9, hw->memory_rate / 1e9, hw->nvlink / 1e9,
           hw->network / 1e9);
    printf("layout       ep %lld, etp %lld, dp %lld, edp %lld, tp %lld, cp %lld, pp %lld (%s), "
           "zero %lld; "
           "%lld micro-batches a step; messages %s\n",
           (long long)plan->ep, (long long)plan->etp, (long long)plan->dp, (long long)plan->edp,
           (long long)plan->tp, (long long)plan->cp, (long long)plan->pp, schedule_of(plan),
           (long long)plan->zero, (long long)plan->micro_batches,
           plan->ep * plan->etp == 1          ? "none"
           : plan->by_node                    ? "once to each node"
           : exchange_relays(&plan->exchange) ? "tokens once to each node"
                                              : "rank to rank");
    printf("parameters   %.4g B, %.4g B active; prediction modules %.4g B; %.4g B on a rank\n",
           (double)plan->total / 1e9, (double)plan->active / 1e9, (double)plan->mtp / 1e9,
           (double)plan->held / 1e9);
}

static void print_memory(const struct plan *plan)
{
    const struct plan_memory *m = &plan->memory;
    printf("\nmemory of %s, GB (1e9 bytes)\n", plan->pp > 1 ? "the fullest rank" : "a rank");
    for (int k = 0; k < MODEL_MEMORIES; k++) {
        printf("  %-18s %9.3f  %s\n", memory_names[k], (double)m->kind[k] / 1e9, memory_help[k]);
    }
    printf("  %-18s %9.3f  %s: %zu bytes\n", "arenas", (double)m->arenas / 1e9,
           plan->pp > 1 ? "together" : "together, as the run reserves them", m->arenas);
    printf("  %-18s %9.3f  program, libraries, scratch of kernels (estimated)\n", "outside",
           (double)m->outside / 1e9);
    if (plan->config->optimizer.offload) {
        printf("  %-18s %9.3f  masters, moments, average: in the host's memory, %.4g GB a node: "
               "%zu bytes\n",
               "offloaded", (double)m->host / 1e9,
               (double)m->host * (double)plan->hardware.ranks_per_node / 1e9, m->host);
    }
    printf("  %-18s %9.3f  copy of the state that saves are written from%s: %zu bytes\n", "staging",
           (double)m->staging / 1e9, plan->hardware.cpu ? "" : ", in the host's memory",
           m->staging);
    printf("  %-18s %9.3f  of %.4g: %s\n", "at most", (double)m->all / 1e9,
           plan->hardware.memory / 1e9, plan->fits ? "fits" : "DOES NOT FIT");
    if (m->peak != m->all) {
        printf("  %-18s %9.3f  the process's peak, with balanced routing\n", "expected",
               (double)m->peak / 1e9);
    }
}

static void print_exchange(const struct plan *plan)
{
    if (plan->ep * plan->etp == 1) {
        return;
    }
    printf("\nall-to-all of a layer and micro-batch, sent by a rank, MB\n");
    printf("  %-18s %9s %9s %9s\n", "", "network", "in node", "ms alone");
    for (int i = 0; i < EXCHANGES; i++) {
        const struct exchange_bytes bytes = exchange_bytes(&plan->exchange, (enum exchange_kind)i);
        printf("  %-18s %9.2f %9.2f %9.3f\n", exchange_names[i], bytes.network / 1e6,
               bytes.nvlink / 1e6, 1e3 * plan->exchange_s[i]);
    }
}

static void print_kernels(const struct plan *plan)
{
    double sum = 0;
    for (int k = 0; k < KERNELS; k++) {
        sum += plan->kernel_s[k];
    }
    printf("\nkernels of a step, %s, ms\n", plan->pp > 1 ? "average rank" : "each rank");
    for (int k = 0; k < KERNELS; k++) {
        printf("  %-18s %9.2f %6.1f %%\n", kernel_names[k], 1e3 * plan->kernel_s[k],
               100 * plan->kernel_s[k] / sum);
    }
}

static void print_step(const struct plan *plan)
{
    const struct plan_times *t = &plan->time;
    const struct {
        const char *name, *help;
        double s;
    } parts[] = {
        {"kernels", "forward and backward, of the busiest rank", t->kernels},
        {"exposed", "messages that nothing runs beside, and what overlap costs", t->exposed},
        {"bubble", "waiting for other stages", t->bubble},
        {"reduce", "gradients and weights between replicas", t->reduce},
        {"optimizer", "the update, weights' device form", t->optimizer},
    };
    printf("\nstep of %.5g tokens, s\n", plan->tokens_per_step);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        printf("  %-18s %9.4f %6.1f %%  %s\n", parts[i].name, parts[i].s,
               100 * parts[i].s / t->step, parts[i].help);
    }
    printf("  %-18s %9.4f\n", "step", t->step);
    if (plan->cp > 1) {
        printf(
            "keys of cp %lld go round in %.4g ms a micro-batch, %.1f %% of it beside attention\n",
            (long long)plan->cp, 1e3 * t->ring.messages,
            100 * (1 - t->ring.exposed / t->ring.messages));
    }
}

static void print_outcome(const struct plan *plan, double tokens, double price)
{
    const double hours = plan_gpu_hours(plan, tokens), ranks = (double)plan->hardware.ranks;
    printf("\ntokens/s     %.5g; %.5g a rank; %.5g billion a day\n", plan->tokens_per_s,
           plan->tokens_per_s / ranks, plan->tokens_per_s * 86400 / 1e9);
    printf("FLOP/s       %.4g T a rank = %.2f %% of the peak (MFU; causal attention, without "
           "prediction modules);\n             with them %.2f %%, attention not halved %.2f %%\n",
           plan->mfu * plan->hardware.peak_bf16 / 1e12, 100 * plan->mfu, 100 * plan->mfu_mtp,
           100 * plan->mfu_whole);
    printf("budget       %.4g tokens: %.5g %s-hours, %.4g days", tokens, hours,
           plan->hardware.cpu ? "rank" : "GPU", hours / ranks / 24);
    if (price > 0) {
        printf(", %.5g at %.4g an hour", hours * price, price);
    }
    printf("; %.5g hours a trillion tokens\n", plan_gpu_hours(plan, 1e12));
    printf("checkpoint   %.4g GB, %.3g s to save\n", plan->checkpoint_bytes / 1e9, plan->save_s);
}

void plan_print_text(const struct plan *plan, const struct comparison *comparison, double tokens,
                     double price)
{
    print_layout(plan);
    print_memory(plan);
    print_exchange(plan);
    print_kernels(plan);
    print_step(plan);
    compare_print_text(comparison);
    print_outcome(plan, tokens, price);
    for (int i = 0; i < plan->warnings; i++) {
        printf("%swarning: %s\n", i == 0 ? "\n" : "", plan->warning[i]);
    }
}

/* --- JSON --- */

/* ,"NAME":value pairs; the first without its comma. */
struct pair {
    const char *name;
    double value;
};

static void object(const char *name, const struct pair *pairs, int count)
{
    char before[64];
    printf(",\"%s\":{", name);
    for (int i = 0; i < count; i++) {
        snprintf(before, sizeof before, "%s\"%s\":", i > 0 ? "," : "", pairs[i].name);
        json_out_number(stdout, before, pairs[i].value, 15);
    }
    printf("}");
}
#define OBJECT(name, pairs) object(name, pairs, (int)(sizeof(pairs) / sizeof(pairs)[0]))

static void json_layout(const struct plan *plan)
{
    const struct hardware *hw = &plan->hardware;
    json_out_text(stdout, "{\"gpu\":", hw->name);
    json_out_text(stdout, ",\"pipeline\":", schedule_of(plan));
    json_out_text(stdout, ",\"exchange_by\":",
                  plan->by_node                      ? "by_node"
                  : exchange_relays(&plan->exchange) ? "relayed"
                                                     : "direct");
    printf(",\"fits\":%s,\"trains\":%s", plan->fits ? "true" : "false",
           plan_trains(plan) ? "true" : "false");
    const struct pair cluster[] = {
        {"nodes", (double)hw->nodes},       {"gpus_per_node", (double)hw->ranks_per_node},
        {"ranks", (double)hw->ranks},       {"peak_flops", hw->peak_bf16},
        {"memory_bytes", hw->memory},       {"memory_bytes_per_s", hw->memory_rate},
        {"nvlink_bytes_per_s", hw->nvlink}, {"network_bytes_per_s", hw->network}};
    const struct pair layout[] = {{"ep", (double)plan->ep},
                                  {"etp", (double)plan->etp},
                                  {"dp", (double)plan->dp},
                                  {"edp", (double)plan->edp},
                                  {"pp", (double)plan->pp},
                                  {"tp", (double)plan->tp},
                                  {"cp", (double)plan->cp},
                                  {"zero", (double)plan->zero},
                                  {"micro_batches", (double)plan->micro_batches}};
    const struct pair parameters[] = {{"total", (double)plan->total},
                                      {"active", (double)plan->active},
                                      {"mtp", (double)plan->mtp},
                                      {"per_rank", (double)plan->held}};
    OBJECT("cluster", cluster);
    OBJECT("layout", layout);
    OBJECT("parameters", parameters);
    printf(",\"blocks_of_stages\":[");
    for (int64_t s = 0; s < pipeline_stages(&plan->shape); s++) {
        printf("%s%lld", s > 0 ? "," : "", (long long)plan->stage[s].blocks);
    }
    printf("]");
}

static void json_memory(const struct plan *plan)
{
    const struct plan_memory *m = &plan->memory;
    printf(",\"memory\":{");
    for (int k = 0; k < MODEL_MEMORIES; k++) {
        printf("\"%s_bytes\":%zu,", memory_names[k], m->kind[k]);
    }
    printf("\"arena_bytes\":%zu,\"outside_bytes\":%zu,\"offloaded_bytes\":%zu,"
           "\"staging_bytes\":%zu,\"total_bytes\":%zu,\"peak_bytes\":%zu}",
           m->arenas, m->outside, m->host, m->staging, m->all, m->peak);
}

static void json_work(const struct plan *plan)
{
    struct pair kernels[KERNELS];
    printf(",\"exchange\":{");
    for (int i = 0; i < EXCHANGES; i++) {
        const struct exchange_bytes bytes = exchange_bytes(&plan->exchange, (enum exchange_kind)i);
        printf("%s\"%s\":", i > 0 ? "," : "", exchange_names[i]);
        json_out_number(stdout, "{\"network_bytes\":", bytes.network, 15);
        json_out_number(stdout, ",\"nvlink_bytes\":", bytes.nvlink, 15);
        json_out_number(stdout, ",\"seconds\":", plan->exchange_s[i], 6);
        printf("}");
    }
    printf("}");
    for (int k = 0; k < KERNELS; k++) {
        kernels[k] = (struct pair){kernel_names[k], plan->kernel_s[k]};
    }
    OBJECT("kernel_seconds", kernels);
    const struct plan_times *t = &plan->time;
    const struct pair micro[] = {{"forward", t->forward},    {"backward", t->backward},
                                 {"weight", t->weight},      {"pair", t->pair},
                                 {"ring", t->ring.messages}, {"ring_exposed", t->ring.exposed}};
    const struct pair step[] = {{"seconds", t->step},
                                {"kernels", t->kernels},
                                {"exposed", t->exposed},
                                {"bubble", t->bubble},
                                {"reduce", t->reduce},
                                {"optimizer", t->optimizer},
                                {"bubble_fraction", t->bubble / t->step}};
    OBJECT("micro_batch_seconds", micro);
    OBJECT("step", step);
}

void plan_print_json(const struct plan *plan, const struct comparison *comparison, double tokens,
                     double price)
{
    const double hours = plan_gpu_hours(plan, tokens), ranks = (double)plan->hardware.ranks;
    const struct pair speed[] = {{"tokens_per_step", plan->tokens_per_step},
                                 {"tokens_per_s", plan->tokens_per_s},
                                 {"tokens_per_s_per_rank", plan->tokens_per_s / ranks},
                                 {"tokens_per_day", plan->tokens_per_s * 86400},
                                 {"flops_per_token", plan->flops_per_token},
                                 {"flops_per_token_mtp", plan->flops_per_token_mtp},
                                 {"flops_per_s_per_rank", plan->mfu * plan->hardware.peak_bf16},
                                 {"mfu", plan->mfu},
                                 {"mfu_mtp", plan->mfu_mtp},
                                 {"mfu_non_causal", plan->mfu_whole},
                                 {"gpu_hours_per_trillion_tokens", plan_gpu_hours(plan, 1e12)}};
    const struct pair budget[] = {{"tokens", tokens},
                                  {"gpu_hours", hours},
                                  {"days", hours / ranks / 24},
                                  {"cost", hours * price}};
    const struct pair checkpoint[] = {{"bytes", plan->checkpoint_bytes},
                                      {"save_seconds", plan->save_s}};
    json_layout(plan);
    json_memory(plan);
    json_work(plan);
    OBJECT("speed", speed);
    OBJECT("budget", budget);
    OBJECT("checkpoint", checkpoint);
    compare_print_json(comparison);
    printf(",\"warnings\":[");
    for (int i = 0; i < plan->warnings; i++) {
        json_out_text(stdout, i > 0 ? "," : "", plan->warning[i]);
    }
    printf("]}");
}
