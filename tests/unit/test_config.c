/* config: what is refused and in which words, overrides, config.json, and that a printed config
 * reads back the same. */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <glob.h>
#include <stdio.h>

#include "kernels/base/rng.h"
#include "trainer/config_table.h"

static const char BASE[] = "run: {steps: 300}\n"
                           "model:\n"
                           "  vocab_size: 257\n"
                           "  hidden_size: 64\n"
                           "  intermediate_size: 96\n"
                           "  num_hidden_layers: 2\n"
                           "  num_attention_heads: 4\n"
                           "train: {sequence_length: 32}\n";

/* As published with Mixtral-8x7B, but for router_aux_loss_coef. */
static const char MIXTRAL[] = "{\n"
                              "  \"architectures\": [\"MixtralForCausalLM\"],\n"
                              "  \"attention_dropout\": 0.0,\n"
                              "  \"bos_token_id\": 1,\n"
                              "  \"hidden_act\": \"silu\",\n"
                              "  \"hidden_size\": 4096,\n"
                              "  \"initializer_range\": 0.02,\n"
                              "  \"intermediate_size\": 14336,\n"
                              "  \"max_position_embeddings\": 32768,\n"
                              "  \"model_type\": \"mixtral\",\n"
                              "  \"num_attention_heads\": 32,\n"
                              "  \"num_experts_per_tok\": 2,\n"
                              "  \"num_hidden_layers\": 32,\n"
                              "  \"num_key_value_heads\": 8,\n"
                              "  \"num_local_experts\": 8,\n"
                              "  \"output_router_logits\": false,\n"
                              "  \"rms_norm_eps\": 1e-05,\n"
                              "  \"rope_theta\": 1000000.0,\n"
                              "  \"router_aux_loss_coef\": 0.002,\n"
                              "  \"sliding_window\": null,\n"
                              "  \"tie_word_embeddings\": false,\n"
                              "  \"torch_dtype\": \"bfloat16\",\n"
                              "  \"use_cache\": true,\n"
                              "  \"vocab_size\": 32000\n"
                              "}\n";

static enum status parse(struct config *config, const char *text, size_t bytes)
{
    config_init(config);
    return config_parse(config, "t.yaml", text, bytes);
}

enum { PARTS = 6, OVERRIDES = 4 };

struct bad {
    const char *text;
    const char *parts[PARTS];
};

static void expect_refused(const struct bad *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct config config;
        const enum status status = parse(&config, cases[i].text, strlen(cases[i].text));
        config_free(&config);
        if (status != STATUS_USAGE) {
            fail_msg("status %d for\n%s", status, cases[i].text);
        }
        expect_parts(cases[i].parts, PARTS, cases[i].text);
    }
}

#define EXPECT_REFUSED(cases) expect_refused(cases, sizeof(cases) / sizeof((cases)[0]))

static void test_unknown_and_double_keys(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"run:\n  stpes: 3\n",
         {"t.yaml:2:10: key 'run.stpes': unknown key; did you mean 'run.steps'?"}},
        {"model: {lr: 1}\n", {"key 'model.lr'", "did you mean 'optimizer.lr'?"}},
        {"optimizer: {learning_rate: 1}\n",
         {"t.yaml:1:28: key 'optimizer.learning_rate': unknown key"}},
        {"run: {zzzzzzzz: 1}\n", {"t.yaml:1:17: key 'run.zzzzzzzz': unknown key"}},
        {"run: {stpes: {a: 1}}\n", {"key 'run.stpes': unknown key; did you mean 'run.steps'?"}},
        {"# first\ntrian: {steps: 1}\n",
         {"t.yaml:2:1: key 'trian': unknown key; did you mean 'train'?"}},
        {"zebra: {steps: 1}\n", {"t.yaml:1:1: key 'zebra': unknown key"}},
        {"steps: 1\n", {"t.yaml:1:1: key 'steps': unknown key; did you mean 'run.steps'?"}},
        {"run.steps: 1\n", {"t.yaml:1:1: key 'run.steps'"}},
        {"run: {run.steps: 1}\n", {"key 'run.run.steps': unknown key"}},
        {"run:\n  steps: 3\n  steps: 3\n", {"t.yaml:3:3: key 'run.steps': given twice"}},
        {"run: {steps: 3}\ntrain: {}\nrun: {seed: 3}\n", {"t.yaml:3:1: key 'run': given twice"}},
        {"run: {? [a, b] : 3}\n", {"t.yaml:1:9: a key must be a word"}},
        {"run: 3\n", {"t.yaml:1:1: key 'run': a section of keys is expected"}},
        {"run: [steps]\n", {"key 'run': a section of keys is expected"}},
        {"run:\n", {"key 'run': a section of keys is expected"}},
        {"[run, model]\n", {"t.yaml:1:1: sections of keys are expected"}},
        {"steps\n", {"t.yaml:1:1: sections of keys are expected"}},
    };
    EXPECT_REFUSED(cases);
}

