/* The table of the pricing problem (pricing.py), lane by lane; `fill_numpy` is its twin
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
    double cap, stage, hop, tail, late, toll, least, hold, turn, budget;
} Lane;

/* What a stage is: an early or a late one, or the first of the late ones, which is slow. */
enum { EARLY, LATE, TURN, ROLES };

static void add_rows(double *restrict into, const double *restrict onward, double cost, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double value = cost + onward[i];
        into[i] = value < into[i] ? value : into[i];
    }
}

/* Prices of one role; K kinds, A runs and Q lengths that the lane's cap allows, S senders. */
typedef struct {
    double *cost, *opening;   /* [K, A] and of a first stage [K, Q] */
    double *best, *first;     /* [S, A], [S, Q] of the cheapest kinds that hold enough */
    int64_t *goes_on, *opens; /* [S] whether any of its `best`, or of `first`, is finite */
    int64_t *plays, *begins;  /* [K] whether any of its `cost`, or of `opening`, is finite */
    int64_t held;             /* micro-batches that these kinds hold */
} Role;

/* What a lane works with. */
typedef struct {
    Role role[ROLES];
    int64_t *held, *held_opening;  /* [K, A], [K, Q] micro-batches that fit */
    double *least;                 /* [1 + pools, A] of all senders, and of each pool's */
    double *onward[2];             /* [S, width] of the later stages and the message to them */
    double *two;                   /* [2, 2, pools, width] where no table is kept */
    int64_t *place;                /* [runs] position among the A, or -1 */
    int64_t *segment;              /* [segments, 4] those of the A: length, begin, end, place */
    int64_t *lasting;              /* [L + 1] how many of the A fit at a depth: they come first */
    int64_t *lasting_openings;     /* [L + 1] the longest of the Q that fits at a depth */
    int64_t *next;                 /* [L + 1] the place of the next run that fits so many times */
    int64_t *drops;                /* [L + 1] whether some kind does not fit any more at a depth */
    int64_t segments, runs, longest;
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
    for (int i = 0; i < ROLES; i++) {
        Role *role = w->role + i;
        role->cost = take(&at, K * R), role->opening = take(&at, K * L);
        role->best = take(&at, S * R), role->first = take(&at, S * L);
        role->goes_on = take(&at, S), role->opens = take(&at, S);
        role->plays = take(&at, K), role->begins = take(&at, K);
    }
    w->held = take(&at, K * R), w->held_opening = take(&at, K * L);
    w->least = take(&at, (1 + p->pools) * R);
    w->onward[0] = take(&at, S * width), w->onward[1] = take(&at, S * width);
    w->two = take(&at, 4 * p->pools * width);
    w->place = take(&at, R), w->segment = take(&at, 4 * p->segments);
    w->lasting = take(&at, width), w->lasting_openings = take(&at, width);
    w->drops = take(&at, width), w->next = take(&at, width);
    return (size_t)(at - begin);
}

/* The cheapest kind of each sender for the first n runs, of kinds that hold `depth` micro-batches;
 * of all senders, as if they were the first one, where that is all the `same`. */
static void cheapest_kinds(const Problem *p, const double *cost, const int64_t *plays,
                           const int64_t *held, int64_t depth, int64_t n, int64_t stride, int same,
                           double *best) {
    for (int64_t s = 0; s < (same ? 1 : p->senders); s++)
        for (int64_t r = 0; r < n; r++) best[s * stride + r] = INFINITY;
    for (int64_t k = 0; k < p->kinds; k++) {
        if (!plays[k]) continue;
        double *restrict row = best + (same ? 0 : p->sender_of[k]) * stride;
        const double *restrict mine = cost + k * stride;
        const int64_t *restrict fits = held + k * stride;
        for (int64_t r = 0; r < n; r++) {
            double value = fits[r] >= depth ? mine[r] : INFINITY;
            row[r] = value < row[r] ? value : row[r];
        }
    }
}

