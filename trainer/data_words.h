/* data_words: what a run says of its training data before it starts. */
#ifndef TRAINER_DATA_WORDS_H
#define TRAINER_DATA_WORDS_H

#include "trainer/metrics.h"
#include "trainer/sources.h"

/* Rank 0: what each source does to its tokens, and what of them is not used. */
void data_words(const struct sources *sources, struct metrics *metrics);

#endif
