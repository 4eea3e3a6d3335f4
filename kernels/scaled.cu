// y = factor x, or 0 where the factor is 0 (0 times inf would be NaN)      see arrays.cuh
// Bytes: each array is read once and written once.
#include "arrays.cuh"

template <class T> struct Times {
  Wide<T> factor;
  template <int V> __device__ __forceinline__ void of(const T *x, T *y) {
    Wide<T> some[V];
    load<V>(x, some);
#pragma unroll
    for (int j = 0; j < V; j++) some[j] = factor == 0 ? Wide<T>(0) : factor * some[j];
    store<V>(some, y);
  }
};

template <class T> __global__ void scaled(Table<T> table, int count, const double *factor) {
  Times<T> mine{Wide<T>(*factor)};
  each(table, count, mine);
}
