#include "trainer/model/linear.h"

#include <assert.h>
#include <stdlib.h>

#include "trainer/model/block.h"
#include "trainer/model/deferred.h"

enum status linears_init(struct linears *linears, const struct model *model)
{
    const struct config *config = model->config;
    const bool fp8 = config->train.precision == CONFIG_FP8;
    const int64_t blocks = architecture_blocks(&model->arch), last = config->fp8.last_bf16;
    *linears = (struct linears){.device = model->device,
                                .ops = model->ops,
                                .gradients = &model->gradients,
                                .mesh = model->mesh,
                                .act = model->act,
                                .training = model->training,
                                .blocks = blocks,
                                .first = fp8 ? config->fp8.first_bf16 : 0,
                                .end = !fp8       ? 0
                                       : last > 0 ? model->arch.layers - last
                                                  : blocks,
                                .power_of_two = config->fp8.scales == CONFIG_SCALES_POWER_OF_TWO,
                                .accumulate = (enum fp8_accumulate)config->fp8.accumulate};
    linears_forget(linears);
    if (fp8 && model->ops->fp8 == NULL) {
        return status_fail(STATUS_USAGE,
                           "train.precision fp8: the device %s has no FP8 here: use bf16",
                           model->ops->name);
    }
    linears->table = calloc((size_t)(blocks * LINEARS), sizeof *linears->table);
    const bool frozen = model->gradients.fixed && config->optimizer.freeze.count > 0;
    const size_t experts = (size_t)(2 * blocks * (model->arch.experts / model->mesh->ep.size));
    linears->live = frozen ? calloc(experts, sizeof *linears->live) : NULL;
    return linears->table != NULL && (!frozen || linears->live != NULL)
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for %lld layers", (long long)blocks);
}

void linears_free(struct linears *linears)
{
    free(linears->table);
    free(linears->live);
    *linears = (struct linears){0};
}

static struct linear *at(const struct linears *linears, int64_t block, enum linear_name name)
{
    return &linears->table[block * LINEARS + name];
}

const struct linear *linears_at(const struct linears *linears, int64_t block, enum linear_name name)
{
    return at(linears, block, name);
}

/* Groups of rows of what is transposed. */
static int64_t groups_of(const struct linear *linear)
{
    return linear->matrices * linear->sources;
}

/* --- the table --- */

static void place_gradient(struct linear *linear, const struct model_group *group, int64_t offset)
{
    if (group->sums != NULL || group->shard_sums != NULL) {
        linear->sum = shards_sum(group, offset);
    } else {
        linear->grad = shards_grad(group, offset);
    }
}

/* A dense layer at `offset` of group `g`; addresses once there are any. */
static void add_dense(struct linears *linears, const struct model *model, int64_t block,
                      enum linear_name name, enum param_group g, int64_t offset, int64_t out,
                      int64_t in)
{
    struct linear *linear = at(linears, block, name);
    const struct model_group *group = &model->group[g];
    *linear =
        (struct linear){.out = out, .in = in, .matrices = 1, .sources = 1, .stride = out * in};
    linear->gathered = group->gathered.on;
    if (group->weights != NULL || group->gathered.window[0] != NULL) {
        linear->weight = model_weight(model, g, offset, out, in).data;
        place_gradient(linear, group, offset);
    }
}

static void add_attention(struct linears *linears, const struct model *model, int64_t b)
{
    const struct architecture *arch = &model->arch;
    const struct block_offsets *from = &model->params.block[b];
    const int64_t width = arch->width, query = architecture_query_width(arch);
    const enum param_group divided = model->params.divided;
    if (arch->kv_rank == 0) {
        add_dense(linears, model, b, LINEAR_QKV, divided, from->qkv,
                  query + 2 * arch->kv_heads * arch->qk_dim, width);
    } else {
        if (arch->q_rank > 0) {
            add_dense(linears, model, b, LINEAR_Q_A, PARAM_DENSE, from->q_a, arch->q_rank, width);
        }
        add_dense(linears, model, b, LINEAR_Q_B, divided, from->q_b, query,
                  arch->q_rank > 0 ? arch->q_rank : width);
        add_dense(linears, model, b, LINEAR_KV_A, PARAM_DENSE, from->kv_a, arch->kv_rank, width);
        add_dense(linears, model, b, LINEAR_K_ROPE, PARAM_DENSE, from->kv_a + arch->kv_rank * width,
                  arch->rope_dim, width);
        add_dense(linears, model, b, LINEAR_KV_B, divided, from->kv_b,
                  architecture_latent_width(arch), arch->kv_rank);
    }
    add_dense(linears, model, b, LINEAR_O, divided, from->o_proj, width, arch->heads * arch->v_dim);
}

