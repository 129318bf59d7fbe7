#define _DEFAULT_SOURCE
#include "trainer/straggler.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parallel/activity.h"
#include "trainer/figures.h"

enum { MOST_STEPS = 1024, COLUMNS = 2 + STEP_WORKS };

static enum status allocate(struct straggler *s, int threads)
{
    const size_t ranks = (size_t)s->world->size, room = (size_t)s->room;
    TRY(core_wait_open(&s->cores, threads));
    s->sample = calloc(room * COLUMNS, sizeof *s->sample);
    s->sorted = calloc(room > ranks ? room : ranks, sizeof *s->sorted);
    s->times = calloc(ranks, sizeof *s->times);
    s->streak = calloc(ranks, sizeof *s->streak);
    s->host = calloc(ranks, sizeof *s->host);
    s->core_ns = calloc((size_t)threads, sizeof *s->core_ns);
    return s->sample != NULL && s->sorted != NULL && s->times != NULL && s->streak != NULL &&
                   s->host != NULL && s->core_ns != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for the times of %lld ranks",
                             (long long)ranks);
}

enum status straggler_init(struct straggler *straggler, const struct stepper *stepper, int threads,
                           struct metrics *metrics)
{
    const struct model *model = stepper->model;
    const struct config *config = model->config;
    const struct mesh *mesh = model->mesh;
    const bool seen = strcmp(comm_wire_name(&mesh->stage), "nccl") != 0 && mesh->world->size > 1;
    const int64_t every = seen ? config->watchdog.straggler_every_steps : 0;
    char host[STRAGGLER_HOST_BYTES] = "";
    *straggler = (struct straggler){
        .world = mesh->world,
        .stepper = stepper,
        .metrics = metrics,
        .every = every,
        .ratio = config->watchdog.straggler_ratio,
        .expert_part = architecture_expert_part(&model->whole, config->train.sequence_length),
        .room = every < MOST_STEPS ? every : MOST_STEPS};
    if (every == 0) {
        return STATUS_OK;
    }
    TRY(comm_agree(mesh->world, allocate(straggler, threads), NULL));
    if (straggler->cores.threads > 0) {
        mesh->world->activity->cores = &straggler->cores;
    }
    gethostname(host, sizeof host - 1);
    comm_all_gather(mesh->world, straggler->host, host, sizeof host);
    return STATUS_OK;
}

void straggler_free(struct straggler *straggler)
{
    if (straggler->world != NULL) {
        straggler->world->activity->cores = NULL;
    }
    core_wait_close(&straggler->cores);
    free(straggler->core_ns);
    free(straggler->sample);
    free(straggler->sorted);
    free(straggler->times);
    free(straggler->streak);
    free(straggler->host);
    *straggler = (struct straggler){0};
}

/* --- One step --- */

void straggler_begin(struct straggler *straggler)
{
    struct straggler *s = straggler;
    for (int i = 0; i < s->cores.threads; i++) {
        s->core_ns[i] = core_wait_ns(&s->cores, i);
    }
    s->message_ns = s->cores.threads > 0 ? s->world->activity->coreless_ns : 0;
}

/* That this step's own work has waited for a core: the thread that communicates outside of
 * communication, or the one of its team that waited longest. */
static double core_wait_ms(const struct straggler *s)
{
    int64_t most = 0;
    for (int i = 0; i < s->cores.threads; i++) {
        int64_t waited = core_wait_ns(&s->cores, i) - s->core_ns[i];
        waited -= i == 0 ? s->world->activity->coreless_ns - s->message_ns : 0;
        most = waited > most ? waited : most;
    }
    return (double)most / 1e6;
}

/* Of the blocks that this rank has. With etp every rank of an expert has all of its tokens. */
static void count_tokens(struct straggler *s)
{
    const struct stepper *stepper = s->stepper;
    const struct model *model = stepper->model;
    const struct comm *ep = &model->mesh->ep;
    const int64_t experts = model->arch.experts, each = experts / ep->size;
    for (int64_t m = 0; m < stepper->moe_blocks; m++) {
        const int64_t *load = stepper->load + m * experts;
        for (int64_t e = 0; e < experts && slice_has(&model->slice, model->arch.dense_layers + m);
             e++) {
            s->all_tokens += load[e];
            s->tokens += e / each == ep->rank ? load[e] : 0;
        }
    }
}

static void keep_step(struct straggler *s, const struct step_result *result)
{
    double *row = s->sample + s->steps % s->room * COLUMNS, all = 0;
    const double without_core = core_wait_ms(s);
    for (int w = 0; w < STEP_WORKS; w++) {
        row[2 + w] = result->own_ms[w];
        all += result->own_ms[w];
    }
    row[0] = all > without_core ? all - without_core : 0;
    row[1] = all;
    count_tokens(s);
    s->steps++;
}

/* --- A look --- */

/* Below it a quarter of the values. */
static double lower_quartile(double *value, int64_t count)
{
    figure_sort(value, count);
    return value[(count - 1) / 4];
}

/* The faster of the middle two. */
static double lower_median(double *value, int64_t count)
{
    figure_sort(value, count);
    return value[(count - 1) / 2];
}

