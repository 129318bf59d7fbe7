#include "trainer/verify.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/difference.h"
#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/fault.h"
#include "trainer/rounding.h"
#include "trainer/state.h"
#include "trainer/step.h"
#include "trainer/synthetic.h"

enum { MAX_PATH = 4096 };
static const char MARKER[] = "made-by-verify";

/* One of those that are compared. */
struct side {
    struct config config; /* borrows the session's texts */
    struct step_result step;
    int64_t *load; /* [blocks, experts] owned: tokens per expert */
    int64_t loads;
    char root[MAX_PATH];       /* of its checkpoint */
    char checkpoint[MAX_PATH]; /* "" until saved */
};

struct sides {
    struct side layout, reference; /* reference: one rank */
    struct side exact;             /* one rank in fp32, where the report is `rounded` */
};

/* --- One step --- */

/* Micro-batches of a rank with data of its own: as few as its schedule wants. */
static int64_t batches_of(const struct config *config)
{
    const bool twice = config->parallel.schedule == CONFIG_PIPELINE_DUALPIPE_V ||
                       (config->parallel.pp == 1 && config->parallel.overlap == CONFIG_OVERLAP_ON);
    return config->parallel.pp * (twice ? 2 : 1);
}

/* The run's config, but for what makes the comparison small and its gradients readable. */
static struct config tiny(const struct session *session, const struct mesh_shape *shape)
{
    struct config config = session->config;
    config.train.global_batch =
        config.train.micro_batch * session->mesh.dp.size * batches_of(&config);
    config.train.batch_ramp.start = 0;
    config.optimizer.moments = CONFIG_MOMENTS_FP32;
    config.parallel.ep = shape->ep;
    config.parallel.etp = shape->etp;
    config.parallel.tp = shape->tp;
    config.parallel.pp = shape->pp;
    config.parallel.cp = shape->cp;
    return config;
}

static enum status keep_load(struct side *side, const struct stepper *stepper)
{
    side->loads = stepper->moe_blocks * stepper->model->arch.experts;
    side->load = malloc((size_t)side->loads * sizeof *side->load + 1);
    if (side->load == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for tokens per expert");
    }
    memcpy(side->load, stepper->load, (size_t)side->loads * sizeof *side->load);
    return STATUS_OK;
}

/* Saves what the model holds under `root`; the path of it in `checkpoint`. */
static enum status save(const struct model *model, const char *root, char checkpoint[MAX_PATH])
{
    const struct progress_state at = {.step = 1};
    TRY(state_save(model, root, &at, "none"));
    snprintf(checkpoint, MAX_PATH, "%.4000s/00000001", root);
    return STATUS_OK;
}

/* Loads the side's checkpoint into the model, whatever it holds, and saves it again. */
static enum status save_again(struct model *model, const struct side *side, const char *root,
                              char checkpoint[MAX_PATH])
{
    struct progress_state at;
    model_initialize(model);
    TRY(state_load(model, side->checkpoint, &at));
    return save(model, root, checkpoint);
}

/* Collective over mesh->world. again: where to save what was loaded, or NULL. */
static enum status run_model(struct model *model, struct stepper *stepper, struct side *side,
                             const char *again, char again_path[MAX_PATH])
{
    model_initialize(model);
    TRY(stepper_step(stepper, 1, 0, &side->step));
    TRY(comm_agree(model->mesh->world, keep_load(side, stepper), NULL));
    TRY(save(model, side->root, side->checkpoint));
    return again != NULL ? save_again(model, side, again, again_path) : STATUS_OK;
}

static enum status run_side(const struct session *session, struct mesh *mesh, struct side *side,
                            const char *again, char again_path[MAX_PATH])
{
    struct model model = {0};
    struct stepper stepper = {0};
    struct synthetic data = {0};
    enum status status = comm_agree(mesh->world, synthetic_init(&data, &side->config), NULL);
    if (status == STATUS_OK) {
        status = comm_agree(mesh->world,
                            model_init(&model, &side->config, mesh, session->device,
                                       side->config.train.micro_batch,
                                       side->config.train.sequence_length, true),
                            NULL);
    }
    if (status == STATUS_OK) {
        status = comm_agree(mesh->world, stepper_init(&stepper, &model, &data.mixture), NULL);
    }
    if (status == STATUS_OK) {
        status = run_model(&model, &stepper, side, again, again_path);
    }
    stepper_free(&stepper);
    model_free(&model);
    synthetic_free(&data);
    return status;
}

