// y = x Wᵀ (+ onto) for groups of layers in one launch: `first` says which blocks are whose.
//
// The 16-bit kernels feed tensor cores straight from memory. An mma fragment wants pairs of columns
// from all over a row, but the order of the summands is free as long as both operands agree: each
// lane takes 8 consecutive columns (16 bytes) and calls them the ones it should hold.

struct Product {
    const void* x;       // [rows, in]: T; f32 in the scaled kernels
    const void* w;       // [out, in]: T
    const float* onto;   // [rows, out] or null; may be y
    float* y;            // [rows, out]
    const float* factor; // scaled kernels: [in], and
    const int* term;     // [in]: x[t, i] · factor[i] · c[t, term[i]]
    int in, out;
    int first;           // first block of this product
    int padding;
};

#define MOST_PRODUCTS 8

struct Products {
    Product item[MOST_PRODUCTS];
    const float* c; // [rows, terms]
    int count, rows, terms, padding;
};

__device__ __forceinline__ const Product& whose(const Products& group, int block) {
    int i = 0;
    while (i + 1 < group.count && block >= group.item[i + 1].first) ++i;
    return group.item[i];
}


// 8 columns from k on, as 4 pairs; zeros past the end.
template <class T> __device__ __forceinline__ uint4 fetch(const T* row, int k, int in) {
    if (k + 8 <= in && in % 8 == 0) return *(const uint4*)(row + k);
    u32 pair[4] = {0, 0, 0, 0};
    for (int i = 0; i < 8; ++i)
        if (k + i < in) pair[i / 2] |= (u32)row[k + i].bits << (16 * (i % 2));
    uint4 out = {pair[0], pair[1], pair[2], pair[3]};
    return out;
}
template <class T>
__device__ __forceinline__ uint4 fetch_scaled(const Product& p, const Products& group, int row, int k) {
    float v[8];
    const float* x = (const float*)p.x + (size_t)row * p.in;
    for (int i = 0; i < 8; ++i) {
        int column = k + i;
        v[i] = 0.0f;
        if (column < p.in) {
            int term = p.term[column];
            float s = term < 0 ? 1.0f : group.c[(size_t)row * group.terms + term];
            v[i] = x[column] * (p.factor[column] * s);
        }
    }
    uint4 out = {pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7])};
    return out;
}

// A block: 16 outputs × 8·TILES rows; its 8 warps share the columns out among them.
template <class T, int TILES, bool SCALED> __device__ void few_rows(const Products& group) {
    __shared__ float sums[8][16 * 8 * TILES];
    const Product& p = whose(group, blockIdx.y);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int output = (blockIdx.y - p.first) * 16, row = blockIdx.x * 8 * TILES;
    int last = p.out - 1;
    const T* low = (const T*)p.w + (size_t)min(output + g, last) * p.in;
    const T* high = (const T*)p.w + (size_t)min(output + g + 8, last) * p.in;
    float d[TILES][4];
#pragma unroll
    for (int n = 0; n < TILES; ++n) d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
    // `base` is the same for a whole warp: an mma needs all its lanes.
#pragma unroll 4
    for (int base = warp * WARP; base < p.in; base += 8 * WARP) {
        int k = base + t * 8;
        uint4 a = fetch(low, k, p.in), b = fetch(high, k, p.in);
        u32 even[4] = {a.x, b.x, a.y, b.y}, odd[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            int r = min(row + n * 8 + g, group.rows - 1);
            uint4 x = SCALED ? fetch_scaled<T>(p, group, r, k)
                             : fetch((const T*)p.x + (size_t)r * p.in, k, p.in);
            mma(d[n], even, x.x, x.y, T());
            mma(d[n], odd, x.z, x.w, T());
        }
    }
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
        for (int i = 0; i < 4; ++i) {
            int r = n * 8 + t * 2 + i % 2, o = g + i / 2 * 8;
            sums[warp][r * 16 + o] = d[n][i];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * 8 * TILES; i += blockDim.x) {
        int r = row + i / 16, o = output + i % 16;
        if (r >= group.rows || o >= p.out) continue;
        float sum = 0.0f;
        for (int w = 0; w < 8; ++w) sum += sums[w][i];
        size_t at = (size_t)r * p.out + o;
        p.y[at] = p.onto ? p.onto[at] + sum : sum;
    }
}

