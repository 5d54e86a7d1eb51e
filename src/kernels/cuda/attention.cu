// Causal grouped-query attention over paged keys and values.
//
// A block of the cache holds BLOCK tokens; per layer, block and head: keys [BLOCK, head_dim], then
// values transposed [head_dim, BLOCK], and for i8 f32 scales of the keys and of the values [BLOCK]. Query rows of one key head (tokens × heads of its group) are
// taken 16 at a time; the context is cut into spans of `span` tokens at fixed positions, so that what
// a row sums does not depend on its company. Rows with several spans leave partial results that
// `attention_join` adds up.

#define BLOCK 16
#define TILE_ROWS 16

struct Attention {
    const float* q;      // [rows, heads · head_dim]
    float* out;          // the same
    float* partial;      // [split rows · heads, spans, head_dim + 2]: sums, maximum, total
    const void* cache;   // this layer's
    const u32* blocks;   // block tables of all segments, one after the other
    const u32* tiles;    // [tiles, 6]: see Tile
    const u32* rows;     // the row that each split row is
    int heads, kv_heads, head_dim, window; // window 0: none
    int span, spans;
    void* small;         // out rounded, or null
    int small_dtype;
    float cap;           // of scores; 0: none
};

struct Tile {
    int first, rows; // of the sequence
    int position;    // of its first row
    int table;       // where its blocks begin in the tables
    int start;       // first query row of the tile, counted from the sequence's first
    int split;       // split row that its first row is
};
__device__ __forceinline__ Tile tile_of(const Attention& p) {
    return ((const Tile*)p.tiles)[blockIdx.x];
}
__device__ __forceinline__ float* partial_of(const Attention& p, const Tile& tile, int token, int head) {
    size_t split = (size_t)(tile.split + token) * p.heads + head;
    return p.partial + (split * p.spans + blockIdx.z) * (p.head_dim + 2);
}

__device__ __forceinline__ float capped(const Attention& p, float score) {
    return p.cap == 0.0f ? score : p.cap * tanhf(score / p.cap);
}

// out[row, head, d].
__device__ __forceinline__ void finish(const Attention& p, size_t row, int head, int d, float sum, float total) {
    size_t at = (row * p.heads + head) * p.head_dim + d;
    float y = sum / total;
    p.out[at] = y;
    if (p.small) store(p.small, at, p.small_dtype, y);
}

typedef signed char i8;
__device__ __forceinline__ float widen(i8 x) { return (float)x; }

// Bytes of the scales of a head of a block.
template <class T> struct Scales { static const int bytes = 0; };
template <> struct Scales<i8> { static const int bytes = 2 * BLOCK * 4; };

// The keys of a head; `index` is block · kv_heads + head.
template <class T> __device__ __forceinline__ T* head_of(const void* cache, size_t index, int head_dim) {
    return (T*)((char*)cache + index * (2 * BLOCK * head_dim * sizeof(T) + Scales<T>::bytes));
}
// The scale of a token's key (which = 0) or value (1).
template <class T> __device__ __forceinline__ float scale_of(const T*, int, int, int) { return 1.0f; }
template <> __device__ __forceinline__ float scale_of<i8>(const i8* keys, int head_dim, int which, int token) {
    return ((const float*)(keys + 2 * BLOCK * head_dim))[which * BLOCK + token];
}

// Keys and values of the rows into the cache: a block a row; `slots` are block · BLOCK + place.
template <class T>
__device__ void store_kv(T* cache, const float* k, const float* v, const u32* slots, int kv_heads, int head_dim) {
    u32 slot = slots[blockIdx.x];
    size_t row = (size_t)blockIdx.x * kv_heads * head_dim;
    for (int i = threadIdx.x; i < kv_heads * head_dim; i += blockDim.x) {
        int head = i / head_dim, d = i % head_dim;
        T* keys = head_of<T>(cache, (size_t)(slot / BLOCK) * kv_heads + head, head_dim);
        keys[(slot % BLOCK) * head_dim + d] = narrow<T>(k[row + i]);
        keys[BLOCK * head_dim + d * BLOCK + slot % BLOCK] = narrow<T>(v[row + i]);
    }
}

