#include "trainer/session.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/checkpoint.h"
#include "kernels/base/io.h"
#include "kernels/invariance.h"
#include "parallel/cores.h"
#include "trainer/model/model.h"
#include "trainer/state.h"

enum { MAX_CORES = 1024, MAX_PATH = 4096 };

/* The text has every key resolved: the config.json they came from need not be there any more. */
static void forget_hf_config(char *text)
{
    static const char key[] = "\n  hf_config:";
    char *line = strstr(text, key);
    if (line != NULL) {
        line += sizeof key - 1;
        const size_t length = strcspn(line, "\n");
        memset(line, ' ', length);
        memcpy(line, " ~", length < 2 ? length : 2);
    }
}

enum status session_saved_config(struct config *config, const char *path)
{
    char *state = NULL;
    TRY(checkpoint_state(path, &state));
    json_t *json = json_loads(state, JSON_REJECT_DUPLICATES, NULL);
    const char *saved = json_string_value(json_object_get(json, "config"));
    char *text = saved != NULL ? strdup(saved) : NULL;
    json_decref(json);
    free(state);
    if (text == NULL) {
        return status_fail(STATUS_DATA,
                           "%s: the checkpoint's state holds no config: it was written neither by "
                           "train nor by import",
                           path);
    }
    forget_hf_config(text);
    config->stored = true;
    const enum status status = config_parse(config, path, text, strlen(text));
    free(text);
    return status;
}

static enum status no_config(const char *path, const struct checkpoint_entry *newest)
{
    return newest != NULL
               ? status_fail(STATUS_DATA, "%s: no checkpoint here can be read; the newest: %s",
                             path, newest->why)
               : status_fail(STATUS_DATA,
                             "%s: no checkpoint here, nor a config.yaml: name a config, "
                             "a run or a checkpoint folder",
                             path);
}

/* Of a run whose config.yaml is not there: that of its newest checkpoint. */
static enum status newest_config(struct config *config, const char *path, char *const *overrides,
                                 int count)
{
    char root[MAX_PATH];
    struct checkpoint_entry *entries = NULL;
    int64_t found = 0, i = 0;
    snprintf(root, sizeof root, "%s/checkpoints", path);
    enum status status = checkpoint_list(root, &entries, &found);
    while (i < found && !entries[i].valid) {
        i++;
    }
    if (status == STATUS_OK) {
        status = i < found ? session_read_config(config, entries[i].path, overrides, count)
                           : no_config(path, found > 0 ? entries : NULL);
    }
    checkpoint_list_free(entries, found);
    return status;
}

enum status session_read_config(struct config *config, const char *path, char *const *overrides,
                                int count)
{
    char file[MAX_PATH];
    snprintf(file, sizeof file, "%s/manifest.json", path);
    if (io_exists(file)) {
        const bool stored = config->stored;
        TRY(session_saved_config(config, path));
        config->stored = stored; /* what is to run is checked as any config is */
        return config_override(config, overrides, count);
    }
    snprintf(file, sizeof file, "%s/config.json", path);
    const bool foreign = io_exists(file);
    snprintf(file, sizeof file, "%s/config.yaml", path);
    if (foreign && !io_exists(file)) {
        return status_fail(STATUS_DATA,
                           "%s: a Hugging Face folder, not a checkpoint: import it first", path);
    }
    if (io_exists(file)) {
        return config_load(config, file, overrides, count);
    }
    return state_is_place(path) ? newest_config(config, path, overrides, count)
                                : config_load(config, path, overrides, count);
}

static enum status open_device(struct session *session)
{
    static const char *const names[] = {[CONFIG_DEVICE_CPU] = "cpu", [CONFIG_DEVICE_CUDA] = "cuda"};
    const struct config *config = &session->config;
    int cores[MAX_CORES];
    const int share = cores_share(&session->world, (int)config->run.threads, cores, MAX_CORES);
    session->threads = share;
    const struct device_options options = {
        .name = names[config->run.device],
        .threads = share,
        .cores = config->run.pin ? cores : NULL,
        .deterministic = config->run.deterministic != CONFIG_DETERMINISTIC_OFF,
        .layout = config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT,
        .node_rank = session->world.node_rank,
        .node_size = session->world.node_size};
    return device_open(&session->device, &options);
}

/* What the bits of a result depend on besides the program: processor, kernels, libraries. */
static void describe_device(const struct device *device, char *out, size_t bytes)
{
    static const char *const own[] = {"gpu",
                                      "gpu_memory"}; /* which one of several alike, how full */
    const struct device_info *info = device_info(device);
    int length = snprintf(out, bytes, "%s", info->cpu);
    for (int i = 0; i < info->fact_count && length >= 0 && (size_t)length < bytes; i++) {
        const struct device_fact *fact = &info->fact[i];
        if (strcmp(fact->key, own[0]) != 0 && strcmp(fact->key, own[1]) != 0) {
            length +=
                snprintf(out + length, bytes - (size_t)length, ", %s: %s", fact->key, fact->value);
        }
    }
}

/* Collective. run.deterministic layout: rows may be computed on any rank, so all must compute
 * alike.
 */
