#include "trainer/model/deferred.h"

#include <assert.h>
#include <stdlib.h>

#include "trainer/model/model.h"

/* What stays of a product's operands until the slot is free: the class of the buffer (layout.h)
 * that x, dy stand in; MEMORY_CLASSES: one that all layers share. wide: x is gathered where tp
 * divides matrices; own: rows are this rank's tokens, not all of its sequences. */
static const struct {
    enum memory_class x, dy;
    bool wide, own;
} operands[LINEARS] = {
    [LINEAR_QKV] = {MEMORY_NORM, MEMORY_CLASSES, true, false},
    [LINEAR_Q_A] = {MEMORY_NORM, MEMORY_CLASSES, false, true},
    [LINEAR_Q_B] = {MEMORY_NORM, MEMORY_CLASSES, true, false},
    [LINEAR_KV_A] = {MEMORY_NORM, MEMORY_CLASSES, false, true},
    [LINEAR_K_ROPE] = {MEMORY_NORM, MEMORY_CLASSES, false, true},
    [LINEAR_KV_B] = {MEMORY_NORM, MEMORY_CLASSES, true, false},
    [LINEAR_O] = {MEMORY_REST, MEMORY_CLASSES, false, false},
    [LINEAR_UP] = {MEMORY_NORM, MEMORY_INNER, true, false},
    [LINEAR_DOWN] = {MEMORY_CLASSES, MEMORY_CLASSES, false, false},
    [LINEAR_EXPERTS_UP] = {MEMORY_REST, MEMORY_INNER, false, false},
    [LINEAR_EXPERTS_DOWN] = {MEMORY_CLASSES, MEMORY_CLASSES, false, false},
};

static enum status open_drawer(struct drawer *drawer, const struct stage *part, int64_t number)
{
    const int64_t layers = part->blocks * LINEARS;
    *drawer = (struct drawer){.layers = layers,
                              .first = part->first * LINEARS,
                              .part = number,
                              .batch = -1,
                              .room = calloc((size_t)layers, sizeof *drawer->room),
                              .product = calloc((size_t)layers, sizeof *drawer->product)};
    return drawer->room != NULL && drawer->product != NULL
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "out of memory for gradients of %lld layers",
                             (long long)layers);
}

enum status deferred_init(struct deferred *deferred, const struct model *model, const int64_t *off)
{
    const struct slice *slice = &model->slice;
    int64_t count = 0;
    for (int64_t part = 0; part < slice->shape.parts; part++) {
        count += off[part];
    }
    *deferred = (struct deferred){.drawer = calloc((size_t)count + 1, sizeof *deferred->drawer)};
    if (deferred->drawer == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for gradients that wait");
    }
    for (int64_t part = 0; part < slice->shape.parts; part++) {
        for (int64_t i = 0; i < off[part]; i++) {
            TRY(open_drawer(&deferred->drawer[deferred->count++], &slice->part[part], part));
        }
    }
    return STATUS_OK;
}

void deferred_free(struct deferred *deferred)
{
    for (int64_t i = 0; i < deferred->count; i++) {
        free(deferred->drawer[i].room);
        free(deferred->drawer[i].product);
    }
    free(deferred->drawer);
    *deferred = (struct deferred){0};
}

/* --- memory --- */

static struct fp8_buffer codes(struct arena *arena, int64_t rows, int64_t cols)
{
    return (struct fp8_buffer){.code = arena_alloc(arena, (size_t)(rows * cols)),
                               .scale = arena_alloc(arena, fp8_scale_bytes(rows, cols))};
}

static bool stays(const struct layout *layout, enum memory_class kind)
{
    return kind != MEMORY_CLASSES && !layout->lent[kind];
}

static int64_t rows_of(const struct model *model, enum linear_name name)
{
    if (name == LINEAR_EXPERTS_UP || name == LINEAR_EXPERTS_DOWN) {
        return model->moe.bound;
    }
    return model->batch * (operands[name].own ? model->tp.share : model->sequence);
}

