// (a, b) -> (a cos - b sin, b cos + a sin)      x, y: (b, h, t, 2 half)  cos, sin: (t, half)
//
// A thread turns a pair. x and y may lie in any order as long as a row's entries are side by side:
// steps are entries from one batch, head and time to the next. sign -1 turns back: the gradient.
// Bytes: x read and y written once.
#include "common.cuh"

template <class T>
__global__ void rope_turn(const T *x, const T *cos, const T *sin, T *y, int heads, int time, int half,
                          long long pairs, long long xb, long long xh, long long xt, long long yb, long long yh,
                          long long yt, Wide<T> sign) {
  long long pair = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (pair >= pairs) return;
  int i = pair % half, t = pair / half % time;
  long long row = pair / half / time, head = row % heads, batch = row / heads;
  const T *from = x + batch * xb + head * xh + t * xt;
  T *to = y + batch * yb + head * yh + t * yt;
  Wide<T> a = widen(from[i]), b = widen(from[i + half]);
  Wide<T> c = widen(cos[t * half + i]), s = sign * widen(sin[t * half + i]);
  narrow(a * c - b * s, to[i]);
  narrow(b * c + a * s, to[i + half]);
}
