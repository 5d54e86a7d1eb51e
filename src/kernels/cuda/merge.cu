// The merged weights of one c: out = round(Σ cₖθₖ + Σ cⱼsⱼBⱼAⱼ), sums in f32, one rounding. Tables on
// the device say what is summed; only the coefficients change from merge to merge. Dense sums are
// made without fused multiply-adds, in the CPU's order: the same bits come out. The first value that
// its storage type cannot hold is reported.

struct MergeTensor {
    u64 out;        // byte offset in the merged model
    u64 len;        // elements
    u32 width;      // columns
    u32 dtype;      // of the output
    u32 dense, dense_count;       // in the table of dense terms
    u32 low_rank, low_rank_count; // in the table of low-rank terms
    u32 same;       // all dense terms have the output's dtype
    u32 padding;
};
struct DenseTerm {
    const void* at;
    int term;       // index of its coefficient; < 0: 1
    u32 dtype;
};
struct LowRankTerm {
    const void *down, *up; // [rank, width], [rows, rank]
    double scale;
    int term;
    u32 rank, down_dtype, up_dtype;
};
struct Merge {
    const MergeTensor* tensors;
    const DenseTerm* dense;
    const LowRankTerm* low_rank;
    const u32* tasks;      // [tasks, 3]: tensor, x, y
    const float* values;   // coefficients
    u8* out;
    u64* beyond;           // lowered to the first byte in `out` of a value that is not finite
};

#define NONE 0xffffffffu

// Sums round to finite values of a dtype exactly when their magnitude is below it; NaN is not.
__device__ __forceinline__ float limit_of(int dtype) {
    if (dtype == 1) return 65520.0f;
    return __int_as_float(dtype == 2 ? 0x7f7f8000 : 0x7f800000);
}
// Reports an element of `tensor` that is not finite.
__device__ __forceinline__ void report(const Merge& p, const MergeTensor& tensor, u64 element) {
    atomicMin(p.beyond, tensor.out + element * (tensor.dtype == 0 ? 4 : 2));
}

#define CHUNK 16384    // elements of a dense task
#define MOST_TERMS 9   // terms kept in registers

template <class T> struct Vector { static const int COUNT = 16 / sizeof(T); };

__device__ __forceinline__ void unpack(uint4 v, float (&to)[8], bf16) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        bf16 x = {(u16)(words[i / 2] >> (16 * (i % 2)))};
        to[i] = widen(x);
    }
}
__device__ __forceinline__ void unpack(uint4 v, float (&to)[8], f16) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        f16 x = {(u16)(words[i / 2] >> (16 * (i % 2)))};
        to[i] = widen(x);
    }
}
__device__ __forceinline__ void unpack(uint4 v, float (&to)[4], float) {
    to[0] = __int_as_float((int)v.x);
    to[1] = __int_as_float((int)v.y);
    to[2] = __int_as_float((int)v.z);
    to[3] = __int_as_float((int)v.w);
}
template <class T> __device__ __forceinline__ uint4 repack(const float (&x)[8]) {
    uint4 out = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])};
    return out;
}
template <class T> __device__ __forceinline__ uint4 repack(const float (&x)[4]) {
    uint4 out = {(u32)__float_as_int(x[0]), (u32)__float_as_int(x[1]), (u32)__float_as_int(x[2]),
                 (u32)__float_as_int(x[3])};
    return out;
}

struct Span { u64 start, end; float limit; };

// out[start..end] of N terms; both multiples of a vector. Returns the distance from `start` of the
// thread's first element outside the limit, or NONE.
template <class T, int N>
__device__ u32 sum_of(T* out, const T* const* sources, const float* coefficients, const Span& span) {
    const int COUNT = Vector<T>::COUNT;
    const T* from[N];
    float c[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
        from[k] = sources[k];
        c[k] = coefficients[k];
    }
    u32 first = NONE;
    for (u64 i = span.start + (u64)threadIdx.x * COUNT; i < span.end; i += (u64)blockDim.x * COUNT) {
        uint4 v[N];
#pragma unroll
        for (int k = 0; k < N; ++k) v[k] = __ldcs((const uint4*)(from[k] + i));
        float sum[COUNT], x[COUNT];
        unpack(v[0], sum, T());
#pragma unroll
        for (int j = 0; j < COUNT; ++j) sum[j] = __fmul_rn(sum[j], c[0]);
#pragma unroll
        for (int k = 1; k < N; ++k) {
            unpack(v[k], x, T());
#pragma unroll
            for (int j = 0; j < COUNT; ++j) sum[j] = __fadd_rn(sum[j], __fmul_rn(x[j], c[k]));
        }
        __stcs((uint4*)(out + i), repack<T>(sum));
        bool within = true;
#pragma unroll
        for (int j = 0; j < COUNT; ++j) within = within && fabsf(sum[j]) < span.limit;
        if (!within && first == NONE)
#pragma unroll
            for (int j = COUNT - 1; j >= 0; --j)
                if (!(fabsf(sum[j]) < span.limit)) first = (u32)(i - span.start) + j;
    }
    return first;
}

