// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = keep w - rate m / (sqrt(v) correction + eps)
//
// Up to 50 parameters in one launch: their table is itself the argument, so nothing is copied to
// the GPU beforehand. A block takes CHUNK entries of one of them. In a CUDA graph the argument stays
// what it was when recorded: what changes from step to step is then read behind `numbers`.
// Bytes: w, g, m, v read and w, m, v written once: 28 for each float32 entry.
#include "common.cuh"

constexpr int CHUNK = 4096, MOST = 50;

template <class T> struct Parameter {
  T *w, *m, *v;
  const T *g;
  long long n, first;  // its entries, and its first block
  double keep, rate, correction;
  const T *numbers;  // the same three on the device, or null
};
template <class T> struct Table { Parameter<T> of[MOST]; };

template <class T> __global__ void adamw_step(Table<T> table, int count, double b1, double b2, double eps) {
  int place = 0;
  while (place + 1 < count && table.of[place + 1].first <= blockIdx.x) place++;
  const Parameter<T> &p = table.of[place];
  long long start = (blockIdx.x - p.first) * CHUNK, stop = min(start + CHUNK, p.n);
  const T *numbers = p.numbers;
  T keep = numbers ? numbers[0] : T(p.keep), rate = numbers ? numbers[1] : T(p.rate);
  T correction = numbers ? numbers[2] : T(p.correction), first = b1, second = b2, small = eps;
  T fresh = 1 - b1, fresh_square = 1 - b2;
  for (long long i = start + threadIdx.x; i < stop; i += blockDim.x) {
    T g = p.g[i], m = first * p.m[i] + fresh * g, v = second * p.v[i] + fresh_square * (g * g);
    p.m[i] = m;
    p.v[i] = v;
    p.w[i] = keep * p.w[i] - rate * m / (sqrt(v) * correction + small);
  }
}