/* into[i] = min(into[i], from[i]) */
static void lower(double *restrict into, const double *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++) into[i] = from[i] < into[i] ? from[i] : into[i];
}

/* Prices beyond either limit and its room become infinite; whether any is left. */
static int64_t keep(double *restrict mine, const double *restrict pool, double here,
                    const double *restrict all, double anywhere, int64_t n) {
    for (int64_t r = 0; r < n; r++) {
        double limit = pool[r] + here, other = all[r] + anywhere;
        limit = other < limit ? other : limit;
        mine[r] = mine[r] <= limit ? mine[r] : INFINITY;
    }
    int64_t r = 0, left = 0;
    for (; r + 8 <= n; r += 8)
        for (int j = 0; j < 8; j++) left |= mine[r + j] < INFINITY;
    for (; r < n; r++) left |= mine[r] < INFINITY;
    return left;
}

/* Leaves out what no cheapest pipeline needs: a sender that costs more for a run than the cheapest
 * one of its pool, or of all, together with what messages after and before that one may cost. */
static void without_dominated(const Problem *p, double hop, double before, const Work *w,
                              Role *role, int64_t n, int64_t openings) {
    const int64_t S = p->senders;
    double *all = w->least;
    for (int64_t i = 0; i < (1 + p->pools) * n; i++) w->least[i] = INFINITY;
    for (int64_t s = 0; s < S; s++)
        lower(w->least + (1 + p->pool_of_sender[s]) * n, role->best + s * w->runs, n);
    for (int64_t q = 0; q < p->pools; q++) lower(all, w->least + (1 + q) * n, n);
    for (int64_t s = 0; s < S; s++) {
        const int64_t q = p->pool_of_sender[s];
        const double anywhere = hop * p->dearer[s] + before * p->farther[q];
        role->goes_on[s] = keep(role->best + s * w->runs, w->least + (1 + q) * n,
                                hop * p->dearer_here[s], all, anywhere, n);
    }
    for (int64_t i = 0; i < openings; i++) all[i] = INFINITY;
    for (int64_t s = 0; s < S; s++) lower(all, role->first + s * w->longest, openings);
    for (int64_t s = 0; s < S; s++) {
        const double anywhere = hop * p->dearer[s];
        role->opens[s] = keep(role->first + s * w->longest, all, anywhere, all, anywhere, openings);
    }
}

/* The row of `go_on` for a sender: where messages are free, all go on alike. */
static double *row_of(double *onward, double hop, int64_t s, int64_t width) {
    return hop > 0 ? onward + s * width : onward;
}

/* [senders, layers + 1] the price of the later stages from layers low to high on, and of the
 * message to them, for the senders of one role or of either of two. */
static void go_on(const Problem *p, const double *old, double hop, int64_t low, int64_t high,
                  const Role *role, const Role *other, double *onward) {
    const int64_t width = p->layers + 1, n = high - low + 1;
    for (int64_t s = 0; s < (hop > 0 ? p->senders : 1); s++) {
        int64_t wanted = role->goes_on[s] || role->opens[s];
        wanted = wanted || other->goes_on[s] || other->opens[s];
        if (hop > 0 && !wanted) continue;
        double *row = onward + s * width + low;
        for (int64_t a = 0; a < n; a++) row[a] = INFINITY;
        for (int64_t q = 0; q < p->pools; q++)
            add_rows(row, old + q * width + low, hop * p->hops[s * p->pools + q], n);
    }
}

/* The least sum of two numbers of each pair. */
static double least_sum(const double *restrict a, const double *restrict b, int64_t n) {
    double least[4] = {INFINITY, INFINITY, INFINITY, INFINITY};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++) {
            double v = a[i + j] + b[i + j];
            least[j] = v < least[j] ? v : least[j];
        }
    for (; i < n; i++) least[0] = a[i] + b[i] < least[0] ? a[i] + b[i] : least[0];
    for (int j = 1; j < 4; j++) least[0] = least[j] < least[0] ? least[j] : least[0];
    return least[0];
}

