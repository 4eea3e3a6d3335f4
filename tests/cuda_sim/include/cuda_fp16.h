// float16 as far as kernels use it: storage, and conversions that round to nearest even.
#pragma once
struct __half { _Float16 v; };
struct alignas(4) __half2 { __half x, y; };
inline float __half2float(__half h) { return h.v; }
inline __half __float2half(float f) { return {(_Float16)f}; }
inline __half __float2half_rn(float f) { return {(_Float16)f}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__float2half(a), __float2half(b)}; }
