// y_i = factor x_i, or 0 where word i of the key's Philox stream is below `threshold`
//
// A thread makes the words of two counters, four each, for EACH entries, which it moves V at a time:
// the very bits of the definition. Bytes: x read and y written once.
#include "common.cuh"

constexpr int EACH = 8;

template <class T, int V>
__global__ void dropout(const T *x, T *y, long long n, unsigned threshold, unsigned long long key, Wide<T> factor) {
  long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * EACH;
  Wide<T> kept[EACH], a[V];
#pragma unroll
  for (int i = 0; i < EACH; i += 4) {
    uint4 words = philox((first + i) / 4, key);
    kept[i] = words.x >= threshold ? factor : Wide<T>(0);
    kept[i + 1] = words.y >= threshold ? factor : Wide<T>(0);
    kept[i + 2] = words.z >= threshold ? factor : Wide<T>(0);
    kept[i + 3] = words.w >= threshold ? factor : Wide<T>(0);
  }
#pragma unroll
  for (int i = 0; i < EACH; i += V) {
    if (first + i >= n) return;
    load<V>(x + first + i, a);
#pragma unroll
    for (int j = 0; j < V; j++) a[j] *= kept[i + j];  // a product: NaN stays NaN
    store<V>(a, y + first + i);
  }
}
