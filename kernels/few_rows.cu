// y = x W^T of a few rows, for up to three W at once      x: (few, n)  W: (m, n)  y: (few, m)
//
// A warp takes a row of W: the bytes of W, once, are the time there is. Each lane has AHEAD pieces of
// 16 bytes under way before it uses the first; x, the same for all warps, comes from cache. A sum is
// made by one warp in one order, whatever `few` is.
#include "common.cuh"

constexpr int AHEAD = 8;

template <class T, int V, int FEW>
__global__ void few_rows(const T *x, const T *w, const T *second, const T *third, T *y, T *y_second, T *y_third,
                         int few, int n, int m, int m_second, int m_third) {
  int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= m) row -= m, m = m_second, w = second, y = y_second;
  if (row >= m) row -= m, m = m_third, w = third, y = y_third;
  if (row >= m) return;  // a whole warp
  w += (long long)row * n;
  float sums[FEW] = {};
  for (int start = 0; start < n; start += AHEAD * 32 * V) {
    Pack<T, V> ahead[AHEAD] = {};
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      int i = start + (j * 32 + lane) * V;
      if (i < n) ahead[j] = *reinterpret_cast<const Pack<T, V> *>(w + i);
    }
    __syncwarp();  // or the compiler puts off each load until its numbers are used
#pragma unroll
    for (int r = 0; r < FEW; r++) {
      if (r >= few) break;
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        int i = start + (j * 32 + lane) * V;
        Pack<T, V> with = {};
        if (i < n) with = *reinterpret_cast<const Pack<T, V> *>(x + r * n + i);
#pragma unroll
        for (int k = 0; k < V; k++) sums[r] += widen(ahead[j].v[k]) * widen(with.v[k]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < FEW; r++) {
    float sum = warp_sum(sums[r]);
    if (lane == 0 && r < few) narrow(sum, y[r * m + row]);
  }
}
