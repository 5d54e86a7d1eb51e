// Enough of CUDA for src/kernels/cuda/*.cu to run on the host, one block after the other. The threads
// of a block are fibers of one system thread: each runs until it waits for others, in ascending or
// in descending order, so that a missing barrier shows in one of the two.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static thread_local
#define DYNAMIC_SHARED(name) float* name = emulator::dynamic_shared()

struct uint2 { unsigned x, y; };
struct __attribute__((aligned(16))) uint4 { unsigned x, y, z, w; };
struct dim3 { unsigned x, y, z; };

namespace emulator {
struct Exchange { // what the lanes of a warp show each other
    unsigned words[32][6];
    float product[16][8];
};
extern thread_local dim3 thread_index, block_index, block_size, grid_size;
float* dynamic_shared();
void block_barrier();
void warp_barrier();
Exchange& exchange();
}
#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() { emulator::warp_barrier(); }

inline float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }
inline int __float_as_int(float x) { int y; memcpy(&y, &x, 4); return y; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline uint4 __ldcs(const uint4* p) { return *p; }
inline void __stcs(uint4* p, uint4 x) { *p = x; }
inline void atomicMin(unsigned long long* at, unsigned long long x) { if (x < *at) *at = x; }
template <class A, class B> inline auto min(A a, B b) -> decltype(a + b) { return a < b ? a : b; }
template <class A, class B> inline auto max(A a, B b) -> decltype(a + b) { return a > b ? a : b; }

inline float __shfl_xor_sync(unsigned, float x, int mask) {
    int lane = threadIdx.x % 32;
    emulator::exchange().words[lane][0] = (unsigned)__float_as_int(x);
    emulator::warp_barrier();
    float y = __int_as_float((int)emulator::exchange().words[lane ^ mask][0]);
    emulator::warp_barrier();
    return y;
}

inline float half_to_float(unsigned short bits) {
    _Float16 x;
    memcpy(&x, &bits, 2);
    return (float)x;
}
inline unsigned short float_to_half(float x) {
    _Float16 y = (_Float16)x;
    unsigned short bits;
    memcpy(&bits, &y, 2);
    return bits;
}

inline void copy_async(void* to, const void* from, bool whole) {
    if (whole) memcpy(to, from, 16);
    else memset(to, 0, 16);
}
inline void copy_commit() {}
template <int LEFT> inline void copy_wait() {}

struct bf16;
struct f16;
float widen(bf16);
float widen(f16);
// mma.sync.m16n8k16 by the fragment layout of the PTX manual.
template <class T> void mma(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, T) {
    emulator::Exchange& all = emulator::exchange();
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(all.words[lane], mine, sizeof mine);
    emulator::warp_barrier();
    if (lane == 0) { // for all of them
        auto value = [&](int lane, int word, int odd) {
            T x;
            unsigned short bits = (unsigned short)(all.words[lane][word] >> (16 * odd));
            memcpy(&x, &bits, 2);
            return widen(x);
        };
        float left[16][16], right[16][8];
        for (int k = 0; k < 16; ++k) {
            for (int row = 0; row < 16; ++row)
                left[row][k] = value(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2);
            for (int column = 0; column < 8; ++column)
                right[k][column] = value(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
        }
        memset(all.product, 0, sizeof all.product);
        for (int row = 0; row < 16; ++row)
            for (int k = 0; k < 16; ++k)
                for (int column = 0; column < 8; ++column)
                    all.product[row][column] += left[row][k] * right[k][column];
    }
    emulator::warp_barrier();
    for (int i = 0; i < 4; ++i) d[i] += all.product[g + i / 2 * 8][t * 2 + i % 2];
}