/* Which rows of a placed layer's experts have a gradient; `number`: 0 or 1 of the block's two. */
static void find_live(struct linears *linears, struct linear *linear, int64_t block, int number)
{
    if (linears->live == NULL || linear->sum == NULL) {
        return;
    }
    linear->live = linears->live + (2 * block + number) * linear->matrices;
    for (int64_t e = 0; e < linear->matrices; e++) {
        linear->live[e] = gradients_live(linears->gradients, linear->sum + e * linear->stride,
                                         linear->out, linear->in);
    }
}

static void add_experts(struct linears *linears, const struct model *model, int64_t b)
{
    const struct architecture *arch = &model->arch;
    const struct model_group *group = &model->group[PARAM_EXPERT];
    const int64_t first = model->params.block[b].experts;
    const struct linear shape = {.matrices = model->moe.local_experts,
                                 .sources = model->gradients.fixed ? model->mesh->ep.size : 1,
                                 .stride = model->params.expert_stride};
    const int64_t offsets[] = {first, first + model->params.down_offset};
    for (int i = 0; i < 2; i++) {
        struct linear *linear = at(linears, b, i == 0 ? LINEAR_EXPERTS_UP : LINEAR_EXPERTS_DOWN);
        *linear = shape;
        linear->out = i == 0 ? 2 * arch->expert_width : arch->width;
        linear->in = i == 0 ? arch->width : arch->expert_width;
        if (group->weights != NULL) {
            linear->weight = model_weight(model, PARAM_EXPERT, offsets[i], 1, 1).data;
            place_gradient(linear, group, offsets[i]);
            find_live(linears, linear, b, i);
        }
    }
}

static void fill_table(struct linears *linears, const struct model *model)
{
    const struct architecture *arch = &model->arch;
    for (int64_t b = 0; b < linears->blocks; b++) {
        const bool experts = b >= arch->dense_layers;
        const int64_t inner = experts ? arch->shared_width : arch->dense_width, width = arch->width;
        const struct block_offsets *from = &model->params.block[b];
        if (!slice_has(&model->slice, b)) {
            continue;
        }
        add_attention(linears, model, b);
        if (inner > 0) {
            add_dense(linears, model, b, LINEAR_UP, model->params.divided, from->gate_up, 2 * inner,
                      width);
            add_dense(linears, model, b, LINEAR_DOWN, model->params.divided, from->down, width,
                      inner);
        }
        if (experts) {
            add_experts(linears, model, b);
        }
    }
}

static struct fp8_weights weight_codes(struct arena *arena, int64_t matrices, int64_t rows,
                                       int64_t cols)
{
    const size_t scales = (size_t)(matrices * fp8_tiles(rows) * fp8_tiles(cols));
    return (struct fp8_weights){.code = arena_alloc(arena, (size_t)(matrices * rows * cols)),
                                .scale = arena_alloc(arena, scales * sizeof(float)),
                                .matrices = matrices,
                                .rows = rows,
                                .cols = cols};
}

/* --- scratch --- */

/* The most of codes and of scales that a buffer must hold. */
struct room {
    size_t codes, scales;
};

static void make_room(struct room *room, int64_t rows, int64_t cols)
{
    const size_t codes = (size_t)(rows * cols), scales = fp8_scale_bytes(rows, cols);
    room->codes = codes > room->codes ? codes : room->codes;
    room->scales = scales > room->scales ? scales : room->scales;
}

static struct fp8_buffer take(struct arena *arena, const struct room *room)
{
    return (struct fp8_buffer){.code = arena_alloc(arena, room->codes),
                               .scale = arena_alloc(arena, room->scales)};
}

static bool is_inside(enum linear_name name)
{
    return name == LINEAR_UP || name == LINEAR_EXPERTS_UP;
}

static void scratch_layout(struct linears *linears, const struct model *model, struct arena *arena)
{
    struct room x = {0}, dy = {0}, dy_turned = {0}, x_turned = {0}, d_turned = {0};
    for (int64_t i = linears->first * LINEARS; i < linears->end * LINEARS; i++) {
        const struct linear *linear = &linears->table[i];
        const enum linear_name name = (enum linear_name)(i % LINEARS);
        const bool experts = name == LINEAR_EXPERTS_UP || name == LINEAR_EXPERTS_DOWN;
        const int64_t rows = experts ? model->moe.bound : model->batch * model->sequence,
                      columns = fp8_token_columns(rows, groups_of(linear));
        if (linear->out == 0) {
            continue;
        }
        if (name == LINEAR_O) {
            make_room(&x, rows, linear->in);
        }
        if (!is_inside(name)) {
            make_room(&dy, rows, linear->out);
        }
        make_room(is_inside(name) ? &d_turned : &dy_turned, linear->out, columns);
        make_room(&x_turned, linear->in, columns);
    }
    linears->scratch.x = take(arena, &x);
    if (linears->training) {
        linears->scratch.dy = take(arena, &dy);
        linears->scratch.dy_turned = take(arena, &dy_turned);
        linears->scratch.x_turned = take(arena, &x_turned);
        linears->scratch.d_turned = take(arena, &d_turned);
    }
}

