#include "trainer/describe.h"

#include "trainer/data_words.h"
#include "trainer/optimizer.h"

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
