/* choices: multiple-choice questions, answered by the choice the model finds most likely.
 *
 * A file has one question a line: {"question": TEXT, "choices": [TEXT, ...], "answer": INDEX},
 * INDEX from 0; or with arrays of token ids in place of each TEXT. A choice continues its question
 * as it stands, with nothing between. Where both together exceed train.sequence_length + 1 tokens,
 * the question loses its oldest tokens.
 */
#ifndef TRAINER_CHOICES_H
#define TRAINER_CHOICES_H

#include "data/tokenizer.h"
#include "trainer/model/model.h"

struct choice {
    int64_t first, question, total; /* its tokens in ids: the question's, then the choice's */
};

struct choice_question {
    int64_t first, answer; /* its first choice; the right one, counted from there */
    int64_t line;          /* of the file, from 1 */
};

struct choices {
    int32_t *ids;                      /* owned */
    struct choice *choice;             /* owned */
    struct choice_question *questions; /* owned; one more marks the end */
    int64_t id_count, choice_count, question_count;
    const char *path; /* borrowed: for messages */
};

struct choices_result {
    int64_t correct;            /* by the sum of log p over the choice's tokens */
    int64_t correct_normalised; /* by its mean; of TEXT by the model's tokenizer */
};

/* Local. tokenizer: of the model; NULL: not known, then TEXT is STATUS_USAGE. Errors: STATUS_IO;
 * STATUS_DATA naming the line; STATUS_RESOURCE. */
enum status choices_read(struct choices *choices, const char *path,
                         const struct tokenizer *tokenizer, int64_t vocab, int64_t context)
    __attribute__((warn_unused_result));
void choices_free(struct choices *choices); /* accepts a zeroed one */

/* Collective over the world: every rank scores all. Ties go to the first choice. Errors:
 * STATUS_RESOURCE; STATUS_DIVERGED naming the line of the first question with a choice whose log p
 * is not finite. */
enum status choices_score(struct model *model, const struct choices *choices,
                          struct choices_result *result) __attribute__((warn_unused_result));

#endif
