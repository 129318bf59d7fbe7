/* config: what is refused and in which words, what is accepted, overrides. */
#define _GNU_SOURCE
#include "unit/config_text.h"

#include <glob.h>
#include <stdio.h>

static void test_unknown_and_double_keys(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"run:\n  stpes: 3\n",
         {"t.yaml:2:3: key 'run.stpes': unknown key; did you mean 'run.steps'?"}},
        {"model: {lr: 1}\n", {"key 'model.lr'", "did you mean 'optimizer.lr'?"}},
        {"optimizer: {learning_rate: 1}\n",
         {"t.yaml:1:13: key 'optimizer.learning_rate': unknown key"}},
        {"run: {zzzzzzzz: 1}\n", {"t.yaml:1:7: key 'run.zzzzzzzz': unknown key"}},
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
        {"parallel: {zero: 4}\n", {"4 is outside 1 to 3"}},
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
         {"t.yaml:2:3: key 'run.stpes': unknown key; did you mean 'run.steps'?\n",
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
        {"run: {deterministic: layers}\n", {"'layers' is not one of off, run, layout"}},
        {"model: {attention_bias: true}\n", {"key 'model.attention_bias': not built"}},
        {"checkpoint: {async: maybe}\n", {"key 'checkpoint.async'"}},
        {"guard: {on_nonfinite: off}\n", {"'off' is not one of stop, skip, rollback"}},
        {"cluster: {gpu: custom}\n",
         {"cluster.gpu custom needs cluster.peak_tflops, memory_gb and memory_gb_s"}},
        {"cluster: {gpu: h300}\n", {"'h300' is not one of null, cpu, h100"}},
    };
    EXPECT_REFUSED(cases);
}

static void test_bad_mixtures(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"data: {train: [a]}\n", {"t.yaml:1:15: key 'data.train': a map such as"}},
        {"data: {train: []}\n", {"key 'data.train': an empty list"}},
        {"data: {train: [{weight: 1}]}\n", {"key 'data.train': source 1 has no path"}},
        {"data: {train: [{path: a, weihgt: 1}]}\n",
         {"'weihgt' is not one of path, weight, tokens, epochs, fim (source 1)"}},
        {"data: {train: [{path: a}, {path: b, weight: heavy}]}\n",
         {"weight 'heavy' is not a number (source 2)"}},
        {"data: {train: [{path: a, weight: -1}]}\n", {"weight -1 is outside 0"}},
        {"data: {train: [{path: a, fim: 1.5}]}\n", {"fim 1.5 is outside 0 to 1"}},
        {"data: {train: [{path: [a, b]}]}\n", {"path: one value is expected"}},
        {"data: {train: {path: a}}\n", {"key 'data.train': one value is expected"}},
    };
    EXPECT_REFUSED(cases);
    static const struct bad relations[] = {
        {"{train: [{path: a, weight: 0}]}\n", {"every weight of stage 1 is 0"}},
        {"{train: [{path: a, weight: [1, 2]}]}\n", {"a has 2 weights", "1 stages"}},
        {"{train: [{path: a, weight: [1, 0]}], stages: {tokens: [5]}}\n",
         {"every weight of stage 2 is 0"}},
        {"{train: [{path: a, tokens: 5}, {path: b}]}\n", {"1 of 2 sources have a budget"}},
        {"{train: a, stages: {tokens: [5], steps: [6]}}\n", {"tokens or steps, not both"}},
        {"{train: a, stages: {steps: [6, 6]}}\n", {"whole numbers, rising"}},
        {"{train: a, packing: best_fit, fim: {rate: 0.5}}\n", {"must be 0"}},

    };
    for (size_t i = 0; i < sizeof relations / sizeof relations[0]; i++) {
        char text[1024];
        snprintf(text, sizeof text, "%sdata: %s", BASE, relations[i].text);
        const struct bad one = {text, {relations[i].parts[0], relations[i].parts[1]}};
        expect_refused(&one, 1);
    }
}

