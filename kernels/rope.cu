// (a, b) -> (a cos - b sin, b cos + a sin)      x, y: (b, h, t, 2 half)  cos, sin: (t, half)
//
// A block turns all heads of one batch and time, a thread V pairs of a head. x and y may lie in any
// order as long as a row's entries are side by side: steps are entries from one batch, head and time
// to the next. sign -1 turns back: the gradient. Bytes: x read and y written once.
#include "common.cuh"

template <class T, int V>
__global__ void rope_turn(const T *x, const T *cos, const T *sin, T *y, int heads, int time, int half, long long xb,
                          long long xh, long long xt, long long yb, long long yh, long long yt, Wide<T> sign) {
  int batch = blockIdx.x / time, t = blockIdx.x % time, pieces = half / V;
  x += batch * xb + t * xt;
  y += batch * yb + t * yt;
  cos += (long long)t * half;
  sin += (long long)t * half;
  Wide<T> a[V], b[V], c[V], s[V];
  for (int piece = threadIdx.x; piece < heads * pieces; piece += blockDim.x) {
    int head = piece / pieces, i = piece % pieces * V;
    load<V>(x + head * xh + i, a);
    load<V>(x + head * xh + i + half, b);
    load<V>(cos + i, c);
    load<V>(sin + i, s);
#pragma unroll
    for (int j = 0; j < V; j++) {
      Wide<T> first = a[j], turn = sign * s[j];
      a[j] = first * c[j] - b[j] * turn;
      b[j] = b[j] * c[j] + first * turn;
    }
    store<V>(a, y + head * yh + i);
    store<V>(b, y + head * yh + i + half);
  }
}
