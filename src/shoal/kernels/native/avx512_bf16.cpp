#define LANES 16
#define PAIRS
#define TABLE kernels_avx512_bf16
#define TABLE_NAME "AVX-512 BF16"
#include "kernels.inc"
