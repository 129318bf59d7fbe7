#include "data/chat.h"

#include <string.h>

struct chat_template {
    const char *name;
    const char *user, *user_end;           /* before and after what the user says */
    const char *prompt, *answer;           /* before an answer: of the question; of the answer */
    const char *user_token, *answer_token; /* special tokens in place of `user` and `prompt` */
    const char *system_end;
    enum { SYSTEM_IN_PLACE, SYSTEM_FIRST, SYSTEM_IN_USER } system; /* FIRST: all of them, joined */
    bool alternate; /* after a system message user and assistant take turns, or it is refused */
};

static const struct chat_template templates[] = {
    {.name = "mixtral",
     .user = " [INST] ",
     .user_end = " [/INST]",
     .prompt = "",
     .answer = " ",
     .system_end = "\n\n",
     .system = SYSTEM_IN_USER,
     .alternate = true},
    {.name = "deepseek_v2",
     .user = "User: ",
     .user_end = "\n\n",
     .prompt = "Assistant:",
     .answer = " ",
     .system_end = "\n\n",
     .system = SYSTEM_IN_PLACE},
    {.name = "deepseek_v3",
     .user = "",
     .user_end = "",
     .prompt = "",
     .answer = "",
     .user_token = "<｜User｜>",
     .answer_token = "<｜Assistant｜>",
     .system_end = "\n\n",
     .system = SYSTEM_FIRST},
};

/* A conversation being written: text is gathered until a special token or another speaker comes. */
struct writing {
    const struct chat *chat;
    struct encoder *encoder;
    struct id_list *ids;
    struct byte_list *mask;
    struct byte_list text; /* owned */
    bool answer;           /* whose `text` is */
    bool template_space;   /* `text` begins with a space of the template */
};

bool chat_role_find(enum chat_role *role, const char *name)
{
    static const char *const names[] = {"system", "user", "assistant"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) == 0) {
            *role = (enum chat_role)i;
            return true;
        }
    }
    return false;
}

static enum status find_token(const struct tokenizer *tokenizer, const char *text,
                              const char *template, int64_t *id)
{
    *id = -1;
    if (text == NULL || tokenizer->kind == TOKENIZER_BYTES) {
        return STATUS_OK;
    }
    *id = tokenizer_find(tokenizer, text);
    return *id >= 0 ? STATUS_OK
                    : status_fail(STATUS_USAGE,
                                  "prepare: --chat-template %s needs the token %s, which the "
                                  "tokenizer doesn't have: use the model's own tokenizer or "
                                  "another template",
                                  template, text);
}

enum status chat_open(struct chat *chat, const char *name, const struct tokenizer *tokenizer)
{
    *chat = (struct chat){.tokenizer = tokenizer, .user_id = -1, .answer_id = -1};
    for (size_t i = 0; i < sizeof templates / sizeof templates[0]; i++) {
        if (strcmp(templates[i].name, name) == 0) {
            chat->template = &templates[i];
        }
    }
    if (chat->template == NULL) {
        return status_fail(STATUS_USAGE,
                           "prepare: --chat-template '%s': use mixtral, deepseek_v2 or deepseek_v3",
                           name);
    }
    if (tokenizer->bos_id < 0 && tokenizer->kind != TOKENIZER_BYTES) {
        return status_fail(STATUS_USAGE,
                           "prepare: --chat-template %s begins with the beginning-of-sentence "
                           "token, and nothing says which that is: name it as bos_token in a "
                           "tokenizer_config.json beside the tokenizer file",
                           name);
    }
    TRY(find_token(tokenizer, chat->template->user_token, name, &chat->user_id));
    return find_token(tokenizer, chat->template->answer_token, name, &chat->answer_id);
}

/* The mask follows the ids. */
static enum status mark(struct writing *writing, bool answer)
{
    const size_t more = writing->ids->count - writing->mask->count;
    TRY(byte_list_reserve(writing->mask, more));
    memset(writing->mask->data + writing->mask->count, answer, more);
    writing->mask->count += more;
    return STATUS_OK;
}

/* NOTE: SentencePiece itself puts a space before each text it encodes: the template's own would
 * be a second one. */
static enum status flush(struct writing *writing)
{
    const char *text = writing->text.data;
    size_t bytes = writing->text.count;
    if (writing->template_space && writing->chat->tokenizer->kind == TOKENIZER_SENTENCEPIECE) {
        text++;
        bytes--;
    }
    if (bytes > 0) {
        TRY(encoder_run(writing->encoder, text, bytes, writing->ids));
    }
    writing->text.count = 0;
    writing->template_space = false;
    return mark(writing, writing->answer);
}

