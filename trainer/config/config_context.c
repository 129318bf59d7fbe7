#include "trainer/config/config_table.h"

/* What parallel.cp ranks can divide. */
static void check_division(const struct config *config, struct config_errors *errors)
{
    const int64_t cp = config->parallel.cp, tp = config->parallel.tp, chunks = 2 * cp,
                  sequence = config->train.sequence_length,
                  predicted = config->model.family == CONFIG_DEEPSEEK_V3
                                  ? config->model.num_nextn_predict_layers
                                  : 0;
    if (sequence % chunks != 0) {
        config_error(errors,
                     "parallel.cp %lld cuts train.sequence_length %lld into %lld chunks: give a "
                     "multiple of that",
                     (long long)cp, (long long)sequence, (long long)chunks);
    } else if (sequence / chunks <= predicted) {
        config_error(errors,
                     "parallel.cp %lld makes chunks of %lld tokens: more than "
                     "model.num_nextn_predict_layers %lld are needed",
                     (long long)cp, (long long)(sequence / chunks), (long long)predicted);
    } else if (sequence / cp % tp != 0 || sequence / cp / tp <= predicted) {
        config_error(errors,
                     "parallel.cp %lld x tp %lld: the %lld tokens of a sequence that a rank of cp "
                     "has are not divided by tp, or into parts of no more tokens than "
                     "model.num_nextn_predict_layers %lld",
                     (long long)cp, (long long)tp, (long long)(sequence / cp),
                     (long long)predicted);
    }
}

/* What stands between context parallelism and the rest. */
void config_check_context(const struct config *config, struct config_errors *errors)
{
    const long long cp = (long long)config->parallel.cp;
    if (cp == 1) {
        return;
    }
    check_division(config, errors);
    if (config->planning) {
        return;
    }
    if (config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT) {
        config_error(errors,
                     "parallel.cp %lld with run.deterministic layout: not built: gradients of a "
                     "sequence are added up in f32 on several ranks: other bits than on one",
                     cp);
    }
    if (config->debug.trace != NULL) {
        config_error(errors,
                     "parallel.cp %lld with debug.trace: not built: it hashes whole tensors, of "
                     "which each rank has a part",
                     cp);
    }
    if (config->sample.every_steps > 0) {
        config_error(errors,
                     "parallel.cp %lld with sample.every_steps %lld: not built: sample with "
                     "generate, which takes a checkpoint of any layout",
                     cp, (long long)config->sample.every_steps);
    }
}