// The same for i8: a warp a head, see kernels/kv.rs.
extern "C" __global__ void store_kv_i8(i8* cache, const float* k, const float* v, const u32* slots, int kv_heads,
                                       int head_dim) {
    u32 slot = slots[blockIdx.x];
    int lane = threadIdx.x % WARP;
    for (int head = threadIdx.x / WARP; head < kv_heads; head += blockDim.x / WARP) {
        i8* keys = head_of<i8>(cache, (size_t)(slot / BLOCK) * kv_heads + head, head_dim);
        for (int which = 0; which < 2; ++which) {
            const float* row = (which ? v : k) + ((size_t)blockIdx.x * kv_heads + head) * head_dim;
            float most = 0.0f, sum = 0.0f;
            for (int d = lane; d < head_dim; d += WARP) {
                if (fabsf(row[d]) > most) most = fabsf(row[d]);
                sum += row[d] * 0.0f;
            }
            float scale = warp_max(most) / 127.0f + warp_sum(sum);
            float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
            for (int d = lane; d < head_dim; d += WARP) {
                float rounded = fminf(fmaxf(rintf(row[d] * inverse), -127.0f), 127.0f);
                size_t at = which ? BLOCK * head_dim + d * BLOCK + slot % BLOCK : (slot % BLOCK) * head_dim + d;
                keys[at] = (i8)rounded;
            }
            if (lane == 0) ((float*)(keys + 2 * BLOCK * head_dim))[which * BLOCK + slot % BLOCK] = scale;
        }
    }
}

// Any head width and storage type: one warp, a query row after the other.
// grid: tiles, kv_heads, spans.
template <class T> __device__ void attend_any(const Attention& p) {
    DYNAMIC_SHARED(scratch); // q [head_dim], sums [head_dim], weights [WARP]
    float *q = scratch, *sums = scratch + p.head_dim, *weights = scratch + 2 * p.head_dim;
    Tile tile = tile_of(p);
    int lane = threadIdx.x, group = p.heads / p.kv_heads, kv_head = blockIdx.y;
    float scale = 1.0f / sqrtf((float)p.head_dim);
    for (int i = 0; i < TILE_ROWS; ++i) {
        int query = tile.start + i;
        if (query >= tile.rows * group) break;
        int token = query / group, head = kv_head * group + query % group;
        size_t row = (size_t)tile.first + token;
        int end = tile.position + token + 1;
        int begin = p.window ? max(0, end - p.window) : 0;
        int from = max(begin, (int)blockIdx.z * p.span), to = min(end, ((int)blockIdx.z + 1) * p.span);
        __syncwarp();
        for (int d = lane; d < p.head_dim; d += WARP) {
            q[d] = p.q[(row * p.heads + head) * p.head_dim + d];
            sums[d] = 0.0f;
        }
        float most = NEG_INF, total = 0.0f;
        for (int start = from; start < to; start += WARP) {
            __syncwarp();
            int seen = start + lane;
            float score = NEG_INF;
            if (seen < to) {
                const T* keys =
                    head_of<T>(p.cache, (size_t)p.blocks[tile.table + seen / BLOCK] * p.kv_heads + kv_head, p.head_dim);
                score = 0.0f;
                for (int d = 0; d < p.head_dim; ++d)
                    score += q[d] * widen(keys[(size_t)(seen % BLOCK) * p.head_dim + d]);
                score = capped(p, score * (scale * scale_of(keys, p.head_dim, 0, seen % BLOCK)));
            }
            float larger = fmaxf(most, warp_max(score));
            float keep = expf(most - larger), weight = seen < to ? expf(score - larger) : 0.0f;
            most = larger;
            total = total * keep + warp_sum(weight);
            if (seen < to) {
                const T* keys =
                    head_of<T>(p.cache, (size_t)p.blocks[tile.table + seen / BLOCK] * p.kv_heads + kv_head, p.head_dim);
                weight *= scale_of(keys, p.head_dim, 1, seen % BLOCK);
            }
            weights[lane] = weight;
            __syncwarp();
            for (int d = lane; d < p.head_dim; d += WARP) {
                float sum = sums[d] * keep;
                for (int j = 0; j < min(WARP, to - start); ++j) {
                    int at = start + j;
                    const T* values =
                        head_of<T>(p.cache, (size_t)p.blocks[tile.table + at / BLOCK] * p.kv_heads + kv_head, p.head_dim) +
                        BLOCK * p.head_dim;
                    sum += weights[j] * widen(values[(size_t)d * BLOCK + at % BLOCK]);
                }
                sums[d] = sum;
            }
        }
        float* partial = partial_of(p, tile, token, head);
        for (int d = lane; d < p.head_dim; d += WARP) {
            if (p.spans == 1) finish(p, row, head, d, sums[d], total);
            else partial[d] = sums[d];
        }
        if (p.spans > 1 && lane == 0) {
            partial[p.head_dim] = most;
            partial[p.head_dim + 1] = total;
        }
    }
}

