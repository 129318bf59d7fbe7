#include "trainer/commands/bench_peer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "kernels/base/json_out.h"

enum { MOST_LINE = 512, MOST_COMMAND = 4096, NOT_HERE = 77 };

struct peer {
    char who[MOST_LINE], last[MOST_LINE]; /* its name; the last line it printed */
    double ms[BENCH_MOST];                /* of times[i]; 0: nothing was said */
    char why[BENCH_MOST][MOST_LINE];      /* it cannot */
    int known;                            /* kernels it spoke of */
    bool garbled;                         /* `last` is no such line */
};

static int find(const struct bench_time *times, int count, const char *name)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(times[i].kernel->name, name) == 0) {
            return i;
        }
    }
    return -1;
}

/* Names that are not ours are passed over. */
static void take(struct peer *peer, const struct bench_time *times, int count, const char *line)
{
    char name[MOST_LINE], value[MOST_LINE], *end;
    int at = 0;
    if (strncmp(line, "peer ", 5) == 0) {
        snprintf(peer->who, sizeof peer->who, "%s", line + 5);
        return;
    }
    if (sscanf(line, "%511s %n%511s", name, &at, value) != 2) {
        peer->garbled = true;
        return;
    }
    const int i = find(times, count, name);
    const double ms = strtod(value, &end);
    if (strcmp(value, "-") == 0) {
        if (i >= 0) {
            snprintf(peer->why[i], sizeof peer->why[i], "%s", line + at + 1);
        }
    } else if (*end != '\0' || !(ms > 0)) {
        peer->garbled = true;
        return;
    } else if (i >= 0) {
        peer->ms[i] = ms;
    }
    peer->known += i >= 0;
}

static void dims(char *out, size_t bytes, const struct bench *b)
{
    const struct attention_shape *s = &b->attention;
    snprintf(out, bytes,
             "n=%lld,t=%lld,c=%lld,heads=%lld,kv=%lld,d=%lld,dv=%lld,experts=%lld,k=%lld,f=%lld,"
             "vocab=%lld",
             (long long)b->n, (long long)s->sequence, (long long)b->width, (long long)s->heads,
             (long long)s->kv_heads, (long long)s->qk_dim, (long long)s->v_dim,
             (long long)b->experts, (long long)b->top_k, (long long)b->expert_width,
             (long long)b->vocab);
}

/* *code: its exit code. */
static enum status ask(struct peer *peer, const struct bench *b, const char *command, bool cuda,
                       const struct bench_time *times, int count, int *code)
{
    char line[MOST_COMMAND], shapes[MOST_LINE];
    dims(shapes, sizeof shapes, b);
    if (snprintf(line, sizeof line, "%s --plain --device %s --dtype %s --dims %s", command,
                 cuda ? "cuda" : "cpu", b->act == DTYPE_F32 ? "float32" : "bfloat16",
                 shapes) >= (int)sizeof line) {
        return status_fail(STATUS_USAGE, "bench: --peer: too long");
    }
    fflush(NULL);
    FILE *said = popen(line, "r");
    if (said == NULL) {
        return status_fail(STATUS_RESOURCE, "bench: --peer: %s: %s", command, strerror(errno));
    }
    while (fgets(peer->last, sizeof peer->last, said) != NULL) {
        peer->last[strcspn(peer->last, "\n")] = '\0';
        if (!peer->garbled) {
            take(peer, times, count, peer->last);
        }
    }
    const int ended = pclose(said);
    *code = WIFEXITED(ended) ? WEXITSTATUS(ended) : 128;
    return STATUS_OK;
}

static void print_text(const struct peer *peer, const struct bench_time *times, int count)
{
    printf("beside %s: ours, its, how many times as fast\n", peer->who);
    for (int i = 0; i < count; i++) {
        if (peer->ms[i] > 0) {
            printf("%-26s %10.3f ms %10.3f ms  %5.2f\n", times[i].kernel->name,
                   1e3 * times[i].seconds, peer->ms[i], peer->ms[i] / (1e3 * times[i].seconds));
        } else if (peer->why[i][0] != '\0') {
            printf("%-26s not there:%s\n", times[i].kernel->name, peer->why[i]);
        }
    }
}

static void print_json(const struct peer *peer, const struct bench_time *times, int count)
{
    json_out_text(stdout, ",\"peer\":{\"name\":", peer->who);
    printf(",\"ms\":{");
    for (int i = 0, first = 1; i < count; i++) {
        if (peer->ms[i] > 0) {
            printf("%s\"%s\":", first ? "" : ",", times[i].kernel->name);
            json_out_number(stdout, "", peer->ms[i], 6);
            first = 0;
        }
    }
    printf("}}");
}

static enum status show(const struct peer *peer, const char *command, int code,
                        const struct bench_time *times, int count, bool json)
{
    if (code == NOT_HERE) {
        if (json) {
            printf(",\"peer\":null");
        } else {
            printf("no peer: %s\n", peer->last);
        }
        return STATUS_OK;
    }
    if (code != 0) {
        return status_fail(STATUS_INTERNAL, "bench: --peer: %s: exit code %d", command, code);
    }
    if (peer->garbled || peer->known == 0) {
        return status_fail(STATUS_INTERNAL, "bench: --peer: %s says no times: '%.100s'", command,
                           peer->last);
    }
    (json ? print_json : print_text)(peer, times, count);
    return STATUS_OK;
}

enum status bench_peer(const struct bench *bench, const char *command, bool cuda,
                       const struct bench_time *times, int count, bool json)
{
    struct peer *peer = calloc(1, sizeof *peer);
    int code = 0;
    if (peer == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a peer");
    }
    enum status status = ask(peer, bench, command, cuda, times, count, &code);
    if (status == STATUS_OK) {
        status = show(peer, command, code, times, count, json);
    }
    free(peer);
    return status;
}
