/* tokenizer_train: a byte-level BPE tokenizer learnt from text, as a tokenizer.json that the
 * tokenizers library and tokenizer_open read alike.
 *
 * Ids: special tokens in the order given, the 256 bytes (in the order of the characters that stand
 * for them), then one per merge. The same texts in any order give the same file.
 */
#ifndef DATA_TOKENIZER_TRAIN_H
#define DATA_TOKENIZER_TRAIN_H

#include "data/bpe_train.h"
#include "data/tokenizer.h"

/* How text is cut before pairs are counted: "deepseek-v3", "llama3", "qwen2", "gpt2"; NULL after
 * the last. */
const char *tokenizer_train_pattern(int i);

struct tokenizer_train {
    int64_t vocab_size;    /* wanted */
    const char *pattern;   /* one of the names above; borrowed */
    const char **specials; /* [special_count + 1] owned, the texts borrowed */
    int special_count;
    struct tokenizer plain; /* without merges: cuts the text */
    struct encoder encoder;
    struct bpe_train words;
    /* by tokenizer_train_finish */
    struct token_table tokens;
    void *json; /* owned: the file so far */
    int64_t merges, texts, bytes;
};

/* Local. special: [count], borrowed; where none of them is known to end a document,
 * "<|endoftext|>" becomes the first. Errors: STATUS_USAGE: too small a vocabulary, no such pattern,
 * a special token that is empty, not UTF-8 or given twice; STATUS_RESOURCE. Close it either way. */
enum status tokenizer_train_open(struct tokenizer_train *train, int64_t vocab_size,
                                 const char *pattern, const char *const *special, int count)
    __attribute__((warn_unused_result));
/* Local. Counts the words of a text, in any bytes; special tokens in it are no words. */
enum status tokenizer_train_add(struct tokenizer_train *train, const char *text, size_t bytes)
    __attribute__((warn_unused_result));
/* Local. Learns the merges, of pairs that occur twice or more, and appends the tokenizer.json.
 * *vocab_size: what came of it, less than wanted where the text has no more pairs. Errors:
 * STATUS_RESOURCE. */
enum status tokenizer_train_finish(struct tokenizer_train *train, struct byte_list *out,
                                   int64_t *vocab_size) __attribute__((warn_unused_result));
void tokenizer_train_close(struct tokenizer_train *train); /* accepts a zeroed one */

#endif
