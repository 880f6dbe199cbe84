/* The timeline of one 1F1B pipeline (one_f_one_b.py); `timeline.simulate` on its action list is its
 * twin and gives the same bits. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    int64_t forwards, backwards; /* passes done */
    int64_t at;                  /* actions done */
    double now, down_free, up_free;
} Stage;

/* Ends of all actions of every stage, in the order of its list: [sum of the lists' lengths], those
 * of stage s from offsets[s] on. Messages take down[s] from stage s to s + 1 and up[s] back.
 * Returns 0, or -1 where there is no memory. */
int pluribus_one_f_one_b(int64_t stages, int64_t micro_batches, const double *forward,
                         const double *backward, const double *down, const double *up, int blocking,
                         int rendezvous, const int64_t *offsets, double *ends) {
    const int64_t S = stages, M = micro_batches;
    Stage *all = calloc((size_t)S, sizeof(Stage));
    double *activation = malloc((size_t)(S * M) * sizeof(double)); /* when it has come down */
    double *gradient = malloc((size_t)(S * M) * sizeof(double));   /* when it has come up */
    if (!all || !activation || !gradient) {
        free(all), free(activation), free(gradient);
        return -1;
    }
    int64_t left = 2 * S * M;
    /* Down the stages and up again: each goes on as far as what has come lets it. */
    for (int64_t sweep = 0; left; sweep++)
        for (int64_t i = 0; i < S; i++) {
            int64_t s = sweep & 1 ? S - 1 - i : i;
            Stage *x = all + s;
            int64_t ahead = S - 1 - s < M ? S - 1 - s : M;
            double *mine = ends + offsets[s];
            while (x->backwards < M) {
                int64_t next = ahead + x->backwards;
                if (x->forwards < M && x->forwards <= next) {
                    int64_t m = x->forwards;
                    if (s > 0) {
                        if (m >= all[s - 1].forwards) break;
                        double ready = rendezvous ? x->now + down[s - 1] : x->now;
                        double sent = activation[(s - 1) * M + m];
                        mine[x->at++] = x->now = sent > ready ? sent : ready;
                    }
                    mine[x->at++] = x->now = x->now + forward[s];
                    if (s < S - 1) {
                        double begin = x->now > x->down_free ? x->now : x->down_free;
                        activation[s * M + m] = x->down_free = begin + down[s];
                        if (blocking) x->now = x->down_free;
                        mine[x->at++] = x->now;
                    }
                    x->forwards++;
                } else {
                    int64_t m = x->backwards;
                    if (s < S - 1) {
                        if (m >= all[s + 1].backwards) break;
                        double ready = rendezvous ? x->now + up[s] : x->now;
                        double sent = gradient[(s + 1) * M + m];
                        mine[x->at++] = x->now = sent > ready ? sent : ready;
                    }
                    mine[x->at++] = x->now = x->now + backward[s];
                    if (s > 0) {
                        double begin = x->now > x->up_free ? x->now : x->up_free;
                        gradient[s * M + m] = x->up_free = begin + up[s - 1];
                        if (blocking) x->now = x->up_free;
                        mine[x->at++] = x->now;
                    }
                    x->backwards++;
                }
                left--;
            }
        }
    free(all), free(activation), free(gradient);
    return 0;
}
