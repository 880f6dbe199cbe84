/* The table of the pricing problem (pricing.py), lane by lane; `Solution._fill_numpy` is its twin
 * and gives the same bits: the same sums in the same order, minima of finite numbers and infinity.
 *
 * Layers alike make runs alike, so that a length of runs has few unlike costs: a *segment* says
 * that runs [a, a + q) are of one kind for all a in [begin, end). Its loop over a has a scalar cost
 * and two contiguous rows.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int64_t layers, kinds, runs, senders, pools, segments;
    const double *seconds;         /* [kinds, runs] */
    const int64_t *held;           /* [kinds, runs] micro-batches that fit */
    const int64_t *lengths;        /* [runs] layers */
    const double *prices;          /* [kinds] of the chips */
    const double *tails;           /* [kinds, layers] of the runs from layer 0 */
    const int64_t *openings;       /* [layers] the runs from layer 0 of 1, 2, ... layers */
    const int64_t *sender_of;      /* [kinds] */
    const int64_t *pool_of_sender; /* [senders] */
    const double *hops;            /* [senders, pools] seconds */
    const int64_t *segment;        /* [segments, 4] length, begin, end, run; by length */
} Problem;

typedef struct { /* see `Lanes` in pricing.py */
    double cap, stage, hop, tail, first, first_hop, least, budget;
} Lane;

static void add_rows(double *restrict into, const double *restrict onward, double cost, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double value = cost + onward[i];
        into[i] = value < into[i] ? value : into[i];
    }
}

/* The cheapest kind of each sender for every run, of kinds that hold `depth` micro-batches. */
static void cheapest_kinds(const Problem *p, const double *cost, int64_t depth, double *best) {
    for (int64_t i = 0; i < p->senders * p->runs; i++) best[i] = INFINITY;
    for (int64_t k = 0; k < p->kinds; k++) {
        double *row = best + p->sender_of[k] * p->runs;
        for (int64_t r = 0; r < p->runs; r++) {
            double value = p->held[k * p->runs + r] >= depth ? cost[k * p->runs + r] : INFINITY;
            row[r] = value < row[r] ? value : row[r];
        }
    }
}

/* [senders, layers + 1] the price of the later stages and the message to them. */
static void go_on(const Problem *p, const double *old, double hop, double *onward) {
    const int64_t width = p->layers + 1;
    for (int64_t i = 0; i < p->senders * width; i++) onward[i] = INFINITY;
    for (int64_t s = 0; s < p->senders; s++)
        for (int64_t q = 0; q < p->pools; q++)
            add_rows(onward + s * width, old + q * width, hop * p->hops[s * p->pools + q], width);
}

/* One lane. `values` [layers] and `table` [layers, pools, layers + 1] or NULL to be filled;
 * `work` as large as `work_size` says. Returns the depths filled; the others are left alone. */
