#include <math.h>

#include "parallel/timeline.h"
#include "trainer/plan/planner.h"
#include "trainer/plan/play_trace.h"

/* Messages of a block's forward or backward that nothing of the same micro-batch runs beside. */
static double exposed(const struct planner *p, const struct work *work, bool backward)
{
    const double *s = p->exchange;
    const double forward =
        fmax(0, s[EXCHANGE_DISPATCH] - work->shared[PHASE_FORWARD]) + s[EXCHANGE_COMBINE];
    if (!backward) {
        return forward;
    }
    const bool again = p->plan->config->train.recompute == CONFIG_RECOMPUTE_BLOCK;
    return fmax(0, s[EXCHANGE_DISPATCH_BACK] - work->shared[PHASE_BACKWARD] -
                       work->shared[PHASE_WEIGHT]) +
           fmax(0, s[EXCHANGE_COMBINE_BACK] - work->up_weight) + (again ? forward : 0);
}

/* One micro-batch on one stage. */
struct stage_time {
    double kernel[PHASES], exposed[2]; /* [backward] */
    double messages[2];                /* [backward], beside kernels */
    double split;                      /* of exposed: those of parallel.tp and cp */
    struct work_ring ring;
};

static void add_work(struct stage_time *time, const struct work *work)
{
    for (int i = 0; i < PHASES; i++) {
        time->kernel[i] += work_sum(work, (enum phase)i);
    }
}

/* Around the embedding or the head, with tp: as much forward as backward. */
static void add_vocabulary(struct stage_time *time, const struct planner *p, int times)
{
    const double seconds = times * work_vocabulary_messages(&p->load);
    time->exposed[0] += seconds;
    time->exposed[1] += seconds;
    time->split += 2 * seconds;
}

static struct stage_time time_stage(const struct planner *p, const struct stage *stage)
{
    const struct architecture *arch = &p->plan->arch;
    struct stage_time time = {0};
    for (int64_t b = stage->first; b < stage->first + stage->blocks; b++) {
        const struct work *work = planner_work(p, b);
        add_work(&time, work);
        if (b >= arch->layers) {
            add_work(&time, &p->head);
            add_vocabulary(&time, p, 2); /* a module reads embedding and head */
        }
        const enum work_block kind = b < arch->dense_layers ? WORK_DENSE : WORK_MOE;
        for (int way = 0; way < 2; way++) { /* nothing runs beside those of tp, and routers' */
            const double split =
                work_split_messages(&p->load, kind, way == 1) +
                (kind == WORK_DENSE ? 0 : work_router_messages(&p->load, way == 1));
            const struct work_ring ring = work_context(&p->load, work, way == 1);
            time.exposed[way] += split + ring.exposed;
            time.split += split + ring.exposed;
            time.ring.messages += ring.messages;
            time.ring.exposed += ring.exposed;
        }
        if (b >= arch->dense_layers) {
            time.exposed[0] += exposed(p, work, false);
            time.exposed[1] += exposed(p, work, true);
            time.messages[0] +=
                p->exchange_busy[EXCHANGE_DISPATCH] + p->exchange_busy[EXCHANGE_COMBINE];
            time.messages[1] +=
                p->exchange_busy[EXCHANGE_DISPATCH_BACK] + p->exchange_busy[EXCHANGE_COMBINE_BACK];
        }
    }
    if (stage->embedding) {
        add_work(&time, &p->embedding);
        add_vocabulary(&time, p, 1);
    }
    if (stage->head) {
        add_work(&time, &p->head);
        add_vocabulary(&time, p, 1);
    }
    return time;
}

static double kernels_of(const struct stage_time *time)
{
    return time->kernel[PHASE_FORWARD] + time->kernel[PHASE_BACKWARD] + time->kernel[PHASE_WEIGHT];
}

/* Costs of the stages, as the timeline wants them. */
struct stage_costs {
    double forward[PLAN_STAGES], input[PLAN_STAGES], weights[PLAN_STAGES], pair[PLAN_STAGES];
    double kernels[PLAN_STAGES];
    struct work_ring ring[PLAN_STAGES];
    struct timeline_costs costs; /* views of the above */
};

static void fill_costs(const struct planner *p, struct stage_costs *out)
{
    const struct plan *plan = p->plan;
    const struct hardware *hw = &plan->hardware;
    const int64_t stages = pipeline_stages(&plan->shape);
    const double stream = p->load.exchange.row_back * (double)p->load.tokens / p->load.split;
    struct stage_time time[PLAN_STAGES];
    for (int64_t s = 0; s < stages; s++) {
        time[s] = time_stage(p, &plan->stage[s]);
    }
    for (int64_t s = 0; s < stages; s++) {
        const struct stage_time *own = &time[s], *other = &time[stages - 1 - s];
        const double kernels = own->kernel[PHASE_FORWARD] + other->kernel[PHASE_BACKWARD] +
                               other->kernel[PHASE_WEIGHT],
                     messages = own->messages[0] + other->messages[1];
        out->forward[s] = own->kernel[PHASE_FORWARD] + own->exposed[0];
        out->input[s] = own->kernel[PHASE_BACKWARD] + own->exposed[1];
        out->weights[s] = own->kernel[PHASE_WEIGHT];
        out->pair[s] = fmax(kernels, messages) * (messages > 0 ? 1 + hw->imperfect : 1) +
                       (own->split + other->split) / 2;
        out->kernels[s] = kernels_of(own);
        out->ring[s] = own->ring;
    }
    out->costs = (struct timeline_costs){
        .forward = out->forward,
        .input = out->input,
        .weights = out->weights,
        .pair = planner_overlaps(plan) ? out->pair : NULL, /* NULL: one behind the other */
        .kept = p->kept,
        .hop = stream / (hw->network_share * hw->network) + hw->message,
    };
}

