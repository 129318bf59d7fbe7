#include "trainer/config/nearest.h"

#include <stddef.h>
#include <string.h>

int nearest_distance(const char *a, const char *b)
{
    enum { MOST = 64 };
    int row[MOST + 1];
    const int n = (int)strlen(a), m = (int)strlen(b);
    if (n > MOST || m > MOST) {
        return MOST;
    }
    for (int j = 0; j <= m; j++) {
        row[j] = j;
    }
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            const int above = row[j], swap = diagonal + (a[i - 1] != b[j - 1]);
            int least = above + 1 < row[j - 1] + 1 ? above + 1 : row[j - 1] + 1;
            row[j] = swap < least ? swap : least;
            diagonal = above;
        }
    }
    return row[m];
}

const char *nearest_word(const char *word, const char *const *known, int count)
{
    const char *best = NULL;
    int least = (int)strlen(word) / 3 + 2;
    for (int i = 0; i < count; i++) {
        const int distance = nearest_distance(word, known[i]);
        if (distance < least) {
            least = distance;
            best = known[i];
        }
    }
    return best;
}
