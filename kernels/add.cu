// y = a + b      n entries, V at a time; of halves the sum is made in float and rounded once
// Bytes: two arrays are read and one is written.
#include "common.cuh"

template <class T, int V> __global__ void add(const T *a, const T *b, T *y, long long n) {
  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= n) return;
  Wide<T> sum[V], more[V];
  load<V>(a + i, sum);
  load<V>(b + i, more);
#pragma unroll
  for (int j = 0; j < V; j++) sum[j] += more[j];
  store<V>(sum, y + i);
}