static struct straggler_times own_times(const struct straggler *s)
{
    double typical[COLUMNS];
    const int64_t kept = s->steps < s->room ? s->steps : s->room;
    for (int c = 0; c < COLUMNS; c++) {
        for (int64_t i = 0; i < kept; i++) {
            s->sorted[i] = s->sample[i * COLUMNS + c];
        }
        typical[c] = lower_quartile(s->sorted, kept);
    }
    const double mean = (double)s->all_tokens / (double)s->stepper->model->mesh->ep.size;
    struct straggler_times times = {
        .own = typical[0], .with = typical[1], .share = mean > 0 ? (double)s->tokens / mean : 1};
    memcpy(times.work, typical + 2, sizeof times.work);
    return times;
}

/* Own work of a rank whose experts got the mean rank's tokens. */
static double evened(const struct straggler_times *times, double expert_part)
{
    return times->own / (1 - expert_part + expert_part * times->share);
}

enum straggler_verdict straggler_judge(const struct straggler_times *times, int size, int rank,
                                       double ratio, double expert_part, double *sorted,
                                       struct straggler_times *usual, enum step_work *work)
{
    const struct straggler_times *own = &times[rank];
    double most = 0;
    for (int r = 0; r < size; r++) {
        sorted[r] = evened(&times[r], expert_part);
    }
    const double even = lower_median(sorted, size);
    for (int r = 0; r < size; r++) {
        sorted[r] = times[r].own;
    }
    usual->own = lower_median(sorted, size);
    for (int r = 0; r < size; r++) {
        sorted[r] = times[r].with;
    }
    usual->with = lower_median(sorted, size);
    *work = WORK_FORWARD_BACKWARD;
    for (int w = 0; w < STEP_WORKS; w++) {
        for (int r = 0; r < size; r++) {
            sorted[r] = times[r].work[w];
        }
        usual->work[w] = lower_median(sorted, size);
        const double loses = own->work[w] - usual->work[w];
        if (loses > most) {
            most = loses;
            *work = (enum step_work)w;
        }
    }
    if (own->own > ratio * usual->own) {
        return evened(own, expert_part) > ratio * even ? STRAGGLER_SLOW : STRAGGLER_NONE;
    }
    return own->with > ratio * usual->with ? STRAGGLER_STARVED : STRAGGLER_NONE;
}

static void tell_slow(const struct straggler *s, int rank, const struct straggler_times *usual,
                      enum step_work work, int64_t looks)
{
    static const char *const names[STEP_WORKS] = {[WORK_DATA] = "data",
                                                  [WORK_FORWARD_BACKWARD] = "forward and backward",
                                                  [WORK_REDUCE] = "reduce",
                                                  [WORK_OPTIMIZER] = "optimizer"};
    const struct straggler_times *own = &s->times[rank];
    metrics_say(s->metrics,
                "warning: rank %d (%s) is slow: its own work takes %.4g ms a step, %.2f times the "
                "median rank's %.4g; most in %s, %.4g ms where that one takes %.4g; in %lld looks "
                "of %lld steps; its experts get %.2f times the mean rank's tokens",
                rank, s->host[rank], own->own, own->own / usual->own, usual->own, names[work],
                own->work[work], usual->work[work], (long long)looks, (long long)s->every,
                own->share);
}

static void tell_starved(const struct straggler *s, int rank, const struct straggler_times *usual,
                         int64_t looks)
{
    const struct straggler_times *own = &s->times[rank];
    metrics_say(s->metrics,
                "warning: rank %d (%s) is kept from its cores: a step's own work takes %.4g ms, "
                "%.2f times the median rank's %.4g, but %.4g without waits for a core; in %lld "
                "looks of %lld steps; something else runs there, or a quota is spent",
                rank, s->host[rank], own->with, own->with / usual->with, usual->with, own->own,
                (long long)looks, (long long)s->every);
}

/* Rank 0: about rank `rank`, among those of its stage. */
static void tell(struct straggler *s, int rank)
{
    struct straggler_times usual;
    enum step_work work;
    const int size = s->stepper->model->mesh->stage.size, first = rank / size * size;
    const enum straggler_verdict verdict = straggler_judge(
        s->times + first, size, rank - first, s->ratio, s->expert_part, s->sorted, &usual, &work);
    for (int v = STRAGGLER_SLOW; v <= STRAGGLER_STARVED; v++) {
        int64_t *streak = &s->streak[rank][v - STRAGGLER_SLOW];
        *streak = (int)verdict == v ? *streak + 1 : 0;
        const bool named = *streak >= 2 && (*streak & (*streak - 1)) == 0;
        if (named && v == STRAGGLER_SLOW) {
            tell_slow(s, rank, &usual, work, *streak);
        } else if (named) {
            tell_starved(s, rank, &usual, *streak);
        }
    }
}

void straggler_step(struct straggler *straggler, const struct step_result *result)
{
    struct straggler *s = straggler;
    if (s->every == 0) {
        return;
    }
    keep_step(s, result);
    if (s->steps < s->every) {
        return;
    }
    const struct straggler_times own = own_times(s);
    comm_all_gather(s->world, s->times, &own, sizeof own);
    for (int r = 0; r < s->world->size && s->world->rank == 0; r++) {
        tell(s, r);
    }
    s->steps = s->tokens = s->all_tokens = 0;
}