/* Lowers a table by the stages of a role before later ones that begin at layers low to high; with
 * `onward` at NULL by those that are the last. */
static void extend(const Problem *p, const Work *w, const Role *role, int64_t n, double *onward,
                   double hop, int64_t low, int64_t high, double *now) {
    const int64_t L = p->layers, width = L + 1;
    for (int64_t s = 0; s < p->senders; s++) {
        if (!role->goes_on[s]) continue;
        double *row = now + p->pool_of_sender[s] * width;
        const double *best = role->best + s * w->runs;
        const double *after = onward ? row_of(onward, hop, s, width) : NULL;
        for (int64_t i = 0; i < w->segments; i++) {
            const int64_t *g = w->segment + 4 * i;
            int64_t q = g[0], begin = g[1], end = g[2];
            double c = g[3] < n ? best[g[3]] : INFINITY;
            if (!(c < INFINITY)) continue;
            if (!after) {
                if (end == L - q + 1 && c < row[L - q]) row[L - q] = c;
                continue;
            }
            if (begin < low - q) begin = low - q;
            if (end > high - q + 1) end = high - q + 1;
            if (end > begin) add_rows(row + begin, after + begin + q, c, end - begin);
        }
    }
}

/* The least price of a whole pipeline that a stage of a role begins; as for `extend`. */
static double open_with(const Problem *p, const Work *w, const Role *role, int64_t openings,
                        double *onward, double hop, int64_t low, int64_t high) {
    const int64_t L = p->layers, width = L + 1;
    double least = INFINITY;
    for (int64_t s = 0; s < p->senders; s++) {
        if (!role->opens[s]) continue;
        const double *mine = role->first + s * w->longest;
        double v = !onward && openings == L ? mine[L - 1] : INFINITY;
        int64_t begin = low > 1 ? low : 1, end = openings < high ? openings : high;
        if (onward && begin <= end)
            v = least_sum(mine + begin - 1, row_of(onward, hop, s, width) + begin, end - begin + 1);
        least = v < least ? v : least;
    }
    return least;
}

/* What is dropped of a table, as the layers before cost at least `each`: what is left begins at
 * layers low to high. */
static void drop_dear(const Problem *p, double each, double budget, int64_t begins, int64_t ends,
                      double *now, int64_t *low, int64_t *high) {
    for (int64_t q = 0; q < p->pools; q++)
        for (int64_t a = begins; a < ends; a++) {
            double *v = now + q * (p->layers + 1) + a;
            if (*v + (double)a * each <= budget) {
                if (a < *low) *low = a;
                if (a > *high) *high = a;
            } else
                *v = INFINITY;
        }
}

/* One lane. `values` [layers] and `table` [layers, sides, pools, layers + 1] or NULL to be filled.
 * Returns the depths filled; the others are left alone.
 *
 * Where a slow stage is the first of the late ones, a table has two sides: of pipelines that have
 * it, and of late stages alone. */
