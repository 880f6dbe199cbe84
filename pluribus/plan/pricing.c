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
    const double *dearer_here;     /* [senders] see `Dearer` in pricing.py */
    const double *dearer;          /* [senders] */
    const double *farther;         /* [pools] */
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

/* What a lane works with; K kinds, A runs and Q lengths that its cap allows, S senders. */
typedef struct {
    double *cost, *opening;        /* [K, A] and of a first stage [K, Q] */
    int64_t *held, *held_opening;  /* [K, A], [K, Q] micro-batches that fit */
    double *best, *first;          /* [S, A], [S, Q] of the cheapest kinds that hold enough */
    double *least;                 /* [1 + pools, A] of all senders, and of each pool's */
    double *before;                /* [width] price of the layers before a layer, at least */
    double *onward, *ahead;        /* [S, width] of the later stages and the message to them */
    double *two;                   /* [2, pools, width] where no table is kept */
    int64_t *place;                /* [runs] position among the A, or -1 */
    int64_t *segment;              /* [segments, 4] those of the A: length, begin, end, place */
    int64_t segments;
} Work;

static void *take(char **at, int64_t count) {
    void *start = *at;
    *at += count * 8;
    return start;
}

/* Parts a block of memory, or with `at` at NULL tells how many bytes it has. */
static size_t part(const Problem *p, Work *w, char *at) {
    char *begin = at;
    const int64_t K = p->kinds, R = p->runs, S = p->senders, L = p->layers, width = L + 1;
    w->cost = take(&at, K * R), w->opening = take(&at, K * L);
    w->held = take(&at, K * R), w->held_opening = take(&at, K * L);
    w->best = take(&at, S * R), w->first = take(&at, S * L);
    w->least = take(&at, (1 + p->pools) * R), w->before = take(&at, width);
    w->onward = take(&at, S * width), w->ahead = take(&at, S * width);
    w->two = take(&at, 2 * p->pools * width);
    w->place = take(&at, R), w->segment = take(&at, 4 * p->segments);
    return (size_t)(at - begin);
}

/* The cheapest kind of each sender, of kinds that hold `depth` micro-batches. */
static void cheapest_kinds(const Problem *p, const double *cost, const int64_t *held,
                           int64_t depth, int64_t n, double *best) {
    for (int64_t i = 0; i < p->senders * n; i++) best[i] = INFINITY;
    for (int64_t k = 0; k < p->kinds; k++) {
        double *restrict row = best + p->sender_of[k] * n;
        const double *restrict mine = cost + k * n;
        const int64_t *restrict fits = held + k * n;
        for (int64_t r = 0; r < n; r++) {
            double value = fits[r] >= depth ? mine[r] : INFINITY;
            row[r] = value < row[r] ? value : row[r];
        }
    }
}

/* Leaves out what no cheapest pipeline needs: a sender that costs more for a run than the cheapest
 * one of its pool, or of all, together with what messages after and before that one may cost. */
static void without_dominated(const Problem *p, const Lane *lane, const Work *w, int64_t n) {
    double *restrict all = w->least;
    for (int64_t i = 0; i < (1 + p->pools) * n; i++) w->least[i] = INFINITY;
    for (int64_t s = 0; s < p->senders; s++) {
        double *restrict pool = w->least + (1 + p->pool_of_sender[s]) * n;
        const double *restrict mine = w->best + s * n;
        for (int64_t r = 0; r < n; r++) {
            pool[r] = mine[r] < pool[r] ? mine[r] : pool[r];
            all[r] = mine[r] < all[r] ? mine[r] : all[r];
        }
    }
    const double before = lane->first_hop > lane->hop ? lane->first_hop : lane->hop;
    for (int64_t s = 0; s < p->senders; s++) {
        const int64_t q = p->pool_of_sender[s];
        const double *restrict pool = w->least + (1 + q) * n;
        double *restrict mine = w->best + s * n;
        const double here = lane->hop * p->dearer_here[s];
        const double anywhere = lane->hop * p->dearer[s] + before * p->farther[q];
        for (int64_t r = 0; r < n; r++) {
            int keep = mine[r] <= pool[r] + here && mine[r] <= all[r] + anywhere;
            mine[r] = keep ? mine[r] : INFINITY;
        }
    }
}

