#include "trainer/trace.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/aside.h"
#include "trainer/optimizer.h"

enum { PART = 1 << 20 /* elements of a parameter at a time */ };

/* Names of the file: points of the probe, then of every parameter its gradient and its weight, then
 * the selection bias of every block. */
static const char *const points[PROBE_POINTS] = {
    [PROBE_IDS] = "input ids",
    [PROBE_LABELS] = "labels",
    [PROBE_INPUT] = "input of the block",
    [PROBE_ATTENTION] = "output of attention",
    [PROBE_SCORE] = "router scores",
    [PROBE_EXPERT] = "chosen experts",
    [PROBE_FEED_FORWARD] = "output of experts or MLP",
    [PROBE_FINAL_NORM] = "output of the last norm",
    [PROBE_LOSS] = "loss",
    [PROBE_OUTPUT_GRADIENT] = "gradient of the last norm's output",
    [PROBE_STREAM_GRADIENT] = "gradient of the block's input"};
enum parameter_kind { GRADIENT, WEIGHT, PARAMETER_KINDS };
static const char *const kinds[PARAMETER_KINDS] = {[GRADIENT] = "gradient", [WEIGHT] = "weight"};

static int64_t name_of(int64_t param, enum parameter_kind kind)
{
    return PROBE_POINTS + param * PARAMETER_KINDS + kind;
}

static int64_t bias_name(const struct trace *trace, int64_t block)
{
    return name_of(trace->all.count, GRADIENT) + block;
}

static bool main_rank(const struct trace *trace)
{
    return trace->model->mesh->world->rank == 0;
}

/* Elements kept of `count`, by debug.trace_values; which they are: trace_position unless all. */
static int64_t kept_of(const struct trace *trace, int64_t count)
{
    const int level = trace->model->config->debug.trace_values;
    if (level == CONFIG_TRACE_HASHES) {
        return 0;
    }
    return level == CONFIG_TRACE_ALL || count < TRACE_SAMPLES ? count : TRACE_SAMPLES;
}

static int64_t kept_index(int64_t count, int64_t kept, int64_t i)
{
    return kept == count ? i : trace_position(count, i);
}

/* --- lists of records --- */

static enum status no_memory(void)
{
    return status_fail(STATUS_RESOURCE, "out of memory for the trace: trace less of it "
                                        "(debug.trace_values)");
}

static bool grow(void **data, int64_t *room, int64_t wanted, size_t width)
{
    if (wanted <= *room && *data != NULL) {
        return true;
    }
    const int64_t more = wanted > 2 * *room ? wanted : 2 * *room;
    void *larger = realloc(*data, (size_t)more * width + 1);
    if (larger == NULL) {
        return false;
    }
    *data = larger;
    *room = more;
    return true;
}

static bool list_reserve(struct trace_list *list, int64_t records, int64_t bytes)
{
    void *record = list->record, *values = list->values;
    const bool good = grow(&record, &list->record_room, records, sizeof *list->record);
    list->record = record;
    const bool both = good && grow(&values, &list->value_room, bytes, 1);
    list->values = values;
    return both;
}

static void list_free(struct trace_list *list)
{
    free(list->record);
    free(list->values);
    *list = (struct trace_list){0};
}

/* The tensor on the host; NULL: out of memory. */
static const void *stage(struct trace *trace, const void *data, size_t bytes)
{
    if (bytes > trace->staging_bytes) {
        free(trace->staging);
        trace->staging = malloc(bytes);
        trace->staging_bytes = trace->staging != NULL ? bytes : 0;
    }
    if (trace->staging != NULL) {
        trace->model->ops->download(trace->model->device, trace->staging, data, bytes);
    }
    return trace->staging;
}

/* --- what the model tells --- */

