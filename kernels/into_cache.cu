// q' = q turned;  keys[place] = k turned,  values[place] = v, a token a row
//   q: (b, h, 1, d)  k, v: (b, g, 1, d)  cos, sin: (1 or b, d / 2)  keys, values: (b, g, s, d)
//
// A thread takes a pair (i, i + d / 2) of a head, and turns it as rope.cu does; the heads of q come
// first, then those of k, then those of v. The place lies on the device.
#include "common.cuh"

struct Sizes { int heads, groups, half, batches, rows; };  // rows: of cos and sin

template <class T>
__global__ void into_cache(const T *q, Steps qs, const T *k, Steps ks, const T *v, Steps vs, const T *cos,
                           const T *sin, T *turned, Steps ts, T *keys, Steps keys_steps, T *values,
                           Steps values_steps, const long long *place, Sizes n) {
  int pair = blockIdx.x * blockDim.x + threadIdx.x, all = n.heads + 2 * n.groups;
  int i = pair % n.half, head = pair / n.half % all, batch = pair / n.half / all;
  if (batch >= n.batches) return;
  const T *from;
  T *to;
  if (head < n.heads) {
    from = q + batch * qs.batch + head * qs.head;
    to = turned + batch * ts.batch + head * ts.head;
  } else if (head < n.heads + n.groups) {
    head -= n.heads;
    from = k + batch * ks.batch + head * ks.head;
    to = keys + batch * keys_steps.batch + head * keys_steps.head + *place * keys_steps.row;
  } else {
    head -= n.heads + n.groups;
    from = v + batch * vs.batch + head * vs.head;
    to = values + batch * values_steps.batch + head * values_steps.head + *place * values_steps.row;
    to[i] = from[i];
    to[i + n.half] = from[i + n.half];
    return;
  }
  int row = n.rows == 1 ? 0 : batch * n.half;
  Wide<T> a = widen(from[i]), b = widen(from[i + n.half]), c = widen(cos[row + i]), s = widen(sin[row + i]);
  narrow(a * c - b * s, to[i]);
  narrow(b * c + a * s, to[i + n.half]);
}
