/* verify: whether a layout computes what one rank does.
 *
 * One optimizer step over one micro-batch of random tokens per rank, on the layout and again by
 * rank 0 alone: losses, tokens per expert, the gradient of every parameter and its norm, the
 * weights after the step; and whether the layout's checkpoint loads and saves again to the same
 * bits. Gradients are read from AdamW's (Muon's) first moment, which starts at 0 and is then (1 -
 * beta1) g up to the clipping factor; so moments are kept in fp32 here. Tensors are compared
 * through the two checkpoints, which know them by name on every layout.
 *
 * Sums over tp, cp and etp are rounded in other places than one rank's. In bf16 and FP8 that moves
 * numbers by as much as the precision rounds, and choices of experts; rank 0 computes the step once
 * more in fp32, and what is allowed follows from how far that is from its own (rounding.h).
 */
#ifndef TRAINER_VERIFY_H
#define TRAINER_VERIFY_H

#include <stdio.h>

#include "trainer/session.h"

enum { VERIFY_ROWS = 10, VERIFY_TEXT = 320 };

/* One thing compared. */
struct verify_row {
    const char *what;
    double layout, reference;   /* NAN: not one number */
    double difference, allowed; /* relative; of tensors, of the worst: ||a-b|| / ||b|| */
    int64_t compared;           /* tensors or counts; 0: one number */
    char worst[VERIFY_TEXT];    /* the worst of them: its name; "" when all are the same bits */
    bool good;
};

struct verify_report {
    int ranks, ep, etp, edp, tp, cp, pp;
    int64_t units, sequences,
        tokens;   /* micro-batches, sequences in each, tokens in each of those */
    bool rounded; /* not in fp32, with tp, cp or etp: judged as rounding.h says */
    int rows;
    struct verify_row row[VERIFY_ROWS];
    char first[VERIFY_TEXT]; /* the first tensor that differs more than allowed, where, both values
                              */
    bool good;
};

/* Collective over the session's world; the report is rank 0's. Needs room beside run.dir for three
 * checkpoints (four with tp, cp or etp in bf16 and FP8), which are removed again, and for the whole
 * model on rank 0, then in fp32 too. Errors, the same on every rank: STATUS_RESOURCE, STATUS_IO,
 * those of a step. */
enum status verify_run(const struct session *session, struct verify_report *report)
    __attribute__((warn_unused_result));

void verify_print(FILE *out, const struct verify_report *report);
void verify_print_json(FILE *out, const struct verify_report *report);

#endif