static int64_t fill(const Problem *p, const Lane *lane, int64_t hold, double *values, double *table,
                    double *work) {
    const double cap = lane->cap, stage = lane->stage, hop = lane->hop, budget = lane->budget;
    const int64_t L = p->layers, R = p->runs, width = L + 1;
    double *cost = work;                   /* [kinds, runs] */
    double *best = cost + p->kinds * R;    /* [senders, runs] */
    double *before = best + p->senders * R; /* [width] */
    double *onward = before + width;       /* [senders, width] */
    double *ahead = onward + p->senders * width; /* [senders, width] of a first stage */
    double *mine = ahead + p->senders * width; /* [width] */
    double *two = mine + width;            /* [2, pools, width] where no table is kept */
    double layer = INFINITY, opening = INFINITY;
    const double lesser = lane->first < stage ? lane->first : stage;
    int64_t longest = 0;
    for (int64_t k = 0; k < p->kinds; k++)
        for (int64_t r = 0; r < R; r++) {
            int64_t i = k * R + r;
            cost[i] = INFINITY;
            if (p->seconds[i] > cap) continue;
            cost[i] = stage * p->seconds[i] + p->prices[k];
            double each = cost[i] / (double)p->lengths[r];
            if (each < layer) layer = each;
            each = (lesser * p->seconds[i] + p->prices[k]) / (double)p->lengths[r];
            if (each < opening) opening = each;
            if (p->lengths[r] > longest) longest = p->lengths[r];
        }
    if (!(layer < INFINITY)) return 0;
    /* Of the layers not yet held; the first stage may come cheaper than the others. */
    const double saved = (stage - lesser) * cap;
    for (int64_t a = 0; a < width; a++) {
        double least = (double)a * opening, most = (double)a * layer - saved;
        before[a] = most > least ? most : least;
    }
    int64_t last = -1;
    for (int64_t depth = 1; depth <= L; depth++) {
        int64_t held = depth < hold ? depth : hold;
        if (held != last) cheapest_kinds(p, cost, held, best);
        last = held;
        double *now = table ? table + (depth - 1) * p->pools * width
                            : two + (depth & 1) * p->pools * width;
        const double *old = table ? now - p->pools * width
                                  : two + ((depth & 1) ^ 1) * p->pools * width;
        for (int64_t i = 0; i < p->pools * width; i++) now[i] = INFINITY;
        int64_t low = width, high = -1; /* layers from which the later stages go on */
        if (depth > 1) {
            go_on(p, old, hop, onward);
            for (int64_t i = 0; i < p->senders * width; i++)
                if (onward[i] < INFINITY) {
                    int64_t a = i % width;
                    if (a < low) low = a;
                    if (a > high) high = a;
                }
            if (lane->first_hop != hop) go_on(p, old, lane->first_hop, ahead);
        }
        for (int64_t s = 0; s < p->senders; s++) {
            for (int64_t a = 0; a < width; a++) mine[a] = INFINITY;
            for (int64_t i = 0; i < p->segments; i++) {
                const int64_t *g = p->segment + 4 * i;
                int64_t q = g[0], begin = g[1], end = g[2];
                if (q > longest) break;
                double c = best[s * R + g[3]];
                if (!(c < INFINITY)) continue;
                if (depth == 1) {
                    if (end == L - q + 1) mine[L - q] = c;
                    continue;
                }
                if (begin < low - q) begin = low - q;
                if (end > high - q + 1) end = high - q + 1;
                if (end > begin)
                    add_rows(mine + begin, onward + s * width + begin + q, c, end - begin);
            }
            double *row = now + p->pool_of_sender[s] * width;
            for (int64_t a = 0; a < width; a++) row[a] = mine[a] < row[a] ? mine[a] : row[a];
        }
        double first = INFINITY;
        for (int64_t k = 0; k < p->kinds; k++) {
            const double *row =
                (lane->first_hop != hop ? ahead : onward) + p->sender_of[k] * width;
            for (int64_t q = depth == 1 ? L : 1; q <= longest; q++) {
                int64_t i = k * R + p->openings[q - 1];
                if (p->held[i] < held || p->seconds[i] > cap || p->seconds[i] < lane->least)
                    continue;
                double v = lane->first * p->seconds[i] + p->prices[k];
                v += lane->tail * p->tails[k * L + q - 1];
                if (depth > 1) v += row[q];
                first = v < first ? v : first;
            }
        }
        values[depth - 1] = first;
        int open = 0;
        for (int64_t q = 0; q < p->pools; q++)
            for (int64_t a = 0; a < width; a++) {
                double *v = now + q * width + a;
                if (*v + before[a] <= budget) open = 1;
                else *v = INFINITY;
            }
        if (!open) return depth;
    }
    return L;
}

static size_t work_size(const Problem *p) {
    return p->kinds * p->runs + p->senders * p->runs + (p->layers + 1) * (2 + 2 * p->senders) +
           2 * p->pools * (p->layers + 1);
}

/* All lanes; values [lanes, layers] come filled with infinity; tables [lanes, layers, pools,
 * layers + 1] or NULL. Returns the most depths filled, or -1 where there is no memory. */
int64_t pluribus_price(const Problem *p, int64_t lanes, const Lane *lane, int64_t hold,
                       double *values, double *tables) {
    double *work = malloc(work_size(p) * sizeof(double));
    if (!work) return -1;
    int64_t most = 0;
    size_t each = (size_t)(p->layers * p->pools * (p->layers + 1));
    for (int64_t i = 0; i < lanes; i++) {
        int64_t depths = fill(p, lane + i, hold, values + i * p->layers,
                              tables ? tables + i * each : NULL, work);
        most = depths > most ? depths : most;
    }
    free(work);
    return most;
}