static void test_wrong_values(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"run:\n  steps: hello\n", {"t.yaml:2:10: key 'run.steps': 'hello' is not a whole number"}},
        {"run: {steps: [1, 2]}\n", {"t.yaml:1:14: key 'run.steps': one value is expected"}},
        {"run: {steps: {a: 1}}\n", {"t.yaml:1:14: key 'run.steps': one value is expected"}},
        {"run: {steps: \"300\"}\n",
         {"t.yaml:1:14: key 'run.steps': \"300\" is text: write it without quotes"}},
        {"optimizer: {lr: '1e-3'}\n", {"t.yaml:1:17", "is text: write it without quotes"}},
        {"run: {pin: \"true\"}\n", {"is text: write it without quotes"}},
        {"run: {pin: yes}\n", {"t.yaml:1:12: key 'run.pin': 'yes' is neither true nor false"}},
        {"run: {pin: True}\n", {"'True' is neither"}},
        {"run: {pin: 1}\n", {"'1' is neither true nor false"}},
        {"optimizer: {lr: nan}\n", {"t.yaml:1:17: key 'optimizer.lr': 'nan' is not a number"}},
        {"optimizer: {lr: .nan}\n", {"'.nan' is not a number"}},
        {"optimizer: {lr: inf}\n", {"'inf' is not a number"}},
        {"optimizer: {lr: -.inf}\n", {"'-.inf' is not a number"}},
        {"optimizer: {lr: 1e400}\n", {"'1e400' is not a number"}},
        {"optimizer: {lr: 0x10}\n", {"'0x10' is not a number"}},
        {"optimizer: {lr: 1e}\n", {"'1e' is not a number"}},
        {"optimizer: {lr: 1-2}\n", {"'1-2' is not a number"}},
        {"optimizer: {lr: yes}\n", {"'yes' is not a number"}},
        {"run: {steps: 0x10}\n", {"'0x10' is not a whole number"}},
        {"run: {steps: 1_000}\n", {"'1_000' is not a whole number"}},
        {"run: {steps: 1.5}\n", {"t.yaml:1:14: key 'run.steps': '1.5' is not a whole number"}},
        {"run: {steps: 1e-3}\n", {"'1e-3' is not a whole number"}},
        {"run: {seed: 18446744073709551616}\n", {"is not a whole number"}},
        {"run: {device: gpu}\n", {"t.yaml:1:15: key 'run.device': 'gpu' is not one of cpu"}},
        {"train: {precision: p8}\n", {"'p8' is not one of fp32, bf16"}},
        {"train: {precision: fp}\n", {"'fp' is not one of fp32, bf16"}},
        {"model: {family: \"deepseek_v2 deepseek_v3\"}\n", {"is not one of mixtral"}},
        {"run: {dir: [a]}\n", {"key 'run.dir': one value is expected"}},
        {"run: {dir: \"\"}\nmodel: {vocab_size: 257, hidden_size: 64, intermediate_size: 96, "
         "num_hidden_layers: 2, num_attention_heads: 4}\n",
         {"run.dir is empty"}},
        {"run: {dir: \"a\\0b\"}\n", {"t.yaml:1:12: key 'run.dir'"}},
    };
    EXPECT_REFUSED(cases);
}

static void test_ranges_and_nulls(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"run: {steps: 0}\n", {"t.yaml:1:14: key 'run.steps': 0 is outside 1 to 1e+12"}},
        {"run: {steps: -1}\n", {"-1 is outside"}},
        {"run: {seed: -1}\n", {"-1 is outside 0 to"}},
        {"run: {steps: 9e14}\n", {"outside 1 to 1e+12"}},
        {"optimizer: {lr: -1e-3}\n", {"-1e-3 is outside 0 to 100"}},
        {"optimizer: {beta1: 1}\n", {"key 'optimizer.beta1': 1 is outside"}},
        {"schedule: {final_lr_ratio: 1.01}\n", {"is outside 0 to 1"}},
        {"router: {buffer_factor: 0.99}\n", {"is outside 1 to 1000"}},
        {"parallel: {ep: 0}\n", {"key 'parallel.ep': 0 is outside 1 to"}},
        {"parallel: {zero: 2}\n", {"2 is outside 1 to 1"}},
        {"checkpoint: {keep_last: 0}\n", {"0 is outside 1 to 1000"}},
        {"model: {sliding_window: 0}\n", {"0 is outside 1 to 1e+09"}},
        {"run: {steps: null}\n", {"t.yaml:1:14: key 'run.steps': null is not a value here"}},
        {"run: {steps: ~}\n", {"null is not a value here"}},
        {"run:\n  steps:\n  seed: 1\n", {"t.yaml:2", "key 'run.steps': null is not a value here"}},
        {"run: {pin: null}\n", {"key 'run.pin': null is not a value here"}},
        {"run: {dir: null}\n", {"key 'run.dir': null is not a value here"}},
        {"optimizer: {lr: null}\n", {"null is not a value here"}},
        {"sample: {prompt: null}\n", {"null is not a value here"}},
        {"run: {device: null}\n", {"null is not a value here"}},
    };
    EXPECT_REFUSED(cases);
}