static void test_mixtures(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "data: {train: [{path: a b.h5, weight: [0.5, 0], epochs: 2.5}, {weight: 3, path: \"[x\", "
        "fim: 0.5}], stages: {tokens: [1e9]}}\n",
        "data: {train: [{path: a, tokens: 1e9}, {path: b, tokens: 9e15, fim: 0}]}\n",
        "data: {train: \"[x]\"}\n",
        "data: {train: [{path: a, weight: 0.25}]}\n",
    };
    static const char *const shown[] = {
        "[{path: \"a b.h5\", weight: [0.5, 0], epochs: 2.5}, {path: \"[x\", weight: 3, fim: 0.5}]",
        "[{path: \"a\", weight: 1, tokens: 1e+09}, {path: \"b\", weight: 1, tokens: 9e+15, fim: "
        "0}]",
        "\"[x]\"", "\"a\""};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char text[2048], value[CONFIG_SHOWN_BYTES], override[CONFIG_SHOWN_BYTES + 16];
        struct config config;
        snprintf(text, sizeof text, "%s%s", strchr(BASE, '\n') + 1, texts[i]);
        assert_int_equal(parse(&config, text, strlen(text)), STATUS_OK);
        config_show(&config, config_find("data.train"), value, sizeof value);
        assert_string_equal(value, shown[i]);
        /* the same on the command line, over another list; in quotes as in a file only there */
        snprintf(override, sizeof override, "data.train=%s", i < 2 ? value : "[{path: x}]");
        char *list[] = {override};
        assert_int_equal(config_override(&config, list, 1), STATUS_OK);
        config_show(&config, config_find("data.train"), value, sizeof value);
        assert_string_equal(value, i < 2 ? shown[i] : "\"x\"");
        config_free(&config);
    }
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
        "cluster: {pipeline: auto, virtual_stages: 1, stages: []}\n" /* names of before */
        "data: {train: [{path: a b.h5, weight: 0.5}], valid: null}\n";
    char text[2048];
    struct config config;
    snprintf(text, sizeof text, "%s%s", strchr(BASE, '\n') + 1, rest);
    assert_int_equal(parse(&config, text, strlen(text)), STATUS_OK);
    assert_int_equal(config.data.train.count, 1);
    assert_string_equal(config.data.train.item[0].path, "a b.h5");
    assert_null(config.data.valid);
    assert_int_equal(config.model.num_key_value_heads, 4); /* 0 is resolved */
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
        {{"model.hidden_size=2048", "model.num_attention_heads=1"},
         {"head width 2048", "more than 1024"}},
        {{"parallel.ep=3"}, {"parallel.ep 3 does not divide model.num_local_experts 8"}},
        {{"parallel.tp=3"},
         {"parallel.tp 3 does not divide train.sequence_length 32",
          "parallel.tp 3 does not divide model.num_attention_heads 4"}},
        {{"parallel.tp=2", "train.precision=fp8"},
         {"parallel.tp 2 with train.precision fp8 makes parts of 64 / 2 of "}},
        {{"parallel.tp=2", "sample.every_steps=5"}, {"parallel.tp 2 with sample.every_steps 5"}},
        {{"parallel.cp=3"}, {"parallel.cp 3 cuts train.sequence_length 32 into 6 chunks"}},
        {{"parallel.cp=2", "run.deterministic=layout"},
         {"parallel.cp 2 with run.deterministic layout"}},
        {{"train.micro_batch=16"},
         {"train.global_batch 8 is not a multiple of train.micro_batch 16"}},
        {{"train.micro_batch=3"}, {"train.global_batch 8 is not a multiple"}},
        {{"model.max_position_embeddings=31"},
         {"train.sequence_length 32 is more than model.max_position_embeddings 31"}},
        {{"schedule.decay_end=0.9"}, {"schedule.decay_end: only schedule.kind wsd has it"}},
        {{"debug.trace_steps=2"}, {"debug.trace_steps: only with debug.trace"}},
        {{"optimizer.momentum=0.9"}, {"optimizer.momentum: only optimizer.name muon has it"}},
        {{"router.dispatch=padded", "router.buffer_factor=3"},
         {"router.buffer_factor: router.dispatch padded has no use for it"}},
        {{"schedule.warmup_steps=301"}, {"schedule.warmup_steps 301 is more than run.steps 300"}},
        {{"schedule.warmup_steps=11", "run.steps=10"}, {"11 is more than run.steps 10"}},
        {{"guard.on_spike=rollback", "checkpoint.every_steps=0", "checkpoint.keep_last=1"},
         {"rollback needs checkpoints to go back to", "checkpoint.keep_last of at least 2"}},
        {{"guard.spike_factor=5", "debug.profile_steps=5"},
         {"guard.spike_factor: guard.on_spike off", "debug.profile_steps: debug.profile is null"}},
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
        {{"run.steps=\"3\""},
         {"command line: key 'run.steps': \"3\" is text: write it without quotes"}},
        {{"run.steps"}, {"'run.steps'", "key=value"}},
        {{"=3"}, {"unknown key"}},
        {{"data.stages={tokens: [1e9]}"},
         {"command line: key 'data.stages': a section of keys: give each by its own name, such as "
          "'data.stages.tokens'"}},
        {{"optimizer={lr: 1}"}, {"key 'optimizer': a section of keys", "'optimizer."}},
        {{"optimizer.lr=nan"}, {"'nan' is not a number"}},
        {{"run.device=rocm"}, {"'rocm' is not one of cpu, cuda"}},
        {{"model.attention_bias=true"}, {"key 'model.attention_bias': not built"}},
        {{"run.pin=yes", "run.seed=x"}, {"'yes' is neither", "\ncommand line: key 'run.seed'"}},
        {{"run.dir=\xff"}, {"key 'run.dir'", "UTF-8"}},
        {{"run.dir=\"\xff\""}, {"key 'run.dir'", "UTF-8"}},
        {{"optimizer.freeze=\"a\",\"b\""},
         {"command line: key 'optimizer.freeze': not a list as YAML has it"}},
        {{"optimizer.freeze=[\"a, b]"}, {"key 'optimizer.freeze': not a list as YAML has it"}},
        {{"optimizer.freeze=[\"a\"] b"}, {"key 'optimizer.freeze': not a list as YAML has it"}},
        {{"schedule.milestones=[\"0.6\"]"}, {"item 1 of the list is not a number"}},
        {{"data.train=[{path: x}]]"}, {"key 'data.train': not a list of maps"}},
    };
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        assert_int_equal(load(&config, cases[i].overrides), STATUS_USAGE);
        expect_parts(cases[i].parts, PARTS, cases[i].overrides[0]);
        config_free(&config);
    }
}

