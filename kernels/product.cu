// A float32 as two bfloat16's        see product.py
#include "common.cuh"

// high, the nearest to x, and low, the nearest to x - high: of each run of x, in place of it, three
// runs one behind another, high but for the one that is low.      n entries, V at a time
// Bytes: 4 read and 6 written a number.
template <int V>
__global__ void split(const float *x, __nv_bfloat16 *parts, long long n, long long run, int low) {
  long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * V;
  if (i >= n) return;
  float high[V], rest[V];
  load<V>(x + i, high);
#pragma unroll
  for (int j = 0; j < V; j++) {
    __nv_bfloat16 nearest;
    narrow(high[j], nearest);
    rest[j] = high[j] - widen(nearest);
  }
  __nv_bfloat16 *to = parts + i / run * 3 * run + i % run;
#pragma unroll
  for (int p = 0; p < 3; p++) {
    float part[V];  // not a pointer to either, which would send both through memory
#pragma unroll
    for (int j = 0; j < V; j++) part[j] = p == low ? rest[j] : high[j];
    store<V>(part, to + p * run);
  }
}
