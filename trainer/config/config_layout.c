#include "trainer/config/config_table.h"

void config_check_layout(const struct config *config, struct config_errors *errors)
{
    static const char *const planned[] = {[CONFIG_PIPELINE_ZERO_BUBBLE] = "zero_bubble",
                                          [CONFIG_PIPELINE_DUALPIPE] = "dualpipe",
                                          [CONFIG_PIPELINE_DUALPIPE_V] = "dualpipe_v"};
    const long long pp = config->parallel.pp;
    if (config->parallel.zero > 1 && config->run.device == CONFIG_DEVICE_CUDA &&
        config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT) {
        config_error(errors,
                     "parallel.zero %lld with run.deterministic layout on run.device cuda: not "
                     "built: integers of a block at a time are added up on the CPU only",
                     (long long)config->parallel.zero);
    }
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
    if (config->parallel.schedule > CONFIG_PIPELINE_1F1B) {
        config_error(errors,
                     "parallel.schedule %s: planned only: backward is not divided into the "
                     "gradients of inputs and of weights; train with 1f1b",
                     planned[config->parallel.schedule]);
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