static enum status add_bytes(struct writing *writing, const char *text, size_t bytes, bool answer)
{
    if (answer != writing->answer) {
        TRY(flush(writing));
        writing->answer = answer;
    }
    return byte_list_add(&writing->text, text, bytes);
}

/* Of the template. */
static enum status add_text(struct writing *writing, const char *text, bool answer)
{
    TRY(add_bytes(writing, text, strlen(text), answer));
    writing->template_space =
        writing->template_space || (text[0] == ' ' && writing->text.count == strlen(text));
    return STATUS_OK;
}

static enum status add_token(struct writing *writing, int64_t id, bool answer)
{
    TRY(flush(writing));
    TRY(id_list_add(writing->ids, (uint32_t)id));
    return mark(writing, answer);
}

/* A special token, or its text where the tokenizer has none. */
static enum status add_special(struct writing *writing, int64_t id, const char *text)
{
    if (id >= 0) {
        return add_token(writing, id, false);
    }
    return text != NULL ? add_text(writing, text, false) : STATUS_OK;
}

static enum status add_user(struct writing *writing, const struct chat_message *message,
                            const struct chat_message *system)
{
    const struct chat_template *template = writing->chat->template;
    TRY(add_special(writing, writing->chat->user_id, template->user_token));
    TRY(add_text(writing, template->user, false));
    if (system != NULL) {
        TRY(add_bytes(writing, system->text, system->bytes, false));
        TRY(add_text(writing, template->system_end, false));
    }
    TRY(add_bytes(writing, message->text, message->bytes, false));
    return add_text(writing, template->user_end, false);
}

static enum status add_answer(struct writing *writing, const struct chat_message *message)
{
    const struct chat_template *template = writing->chat->template;
    TRY(add_special(writing, writing->chat->answer_id, template->answer_token));
    TRY(add_text(writing, template->prompt, false));
    TRY(add_text(writing, template->answer, true));
    TRY(add_bytes(writing, message->text, message->bytes, true));
    return add_token(writing, writing->chat->tokenizer->eos_id, true);
}

static enum status add_system(struct writing *writing, const struct chat_message *message, bool end)
{
    TRY(add_bytes(writing, message->text, message->bytes, false));
    return end ? add_text(writing, writing->chat->template->system_end, false) : STATUS_OK;
}

/* All system messages, the end of one between two of them. */
static enum status add_systems(struct writing *writing, const struct chat_message *messages,
                               int64_t count)
{
    bool first = true;
    for (int64_t i = 0; i < count; i++) {
        if (messages[i].role == CHAT_SYSTEM) {
            TRY(first ? STATUS_OK : add_text(writing, writing->chat->template->system_end, false));
            TRY(add_system(writing, &messages[i], false));
            first = false;
        }
    }
    return STATUS_OK;
}

static enum status check_order(const struct chat_template *template,
                               const struct chat_message *messages, int64_t count)
{
    const int64_t first = count > 0 && messages[0].role == CHAT_SYSTEM;
    for (int64_t i = first; template->alternate && i < count; i++) {
        if (messages[i].role != ((i - first) % 2 == 0 ? CHAT_USER : CHAT_ASSISTANT)) {
            return status_fail(STATUS_DATA,
                               "message %lld: with --chat-template %s \"user\" and \"assistant\" "
                               "take turns, after one \"system\" at most",
                               (long long)i, template->name);
        }
    }
    return STATUS_OK;
}

static enum status write_all(struct writing *writing, const struct chat_message *messages,
                             int64_t count)
{
    const struct chat_template *template = writing->chat->template;
    const bool inside = template->system == SYSTEM_IN_USER && messages[0].role == CHAT_SYSTEM;
    const struct chat_message *system = inside ? &messages[0] : NULL;
    TRY(add_special(writing, writing->chat->tokenizer->bos_id, NULL));
    if (template->system == SYSTEM_FIRST) {
        TRY(add_systems(writing, messages, count));
    }
    for (int64_t i = 0; i < count; i++) {
        switch (messages[i].role) {
        case CHAT_SYSTEM:
            if (template->system == SYSTEM_IN_PLACE) {
                TRY(add_system(writing, &messages[i], true));
            }
            break;
        case CHAT_USER:
            TRY(add_user(writing, &messages[i], system));
            system = NULL;
            break;
        case CHAT_ASSISTANT:
            TRY(add_answer(writing, &messages[i]));
            break;
        }
    }
    return flush(writing);
}

enum status chat_encode(const struct chat *chat, struct encoder *encoder,
                        const struct chat_message *messages, int64_t count, struct id_list *ids,
                        struct byte_list *mask)
{
    struct writing writing = {.chat = chat, .encoder = encoder, .ids = ids, .mask = mask};
    TRY(check_order(chat->template, messages, count));
    const enum status status = write_all(&writing, messages, count);
    byte_list_free(&writing.text);
    return status;
}