static void test_quotes_of_overrides(void **state)
{
    (void)state;
    static const struct {
        const char *override, *prompt;
    } cases[] = {
        {"sample.prompt=\"a b\"", "a b"},
        {"sample.prompt='it''s \\n' ", "it's \\n"},
        {"sample.prompt=\"\\\"\\u00e9\\n\"", "\"\xc3\xa9\n"},
        {"sample.prompt='\xc3\xa9'", "\xc3\xa9"},
        {"sample.prompt=\"null\"", "null"},
        {"sample.prompt=''", ""},
        /* not enclosed: plain text */
        {"sample.prompt=a: b #c", "a: b #c"},
        {"sample.prompt=\"a\" b", "\"a\" b"},
        {"sample.prompt=\"a\": b", "\"a\": b"},
        {"sample.prompt='a' # 'b'", "'a' # 'b'"},
        {"sample.prompt=\"a", "\"a"},
        {"sample.prompt=\"", "\""},
        {"sample.prompt=[\"a\"]", "[\"a\"]"},
    };
    struct config config;
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *const overrides[OVERRIDES] = {cases[i].override, "data.train='x y.h5'",
                                                  "run.device=\"cpu\"", "data.valid='null'"};
        assert_int_equal(load(&config, overrides), STATUS_OK);
        assert_string_equal(config.sample.prompt, cases[i].prompt);
        assert_string_equal(config.data.train.item[0].path, "x y.h5");
        assert_string_equal(config.data.valid, "null");
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
    assert_string_equal(config.data.train.item[0].path, "a=b.h5");
    char *later[] = {(char *)(uintptr_t) "data.train=null", (char *)(uintptr_t) "run.steps=40"};
    assert_int_equal(config_override(&config, later, 2), STATUS_OK);
    assert_int_equal(config.data.train.count, 0);
    assert_int_equal(config.run.steps, 40);
    char *wrong[] = {(char *)(uintptr_t) "train.micro_batch=5"};
    assert_int_equal(config_override(&config, wrong, 1), STATUS_USAGE);
    config_free(&config);
    config_init(&config);
    assert_int_equal(config_load(&config, "gone.yaml", NULL, 0), STATUS_IO);
    expect_message("gone.yaml");
    config_free(&config);
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
        cmocka_unit_test(test_bad_mixtures),
        cmocka_unit_test(test_mixtures),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_facts_may_be_stated),
        cmocka_unit_test(test_shipped_configs_load),
        SCRATCH_TEST(test_relations),
        SCRATCH_TEST(test_bad_overrides),
        SCRATCH_TEST(test_overrides),
        SCRATCH_TEST(test_quotes_of_overrides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
