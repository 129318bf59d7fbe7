#include "trainer/choices.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WHERE = 4096 };

/* The file being read. */
struct reader {
    struct choices *choices;
    int64_t id_room, choice_room, question_room;
    int64_t vocab, context, line;
    const struct tokenizer *tokenizer; /* of the model; NULL: not known */
    struct encoder encoder;
    struct id_list text;        /* being encoded */
    char where[MAX_WHERE + 32]; /* "file:line", for messages */
};

/* Room for `more` elements behind `count`. */
static enum status grow(void **data, int64_t *room, int64_t count, int64_t more, size_t element)
{
    if (count + more <= *room) {
        return STATUS_OK;
    }
    *room = 2 * (count + more);
    void *grown = realloc(*data, (size_t)*room * element);
    if (grown == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld items of the choices file",
                           (long long)*room);
    }
    *data = grown;
    return STATUS_OK;
}

static enum status reserve_ids(struct reader *reader, size_t more)
{
    struct choices *choices = reader->choices;
    void *ids = choices->ids;
    const enum status status =
        grow(&ids, &reader->id_room, choices->id_count, (int64_t)more, sizeof *choices->ids);
    choices->ids = ids;
    return status;
}

static enum status add_array(struct reader *reader, const json_t *array, const char *what)
{
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *id = json_array_get(array, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= reader->vocab) {
            return status_fail(STATUS_DATA, "%s: token %zu of %s is no id from 0 to %lld",
                               reader->where, i, what, (long long)reader->vocab - 1);
        }
        reader->choices->ids[reader->choices->id_count++] = (int32_t)json_integer_value(id);
    }
    return STATUS_OK;
}

/* Appends the tokens of a text or an array of ids. */
static enum status add_tokens(struct reader *reader, const json_t *value, const char *what)
{
    struct choices *choices = reader->choices;
    if (json_is_array(value)) {
        TRY(reserve_ids(reader, json_array_size(value)));
        return add_array(reader, value, what);
    }
    if (!json_is_string(value)) {
        return status_fail(STATUS_DATA, "%s: %s is neither text nor an array of token ids",
                           reader->where, what);
    }
    if (reader->tokenizer == NULL) {
        return status_fail(STATUS_USAGE,
                           "%s: text needs the tokenizer of the model, which is not known: give "
                           "--tokenizer FILE, or arrays of token ids",
                           reader->where);
    }
    reader->text.count = 0;
    TRY(encoder_run(&reader->encoder, json_string_value(value), json_string_length(value),
                    &reader->text));
    TRY(reserve_ids(reader, reader->text.count));
    for (size_t i = 0; i < reader->text.count; i++) {
        choices->ids[choices->id_count++] = (int32_t)reader->text.data[i];
    }
    return STATUS_OK;
}

/* An empty text is the start of a document. */
static enum status add_question(struct reader *reader, const json_t *question, int64_t before)
{
    struct choices *choices = reader->choices;
    TRY(add_tokens(reader, question, "the question"));
    if (choices->id_count > before) {
        return STATUS_OK;
    }
    if (json_is_array(question)) {
        return status_fail(STATUS_DATA, "%s: the question has no tokens", reader->where);
    }
    if (reader->tokenizer == NULL || reader->tokenizer->eos_id < 0) {
        return status_fail(STATUS_USAGE,
                           "%s: an empty question begins behind an end of document, which the "
                           "tokenizer does not name",
                           reader->where);
    }
    TRY(reserve_ids(reader, 1));
    choices->ids[choices->id_count++] = (int32_t)reader->tokenizer->eos_id;
    return STATUS_OK;
}

static enum status add_choice(struct reader *reader, const json_t *question, const json_t *value,
                              size_t index)
{
    struct choices *choices = reader->choices;
    struct choice added = {.first = choices->id_count};
    char what[32];
    snprintf(what, sizeof what, "choice %zu", index);
    TRY(add_question(reader, question, added.first));
    added.question = choices->id_count - added.first;
    TRY(add_tokens(reader, value, what));
    added.total = choices->id_count - added.first;
    const int64_t own = added.total - added.question, excess = added.total - (reader->context + 1);
    if (own == 0) {
        return status_fail(STATUS_DATA, "%s: %s is empty", reader->where, what);
    }
    if (own > reader->context) {
        return status_fail(STATUS_DATA,
                           "%s: %s has %lld tokens, more than train.sequence_length %lld: raise it",
                           reader->where, what, (long long)own, (long long)reader->context);
    }
    if (excess > 0) {
        added.first += excess;
        added.question -= excess;
        added.total -= excess;
    }
    void *list = choices->choice;
    const enum status status =
        grow(&list, &reader->choice_room, choices->choice_count, 1, sizeof added);
    choices->choice = list;
    if (status == STATUS_OK) {
        choices->choice[choices->choice_count++] = added;
    }
    return status;
}

static enum status mark_question(struct reader *reader, int64_t answer)
{
    struct choices *choices = reader->choices;
    void *list = choices->questions;
    const enum status status =
        grow(&list, &reader->question_room, choices->question_count, 2, sizeof *choices->questions);
    choices->questions = list;
    if (status == STATUS_OK) {
        choices->questions[choices->question_count] =
            (struct choice_question){choices->choice_count, answer, reader->line};
    }
    return status;
}

