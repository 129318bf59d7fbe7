#include "trainer/plan/search.h"

#include <malloc.h>
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
enum { OVERRIDES = 384 }; /* characters of search_overrides */
enum {
    MOST_MICRO = 16,
    MOST_STAGES = 16,
    MOST_ZERO = 3,
    RECOMPUTES = 4,
    BEST = 32,
    MOST_CONTEXT = 16
};

static const char *const overlap_names[] = {
    [CONFIG_OVERLAP_AUTO] = "auto", [CONFIG_OVERLAP_ON] = "on", [CONFIG_OVERLAP_OFF] = "off"};

/* What is wished, where the layout on so many ranks has something to overlap. */
static int search_overlap(const struct search_result *result, const struct config *config,
                          int64_t ranks)
{
    const int wish = result->overlap;
    const int64_t ways = ranks / (result->pp * result->tp * result->cp);
    const bool there =
        (result->pp == 1 || result->schedule.pipeline == CONFIG_PIPELINE_DUALPIPE_V) &&
        result->ep * result->etp > 1 &&
        (wish != CONFIG_OVERLAP_ON ||
         (result->zero < 3 && config->train.global_batch > result->micro_batch * ways));
    return there ? wish : CONFIG_OVERLAP_AUTO;
}

static void plan_one(struct search_result *result, const struct config *config,
                     const struct hardware *hardware, struct plan *plan)
{
    struct config own = *config;                          /* its texts are borrowed */
    own.cluster.gpus_per_node = hardware->ranks_per_node; /* of every layout */
    own.parallel.ep = result->ep;
    own.parallel.etp = result->etp;
    own.parallel.pp = result->pp;
    own.parallel.tp = result->tp;
    own.parallel.cp = result->cp;
    own.parallel.zero = result->zero;
    own.train.micro_batch = result->micro_batch;
    own.train.recompute = result->recompute;
    own.router.dispatch = result->dispatch;
    own.parallel.schedule = result->schedule.pipeline;
    own.parallel.virtual_stages = result->schedule.virtual_stages;
    own.parallel.overlap = result->overlap = search_overlap(result, config, hardware->ranks);
    result->legal = config_plans(&own, result->why, sizeof result->why);
    result->fits = result->trains = false;
    if (!result->legal) {
        return;
    }
    result->legal = plan_brief(plan, &own, hardware, true) == STATUS_OK;
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
        snprintf(result->why, sizeof result->why, "memory: %s%.4g GB of %.4g",
                 plan->time.step > 0 ? "" : "at least ", (double)result->memory / 1e9,
                 hardware->memory / 1e9);
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

static enum status add(struct search *search, const struct search_result *result)
{
    if (search->count == search->room) {
        const int64_t room = 2 * search->room + 256;
        struct search_result *more = realloc(search->result, (size_t)room * sizeof *search->result);
        if (more == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for %lld layouts", (long long)room);
        }
        search->result = more;
        search->room = room;
    }
    search->result[search->count++] = *result;
    search->legal += result->legal;
    search->fitting += result->fits;
    return STATUS_OK;
}

/* What takes more memory than `recompute`, for any micro-batch. */
static void close_above(bool *closed, int recompute)
{
    closed[recompute] = closed[CONFIG_RECOMPUTE_NONE] = true;
    for (int r = 0; r < RECOMPUTES && recompute == CONFIG_RECOMPUTE_BLOCK; r++) {
        closed[r] = true;
    }
}

struct seeker {
    struct search *search;
    const struct config *config;
    const struct hardware *hardware;
    struct plan *plan; /* owned: of one */
};

/* Micro-batches and recomputations of `one`. What cannot be with the smallest micro-batch cannot
 * be with any. */
static enum status seek_variants(struct seeker *s, struct search_result one)
{
    static const int order[RECOMPUTES] = {CONFIG_RECOMPUTE_BLOCK, CONFIG_RECOMPUTE_EXPERTS,
                                          CONFIG_RECOMPUTE_NORMS, CONFIG_RECOMPUTE_NONE};
    bool closed[RECOMPUTES] = {false};
    for (one.micro_batch = 1; one.micro_batch <= MOST_MICRO; one.micro_batch *= 2) {
        for (int i = 0; i < RECOMPUTES; i++) {
            struct search_result own = one;
            own.recompute = order[i];
            if (closed[own.recompute]) {
                s->search->left++;
                continue;
            }
            if (one.overlap != s->config->parallel.overlap &&
                search_overlap(&own, s->config, s->hardware->ranks) != one.overlap) {
                continue; /* is there already */
            }
            plan_one(&own, s->config, s->hardware, s->plan);
            TRY(add(s->search, &own));
            if (!own.legal && own.micro_batch == 1) {
                return STATUS_OK;
            }
            if (own.legal && !own.fits) {
                close_above(closed, own.recompute);
            }
        }
    }
    return STATUS_OK;
}

/* A layout with the first schedule and exact dispatch. */
static enum status seek_layout(struct seeker *s, struct search_result one)
{
    struct compare_schedule schedule[COMPARE_SCHEDULES];
    (void)schedules_of(schedule, s->config, one.pp);
    one.schedule = schedule[0];
    one.dispatch = CONFIG_EXACT;
    one.overlap = s->config->parallel.overlap;
    return seek_variants(s, one);
}

/* The same layout with all others. */
static enum status seek_others(struct seeker *s, struct search_result one)
{
    struct compare_schedule schedule[COMPARE_SCHEDULES];
    const int schedules = schedules_of(schedule, s->config, one.pp);
    /* padded is the same as exact, or refused with buffer_factor */
    const bool alone = one.ep * one.etp == 1, own_buffers = s->config->router.buffer_factor != 2;
    const int dispatches = alone || own_buffers ? 1 : 2;
    for (int i = 1; i < schedules * dispatches; i++) {
        one.schedule = schedule[i % schedules];
        one.dispatch = i < schedules ? CONFIG_EXACT : CONFIG_PADDED;
        TRY(seek_variants(s, one));
    }
    one.schedule = schedule[0];
    one.dispatch = CONFIG_EXACT;
    one.overlap = CONFIG_OVERLAP_ON;
    one.micro_batch = 1;
    const bool beside = s->config->parallel.overlap == CONFIG_OVERLAP_AUTO && one.pp == 1 &&
                        search_overlap(&one, s->config, s->hardware->ranks) == CONFIG_OVERLAP_ON;
    return beside ? seek_variants(s, one) : STATUS_OK;
}

static bool same_layout(const struct search_result *a, const struct search_result *b)
{
    return a->ep == b->ep && a->etp == b->etp && a->pp == b->pp && a->tp == b->tp &&
           a->cp == b->cp && a->zero == b->zero;
}

/* Of the sorted results' first BEST layouts. */
static enum status seek_best(struct seeker *s)
{
    struct search_result best[BEST];
    int count = 0;
    for (int64_t i = 0; i < s->search->legal && count < BEST; i++) {
        bool known = false;
        for (int k = 0; k < count; k++) {
            known |= same_layout(&best[k], &s->search->result[i]);
        }
        if (!known) {
            best[count++] = s->search->result[i];
        }
    }
    for (int k = 0; k < count; k++) {
        TRY(seek_others(s, best[k]));
    }
    return STATUS_OK;
}

/* How experts and states are divided where tokens are as `one` says. */
static enum status seek_experts(struct seeker *s, const struct architecture *arch,
                                struct search_result one)
{
    const int64_t ranks = s->hardware->ranks / one.pp;
    for (one.ep = 1; one.ep <= arch->experts && one.ep <= ranks; one.ep++) {
        for (one.etp = 1; arch->experts % one.ep == 0 && one.ep * one.etp <= ranks &&
                          one.etp <= s->hardware->ranks_per_node;
             one.etp *= 2) {
            for (one.zero = 1;
                 ranks % (one.ep * one.etp) == 0 && one.zero <= (ranks > 1 ? MOST_ZERO : 1);
                 one.zero++) {
                TRY(seek_layout(s, one));
            }
        }
    }
    return STATUS_OK;
}

/* A pipeline has at most as many ranks as the model has blocks. */
static enum status seek_all(struct seeker *s, bool stages)
{
    struct architecture arch;
    struct search_result one = {0};
    architecture_init(&arch, s->config);
    const int64_t ranks = s->hardware->ranks, most = stages ? MOST_STAGES : 1,
                  pieces = s->config->train.sequence_length / CP_PIECES;
    for (one.pp = 1; one.pp <= most && one.pp <= architecture_blocks(&arch); one.pp++) {
        for (one.tp = 1; ranks % one.pp == 0 && one.tp <= s->hardware->ranks_per_node;
             one.tp *= 2) {
            for (one.cp = 1; one.cp <= MOST_CONTEXT && one.cp <= pieces &&
                             ranks % (one.pp * one.tp * one.cp) == 0;
                 one.cp *= 2) {
                TRY(seek_experts(s, &arch, one));
            }
        }
    }
    return STATUS_OK;
}

static void sort(struct search *search)
{
    if (search->count > 0) {
        qsort(search->result, (size_t)search->count, sizeof *search->result, compare);
    }
}

enum status search_run(struct search *search, const struct config *config,
                       const struct hardware *hardware, bool stages)
{
    enum { KEPT = 1 << 30 }; /* bytes: each layout allocates much like the last */
    mallopt(M_TRIM_THRESHOLD, KEPT);
    mallopt(M_MMAP_THRESHOLD, KEPT);
    struct seeker seeker = {search, config, hardware, malloc(sizeof *seeker.plan)};
    *search = (struct search){.config = config};
    if (config->cluster.gpus_per_node <= 0 && hardware->cpu) {
        search->ranks_per_node = hardware->ranks_per_node;
    }
    enum status status = seeker.plan != NULL
                             ? seek_all(&seeker, stages)
                             : status_fail(STATUS_RESOURCE, "out of memory for a plan");
    sort(search);
    status = status == STATUS_OK ? seek_best(&seeker) : status;
    sort(search);
    free(seeker.plan);
    return status;
}

void search_free(struct search *search)
{
    free(search->result);
    *search = (struct search){0};
}

void search_overrides(const struct search *search, const struct search_result *r, char *out,
                      size_t bytes)
{
    const struct config *own = search->config;
    const struct {
        const char *key;
        int64_t value, own;
    } axes[] = {{"etp", r->etp, own->parallel.etp},
                {"tp", r->tp, own->parallel.tp},
                {"cp", r->cp, own->parallel.cp},
                {"zero", r->zero, own->parallel.zero},
                {"pp", r->pp, own->parallel.pp}};
    int at = snprintf(
        out, bytes, "parallel.ep=%lld train.micro_batch=%lld train.recompute=%s router.dispatch=%s",
        (long long)r->ep, (long long)r->micro_batch, recompute_names[r->recompute],
        dispatch_names[r->dispatch]);
    for (size_t i = 0; i < sizeof axes / sizeof axes[0]; i++) {
        if (axes[i].value > 1 || axes[i].value != axes[i].own) {
            at += snprintf(out + at, bytes - (size_t)at, " parallel.%s=%lld", axes[i].key,
                           (long long)axes[i].value);
        }
    }
    if (r->overlap != own->parallel.overlap) {
        at += snprintf(out + at, bytes - (size_t)at, " parallel.overlap=%s",
                       overlap_names[r->overlap]);
    }
    if (search->ranks_per_node > 0) {
        at += snprintf(out + at, bytes - (size_t)at, " cluster.gpus_per_node=%lld",
                       (long long)search->ranks_per_node);
    }
    if (r->pp > 1) {
        snprintf(out + at, bytes - (size_t)at, " parallel.schedule=%s parallel.virtual_stages=%lld",
                 compare_names[r->schedule.pipeline], (long long)r->schedule.virtual_stages);
    }
}

static void print_row(const struct search *search, const struct search_result *r)
{
    char text[OVERRIDES];
    search_overrides(search, r, text, sizeof text);
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
            print_row(search, r);
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
    char text[OVERRIDES];
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
    search_overrides(search, &search->result[0], text, sizeof text);
    printf("\nbest: %s\n", text);
    while (best < search->fitting && !search->result[best].trains) {
        best++;
    }
    if (best == search->fitting) {
        printf("none of those that fit is more than planned: see the warnings of `plan`\n");
    } else if (best > 0) {
        search_overrides(search, &search->result[best], text, sizeof text);
        printf("best that this version trains: %s\n", text);
    }
}

void search_print_text(const struct search *search, int64_t rows)
{
    const int64_t fewer = (rows + 3) / 4;
    printf("%lld layouts: %lld fit, %lld do not, %lld cannot be\n", (long long)search->count,
           (long long)search->fitting, (long long)(search->legal - search->fitting),
           (long long)(search->count - search->legal));
    if (search->left > 0) {
        printf("%lld more need more memory than one of those that do not fit\n",
               (long long)search->left);
    }
    printf("\n%12s %8s %8s\n", "tokens/s", "step s", "GB");
    print_part(search, 0, search->fitting, rows, "fit");
    print_part(search, search->fitting, search->legal, fewer, "do not fit");
    print_part(search, search->legal, search->count, fewer, "cannot be");
    print_best(search);
}

void search_print_json(const struct search *search)
{
    char text[OVERRIDES];
    printf("{\"layouts\":%lld,\"fitting\":%lld,\"legal\":%lld,\"left\":%lld,\"results\":[",
           (long long)search->count, (long long)search->fitting, (long long)search->legal,
           (long long)search->left);
    for (int64_t i = 0; i < search->count; i++) {
        const struct search_result *r = &search->result[i];
        search_overrides(search, r, text, sizeof text);
        json_out_text(stdout, i > 0 ? ",\n{\"overrides\":" : "\n{\"overrides\":", text);
        printf(",\"fits\":%s,\"legal\":%s,\"trains\":%s", r->fits ? "true" : "false",
               r->legal ? "true" : "false", r->legal && r->trains ? "true" : "false");
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