/* Rank 0 with all experts, in a world of its own. */
static enum status run_alone(const struct session *session, struct comm *alone, struct side *side)
{
    struct mesh mesh = {0};
    struct architecture arch;
    architecture_init(&arch, &side->config);
    const struct mesh_shape shape = mesh_shape_of(1, 1);
    enum status status = mesh_init(&mesh, alone, &shape, arch.experts);
    status = status == STATUS_OK ? mesh_attach(&mesh, session->device, "auto") : status;
    status = status == STATUS_OK ? run_side(session, &mesh, side, NULL, NULL) : status;
    mesh_free(&mesh);
    if (status == STATUS_RESOURCE) {
        char why[VERIFY_TEXT];
        snprintf(why, sizeof why, "%.300s", status_message());
        return status_fail(status,
                           "the whole model on one rank: %s: verify a shorter model, such as "
                           "model.num_hidden_layers=2",
                           why);
    }
    return status;
}

/* --- Comparison --- */

static struct verify_row *new_row(struct verify_report *report, const char *what, double allowed)
{
    struct verify_row *row = &report->row[report->rows++];
    *row = (struct verify_row){.what = what,
                               .allowed = allowed,
                               .layout = (double)NAN,
                               .reference = (double)NAN,
                               .good = true};
    return row;
}

static void compare_number(struct verify_report *report, const char *what, double layout,
                           double reference, double allowed)
{
    if (isnan(layout) && isnan(reference)) {
        return; /* the model has no such thing */
    }
    struct verify_row *row = new_row(report, what, allowed);
    row->layout = layout;
    row->reference = reference;
    row->difference = layout == reference ? 0 : fabs(layout - reference) / fabs(reference);
    row->good = row->difference <= allowed;
}

/* Share of the choices of experts that fell another way. */
static double moved(const struct side *a, const struct side *b, double *choices)
{
    double gaps = 0;
    *choices = 0;
    for (int64_t i = 0; i < a->loads; i++) {
        gaps += fabs((double)(a->load[i] - b->load[i])) / 2;
        *choices += (double)b->load[i];
    }
    return gaps == 0 ? 0 : gaps / *choices;
}

/* Routing decisions are the same or they are not; where rounding makes them, as many may be others
 * as it changes of one rank's (and two, which may fall either way). */
static void compare_loads(struct verify_report *report, const struct sides *sides, int64_t experts)
{
    const struct side *layout = &sides->layout, *reference = &sides->reference;
    struct verify_row *row = new_row(report, "tokens per expert", 0);
    double choices = 0;
    row->compared = layout->loads;
    for (int64_t i = layout->loads; i-- > 0;) {
        if (layout->load[i] != reference->load[i]) {
            row->good = false;
            row->difference += 1;
            snprintf(row->worst, sizeof row->worst, "block %lld expert %lld: %lld and %lld",
                     (long long)(i / experts), (long long)(i % experts), (long long)layout->load[i],
                     (long long)reference->load[i]);
        }
    }
    if (report->rounded) {
        row->allowed = 2 * moved(reference, &sides->exact, &choices);
        row->difference = moved(layout, reference, &choices);
        row->allowed += 2 / fmax(choices, 1);
        row->good = row->difference <= row->allowed;
    }
}

enum kind { GRADIENTS, WEIGHTS, KINDS, DERIVED };

/* What a tensor of a checkpoint is. Second moments, averages and weights rounded from masters say
 * nothing that the others don't; nor, where rounding moves choices, does the bias of their choice,
 * a step up or down by the sign of what tokens per expert say. */
