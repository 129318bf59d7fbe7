#define _DEFAULT_SOURCE
#include "trainer/events.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "data/utf8.h"
#include "kernels/base/io.h"

enum { MAX_PATH = 4096 };

/* A message under construction; `failed` once memory ran out. */
struct message {
    unsigned char *data;
    size_t bytes, room;
    bool failed;
};

static void put(struct message *m, const void *data, size_t bytes)
{
    if (m->bytes + bytes > m->room) {
        const size_t room = 2 * (m->bytes + bytes);
        unsigned char *grown = m->failed ? NULL : realloc(m->data, room);
        if (grown == NULL) {
            m->failed = true;
            return;
        }
        m->data = grown;
        m->room = room;
    }
    memcpy(m->data + m->bytes, data, bytes);
    m->bytes += bytes;
}

/* --- Protocol buffers: fields are a number and a wire type, then the value --- */

enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static void put_varint(struct message *m, uint64_t value)
{
    unsigned char bytes[10];
    size_t count = 0;
    for (; value >= 0x80; value >>= 7) {
        bytes[count++] = (unsigned char)(value | 0x80);
    }
    bytes[count++] = (unsigned char)value;
    put(m, bytes, count);
}

static void put_key(struct message *m, unsigned field, enum wire wire)
{
    put_varint(m, field << 3 | (unsigned)wire);
}

static void put_integer(struct message *m, unsigned field, int64_t value)
{
    put_key(m, field, WIRE_VARINT);
    put_varint(m, (uint64_t)value);
}

static void put_double(struct message *m, unsigned field, double value)
{
    put_key(m, field, WIRE_64);
    put(m, &value, sizeof value);
}

static void put_bytes(struct message *m, unsigned field, const void *data, size_t bytes)
{
    put_key(m, field, WIRE_BYTES);
    put_varint(m, bytes);
    put(m, data, bytes);
}

static void put_text(struct message *m, unsigned field, const char *text)
{
    put_bytes(m, field, text, strlen(text));
}

/* A message as a field of another; `inner` is freed. */
static void put_message(struct message *m, unsigned field, struct message *inner)
{
    put_bytes(m, field, inner->data, inner->bytes);
    m->failed = m->failed || inner->failed;
    free(inner->data);
    *inner = (struct message){0};
}

/* --- Frames --- */

/* CRC-32C (Castagnoli), then TFRecord's mask. */
static uint32_t masked_crc(const unsigned char *data, size_t bytes)
{
    const uint32_t polynomial = 0x82f63b78u, mask = 0xa282ead8u;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ ((crc & 1) != 0 ? polynomial : 0);
        }
    }
    crc = ~crc;
    return (crc >> 15 | crc << 17) + mask;
}

/* Frees the message. */
static void write_frame(struct events *events, struct message *event)
{
    const uint64_t length = event->bytes;
    const uint32_t crc = masked_crc((const unsigned char *)&length, sizeof length),
                   data_crc = masked_crc(event->data, event->bytes);
    if (events->file != NULL && !event->failed) {
        fwrite(&length, sizeof length, 1, events->file);
        fwrite(&crc, sizeof crc, 1, events->file);
        fwrite(event->data, 1, event->bytes, events->file);
        fwrite(&data_crc, sizeof data_crc, 1, events->file);
    }
    free(event->data);
}

