#include "trainer/resume.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/session.h"

__extension__ typedef __int128 wide;

int64_t resume_position(int64_t position, int64_t from, int64_t to)
{
    return (int64_t)(((wide)position * from + to - 1) / to);
}

static void append(char note[RESUME_NOTE_BYTES], const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void append(char note[RESUME_NOTE_BYTES], const char *format, ...)
{
    const size_t used = strlen(note);
    va_list list;
    va_start(list, format);
    vsnprintf(note + used, RESUME_NOTE_BYTES - used, format, list);
    va_end(list);
}

void resume_differences(const struct config *saved, const struct config *now, char *out,
                        size_t bytes)
{
    static const char *const sections[] = {"run.seed",  "run.steps",  "model.",    "train.",
                                           "fp8.",      "optimizer.", "schedule.", "router.",
                                           "parallel.", "data."};
    out[0] = '\0';
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        char list[RESUME_NOTE_BYTES / 2];
        const size_t used = strlen(out);
        config_differences(saved, now, sections[i], list, sizeof list);
        if (list[0] != '\0') {
            snprintf(out + used, bytes - used, "%s%s", used > 0 ? ", " : "", list);
        }
    }
}

static bool changed(const struct config *saved, const struct config *now, const char *keys)
{
    char list[64];
    config_differences(saved, now, keys, list, sizeof list);
    return list[0] != '\0';
}

/* Whether another rule says which sample comes when. */
static bool changed_order(const struct config *saved, const struct config *now)
{
    static const char *const keys[] = {"run.seed",     "train.sequence_length", "data.train",
                                       "data.shuffle", "data.packing",          "data.stages",
                                       "data.fim.rate"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (changed(saved, now, keys[i])) {
            return true;
        }
    }
    return now->data.stages.steps.count > 0 && changed(saved, now, "train.");
}

/* --- sources --- */

/* A run's data, before and now, as they are put together. */
struct carrying {
    const struct config *saved, *now;
    const struct sources *sources;
    const struct data_state *before;
    bool used[MIXTURE_SOURCES]; /* of before: it goes on as one of now */
    char *note;                 /* [RESUME_NOTE_BYTES] */
    bool alarm;
};

static bool is_new_name(const struct carrying *carrying, const char *path)
{
    for (int64_t i = 0; i < carrying->before->count; i++) {
        if (strcmp(carrying->before->source[i].path, path) == 0) {
            return false;
        }
    }
    return true;
}

/* Whether a source before is there under its name or, not `named`, under a new one, with what was
 * in it then, as far as that is known. */
static bool is_there(const struct carrying *carrying, const struct data_source_state *old,
                     bool named)
{
    bool there = false;
    for (int64_t s = 0; s < carrying->sources->count; s++) {
        const struct data_source_state *own = &carrying->sources->origin.source[s];
        const bool known = old->fingerprint != 0;
        there = there ||
                (named ? strcmp(own->path, old->path) == 0 && (!known || data_state_same(old, own))
                       : is_new_name(carrying, own->path) && known && data_state_same(old, own));
    }
    return there;
}

/* Which of the sources before source `s` is: by its name, unless what was in that one has a new
 * name now; or by what is in it, unless that one still has its name. -1: none. */
static int64_t match(const struct carrying *carrying, int64_t s)
{
    const struct data_source_state *own = &carrying->sources->origin.source[s];
    int64_t same = -1;
    for (int64_t i = 0; i < carrying->before->count; i++) {
        const struct data_source_state *old = &carrying->before->source[i];
        const bool named = strcmp(old->path, own->path) == 0;
        if (!carrying->used[i] && named &&
            (is_there(carrying, old, true) || !is_there(carrying, old, false))) {
            return i;
        }
        if (!carrying->used[i] && same < 0 && !named && data_state_same(old, own) &&
            !is_there(carrying, old, true)) {
            same = i;
        }
    }
    /* A checkpoint that knows nothing of contents: one file before and one now is one source. */
    const bool alone = carrying->before->count == 1 && carrying->sources->count == 1 &&
                       carrying->before->source[0].fingerprint == 0;
    return alone ? 0 : same;
}

static void check_contents(struct carrying *carrying, const struct data_source_state *old,
                           const struct data_source_state *own)
{
    if (old->fingerprint != 0 && !data_state_same(old, own)) {
        append(
            carrying->note,
            "; %s: ITS CONTENTS CHANGED since the checkpoint: what of it was read already is not "
            "known, its position is kept",
            own->path);
        carrying->alarm = true;
    }
}

static struct loader_place carry_one(struct carrying *carrying, int64_t s)
{
    const struct mixture_source *source = &carrying->sources->source[s];
    const struct data_source_state *own = &carrying->sources->origin.source[s];
    const int64_t from = match(carrying, s);
    if (from < 0) {
        append(carrying->note, "; %s starts at its beginning", own->path);
        return loader_start(&source->loader);
    }
    struct loader_place place = carrying->before->source[from].now;
    carrying->used[from] = true;
    check_contents(carrying, &carrying->before->source[from], own);
    if (!loader_adopt(&source->loader, &place)) {
        append(carrying->note,
               "; %s: its documents are packed otherwise: of the epoch under way some may come "
               "twice, some not at all",
               own->path);
    }
    return place;
}