static enum kind kind_of(const struct difference *d, bool rounded)
{
    const struct manifest_tensor *tensor = d->a != NULL ? d->a : d->b;
    if (strncmp(d->name, "moment1/", 8) == 0) {
        return GRADIENTS;
    }
    if (strncmp(d->name, "moment2/", 8) == 0 || strncmp(d->name, "ema/", 4) == 0 ||
        (rounded && strstr(d->name, "e_score_correction_bias") != NULL)) {
        return DERIVED;
    }
    return strncmp(d->name, "master/", 7) == 0 || tensor->dtype == DTYPE_F32 ? WEIGHTS : DERIVED;
}

struct comparison {
    struct verify_row *row[KINDS];
    char first[KINDS][VERIFY_TEXT];
    struct rounding *rounding; /* borrowed; NULL: each tensor is judged by itself */
};

/* Where and by how much, in words. */
static void describe(const struct difference *d, char out[VERIFY_TEXT])
{
    const int skip = strncmp(d->name, "moment1/", 8) == 0 ? 8 : 0;
    if (d->a == NULL || d->b == NULL || d->different == 0) {
        snprintf(out, VERIFY_TEXT, "%.200s: of another shape", d->name + skip);
        return;
    }
    snprintf(out, VERIFY_TEXT, "%s of %.150s: %lld of %lld elements, first at %lld: %.9g and %.9g",
             skip > 0 ? "gradient (times 1 - beta1)" : "weight", d->name + skip,
             (long long)d->different, (long long)d->elements, (long long)d->first, d->first_a,
             d->first_b);
}

static void tell(void *context, const struct difference *d)
{
    struct comparison *comparison = context;
    const enum kind kind = kind_of(d, comparison->rounding != NULL);
    if (kind == DERIVED) {
        return;
    }
    struct verify_row *row = comparison->row[kind];
    const bool alike = d->a != NULL && d->b != NULL && d->different > 0;
    const double difference = alike && !isnan(d->relative) ? d->relative : (double)INFINITY;
    if (alike && comparison->rounding != NULL &&
        rounding_add(comparison->rounding, d->name, d->distance)) {
        return;
    }
    if (difference > row->difference) {
        row->difference = difference;
        snprintf(row->worst, sizeof row->worst, "%.300s", d->name);
    }
    row->good = row->good && difference <= row->allowed;
    if (difference > row->allowed && comparison->first[kind][0] == '\0') {
        describe(d, comparison->first[kind]);
    }
}

/* What tell left to be judged together. */
static void judge_rounding(struct comparison *comparison)
{
    for (int kind = 0; kind < KINDS; kind++) {
        struct verify_row *row = comparison->row[kind];
        const struct rounding_verdict worst =
            rounding_worst(comparison->rounding, "moment1/", kind != GRADIENTS);
        if (worst.name == NULL || !row->good) {
            continue;
        }
        row->difference = worst.difference;
        row->allowed = worst.allowed;
        row->good = worst.difference <= worst.allowed;
        snprintf(row->worst, sizeof row->worst, "%.300s", worst.name);
        if (!row->good) {
            snprintf(comparison->first[kind], VERIFY_TEXT, "%s of %.200s: %.2g apart, %.2g allowed",
                     kind == GRADIENTS ? "gradients" : "weights",
                     worst.name + (kind == GRADIENTS ? strlen("moment1/") : 0), worst.difference,
                     worst.allowed);
        }
    }
}

static enum status count_tensors(const char *checkpoint, bool rounded,
                                 struct verify_row *const row[KINDS])
{
    struct checkpoint_reader *reader = NULL;
    const enum status status = checkpoint_open(&reader, checkpoint);
    const struct manifest *contents = status == STATUS_OK ? checkpoint_contents(reader) : NULL;
    for (int64_t i = 0; contents != NULL && i < contents->tensors; i++) {
        const struct manifest_tensor *tensor = &contents->tensor[i];
        const enum kind kind =
            kind_of(&(struct difference){.name = tensor->name, .a = tensor}, rounded);
        if (kind != DERIVED) {
            row[kind]->compared++;
        }
    }
    checkpoint_close(reader);
    return status;
}

