// The best-matching unit of each row        see best_matching_units.py
#include "common.cuh"

// A block takes TILE rows and TILE units at a time, DEEP features of them in shared memory; a thread of
// SIDE x SIDE has EACH rows and EACH units in registers, and reads GROUP of them at once.
constexpr int TILE = 128, DEEP = 16, SIDE = 16, EACH = TILE / SIDE, GROUP = 4;
constexpr int STRIDE = TILE + GROUP;  // few lanes of a warp write to one bank

// The place in a tile of a thread's i-th row or unit: the groups of neighbours lie side by side.
__device__ __forceinline__ int place(int thread, int i) { return i / GROUP * SIDE * GROUP + thread * GROUP + i % GROUP; }

// tile[f][i] = from[first + i][start + f], and 0 where there is none
template <int V, class T>
__device__ __forceinline__ void fill(T (*tile)[STRIDE], const T *from, int first, int count, int start, int d) {
  for (int i = threadIdx.x * V; i < TILE * DEEP; i += SIDE * SIDE * V) {
    int row = i / DEEP, f = i % DEEP;
    T values[V] = {};
    if (first + row < count && start + f < d) load<V>(from + (long long)(first + row) * d + start + f, values);
#pragma unroll
    for (int j = 0; j < V; j++) tile[f + j][row] = values[j];
  }
}

// unit[i] = argmin_j |x_i - w_j|^2, the lowest j of equals      x: (n, d)  w: (k, d)
//
// The squares of the differences are added up themselves, feature after feature: nothing cancels
// where x and w are far from 0. Bytes: x read k / TILE times and w n / TILE times, through the cache.
template <class T, int V>
__global__ void __launch_bounds__(256)
best_matching_units(const T *x, const T *w, long long *unit, T *square, int n, int k, int d) {
  __shared__ __align__(32) T rows[DEEP][STRIDE], units[DEEP][STRIDE];
  int of_row = threadIdx.x / SIDE, of_unit = threadIdx.x % SIDE, first = blockIdx.x * TILE;
  T best[EACH];
  int nearest[EACH] = {};
#pragma unroll
  for (int r = 0; r < EACH; r++) best[r] = HUGE;
  for (int start = 0; start < k; start += TILE) {
    T sums[EACH][EACH] = {};
    for (int f0 = 0; f0 < d; f0 += DEEP) {
      __syncthreads();  // the last tiles have been read by all
      fill<V>(rows, x, first, n, f0, d);
      fill<V>(units, w, start, k, f0, d);
      __syncthreads();
#pragma unroll 2
      for (int f = 0; f < min(DEEP, d - f0); f++) {
        T a[EACH], b[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i += GROUP) {
          load<GROUP>(&rows[f][place(of_row, i)], a + i);
          load<GROUP>(&units[f][place(of_unit, i)], b + i);
        }
#pragma unroll
        for (int r = 0; r < EACH; r++)
#pragma unroll
          for (int u = 0; u < EACH; u++) {
            T gap = a[r] - b[u];
            sums[r][u] += gap * gap;
          }
      }
    }
#pragma unroll
    for (int r = 0; r < EACH; r++)
#pragma unroll
      for (int u = 0; u < EACH; u++) {
        int j = start + place(of_unit, u);
        if (j < k && sums[r][u] < best[r]) best[r] = sums[r][u], nearest[r] = j;
      }
  }
#pragma unroll
  for (int r = 0; r < EACH; r++) {
#pragma unroll
    for (int step = SIDE / 2; step; step /= 2) {
      T other = __shfl_xor_sync(ALL_LANES, best[r], step);
      int theirs = __shfl_xor_sync(ALL_LANES, nearest[r], step);
      if (other < best[r] || (other == best[r] && theirs < nearest[r])) best[r] = other, nearest[r] = theirs;
    }
    int row = first + place(of_row, r);
    if (of_unit || row >= n) continue;
    unit[row] = nearest[r];
    square[row] = best[r];
  }
}