static enum status check_alike(struct session *session)
{
    char mine[2048], first[2048];
    struct comm *world = &session->world;
    enum status status = STATUS_OK;
    if (session->config.run.deterministic != CONFIG_DETERMINISTIC_LAYOUT) {
        return STATUS_OK;
    }
    describe_device(session->device, mine, sizeof mine);
    memcpy(first, mine, sizeof first);
    comm_broadcast(world, first, sizeof first, 0);
    if (strcmp(mine, first) != 0) {
        status = status_fail(STATUS_USAGE,
                             "run.deterministic layout: ranks compute differently: rank 0 with %s; "
                             "rank %d with %s: run on machines that are alike, or with "
                             "run.deterministic run",
                             first, world->rank, mine);
    } else if (!device_info(session->device)->batch_invariant) {
        status = status_fail(STATUS_USAGE,
                             "run.deterministic layout: rows of this device's products depend on "
                             "the other rows of the batch (switchyard doctor): use "
                             "run.deterministic run");
    }
    return comm_agree(world, status, NULL);
}

/* The same tried out, on sums as long as this model's experts have. Local. */
static enum status check_products(const struct session *session, const struct architecture *arch)
{
    const struct config *config = &session->config;
    if (config->run.deterministic != CONFIG_DETERMINISTIC_LAYOUT) {
        return STATUS_OK;
    }
    const enum status status = invariance_check(
        session->device, config->train.precision == CONFIG_FP32 ? DTYPE_F32 : DTYPE_BF16,
        arch->width, arch->expert_width);
    char why[512];
    snprintf(why, sizeof why, "%s", status_message());
    return status == STATUS_OK
               ? STATUS_OK
               : status_fail(status, "run.deterministic layout: %s: use run.deterministic run",
                             why);
}

static int64_t common_divisor(int64_t a, int64_t b)
{
    return b == 0 ? a : common_divisor(b, a % b);
}

static bool is_override(char *const *overrides, int count, const char *key)
{
    for (int i = 0; i < count; i++) {
        if (strncmp(overrides[i], key, strlen(key)) == 0) {
            return true;
        }
    }
    return false;
}

static enum status fit_layout(struct session *session, char *const *overrides, int count)
{
    const struct {
        const char *key;
        int64_t *size;
    } divides[] = {{"parallel.tp", &session->config.parallel.tp},
                   {"parallel.cp", &session->config.parallel.cp},
                   {"parallel.etp", &session->config.parallel.etp},
                   {"parallel.pp", &session->config.parallel.pp}};
    int64_t *ep = &session->config.parallel.ep;
    for (size_t i = 0; i < sizeof divides / sizeof divides[0]; i++) {
        char start[32];
        snprintf(start, sizeof start, "%s=", divides[i].key);
        if (*divides[i].size > 1 && is_override(overrides, count, start)) {
            return status_fail(STATUS_USAGE,
                               "%s %lld: divides a model in training only: leave it out",
                               divides[i].key, (long long)*divides[i].size);
        }
        *divides[i].size = 1;
    }
    if (!is_override(overrides, count, "parallel.ep=")) {
        *ep = common_divisor(*ep, session->world.size);
    }
    if (session->config.parallel.node_dispatch == CONFIG_NODE_DISPATCH_HIERARCHICAL &&
        !is_override(overrides, count, "parallel.node_dispatch=")) {
        session->config.parallel.node_dispatch = CONFIG_NODE_DISPATCH_AUTO; /* the same bits */
    }
    return STATUS_OK;
}

enum status session_open(struct session *session, enum session_use use, const char *path,
                         char *const *overrides, int count)
{
    static const char *const kinds[] = {[CONFIG_COMM_AUTO] = "auto",
                                        [CONFIG_COMM_SELF] = "self",
                                        [CONFIG_COMM_MPI] = "mpi",
                                        [CONFIG_COMM_NCCL] = "nccl"};
    *session = (struct session){0};
    config_init(&session->config);
    session->config.stored = use == SESSION_USE;
    const enum status loaded = session_read_config(&session->config, path, overrides, count);
    TRY(comm_open(&session->world, loaded == STATUS_OK ? kinds[session->config.run.comm] : "auto"));
    TRY(comm_agree(&session->world, loaded, NULL));
    if (use == SESSION_USE) {
        TRY(comm_agree(&session->world, fit_layout(session, overrides, count), NULL));
    }
    TRY(comm_agree(&session->world, open_device(session), NULL));
    TRY(check_alike(session));
    struct architecture arch;
    architecture_init(&arch, &session->config);
    TRY(comm_agree(&session->world, check_products(session, &arch), NULL));
    const struct mesh_shape shape = model_mesh_shape(&session->config);
    TRY(comm_agree(&session->world,
                   mesh_init(&session->mesh, &session->world, &shape, arch.experts), NULL));
    return mesh_attach(&session->mesh, session->device, kinds[session->config.run.comm]);
}

enum status session_close(struct session *session, enum status status)
{
    if (status != STATUS_OK && status_message()[0] != '\0' && session->world.rank == 0) {
        fprintf(stderr, "switchyard: %s\n", status_message());
    }
    mesh_free(&session->mesh);
    device_close(session->device);
    session->device = NULL;
    config_free(&session->config);
    comm_close(&session->world);
    return status == STATUS_OK ? STATUS_OK : status_fail(status, "%s", "");
}

bool session_main_rank(const struct session *session)
{
    return session->world.rank == 0;
}