/* Sums of the same numbers in another order: fp32 keeps 24 bits, and an element that is a small
 * difference of large terms loses some of them; in bf16 and FP8 one rounding that falls the other
 * way is 2^-9 of an element, and few do. Weights after a step: AdamW moves an element whose
 * gradient is noise by up to the rate, either way. */
static double allowed_of(const struct config *config, enum kind kind)
{
    static const double exact[KINDS] = {1e-5, 1e-4}, rounded[KINDS] = {1e-3, 1e-3};
    return config->train.precision == CONFIG_FP32 ? exact[kind] : rounded[kind];
}

static void tell_name(void *context, const struct difference *d)
{
    struct verify_row *row = context;
    if (row->worst[0] == '\0') {
        snprintf(row->worst, sizeof row->worst, "%.300s", d->name);
    }
}

static enum status compare_again(struct verify_report *report, const char *checkpoint,
                                 const char *again)
{
    struct difference_figures figures;
    struct verify_row *row = new_row(report, "checkpoint, loaded and saved", 0);
    TRY(difference_find(checkpoint, again, &figures, tell_name, row));
    row->compared = figures.same + figures.different;
    row->difference = (double)figures.different;
    row->good = figures.different == 0 && figures.same > 0;
    return STATUS_OK;
}

static void compare_numbers(struct verify_report *report, const struct sides *sides,
                            const struct rounding *rounding, double norm)
{
    const struct step_result *layout = &sides->layout.step, *reference = &sides->reference.step,
                             *exact = &sides->exact.step;
    const struct {
        const char *what;
        double layout, reference, exact;
    } losses[] = {
        {"loss", layout->loss, reference->loss, exact->loss},
        {"balance loss", layout->aux_loss, reference->aux_loss, exact->aux_loss},
        {"prediction loss", layout->mtp_loss, reference->mtp_loss, exact->mtp_loss},
    };
    enum { LOSSES = sizeof losses / sizeof losses[0] };
    for (int i = 0; i < LOSSES; i++) {
        compare_number(report, losses[i].what, losses[i].layout, losses[i].reference,
                       report->rounded ? rounding_allowed(rounding, rounding_of(losses[i].reference,
                                                                                losses[i].exact))
                                       : 1e-6);
    }
    compare_number(report, "gradient norm", layout->grad_norm, reference->grad_norm,
                   report->rounded ? rounding_allowed(rounding, rounding_of(reference->grad_norm,
                                                                            exact->grad_norm) +
                                                                    rounding_of_norm(rounding))
                                   : norm);
}

static enum status compare_tensors(struct verify_report *report, const struct sides *sides,
                                   struct rounding *rounding)
{
    const struct config *config = &sides->layout.config;
    struct difference_figures figures;
    struct comparison comparison = {.rounding = report->rounded ? rounding : NULL};
    comparison.row[GRADIENTS] = new_row(report, "gradients", allowed_of(config, GRADIENTS));
    comparison.row[WEIGHTS] = new_row(report, "weights after a step", allowed_of(config, WEIGHTS));
    TRY(count_tensors(sides->layout.checkpoint, report->rounded, comparison.row));
    TRY(difference_find(sides->layout.checkpoint, sides->reference.checkpoint, &figures, tell,
                        &comparison));
    if (report->rounded) {
        judge_rounding(&comparison);
    }
    const bool gradients = comparison.first[GRADIENTS][0] != '\0';
    snprintf(report->first, sizeof report->first, "%s",
             comparison.first[gradients ? GRADIENTS : WEIGHTS]);
    return STATUS_OK;
}

/* The largest relative error of rounding to bf16, in which bf16 and FP8 keep activations. */
static const double BF16_UNIT = 0x1p-8;

