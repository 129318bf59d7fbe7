/* json_out: the two kinds of JSON values that plain printf gets wrong: numbers that may not be
 * finite, and text that may hold quotes.
 *
 * Every --json of a command and metrics.jsonl print them through here, so what they print is always
 * JSON.
 */
#ifndef KERNELS_BASE_JSON_OUT_H
#define KERNELS_BASE_JSON_OUT_H

#include <stdio.h>

/* `before` as it stands (",\"name\":", say), then the value with this many digits: null where it is
 * not finite, for JSON has no inf and no nan. */
void json_out_number(FILE *out, const char *before, double value, int digits);
/* `before`, then the text in quotes, escaped; bytes that are not UTF-8 become U+FFFD. */
void json_out_text(FILE *out, const char *before, const char *text);

#endif