static void tell(void *context, int64_t layer, enum probe_point point, struct tensor x)
{
    struct trace *trace = context;
    struct trace_list *list = &trace->own;
    const size_t width = dtype_bytes(x.dtype);
    const int64_t count = tensor_count(&x), kept = kept_of(trace, count),
                  bytes = kept * (int64_t)width;
    if (trace->status != STATUS_OK || trace->full) {
        return;
    }
    const char *data = stage(trace, x.data, tensor_bytes(&x));
    if (data == NULL || !list_reserve(list, list->records + 1, list->bytes + bytes)) {
        trace->status = no_memory();
        return;
    }
    list->record[list->records++] =
        (struct trace_record){.layer = layer,
                              .name = point,
                              .dtype = x.dtype,
                              .rows = x.dim[0],
                              .cols = x.ndim > 1 ? x.dim[1] : 1,
                              .hash = trace_hash(data, x.dtype, 0, count),
                              .value = list->bytes,
                              .kept = kept};
    for (int64_t i = 0; i < kept; i++) {
        memcpy(list->values + list->bytes, data + (size_t)kept_index(count, kept, i) * width,
               width);
        list->bytes += (int64_t)width;
    }
}

/* Whether so much more still goes into the file; the same on every rank. */
static bool fits(struct trace *trace, int64_t records, int64_t bytes)
{
    const struct config *config = trace->model->config;
    const int64_t more = records * (int64_t)sizeof(struct trace_record) + bytes;
    if (!trace->full && trace->written + more > config->debug.trace_mib * 1048576) {
        trace->full = true;
        if (main_rank(trace)) {
            fprintf(stderr,
                    "switchyard: warning: %s: debug.trace_mib %lld is reached in step %lld: it is "
                    "not in the trace, nor is what comes after it\n",
                    config->debug.trace, (long long)config->debug.trace_mib,
                    (long long)trace->step);
        }
    }
    trace->written += trace->full ? 0 : more;
    return !trace->full;
}

/* Rank `from`'s list comes to rank 0. */
static void take_list(struct trace *trace, int from)
{
    struct comm *world = trace->model->mesh->world;
    const int64_t records = trace->sizes[2 * from], bytes = trace->sizes[2 * from + 1];
    const int64_t counts[2] = {records, bytes};
    const size_t width[2] = {sizeof(struct trace_record), 1};
    const void *send[2] = {trace->own.record, trace->own.values};
    void *recv[2] = {trace->others.record, trace->others.values};
    int64_t *recv_rows = trace->rows, *send_rows = trace->rows + world->size;
    for (int part = 0; part < 2; part++) {
        memset(trace->rows, 0, 2 * (size_t)world->size * sizeof *trace->rows);
        recv_rows[from] = world->rank == 0 ? counts[part] : 0;
        send_rows[0] = world->rank == from ? counts[part] : 0;
        comm_all_to_all(world, recv[part], recv_rows, send[part], send_rows, width[part]);
    }
    trace->others.records = records;
    trace->others.bytes = bytes;
}

static enum status append(struct trace *trace, struct trace_list *list)
{
    return trace_file_append(trace->file, list->record, list->records, list->values, list->bytes);
}

/* Room for the largest list of another rank. */
static enum status reserve_others(struct trace *trace, int64_t *records, int64_t *bytes)
{
    int64_t most_records = 0, most_bytes = 0;
    *records = *bytes = 0;
    for (int r = 0; r < trace->model->mesh->world->size; r++) {
        const int64_t *size = trace->sizes + 2 * r;
        *records += size[0];
        *bytes += size[1];
        most_records = size[0] > most_records ? size[0] : most_records;
        most_bytes = size[1] > most_bytes ? size[1] : most_bytes;
    }
    return !main_rank(trace) || list_reserve(&trace->others, most_records, most_bytes)
               ? STATUS_OK
               : no_memory();
}

void trace_unit(struct trace *trace, int64_t unit)
{
    int64_t records = 0, bytes = 0;
    if (trace == NULL || !trace->on || trace->full) {
        return;
    }
    struct comm *world = trace->model->mesh->world;
    const int64_t own[2] = {trace->own.records, trace->own.bytes};
    comm_all_gather(world, trace->sizes, own, sizeof own);
    trace->status =
        trace->status == STATUS_OK ? reserve_others(trace, &records, &bytes) : trace->status;
    trace->status = comm_agree(world, trace->status, NULL);
    for (int64_t i = 0; i < trace->own.records; i++) {
        trace->own.record[i].unit = unit;
    }
    if (trace->status == STATUS_OK && fits(trace, records, bytes)) {
        enum status status = main_rank(trace) ? append(trace, &trace->own) : STATUS_OK;
        for (int r = 1; r < world->size; r++) {
            take_list(trace, r);
            status =
                status == STATUS_OK && main_rank(trace) ? append(trace, &trace->others) : status;
        }
        trace->status = comm_agree(world, status, NULL);
    }
    trace->own.records = trace->own.bytes = 0;
}

