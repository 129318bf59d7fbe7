/* Preloaded, lets MKL inside PyTorch take its AVX-512 path on other makers' processors too:
 *   gcc -shared -fPIC -O2 tests/peer/mkl_avx512.c -o mkl_avx512.so
 *   LD_PRELOAD=$PWD/mkl_avx512.so python tests/peer/train_step.py ... */
int mkl_serv_intel_cpu_true(void);
int mkl_serv_intel_cpu(void);

int mkl_serv_intel_cpu_true(void)
{
    return 1;
}

int mkl_serv_intel_cpu(void)
{
    return 1;
}
