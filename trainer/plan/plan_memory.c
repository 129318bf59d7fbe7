#include "trainer/plan/planner.h"

const struct stage_memory *planner_memory_of(const struct planner *p, int64_t rank, int64_t part)
{
    return &p->memory[pipeline_stage(&p->plan->shape, rank, part)];
}

/* What a save has is wanted: on a CPU it is of the memory that there must be. */
static bool has_saves(const struct planner *p)
{
    return !p->brief || p->plan->hardware.cpu;
}

size_t planner_least_memory(const struct plan *plan)
{
    const struct architecture *arch = &plan->arch;
    const double act = plan->config->train.precision == CONFIG_FP32 ? 0 : 2, gradient = 4,
                 master = 4, /* in fp32 the weights */
        one = 3.0 * (double)arch->expert_width * (double)arch->width,
                 all = one * (double)arch->experts * (double)(arch->layers - arch->dense_layers),
                 held = all / (double)(plan->pp * plan->ep * plan->etp);
    return (size_t)(held * (act + gradient + (act > 0 ? master / (double)plan->edp : master)));
}

enum status planner_measure(struct planner *p)
{
    const struct plan *plan = p->plan;
    const double measured = plan->shape.schedule == PIPELINE_PAIRS ? 2 : 1; /* micro-batches */
    for (int64_t s = 0; s < pipeline_stages(&plan->shape); s++) {
        const struct stage *own = &plan->stage[s], *last = s > 0 ? own - 1 : own;
        const int64_t alike = plan->config->fp8.first_bf16 > plan->arch.dense_layers
                                  ? plan->config->fp8.first_bf16
                                  : plan->arch.dense_layers,
                      end = plan->arch.layers - plan->config->fp8.last_bf16;
        const bool middle = s > 1 && !own->head && own->blocks == last->blocks &&
                            last->first >= alike && own->first + own->blocks <= end;
        if (middle) {
            p->memory[s] = p->memory[s - 1];
        } else {
            TRY(memory_of_stage(&p->memory[s], plan->config, own, plan->hardware.device,
                                plan->dp * plan->cp * plan->tp, plan->ep, has_saves(p)));
        }
        p->kept[s] = (double)p->memory[s].kind[MODEL_BLOCKS] / measured;
    }
    return STATUS_OK;
}

/* Parameters of a stage on a rank. */
static int64_t held_by(const struct stage_memory *stage)
{
    return stage->elements[PARAM_DENSE] + stage->elements[PARAM_TENSOR] +
           stage->elements[PARAM_EXPERT] + stage->elements[PARAM_EMBED];
}

/* States of all stages of a rank, what it keeps of the micro-batches under way, and of what stages
 * use one after the other the larger. */
static struct plan_memory estimate_rank(const struct planner *p, int64_t rank)
{
    struct plan_memory memory = {.stage = pipeline_stage(&p->plan->shape, rank, 0)};
    for (int64_t part = 0; part < p->plan->shape.parts; part++) {
        memory.staging += planner_memory_of(p, rank, part)->staging;
        memory.host += planner_memory_of(p, rank, part)->host;
    }
    for (int k = 0; k < MODEL_MEMORIES; k++) {
        for (int64_t part = 0; part < p->plan->shape.parts; part++) {
            const size_t own = planner_memory_of(p, rank, part)->kind[k];
            memory.kind[k] = k <= MODEL_MOMENTS     ? memory.kind[k] + own
                             : own > memory.kind[k] ? own
                                                    : memory.kind[k];
        }
        memory.kind[k] = k == MODEL_BLOCKS ? (size_t)p->held[rank] : memory.kind[k];
        memory.arenas += memory.kind[k];
    }
    return memory;
}

/* A rank that may be the fullest. */
static void take_fuller(struct plan *plan, const struct plan_memory *memory, int64_t held)
{
    if (memory->arenas > plan->memory.arenas) {
        plan->memory = *memory;
        plan->held = held;
    }
}

static void estimate_fullest(struct planner *p)
{
    struct plan *plan = p->plan;
    for (int64_t r = 0; r < plan->pp; r++) {
        const struct plan_memory memory = estimate_rank(p, r);
        int64_t held = 0;
        for (int64_t part = 0; part < plan->shape.parts; part++) {
            held += held_by(planner_memory_of(p, r, part));
        }
        take_fuller(plan, &memory, held);
    }
}

/* What a rank keeps no longer grows when every rank is busy: batches of a brief plan's schedule are
 * no more than tell this. */
static struct config few_batches(const struct planner *p)
{
    const struct plan *plan = p->plan;
    struct config config = *plan->config; /* its texts are borrowed */
    const int64_t few = 8 * plan->pp;
    if (p->brief && plan->micro_batches > few) {
        config.train.global_batch = few * plan->dp * config.train.micro_batch;
    }
    return config;
}

/* As training lays it out: of the one estimated to be the fullest, and of both ends. */
static enum status measure_fullest(struct planner *p)
{
    struct plan *plan = p->plan;
    const struct config config = few_batches(p);
    const int64_t ranks[] = {pipeline_place(&plan->shape, plan->memory.stage, 0).rank, 0,
                             plan->pp - 1};
    plan->memory = (struct plan_memory){0};
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        struct stage_memory own;
        struct plan_memory memory = {.stage = pipeline_stage(&plan->shape, ranks[i], 0)};
        if (i > 0 && ranks[i] == ranks[0]) {
            continue;
        }
        TRY(memory_of_rank(&own, &config, plan->pp, ranks[i], plan->hardware.device,
                           plan->dp * plan->cp * plan->tp, plan->ep, has_saves(p)));
        memory.staging = own.staging;
        memory.host = own.host;
        memory.shared = own.elements[PARAM_EMBED];
        for (int k = 0; k < MODEL_MEMORIES; k++) {
            memory.kind[k] = own.kind[k];
            memory.arenas += own.kind[k];
        }
        take_fuller(plan, &memory, held_by(&own));
    }
    return STATUS_OK;
}

enum status planner_memory(struct planner *p)
{
    struct plan *plan = p->plan;
    estimate_fullest(p);
    if (plan->pp > 1 && planner_has_stages(plan)) {
        TRY(measure_fullest(p));
    }
    struct plan_memory *most = &plan->memory;
    struct stage_memory fullest = p->memory[most->stage];
    size_t untouched = 0;
    fullest.elements[PARAM_EMBED] = most->shared;
    most->outside = memory_outside(plan->config, &plan->hardware, &plan->arch, &fullest, plan->dp);
    most->all =
        most->arenas + most->outside + (plan->hardware.cpu ? most->staging + most->host : 0);
    if (plan->hardware.cpu && plan->pp * plan->tp * plan->cp == 1) {
        TRY(memory_untouched(&untouched, plan->config, &plan->stage[0], &fullest,
                             plan->hardware.device, plan->dp, plan->ep));
    }
    most->peak = most->all - untouched;
    plan->fits = (double)most->all <= plan->hardware.memory;
    return STATUS_OK;
}
