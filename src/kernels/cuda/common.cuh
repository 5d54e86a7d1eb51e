// What all kernels share. Self-contained: nvrtc compiles it without any header, and a host compiler
// compiles the same text behind tests/cuda/emulator.h, which defines EMULATED.
//
// Activations are f32, row-major. Weights, caches and narrowed activations are T: float, bf16 or
// f16. Sums are f32. A dtype at run time: 0 f32, 1 f16, 2 bf16 (as kernels::Dtype is declared).

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };

#define WARP 32
#define ALL 0xffffffffu
#define NEG_INF (-__int_as_float(0x7f800000))

#ifndef EMULATED
#define DYNAMIC_SHARED(name) extern __shared__ float name[]
__device__ __forceinline__ float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ u16 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
// d += a b for a warp: a 16 × 16 by rows, b 16 × 8 by columns, d 16 × 8.
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// 16 bytes from global to shared memory in the background; zeros where `whole` is false.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool whole) {
    u32 at = (u32)__cvta_generic_to_shared(to);
    int bytes = whole ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int LEFT> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT));
}
#endif

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __int_as_float((int)((u32)x.bits << 16)); }
__device__ __forceinline__ float widen(f16 x) { return half_to_float(x.bits); }

// Rounds to nearest even; NaN stays NaN.
template <class T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float x) {
    u32 bits = (u32)__float_as_int(x);
    bf16 out;
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        out.bits = (u16)((bits >> 16) | 0x40);
    } else {
        out.bits = (u16)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
    }
    return out;
}
template <> __device__ __forceinline__ f16 narrow<f16>(float x) {
    f16 out;
    out.bits = float_to_half(x);
    return out;
}

__device__ __forceinline__ float load(const void* from, size_t i, int dtype) {
    if (dtype == 0) return ((const float*)from)[i];
    if (dtype == 1) return widen(((const f16*)from)[i]);
    return widen(((const bf16*)from)[i]);
}
__device__ __forceinline__ void store(void* to, size_t i, int dtype, float x) {
    if (dtype == 0) ((float*)to)[i] = x;
    else if (dtype == 1) ((f16*)to)[i] = narrow<f16>(x);
    else ((bf16*)to)[i] = narrow<bf16>(x);
}

template <class T> __device__ __forceinline__ u32 pack(float low, float high) {
    return (u32)narrow<T>(low).bits | (u32)narrow<T>(high).bits << 16;
}

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL, x, step));
    return x;
}