/* --- parameters --- */

/* Parameters [first, end) of the file, on their way: hashes and kept bits of this rank's part. */
struct batch_of_params {
    int64_t first, end;
    int64_t *hash; /* [end - first] */
    int32_t *bits; /* kept elements of all, one parameter after another */
    int64_t kept;
};

/* This rank's part of a parameter: elements [first, last) of it. */
static const float *part_of(const struct trace *trace, int64_t index, enum parameter_kind kind,
                            int64_t *first, int64_t *last)
{
    const int64_t local = trace->local[index];
    *first = *last = 0;
    if (local < 0) {
        return NULL;
    }
    const struct param *param = &trace->model->params.table[local];
    const struct model_group *group = &trace->model->group[param->group];
    const struct param_piece piece = param_piece(param, &group->zero, group->zero.comm->rank);
    if (piece.first >= piece.last) {
        return NULL;
    }
    *first = piece.first - param->offset;
    *last = piece.last - param->offset;
    return (kind == GRADIENT ? group->shard : group->master) +
           zero_place(&group->zero, piece.first);
}

/* The kept ones of elements [first, first + count) of a parameter of `all` elements. */
static void keep_bits(int32_t *bits, int64_t kept, int64_t all, const int32_t *data, int64_t first,
                      int64_t count)
{
    int64_t low = 0, high = kept; /* the first that is not before `first` */
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (kept_index(all, kept, middle) < first) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (; low < kept && kept_index(all, kept, low) < first + count; low++) {
        bits[low] = data[kept_index(all, kept, low) - first];
    }
}

static enum status hash_part(struct trace *trace, int64_t index, enum parameter_kind kind,
                             int64_t *hash, int32_t *bits)
{
    int64_t first = 0, last = 0;
    const int64_t all = trace->all.table[index].count, kept = kept_of(trace, all);
    const float *data = part_of(trace, index, kind, &first, &last);
    const bool host =
        kind == WEIGHT &&
        offload_masters(trace->model, &trace->model->group[trace->all.table[index].group]);
    for (int64_t at = first; at < last; at += PART) {
        const int64_t count = last - at < PART ? last - at : PART;
        const float *from = data + (at - first);
        const void *here = host ? from : stage(trace, from, (size_t)count * sizeof *data);
        if (here == NULL) {
            return no_memory();
        }
        *hash = (int64_t)((uint64_t)*hash + (uint64_t)trace_hash(here, DTYPE_F32, at, count));
        keep_bits(bits, kept, all, here, at, count);
    }
    return STATUS_OK;
}

/* The layer in a parameter's name, -1: none. */
static int64_t layer_of(const char *name)
{
    static const char prefix[] = "model.layers.";
    return strncmp(name, prefix, sizeof prefix - 1) == 0
               ? strtoll(name + sizeof prefix - 1, NULL, 10)
               : -1;
}

static enum status write_params(struct trace *trace, const struct batch_of_params *batch,
                                enum parameter_kind kind)
{
    int64_t value = 0;
    const int64_t bytes = batch->kept * (int64_t)sizeof *batch->bits;
    struct trace_list *list = &trace->own;
    if (!list_reserve(list, batch->end - batch->first, 0)) {
        return no_memory();
    }
    for (int64_t i = batch->first; i < batch->end; i++) {
        const struct param *param = &trace->all.table[i];
        const int64_t kept = kept_of(trace, param->count);
        list->record[i - batch->first] =
            (struct trace_record){.unit = -1,
                                  .layer = layer_of(param->name),
                                  .name = name_of(i, kind),
                                  .dtype = DTYPE_F32,
                                  .rows = param->shape[0],
                                  .cols = param->ndim > 1 ? param->shape[1] : 1,
                                  .hash = batch->hash[i - batch->first],
                                  .value = value,
                                  .kept = kept};
        value += kept * (int64_t)sizeof *batch->bits;
    }
    return trace_file_append(trace->file, list->record, batch->end - batch->first, batch->bits,
                             bytes);
}

/* Sums of all ranks' parts, and into the file. Elements of a parameter lie on one rank of those
 * that hold it, so bits add up to bits. */