static void test_yaml_beyond_plain(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"run:\n\tsteps: 3\n", {"t.yaml:2:1: a tab: indent with spaces"}},
        {"run:\n  steps: 3\n  seed:\t4\n", {"t.yaml:3:8: a tab"}},
        {"run: &here {steps: 3}\n", {"t.yaml:1:6: anchors, aliases and tags are not supported"}},
        {"run: {steps: 3}\ntrain: *here\n", {"t.yaml:2:8: anchors, aliases"}},
        {"run: {steps: !!int 3}\n", {"t.yaml:1:14: anchors, aliases and tags"}},
        {"run: {steps: 3}\n---\nrun: {steps: 4}\n", {"t.yaml:2:1: more than one YAML document"}},
        {"run: {steps: 3}\n...\n---\n- x\n", {"t.yaml:3:1: more than one YAML document"}},
        {"", {"t.yaml:1:1: sections of keys are expected"}},
        {"# nothing\n\n", {"t.yaml:1:1: sections of keys are expected"}},
        {"---\n", {"sections of keys are expected"}},
        {"run: {steps: 3\n", {"t.yaml:2:1: "}},
        {"run: {steps: 3}}\n", {"t.yaml:1:"}},
        {"run:\n  steps: 3\n seed: 4\n", {"t.yaml:3:"}},
        {"run: {dir: \"a}\n", {"t.yaml:"}},
        {"run: {dir: \"\\q\"}\n", {"t.yaml:1:"}},
        {"run: {dir: a\xff}\n", {"t.yaml:1:"}},
        {"\xff\xfe", {"t.yaml:"}},
        {"a: b: c\n", {"t.yaml:1:"}},
    };
    EXPECT_REFUSED(cases);
}

static void test_missing_keys(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"run: {steps: 3}\n",
         {"t.yaml: key 'model.vocab_size': missing", "t.yaml: key 'model.hidden_size': missing",
          "t.yaml: key 'model.intermediate_size': missing",
          "t.yaml: key 'model.num_hidden_layers': missing",
          "t.yaml: key 'model.num_attention_heads': missing"}},
        {"model: {vocab_size: 257, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2}\n",
         {"key 'model.num_attention_heads': missing: query heads"}},
    };
    EXPECT_REFUSED(cases);
}

static void test_all_errors_in_one_pass(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"run:\n  stpes: 3\n  seed: x\nmodel: {hidden_size: 1.5}\nzebra: 1\ntrain: {micro_batch: "
         "0}\n",
         {"t.yaml:2:10: key 'run.stpes': unknown key; did you mean 'run.steps'?\n",
          "t.yaml:3:9: key 'run.seed': 'x' is not a whole number\n",
          "t.yaml:4:22: key 'model.hidden_size': '1.5' is not a whole number\n",
          "t.yaml:5:1: key 'zebra': unknown key\n",
          "t.yaml:6:22: key 'train.micro_batch': 0 is outside"}},
    };
    EXPECT_REFUSED(cases);
}

/* More than the message holds: it says how many it left out, and stops at a whole line. */
static void test_very_many_errors(void **state)
{
    (void)state;
    enum { LINES = 200 };
    char text[LINES * 24 + 16] = "run:\n", key[32];
    for (int i = 0; i < LINES; i++) {
        snprintf(key, sizeof key, "  unknown_%03d: 1\n", i);
        strcat(text, key);
    }
    const struct bad bad = {text, {"key 'run.unknown_000'", "more errors"}};
    expect_refused(&bad, 1);
    const char *last = strrchr(status_message(), '\n');
    assert_non_null(last);
    assert_non_null(strstr(last, "more errors"));
}

static void test_not_built(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"run: {device: cuda}\n", {"'cuda' is not built in this version (built: cpu)"}},
        {"run: {comm: nccl}\n", {"'nccl' is not built in this version (built: auto, self, mpi)"}},
        {"model: {family: deepseek_v3}\n", {"'deepseek_v3' is not built"}},
        {"train: {precision: fp8}\n", {"t.yaml:1:20", "'fp8' is not built"}},
        {"train: {recompute: norms}\n", {"'norms' is not built"}},
        {"schedule: {kind: multistep}\n", {"'multistep' is not built"}},
        {"run: {verify: true}\n",
         {"t.yaml:1:15: key 'run.verify': not built in this version; it acts as false"}},
        {"run: {deterministic: layout}\n", {"not built in this version; it acts as run"}},
        {"run: {deterministic: false}\n", {"not built in this version; it acts as run"}},
        {"run: {time_limit: 60}\n", {"not built"}},
        {"parallel: {pp: 2}\n", {"key 'parallel.pp': not built in this version; it acts as 1"}},
        {"parallel: {tp: 2, cp: 2, etp: 2}\n",
         {"key 'parallel.tp': not built", "key 'parallel.cp': not built",
          "key 'parallel.etp': not built"}},
        {"optimizer: {name: muon}\n", {"not built in this version; it acts as adamw"}},
        {"optimizer: {ema: 0.9}\n", {"not built"}},
        {"optimizer: {freeze: [a]}\n", {"key 'optimizer.freeze': not built"}},
        {"router: {bias_update_speed: 1e-3}\n", {"not built in this version; it acts as 0"}},
        {"router: {sequence_loss_coef: 0.1}\n", {"not built"}},
        {"checkpoint: {async: true}\n", {"not built in this version; it acts as false"}},
        {"log: {tensorboard: true}\n", {"not built in this version; it acts as false"}},
        {"debug: {trace: t.h5}\n", {"not built in this version; it acts as null"}},
        {"train: {mtp_loss_weight: 0.3}\n", {"key 'train.mtp_loss_weight': not built"}},
        {"schedule: {milestones: [0.8, 0.9]}\n", {"key 'schedule.milestones': not built"}},
        {"data: {fim: {rate: 0.5}}\n", {"key 'data.fim': not built in this version"}},
        {"cluster: {nodes: 2}\n", {"t.yaml:1:1: key 'cluster': not built in this version"}},
        {"data: {train: [{path: a, weight: 1}, {path: b, weight: 2}]}\n",
         {"t.yaml:1:15: key 'data.train'", "mixtures are not built"}},
        {"data: {train: [a]}\n", {"key 'data.train'"}},
        {"data: {train: [{weight: 1}]}\n", {"key 'data.train'"}},
        {"data: {train: [{path: a, weihgt: 1}]}\n", {"key 'data.train'"}},
        {"data: {train: [{path: a, weight: heavy}]}\n", {"key 'data.train'"}},
        {"data: {train: [{path: a, weight: 0}]}\n", {"key 'data.train'"}},
        {"data: {train: {path: a}}\n", {"key 'data.train': one value is expected"}},
    };
    EXPECT_REFUSED(cases);
}

