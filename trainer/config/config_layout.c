#include "trainer/config/config_table.h"

void config_check_layout(const struct config *config, struct config_errors *errors)
{
    const long long pp = config->parallel.pp;
    if (config->planning) {
        return;
    }
    if (pp == 1 && config->parallel.virtual_stages > 1) {
        config_error(errors, "parallel.virtual_stages: only with parallel.pp above 1");
    }
    if (pp == 1 && config->parallel.stages.count > 0) {
        config_error(errors, "parallel.stages: only with parallel.pp above 1");
    }
    if (pp == 1 && config->parallel.schedule != CONFIG_PIPELINE_AUTO) {
        config_error(errors, "parallel.schedule: only with parallel.pp above 1");
    }
    if (pp == 1) {
        return;
    }
    if (config->parallel.schedule == CONFIG_PIPELINE_DUALPIPE) {
        config_error(errors, "parallel.schedule dualpipe: planned only: it has the weights twice; "
                             "train with dualpipe_v, which has them once");
    }
    if (config->parallel.schedule > CONFIG_PIPELINE_1F1B && config->parallel.virtual_stages > 1) {
        config_error(errors,
                     "parallel.virtual_stages %lld is of parallel.schedule 1f1b: use that, or 1",
                     (long long)config->parallel.virtual_stages);
    }
    if (config->debug.trace != NULL) {
        config_error(errors,
                     "parallel.pp %lld with debug.trace: not built: it follows one micro-batch "
                     "through all layers on one rank",
                     pp);
    }
    if (config->sample.every_steps > 0) {
        config_error(errors,
                     "parallel.pp %lld with sample.every_steps %lld: not built: sample with "
                     "generate, which takes a checkpoint of any layout",
                     pp, (long long)config->sample.every_steps);
    }
}