static int64_t fill(const Problem *p, const Lane *lane, double *values, double *table,
                    int64_t sides, Work *w) {
    const double cap = lane->cap, late = lane->stage + lane->late, toll = lane->toll;
    const int64_t L = p->layers, R = p->runs, K = p->kinds, width = L + 1;
    const int64_t hold = (int64_t)lane->hold, turn = (int64_t)lane->turn, both = turn < 0;
    const double hops[ROLES] = {lane->hop, lane->hop + lane->late, lane->hop + lane->late};
    /* Where messages are free and nobody asks for pipelines, it is all the same who sends. */
    const int same = !turn && !table && hops[EARLY] == 0;
    const double before = turn && lane->late > 0 ? hops[LATE] : hops[EARLY];
    double layer = INFINITY, any = INFINITY;
    int64_t longest = 0, runs = 0;
    int64_t *fits = w->place; /* of each run, the micro-batches that its best kind holds, ≤ L */
    for (int64_t r = 0; r < R; r++) fits[r] = -1;
    memset(w->drops, 0, width * sizeof(int64_t));
    memset(w->lasting, 0, width * sizeof(int64_t));
    memset(w->lasting_openings, 0, width * sizeof(int64_t));
    for (int64_t k = 0; k < K; k++)
        for (int64_t r = 0; r < R; r++) {
            int64_t i = k * R + r;
            if (p->seconds[i] > cap) continue;
            double each = lane->stage * p->seconds[i] + p->prices[k] + toll;
            each /= (double)p->lengths[r];
            if (each < layer) layer = each;
            each = (late * p->seconds[i] + p->prices[k]) / (double)p->lengths[r];
            if (each < any) any = each;
            if (p->lengths[r] > longest) longest = p->lengths[r];
            int64_t held = p->held[i] < L ? p->held[i] : L;
            if (held > fits[r]) fits[r] = held;
            if (held < L) w->drops[held + 1] = 1;
        }
    if (!(layer < INFINITY)) return 0;
    if (!turn || layer < any) any = layer;
    for (int64_t q = 1; q <= longest; q++) {
        int64_t held = fits[p->openings[q - 1]];
        for (int64_t d = 1; d <= held; d++) w->lasting_openings[d] = q;
    }
    /* Runs that fit at many depths come first. */
    for (int64_t r = 0; r < R; r++)
        if (fits[r] > 0) w->lasting[fits[r]]++;
    for (int64_t d = L - 1; d > 0; d--) w->lasting[d] += w->lasting[d + 1];
    w->runs = runs = w->lasting[1], w->longest = longest;
    for (int64_t d = 1; d <= L; d++) w->next[d] = d < L ? w->lasting[d + 1] : 0;
    for (int64_t r = 0; r < R; r++) w->place[r] = fits[r] > 0 ? w->next[fits[r]]++ : -1;
    for (int64_t k = 0; k < K; k++) {
        for (int64_t r = 0; r < R; r++)
            if (w->place[r] >= 0) w->held[k * runs + w->place[r]] = p->held[k * R + r];
        for (int64_t q = 1; q <= longest; q++)
            w->held_opening[k * longest + q - 1] = p->held[k * R + p->openings[q - 1]];
    }
    for (int role = 0; role < (both ? ROLES : turn ? TURN : LATE); role++) {
        Role *mine = w->role + role;
        const double weight = role == EARLY ? lane->stage : late, more = role == EARLY ? toll : 0.0;
        const double least = role == TURN ? lane->least : 0.0;
        /* The slow stage is the first or the last of its kind. */
        const int quick = both && role == (lane->late > 0 ? EARLY : LATE);
        const double under = quick ? lane->least : INFINITY;
        mine->held = -1;
        for (int64_t k = 0; k < K; k++) {
            int64_t plays = 0, begins = 0;
            for (int64_t r = 0; r < R; r++) {
                if (w->place[r] < 0) continue;
                double t = p->seconds[k * R + r], v = weight * t + p->prices[k] + more;
                int out = t > cap || t < least || t >= under;
                mine->cost[k * runs + w->place[r]] = out ? INFINITY : v;
                plays |= !out;
            }
            for (int64_t q = 1; q <= longest; q++) {
                double t = p->seconds[k * R + p->openings[q - 1]];
                double v = weight * t + p->prices[k] + more + lane->tail * p->tails[k * L + q - 1];
                int out = t > cap || t < least || t >= under;
                mine->opening[k * longest + q - 1] = out ? INFINITY : v;
                begins |= !out;
            }
            mine->plays[k] = plays, mine->begins[k] = begins;
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
    int64_t low = 0, high = -1; /* layers from which the later stages go on */
    for (int64_t depth = 1; depth <= L; depth++) {
        int64_t held = depth < hold ? depth : hold;
        const int64_t n = w->lasting[held], openings = w->lasting_openings[held];
        const int only = depth <= turn ? LATE : EARLY;
        for (int i = both ? EARLY : only; i < (both ? ROLES : only + 1); i++) {
            Role *role = w->role + i;
            if (role->held < 0 || (held != role->held && w->drops[held])) {
                cheapest_kinds(p, role->cost, role->plays, w->held, held, n, runs, same,
                               role->best);
                cheapest_kinds(p, role->opening, role->begins, w->held_opening, held, openings,
                               longest, same, role->first);
                if (!same) without_dominated(p, hops[i], before, w, role, n, openings);
                for (int64_t s = 0; same && s < p->senders; s++)
                    role->goes_on[s] = role->opens[s] = s == 0;
            }
            role->held = held;
        }
        const int64_t each = p->pools * width;
        double *now = table ? table + (depth - 1) * sides * each : w->two + (depth & 1) * 2 * each;
        const double *old = table ? now - sides * each : w->two + ((depth & 1) ^ 1) * 2 * each;
        /* What this depth can hold begins where a stage fits before what there is. */
        const int64_t begins = depth == 1 ? L - longest : low > longest ? low - longest : 0;
        const int64_t ends = depth == 1 ? L : high;
        for (int64_t q = 0; q < (both ? 2 : 1) * p->pools; q++) {
            double *row = now + q * width;
            for (int64_t a = table ? 0 : begins; a < (table ? width : ends); a++) row[a] = INFINITY;
        }
        double *onward = depth > 1 ? w->onward[0] : NULL, *later = depth > 1 ? w->onward[1] : NULL;
        double *now_late = now + each;
        if (both) {
            const Role *early = w->role + EARLY, *turns = w->role + TURN, *lates = w->role + LATE;
            if (depth > 1) {
                go_on(p, old, hops[EARLY], low, high, early, early, onward);
                go_on(p, old + each, hops[LATE], low, high, lates, turns, later);
                extend(p, w, early, n, onward, hops[EARLY], low, high, now);
            }
            extend(p, w, turns, n, later, hops[TURN], low, high, now);
            extend(p, w, lates, n, later, hops[LATE], low, high, now_late);
            values[depth - 1] = open_with(p, w, turns, openings, later, hops[TURN], low, high);
            if (depth > 1) {
                double v = open_with(p, w, early, openings, onward, hops[EARLY], low, high);
                if (v < values[depth - 1]) values[depth - 1] = v;
            }
        } else {
            const Role *role = w->role + only;
            if (depth > 1) go_on(p, old, hops[only], low, high, role, role, onward);
            extend(p, w, role, n, onward, hops[only], low, high, now);
            values[depth - 1] = open_with(p, w, role, openings, onward, hops[only], low, high);
        }
        low = width, high = -1;
        drop_dear(p, both ? layer : any, lane->budget, begins, ends, now, &low, &high);
        if (both) drop_dear(p, any, lane->budget, begins, ends, now_late, &low, &high);
        if (high < 0) return depth;
    }
    return L;
}

/* All lanes; values [lanes, layers] come filled with infinity; tables [lanes, layers, sides, pools,
 * layers + 1] or NULL. Returns the most depths filled, or -1 where there is no memory. */
int64_t pluribus_price(const Problem *p, int64_t lanes, const Lane *lane, double *values,
                       double *tables, int64_t sides) {
    Work work;
    char *memory = malloc(part(p, &work, NULL));
    if (!memory) return -1;
    part(p, &work, memory);
    int64_t most = 0;
    size_t each = (size_t)(p->layers * sides * p->pools * (p->layers + 1));
    for (int64_t i = 0; i < lanes; i++) {
        int64_t depths = fill(p, lane + i, values + i * p->layers,
                              tables ? tables + i * each : NULL, sides, &work);
        most = depths > most ? depths : most;
    }
    free(memory);
    return most;
}
