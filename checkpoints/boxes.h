/* boxes: parts of a flattened tensor as rectangles of a matrix: its rows are runs of `width`
 * elements, the tensor's last dimension.
 *
 * A part is `count` elements from `first` on: all in one (run 0), or in runs of `run` elements
 * whose firsts are `stride` apart, the columns of a matrix that a rank holds. Its elements are kept
 * one behind the other. Private to checkpoints/.
 */
#ifndef CHECKPOINTS_BOXES_H
#define CHECKPOINTS_BOXES_H

#include <stdbool.h>
#include <stdint.h>

struct box {
    int64_t row, rows, column, columns;
};

struct part {
    int64_t first, count;
    int64_t run, stride; /* 0 and 0: in one */
};

enum { BOXES_OF_PART = 3 };

/* Whether a part in runs lies in a tensor of so many elements in rows of `width`: two runs or more,
 * each shorter than a row and within one. */
bool boxes_fit(const struct part *part, int64_t elements, int64_t width);
/* The boxes of a part that lies in its tensor, in the order of their elements; how many. */
int boxes_of(struct box boxes[BOXES_OF_PART], const struct part *part, int64_t width);
/* Where two boxes overlap; false: nowhere. */
bool boxes_meet(struct box *both, const struct box *a, const struct box *b);
/* Whether boxes, which are sorted here, cover a matrix, each element once. scratch: memory of
 * 4 * count + 2 integers of 64 bits. */
bool boxes_cover(struct box *boxes, int64_t count, int64_t rows, int64_t width, void *scratch);

#endif