/* Codes of a block's weights, of those that are gathered or of the others. */
static void codes_layout(struct linears *linears, int64_t block, bool gathered, struct arena *arena)
{
    for (int name = 0; name < LINEARS; name++) {
        struct linear *linear = at(linears, block, (enum linear_name)name);
        if (linear->out == 0 || linear->gathered != gathered) {
            continue;
        }
        linear->w = weight_codes(arena, linear->matrices, linear->out, linear->in);
        if (linears->training) {
            linear->t = weight_codes(arena, linear->matrices, linear->in, linear->out);
        }
    }
}

/* Each window is as large as the largest block that it has by turns. */
static void windows_layout(struct linears *linears, struct arena *weights)
{
    for (int w = 0; w < LINEAR_WINDOWS; w++) {
        size_t most = 0;
        for (int pass = 0; pass < 2; pass++) {
            char *base = pass == 0 ? NULL : arena_alloc(weights, most);
            for (int64_t b = linears->first; b < linears->end; b++) {
                struct arena window = {.base = base, .capacity = most};
                if (b % LINEAR_WINDOWS == w) {
                    codes_layout(linears, b, true, &window);
                    most = window.used > most ? window.used : most;
                }
            }
        }
    }
}

void linears_layout(struct linears *linears, const struct model *model, struct arena *weights,
                    struct arena *scratch)
{
    fill_table(linears, model);
    for (int64_t b = linears->first; b < linears->end; b++) {
        codes_layout(linears, b, false, weights);
    }
    windows_layout(linears, weights);
    if (linears->first < linears->end) {
        scratch_layout(linears, model, scratch);
        linears->counters = arena_alloc(scratch, LINEAR_KINDS * sizeof *linears->counters);
    }
}

static void make_codes(struct linears *linears, int64_t block, bool gathered,
                       const struct fp8_how *how)
{
    for (int name = 0; name < LINEARS; name++) {
        const struct linear *linear = at(linears, block, (enum linear_name)name);
        if (linear->out > 0 && linear->gathered == gathered) {
            linears->ops->fp8->quantize_weights(linears->device, linear->w, linear->t,
                                                linear->weight, linear->stride, how);
        }
    }
}

void linears_use(struct linears *linears, int64_t block)
{
    const struct fp8_how how =
        linears->publishing ? linears_how(linears, LINEAR_WEIGHTS) : linears_how_silent(linears);
    int64_t *coded = &linears->coded[block % LINEAR_WINDOWS];
    if (linears_in_fp8(linears, block) && *coded != block) {
        make_codes(linears, block, true, &how);
        *coded = block;
    }
}

void linears_forget(struct linears *linears)
{
    for (int w = 0; w < LINEAR_WINDOWS; w++) {
        linears->coded[w] = -1;
    }
}

void linears_publish(struct model *model)
{
    struct linears *linears = &model->linears;
    if (linears->counters == NULL) {
        return;
    }
    const struct fp8_how how = linears_how(linears, LINEAR_WEIGHTS);
    linears->ops->zero(linears->device, linears->counters + LINEAR_WEIGHTS,
                       sizeof *linears->counters);
    linears->publishing = true;
    for (int64_t b = linears->end - 1; b >= linears->first; b--) {
        const int64_t next = b > linears->first ? params_part_block(&model->arch, b - 1) : -1;
        make_codes(linears, b, false, &how);
        gathered_use(model, params_part_block(&model->arch, b), next);
    }
    linears->publishing = false;
}

void linears_count_anew(struct linears *linears)
{
    if (linears->counters != NULL) {
        linears->ops->zero(linears->device, linears->counters,
                           LINEAR_WEIGHTS * sizeof *linears->counters);
    }
}

/* --- products --- */

struct fp8_rows fp8_view(struct fp8_buffer buffer, int64_t rows, int64_t cols)
{
    return (struct fp8_rows){.code = buffer.code,
                             .scale = buffer.scale,
                             .rows = rows,
                             .cols = cols,
                             .pitch = fp8_pitch(rows)};
}

