/* chat: conversations as the published templates write them, as text with the byte tokenizer, with
 * special tokens where the tokenizer has them; what counts is the answers. (That ids are those of
 * the published tokenizers is tests/cli/test_chat_wheels.sh's.) */
#include "unit/scratch.h"

#include "data/chat.h"

enum { MOST = 6 };

static void good(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("status %d: %s", status, status_message());
    }
}

struct encoded {
    struct tokenizer tokenizer;
    struct encoder encoder;
    struct chat chat;
    struct id_list ids;
    struct byte_list mask;
};

static void close_encoded(struct encoded *e)
{
    encoder_close(&e->encoder);
    tokenizer_close(&e->tokenizer);
    id_list_free(&e->ids);
    byte_list_free(&e->mask);
}

/* messages: "u" and what is said, "a", "s". */
static enum status encode(struct encoded *e, const char *tokenizer, const char *template,
                          const char *const messages[MOST])
{
    struct chat_message list[MOST];
    int count = 0;
    for (; count < MOST && messages[count] != NULL; count++) {
        const char c = messages[count][0];
        list[count] = (struct chat_message){.role = c == 's'   ? CHAT_SYSTEM
                                                    : c == 'u' ? CHAT_USER
                                                               : CHAT_ASSISTANT,
                                            .text = messages[count] + 1,
                                            .bytes = strlen(messages[count]) - 1};
    }
    *e = (struct encoded){0};
    TRY(tokenizer_open(&e->tokenizer, tokenizer));
    TRY(encoder_open(&e->encoder, &e->tokenizer));
    TRY(chat_open(&e->chat, template, &e->tokenizer));
    return chat_encode(&e->chat, &e->encoder, list, count, &e->ids, &e->mask);
}

static const struct {
    const char *template;
    const char *messages[MOST];
    const char *text;    /* '$': the end token */
    const char *counted; /* the part that counts */
} cases[] = {
    {"mixtral", {"uHi", "aYo"}, " [INST] Hi [/INST] Yo$", " Yo$"},
    {"mixtral",
     {"sBe kind.", "uHi", "aYo", "uAnd?", "aNo."},
     " [INST] Be kind.\n\nHi [/INST] Yo$ [INST] And? [/INST] No.$",
     " Yo$ No.$"},
    {"mixtral", {"uHi", "aYo", "uAnd?"}, " [INST] Hi [/INST] Yo$ [INST] And? [/INST]", " Yo$"},
    {"deepseek_v2", {"uHi", "aYo"}, "User: Hi\n\nAssistant: Yo$", " Yo$"},
    {"deepseek_v2",
     {"sBe kind.", "uHi", "aYo", "uAnd?", "aNo."},
     "Be kind.\n\nUser: Hi\n\nAssistant: Yo$User: And?\n\nAssistant: No.$",
     " Yo$ No.$"},
    {"deepseek_v2",
     {"uHi", "sBe brief.", "aYo"},
     "User: Hi\n\nBe brief.\n\nAssistant: Yo$",
     " Yo$"},
    {"deepseek_v3", {"uHi", "aYo"}, "<｜User｜>Hi<｜Assistant｜>Yo$", "Yo$"},
    {"deepseek_v3",
     {"sBe kind.", "uHi", "aYo", "uAnd?", "aNo."},
     "Be kind.<｜User｜>Hi<｜Assistant｜>Yo$<｜User｜>And?<｜Assistant｜>No.$",
     "Yo$No.$"},
    {"deepseek_v3",
     {"uHi", "sOne.", "a<think>\nwell\n</think>\n\nYo", "sTwo."},
     "One.\n\nTwo.<｜User｜>Hi<｜Assistant｜><think>\nwell\n</think>\n\nYo$",
     "<think>\nwell\n</think>\n\nYo$"},
    {"deepseek_v3", {"a"}, "<｜Assistant｜>$", "$"},
};

