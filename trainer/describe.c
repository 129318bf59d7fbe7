#include "trainer/describe.h"

#include <math.h>

#include "trainer/data_words.h"
#include "trainer/optimizer.h"
#include "trainer/run_dir.h"

static const double MIB = 1048576;

static void describe_files(const struct config *config, const char *resumed,
                           struct metrics *metrics)
{
    const char *ignored = config->model.hf_ignored, *assumed = config->model.hf_assumed;
    if (ignored != NULL && ignored[0] != '\0') {
        metrics_say(metrics, "%s: ignored keys: %s", config->model.hf_config, ignored);
    }
    if (assumed != NULL && assumed[0] != '\0') {
        metrics_say(metrics, "%s: not in it, and as transformers has them: %s",
                    config->model.hf_config, assumed);
    }
    if (resumed[0] != '\0') {
        metrics_say(metrics, "%s", resumed);
    }
}

void describe_run(const struct session *session, const struct model *model,
                  const struct sources *train, const struct saving *saving, const char *resumed,
                  struct metrics *metrics)
{
    const struct config *config = &session->config;
    const struct mesh *mesh = &session->mesh;
    describe_files(config, resumed, metrics);
    data_words(train, metrics);
    metrics_say(metrics,
                "%.1fM parameters (%.1fM active), %d ranks x %d threads, ep %d, etp %d, dp %d, "
                "tp %d, cp %d, pp %d, zero %lld; %.0f MiB per rank; "
                "%lld training samples of %lld tokens",
                (double)model->params.total / 1e6, (double)model->params.active / 1e6,
                mesh->world->size, session->threads, mesh->ep.size, mesh->etp.size, mesh->dp.size,
                mesh->tp.size, mesh->cp.size, mesh->pp.size, (long long)config->parallel.zero,
                (double)model_bytes(model) / MIB, (long long)sources_samples(train),
                (long long)config->train.sequence_length);
    if (nodes_apart(&mesh->nodes)) {
        metrics_say(metrics, "ep spans %d nodes of %d ranks: tokens cross once to each",
                    mesh->nodes.count, mesh->nodes.ranks);
    }
    optimizer_words(model, metrics);
    if (saving_bytes(saving) > 0) {
        metrics_say(metrics,
                    "saves are written beside the training: %.0f MiB of host memory "
                    "per rank for a copy of the state",
                    (double)saving_bytes(saving) / MIB);
    }
}

void describe_profile(const struct session *session, struct profile *profile,
                      struct metrics *metrics)
{
    const double hidden = profile_hidden(profile);
    const char *file = session->config.debug.profile;
    if (!profile->written || profile->told || !session_main_rank(session)) {
        return;
    }
    profile->told = true;
    if (!isfinite(hidden)) {
        metrics_say(metrics, "profile: %s", file);
        return;
    }
    metrics_say(metrics,
                "profile: %s: %.0f %% of communication hidden; means of a rank: hidden %.1f ms, "
                "exposed %.1f ms, idle %.1f ms",
                file, 100 * hidden, profile->mean_ms.hidden, profile->mean_ms.exposed,
                profile->mean_ms.idle);
    json_t *note = json_pack("{s:s, s:f, s:f, s:f, s:f}", "file", file, "hidden_communication",
                             hidden, "hidden_ms", profile->mean_ms.hidden, "exposed_ms",
                             profile->mean_ms.exposed, "idle_ms", profile->mean_ms.idle);
    if (run_dir_note(session, "profile", note) != STATUS_OK) {
        metrics_say(metrics, "warning: %s", status_message());
    }
}
