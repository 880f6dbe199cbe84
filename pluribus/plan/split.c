/* Cuts layers over unlike stages (split.py); `split_numpy` is its twin and gives the same bits. */
#include <math.h>
#include <stdint.h>

/* Ends of the stages of the cut with the least maximum cost, and of those with the least total, the
 * earliest: [stages + 1], the first of them 0. costs[s][a * size + b] is what layers [a, b) cost on
 * stage s, infinite where it cannot hold them. `work` has room for 2 * size, `choices` for
 * stages * size. Returns 1, or 0 where no cut is possible. */
int pluribus_split(int64_t stages, int64_t size, const double *const *costs, double *work,
                   int64_t *choices, int64_t *ends) {
    double *now = work, *next = work + size;
    for (int64_t b = 0; b < size; b++) now[b] = INFINITY;
    now[0] = -INFINITY;
    for (int64_t s = 0; s < stages; s++) {
        int64_t end = size - (stages - 1 - s); /* every later stage takes a layer at least */
        for (int64_t b = 0; b < size; b++) next[b] = INFINITY;
        for (int64_t a = s; a < end; a++) {
            double before = now[a];
            if (before == INFINITY) continue;
            const double *cost = costs[s] + a * size;
            for (int64_t b = a + 1; b < end; b++) {
                double most = before > cost[b] ? before : cost[b];
                next[b] = most < next[b] ? most : next[b];
            }
        }
        double *swap = now;
        now = next, next = swap;
    }
    double bound = now[size - 1];
    if (!isfinite(bound)) return 0;
    for (int64_t b = 0; b < size; b++) now[b] = INFINITY;
    now[0] = 0.0;
    for (int64_t s = 0; s < stages; s++) {
        int64_t end = size - (stages - 1 - s), *choice = choices + s * size;
        for (int64_t b = 0; b < size; b++) next[b] = INFINITY, choice[b] = 0;
        for (int64_t a = s; a < end; a++) {
            double before = now[a];
            if (before == INFINITY) continue;
            const double *cost = costs[s] + a * size;
            for (int64_t b = a + 1; b < end; b++) {
                double sum = before + cost[b];
                int less = cost[b] <= bound && sum < next[b];
                next[b] = less ? sum : next[b];
                choice[b] = less ? a : choice[b];
            }
        }
        double *swap = now;
        now = next, next = swap;
    }
    ends[stages] = size - 1;
    for (int64_t s = stages - 1; s >= 0; s--) ends[s] = choices[s * size + ends[s + 1]];
    return 1;
}