static enum status exchange_params(struct trace *trace, struct batch_of_params *batch,
                                   enum parameter_kind kind)
{
    struct comm *world = trace->model->mesh->world;
    enum status status = STATUS_OK;
    int32_t *bits = batch->bits;
    for (int64_t i = batch->first; i < batch->end && status == STATUS_OK; i++) {
        status = hash_part(trace, i, kind, &batch->hash[i - batch->first], bits);
        bits += kept_of(trace, trace->all.table[i].count);
    }
    TRY(comm_agree(world, status, NULL));
    comm_all_reduce(world, batch->hash, batch->end - batch->first, DTYPE_I64, REDUCE_SUM);
    comm_all_reduce(world, batch->bits, batch->kept, DTYPE_I32, REDUCE_SUM);
    if (fits(trace, batch->end - batch->first, batch->kept * (int64_t)sizeof *batch->bits)) {
        status = main_rank(trace) ? write_params(trace, batch, kind) : STATUS_OK;
    }
    return comm_agree(world, status, NULL);
}

/* The next parameters whose kept elements are PART at most, or one. */
static void next_batch(const struct trace *trace, struct batch_of_params *batch)
{
    batch->first = batch->end;
    batch->kept = 0;
    do {
        batch->kept += kept_of(trace, trace->all.table[batch->end++].count);
    } while (batch->end < trace->all.count && batch->end - batch->first < PART &&
             batch->kept + kept_of(trace, trace->all.table[batch->end].count) <= PART);
}

static enum status trace_params(struct trace *trace, enum parameter_kind kind)
{
    struct batch_of_params batch = {0};
    enum status status = STATUS_OK;
    while (batch.end < trace->all.count && status == STATUS_OK && !trace->full) {
        next_batch(trace, &batch);
        batch.hash = calloc((size_t)(batch.end - batch.first) + 1, sizeof *batch.hash);
        batch.bits = calloc((size_t)batch.kept + 1, sizeof *batch.bits);
        status =
            comm_agree(trace->model->mesh->world,
                       batch.hash != NULL && batch.bits != NULL ? STATUS_OK : no_memory(), NULL);
        status = status == STATUS_OK ? exchange_params(trace, &batch, kind) : status;
        free(batch.hash);
        free(batch.bits);
    }
    return status;
}

/* The biases that choose experts: on every rank the same. */
static enum status trace_biases(struct trace *trace)
{
    const struct architecture *arch = &trace->model->arch;
    const int64_t blocks = architecture_moe_blocks(arch);
    enum status status = STATUS_OK;
    if (!arch->has_bias ||
        !fits(trace, blocks, blocks * kept_of(trace, arch->experts) * (int64_t)sizeof(float))) {
        return STATUS_OK;
    }
    for (int64_t m = 0; m < blocks && main_rank(trace) && status == STATUS_OK; m++) {
        tell(trace, arch->dense_layers + m, PROBE_POINTS,
             tensor_1d(trace->model->router_bias + m * arch->experts, DTYPE_F32, arch->experts));
        status = trace->status;
        for (int64_t i = 0; i < trace->own.records; i++) {
            trace->own.record[i].unit = -1;
            trace->own.record[i].name = bias_name(trace, m);
        }
        status = status == STATUS_OK ? append(trace, &trace->own) : status;
        trace->own.records = trace->own.bytes = 0;
    }
    return comm_agree(trace->model->mesh->world, status, NULL);
}

/* --- a step --- */

static enum status end_step(struct trace *trace, int64_t step, bool start)
{
    const enum status status = main_rank(trace) && !trace->full
                                   ? trace_file_end_step(trace->file, step, start)
                                   : STATUS_OK;
    return comm_agree(trace->model->mesh->world, status, NULL);
}

enum status trace_begin(struct trace *trace, int64_t step)
{
    if (trace == NULL) {
        return STATUS_OK;
    }
    const struct config *config = trace->model->config;
    trace->step = step;
    trace->on = !trace->full && step >= config->debug.trace_from && step <= trace->last;
    trace->model->probe = trace->on ? &trace->probe : NULL;
    if (!trace->on || trace->begun) {
        return STATUS_OK;
    }
    trace->begun = true;
    TRY(trace_params(trace, WEIGHT));
    TRY(trace_biases(trace));
    return end_step(trace, step - 1, true);
}

