// Many arrays in one launch: their table is itself the argument, so nothing is copied to the GPU
// beforehand. A block takes CHUNK entries of one of them.
#pragma once
#include "common.cuh"

constexpr int CHUNK = 8192, MOST = 120;

template <class T> struct Array {
  const T *x;
  T *y;
  long long n, first;  // its entries, and its first block
};
template <class T> struct Table { Array<T> of[MOST]; };

// f(place, count) for the entries of this block, `count` of them side by side from `place` on: 16
// bytes where x and y lie so, one by one at the end of an array and where they do not.
template <class T, class F> __device__ __forceinline__ void each(const Table<T> &table, int count, F &f) {
  constexpr int V = 16 / sizeof(T);
  int place = 0;
  while (place + 1 < count && table.of[place + 1].first <= blockIdx.x) place++;
  const Array<T> &a = table.of[place];
  long long start = (blockIdx.x - a.first) * CHUNK, stop = min(start + CHUNK, a.n);
  bool even = (reinterpret_cast<unsigned long long>(a.x) | reinterpret_cast<unsigned long long>(a.y)) % 16 == 0;
  long long whole = even ? start + (stop - start) / V * V : start;
  for (long long i = start + threadIdx.x * V; i < whole; i += blockDim.x * V) f.template of<V>(a.x + i, a.y + i);
  for (long long i = whole + threadIdx.x; i < stop; i += blockDim.x) f.template of<1>(a.x + i, a.y + i);
}
