// y_i = factor x_i, or 0 where word i of the key's Philox stream is below `threshold`
//
// A thread makes one counter's four words, for four entries: the very bits of the definition.
// Bytes: x read and y written once.
#include "common.cuh"

template <class T>
__global__ void dropout(const T *x, T *y, long long n, unsigned long long threshold, unsigned long long key,
                        Wide<T> factor) {
  long long counter = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (4 * counter >= n) return;
  uint4 four = philox(counter, key);
  unsigned words[4] = {four.x, four.y, four.z, four.w};
  for (int j = 0; j < 4 && 4 * counter + j < n; j++) {
    Wide<T> kept = words[j] >= threshold ? factor : Wide<T>(0);  // a product: NaN stays NaN
    narrow(widen(x[4 * counter + j]) * kept, y[4 * counter + j]);
  }
}
