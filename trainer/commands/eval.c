#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/base/json_out.h"
#include "trainer/choices.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/dataset.h"
#include "trainer/run_tokenizer.h"
#include "trainer/session.h"
#include "trainer/state.h"
#include "trainer/step.h"

static void print(const struct session *session, const char *data, double loss, int64_t labels,
                  bool json)
{
    if (!session_main_rank(session)) {
        return;
    }
    if (json) {
        json_out_number(stdout, "{\"loss\":", loss, 17);
        printf(",\"loss_hex\":\"%a\"", loss);
        json_out_number(stdout, ",\"perplexity\":", exp(loss), 17);
        printf(",\"labels\":%lld}\n", (long long)labels);
    } else {
        printf("%s: loss %.6f, perplexity %.4f over %lld labels\n", data, loss, exp(loss),
               (long long)labels);
    }
}

struct request {
    const char *data, *choices; /* token file; or questions */
    const char *tokenizer;      /* of the questions; NULL: the model's */
    bool ema, json;
};

static enum status evaluate(struct session *session, struct model *model, struct dataset *dataset,
                            const char *path, const struct request *request)
{
    const struct config *config = &session->config;
    double loss = 0;
    int64_t labels = 0;
    TRY(dataset_open(dataset, config, request->data, false, &session->world));
    TRY(run_tokenizer_match(session, path, &dataset->store));
    TRY(comm_agree(&session->world,
                   model_init(model, config, &session->mesh, session->device,
                              config->train.micro_batch, config->train.sequence_length, false),
                   NULL));
    TRY(state_load_newest(model, path, request->ema));
    TRY(step_evaluate(model, &dataset->loader, 0, NULL, &loss, &labels));
    if (labels == 0) {
        return status_fail(STATUS_DATA,
                           "%s: none of its labels counts: its loss_mask is 0 everywhere, or its "
                           "documents are of one token; give another file",
                           request->data);
    }
    print(session, request->data, loss, labels, request->json);
    return STATUS_OK;
}

static void print_choices(const struct session *session, const char *path, int64_t questions,
                          const struct choices_result *result, bool json)
{
    const double all = (double)questions;
    if (!session_main_rank(session)) {
        return;
    }
    if (json) {
        json_out_number(stdout, "{\"accuracy\":", (double)result->correct / all, 17);
        printf(",\"correct\":%lld", (long long)result->correct);
        json_out_number(stdout,
                        ",\"accuracy_normalised\":", (double)result->correct_normalised / all, 17);
        printf(",\"correct_normalised\":%lld,\"questions\":%lld}\n",
               (long long)result->correct_normalised, (long long)questions);
        return;
    }
    printf("accuracy %.4f (%lld right), normalised by length %.4f (%lld right) over %lld questions "
           "of %s\n",
           (double)result->correct / all, (long long)result->correct,
           (double)result->correct_normalised / all, (long long)result->correct_normalised,
           (long long)questions, path);
}

/* Questions of token ids need no tokenizer. */
static enum status read_choices(struct session *session, struct choices *choices, const char *path,
                                const struct request *request)
{
    const struct config *config = &session->config;
    struct tokenizer tokenizer;
    enum status status =
        run_tokenizer_open(&tokenizer, session, path, request->tokenizer, "arrays of token ids");
    const bool known = status == STATUS_OK;
    if (known || (status == STATUS_USAGE && request->tokenizer == NULL)) {
        status = comm_agree(&session->world,
                            choices_read(choices, request->choices, known ? &tokenizer : NULL,
                                         config->model.vocab_size, config->train.sequence_length),
                            NULL);
    }
    tokenizer_close(&tokenizer);
    return status;
}

static enum status answer(struct session *session, struct model *model, struct choices *choices,
                          const char *path, const struct request *request)
{
    const struct config *config = &session->config;
    const int64_t context = config->train.sequence_length;
    struct choices_result result;
    TRY(read_choices(session, choices, path, request));
    TRY(comm_agree(&session->world,
                   model_init(model, config, &session->mesh, session->device, 1, context, false),
                   NULL));
    TRY(state_load_newest(model, path, request->ema));
    TRY(choices_score(model, choices, &result));
    print_choices(session, request->choices, choices->question_count, &result, request->json);
    return STATUS_OK;
}

enum status command_eval(int argc, char **argv)
{
    struct request request = {0};
    struct option_result options;
    struct session session;
    struct model model = {0};
    struct dataset dataset = {0};
    struct choices choices = {0};
    const struct option_spec specs[] = {
        {"--data", OPTION_TEXT, &request.data, "F.h5",
         "token file (default: data.valid of the config)"},
        {"--choices", OPTION_TEXT, &request.choices, "F.jsonl",
         "multiple-choice questions instead"},
        {"--tokenizer", OPTION_TEXT, &request.tokenizer, "bytes|FILE",
         "of the questions' texts, where the checkpoint has none beside it"},
        {"--ema", OPTION_FLAG, &request.ema, NULL, "the running average of the weights"},
        {"--json", OPTION_FLAG, &request.json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(
        &options, argc, argv, specs, "eval CONFIG|RUN_DIR|CKPT_DIR [--data F.h5] [key=value ...]",
        "Mean cross-entropy and perplexity of the newest checkpoint on a whole token file, or its "
        "accuracy on\n"
        "multiple-choice questions, one a line: {\"question\": TEXT, \"choices\": [TEXT, ...], "
        "\"answer\": INDEX from 0},\n"
        "or arrays of token ids in place of each TEXT. A choice continues its question as it "
        "stands; the answer is the\n"
        "likeliest choice, by the sum and by the mean over its tokens of log p.",
        1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    if (request.tokenizer != NULL && request.choices == NULL) {
        return status_fail(STATUS_USAGE, "eval: --tokenizer is for --choices");
    }
    if (request.choices != NULL && request.data != NULL) {
        return status_fail(STATUS_USAGE, "eval: give --data or --choices, not both");
    }
    enum status status = session_open(&session, SESSION_USE, options.words[0], options.overrides,
                                      options.override_count);
    if (status == STATUS_OK) {
        const char *place =
            state_is_place(options.words[0]) ? options.words[0] : session.config.run.dir;
        request.data = request.data != NULL ? request.data : session.config.data.valid;
        if (request.choices != NULL) {
            status = answer(&session, &model, &choices, place, &request);
        } else if (request.data == NULL) {
            status = status_fail(STATUS_USAGE,
                                 "eval: no token file: give --data F.h5 or set data.valid");
        } else {
            status = evaluate(&session, &model, &dataset, place, &request);
        }
    }
    model_free(&model);
    dataset_close(&dataset);
    choices_free(&choices);
    return session_close(&session, status);
}