/* The run goes on from a new origin: where it is. */
static void carry(struct carrying *carrying, struct progress_state *at)
{
    const int64_t from = carrying->saved->train.sequence_length,
                  to = carrying->now->train.sequence_length;
    struct data_state next = {.step = at->step,
                              .position = resume_position(at->position, from, to),
                              .tokens = carrying->before->tokens +
                                        (at->position - carrying->before->position) * from,
                              .count = carrying->sources->count};
    for (int64_t s = 0; s < next.count; s++) {
        next.source[s] = carrying->sources->origin.source[s];
        next.source[s].origin = next.source[s].now = carry_one(carrying, s);
    }
    for (int64_t i = 0; i < carrying->before->count; i++) {
        const struct data_source_state *old = &carrying->before->source[i];
        if (!carrying->used[i]) {
            append(carrying->note, "; %s is left in epoch %lld, after %lld tokens", old->path,
                   (long long)old->now.epoch + 1, (long long)old->now.tokens);
        }
    }
    at->position = next.position;
    at->data = next;
}

/* What a checkpoint that has only a position means: its one file, read in samples. */
static void reconstruct(const struct carrying *carrying, struct progress_state *at)
{
    const struct config *saved = carrying->saved;
    const char *path = saved->data.train.count > 0 ? saved->data.train.item[0].path : "";
    struct data_source_state *source = &at->data.source[0];
    const struct loader *loader = &carrying->sources->source[0].loader;
    at->data = (struct data_state){.count = 1};
    data_state_path(source->path, path);
    for (int64_t s = 0; s < carrying->sources->count; s++) {
        if (strcmp(carrying->sources->origin.source[s].path, source->path) == 0) {
            loader = &carrying->sources->source[s].loader;
        }
    }
    struct loader old = *loader;
    old.sequence_length = saved->train.sequence_length;
    old.samples = old.store->tokens / old.sequence_length;
    old.samples = old.samples > 0 ? old.samples : 1; /* another file was meant */
    old.shuffle = saved->data.shuffle;
    old.seed = saved->run.seed;
    old.number = 0;
    old.fim.parts = 0;
    old.packing = NULL;
    source->origin = loader_start(&old);
    source->now = loader_advance(&old, &source->origin, at->position);
}

/* The same files, in the same order; what they hold is told when it changed. */
static bool same_sources(struct carrying *carrying)
{
    bool same = carrying->before->count == carrying->sources->count;
    for (int64_t s = 0; s < carrying->sources->count && same; s++) {
        const struct data_source_state *own = &carrying->sources->origin.source[s],
                                       *old = &carrying->before->source[s];
        same = strcmp(old->path, own->path) == 0 &&
               (old->fingerprint == 0 || data_state_same(old, own));
    }
    return same;
}

static void compare(const struct config *saved, const struct config *now,
                    const struct sources *sources, struct progress_state *at,
                    char note[RESUME_NOTE_BYTES], bool *alarm)
{
    struct data_state *before = malloc(sizeof *before);
    struct carrying carrying = {
        .saved = saved, .now = now, .sources = sources, .before = before, .note = note};
    char list[RESUME_NOTE_BYTES - 512];
    resume_differences(saved, now, list, sizeof list);
    if (list[0] != '\0') {
        snprintf(note, RESUME_NOTE_BYTES, "other settings than step %lld was saved with: %s",
                 (long long)at->step, list);
    }
    if (at->data.count == 0) {
        reconstruct(&carrying, at);
    }
    if (before == NULL) {
        append(note, "; out of memory: the data starts again");
        return;
    }
    *before = at->data;
    if (!changed_order(saved, now) && same_sources(&carrying)) {
        free(before);
        return;
    }
    const char *const keys[] = {"run.seed", "train.sequence_length", "data.shuffle",
                                "data.fim.rate"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        if (changed(saved, now, keys[i])) {
            append(note, "; epochs under way are read on as they were begun");
            break;
        }
    }
    if (note[0] == '\0') {
        snprintf(note, RESUME_NOTE_BYTES, "other data than step %lld was saved with",
                 (long long)at->step);
    }
    carry(&carrying, at);
    *alarm = carrying.alarm;
    free(before);
}

enum status resume_settings(const char *path, const struct config *now,
                            const struct sources *sources, struct progress_state *at,
                            char note[RESUME_NOTE_BYTES], bool *alarm)
{
    struct config *saved = malloc(sizeof *saved);
    note[0] = '\0';
    *alarm = false;
    if (saved == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the settings of a checkpoint");
    }
    config_init(saved);
    const enum status status = session_saved_config(saved, path);
    if (status == STATUS_OK) {
        compare(saved, now, sources, at, note, alarm);
    }
    config_free(saved);
    free(saved);
    return status;
}
