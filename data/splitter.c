#include "data/splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>

#include "data/pattern.h"
#include "data/unicode_new.h"
#include "data/utf8.h"

enum { MOST_STEPS = 16, STACK_BYTES = 32 << 10, MOST_STACK_BYTES = 16 << 20 };

struct splitter {
    struct step {
        pcre2_code *code[2]; /* owned: for texts without and with characters of unicode_new.h */
        enum split_keep keep;
    } steps[MOST_STEPS];
    int count;
};

struct splitter_scratch {
    pcre2_match_data *match; /* owned, all three */
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

enum status splitter_open(struct splitter **splitter)
{
    *splitter = calloc(1, sizeof **splitter);
    return *splitter != NULL ? STATUS_OK
                             : status_fail(STATUS_RESOURCE, "out of memory for a tokenizer");
}

void splitter_close(struct splitter *splitter)
{
    for (int i = 0; splitter != NULL && i < splitter->count; i++) {
        pcre2_code_free(splitter->steps[i].code[0]);
        pcre2_code_free(splitter->steps[i].code[1]);
    }
    free(splitter);
}

static enum status compile(pcre2_code **code, const char *pattern, size_t bytes)
{
    int error = 0;
    PCRE2_SIZE where = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a pattern");
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    *code = pcre2_compile((PCRE2_SPTR)pattern, bytes,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                          &where, context);
    pcre2_compile_context_free(context);
    if (*code == NULL) {
        char why[256];
        pcre2_get_error_message(error, (PCRE2_UCHAR *)why, sizeof why);
        return status_fail(STATUS_DATA, "pattern '%.*s', byte %zu: %s",
                           bytes < 200 ? (int)bytes : 200, pattern, (size_t)where, why);
    }
    pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE); /* where it fails, matching is slower */
    return STATUS_OK;
}

enum status splitter_add(struct splitter *splitter, const char *pattern, size_t bytes, bool quote,
                         enum split_keep keep)
{
    if (splitter->count == MOST_STEPS) {
        return status_fail(STATUS_DATA, "more than %d patterns to split by", MOST_STEPS);
    }
    struct step *step = &splitter->steps[splitter->count++];
    *step = (struct step){.keep = keep};
    for (int new = 0; new < 2; new ++) {
        struct byte_list translated = {0};
        enum status status = quote ? pattern_quote(&translated, pattern, bytes)
                                   : pattern_translate(&translated, pattern, bytes, new != 0);
        status = status == STATUS_OK ? byte_list_add(&translated, "", 0) : status;
        status = status == STATUS_OK ? compile(&step->code[new], translated.data, translated.count)
                                     : status;
        byte_list_free(&translated);
        TRY(status);
    }
    return STATUS_OK;
}

enum status splitter_scratch_open(struct splitter_scratch **out)
{
    struct splitter_scratch *scratch = calloc(1, sizeof *scratch);
    *out = scratch;
    if (scratch != NULL) {
        scratch->match = pcre2_match_data_create(1, NULL);
        scratch->context = pcre2_match_context_create(NULL);
        scratch->stack = pcre2_jit_stack_create(STACK_BYTES, MOST_STACK_BYTES, NULL);
    }
    if (scratch == NULL || scratch->match == NULL || scratch->context == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory to match patterns");
    }
    if (scratch->stack != NULL) { /* NULL where there is no machine code */
        pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    }
    return STATUS_OK;
}

void splitter_scratch_close(struct splitter_scratch *scratch)
{
    if (scratch != NULL) {
        pcre2_match_data_free(scratch->match);
        pcre2_match_context_free(scratch->context);
        pcre2_jit_stack_free(scratch->stack);
    }
    free(scratch);
}

/* What a call of splitter_run works on. */
struct run {
    const struct splitter *splitter;
    struct splitter_scratch *scratch;
    int which; /* of a step's two patterns */
    enum status (*use)(void *context, const char *piece, size_t bytes);
    void *context;
};

static enum status gave_up(int code)
{
    char why[256];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return status_fail(STATUS_DATA, "a pattern of the tokenizer gives up on this text: %s", why);
}

/* Pieces of the steps from number `step` on. */
static enum status split(const struct run *run, int step, const char *text, size_t bytes)
{
    if (bytes == 0) {
        return STATUS_OK;
    }
    if (step == run->splitter->count) {
        return run->use(run->context, text, bytes);
    }
    const struct step *how = &run->splitter->steps[step];
    const PCRE2_SIZE *match = pcre2_get_ovector_pointer(run->scratch->match);
    size_t done = 0, from = 0;
    while (from < bytes) {
        const int found =
            pcre2_match(how->code[run->which], (PCRE2_SPTR)text, bytes, from, PCRE2_NO_UTF_CHECK,
                        run->scratch->match, run->scratch->context);
        if (found == PCRE2_ERROR_NOMATCH) {
            break;
        }
        if (found < 0) {
            return gave_up(found);
        }
        const size_t begin = match[0], end = match[1];
        if (end == begin) { /* an empty match cuts nothing: on to the next character */
            from = end + 1;
            while (from < bytes && ((unsigned char)text[from] & 0xc0) == 0x80) {
                from++;
            }
            continue;
        }
        if (how->keep != SPLIT_KEEP_MATCHES) {
            TRY(split(run, step + 1, text + done, begin - done));
        }
        if (how->keep != SPLIT_KEEP_GAPS) {
            TRY(split(run, step + 1, text + begin, end - begin));
        }
        done = from = end;
    }
    return how->keep != SPLIT_KEEP_MATCHES ? split(run, step + 1, text + done, bytes - done)
                                           : STATUS_OK;
}

/* Whether a character of unicode_new.h is in the text; the least is U+0897, of three bytes. */
static bool has_new(const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        const unsigned char lead = (unsigned char)text[at];
        if (lead < 0xe0) {
            at++; /* continuation bytes too */
            continue;
        }
        const int length = lead < 0xf0 ? 3 : 4;
        if (unicode_is_new(utf8_character(text + at, length))) {
            return true;
        }
        at += (size_t)length;
    }
    return false;
}

enum status splitter_run(const struct splitter *splitter, struct splitter_scratch *scratch,
                         const char *text, size_t bytes,
                         enum status (*use)(void *context, const char *piece, size_t bytes),
                         void *context)
{
    const struct run run = {.splitter = splitter,
                            .scratch = scratch,
                            .which = has_new(text, bytes),
                            .use = use,
                            .context = context};
    return split(&run, 0, text, bytes);
}