template <class T>
__device__ u32 sum_same(T* out, const T* const* sources, const float* c, int count, const Span& span) {
    switch (count) {
        case 1: return sum_of<T, 1>(out, sources, c, span);
        case 2: return sum_of<T, 2>(out, sources, c, span);
        case 3: return sum_of<T, 3>(out, sources, c, span);
        case 4: return sum_of<T, 4>(out, sources, c, span);
        case 5: return sum_of<T, 5>(out, sources, c, span);
        case 6: return sum_of<T, 6>(out, sources, c, span);
        case 7: return sum_of<T, 7>(out, sources, c, span);
        case 8: return sum_of<T, 8>(out, sources, c, span);
        case 9: return sum_of<T, 9>(out, sources, c, span);
    }
    return NONE;
}

__device__ __forceinline__ float coefficient(const Merge& p, int term) { return term < 0 ? 1.0f : p.values[term]; }

// The dense terms at element i; terms whose coefficient is 0 are not read.
__device__ __forceinline__ float dense_sum(const Merge& p, const MergeTensor& tensor, u64 i) {
    float sum = 0.0f;
    bool first = true;
    for (u32 k = 0; k < tensor.dense_count; ++k) {
        const DenseTerm& term = p.dense[tensor.dense + k];
        float c = coefficient(p, term.term);
        if (c == 0.0f) continue;
        float x = __fmul_rn(load(term.at, i, term.dtype), c);
        sum = first ? x : __fadd_rn(sum, x);
        first = false;
    }
    return sum;
}

// Tensors without low-rank terms; a block a chunk of CHUNK elements.
extern "C" __global__ void __launch_bounds__(256) merge_dense(const Merge p) {
    const u32* task = p.tasks + (size_t)blockIdx.x * 3;
    const MergeTensor& tensor = p.tensors[task[0]];
    u64 start = (u64)task[1] * CHUNK, end = min(tensor.len, start + CHUNK);
    u8* out = p.out + tensor.out;
    const void* sources[MOST_TERMS];
    float c[MOST_TERMS];
    u32 count = 0, wanted = 0;
    for (u32 k = 0; k < tensor.dense_count; ++k) {
        const DenseTerm& term = p.dense[tensor.dense + k];
        float value = coefficient(p, term.term);
        if (value == 0.0f) continue;
        ++wanted;
        if (count == MOST_TERMS) continue;
        sources[count] = term.at;
        c[count++] = value;
    }
    u64 whole = start;
    u32 first = NONE;
    float limit = limit_of(tensor.dtype);
    if (tensor.same && wanted == count && count > 0) {
        whole = start + (end - start) / 8 * 8;
        Span span = {start, whole, limit};
        if (tensor.dtype == 0) first = sum_same((float*)out, (const float* const*)sources, c, count, span);
        else if (tensor.dtype == 1) first = sum_same((f16*)out, (const f16* const*)sources, c, count, span);
        else first = sum_same((bf16*)out, (const bf16* const*)sources, c, count, span);
    }
    for (u64 i = whole + threadIdx.x; i < end; i += blockDim.x) {
        float sum = dense_sum(p, tensor, i);
        if (!(fabsf(sum) < limit) && first == NONE) first = (u32)(i - start);
        store(out, i, tensor.dtype, sum);
    }
    if (first != NONE) report(p, tensor, start + first);
}

// Tensors with low-rank terms; a block of 4 warps a tile of 64 rows × 64 columns. Products run on
// tensor cores with each factor as a bf16 and the bf16 of what that leaves out (no rest where the
// factor is stored as bf16): what is dropped is below 2⁻¹⁶ of a summand.
#define EDGE 64
#define DEPTH 16
#define PITCH 24 // of a staged row: no two lanes on one bank

