#include <string.h>

#include "trainer/config/config_table.h"

/* What each of parallel.etp ranks has a part of; and what is not built for it. */
static void check_experts(const struct config *config, struct config_errors *errors)
{
    const bool mixtral = config->model.family == CONFIG_MIXTRAL;
    const long long etp = config->parallel.etp, width = mixtral
                                                            ? config->model.intermediate_size
                                                            : config->model.moe_intermediate_size;
    if (width % etp != 0) {
        config_error(errors, "parallel.etp %lld does not divide %s %lld", etp,
                     mixtral ? "model.intermediate_size" : "model.moe_intermediate_size", width);
    } else if (config->train.precision == CONFIG_FP8 && etp > 1 && width / etp % 128 != 0) {
        config_error(
            errors,
            "parallel.etp %lld with train.precision fp8 makes parts of %lld of an expert's "
            "width: codes have scales of 128; give a multiple of that",
            etp, width / etp);
    }
    if (etp == 1 || config->planning) {
        return;
    }
    if (config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT) {
        config_error(errors,
                     "parallel.etp %lld with run.deterministic layout: parts of an expert's output "
                     "are added up in f32: other bits than on one rank; use parallel.etp 1",
                     etp);
    }
    if (config->debug.trace != NULL) {
        config_error(errors,
                     "parallel.etp %lld with debug.trace: not built: it hashes whole tensors, of "
                     "which each rank has a part",
                     etp);
    }
    if (config->optimizer.name == CONFIG_MUON) {
        config_error(errors,
                     "parallel.etp %lld with optimizer.name muon: not built: it orthogonalises "
                     "whole matrices, of which each rank has a part",
                     etp);
    }
}

void config_check_layout(const struct config *config, struct config_errors *errors)
{
    const long long pp = config->parallel.pp;
    check_experts(config, errors);
    if (config->parallel.zero > 2 && config->train.precision == CONFIG_FP8) {
        config_error(errors,
                     "parallel.zero 3 with train.precision fp8: not built: codes of weights are "
                     "made once a step and are whole on every rank; use parallel.zero 2");
    }
    if (config->parallel.zero > 2 && config->debug.fault != NULL &&
        strncmp(config->debug.fault, "weight:", strlen("weight:")) == 0) {
        config_error(errors,
                     "parallel.zero 3 with debug.fault %s: no rank has a copy of another's "
                     "weights that could differ",
                     config->debug.fault);
    }
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