static enum status compare(struct verify_report *report, const struct sides *sides,
                           const char *again, int64_t experts)
{
    struct rounding rounding = {0};
    enum status status = report->rounded ? rounding_init(&rounding, sides->reference.checkpoint,
                                                         sides->exact.checkpoint, BF16_UNIT)
                                         : STATUS_OK;
    if (status == STATUS_OK) {
        compare_numbers(report, sides, &rounding, allowed_of(&sides->layout.config, GRADIENTS));
        compare_loads(report, sides, experts);
        status = compare_tensors(report, sides, &rounding);
    }
    rounding_free(&rounding);
    TRY(status);
    TRY(compare_again(report, sides->layout.checkpoint, again));
    report->good = true;
    for (int i = 0; i < report->rows; i++) {
        report->good = report->good && report->row[i].good;
    }
    return STATUS_OK;
}

/* --- The whole --- */

/* Beside the run directory, on the same file system: what every rank sees. */
static enum status make_room(const char *place)
{
    char marker[MAX_PATH];
    snprintf(marker, sizeof marker, "%.4000s/%s", place, MARKER);
    if (io_exists(place) && !io_exists(marker)) {
        return status_fail(STATUS_USAGE, "%s: in the way of verify: rename or remove it", place);
    }
    TRY(io_remove_tree(place));
    TRY(io_make_dir(place));
    return io_write_file(marker, "", 0);
}

static enum status run_sides(const struct session *session, struct sides *sides, bool rounded,
                             const char *again, char again_path[MAX_PATH])
{
    struct comm *world = (struct comm *)&session->world;
    struct comm alone = {0};
    TRY(run_side(session, (struct mesh *)&session->mesh, &sides->layout, again, again_path));
    comm_split(world, world->rank, 0, &alone);
    enum status status = STATUS_OK;
    if (world->rank == 0) {
        status = run_alone(session, &alone, &sides->reference);
        status =
            status == STATUS_OK && rounded ? run_alone(session, &alone, &sides->exact) : status;
    }
    status = comm_agree(world, status, NULL);
    comm_free(&alone);
    return status;
}

static void prepare_alone(struct side *side, const struct session *session, const char *place,
                          const char *name)
{
    const struct mesh_shape one = mesh_shape_of(1, 1);
    side->config = tiny(session, &one);
    side->config.debug.fault = NULL;
    snprintf(side->root, sizeof side->root, "%.4000s/%s", place, name);
}

static enum status run_in(const struct session *session, struct sides *sides,
                          struct verify_report *report, const char *place)
{
    struct comm *world = (struct comm *)&session->world;
    char again[MAX_PATH], again_path[MAX_PATH] = "";
    snprintf(again, sizeof again, "%.4000s/again", place);
    TRY(run_sides(session, sides, report->rounded, again, again_path));
    enum status status = STATUS_OK;
    if (world->rank == 0) {
        struct architecture arch;
        architecture_init(&arch, &sides->layout.config);
        status = compare(report, sides, again_path, arch.experts);
    }
    return status;
}

static void describe_layout(struct verify_report *report, const struct session *session)
{
    const struct mesh *mesh = &session->mesh;
    const struct config *config = &session->config;
    *report = (struct verify_report){
        .ranks = session->world.size,
        .ep = mesh->ep.size,
        .etp = mesh->etp.size,
        .edp = mesh->edp.size,
        .tp = mesh->tp.size,
        .cp = mesh->cp.size,
        .pp = mesh->pp.size,
        .sequences = config->train.micro_batch,
        .tokens = config->train.sequence_length,
        .rounded = mesh->tp.size * mesh->cp.size * mesh->etp.size > 1 &&
                   config->train.precision != CONFIG_FP32,
    };
}

