/* prepare_journal: how far an interrupted prepare got, beside its output: OUT.journal, a few lines
 * of JSON; OUT.hashes.tmp, 16 bytes for each document kept, where equal ones are left out;
 * OUT.lock, held while prepare writes.
 *
 * A journal is written after what it speaks of has reached the disk. It names a hash of the inputs
 * (paths, sizes, times) and of all options that say what is written; one of another is not used.
 */
#ifndef DATA_PREPARE_JOURNAL_H
#define DATA_PREPARE_JOURNAL_H

#include "data/document_set.h"
#include "data/prepare_encode.h"

/* Where a run stands between two batches. */
struct prepare_state {
    int64_t batches;
    struct token_position end;
    int64_t masked;   /* any document so far has a mask */
    int64_t hashes;   /* in OUT.hashes.tmp */
    int64_t left_out; /* the text whose pieces are under way is, for it is binary: 0 or 1 */
    struct prepare_summary counts;
};

struct prepare_journal {
    char path[4096], hashes_path[4096], lock_path[4096];
    uint64_t request; /* hash of what is asked for */
    struct io_file lock, hashes;
    int64_t hash_count; /* in OUT.hashes.tmp */
    bool there;         /* OUT.journal is, and is of this request */
};

/* Local, one process. Takes the lock; *state is where to go on, zeroed: at the beginning. *why:
 * what to tell the user of an earlier run that cannot be gone on with, or NULL. Errors:
 * STATUS_USAGE when another prepare writes this output; STATUS_IO. Close it either way. */
enum status prepare_journal_open(struct prepare_journal *journal, const struct prepare_rules *rules,
                                 struct prepare_state *state, const char **why)
    __attribute__((warn_unused_result));
/* Local. Opens OUT.hashes.tmp: the first state->hashes stay. */
enum status prepare_journal_hashes(struct prepare_journal *journal, int64_t keep)
    __attribute__((warn_unused_result));
enum status prepare_journal_add(struct prepare_journal *journal, const struct hash128 *hashes,
                                int64_t count) __attribute__((warn_unused_result));
/* Local, any process. Puts the hashes that stand there into a set. */
enum status prepare_journal_read(const char *output, int64_t hashes, struct document_set *set)
    __attribute__((warn_unused_result));
/* Local. What `state` speaks of is on the disk but for the hashes. */
enum status prepare_journal_save(struct prepare_journal *journal, const struct prepare_state *state)
    __attribute__((warn_unused_result));
/* Lets go of the lock; keep false: removes its files too. Accepts a zeroed one. */
void prepare_journal_close(struct prepare_journal *journal, bool keep);

#endif
