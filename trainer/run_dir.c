#include "trainer/run_dir.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "kernels/base/aside.h"
#include "trainer/resume.h"
#include "trainer/version.h"

enum { MAX_PATH = 4096 };

void run_dir_path(const struct session *session, const char *name, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s/%s", session->config.run.dir, name);
}

static enum status write_config(const struct session *session, const char *name,
                                const struct config *config)
{
    char path[MAX_PATH], *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for config.yaml");
    }
    config_print(config, out);
    fclose(out);
    run_dir_path(session, name, path, sizeof path);
    const enum status status = io_write_file(path, text, bytes);
    free(text);
    return status;
}

/* The record in place, or NULL. */
static json_t *read_record(const char *path)
{
    static const size_t most_bytes = (size_t)1 << 24;
    char *text = NULL;
    size_t bytes = 0;
    json_t *json = io_exists(path) && io_read_file(path, &text, &bytes, most_bytes) == STATUS_OK
                       ? json_loadb(text, bytes, 0, NULL)
                       : NULL;
    free(text);
    return json;
}

/* json: owned by the call. */
static enum status write_json(const char *path, json_t *json)
{
    char *text = json_dumps(json, JSON_INDENT(1));
    json_decref(json);
    const enum status status = text != NULL
                                   ? io_write_file(path, text, strlen(text))
                                   : status_fail(STATUS_INTERNAL, "run.json: a name is not UTF-8");
    free(text);
    return status;
}

/* What this start is to the run: "changed", where its settings are not those of the checkpoint that
 * it goes on from, which are kept under run_dir_earlier's name. */
static enum status note_changes(const struct session *session, int64_t step, const char *from,
                                json_t *start)
{
    char list[RESUME_NOTE_BYTES], name[RUN_DIR_NAME_BYTES];
    struct config *saved = malloc(sizeof *saved);
    if (saved == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the settings of a checkpoint");
    }
    config_init(saved);
    enum status status = session_saved_config(saved, from);
    if (status == STATUS_OK) {
        resume_differences(saved, &session->config, list, sizeof list);
        if (list[0] != '\0') {
            json_object_set_new(start, "changed", json_string(list));
            run_dir_earlier(step, name);
            status = write_config(session, name, saved);
        }
    } else {
        status = STATUS_OK; /* the resume has told that they can't be compared */
    }
    config_free(saved);
    free(saved);
    return status;
}

/* The starts of the run so far, as the record in place has them, and this one, owned by the call.
 */
static json_t *starts(const char *path, json_t *start)
{
    json_t *old = read_record(path), *list = json_object_get(old, "starts");
    list = json_is_array(list) ? json_incref(list) : json_array();
    json_array_append_new(list, start);
    json_decref(old);
    return list;
}

static enum status write_record(const struct session *session, int64_t step, const char *from)
{
    char path[MAX_PATH], host[256] = "", when[64];
    const struct device_info *device = device_info(session->device);
    const time_t now = time(NULL);
    struct tm utc;
    gethostname(host, sizeof host - 1);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:s, s:s, s:s}", "commit", version_commit(), "started", when,
        "host", host, "ranks", session->world.size, "threads_per_rank", session->threads, "comm",
        session->world.table->name, "device", device->name, "cpu", device->cpu);
    if (device_stream(session->device) != NULL) {
        json_object_set_new(json, "gpu_comm", json_string(comm_wire_name(&session->mesh.stage)));
    }
    for (int i = 0; i < device->fact_count; i++) {
        json_object_set_new(json, device->fact[i].key, json_string(device->fact[i].value));
    }
    run_dir_path(session, "run.json", path, sizeof path);
    json_t *start =
        json_pack("{s:s, s:I, s:i, s:s, s:s}", "time", when, "step", (json_int_t)step, "ranks",
                  session->world.size, "host", host, "commit", version_commit());
    const enum status status =
        from[0] != '\0' ? note_changes(session, step, from, start) : STATUS_OK;
    json_object_set_new(json, "starts", starts(path, start));
    const enum status written = write_json(path, json);
    return status == STATUS_OK ? written : status;
}

enum status run_dir_note(const struct session *session, const char *key, json_t *value)
{
    char path[MAX_PATH];
    run_dir_path(session, "run.json", path, sizeof path);
    json_t *json = read_record(path);
    if (json_object_set_new(json, key, value) != 0) {
        json_decref(json);
        return status_fail(STATUS_INTERNAL, "%s: cannot be read", path);
    }
    return write_json(path, json);
}

enum status run_dir_open(const struct session *session, bool fresh, struct io_file *lock)
{
    char path[MAX_PATH], old[ASIDE_PATH_BYTES];
    if (fresh && io_exists(session->config.run.dir)) {
        run_dir_path(session, "lock", path, sizeof path);
        TRY(io_lock(lock, path)); /* a living run must not be moved away */
        io_unlock(lock);
        TRY(aside_move(session->config.run.dir, old));
    }
    run_dir_path(session, "checkpoints", path, sizeof path);
    TRY(io_make_dir(path));
    run_dir_path(session, "lock", path, sizeof path);
    TRY(io_lock(lock, path));
    run_dir_path(session, "checkpoints", path, sizeof path);
    return checkpoint_clean(path);
}

enum status run_dir_describe(const struct session *session, int64_t step, const char *from)
{
    TRY(write_config(session, "config.yaml", &session->config));
    return write_record(session, step, from);
}

void run_dir_earlier(int64_t step, char name[RUN_DIR_NAME_BYTES])
{
    snprintf(name, RUN_DIR_NAME_BYTES, "config.until-%08lld.yaml", (long long)step);
}