/* --- what is accepted --- */

static void test_numbers(void **state)
{
    (void)state;
    static const char text[] = "run: {steps: 1e6, seed: 8999999999999999}\n"
                               "optimizer: {lr: 1, eps: 1E-9, beta1: .5, clip_norm: +2}\n"
                               "model: {rope_theta: 10000, vocab_size: 2.0e2, hidden_size: 64, "
                               "intermediate_size: 96, num_hidden_layers: 2, "
                               "num_attention_heads: 4}\n"
                               "checkpoint: {every_steps: 0}\n";
    struct config config;
    assert_int_equal(parse(&config, text, sizeof text - 1), STATUS_OK);
    assert_int_equal(config.run.steps, 1000000);
    assert_int_equal(config.run.seed, 8999999999999999);
    assert_int_equal(config.model.vocab_size, 200);
    assert_int_equal(config.checkpoint.every_steps, 0);
    assert_true(config.optimizer.lr == 1.0 && config.optimizer.eps == 1e-9);
    assert_true(config.optimizer.beta1 == 0.5 && config.optimizer.clip_norm == 2.0);
    assert_true(config.model.rope_theta == 10000.0);
    config_free(&config);
    config_free(&config); /* twice is fine */
}

static void test_facts_may_be_stated(void **state)
{
    (void)state;
    static const char rest[] =
        "run: {deterministic: run, verify: false, time_limit: null}\n"
        "optimizer: {name: adamw, moments: fp32, ema: 0}\n"
        "router: {batch_loss_coef: null, sequence_loss_coef: null, bias_update_speed: 0}\n"
        "parallel: {pp: 1, tp: 1, cp: 1, etp: 1}\n"
        "checkpoint: {async: false}\n"
        "log: {tensorboard: false}\n"
        "debug: {trace: null, profile: null}\n"
        "data: {train: [{path: a b.h5, weight: 0.5}], valid: null}\n";
    char text[2048];
    struct config config;
    snprintf(text, sizeof text, "%s%s", strchr(BASE, '\n') + 1, rest);
    assert_int_equal(parse(&config, text, strlen(text)), STATUS_OK);
    assert_string_equal(config.data.train, "a b.h5");
    assert_null(config.data.valid);
    assert_int_equal(config.model.num_key_value_heads, 4); /* 0 is resolved */
    assert_int_equal(config_head_dim(&config), 16);
    assert_true(config_batch_loss_coef(&config) == config.model.router_aux_loss_coef);
    config_free(&config);
}

