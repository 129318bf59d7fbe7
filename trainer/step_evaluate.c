#include <assert.h>
#include <math.h>
#include <stdlib.h>

#include "trainer/step.h"

/* Fills unit `unit` of a file; samples past the end, and whole units past `units`, are repeats
 * whose labels don't count: every rank has something to run while others finish. Returns counted
 * labels. */
static int64_t evaluation_batch(const struct loader *loader, struct batch *batch, int64_t unit,
                                int64_t units, int64_t micro)
{
    const int64_t length = loader->sequence_length, first = unit * micro;
    int64_t valid = unit < units ? loader->samples - first : 0;
    valid = valid > micro ? micro : valid;
    int64_t labels = 0;
    for (int64_t i = 0; i < micro; i++) {
        const int64_t at = i * length;
        struct batch one = {.ids = batch->ids + at,
                            .labels = batch->labels + at,
                            .positions = batch->positions + at,
                            .first = batch->first + at};
        const int64_t counted = loader_batch(loader, &one, i < valid ? first + i : 0, 1);
        if (i < valid) {
            labels += counted;
        } else {
            for (int64_t t = 0; t < length; t++) {
                one.labels[t] = -1;
            }
        }
    }
    return labels;
}

/* --- questions: whether to go on --- */

struct questions {
    const struct step_ask *ask;
    int64_t waves, left; /* between the last one and the next; of them still to come */
    double asked;        /* step_clock: the last one's answer */
};

/* So many more waves as take about a quarter second, at most twice as many as before: the fewest of
 * any rank, so that all ask together. */
static int64_t next_waves(struct comm *world, int64_t waves, double took)
{
    enum { MOST = 1 << 20 };
    const double wanted = 0.25 / fmax(took, 1e-9) * (double)waves;
    const double most = (double)(2 * waves < MOST ? 2 * waves : MOST);
    int32_t fewest = -(int32_t)fmax(1, fmin(wanted, most));
    comm_all_reduce(world, &fewest, 1, DTYPE_I32, REDUCE_MAX);
    return -fewest;
}

/* Collective, before every wave. */
static enum status questions_ask(struct questions *questions, struct model *model)
{
    if (questions->ask == NULL || questions->left-- > 0) {
        return STATUS_OK;
    }
    const double took = step_clock() - questions->asked;
    const bool first = questions->waves == 0;
    if (!slice_whole(&model->slice)) {
        pipe_settle(model);
    }
    questions->waves = first ? 1 : next_waves(model->mesh->world, questions->waves, took);
    questions->left = questions->waves - 1;
    const enum status status = questions->ask->call(questions->ask->context);
    questions->asked = step_clock();
    return status;
}

/* The loss summed over `units` micro-batches, in file order; sums[dp] is scratch. */
static enum status evaluate(struct model *model, const struct loader *loader, struct batch *batch,
                            int64_t units, const struct step_ask *ask, double *sums, double *sum,
                            int64_t *labels)
{
    struct comm *dp = (struct comm *)&model->mesh->dp;
    const bool whole = slice_whole(&model->slice);
    struct questions questions = {.ask = ask};
    *sum = 0;
    *labels = 0;
    for (int64_t wave = 0; wave < units; wave += dp->size) {
        TRY(questions_ask(&questions, model));
        *labels += evaluation_batch(loader, batch, wave + dp->rank, units, model->batch);
        if (whole) {
            model_run(model, batch, model->batch, loader->sequence_length, NULL);
        } else {
            pipe_evaluate(model, batch, loader->sequence_length);
        }
        if (model->slice.heads) {
            const double loss = model_read_losses(model).loss;
            comm_all_gather(dp, sums, &loss, sizeof loss);
        }
        for (int r = 0; r < dp->size && model->slice.heads; r++) {
            *sum += sums[r];
        }
    }
    if (!whole) {
        pipe_settle(model);
        comm_broadcast((struct comm *)&model->mesh->pp, sum, sizeof *sum, pipe_last(model));
    }
    comm_all_reduce(dp, labels, 1, DTYPE_I64, REDUCE_SUM);
    return comm_agree(model->mesh->world, token_store_status(loader->store), NULL);
}

enum status step_evaluate(struct model *model, const struct loader *loader, int64_t batches,
                          const struct step_ask *ask, double *loss, int64_t *labels)
{
    const int64_t micro = model->batch, tokens = micro * loader->sequence_length;
    const int64_t whole = (loader->samples + micro - 1) / micro;
    int32_t *storage = calloc((size_t)(4 * tokens), sizeof *storage);
    double *sums = calloc((size_t)model->mesh->dp.size, sizeof *sums);
    enum status status =
        comm_agree(model->mesh->world,
                   storage != NULL && sums != NULL
                       ? STATUS_OK
                       : status_fail(STATUS_RESOURCE, "out of memory for evaluation"),
                   NULL);
    assert(!loader->shuffle);
    if (status == STATUS_OK) {
        struct batch batch = batch_view(storage, tokens);
        double sum = 0;
        status = evaluate(model, loader, &batch, batches > 0 && batches < whole ? batches : whole,
                          ask, sums, &sum, labels);
        *loss = *labels > 0 ? sum / (double)*labels : (double)NAN;
    }
    free(storage);
    free(sums);
    return status;
}