// The same in f32, a warp an output, for 8 rows at a time.
template <bool SCALED> __device__ void few_rows_f32(const Products& group) {
    __shared__ float parts[8][8][WARP + 1];
    const Product& p = whose(group, blockIdx.y);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int output = (blockIdx.y - p.first) * 16 + warp * 2, row = blockIdx.x * 8;
    for (int o = output; o < min(output + 2, p.out); ++o) {
        const float* w = (const float*)p.w + (size_t)o * p.in;
        float sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int k = lane; k < p.in; k += WARP) {
            float weight = w[k];
            for (int r = 0; r < 8; ++r) {
                int at = min(row + r, group.rows - 1);
                float x = ((const float*)p.x)[(size_t)at * p.in + k];
                if (SCALED) {
                    float s = p.term[k] < 0 ? 1.0f : group.c[(size_t)at * group.terms + p.term[k]];
                    x *= p.factor[k] * s;
                }
                sums[r] += x * weight;
            }
        }
        for (int r = 0; r < 8; ++r) parts[warp][r][lane] = sums[r];
        __syncwarp();
        // Four lanes a row.
        int r = lane / 4;
        float sum = 0.0f;
        for (int i = 0; i < WARP / 4; ++i) sum += parts[warp][r][lane % 4 * (WARP / 4) + i];
        sum += __shfl_xor_sync(ALL, sum, 1);
        sum += __shfl_xor_sync(ALL, sum, 2);
        if (lane % 4 == 0 && row + r < group.rows) {
            size_t at = (size_t)(row + r) * p.out + o;
            p.y[at] = p.onto ? p.onto[at] + sum : sum;
        }
        __syncwarp();
    }
}

// Many rows: tiles of 128 outputs × 128 rows, columns in slices of 32, three slices in flight.
#define TILE 128
#define SLICE 32
#define STAGES 3
template <class T> __device__ void many_rows(const Products& group) {
    __shared__ __align__(16) T tiles[STAGES][2][TILE * SLICE];
    const Product& p = whose(group, blockIdx.y);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int output = (blockIdx.y - p.first) * TILE, row = blockIdx.x * TILE;
    int out_in_tile = warp / 4 * 64, row_in_tile = warp % 4 * 32;
    float d[4][4][4];
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n) d[m][n][0] = d[m][n][1] = d[m][n][2] = d[m][n][3] = 0.0f;
    int slices = (p.in + SLICE - 1) / SLICE;
    auto request = [&](int slice) {
        if (slice < slices) {
            T (*to)[TILE * SLICE] = tiles[slice % STAGES];
            for (int i = threadIdx.x; i < TILE * 4; i += blockDim.x) {
                int r = i / 4, k = slice * SLICE + i % 4 * 8, at = r * SLICE + i % 4 * 8;
                bool inside = k < p.in; // in is a multiple of 8
                int o = min(output + r, p.out - 1), x = min(row + r, group.rows - 1);
                int column = inside ? k : 0;
                copy_async(to[0] + at, (const T*)p.w + (size_t)o * p.in + column, inside);
                copy_async(to[1] + at, (const T*)p.x + (size_t)x * p.in + column, inside);
            }
        }
        copy_commit();
    };
    request(0);
    request(1);
    for (int slice = 0; slice < slices; ++slice) {
        copy_wait<1>();
        __syncthreads(); // the slice is there, and the one before is read by all
        request(slice + 2);
        const T* w = tiles[slice % STAGES][0];
        const T* x = tiles[slice % STAGES][1];
        uint4 b[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) b[n] = *(const uint4*)(x + (row_in_tile + n * 8 + g) * SLICE + t * 8);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
            uint4 low = *(const uint4*)(w + (out_in_tile + m * 16 + g) * SLICE + t * 8);
            uint4 high = *(const uint4*)(w + (out_in_tile + m * 16 + g + 8) * SLICE + t * 8);
            u32 even[4] = {low.x, high.x, low.y, high.y}, odd[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                mma(d[m][n], even, b[n].x, b[n].y, T());
                mma(d[m][n], odd, b[n].z, b[n].w, T());
            }
        }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int n = 0; n < 4; ++n)
            for (int i = 0; i < 4; ++i) {
                int r = row + row_in_tile + n * 8 + t * 2 + i % 2;
                int o = output + out_in_tile + m * 16 + g + i / 2 * 8;
                if (r >= group.rows || o >= p.out) continue;
                size_t at = (size_t)r * p.out + o;
                p.y[at] = p.onto ? p.onto[at] + d[m][n][i] : d[m][n][i];
            }
}

#define PRODUCTS(T, TILES) \
    extern "C" __global__ void __launch_bounds__(256) products_##T##_##TILES(const Products group) { \
        few_rows<T, TILES, false>(group); \
    } \
    extern "C" __global__ void __launch_bounds__(256) scaled_##T##_##TILES(const Products group) { \
        few_rows<T, TILES, true>(group); \
    }
PRODUCTS(bf16, 1)
PRODUCTS(bf16, 4)
PRODUCTS(bf16, 8)
PRODUCTS(f16, 1)
PRODUCTS(f16, 4)
PRODUCTS(f16, 8)
extern "C" __global__ void __launch_bounds__(256) products_f32(const Products group) {
    few_rows_f32<false>(group);
}
extern "C" __global__ void __launch_bounds__(256) scaled_f32(const Products group) {
    few_rows_f32<true>(group);
}
extern "C" __global__ void __launch_bounds__(256) many_rows_bf16(const Products group) {
    many_rows<bf16>(group);
}
extern "C" __global__ void __launch_bounds__(256) many_rows_f16(const Products group) {
    many_rows<f16>(group);
}
