/* chat: conversations as the published chat templates write them, and which of their tokens are
 * the assistant's.
 *
 * Templates, as in tokenizer_config.json of the instruct models:
 *   mixtral      <bos> [INST] {system}\n\n{user} [/INST] {assistant}<eos> (Mixtral-8x7B-Instruct)
 *   deepseek_v2  <bos>{system}\n\nUser: {user}\n\nAssistant: {assistant}<eos>  (V2, Coder-V2)
 *   deepseek_v3  <bos>{system}<｜User｜>{user}<｜Assistant｜>{assistant}<eos>  (V3, R1)
 * with the turns repeated. What is written before an answer is encoded apart from the answer, so
 * that a prompt has the ids here that it has when the model is asked.
 */
#ifndef DATA_CHAT_H
#define DATA_CHAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "data/tokenizer.h"

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT };

struct chat_message {
    enum chat_role role;
    const char *text; /* [bytes] borrowed */
    size_t bytes;
};

struct chat_template;
struct chat {
    const struct chat_template *template; /* NULL: none */
    const struct tokenizer *tokenizer;    /* borrowed */
    int64_t user_id, answer_id;           /* special tokens before a turn; -1: none, or as text */
};

/* Local. Whether there is such a role. */
bool chat_role_find(enum chat_role *role, const char *name);
/* Local. The special tokens must be in the tokenizer; the byte tokenizer has none, so they are
 * written as text, but for the beginning, which is left out, and the end, which is its token 256.
 * Errors: STATUS_USAGE. */
enum status chat_open(struct chat *chat, const char *name, const struct tokenizer *tokenizer)
    __attribute__((warn_unused_result));
/* Local. Appends a conversation's ids, and for each a 1 to `mask` where it is of an answer or ends
 * one, else a 0. Errors: STATUS_DATA where the template does not know that order of roles;
 * STATUS_RESOURCE. */
enum status chat_encode(const struct chat *chat, struct encoder *encoder,
                        const struct chat_message *messages, int64_t count, struct id_list *ids,
                        struct byte_list *mask) __attribute__((warn_unused_result));

#endif
