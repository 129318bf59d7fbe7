#define _DEFAULT_SOURCE
#include "trainer/straggler.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trainer/figures.h"

enum { MOST_STEPS = 1024, COLUMNS = 1 + STEP_WORKS };

static enum status allocate(struct straggler *s)
{
    const size_t ranks = (size_t)s->world->size, room = (size_t)s->room;
    s->sample = calloc(room * COLUMNS, sizeof *s->sample);
    s->sorted = calloc(room > ranks ? room : ranks, sizeof *s->sorted);
    s->times = calloc(ranks, sizeof *s->times);
    s->streak = calloc(ranks, sizeof *s->streak);
    s->host = calloc(ranks, sizeof *s->host);
    return s->sample != NULL && s->sorted != NULL && s->times != NULL && s->streak != NULL &&
                   s->host != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for the times of %lld ranks",
                             (long long)ranks);
}

enum status straggler_init(struct straggler *straggler, const struct mesh *mesh,
                           const struct config *config, struct metrics *metrics)
{
    const bool seen = strcmp(comm_wire_name(&mesh->stage), "nccl") != 0 && mesh->world->size > 1;
    const int64_t every = seen ? config->watchdog.straggler_every_steps : 0;
    char host[STRAGGLER_HOST_BYTES] = "";
    *straggler = (struct straggler){.world = mesh->world,
                                    .metrics = metrics,
                                    .every = every,
                                    .ratio = config->watchdog.straggler_ratio,
                                    .room = every < MOST_STEPS ? every : MOST_STEPS};
    if (every == 0) {
        return STATUS_OK;
    }
    TRY(comm_agree(mesh->world, allocate(straggler), NULL));
    gethostname(host, sizeof host - 1);
    comm_all_gather(mesh->world, straggler->host, host, sizeof host);
    return STATUS_OK;
}

void straggler_free(struct straggler *straggler)
{
    free(straggler->sample);
    free(straggler->sorted);
    free(straggler->times);
    free(straggler->streak);
    free(straggler->host);
    *straggler = (struct straggler){0};
}

/* The faster of the middle two. */
static double lower_median(double *value, int64_t count)
{
    figure_sort(value, count);
    return value[(count - 1) / 2];
}

static struct straggler_times own_times(const struct straggler *s)
{
    double median[COLUMNS];
    const int64_t kept = s->steps < s->room ? s->steps : s->room;
    for (int c = 0; c < COLUMNS; c++) {
        for (int64_t i = 0; i < kept; i++) {
            s->sorted[i] = s->sample[i * COLUMNS + c];
        }
        median[c] = lower_median(s->sorted, kept);
    }
    struct straggler_times times = {.all = median[0]};
    memcpy(times.work, median + 1, sizeof times.work);
    return times;
}

bool straggler_slow(const struct straggler_times *times, int size, int rank, double ratio,
                    double *sorted, struct straggler_times *usual, enum step_work *work)
{
    double most = 0;
    for (int r = 0; r < size; r++) {
        sorted[r] = times[r].all;
    }
    usual->all = lower_median(sorted, size);
    *work = WORK_FORWARD_BACKWARD;
    for (int w = 0; w < STEP_WORKS; w++) {
        for (int r = 0; r < size; r++) {
            sorted[r] = times[r].work[w];
        }
        usual->work[w] = lower_median(sorted, size);
        const double loses = times[rank].work[w] - usual->work[w];
        if (loses > most) {
            most = loses;
            *work = (enum step_work)w;
        }
    }
    return times[rank].all > ratio * usual->all;
}

/* Rank 0. */
static void tell(struct straggler *s, int rank)
{
    static const char *const names[STEP_WORKS] = {[WORK_DATA] = "data",
                                                  [WORK_FORWARD_BACKWARD] = "forward and backward",
                                                  [WORK_REDUCE] = "reduce",
                                                  [WORK_OPTIMIZER] = "optimizer"};
    const struct straggler_times *own = &s->times[rank];
    struct straggler_times usual;
    enum step_work work;
    const bool slow =
        straggler_slow(s->times, s->world->size, rank, s->ratio, s->sorted, &usual, &work);
    const int64_t streak = s->streak[rank] = slow ? s->streak[rank] + 1 : 0;
    if (streak < 2 || (streak & (streak - 1)) != 0) {
        return;
    }
    metrics_say(s->metrics,
                "warning: rank %d (%s) is slow: its own work takes %.4g ms a step, %.2f times the "
                "median rank's %.4g; most in %s, %.4g ms where that one takes %.4g; in %lld looks "
                "of %lld steps; a slower machine, or more tokens for its experts",
                rank, s->host[rank], own->all, own->all / usual.all, usual.all, names[work],
                own->work[work], usual.work[work], (long long)streak, (long long)s->every);
}

void straggler_step(struct straggler *straggler, const struct step_result *result)
{
    struct straggler *s = straggler;
    if (s->every == 0) {
        return;
    }
    double *row = s->sample + s->steps % s->room * COLUMNS;
    row[0] = 0;
    for (int w = 0; w < STEP_WORKS; w++) {
        row[1 + w] = result->own_ms[w];
        row[0] += result->own_ms[w];
    }
    s->steps++;
    if (s->steps < s->every) {
        return;
    }
    const struct straggler_times own = own_times(s);
    comm_all_gather(s->world, s->times, &own, sizeof own);
    for (int r = 0; r < s->world->size && s->world->rank == 0; r++) {
        tell(s, r);
    }
    s->steps = 0;
}