static void test_shipped_configs_load(void **state)
{
    (void)state;
    glob_t files = {0};
    assert_int_equal(glob(SOURCE_DIR "/configs/*.yaml", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        struct config config;
        config_init(&config);
        if (config_load(&config, files.gl_pathv[i], NULL, 0) != STATUS_OK) {
            fail_msg("%s", status_message());
        }
        config_free(&config);
    }
    globfree(&files);
}

/* --- relations and overrides --- */

static enum status load(struct config *config, const char *const overrides[OVERRIDES])
{
    char *list[OVERRIDES];
    int count = 0;
    for (; count < OVERRIDES && overrides[count] != NULL; count++) {
        list[count] = (char *)(uintptr_t)overrides[count];
    }
    config_init(config);
    return config_load(config, "base.yaml", list, count);
}

static void test_relations(void **state)
{
    (void)state;
    static const struct {
        const char *overrides[OVERRIDES];
        const char *parts[PARTS];
    } cases[] = {
        {{"model.num_local_experts=4", "model.num_experts_per_tok=5"},
         {"base.yaml: model.num_experts_per_tok 5 is more than model.num_local_experts 4"}},
        {{"model.num_key_value_heads=3"},
         {"model.num_key_value_heads 3 does not divide model.num_attention_heads 4"}},
        {{"model.hidden_size=66"}, {"66 is not a multiple", "set model.head_dim"}},
        {{"model.head_dim=5"}, {"head width 5 is odd"}},
        {{"model.hidden_size=60"}, {"head width 15 is odd"}},
        {{"parallel.ep=3"}, {"parallel.ep 3 does not divide model.num_local_experts 8"}},
        {{"train.micro_batch=16"},
         {"train.global_batch 8 is not a multiple of train.micro_batch 16"}},
        {{"train.micro_batch=3"}, {"train.global_batch 8 is not a multiple"}},
        {{"model.max_position_embeddings=31"},
         {"train.sequence_length 32 is more than model.max_position_embeddings 31"}},
        {{"schedule.warmup_steps=301"}, {"schedule.warmup_steps 301 is more than run.steps 300"}},
        {{"schedule.warmup_steps=11", "run.steps=10"}, {"11 is more than run.steps 10"}},
        {{"train.micro_batch=3", "parallel.ep=3"},
         {"base.yaml: parallel.ep 3", "\nbase.yaml: train.global_batch 8"}},
    };
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        assert_int_equal(load(&config, cases[i].overrides), STATUS_USAGE);
        expect_parts(cases[i].parts, PARTS, cases[i].overrides[0]);
        config_free(&config);
    }
}

static void test_bad_overrides(void **state)
{
    (void)state;
    static const struct {
        const char *overrides[OVERRIDES];
        const char *parts[PARTS];
    } cases[] = {
        {{"run.stpes=3"},
         {"command line: key 'run.stpes': unknown key; did you mean 'run.steps'?"}},
        {{"steps=3"}, {"key 'steps': unknown key; did you mean 'run.steps'?"}},
        {{"run.steps=1.5"}, {"command line: key 'run.steps': '1.5' is not a whole number"}},
        {{"run.steps=0"}, {"0 is outside"}},
        {{"run.steps="}, {"null is not a value here"}},
        {{"run.steps=\"3\""}, {"'\"3\"' is not a whole number"}},
        {{"run.steps"}, {"'run.steps'", "key=value"}},
        {{"=3"}, {"unknown key"}},
        {{"optimizer.lr=nan"}, {"'nan' is not a number"}},
        {{"run.device=cuda"}, {"'cuda' is not built"}},
        {{"parallel.pp=2"}, {"key 'parallel.pp': not built"}},
        {{"run.pin=yes", "run.seed=x"}, {"'yes' is neither", "\ncommand line: key 'run.seed'"}},
        {{"run.dir=\xff"}, {"key 'run.dir'", "UTF-8"}},
    };
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        assert_int_equal(load(&config, cases[i].overrides), STATUS_USAGE);
        expect_parts(cases[i].parts, PARTS, cases[i].overrides[0]);
        config_free(&config);
    }
}

static void test_overrides(void **state)
{
    (void)state;
    static const char *const overrides[OVERRIDES] = {"run.steps=1e2", "run.steps=20",
                                                     "sample.prompt=", "data.train=a=b.h5"};
    struct config config;
    put("base.yaml", BASE);
    assert_int_equal(load(&config, overrides), STATUS_OK);
    assert_int_equal(config.run.steps, 20); /* the last one wins */
    assert_string_equal(config.sample.prompt, "");
    assert_string_equal(config.data.train, "a=b.h5");
    char *later[] = {(char *)(uintptr_t) "data.train=null", (char *)(uintptr_t) "run.steps=40"};
    assert_int_equal(config_override(&config, later, 2), STATUS_OK);
    assert_null(config.data.train);
    assert_int_equal(config.run.steps, 40);
    char *wrong[] = {(char *)(uintptr_t) "train.micro_batch=5"};
    assert_int_equal(config_override(&config, wrong, 1), STATUS_USAGE);
    config_free(&config);
    config_init(&config);
    assert_int_equal(config_load(&config, "gone.yaml", NULL, 0), STATUS_IO);
    expect_message("gone.yaml");
    config_free(&config);
}

/* --- printing --- */

enum { SHOWN = 32768 };

static const char *shown(char text[SHOWN], const struct config *config, const struct field *field)
{
    config_show(config, field, text, SHOWN);
    return text;
}

static char *printed(const struct config *config)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_print(config, out);
    fclose(out);
    return text;
}

static void expect_reads_back(const struct config *config)
{
    struct config again;
    char *text = printed(config);
    if (parse(&again, text, strlen(text)) != STATUS_OK) {
        fail_msg("%s\nin\n%s", status_message(), text);
    }
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        const void *a = (const char *)config + field->offset,
                   *b = (const char *)&again + field->offset;
        static const size_t bytes[] = {[FIELD_BOOL] = sizeof(bool),
                                       [FIELD_INT] = 8,
                                       [FIELD_UINT] = 8,
                                       [FIELD_REAL] = 8,
                                       [FIELD_TEXT] = sizeof(char *),
                                       [FIELD_ENUM] = sizeof(int)};
        const char *s = field->kind == FIELD_TEXT ? *(char *const *)a : NULL,
                   *t = field->kind == FIELD_TEXT ? *(char *const *)b : NULL;
        const bool same = field->kind != FIELD_TEXT ? memcmp(a, b, bytes[field->kind]) == 0
                                                    : s == t || (s && t && strcmp(s, t) == 0);
        if (!same) {
            char value[SHOWN];
            fail_msg("%s printed as %s reads back differently", field->key,
                     shown(value, config, field));
        }
    }
    config_free(&again);
    free(text);
}