static void room_layout(struct deferred_room *room, const struct model *model,
                        const struct linear *linear, enum linear_name name,
                        const struct layout *layout)
{
    const int64_t rows = rows_of(model, name);
    const size_t row = (size_t)rows * dtype_bytes(model->act);
    room->waits = linear->out > 0 && (name != LINEAR_KV_B || cp_alone(&model->cp));
    if (!room->waits) {
        return;
    }
    if (linear->w.code != NULL || layout->fp8) {
        const int64_t columns = fp8_token_columns(rows, linear->matrices * linear->sources);
        room->dy_codes = codes(layout->arena, linear->out, columns);
        room->x_codes = codes(layout->arena, linear->in, columns);
        return;
    }
    room->keeps_x =
        stays(layout, operands[name].x) && (!operands[name].wide || tp_alone(&model->tp));
    room->keeps_dy = stays(layout, operands[name].dy);
    room->dy = room->keeps_dy ? NULL : arena_alloc(layout->arena, (size_t)linear->out * row);
    room->x = room->keeps_x ? NULL : arena_alloc(layout->arena, (size_t)linear->in * row);
}

void deferred_layout(struct deferred *deferred, const struct model *model, struct arena *arena)
{
    struct layout layout;
    layout_init(&layout, arena, model->training, model->config->train.recompute);
    for (int64_t d = 0; d < deferred->count; d++) {
        const struct drawer *drawer = &deferred->drawer[d];
        for (int64_t i = 0; i < drawer->layers; i++) {
            const int64_t at = drawer->first + i;
            layout.fp8 = linears_in_fp8(&model->linears, at / LINEARS);
            room_layout(&drawer->room[i], model, &model->linears.table[at],
                        (enum linear_name)(at % LINEARS), &layout);
        }
    }
}

/* --- products --- */

struct drawer *deferred_find(const struct deferred *deferred, int64_t part, int32_t batch)
{
    struct drawer *drawer = deferred->drawer;
    while (drawer->part != part || drawer->batch != batch) {
        drawer++;
        assert(drawer < deferred->drawer + deferred->count);
    }
    return drawer;
}

static struct tensor keep(const struct linears *linears, struct tensor x, void *room)
{
    linears->ops->copy(linears->device, room, x.data, tensor_bytes(&x));
    return tensor_2d(room, x.dtype, x.dim[0], x.dim[1]);
}

static struct fp8_rows keep_codes(const struct linears *linears, const struct fp8_rows *t,
                                  struct fp8_buffer room)
{
    linears->ops->copy(linears->device, room.code, t->code, (size_t)(t->rows * t->cols));
    linears->ops->copy(linears->device, room.scale, t->scale, fp8_scale_bytes(t->rows, t->cols));
    return fp8_view(room, t->rows, t->cols);
}

bool deferred_put(const struct linears *linears, const struct deferred_product *product)
{
    struct drawer *drawer = linears->drawer;
    const struct deferred_room *room =
        &drawer->room[product->linear - linears->table - drawer->first];
    assert(room >= drawer->room && room < drawer->room + drawer->layers);
    if (!room->waits) {
        return false;
    }
    assert(drawer->count < drawer->layers);
    struct deferred_product *kept = &drawer->product[drawer->count++];
    *kept = *product;
    if (product->linear->w.code != NULL) {
        kept->dy = (struct operand){.t = keep_codes(linears, &product->dy.t, room->dy_codes)};
        kept->x = (struct operand){.t = keep_codes(linears, &product->x.t, room->x_codes)};
        return true;
    }
    kept->dy.act = room->keeps_dy ? product->dy.act : keep(linears, product->dy.act, room->dy);
    kept->x.act = room->keeps_x ? product->x.act : keep(linears, product->x.act, room->x);
    return true;
}

/* What is made of a part's gradients is made. */
static void close_part(struct model *model, int64_t part, bool last)
{
    shards_close(model, part);
    if (last) {
        reduction_close(model, part);
    }
}

void deferred_make(struct model *model, struct drawer *drawer, bool last)
{
    const struct linears *linears = &model->linears;
    int64_t open = -1; /* the part of the parameters whose gradients are being made (shards.h) */
    assert(linears->drawer == NULL);
    for (int64_t i = 0; i < drawer->count; i++) {
        const struct deferred_product *product = &drawer->product[i];
        const int64_t part =
            params_part_block(&model->arch, (product->linear - linears->table) / LINEARS);
        if (part != open && open >= 0) {
            close_part(model, open, last);
        }
        shards_open(model, part);
        shards_start(model);
        reduction_start(model);
        reduction_progress(model);
        open = part;
        linear_backward_weight(linears, product->linear, &product->dy, &product->x, product->offset,
                               product->tokens);
    }
    if (open >= 0) {
        close_part(model, open, last);
    }
    drawer->count = 0;
    drawer->batch = -1;
}