enum status trace_gradients(struct trace *trace)
{
    if (trace == NULL || !trace->on) {
        return STATUS_OK;
    }
    trace->model->probe = NULL;
    TRY(trace->status);
    for (int g = 0; g < trace->model->params.groups; g++) {
        optimizer_decode(trace->model, (enum param_group)g);
    }
    return trace_params(trace, GRADIENT);
}

enum status trace_weights(struct trace *trace)
{
    if (trace == NULL || !trace->on) {
        return STATUS_OK;
    }
    TRY(trace_params(trace, WEIGHT));
    TRY(trace_biases(trace));
    return end_step(trace, trace->step, false);
}

/* --- the file --- */

static enum status create(struct trace *trace)
{
    const struct model *model = trace->model;
    const int64_t blocks = architecture_moe_blocks(&model->arch),
                  count = bias_name(trace, model->arch.has_bias ? blocks : 0);
    char old[ASIDE_PATH_BYTES], bias[TRACE_NAME_BYTES],
        (*names)[TRACE_NAME_BYTES] = calloc((size_t)count, sizeof *names);
    if (names == NULL) {
        return no_memory();
    }
    for (int p = 0; p < PROBE_POINTS; p++) {
        snprintf(names[p], sizeof names[p], "%s", points[p]);
    }
    for (int64_t i = 0; i < trace->all.count; i++) {
        for (int k = 0; k < PARAMETER_KINDS; k++) {
            snprintf(names[name_of(i, (enum parameter_kind)k)], sizeof *names, "%s of %s", kinds[k],
                     trace->all.table[i].name);
        }
    }
    for (int64_t m = 0; model->arch.has_bias && m < blocks; m++) {
        params_bias_name(bias, sizeof bias, model->arch.dense_layers + m);
        snprintf(names[bias_name(trace, m)], sizeof *names, "weight of %.96s", bias);
    }
    enum status status = aside_move(model->config->debug.trace, old);
    status = status == STATUS_OK
                 ? trace_file_create(&trace->file, model->config->debug.trace, names, count)
                 : status;
    free(names);
    return status;
}

/* This rank's parameters are some of all, in the same order. */
static void find_local(struct trace *trace)
{
    const struct params *own = &trace->model->params;
    int64_t next = 0;
    for (int64_t i = 0; i < trace->all.count; i++) {
        const bool here =
            next < own->count && strcmp(own->table[next].name, trace->all.table[i].name) == 0;
        trace->local[i] = here ? next++ : -1;
    }
    assert(next == own->count);
}

static enum status open_local(struct trace *trace)
{
    const struct model *model = trace->model;
    const size_t ranks = (size_t)model->mesh->world->size;
    TRY(params_init(&trace->all, &model->whole, false, &PARAMS_ALL));
    trace->local = calloc((size_t)trace->all.count, sizeof *trace->local);
    trace->rows = calloc(2 * ranks, sizeof *trace->rows);
    trace->sizes = calloc(2 * ranks, sizeof *trace->sizes);
    if (trace->local == NULL || trace->rows == NULL || trace->sizes == NULL) {
        return no_memory();
    }
    find_local(trace);
    return main_rank(trace) ? create(trace) : STATUS_OK;
}

enum status trace_open(struct trace *trace, struct model *model, int64_t done)
{
    const struct config *config = model->config;
    const int64_t from = config->debug.trace_from > done ? config->debug.trace_from : done + 1,
                  steps = config->debug.trace_steps;
    *trace = (struct trace){.model = model, .probe = {.tell = tell, .context = trace}};
    trace->last = steps > 0 ? config->debug.trace_from + steps - 1 : INT64_MAX;
    return from > trace->last || from > config->run.steps
               ? STATUS_OK /* nothing is left to trace: what was traced stays */
               : comm_agree(model->mesh->world, open_local(trace), NULL);
}

void trace_close(struct trace *trace)
{
    if (trace->model != NULL) {
        trace->model->probe = NULL;
    }
    if (trace_file_close(trace->file) != STATUS_OK) {
        fprintf(stderr, "switchyard: warning: %s\n", status_message());
    }
    list_free(&trace->own);
    list_free(&trace->others);
    free(trace->staging);
    free(trace->local);
    free(trace->rows);
    free(trace->sizes);
    params_free(&trace->all);
    *trace = (struct trace){0};
}