static void test_print_reads_back(void **state)
{
    (void)state;
    static const char *const values[] = {
        "run.dir=a \"b\" \\ c: # 'd' {e}",
        "run.seed=8999999999999999",
        "run.steps=1000000000",
        "run.comm=mpi",
        "run.threads=3",
        "run.pin=false",
        "model.hf_config=config.json",
        "model.vocab_size=16777216",
        "model.hidden_size=128",
        "model.intermediate_size=97",
        "model.num_hidden_layers=3",
        "model.num_attention_heads=6",
        "model.num_key_value_heads=3",
        "model.head_dim=22",
        "model.num_local_experts=12",
        "model.num_experts_per_tok=5",
        "model.max_position_embeddings=999999999",
        "model.sliding_window=77",
        "model.rms_norm_eps=1.2345678901234567e-6",
        "model.rope_theta=12345.678901234567",
        "model.initializer_range=0.1",
        "model.router_aux_loss_coef=0.3333333333333333",
        "model.router_jitter_noise=5e-324",
        "train.sequence_length=33",
        "train.micro_batch=7",
        "train.global_batch=21",
        "train.precision=fp32",
        "train.recompute=block",
        "optimizer.lr=2.2250738585072014e-308",
        "optimizer.beta1=0.91",
        "optimizer.beta2=0.999",
        "optimizer.eps=1e-7",
        "optimizer.weight_decay=0.7",
        "optimizer.decay=all",
        "optimizer.clip_norm=0",
        "schedule.kind=wsd",
        "schedule.warmup_steps=21",
        "schedule.final_lr_ratio=0.30000000000000004",
        "router.batch_loss_coef=0",
        "router.z_loss_coef=1e-3",
        "router.capacity_factor=1.25",
        "router.buffer_factor=1.0000000000000002",
        "parallel.ep=4",
        "data.train=null and void",
        "data.valid=~home",
        "data.shuffle=false",
        "data.mask_documents=true",
        "eval.every_steps=5",
        "eval.batches=6",
        "checkpoint.every_steps=0",
        "checkpoint.every_minutes=0.1",
        "checkpoint.keep_last=9",
        "checkpoint.init_from=- x",
        "log.every_steps=0",
        "sample.every_steps=8",
        "sample.prompt=line\nbreak \x01\x7f\ttab\r trailing ",
        "sample.tokens=9",
        "sample.temperature=0",
        "debug.fault=io:eio:3",
    };
    enum { COUNT = sizeof values / sizeof values[0] };
    char *list[COUNT];
    struct config config, initial;
    put("base.yaml", BASE);
    put("config.json", MIXTRAL);
    memcpy(list, values, sizeof values);
    config_init(&initial);
    config_init(&config);
    const enum status status = config_load(&config, "base.yaml", list, COUNT);
    if (status != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    for (int i = 0; i < config_field_count; i++) { /* the list above must keep up with the table */
        const struct field *field = &config_fields[i];
        const bool single = (field->kind == FIELD_ENUM && field->names[1] == NULL) ||
                            (field->kind != FIELD_ENUM && field->low == field->high &&
                             field->kind != FIELD_TEXT && field->kind != FIELD_BOOL);
        char value[SHOWN], first[SHOWN];
        if (!single && strcmp(shown(first, &initial, field), shown(value, &config, field)) == 0) {
            fail_msg("%s still has its default %s: add it to this test", field->key, value);
        }
    }
    expect_reads_back(&config);
    config_free(&config);
    config_free(&initial);
}

static void test_defaults_read_back(void **state)
{
    (void)state;
    static const char *const cases[][OVERRIDES] = {
        {NULL},
        {"run.steps=1"}, /* fewer than the default warm-up */
        {"run.steps=10", "schedule.warmup_steps=10"},
    };
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        assert_int_equal(load(&config, cases[i]), STATUS_OK);
        expect_reads_back(&config);
        char *later[] = {(char *)(uintptr_t) "run.seed=7"}; /* as eval RUN_DIR key=value does */
        assert_int_equal(config_override(&config, later, 1), STATUS_OK);
        config_free(&config);
    }
}

