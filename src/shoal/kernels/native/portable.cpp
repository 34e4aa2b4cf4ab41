#define LANES 4
#define PAIRS
#define TABLE kernels_portable
#define TABLE_NAME "portable"
#include "kernels.inc"