/* Of one micro-batch: the slowest stage's. */
static void note_units(struct plan *plan, const struct stage_costs *costs)
{
    for (int64_t s = 0; s < pipeline_stages(&plan->shape); s++) {
        plan->time.forward = fmax(plan->time.forward, costs->forward[s]);
        plan->time.backward = fmax(plan->time.backward, costs->input[s]);
        plan->time.weight = fmax(plan->time.weight, costs->weights[s]);
        plan->time.pair =
            fmax(plan->time.pair, costs->costs.pair != NULL
                                      ? costs->pair[s]
                                      : costs->forward[s] + costs->input[s] + costs->weights[s]);
        if (costs->ring[s].messages > plan->time.ring.messages) {
            plan->time.ring = costs->ring[s];
        }
    }
}

/* Of the fullest rank: in stages of micro-batches, and these as a pp-th of the model. */
static enum status note_held(struct plan *plan, const struct pipeline *pipeline)
{
    struct pipeline_room room[PLAN_RANKS];
    int64_t most = 0;
    TRY(pipeline_check(pipeline, room));
    for (int64_t r = 0; r < plan->pp; r++) {
        most = room[r].held > most ? room[r].held : most;
    }
    plan->held_batches = (double)most * (double)plan->pp / (double)pipeline_stages(&plan->shape);
    return STATUS_OK;
}

/* s of a step of `batches` micro-batches, and what of it the busiest rank waits; all else that the
 * table says goes to the plan. */
static enum status play(struct planner *p, const struct stage_costs *costs, int64_t batches,
                        double *seconds, double *idle)
{
    struct pipeline_shape shape = p->plan->shape;
    struct pipeline pipeline;
    struct timeline timeline = {0};
    shape.batches = batches;
    enum status status = pipeline_init(&pipeline, &shape);
    status = status == STATUS_OK ? note_held(p->plan, &pipeline) : status;
    status = status == STATUS_OK ? timeline_play(&timeline, &pipeline, &costs->costs) : status;
    for (int64_t r = 0; r < shape.ranks && status == STATUS_OK; r++) {
        p->held[r] = timeline.kept[r];
    }
    if (status == STATUS_OK && p->trace != NULL) {
        status = play_trace_write(p->trace, &pipeline, &timeline);
    }
    *seconds = timeline.seconds;
    *idle = timeline.idle;
    timeline_free(&timeline);
    pipeline_free(&pipeline);
    return status;
}

/* Of very many micro-batches the first are played, which tell what each more takes: once every rank
 * is busy, two for each rank take as long as the two for each before. */
static enum status play_all(struct planner *p, const struct stage_costs *costs, double *seconds,
                            double *idle)
{
    enum { MOST = 512 };
    const int64_t batches = p->plan->micro_batches, ranks = p->plan->pp,
                  wanted = p->brief ? 4 * ranks : MOST / 2,
                  few = (wanted + 2 * ranks - 1) / (2 * ranks) * 2 * ranks;
    double before = 0, before_idle = 0;
    if (batches <= 2 * few) {
        return play(p, costs, batches, seconds, idle);
    }
    TRY(play(p, costs, few, &before, &before_idle));
    TRY(play(p, costs, 2 * few, seconds, idle));
    const double more = (double)(batches - 2 * few) / (double)few;
    *seconds += (*seconds - before) * more;
    *idle += (*idle - before_idle) * more;
    return STATUS_OK;
}

enum status planner_time(struct planner *p)
{
    struct plan *plan = p->plan;
    struct stage_costs costs;
    double seconds = 0, idle = 0, most = 0;
    plan->time = (struct plan_times){0};
    fill_costs(p, &costs);
    note_units(plan, &costs);
    TRY(play_all(p, &costs, &seconds, &idle));
    for (int64_t r = 0; r < plan->pp; r++) {
        double own = 0;
        for (int64_t part = 0; part < plan->shape.parts; part++) {
            own += costs.kernels[pipeline_stage(&plan->shape, r, part)];
        }
        most = fmax(most, own);
    }
    const int64_t ways = plan->shape.schedule == PIPELINE_DUALPIPE ? 2 : 1; /* a half each */
    plan->time.kernels = (double)plan->micro_batches * most / (double)ways;
    plan->time.bubble = idle;
    plan->time.exposed = fmax(0, seconds - idle - plan->time.kernels);
    plan->time.step = seconds;
    return STATUS_OK;
}