struct fp8_rows fp8_turned(struct fp8_buffer buffer, int64_t rows, int64_t cols, int64_t groups)
{
    return fp8_view(buffer, cols, fp8_token_columns(rows, groups));
}

struct fp8_how linears_how_silent(const struct linears *linears)
{
    return (struct fp8_how){.power_of_two = linears->power_of_two,
                            .accumulate = linears->accumulate};
}

struct fp8_how linears_how(const struct linears *linears, enum linear_kind kind)
{
    struct fp8_how how = linears_how_silent(linears);
    how.counters = linears->again || linears->counters == NULL ? NULL : linears->counters + kind;
    return how;
}

void linear_norm(const struct linears *linears, const struct operand *y, struct tensor sum,
                 float *rstd, struct tensor x, struct tensor delta, struct tensor w, float eps)
{
    const struct fp8_how how = linears_how(linears, LINEAR_ACTIVATIONS);
    if (y->q.code == NULL) {
        linears->ops->norm_forward(linears->device, y->act, sum, rstd, x, delta, w, eps);
    } else {
        linears->ops->fp8->norm_forward(linears->device, y->q, y->act, sum, rstd, x, delta, w, eps,
                                        &how);
    }
}

static bool in_fp8(const struct linear *linear)
{
    return linear->w.code != NULL;
}

static struct tensor weight(const struct linears *linears, const struct linear *linear)
{
    return tensor_2d(linear->weight, linears->act, linear->out, linear->in);
}

void linear_forward(const struct linears *linears, const struct linear *linear, struct tensor y,
                    const struct operand *x, const int64_t *offset, bool add)
{
    const struct ops *ops = linears->ops;
    const struct fp8_how how = linears_how_silent(linears);
    if (in_fp8(linear)) {
        ops->fp8->linear(linears->device, y, x->q, linear->w, offset, add, &how);
    } else if (offset == NULL) {
        ops->linear_forward(linears->device, y, x->act, weight(linears, linear), add);
    } else {
        assert(!add);
        ops->grouped_forward(linears->device, y, x->act, linear->weight, linear->stride, offset,
                             linear->matrices);
    }
    mesh_progress(linears->mesh);
}

void linear_backward_input(const struct linears *linears, const struct linear *linear,
                           struct tensor dx, const struct operand *dy, const int64_t *offset,
                           bool add)
{
    const struct ops *ops = linears->ops;
    const struct fp8_how how = linears_how_silent(linears);
    if (in_fp8(linear)) {
        ops->fp8->linear(linears->device, dx, dy->q, linear->t, offset, add, &how);
    } else if (offset == NULL) {
        ops->linear_backward_input(linears->device, dx, dy->act, weight(linears, linear), add);
    } else {
        assert(!add);
        ops->grouped_backward_input(linears->device, dx, dy->act, linear->weight, linear->stride,
                                    offset, linear->matrices);
    }
    mesh_progress(linears->mesh);
}

bool linears_may_overwrite(const struct model *model)
{
    const struct linears *linears = &model->linears;
    const bool muon = model->config->optimizer.name == CONFIG_MUON; /* writes there */
    return model->training && linears->clean && linears->ops->grouped_first_weight != NULL &&
           linears->first >= linears->end && !model->gradients.fixed && !muon &&
           !model->group[PARAM_EXPERT].shards.on;
}

void linears_cleared(struct linears *linears, bool overwrite)
{
    static const enum linear_name experts[] = {LINEAR_EXPERTS_UP, LINEAR_EXPERTS_DOWN};
    for (int64_t block = 0; block < linears->blocks; block++) {
        for (size_t i = 0; i < sizeof experts / sizeof *experts; i++) {
            struct linear *linear = at(linears, block, experts[i]);
            assert(!linear->fresh); /* the step before went through all blocks */
            linear->fresh = overwrite && linear->grad != NULL;
        }
    }
    linears->clean = linears->clean || !overwrite;
}

/* One matrix. */
static void dense_backward_weight(const struct linears *linears, const struct linear *linear,
                                  const struct operand *dy, const struct operand *x, int64_t tokens)
{
    const struct ops *ops = linears->ops;
    const struct fp8_how how = linears_how_silent(linears);
    float *dw = gradients_place(linears->gradients, linear->grad);
    if (in_fp8(linear)) {
        ops->fp8->linear_weight(linears->device, dw, linear->stride, dy->t, x->t, NULL, 1, tokens,
                                &how);
    } else {
        ops->linear_backward_weight(
            linears->device, tensor_2d(dw, DTYPE_F32, linear->out, linear->in), dy->act, x->act);
    }
    gradients_add(linears->gradients, linear->sum, linear->out * linear->in);
}

