#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(int argc, char **argv)
{
    long n = argc > 1 ? atol(argv[1]) : 1000000;
    double *a = malloc(n * sizeof *a), *b = malloc(n * sizeof *b), *c = malloc(n * sizeof *c);
    double best = 1e30;

    if (!a || !b || !c)
        return 1;
    for (long i = 0; i < n; i++) {
        a[i] = 0.0;
        b[i] = i;
        c[i] = 1.0;
    }
    for (int pass = 0; pass < 10; pass++) {
        double begun = now();
        for (long i = 0; i < n; i++)
            a[i] = b[i] + 3.0 * c[i];
        double took = now() - begun;
        if (took < best)
            best = took;
    }
    for (long i = 0; i < n; i++)
        if (a[i] != i + 3.0)
            return 2;
    printf("solution validates\n");
    printf("bandwidth: %.2f GB/s\n", 24e-9 * n / best);
    return 0;
}
