/* events: a file of TensorBoard events: scalars, histograms, text. Rank 0 only.
 *
 * TFRecord frames (8 bytes of length, its masked CRC-32C, the payload, the payload's) around
 * Event messages of TensorFlow's event.proto and summary.proto, written by hand: four message
 * types. A file begins with file_version "brain.Event:2". A run that resumes begins another file
 * with SessionLog START at the step it goes on from: TensorBoard then drops what older files hold
 * of later steps.
 */
#ifndef TRAINER_EVENTS_H
#define TRAINER_EVENTS_H

#include <stdint.h>
#include <stdio.h>

#include "kernels/base/status.h"

struct events {
    FILE *file; /* owned; NULL: closed, and what is written then goes nowhere */
    char *path; /* owned, for messages */
};

/* Makes FOLDER/events.out.tfevents.SECONDS.HOST.PID of a run whose first step is `first`. Errors:
 * STATUS_IO, STATUS_RESOURCE. */
enum status events_open(struct events *events, const char *folder, int64_t first)
    __attribute__((warn_unused_result));
void events_close(struct events *events); /* accepts a zeroed one */
/* The run goes on at step `first` again: what the file holds of it and later is dropped. */
void events_restart(struct events *events, int64_t first);

/* One value under `tag` ("train/loss"); not finite: nothing is written. */
void events_scalar(struct events *events, const char *tag, int64_t step, double value);
/* The distribution of count numbers, none negative: in `buckets` of equal width from 0 to the
 * largest. */
void events_histogram(struct events *events, const char *tag, int64_t step, const double *value,
                      int64_t count, int buckets);
/* Text as it stands: indented, so that TensorBoard's Markdown leaves it alone. */
void events_text(struct events *events, const char *tag, int64_t step, const char *text);
/* To the disk's cache, where a reader sees it. Errors of any write since: STATUS_IO. */
enum status events_flush(struct events *events) __attribute__((warn_unused_result));

#endif