enum status verify_run(const struct session *session, struct verify_report *report)
{
    struct comm *world = (struct comm *)&session->world;
    struct sides *sides = calloc(1, sizeof *sides);
    char place[MAX_PATH];
    describe_layout(report, session);
    TRY(comm_agree(world, sides != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory"),
                   NULL));
    snprintf(place, sizeof place, "%.3900s.verify", session->config.run.dir);
    sides->layout.config = tiny(session, &session->mesh.shape);
    snprintf(sides->layout.root, MAX_PATH, "%.4000s/layout", place);
    prepare_alone(&sides->reference, session, place, "one-rank");
    prepare_alone(&sides->exact, session, place, "fp32");
    sides->exact.config.train.precision = CONFIG_FP32;
    report->units =
        sides->layout.config.train.global_batch / sides->layout.config.train.micro_batch;
    enum status status =
        fault_check(sides->layout.config.debug.fault, mesh_last_stage(&session->mesh));
    if (status == STATUS_OK) {
        status = comm_agree(world, world->rank == 0 ? make_room(place) : STATUS_OK, NULL);
    }
    if (status == STATUS_OK) {
        status = run_in(session, sides, report, place);
        const enum status removed = world->rank == 0 ? io_remove_tree(place) : STATUS_OK;
        status = comm_agree(world, status != STATUS_OK ? status : removed, NULL);
    }
    free(sides->layout.load);
    free(sides->reference.load);
    free(sides->exact.load);
    free(sides);
    return status;
}

static void print_row(FILE *out, const struct verify_row *row)
{
    fprintf(out, "%-4s %-28s ", row->good ? "ok" : "BAD", row->what);
    if (!isnan(row->layout)) {
        fprintf(out, "%.9g and %.9g, ", row->layout, row->reference);
    }
    if (row->compared > 0 && row->difference == 0) {
        fprintf(out, "%lld, all the same\n", (long long)row->compared);
    } else if (row->compared > 0 && row->allowed == 0) {
        fprintf(out, "%.0f of %lld differ: %s\n", row->difference, (long long)row->compared,
                row->worst);
    } else if (row->compared > 0) {
        fprintf(out, "%lld, at most %.1e apart (%.0e allowed): %s\n", (long long)row->compared,
                row->difference, row->allowed, row->worst);
    } else {
        fprintf(out, "%.1e apart (%.0e allowed)\n", row->difference, row->allowed);
    }
}

void verify_print(FILE *out, const struct verify_report *report)
{
    fprintf(
        out,
        "%d ranks, ep %d, etp %d, edp %d, tp %d, cp %d, pp %d against one rank: one step of %lld "
        "micro-batches of %lld x %lld random tokens\n",
        report->ranks, report->ep, report->etp, report->edp, report->tp, report->cp, report->pp,
        (long long)report->units, (long long)report->sequences, (long long)report->tokens);
    if (report->rounded) {
        fprintf(out, "tp, cp and etp round sums in other places than one rank: allowed is twice "
                     "what rounding changes of\none rank's step in fp32; train.precision=fp32 "
                     "finds smaller faults\n");
    }
    for (int i = 0; i < report->rows; i++) {
        print_row(out, &report->row[i]);
    }
    if (report->first[0] != '\0') {
        fprintf(out, "first: %s\n", report->first);
    }
    fprintf(out, report->good ? "verified: this layout computes what one rank does\n"
                              : "not verified: this layout computes something else\n");
}

void verify_print_json(FILE *out, const struct verify_report *report)
{
    fprintf(out,
            "{\"good\":%s,\"ranks\":%d,\"ep\":%d,\"etp\":%d,\"edp\":%d,\"tp\":%d,\"cp\":%d,\"pp\":%"
            "d,\"rounded\":%s,\"rows\":[",
            report->good ? "true" : "false", report->ranks, report->ep, report->etp, report->edp,
            report->tp, report->cp, report->pp, report->rounded ? "true" : "false");
    for (int i = 0; i < report->rows; i++) {
        const struct verify_row *row = &report->row[i];
        json_out_text(out, i > 0 ? ",{\"what\":" : "{\"what\":", row->what);
        json_out_number(out, ",\"layout\":", row->layout, 17);
        json_out_number(out, ",\"reference\":", row->reference, 17);
        json_out_number(out, ",\"difference\":", row->difference, 9);
        json_out_number(out, ",\"allowed\":", row->allowed, 9);
        json_out_text(out, ",\"worst\":", row->worst);
        fprintf(out, ",\"compared\":%lld,\"good\":%s}", (long long)row->compared,
                row->good ? "true" : "false");
    }
    json_out_text(out, "],\"first\":", report->first);
    fprintf(out, "}\n");
}
