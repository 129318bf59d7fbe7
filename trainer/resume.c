#include "trainer/resume.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/session.h"

int64_t resume_position(int64_t position, int64_t tokens, int64_t from, int64_t to)
{
    const int64_t samples = tokens / from, again = tokens / to;
    if (from == to || samples == 0 || again == 0) {
        return position;
    }
    const int64_t epoch = position / samples, consumed = position % samples * from;
    const int64_t next = consumed / to + (consumed % to != 0);
    return epoch * again + (next < again ? next : again);
}

/* Keys that change what is trained, or on what; not where it runs or what it prints. */
static void differences(const struct config *saved, const struct config *now, char *out,
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

/* What the differences do to the order of the data; "" when nothing. */
static const char *order_text(const struct config *saved, const struct config *now)
{
    const bool longer = saved->train.sequence_length != now->train.sequence_length;
    const bool shuffled = saved->data.shuffle || now->data.shuffle;
    if (changed(saved, now, "data.train")) {
        return longer ? "; another source: as many tokens of it are passed over"
                      : "; another source: the position in the data is kept";
    }
    if (saved->data.shuffle != now->data.shuffle ||
        (shuffled && (longer || saved->run.seed != now->run.seed))) {
        return "; samples come in another order: of this epoch some are seen again, some not";
    }
    return longer ? "; the position in the data is kept to less than one sample" : "";
}

static void compare(const struct config *saved, const struct config *now, int64_t tokens,
                    struct progress_state *at, char note[RESUME_NOTE_BYTES])
{
    char list[RESUME_NOTE_BYTES - 256];
    differences(saved, now, list, sizeof list);
    if (list[0] != '\0') {
        snprintf(note, RESUME_NOTE_BYTES, "other settings than step %lld was saved with: %s%s",
                 (long long)at->step, list, order_text(saved, now));
    }
    at->position = resume_position(at->position, tokens, saved->train.sequence_length,
                                   now->train.sequence_length);
}

enum status resume_settings(const char *path, const struct config *now, int64_t tokens,
                            struct progress_state *at, char note[RESUME_NOTE_BYTES])
{
    struct config *saved = malloc(sizeof *saved);
    note[0] = '\0';
    if (saved == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the settings of a checkpoint");
    }
    config_init(saved);
    const enum status status = session_saved_config(saved, path);
    if (status == STATUS_OK) {
        compare(saved, now, tokens, at, note);
    }
    config_free(saved);
    free(saved);
    return status;
}
