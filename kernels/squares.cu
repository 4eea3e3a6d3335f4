// partial[b] = sum of x^2 over the entries of block b, in double      see arrays.cuh
// Bytes: each array is read once.
#include "arrays.cuh"

template <class T> struct Sum {
  double sum = 0;
  template <int V> __device__ __forceinline__ void of(const T *x, T *) {
    Wide<T> some[V];
    load<V>(x, some);
#pragma unroll
    for (int j = 0; j < V; j++) sum += double(some[j]) * double(some[j]);
  }
};

template <class T> __global__ void squares(Table<T> table, int count, double *partial) {
  Sum<T> mine;
  each(table, count, mine);
  double sum = block_sum(mine.sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