// 16-bit storage and head_dim = D: tensor cores. Four warps take the blocks of a span in turn.
//
// The order of the columns of q and k is free as long as both agree, and so is the order of a
// block's tokens (see products.cu): lane t holds tokens 4t..4t+3, so that values are read 8 bytes
// at a time.
template <class T, int D> __device__ void attend(const Attention& p) {
    __shared__ float joined[4][TILE_ROWS][D];
    __shared__ float most_of[4][TILE_ROWS], total_of[4][TILE_ROWS];
    Tile tile = tile_of(p);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int group = p.heads / p.kv_heads, kv_head = blockIdx.y, queries = tile.rows * group;
    float scale = 1.0f / sqrtf((float)D);

    u32 q[D / 16][4];
    int begin[2], end[2];
    for (int half = 0; half < 2; ++half) {
        int query = min(tile.start + g + 8 * half, queries - 1);
        int token = query / group, head = kv_head * group + query % group;
        const float* from = p.q + (((size_t)tile.first + token) * p.heads + head) * D;
        end[half] = tile.position + token + 1;
        begin[half] = p.window ? max(0, end[half] - p.window) : 0;
#pragma unroll
        for (int c = 0; c < D / 32; ++c) {
            const float* v = from + c * 32 + t * 8;
            q[2 * c][half] = pack<T>(v[0], v[1]);
            q[2 * c][half + 2] = pack<T>(v[2], v[3]);
            q[2 * c + 1][half] = pack<T>(v[4], v[5]);
            q[2 * c + 1][half + 2] = pack<T>(v[6], v[7]);
        }
    }
    // What the tile sees of this span: from its first row's first position to its last row's last.
    int last = min(tile.start + TILE_ROWS, queries) - 1;
    int first_end = tile.position + tile.start / group + 1;
    int from = max(p.window ? max(0, first_end - p.window) : 0, (int)blockIdx.z * p.span);
    int to = min(tile.position + last / group + 1, ((int)blockIdx.z + 1) * p.span);

    float most[2] = {NEG_INF, NEG_INF}, total[2] = {0.0f, 0.0f}, sums[D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
    for (int block = from / BLOCK + warp; block * BLOCK < to; block += 4) {
        const T* keys =
            (const T*)p.cache + ((size_t)p.blocks[tile.table + block] * p.kv_heads + kv_head) * 2 * BLOCK * D;
        const T* values = keys + BLOCK * D;
        float scores[2][4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
            const T* key = keys + (g / 2 * 4 + g % 2 + 2 * n) * D + t * 8;
#pragma unroll
            for (int c = 0; c < D / 32; ++c) {
                uint4 k = *(const uint4*)(key + c * 32);
                mma(scores[n], q[2 * c], k.x, k.y, T());
                mma(scores[n], q[2 * c + 1], k.z, k.w, T());
            }
        }
        float larger[2] = {most[0], most[1]};
#pragma unroll
        for (int n = 0; n < 2; ++n)
            for (int i = 0; i < 4; ++i) {
                int position = block * BLOCK + t * 4 + 2 * n + i % 2, half = i / 2;
                bool seen = position >= begin[half] && position < end[half] && position < to && position >= from;
                scores[n][i] = seen ? capped(p, scores[n][i] * scale) : NEG_INF;
                larger[half] = fmaxf(larger[half], scores[n][i]);
            }
        for (int half = 0; half < 2; ++half) {
            larger[half] = fmaxf(larger[half], __shfl_xor_sync(ALL, larger[half], 1));
            larger[half] = fmaxf(larger[half], __shfl_xor_sync(ALL, larger[half], 2));
            // Nothing seen yet: any finite number keeps the weights at 0.
            float base = larger[half] == NEG_INF ? 0.0f : larger[half];
            float keep = expf(most[half] - base);
            most[half] = larger[half];
            total[half] *= keep;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                sums[n][2 * half] *= keep;
                sums[n][2 * half + 1] *= keep;
            }
            for (int n = 0; n < 2; ++n)
                for (int e = 0; e < 2; ++e) {
                    float weight = expf(scores[n][2 * half + e] - base);
                    scores[n][2 * half + e] = weight;
                    total[half] += weight;
                }
        }
        // What lies behind the last token is left over from other sequences: 0 · ∞ must not enter.
        int left = to - block * BLOCK - t * 4;
        u32 kept[2] = {left >= 2 ? ALL : left == 1 ? 0xffffu : 0u, left >= 4 ? ALL : left == 3 ? 0xffffu : 0u};
        u32 weights[4] = {pack<T>(scores[0][0], scores[0][1]), pack<T>(scores[0][2], scores[0][3]),
                          pack<T>(scores[1][0], scores[1][1]), pack<T>(scores[1][2], scores[1][3])};
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            uint2 v = *(const uint2*)(values + (n * 8 + g) * BLOCK + t * 4);
            v.x &= kept[0];
            v.y &= kept[1];
            mma(sums[n], weights, v.x, v.y, T());
        }
    }
    for (int half = 0; half < 2; ++half) {
        total[half] += __shfl_xor_sync(ALL, total[half], 1);
        total[half] += __shfl_xor_sync(ALL, total[half], 2);
        if (t == 0) {
            most_of[warp][g + 8 * half] = most[half];
            total_of[warp][g + 8 * half] = total[half];
        }
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
        for (int i = 0; i < 4; ++i) joined[warp][g + i / 2 * 8][n * 8 + t * 2 + i % 2] = sums[n][i];
    __syncthreads();
    for (int i = threadIdx.x; i < TILE_ROWS * D; i += blockDim.x) {
        int r = i / D, d = i % D, query = tile.start + r;
        if (query >= queries) continue;
        float largest = NEG_INF, sum = 0.0f, all = 0.0f;
        for (int w = 0; w < 4; ++w) largest = fmaxf(largest, most_of[w][r]);
        for (int w = 0; w < 4; ++w) {
            float keep = most_of[w][r] == NEG_INF ? 0.0f : expf(most_of[w][r] - largest);
            sum += joined[w][r][d] * keep;
            all += total_of[w][r] * keep;
        }
        size_t row = (size_t)tile.first + query / group;
        int head = kv_head * group + query % group;
        if (p.spans == 1) {
            finish(p, row, head, d, sum, all);
            continue;
        }
        float* partial = partial_of(p, tile, query / group, head);
        partial[d] = sum;
        if (d == 0) {
            partial[D] = largest;
            partial[D + 1] = all;
        }
    }
}

