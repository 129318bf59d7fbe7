#include "trainer/rounding.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/difference.h"

static const char MASTER[] = "master/", MOMENT[] = "moment1/";

/* A tensor's name with * for numbers: all of them, or those of experts alone. */
static void pool_name(char out[ROUNDING_NAME], const char *name, bool layers)
{
    static const char experts[] = "experts.";
    size_t at = 0;
    for (const char *c = name; *c != '\0' && at + 1 < ROUNDING_NAME; c++) {
        const bool starts = isdigit((unsigned char)*c) && c > name && c[-1] == '.',
                   expert = starts && c - name >= (ptrdiff_t)strlen(experts) &&
                            strncmp(c - strlen(experts), experts, strlen(experts)) == 0;
        out[at++] = starts && (layers || expert) ? '*' : *c;
        while (starts && (layers || expert) && isdigit((unsigned char)c[1])) {
            c++;
        }
    }
    out[at] = '\0';
}

static int find(const struct rounding *rounding, const char *name)
{
    for (int i = rounding->count; i-- > 0;) { /* names come in order: mostly the last */
        if (strcmp(rounding->pool[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

static enum status pool_of(struct rounding *rounding, const char *name, int *index)
{
    *index = find(rounding, name);
    if (*index >= 0) {
        return STATUS_OK;
    }
    if (rounding->count == rounding->room) {
        const int room = 2 * rounding->room + 64;
        struct rounding_pool *more = realloc(rounding->pool, (size_t)room * sizeof *more);
        if (more == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for a comparison");
        }
        rounding->pool = more;
        rounding->room = room;
    }
    *index = rounding->count++;
    rounding->pool[*index] = (struct rounding_pool){.of_layers = *index};
    snprintf(rounding->pool[*index].name, ROUNDING_NAME, "%s", name);
    return STATUS_OK;
}

static enum status measured(struct rounding *rounding, const char *name, const struct difference *d)
{
    char own[ROUNDING_NAME], layers[ROUNDING_NAME];
    int one = -1, all = -1;
    pool_name(own, name, false);
    pool_name(layers, name, true);
    TRY(pool_of(rounding, own, &one));
    TRY(pool_of(rounding, layers, &all));
    rounding->pool[one].of_layers = all;
    for (int i = 0; i < (one == all ? 1 : 2); i++) {
        struct rounding_pool *pool = &rounding->pool[i == 0 ? one : all];
        pool->exact += d->norm * d->norm;
        pool->alone += d->distance * d->distance;
    }
    if (strncmp(name, MOMENT, strlen(MOMENT)) == 0) {
        rounding->exact += d->norm * d->norm;
        rounding->alone += d->distance * d->distance;
    }
    return STATUS_OK;
}

static enum status measure(struct rounding *rounding, struct checkpoint_reader *own,
                           struct checkpoint_reader *exact)
{
    const struct manifest *contents = checkpoint_contents(exact);
    for (int64_t i = 0; i < contents->tensors; i++) {
        const char *name = contents->tensor[i].name;
        char master[ROUNDING_NAME];
        struct difference d;
        snprintf(master, sizeof master, "%s%.200s", MASTER, name);
        const bool has = manifest_find(checkpoint_contents(own), master) != NULL;
        if (contents->tensor[i].dtype == DTYPE_F32) {
            TRY(difference_tensor(own, has ? master : name, exact, name, &d));
            TRY(d.a == NULL ? STATUS_OK : measured(rounding, has ? master : name, &d));
        }
    }
    return STATUS_OK;
}

enum status rounding_init(struct rounding *rounding, const char *own, const char *exact,
                          double unit)
{
    struct checkpoint_reader *a = NULL, *b = NULL;
    *rounding = (struct rounding){.unit = unit};
    enum status status = checkpoint_open(&a, own);
    status = status == STATUS_OK ? checkpoint_open(&b, exact) : status;
    status = status == STATUS_OK ? measure(rounding, a, b) : status;
    checkpoint_close(a);
    checkpoint_close(b);
    return status;
}

void rounding_free(struct rounding *rounding)
{
    free(rounding->pool);
    *rounding = (struct rounding){0};
}

bool rounding_add(struct rounding *rounding, const char *name, double distance)
{
    char own[ROUNDING_NAME];
    pool_name(own, name, false);
    const int i = find(rounding, own);
    if (i >= 0) {
        /* not a number is as far as can be */
        rounding->pool[i].apart += distance >= 0 ? distance * distance : (double)INFINITY;
    }
    return i >= 0;
}

static double relative(double part, double whole)
{
    return part == 0 ? 0 : sqrt(part) / sqrt(whole);
}

double rounding_of(double own, double exact)
{
    return own == exact ? 0 : fabs(own - exact) / fabs(exact);
}

double rounding_of_norm(const struct rounding *rounding)
{
    return rounding->alone == 0 ? 0 : rounding->alone / rounding->exact;
}

double rounding_allowed(const struct rounding *rounding, double alone)
{
    return 2 * alone + 4 * rounding->unit;
}

/* What is not a number is as far apart as can be, and allows nothing. */
static struct rounding_verdict verdict_of(const struct rounding *rounding,
                                          const struct rounding_pool *pool)
{
    const struct rounding_pool *layers = &rounding->pool[pool->of_layers];
    const double difference = relative(pool->apart, pool->exact),
                 own = relative(pool->alone, pool->exact),
                 all = relative(layers->alone, layers->exact),
                 allowed = 2 * (own > all ? own : all) + rounding->unit;
    return (struct rounding_verdict){.name = pool->name,
                                     .difference = difference >= 0 ? difference : (double)INFINITY,
                                     .allowed =
                                         allowed >= 0 && allowed < (double)INFINITY ? allowed : 0};
}

struct rounding_verdict rounding_worst(const struct rounding *rounding, const char *prefix,
                                       bool others)
{
    struct rounding_verdict worst = {0};
    for (int i = 0; i < rounding->count; i++) {
        const struct rounding_pool *pool = &rounding->pool[i];
        const bool begins = strncmp(pool->name, prefix, strlen(prefix)) == 0;
        if (begins == others || pool->apart == 0) {
            continue;
        }
        const struct rounding_verdict own = verdict_of(rounding, pool);
        if (worst.name == NULL || own.difference * worst.allowed > worst.difference * own.allowed) {
            worst = own;
        }
    }
    return worst;
}
