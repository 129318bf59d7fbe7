#include "checkpoints/boxes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static int64_t lesser(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t greater(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

bool boxes_fit(const struct part *part, int64_t elements, int64_t width)
{
    const int64_t run = part->run, rows = width > 0 ? elements / width : 0;
    return width > 0 && part->stride == width && run > 0 && run < width && part->count > run &&
           part->count % run == 0 && part->first % width + run <= width &&
           part->first / width < rows && part->count / run <= rows - part->first / width;
}

/* What is in one is at most three boxes: the rest of a row, whole rows, the start of a row. */
static int cut(struct box boxes[BOXES_OF_PART], int64_t first, int64_t count, int64_t width)
{
    int used = 0;
    while (count > 0) {
        const int64_t column = first % width;
        struct box box = {.row = first / width,
                          .rows = 1,
                          .column = column,
                          .columns = lesser(width - column, count)};
        if (column == 0 && count >= width) {
            box.rows = count / width;
        }
        const int64_t taken = box.rows * box.columns;
        assert(used < BOXES_OF_PART);
        boxes[used++] = box;
        first += taken;
        count -= taken;
    }
    return used;
}

int boxes_of(struct box boxes[BOXES_OF_PART], const struct part *part, int64_t width)
{
    if (part->run == 0) {
        return cut(boxes, part->first, part->count, width);
    }
    boxes[0] = (struct box){.row = part->first / width,
                            .rows = part->count / part->run,
                            .column = part->first % width,
                            .columns = part->run};
    return 1;
}

bool boxes_meet(struct box *both, const struct box *a, const struct box *b)
{
    both->row = greater(a->row, b->row);
    both->rows = lesser(a->row + a->rows, b->row + b->rows) - both->row;
    both->column = greater(a->column, b->column);
    both->columns = lesser(a->column + a->columns, b->column + b->columns) - both->column;
    return both->rows > 0 && both->columns > 0;
}

/* From `column` to the next edge's, all rows before `row` are covered, and none from it on. */
struct edge {
    int64_t column, row;
};

struct skyline {
    struct edge *edge; /* borrowed: [count], by rising column, the first at 0 */
    int64_t count, width;
};

/* False: something below the box is not covered yet, or a part of it is already. */
static bool lay(struct skyline *line, const struct box *box)
{
    const int64_t end = box->column + box->columns;
    struct edge *edge = line->edge, put[3];
    int64_t from = 0, to = 0, used = 0;
    while (from + 1 < line->count && edge[from + 1].column <= box->column) {
        from++;
    }
    for (to = from; to < line->count && edge[to].column < end; to++) {
        if (edge[to].row != box->row) {
            return false;
        }
    }
    if (edge[from].column < box->column) {
        put[used++] = edge[from];
    }
    put[used++] = (struct edge){box->column, box->row + box->rows};
    if (end < (to < line->count ? edge[to].column : line->width)) {
        put[used++] = (struct edge){end, box->row};
    }
    memmove(edge + from + used, edge + to, (size_t)(line->count - to) * sizeof *edge);
    memcpy(edge + from, put, (size_t)used * sizeof *edge);
    line->count += used - (to - from);
    return true;
}

/* Neighbours of one height are one. */
static void join(struct skyline *line)
{
    int64_t kept = 1;
    for (int64_t i = 1; i < line->count; i++) {
        if (line->edge[i].row != line->edge[kept - 1].row) {
            line->edge[kept++] = line->edge[i];
        }
    }
    line->count = kept;
}

static int by_place(const void *a, const void *b)
{
    const struct box *x = a, *y = b;
    return x->row != y->row ? (x->row > y->row) - (x->row < y->row)
                            : (x->column > y->column) - (x->column < y->column);
}

bool boxes_cover(struct box *boxes, int64_t count, int64_t rows, int64_t width, void *scratch)
{
    struct skyline line = {.edge = scratch, .count = 1, .width = width};
    line.edge[0] = (struct edge){0, 0};
    if (count > 0) {
        qsort(boxes, (size_t)count, sizeof *boxes, by_place);
    }
    for (int64_t i = 0; i < count; i++) {
        if (!lay(&line, &boxes[i])) {
            return false;
        }
        join(&line);
    }
    return line.count == 1 && line.edge[0].row == rows;
}