// Adds up the partial results of the spans; a block a split row and head.
extern "C" __global__ void attention_join(const Attention p) {
    size_t row = p.rows[blockIdx.x / p.heads];
    int head = blockIdx.x % p.heads;
    const float* partial = p.partial + (size_t)blockIdx.x * p.spans * (p.head_dim + 2);
    float most = NEG_INF;
    for (int s = 0; s < p.spans; ++s) most = fmaxf(most, partial[s * (p.head_dim + 2) + p.head_dim]);
    for (int d = threadIdx.x; d < p.head_dim; d += blockDim.x) {
        float sum = 0.0f, total = 0.0f;
        for (int s = 0; s < p.spans; ++s) {
            const float* part = partial + s * (p.head_dim + 2);
            float keep = part[p.head_dim] == NEG_INF ? 0.0f : expf(part[p.head_dim] - most);
            sum += part[d] * keep;
            total += part[p.head_dim + 1] * keep;
        }
        finish(p, row, head, d, sum, total);
    }
}

extern "C" __global__ void attend_any_i8(const Attention p) { attend_any<i8>(p); }

#define ATTENTION(T) \
    extern "C" __global__ void store_kv_##T(T* cache, const float* k, const float* v, const u32* slots, \
                                            int kv_heads, int head_dim) { \
        store_kv<T>(cache, k, v, slots, kv_heads, head_dim); \
    } \
    extern "C" __global__ void attend_any_##T(const Attention p) { attend_any<T>(p); }
#define ATTENTION_OF(T, D) \
    extern "C" __global__ void __launch_bounds__(128) attend_##T##_##D(const Attention p) { attend<T, D>(p); }
typedef float f32;
ATTENTION(f32)
ATTENTION(bf16)
ATTENTION(f16)
ATTENTION_OF(bf16, 64)
ATTENTION_OF(bf16, 128)
ATTENTION_OF(f16, 64)
ATTENTION_OF(f16, 128)
