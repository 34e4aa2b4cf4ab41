#define LANES 8
#define TABLE kernels_avx2
#define TABLE_NAME "AVX2"
#include "kernels.inc"