/* Event: wall_time = 1, step = 2, file_version = 3, summary = 5, session_log = 7. */
static struct message event_at(int64_t step)
{
    struct message event = {0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    put_double(&event, 1, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
    put_integer(&event, 2, step);
    return event;
}

/* Summary: value = 1. Frees the value. */
static void write_value(struct events *events, int64_t step, struct message *value)
{
    struct message event = event_at(step), summary = {0};
    put_message(&summary, 1, value);
    put_message(&event, 5, &summary);
    write_frame(events, &event);
}

/* --- Values: tag = 1, simple_value = 2, histo = 5, tensor = 8, metadata = 9 --- */

void events_scalar(struct events *events, const char *tag, int64_t step, double value)
{
    struct message m = {0};
    const float shown = (float)value;
    if (events->file == NULL || !isfinite(value)) {
        return;
    }
    put_text(&m, 1, tag);
    put_key(&m, 2, WIRE_32);
    put(&m, &shown, sizeof shown);
    write_value(events, step, &m);
}

/* HistogramProto: min = 1, max = 2, num = 3, sum = 4, sum_squares = 5, bucket_limit = 6,
 * bucket = 7; a bucket ends at its limit. */
void events_histogram(struct events *events, const char *tag, int64_t step, const double *value,
                      int64_t count, int buckets)
{
    double low = INFINITY, high = 0, sum = 0, squares = 0;
    double *limit = calloc(2 * (size_t)buckets, sizeof *limit), *held = limit + buckets;
    struct message m = {0}, histogram = {0};
    if (events->file == NULL || count == 0 || limit == NULL) {
        free(limit);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        low = fmin(low, value[i]);
        high = fmax(high, value[i]);
        sum += value[i];
        squares += value[i] * value[i];
    }
    const double width = (high > 0 ? high : 1) / buckets;
    for (int b = 0; b < buckets; b++) {
        limit[b] = (b + 1) * width;
    }
    for (int64_t i = 0; i < count; i++) {
        const int b = (int)(value[i] / width);
        held[b < buckets ? b : buckets - 1] += 1;
    }
    const double numbers[] = {low, high, (double)count, sum, squares};
    for (unsigned i = 0; i < 5; i++) {
        put_double(&histogram, i + 1, numbers[i]);
    }
    put_bytes(&histogram, 6, limit, (size_t)buckets * sizeof *limit);
    put_bytes(&histogram, 7, held, (size_t)buckets * sizeof *held);
    free(limit);
    put_text(&m, 1, tag);
    put_message(&m, 5, &histogram);
    write_value(events, step, &m);
}

/* Four spaces before each line: a code block. Owned by the caller. */
static char *indented(const char *text)
{
    struct byte_list clean = {0};
    char *out = NULL;
    size_t bytes = 0;
    const enum status status = utf8_replace(&clean, text, strlen(text));
    FILE *stream = status == STATUS_OK ? open_memstream(&out, &bytes) : NULL;
    if (stream != NULL) {
        fputs("    ", stream);
        for (size_t i = 0; i < clean.count; i++) {
            fputc(clean.data[i], stream);
            fputs(clean.data[i] == '\n' ? "    " : "", stream);
        }
        fclose(stream);
    }
    byte_list_free(&clean);
    return out;
}

/* TensorProto: dtype = 1 (7: string), tensor_shape = 2, string_val = 8; TensorShapeProto: dim = 2;
 * Dim: size = 1; SummaryMetadata: plugin_data = 1; PluginData: plugin_name = 1. */
void events_text(struct events *events, const char *tag, int64_t step, const char *text)
{
    enum { DT_STRING = 7 };
    struct message m = {0}, tensor = {0}, shape = {0}, dim = {0}, metadata = {0}, plugin = {0};
    char *block = events->file != NULL ? indented(text) : NULL;
    if (block == NULL) {
        return;
    }
    put_integer(&dim, 1, 1);
    put_message(&shape, 2, &dim);
    put_integer(&tensor, 1, DT_STRING);
    put_message(&tensor, 2, &shape);
    put_text(&tensor, 8, block);
    put_text(&plugin, 1, "text");
    put_message(&metadata, 1, &plugin);
    put_text(&m, 1, tag);
    put_message(&m, 8, &tensor);
    put_message(&m, 9, &metadata);
    write_value(events, step, &m);
    free(block);
}

/* --- Files --- */

void events_restart(struct events *events, int64_t first)
{
    struct message start = event_at(first), log = {0};
    if (events->file == NULL) {
        return;
    }
    put_integer(&log, 1, 1); /* SessionLog: status = 1, START = 1 */
    put_message(&start, 7, &log);
    write_frame(events, &start);
}

static void begin(struct events *events, int64_t first)
{
    struct message version = event_at(0);
    put_text(&version, 3, "brain.Event:2");
    write_frame(events, &version);
    events_restart(events, first);
}

enum status events_open(struct events *events, const char *folder, int64_t first)
{
    char host[256] = "", path[MAX_PATH];
    *events = (struct events){0};
    TRY(io_make_dir(folder));
    gethostname(host, sizeof host - 1);
    snprintf(path, sizeof path, "%s/events.out.tfevents.%010lld.%s.%lld", folder,
             (long long)time(NULL), host, (long long)getpid());
    events->path = strdup(path);
    if (events->path == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory", path);
    }
    events->file = fopen(path, "wb");
    if (events->file == NULL) {
        return status_fail(STATUS_IO, "%s: cannot open for writing: %s", path, strerror(errno));
    }
    begin(events, first);
    return events_flush(events);
}

enum status events_flush(struct events *events)
{
    return events->file == NULL || (fflush(events->file) == 0 && !ferror(events->file))
               ? STATUS_OK
               : status_fail(STATUS_IO, "%s: cannot write: %s", events->path, strerror(errno));
}

void events_close(struct events *events)
{
    if (events->file != NULL) {
        fclose(events->file);
    }
    free(events->path);
    *events = (struct events){0};
}