static void test_any_text_reads_back(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "null",
        "~",
        "true",
        "1e6",
        " ",
        "'",
        "\"",
        "\\",
        "%TAG",
        "a\\x41b",
        "\xc3\xa9t\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80",
        "\xc2\x80 \xc2\x85 \xe2\x80\xa8 \xe2\x80\xa9 \xef\xbb\xbf", /* C1, NEL, LS, PS, BOM */
        "\xef\xbf\xbe\xef\xbf\xbf",                                 /* not characters */
        "\x1f\x1b[0m\x7f",
    };
    struct config config;
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char override[256];
        snprintf(override, sizeof override, "sample.prompt=%s", texts[i]);
        const char *const overrides[OVERRIDES] = {override};
        assert_int_equal(load(&config, overrides), STATUS_OK);
        assert_string_equal(config.sample.prompt, texts[i]);
        expect_reads_back(&config);
        config_free(&config);
    }
}

/* Text is never cut: it reads back whole, or it was refused when it came in. */
static void test_long_text(void **state)
{
    (void)state;
    static const size_t lengths[] = {100, 4096, 4097, 9000, 100000};
    struct config config;
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        const char start[] = "sample.prompt=";
        char *override = calloc(1, sizeof start + lengths[i]);
        assert_non_null(override);
        memset(override, 1, sizeof start - 1 + lengths[i]); /* \x01: printed longest */
        memcpy(override, start, sizeof start - 1);
        const char *const overrides[OVERRIDES] = {override};
        if (load(&config, overrides) == STATUS_OK) {
            assert_int_equal(strlen(config.sample.prompt), lengths[i]);
            expect_reads_back(&config);
        } else {
            assert_true(lengths[i] > 4096);
            expect_message("longer than");
        }
        config_free(&config);
        free(override);
    }
}

static void test_help_covers_every_key(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_help(out);
    config_markdown(out);
    fclose(out);
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char line[256];
        assert_non_null(field->help);
        assert_true(strlen(field->help) >= 5);
        assert_null(strchr(field->help, '|')); /* would break the table of the docs */
        snprintf(line, sizeof line, "%s\n", field->key);
        assert_non_null(strstr(text, line));
        snprintf(line, sizeof line, "| `%s` |", field->key);
        assert_non_null(strstr(text, line));
        assert_ptr_equal(config_find(field->key), field); /* no key stands twice */
    }
    free(text);
}

/* --- config.json --- */

static void test_hf_config_is_taken(void **state)
{
    (void)state;
    static const char *const places[] = {"hf", "hf/config.json"};
    assert_int_equal(io_make_dir("hf"), STATUS_OK);
    put("hf/config.json", MIXTRAL);
    for (int i = 0; i < 2; i++) {
        char text[256];
        struct config config;
        snprintf(text, sizeof text, "model: {hf_config: %s, num_hidden_layers: 4}\n", places[i]);
        assert_int_equal(parse(&config, text, strlen(text)), STATUS_OK);
        assert_int_equal(config.model.vocab_size, 32000);
        assert_int_equal(config.model.hidden_size, 4096);
        assert_int_equal(config.model.intermediate_size, 14336);
        assert_int_equal(config.model.num_hidden_layers, 4); /* written beside it */
        assert_int_equal(config.model.num_attention_heads, 32);
        assert_int_equal(config.model.num_key_value_heads, 8);
        assert_int_equal(config_head_dim(&config), 128);
        assert_int_equal(config.model.sliding_window, 0);
        assert_true(config.model.rms_norm_eps == 1e-5);
        assert_true(config_batch_loss_coef(&config) == 0.002);
        expect_reads_back(&config);
        config_free(&config);
    }
}

static void test_hf_config_variants(void **state)
{
    (void)state;
    static const char text[] = "model: {hf_config: config.json}\n";
    struct config config;
    put("config.json", "{\"model_type\": \"mixtral\", \"vocab_size\": 100, \"hidden_size\": 64, "
                       "\"intermediate_size\": 32, \"num_hidden_layers\": 1, "
                       "\"num_attention_heads\": 4, \"num_key_value_heads\": null, \"head_dim\": "
                       "null, \"sliding_window\": 4096, \"rope_scaling\": null, "
                       "\"rope_parameters\": {\"rope_theta\": 5000}}");
    assert_int_equal(parse(&config, text, sizeof text - 1), STATUS_OK);
    assert_int_equal(config.model.num_key_value_heads, 4);
    assert_int_equal(config.model.sliding_window, 4096);
    assert_int_equal(config_head_dim(&config), 16);
    assert_true(config.model.rope_theta == 5000.0);
    config_free(&config);
}

/* MIXTRAL with one text put in place of another. */
static void put_mixtral(const char *from, const char *to)
{
    char text[4096];
    const char *at = strstr(MIXTRAL, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - MIXTRAL), MIXTRAL, to, at + strlen(from));
    put("config.json", text);
}

