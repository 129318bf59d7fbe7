#include "trainer/plan/search.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/json_out.h"
#include "trainer/plan/compare.h"

static const char *const recompute_names[] = {[CONFIG_RECOMPUTE_NONE] = "none",
                                              [CONFIG_RECOMPUTE_NORMS] = "norms",
                                              [CONFIG_RECOMPUTE_EXPERTS] = "experts",
                                              [CONFIG_RECOMPUTE_BLOCK] = "block"};
static const char *const dispatch_names[] = {[CONFIG_EXACT] = "exact", [CONFIG_PADDED] = "padded"};
enum { MOST_MICRO = 16, MOST_STAGES = 16, MOST_ZERO = 3 };

static void plan_one(struct search_result *result, const struct config *config,
                     const struct hardware *hardware, struct plan *plan)
{
    struct config own = *config; /* its texts are borrowed */
    own.parallel.ep = result->ep;
    own.parallel.pp = result->pp;
    own.parallel.zero = result->zero;
    own.train.micro_batch = result->micro_batch;
    own.train.recompute = result->recompute;
    own.router.dispatch = result->dispatch;
    own.parallel.schedule = result->schedule.pipeline;
    own.parallel.virtual_stages = result->schedule.virtual_stages;
    result->legal = plan_make(plan, &own, hardware) == STATUS_OK;
    if (!result->legal) {
        snprintf(result->why, sizeof result->why, "%s", status_message());
        return;
    }
    result->fits = plan->fits;
    result->trains = plan_trains(plan);
    result->memory = plan->memory.all;
    result->tokens_per_s = plan->tokens_per_s;
    result->step = plan->time.step;
    result->bubble = plan->time.bubble;
    if (!result->fits) {
        snprintf(result->why, sizeof result->why, "memory: %.4g GB of %.4g",
                 (double)result->memory / 1e9, hardware->memory / 1e9);
    }
}

static int compare(const void *a, const void *b)
{
    const struct search_result *x = a, *y = b;
    if (x->fits != y->fits || x->legal != y->legal) {
        return x->fits != y->fits ? (int)y->fits - (int)x->fits : (int)y->legal - (int)x->legal;
    }
    if (x->fits) {
        return (x->tokens_per_s < y->tokens_per_s) - (x->tokens_per_s > y->tokens_per_s);
    }
    return x->legal ? (x->memory > y->memory) - (x->memory < y->memory) : strcmp(x->why, y->why);
}

/* Schedules of a pipeline: the config's, or all where it leaves them open. */
static int schedules_of(struct compare_schedule *out, const struct config *config, int64_t pp)
{
    const bool open = pp > 1 && config->parallel.schedule == CONFIG_PIPELINE_AUTO &&
                      config->parallel.virtual_stages == 1;
    out[0] = (struct compare_schedule){config->parallel.schedule, config->parallel.virtual_stages};
    for (int i = 0; i < COMPARE_SCHEDULES && open; i++) {
        out[i] = compare_schedules[i];
    }
    return open ? COMPARE_SCHEDULES : 1;
}

/* Adds every combination of an ep, a pp and a zero; result NULL: counts them. */
static void combine(struct search_result *result, int64_t *count, const struct config *config,
                    int64_t ep, int64_t pp, int64_t zero)
{
    struct compare_schedule schedule[COMPARE_SCHEDULES];
    const int schedules = schedules_of(schedule, config, pp);
    const bool alone = ep * config->parallel.etp == 1;
    const bool own_buffers = config->router.buffer_factor != 2; /* its default */
    for (int64_t micro = 1; micro <= MOST_MICRO; micro *= 2) {
        for (int variant = 0; variant < 8 * schedules; variant++) {
            const struct search_result one = {.ep = ep,
                                              .pp = pp,
                                              .zero = zero,
                                              .micro_batch = micro,
                                              .recompute = variant % 4,
                                              .dispatch = variant / 4 % 2,
                                              .schedule = schedule[variant / 8]};
            if (one.dispatch == CONFIG_PADDED && (alone || own_buffers)) {
                continue; /* the same as exact, or refused with buffer_factor */
            }
            if (result != NULL) {
                result[*count] = one;
            }
            (*count)++;
        }
    }
}

/* A pipeline has at most as many ranks as the model has blocks. */
static int64_t combine_all(struct search_result *result, const struct config *config,
                           const struct hardware *hardware, bool stages)
{
    int64_t count = 0;
    struct architecture arch;
    architecture_init(&arch, config);
    const int64_t ranks = hardware->ranks, most = stages ? MOST_STAGES : 1;
    for (int64_t pp = 1; pp <= most && pp <= architecture_blocks(&arch); pp++) {
        for (int64_t ep = 1; ep <= arch.experts && ranks % pp == 0; ep++) {
            if (arch.experts % ep == 0 && ep <= ranks) {
                for (int64_t zero = 1; zero <= (ranks > pp ? MOST_ZERO : 1); zero++) {
                    combine(result, &count, config, ep, pp, zero);
                }
            }
        }
    }
    return count;
}