__device__ __forceinline__ void split(float x, bf16& high, bf16& low) {
    high = narrow<bf16>(x);
    low = narrow<bf16>(x - widen(high));
}

extern "C" __global__ void __launch_bounds__(128) merge_low_rank(const Merge p) {
    __shared__ __align__(16) bf16 up[2][EDGE * PITCH], down[2][EDGE * PITCH];
    __shared__ float tile[EDGE][EDGE + 4];
    const u32* task = p.tasks + (size_t)blockIdx.x * 3;
    const MergeTensor& tensor = p.tensors[task[0]];
    u32 row0 = task[1] * EDGE, column0 = task[2] * EDGE;
    u32 width = tensor.width, rows = (u32)(tensor.len / width);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    float sum[8][4];
#pragma unroll
    for (int n = 0; n < 8; ++n) sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.0f;
    for (u32 k = 0; k < tensor.low_rank_count; ++k) {
        const LowRankTerm& term = p.low_rank[tensor.low_rank + k];
        float factor = (float)((double)coefficient(p, term.term) * term.scale);
        if (factor == 0.0f) continue;
        float d[8][4];
#pragma unroll
        for (int n = 0; n < 8; ++n) d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
        for (u32 r0 = 0; r0 < term.rank; r0 += DEPTH) {
            __syncthreads();
            for (int i = threadIdx.x; i < EDGE * DEPTH; i += blockDim.x) {
                // up: neighbours in rank; down: neighbours in columns, stored transposed.
                u32 row = row0 + i / DEPTH, r = r0 + i % DEPTH;
                float b = row < rows && r < term.rank ? load(term.up, (size_t)row * term.rank + r, term.up_dtype) : 0.0f;
                split(b, up[0][i / DEPTH * PITCH + i % DEPTH], up[1][i / DEPTH * PITCH + i % DEPTH]);
                u32 column = column0 + i % EDGE, s = r0 + i / EDGE;
                float a = column < width && s < term.rank ? load(term.down, (size_t)s * width + column, term.down_dtype) : 0.0f;
                split(a, down[0][i % EDGE * PITCH + i / EDGE], down[1][i % EDGE * PITCH + i / EDGE]);
            }
            __syncthreads();
            u32 a[2][4];
#pragma unroll
            for (int part = 0; part < 2; ++part)
                for (int i = 0; i < 4; ++i)
                    a[part][i] = *(const u32*)&up[part][(warp * 16 + g + i % 2 * 8) * PITCH + t * 2 + i / 2 * 8];
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                u32 b[2][2];
#pragma unroll
                for (int part = 0; part < 2; ++part)
                    for (int i = 0; i < 2; ++i)
                        b[part][i] = *(const u32*)&down[part][(n * 8 + g) * PITCH + t * 2 + i * 8];
                mma(d[n], a[0], b[0][0], b[0][1], bf16());
                if (term.up_dtype != 2) mma(d[n], a[1], b[0][0], b[0][1], bf16());
                if (term.down_dtype != 2) mma(d[n], a[0], b[1][0], b[1][1], bf16());
            }
        }
#pragma unroll
        for (int n = 0; n < 8; ++n)
            for (int i = 0; i < 4; ++i) sum[n][i] += factor * d[n][i];
    }
#pragma unroll
    for (int n = 0; n < 8; ++n)
        for (int i = 0; i < 4; ++i) tile[warp * 16 + g + i / 2 * 8][n * 8 + t * 2 + i % 2] = sum[n][i];
    __syncthreads();
    u8* out = p.out + tensor.out;
    bool reported = false;
    float limit = limit_of(tensor.dtype);
    for (int i = threadIdx.x; i < EDGE * EDGE; i += blockDim.x) {
        u32 row = row0 + i / EDGE, column = column0 + i % EDGE;
        if (row >= rows || column >= width) continue;
        u64 at = (u64)row * width + column;
        float sum = dense_sum(p, tensor, at) + tile[i / EDGE][i % EDGE];
        if (!reported && !(fabsf(sum) < limit)) {
            report(p, tensor, at);
            reported = true;
        }
        store(out, at, tensor.dtype, sum);
    }
}