static void test_hf_config_is_refused(void **state)
{
    (void)state;
    static const char text[] = "model: {hf_config: config.json}\n";
    static const struct {
        const char *from, *to;
        const char *parts[PARTS];
    } cases[] = {
        {"\"tie_word_embeddings\": false",
         "\"tie_word_embeddings\": true",
         {"config.json", "tie_word_embeddings"}},
        {"\"use_cache\": true", "\"attention_bias\": true", {"config.json", "attention_bias"}},
        {"\"mixtral\"", "\"llama\"", {"config.json: model_type 'llama' is not built"}},
        {"\"model_type\"", "\"model\"", {"model_type '(none)'"}},
        {"\"silu\"", "\"gelu\"", {"hidden_act 'gelu' is not built"}},
        {"\"use_cache\": true", "\"rope_scaling\": {\"type\": \"yarn\"}", {"rope_scaling"}},
        {"\"vocab_size\": 32000", "\"vocabulary\": 32000", {"key 'vocab_size' is missing"}},
        {"32000", "\"many\"", {"key 'vocab_size'", "is not a whole number"}},
        {"32000", "1.5", {"key 'vocab_size'", "is not a whole number"}},
        {"32000", "0", {"key 'vocab_size'", "outside"}},
        {"32000", "null", {"key 'vocab_size': null is not a value here"}},
        {"\"num_key_value_heads\": 8", "\"num_key_value_heads\": 5", {"does not divide"}},
        {"\"bos_token_id\"", "\"vocab_size\"", {"config.json: line", "duplicate"}},
        {"32000\n", "32000,,\n", {"config.json: line 24"}},
        {"{\n", "", {"config.json"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        put_mixtral(cases[i].from, cases[i].to);
        assert_int_equal(parse(&config, text, sizeof text - 1), STATUS_USAGE);
        expect_parts(cases[i].parts, PARTS, cases[i].to);
        config_free(&config);
    }
    const struct bad gone = {"model: {hf_config: gone.json}\n", {"gone.json"}};
    expect_refused(&gone, 1);
}

/* --- mutations --- */

enum { MOST_TEXT = 8192, MUTATIONS = 4000 };

/* Overwrites, inserts, doubles or removes a few bytes. */
static size_t mutate(char *text, size_t bytes, uint64_t key)
{
    static const char *const pieces[] = {"{",  "}", "[", "]",    ":",  ",",   "\n",   "  ",
                                         "\"", "'", "&", "*a",   "!!", "---", "|",    ">",
                                         "#",  "?", "%", "null", "~",  "1e9", "\x00", "\xc3\xa9"};
    uint32_t bits[4];
    rng_bits(key, 0, bits);
    const int changes = 1 + (int)(bits[0] % 4);
    for (int i = 1; i <= changes; i++) {
        rng_bits(key, (uint64_t)i, bits);
        const size_t at = bits[0] % bytes, length = bits[2] % 20;
        const char *piece = pieces[bits[1] % (sizeof pieces / sizeof pieces[0])];
        const size_t size = piece[0] == '\0' ? 1 : strlen(piece);
        if (bits[3] % 3 == 0) {
            text[at] = (char)bits[1];
        } else if (bits[3] % 3 == 1 && bytes + size < MOST_TEXT) {
            memmove(text + at + size, text + at, bytes - at);
            memcpy(text + at, piece, size);
            bytes += size;
        } else if (at + length < bytes && bytes - length > 1) {
            memmove(text + at, text + at + length, bytes - at - length);
            bytes -= length;
        }
    }
    return bytes;
}

static void test_mutations_never_crash(void **state)
{
    (void)state;
    char *base = NULL, text[MOST_TEXT];
    size_t bytes = 0;
    int accepted = 0;
    assert_int_equal(
        io_read_file(SOURCE_DIR "/configs/quickstart.yaml", &base, &bytes, MOST_TEXT / 2),
        STATUS_OK);
    for (uint64_t i = 0; i < MUTATIONS; i++) {
        struct config config;
        memcpy(text, base, bytes);
        const size_t length = mutate(text, bytes, i);
        char *exact = malloc(length); /* reading past its end is found */
        assert_non_null(exact);
        memcpy(exact, text, length);
        const enum status status = parse(&config, exact, length);
        if (status == STATUS_OK) {
            expect_reads_back(&config);
            accepted++;
        } else {
            assert_int_equal(status, STATUS_USAGE);
            expect_message("t.yaml");
        }
        config_free(&config);
        free(exact);
    }
    assert_true(accepted > MUTATIONS / 20 && accepted < MUTATIONS); /* both ways are tried */
    free(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unknown_and_double_keys),
        cmocka_unit_test(test_wrong_values),
        cmocka_unit_test(test_ranges_and_nulls),
        cmocka_unit_test(test_yaml_beyond_plain),
        cmocka_unit_test(test_missing_keys),
        cmocka_unit_test(test_all_errors_in_one_pass),
        cmocka_unit_test(test_very_many_errors),
        cmocka_unit_test(test_not_built),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_facts_may_be_stated),
        cmocka_unit_test(test_shipped_configs_load),
        SCRATCH_TEST(test_relations),
        SCRATCH_TEST(test_bad_overrides),
        SCRATCH_TEST(test_overrides),
        SCRATCH_TEST(test_print_reads_back),
        SCRATCH_TEST(test_defaults_read_back),
        SCRATCH_TEST(test_any_text_reads_back),
        SCRATCH_TEST(test_long_text),
        cmocka_unit_test(test_help_covers_every_key),
        SCRATCH_TEST(test_hf_config_is_taken),
        SCRATCH_TEST(test_hf_config_variants),
        SCRATCH_TEST(test_hf_config_is_refused),
        cmocka_unit_test(test_mutations_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