enum status search_run(struct search *search, const struct config *config,
                       const struct hardware *hardware, bool stages)
{
    struct plan *plan = malloc(sizeof *plan);
    *search = (struct search){.count = combine_all(NULL, config, hardware, stages)};
    search->result = calloc((size_t)search->count + 1, sizeof *search->result);
    if (search->result == NULL || plan == NULL) {
        free(plan);
        return status_fail(STATUS_RESOURCE, "out of memory for %lld layouts",
                           (long long)search->count);
    }
    (void)combine_all(search->result, config, hardware, stages);
    for (int64_t i = 0; i < search->count; i++) {
        plan_one(&search->result[i], config, hardware, plan);
        search->legal += search->result[i].legal;
        search->fitting += search->result[i].fits;
    }
    free(plan);
    qsort(search->result, (size_t)search->count, sizeof *search->result, compare);
    return STATUS_OK;
}

void search_free(struct search *search)
{
    free(search->result);
    *search = (struct search){0};
}

void search_overrides(const struct search_result *result, char *out, size_t bytes)
{
    char pp[128] = "", zero[48] = "";
    if (result->pp > 1) {
        snprintf(pp, sizeof pp,
                 " parallel.pp=%lld parallel.schedule=%s parallel.virtual_stages=%lld",
                 (long long)result->pp, compare_names[result->schedule.pipeline],
                 (long long)result->schedule.virtual_stages);
    }
    if (result->zero > 1) {
        snprintf(zero, sizeof zero, " parallel.zero=%lld", (long long)result->zero);
    }
    snprintf(out, bytes,
             "parallel.ep=%lld train.micro_batch=%lld train.recompute=%s router.dispatch=%s%s%s",
             (long long)result->ep, (long long)result->micro_batch,
             recompute_names[result->recompute], dispatch_names[result->dispatch], zero, pp);
}

static void print_row(const struct search_result *r)
{
    char text[256];
    search_overrides(r, text, sizeof text);
    if (r->legal) {
        printf("%12.5g %8.4f %8.4g  %s%s%s\n", r->tokens_per_s, r->step, (double)r->memory / 1e9,
               text, r->fits ? "" : "   no: ", r->why);
    } else {
        printf("%12s %8s %8s  %s   no: %s\n", "-", "-", "-", text, r->why);
    }
}

/* Results [first, end) of one kind, at most `most`; a reason why not is told once. */
static void print_part(const struct search *search, int64_t first, int64_t end, int64_t most,
                       const char *what)
{
    int64_t shown = 0;
    for (int64_t i = first; i < end && shown < most; i++) {
        const struct search_result *r = &search->result[i];
        if (i == first || r->why[0] == '\0' || strcmp(r->why, r[-1].why) != 0) {
            print_row(r);
            shown++;
        }
    }
    if (end - first > shown) {
        printf("%12s %lld that %s, %lld of them shown\n", "...", (long long)(end - first), what,
               (long long)shown);
    }
}

/* The best of all, and of those that this version trains. */
static void print_best(const struct search *search)
{
    char text[256];
    int64_t best = 0;
    if (search->legal == 0) {
        printf("\nnone can be\n");
        return;
    }
    if (search->fitting == 0) {
        printf("\nnone fits: more ranks, train.precision=fp8, optimizer.moments=bf16 or a shorter "
               "train.sequence_length save memory\n");
        return;
    }
    search_overrides(&search->result[0], text, sizeof text);
    printf("\nbest: %s\n", text);
    while (best < search->fitting && !search->result[best].trains) {
        best++;
    }
    if (best == search->fitting) {
        printf("none of those that fit is more than planned: see the warnings of `plan`\n");
    } else if (best > 0) {
        search_overrides(&search->result[best], text, sizeof text);
        printf("best that this version trains: %s\n", text);
    }
}

void search_print_text(const struct search *search, int64_t rows)
{
    const int64_t fewer = (rows + 3) / 4;
    printf("%lld layouts: %lld fit, %lld do not, %lld cannot be\n\n%12s %8s %8s\n",
           (long long)search->count, (long long)search->fitting,
           (long long)(search->legal - search->fitting), (long long)(search->count - search->legal),
           "tokens/s", "step s", "GB");
    print_part(search, 0, search->fitting, rows, "fit");
    print_part(search, search->fitting, search->legal, fewer, "do not fit");
    print_part(search, search->legal, search->count, fewer, "cannot be");
    print_best(search);
}

void search_print_json(const struct search *search)
{
    char text[256];
    printf("{\"layouts\":%lld,\"fitting\":%lld,\"legal\":%lld,\"results\":[",
           (long long)search->count, (long long)search->fitting, (long long)search->legal);
    for (int64_t i = 0; i < search->count; i++) {
        const struct search_result *r = &search->result[i];
        search_overrides(r, text, sizeof text);
        json_out_text(stdout, i > 0 ? ",\n{\"overrides\":" : "\n{\"overrides\":", text);
        printf(",\"fits\":%s,\"legal\":%s", r->fits ? "true" : "false",
               r->legal ? "true" : "false");
        if (r->legal) {
            json_out_number(stdout, ",\"tokens_per_s\":", r->tokens_per_s, 9);
            json_out_number(stdout, ",\"step_seconds\":", r->step, 9);
            printf(",\"memory_bytes\":%zu", r->memory);
        }
        if (!r->fits) {
            json_out_text(stdout, ",\"why\":", r->why);
        }
        printf("}");
    }
    printf("]}");
}
