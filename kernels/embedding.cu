// dW[r] = sum of g over the places where i = r      g: (n, d)  dW: (v, d), zeros before
//
// `order` sorts the places by row, stably; `rows` are the sorted rows. The block at the first place
// of a row adds up all of that row's, in the order of the places: no atomics, the same bits every
// time, and halves are summed in float32. Bytes: g read once, the named rows of dW written once.
#include "common.cuh"

template <class T>
__global__ void embedding_backward(const T *g, const long long *order, const long long *rows, T *dw, int n, int d) {
  int first = blockIdx.x;
  long long row = rows[first];
  if (first > 0 && rows[first - 1] == row) return;
  for (int i = threadIdx.x; i < d; i += blockDim.x) {
    Wide<T> sum = 0;
    for (int p = first; p < n && rows[p] == row; p++) sum += widen(g[order[p] * d + i]);
    narrow(sum, dw[row * d + i]);
  }
}
