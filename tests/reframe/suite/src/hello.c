#include <stdio.h>

int main(int argc, char **argv)
{
    printf("hello from %s, %d arguments\n", argc > 1 ? argv[1] : "nobody", argc - 1);
    return 0;
}
