// The best-matching unit of each row        see best_matching_units.py
#include "common.cuh"

constexpr int TILE = 32;  // units and features in shared memory at a time

// unit[i] = argmin_j |x_i - w_j|^2, the lowest j of equals      x: (n, d)  w: (k, d)
//
// A thread has a row, a block TILE x TILE entries of the codebook at a time. The squares of the
// differences are added up themselves: nothing cancels where x and w are far from 0.
// Bytes: x read k / TILE times through the cache, the codebook once for each block of 128 rows.
template <class T>
__global__ void best_matching_units(const T *x, const T *w, long long *unit, T *square, int n, int k, int d) {
  __shared__ T tile[TILE][TILE + 1];  // one more: no two lanes of a column share a bank
  int row = blockIdx.x * blockDim.x + threadIdx.x;
  const T *mine = x + (long long)min(row, n - 1) * d;
  T best = HUGE;
  long long nearest = 0;
  for (int j0 = 0; j0 < k; j0 += TILE) {
    T sums[TILE] = {};
    for (int f0 = 0; f0 < d; f0 += TILE) {
      __syncthreads();  // the last tile has been read by all
      for (int i = threadIdx.x; i < TILE * TILE; i += blockDim.x) {
        int j = i / TILE, f = i % TILE;
        bool inside = j0 + j < k && f0 + f < d;
        tile[j][f] = inside ? w[(long long)(j0 + j) * d + f0 + f] : T(0);
      }
      __syncthreads();
      for (int f = 0; f < min(TILE, d - f0); f++) {
        T value = mine[f0 + f];
        for (int j = 0; j < TILE; j++) {
          T gap = value - tile[j][f];
          sums[j] += gap * gap;
        }
      }
    }
    for (int j = 0; j < min(TILE, k - j0); j++)
      if (sums[j] < best) best = sums[j], nearest = j0 + j;
  }
  if (row >= n) return;
  unit[row] = nearest;
  square[row] = best;
}