/* [senders, layers + 1] the price of the later stages from layers low to high on. */
static void go_on(const Problem *p, const double *old, double hop, int64_t low, int64_t high,
                  double *onward) {
    const int64_t width = p->layers + 1, n = high - low + 1;
    /* Where messages are free, all senders go on alike. */
    const int64_t unlike = hop > 0 ? p->senders : 1;
    for (int64_t s = 0; s < p->senders; s++) {
        double *row = onward + s * width + low;
        if (s >= unlike) {
            memcpy(row, onward + low, n * sizeof(double));
            continue;
        }
        for (int64_t a = 0; a < n; a++) row[a] = INFINITY;
        for (int64_t q = 0; q < p->pools; q++)
            add_rows(row, old + q * width + low, hop * p->hops[s * p->pools + q], n);
    }
}

/* One lane. `values` [layers] and `table` [layers, pools, layers + 1] or NULL to be filled.
 * Returns the depths filled; the others are left alone. */
static int64_t fill(const Problem *p, const Lane *lane, int64_t hold, double *values, double *table,
                    Work *w) {
    const double cap = lane->cap, stage = lane->stage, budget = lane->budget;
    const int64_t L = p->layers, R = p->runs, K = p->kinds, S = p->senders, width = L + 1;
    double layer = INFINITY, opening = INFINITY;
    const double lesser = lane->first < stage ? lane->first : stage;
    int64_t longest = 0, runs = 0;
    for (int64_t r = 0; r < R; r++) w->place[r] = -1;
    for (int64_t k = 0; k < K; k++)
        for (int64_t r = 0; r < R; r++) {
            int64_t i = k * R + r;
            if (p->seconds[i] > cap) continue;
            double each = (stage * p->seconds[i] + p->prices[k]) / (double)p->lengths[r];
            if (each < layer) layer = each;
            each = (lesser * p->seconds[i] + p->prices[k]) / (double)p->lengths[r];
            if (each < opening) opening = each;
            if (p->lengths[r] > longest) longest = p->lengths[r];
            w->place[r] = 0;
        }
    if (!(layer < INFINITY)) return 0;
    for (int64_t r = 0; r < R; r++)
        if (w->place[r] == 0) w->place[r] = runs++;
    for (int64_t k = 0; k < K; k++) {
        for (int64_t r = 0; r < R; r++) {
            if (w->place[r] < 0) continue;
            int64_t i = k * R + r, at = k * runs + w->place[r];
            w->cost[at] = p->seconds[i] > cap ? INFINITY : stage * p->seconds[i] + p->prices[k];
            w->held[at] = p->held[i];
        }
        for (int64_t q = 1; q <= longest; q++) {
            int64_t i = k * R + p->openings[q - 1], at = k * longest + q - 1;
            double v = lane->first * p->seconds[i] + p->prices[k];
            v += lane->tail * p->tails[k * L + q - 1];
            w->opening[at] = p->seconds[i] > cap || p->seconds[i] < lane->least ? INFINITY : v;
            w->held_opening[at] = p->held[i];
        }
    }
    w->segments = 0;
    for (int64_t i = 0; i < p->segments; i++) {
        const int64_t *g = p->segment + 4 * i;
        if (g[0] > longest) break;
        if (w->place[g[3]] < 0) continue;
        int64_t *mine = w->segment + 4 * w->segments++;
        mine[0] = g[0], mine[1] = g[1], mine[2] = g[2], mine[3] = w->place[g[3]];
    }
    /* Of the layers not yet held; the first stage may come cheaper than the others. */
    const double saved = (stage - lesser) * cap;
    for (int64_t a = 0; a < width; a++) {
        double least = (double)a * opening, most = (double)a * layer - saved;
        w->before[a] = most > least ? most : least;
    }
    int64_t last = -1, low = 0, high = -1; /* layers from which the later stages go on */
    for (int64_t depth = 1; depth <= L; depth++) {
        int64_t held = depth < hold ? depth : hold;
        if (held != last) {
            cheapest_kinds(p, w->cost, w->held, held, runs, w->best);
            cheapest_kinds(p, w->opening, w->held_opening, held, longest, w->first);
            without_dominated(p, lane, w, runs);
        }
        last = held;
        double *now = table ? table + (depth - 1) * p->pools * width
                            : w->two + (depth & 1) * p->pools * width;
        const double *old = table ? now - p->pools * width
                                  : w->two + ((depth & 1) ^ 1) * p->pools * width;
        for (int64_t i = 0; i < p->pools * width; i++) now[i] = INFINITY;
        const double *ahead = w->onward;
        if (depth > 1) {
            go_on(p, old, lane->hop, low, high, w->onward);
            if (lane->first_hop != lane->hop) {
                go_on(p, old, lane->first_hop, low, high, w->ahead);
                ahead = w->ahead;
            }
        }
        for (int64_t s = 0; s < S; s++) {
            double *row = now + p->pool_of_sender[s] * width;
            const double *best = w->best + s * runs, *onward = w->onward + s * width;
            for (int64_t i = 0; i < w->segments; i++) {
                const int64_t *g = w->segment + 4 * i;
                int64_t q = g[0], begin = g[1], end = g[2];
                double c = best[g[3]];
                if (!(c < INFINITY)) continue;
                if (depth == 1) {
                    if (end == L - q + 1 && c < row[L - q]) row[L - q] = c;
                    continue;
                }
                if (begin < low - q) begin = low - q;
                if (end > high - q + 1) end = high - q + 1;
                if (end > begin) add_rows(row + begin, onward + begin + q, c, end - begin);
            }
        }
        double first = INFINITY;
        for (int64_t s = 0; s < S; s++) {
            const double *mine = w->first + s * longest, *row = ahead + s * width;
            if (depth == 1) {
                if (longest == L && mine[L - 1] < first) first = mine[L - 1];
                continue;
            }
            int64_t end = longest < high ? longest : high;
            for (int64_t q = low > 1 ? low : 1; q <= end; q++) {
                double v = mine[q - 1] + row[q];
                first = v < first ? v : first;
            }
        }
        values[depth - 1] = first;
        low = width, high = -1;
        for (int64_t q = 0; q < p->pools; q++)
            for (int64_t a = 0; a < width; a++) {
                double *v = now + q * width + a;
                if (*v + w->before[a] <= budget) {
                    if (a < low) low = a;
                    if (a > high) high = a;
                } else
                    *v = INFINITY;
            }
        if (high < 0) return depth;
    }
    return L;
}

/* All lanes; values [lanes, layers] come filled with infinity; tables [lanes, layers, pools,
 * layers + 1] or NULL. Returns the most depths filled, or -1 where there is no memory. */
int64_t pluribus_price(const Problem *p, int64_t lanes, const Lane *lane, int64_t hold,
                       double *values, double *tables) {
    Work work;
    char *memory = malloc(part(p, &work, NULL));
    if (!memory) return -1;
    part(p, &work, memory);
    int64_t most = 0;
    size_t each = (size_t)(p->layers * p->pools * (p->layers + 1));
    for (int64_t i = 0; i < lanes; i++) {
        int64_t depths = fill(p, lane + i, hold, values + i * p->layers,
                              tables ? tables + i * each : NULL, &work);
        most = depths > most ? depths : most;
    }
    free(memory);
    return most;
}