/* As integers: an expert's from every source by itself. */
static void fixed_backward_weight(const struct linears *linears, const struct linear *linear,
                                  const struct operand *dy, const struct operand *x,
                                  const int64_t *offset, int64_t tokens)
{
    const struct gradients *gradients = linears->gradients;
    const struct fixed_ops *ops = linears->ops->fixed;
    const struct fp8_how how = linears_how_silent(linears);
    if (in_fp8(linear)) {
        ops->fp8_linear_weight(linears->device, linear->sum, linear->stride, gradients->unit, dy->t,
                               x->t, offset, linear->matrices, linear->sources, tokens,
                               linear->live, &how, gradients->point);
    } else {
        ops->grouped_backward_weight(linears->device, linear->sum, linear->stride, gradients->unit,
                                     dy->act, x->act, offset, linear->matrices, linear->sources,
                                     linear->live, gradients->point);
    }
}

void linear_backward_weight(const struct linears *linears, const struct linear *linear,
                            const struct operand *dy, const struct operand *x,
                            const int64_t *offset, int64_t tokens)
{
    const struct ops *ops = linears->ops;
    const struct fp8_how how = linears_how_silent(linears);
    const struct deferred_product product = {linear, *dy, *x, offset, tokens};
    if (linears->drawer != NULL && deferred_put(linears, &product)) {
        return;
    }
    if (offset == NULL) {
        dense_backward_weight(linears, linear, dy, x, tokens);
    } else if (linears->gradients->fixed) {
        fixed_backward_weight(linears, linear, dy, x, offset, tokens);
    } else if (in_fp8(linear)) {
        ops->fp8->linear_weight(linears->device, linear->grad, linear->stride, dy->t, x->t, offset,
                                linear->matrices, tokens, &how);
    } else {
        (linear->fresh ? ops->grouped_first_weight : ops->grouped_backward_weight)(
            linears->device, linear->grad, linear->stride, dy->act, x->act, offset,
            linear->matrices);
        linears->table[linear - linears->table].fresh = false;
    }
    mesh_progress(linears->mesh);
}

/* t from q, or where only the tensor is there from that; values of q were counted. */
static void turn(const struct linears *linears, struct operand *x, struct fp8_rows t,
                 const int64_t *offset, int64_t groups)
{
    const struct fp8_how how = linears_how_silent(linears);
    const struct fp8_rows none = {0};
    x->t = t;
    if (x->q.code != NULL) {
        linears->ops->fp8->transpose(linears->device, x->t, x->q, offset, groups, &how);
    } else {
        linears->ops->fp8->quantize(linears->device, none, x->t, x->act, NULL, x->act.dim[0],
                                    offset, groups, &how);
    }
}

void linear_turn(const struct linears *linears, const struct linear *linear, struct operand *x,
                 const int64_t *offset)
{
    if (in_fp8(linear) && x->t.code == NULL) {
        const int64_t rows = x->q.code != NULL ? x->q.rows : x->act.dim[0];
        turn(linears, x, fp8_turned(linears->scratch.x_turned, rows, linear->in, groups_of(linear)),
             offset, groups_of(linear));
    }
}

void linear_ready(const struct linears *linears, const struct linear *linear, struct operand *dy,
                  const int64_t *offset)
{
    const struct fp8_how how = linears_how(linears, LINEAR_GRADIENTS);
    if (!in_fp8(linear) || dy->t.code != NULL) {
        return;
    }
    const int64_t rows = dy->q.code != NULL ? dy->q.rows : dy->act.dim[0];
    const struct fp8_rows t =
        fp8_turned(linears->scratch.dy_turned, rows, linear->out, groups_of(linear));
    if (dy->q.code != NULL) {
        turn(linears, dy, t, offset, groups_of(linear));
        return;
    }
    dy->q = fp8_view(linears->scratch.dy, rows, linear->out);
    dy->t = t;
    linears->ops->fp8->quantize(linears->device, dy->q, dy->t, dy->act, NULL, rows, offset,
                                groups_of(linear), &how);
}

void linear_backward(const struct linears *linears, const struct linear *linear, struct tensor dx,
                     struct tensor dy, const struct operand *x, bool add)
{
    struct operand input = *x, gradient = {.act = dy};
    linear_turn(linears, linear, &input, NULL);
    linear_ready(linears, linear, &gradient, NULL);
    linear_backward_weight(linears, linear, &gradient, &input, NULL, dy.dim[0]);
    linear_backward_input(linears, linear, dx, &gradient, NULL, add);
}
