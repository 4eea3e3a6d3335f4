// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = keep w - rate m / (sqrt(v) correction + eps)
//
// Up to 45 parameters in one launch: their table is itself the argument, so nothing is copied to
// the GPU beforehand. A block takes CHUNK entries of one of them. Gradients may be halves G, and w
// is then left in that type, too, where the model has it. In a CUDA graph the argument stays what it
// was when recorded: what changes from step to step is then read behind `numbers`.
// Bytes: w, g, m, v read and w, m, v written once: 28 for each float32 entry, 28 with halves as well.
#include "common.cuh"

constexpr int CHUNK = 4096, MOST = 45;

template <class T, class G> struct Parameter {
  T *w, *m, *v;
  const G *g;
  G *rounded;  // or null
  long long n, first;  // its entries, and its first block
  double keep, rate, correction;
  const T *numbers;  // the same three on the device, or null
};
template <class T, class G> struct Table { Parameter<T, G> of[MOST]; };

template <class T, class G> struct Step {
  T keep, rate, correction, first, second, fresh, fresh_square, small;

  template <int V> __device__ __forceinline__ void at(const Parameter<T, G> &p, long long i) const {
    T w[V], m[V], v[V], g[V];
    load<V>(p.w + i, w);
    load<V>(p.m + i, m);
    load<V>(p.v + i, v);
    load<V>(p.g + i, g);
#pragma unroll
    for (int j = 0; j < V; j++) {
      m[j] = first * m[j] + fresh * g[j];
      v[j] = second * v[j] + fresh_square * (g[j] * g[j]);
      w[j] = keep * w[j] - rate * m[j] / (sqrt(v[j]) * correction + small);
    }
    store<V>(w, p.w + i);
    store<V>(m, p.m + i);
    store<V>(v, p.v + i);
    if (p.rounded) store<V>(w, p.rounded + i);
  }
};

template <class T, class G>
__global__ void adamw_step(Table<T, G> table, int count, double b1, double b2, double eps) {
  constexpr int V = 16 / sizeof(T);
  int place = 0;
  while (place + 1 < count && table.of[place + 1].first <= blockIdx.x) place++;
  const Parameter<T, G> &p = table.of[place];
  long long start = (blockIdx.x - p.first) * CHUNK, stop = min(start + CHUNK, p.n);
  const T *numbers = p.numbers;
  Step<T, G> step{numbers ? numbers[0] : T(p.keep), numbers ? numbers[1] : T(p.rate),
                  numbers ? numbers[2] : T(p.correction), T(b1), T(b2), T(1 - b1), T(1 - b2), T(eps)};
  auto address = [](const void *x) { return reinterpret_cast<unsigned long long>(x); };
  bool even = (address(p.w) | address(p.m) | address(p.v) | address(p.g) | address(p.rounded)) % 16 == 0;
  long long whole = even ? start + (stop - start) / V * V : start;
  for (long long i = start + threadIdx.x * V; i < whole; i += blockDim.x * V) step.template at<V>(p, i);
  for (long long i = whole + threadIdx.x; i < stop; i += blockDim.x) step.template at<1>(p, i);
}