static enum status add_record(struct reader *reader, const json_t *json)
{
    const json_t *question = json_object_get(json, "question"),
                 *list = json_object_get(json, "choices"),
                 *answer = json_object_get(json, "answer");
    const size_t count = json_array_size(list);
    if (question == NULL || count < 2) {
        return status_fail(STATUS_DATA,
                           "%s: needs \"question\", two or more \"choices\", and \"answer\"",
                           reader->where);
    }
    if (!json_is_integer(answer) || json_integer_value(answer) < 0 ||
        json_integer_value(answer) >= (json_int_t)count) {
        return status_fail(STATUS_DATA, "%s: \"answer\" must be a number from 0 to %zu",
                           reader->where, count - 1);
    }
    TRY(mark_question(reader, json_integer_value(answer)));
    for (size_t i = 0; i < count; i++) {
        TRY(add_choice(reader, question, json_array_get(list, i), i));
    }
    reader->choices->question_count++;
    return STATUS_OK;
}

static enum status add_line(struct reader *reader, const char *line, size_t bytes)
{
    json_error_t problem;
    json_t *json = json_loadb(line, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    const enum status status =
        json == NULL ? status_fail(STATUS_DATA, "%s: not JSON: %s", reader->where, problem.text)
                     : add_record(reader, json);
    json_decref(json);
    return status;
}

static enum status read_lines(struct reader *reader, const char *path, FILE *file)
{
    char *line = NULL;
    size_t room = 0;
    enum status status = STATUS_OK;
    for (int64_t number = 1; status == STATUS_OK; number++) {
        const ssize_t bytes = getline(&line, &room, file);
        if (bytes < 0) {
            break;
        }
        reader->line = number;
        snprintf(reader->where, sizeof reader->where, "%.*s:%lld", MAX_WHERE, path,
                 (long long)number);
        if (strspn(line, " \t\r\n") < (size_t)bytes) {
            status = add_line(reader, line, (size_t)bytes);
        }
    }
    if (status == STATUS_OK && ferror(file)) {
        status = status_fail(STATUS_IO, "%s: cannot read: %s", path, strerror(errno));
    }
    free(line);
    return status;
}

enum status choices_read(struct choices *choices, const char *path,
                         const struct tokenizer *tokenizer, int64_t vocab, int64_t context)
{
    struct reader reader = {
        .choices = choices, .vocab = vocab, .context = context, .tokenizer = tokenizer};
    *choices = (struct choices){.path = path};
    FILE *file = fopen(path, "r");
    if (file == NULL) {
        return status_fail(STATUS_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    enum status status = tokenizer != NULL ? encoder_open(&reader.encoder, tokenizer) : STATUS_OK;
    status = status == STATUS_OK ? read_lines(&reader, path, file) : status;
    fclose(file);
    encoder_close(&reader.encoder);
    id_list_free(&reader.text);
    if (status == STATUS_OK && choices->question_count == 0) {
        status = status_fail(STATUS_DATA, "%s: no questions: write one JSON object a line", path);
    }
    return status == STATUS_OK ? mark_question(&reader, 0) : status;
}

void choices_free(struct choices *choices)
{
    free(choices->ids);
    free(choices->choice);
    free(choices->questions);
    *choices = (struct choices){0};
}

/* Sum of log p over the choice's tokens; arrays [4, context] for the batch. */
static double log_likelihood(struct model *model, const struct choices *choices,
                             const struct choice *choice, int32_t *arrays)
{
    const int64_t inputs = choice->total - 1;
    const int32_t *ids = choices->ids + choice->first;
    const struct batch batch = {.ids = arrays,
                                .labels = arrays + inputs,
                                .positions = arrays + 2 * inputs,
                                .first = arrays + 3 * inputs};
    for (int64_t i = 0; i < inputs; i++) {
        batch.ids[i] = ids[i];
        batch.labels[i] = i + 1 >= choice->question ? ids[i + 1] : -1;
        batch.positions[i] = (int32_t)i;
        batch.first[i] = 0;
    }
    model_run(model, &batch, 1, inputs, NULL);
    return -model_read_losses(model).loss;
}

/* Counts whether the likeliest choices of question q are right; false where a log p is not finite:
 * then nothing can be said. */
static bool score_question(struct model *model, const struct choices *choices, int64_t q,
                           int32_t *arrays, struct choices_result *result)
{
    const int64_t first = choices->questions[q].first, end = choices->questions[q + 1].first;
    double best = -INFINITY, best_mean = -INFINITY;
    int64_t chosen = first, chosen_mean = first;
    bool finite = true;
    for (int64_t c = first; c < end; c++) {
        const struct choice *choice = &choices->choice[c];
        const double sum = log_likelihood(model, choices, choice, arrays),
                     mean = sum / (double)(choice->total - choice->question);
        finite = finite && isfinite(sum);
        chosen = sum > best ? c : chosen;
        best = sum > best ? sum : best;
        chosen_mean = mean > best_mean ? c : chosen_mean;
        best_mean = mean > best_mean ? mean : best_mean;
    }
    result->correct += chosen - first == choices->questions[q].answer;
    result->correct_normalised += chosen_mean - first == choices->questions[q].answer;
    return finite;
}

enum status choices_score(struct model *model, const struct choices *choices,
                          struct choices_result *result)
{
    struct comm *world = model->mesh->world;
    *result = (struct choices_result){0};
    int32_t *arrays = calloc((size_t)(4 * model->sequence), sizeof *arrays);
    enum status status =
        arrays != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory for a batch");
    status = comm_agree(world, status, NULL);
    int64_t bad = -1; /* first question that has no answer */
    for (int64_t q = 0; status == STATUS_OK && q < choices->question_count; q++) {
        if (!score_question(model, choices, q, arrays, result) && bad < 0) {
            bad = q;
        }
    }
    free(arrays);
    if (bad >= 0) {
        status = status_fail(STATUS_DIVERGED,
                             "%s:%lld: the model's log-likelihood of a choice is not finite: its "
                             "weights are of no use, take an earlier checkpoint",
                             choices->path, (long long)choices->questions[bad].line);
    }
    return comm_agree(world, status, NULL);
}