static void test_text_of_templates(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct encoded e;
        char text[512] = "", counted[512] = "";
        size_t more = 0;
        good(encode(&e, "bytes", cases[i].template, cases[i].messages));
        assert_int_equal(e.ids.count, e.mask.count);
        for (size_t t = 0; t < e.ids.count; t++) {
            const uint32_t id = e.ids.data[t];
            text[t] = id == TOKENIZER_BYTES_EOS ? '$' : (char)id;
            assert_true(e.mask.data[t] == 0 || e.mask.data[t] == 1);
            if (e.mask.data[t] == 1) {
                counted[more++] = text[t];
            }
        }
        assert_string_equal(text, cases[i].text);
        assert_string_equal(counted, cases[i].counted);
        close_encoded(&e);
    }
}

/* The tokenizer of the tests, one of its added tokens renamed. */
static void put_tokenizer(void)
{
    char *text = NULL, *place;
    size_t bytes = 0;
    struct byte_list out = {0};
    static const char old[] = "\"[INST]\"", new[] = "\"<｜Assistant｜>\"";
    good(io_read_file(SOURCE_DIR "/tests/tokenizers/files/deepseek_v3.json", &text, &bytes,
                      1 << 24));
    place = strstr(text, old);
    assert_non_null(place);
    good(byte_list_add(&out, text, (size_t)(place - text)));
    good(byte_list_add(&out, new, sizeof new - 1));
    good(byte_list_add(&out, place + sizeof old - 1,
                       bytes - (size_t)(place - text) - sizeof old + 1));
    good(io_write_file("tokenizer.json", out.data, out.count));
    byte_list_free(&out);
    free(text);
}

static void test_special_tokens(void **state)
{
    (void)state;
    static const char *const messages[MOST] = {"sBe kind.", "uHi", "aYo"};
    struct encoded e;
    struct id_list parts = {0};
    put_tokenizer();
    good(encode(&e, "tokenizer.json", "deepseek_v3", messages));
    const struct tokenizer *tokenizer = &e.tokenizer;
    const int64_t user = tokenizer_find(tokenizer, "<｜User｜>"),
                  answer = tokenizer_find(tokenizer, "<｜Assistant｜>");
    assert_true(user >= 0 && answer >= 0 && tokenizer->bos_id >= 0);
    good(id_list_add(&parts, (uint32_t)tokenizer->bos_id));
    good(encoder_run(&e.encoder, "Be kind.", 8, &parts));
    good(id_list_add(&parts, (uint32_t)user));
    good(encoder_run(&e.encoder, "Hi", 2, &parts));
    good(id_list_add(&parts, (uint32_t)answer));
    const size_t prompt = parts.count;
    good(encoder_run(&e.encoder, "Yo", 2, &parts));
    good(id_list_add(&parts, (uint32_t)tokenizer->eos_id));
    assert_int_equal(e.ids.count, parts.count);
    assert_memory_equal(e.ids.data, parts.data, parts.count * sizeof *parts.data);
    for (size_t t = 0; t < parts.count; t++) {
        assert_int_equal(e.mask.data[t], t >= prompt);
    }
    id_list_free(&parts);
    close_encoded(&e);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *tokenizer, *template;
        const char *messages[MOST];
        enum status status;
        const char *part;
    } refused[] = {
        {"bytes", "llama", {"uHi"}, STATUS_USAGE, "'llama': use mixtral, deepseek_v2 or"},
        {SOURCE_DIR "/tests/tokenizers/files/deepseek_v3.json",
         "deepseek_v3",
         {"uHi"},
         STATUS_USAGE,
         "needs the token <｜Assistant｜>"},
        {"bytes", "mixtral", {"aYo"}, STATUS_DATA, "message 0"},
        {"bytes", "mixtral", {"uHi", "uHo"}, STATUS_DATA, "message 1"},
        {"bytes", "mixtral", {"sA", "uHi", "aYo", "aYo"}, STATUS_DATA, "message 3"},
        {"bytes", "mixtral", {"uHi", "sA"}, STATUS_DATA, "message 1"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        struct encoded e;
        assert_int_equal(encode(&e, refused[i].tokenizer, refused[i].template, refused[i].messages),
                         refused[i].status);
        expect_message(refused[i].part);
        close_encoded(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_of_templates),
        SCRATCH_TEST(test_special_tokens),
        SCRATCH_TEST(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
