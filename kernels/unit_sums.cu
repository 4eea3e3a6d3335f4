// For each unit the weighted sum of its rows, in double        see unit_sums.py
#include "common.cuh"

// sums[j] = sum of weight_i x_i over the rows i of unit j (weight null: all 1)
//
// Rows are sorted by unit (order), unit j has those from starts[j] to starts[j + 1]: a block adds
// up one unit's, in their order: the same bits every time. Bytes: x read once, sums written once.
template <class T>
__global__ void unit_sums(const T *x, const T *weight, const long long *order, const long long *starts, double *sums,
                          int d) {
  long long first = starts[blockIdx.x], last = starts[blockIdx.x + 1];
  for (int f = threadIdx.x; f < d; f += blockDim.x) {
    double sum = 0;
    for (long long p = first; p < last; p++) {
      long long row = order[p];
      sum += (weight ? double(weight[row]) : 1.0) * double(x[row * d + f]);
    }
    sums[(long long)blockIdx.x * d + f] = sum;
  }
}
