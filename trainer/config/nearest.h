/* nearest: "did you mean ...?" for keys, commands and options. */
#ifndef TRAINER_NEAREST_H
#define TRAINER_NEAREST_H

/* Edit distance (Levenshtein 1966); words longer than 64 letters are far from everything. */
int nearest_distance(const char *a, const char *b);

/* The nearest of `count` known words, or NULL when none is near. */
const char *nearest_word(const char *word, const char *const *known, int count);

#endif
