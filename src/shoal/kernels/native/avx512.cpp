#define LANES 16
#define TABLE kernels_avx512
#define TABLE_NAME "AVX-512"
#include "kernels.inc"
