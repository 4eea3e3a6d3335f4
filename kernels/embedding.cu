// y[p] = W[i_p]      W: (v, d)  y: (n, d)
// dW[r] = sum of g over the places where i = r      g: (n, d)  dW: (v, d), zeros before
//
// Forward: a block takes a row, 16 bytes at a time.
// Backward: `order` sorts the places by row, stably; `rows` are the sorted rows. A run of equal rows is cut
// where a multiple of 32 places begins: a block adds up a piece of one, in the order of the places.
// A run of one piece is written at once; the pieces of a longer one are added up in their order by a
// second kernel: no atomics, the same bits every time, and halves are summed in float32.
// Bytes: forward the named rows are read and y is written, backward g is read once and the named rows
// of dW are written once.
#include "common.cuh"

constexpr int SPAN = 32;

template <class T, int V>
__global__ void embedding_forward(const T *w, const long long *rows, T *y, long long v, int d) {
  long long row = rows[blockIdx.x];
  if (row < 0 || row >= v) row = (row % v + v) % v;  // counts from the other end
  for (int i = threadIdx.x * V; i < d; i += blockDim.x * V) {
    Wide<T> a[V];
    load<V>(w + row * d + i, a);
    store<V>(a, y + (long long)blockIdx.x * d + i);
  }
}

// How many of the sorted rows at first, first + step, ... before `stop` are `row`: 32 at most.
__device__ __forceinline__ int equal_rows(const long long *rows, long long first, int step, int stop, long long row) {
  long long p = first + (long long)(threadIdx.x % 32) * step;
  return __popc(__ballot_sync(ALL_LANES, p < stop && rows[p] == row));
}

// Of the two pieces that a span may share with its neighbours the one that begins it, or the other.
__device__ __forceinline__ long long slot(int place) { return place / SPAN * 2 + (place % SPAN != 0); }

template <class T, int V>
__global__ void embedding_pieces(const T *g, const long long *order, const long long *rows, T *dw, Wide<T> *pieces,
                                 int n, int d) {
  int first = blockIdx.x;
  long long row = rows[first];
  bool begins = first == 0 || rows[first - 1] != row;
  if (!begins && first % SPAN) return;
  int count = equal_rows(rows, first, 1, min(n, (first / SPAN + 1) * SPAN), row);
  bool ends = first + count == n || rows[first + count] != row;
  for (int i = threadIdx.x * V; i < d; i += blockDim.x * V) {
    Wide<T> sums[V] = {}, a[V];
#pragma unroll 4
    for (int p = first; p < first + count; p++) {
      load<V>(g + order[p] * d + i, a);
#pragma unroll
      for (int j = 0; j < V; j++) sums[j] += a[j];
    }
    if (begins && ends) {
      store<V>(sums, dw + row * d + i);
    } else {
#pragma unroll
      for (int j = 0; j < V; j++) pieces[slot(first) * d + i + j] = sums[j];
    }
  }
}

// A block for each span but the first: that of the first border that a run crosses adds up its pieces.
template <class T>
__global__ void embedding_runs(const long long *rows, const Wide<T> *pieces, T *dw, int n, int d) {
  int border = (blockIdx.x + 1) * SPAN, before = border - SPAN;
  long long row = rows[border];
  if (rows[border - 1] != row || (before > 0 && rows[before - 1] == row)) return;
  long long head = slot(rows[before] == row ? before : border - 1);
  for (int i = threadIdx.x; i < (d + 31) / 32 * 32; i += blockDim.x) {  // whole warps
    Wide<T> sum = i < d ? pieces[head * d + i] : Wide<T>(0);
    for (int p = border, count = 32; count == 32; p += 32 * SPAN) {
      count = equal_rows(rows, p, SPAN, n, row);
#pragma unroll 4
      for (int k = 0; k < count && i < d; k++) sum += pieces[slot(p + k * SPAN) * d + i];
    }
    if (i < d) narrow(sum, dw[row * d + i]);
  }
}
