// Everything that goes once over an activation. `out` may be `x`. `small`, where not null, gets the
// result rounded to `small_dtype` as well: what the next product reads.

// out[t, :] = table[tokens[t], :]; a block a row.
extern "C" __global__ void embed(float* out, const void* table, int dtype, const u32* tokens, int width) {
    size_t from = (size_t)tokens[blockIdx.x] * width, to = (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[to + i] = load(table, from + i, dtype);
}

// out[t, :] = w; a block a row.
extern "C" __global__ void broadcast(float* out, const void* w, int dtype, int width) {
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        out[(size_t)blockIdx.x * width + i] = load(w, i, dtype);
}

// out[t, :] = x[rows[t], :]; a block a row.
extern "C" __global__ void select_rows(float* out, const float* x, const u32* rows, int width) {
    size_t from = (size_t)rows[blockIdx.x] * width, to = (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[to + i] = x[from + i];
}

// out[t, i] = x[t, first + i] for i below `count`; a block a row.
extern "C" __global__ void select_columns(float* out, const float* x, int first, int count, int width) {
    size_t from = (size_t)blockIdx.x * width + first, to = (size_t)blockIdx.x * count;
    for (int i = threadIdx.x; i < count; i += blockDim.x) out[to + i] = x[from + i];
}

// out[t, :] = x[t, :], plus y[places[t], :] where the place is not negative; a block a row.
extern "C" __global__ void add_to_rows(float* out, const float* x, const float* y, const int* places, int width) {
    size_t row = (size_t)blockIdx.x * width;
    int place = places[blockIdx.x];
    const float* summand = y + (size_t)max(place, 0) * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[row + i] = x[row + i] + (place < 0 ? 0.0f : summand[i]);
}

// out[t, :] = x[t, :] + bias; a block a row.
extern "C" __global__ void bias_add(float* out, const float* x, const void* bias, int dtype, int width) {
    size_t row = (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[row + i] = x[row + i] + load(bias, i, dtype);
}

// out[t, :] = x[t, :] · scale[t · stride]; a block a row.
extern "C" __global__ void scale_rows(float* out, const float* x, const float* scale, int stride, int width,
                                      void* small, int small_dtype) {
    size_t row = (size_t)blockIdx.x * width;
    float s = scale[(size_t)blockIdx.x * stride];
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float y = x[row + i] * s;
        out[row + i] = y;
        if (small) store(small, row + i, small_dtype, y);
    }
}

// out[t, i] = x[t, i] · factor[i] · c[t, term[i]], without c where term[i] < 0; a block a row.
extern "C" __global__ void scale_columns(float* out, const float* x, const float* factor, const int* term,
                                         const float* c, int terms, int width) {
    size_t row = (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float s = term[i] < 0 ? 1.0f : c[(size_t)blockIdx.x * terms + term[i]];
        out[row + i] = x[row + i] * (factor[i] * s);
    }
}

extern "C" __global__ void add(float* out, const float* a, const float* b, u64 n) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[i] = a[i] + b[i];
}

// out = x · σ(x (a + b x²)) · up for x = gate.
extern "C" __global__ void gated(float* out, const float* gate, const float* up, float a, float b, u64 n,
                                 void* small, int small_dtype) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        float x = gate[i];
        float argument = b == 0.0f ? x * a : x * (a + b * x * x);
        float y = x / (1.0f + expf(-argument)) * up[i];
        out[i] = y;
        if (small) store(small, i, small_dtype, y);
    }
}

// out = cap · tanh(x / cap).
extern "C" __global__ void soft_cap(float* out, const float* x, float cap, u64 n) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) out[i] = cap * tanhf(x[i] / cap);
}

// small = x rounded to dtype.
extern "C" __global__ void narrow_to(void* small, int dtype, const float* x, u64 n) {
    u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) store(small, i, dtype, x[i]);
}

// Rotates the first `half` pairs of each head of x [rows, heads · head_dim]; a block a row.
extern "C" __global__ void rope(float* out, const float* x, const u32* positions, const float* inv_freq,
                                float scale, int half, int heads, int head_dim) {
    size_t row = (size_t)blockIdx.x * heads * head_dim;
    float position = (float)positions[blockIdx.x];
    for (int j = threadIdx.x; j < half; j += blockDim.x) {
        float sine, cosine;
        sincosf(position * inv_freq[j], &sine, &cosine);
        sine *= scale;
        cosine *= scale;
        for (int head = 0; head < heads; ++head) {
            size_t at = row + (size_t)head * head_dim + j;
            float a = x[at], b = x[at + half];
            out[at] = a * cosine - b * sine;
            out[at + half] = b * cosine + a * sine;
        }
    }
    if (out == x) return;
    for (int i = threadIdx.x; i < heads * (head_dim - 2 * half); i += blockDim.x) {
        size_t at = row + (size_t)(i / (head_dim - 2 * half)) * head_dim + 2 * half + i % (head_dim - 2 * half);
        out[at] = x[at];
    }
}

// out = x / √(mean(x²) + eps) · (shift + gain) over a group of columns; a block a group. `gain_stride` is the
// group's width where each row has its own gain, else 0.
extern "C" __global__ void rms_norm(float* out, const float* x, const void* gain, int gain_dtype,
                                    int gain_stride, int group, int groups_per_row, float eps, float shift,
                                    void* small, int small_dtype) {
    __shared__ float sums[WARP];
    size_t start = (size_t)blockIdx.x * group;
    size_t gain_start = (size_t)(blockIdx.x / groups_per_row) * gain_stride;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < group; i += blockDim.x) sum += x[start + i] * x[start + i];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < (int)blockDim.x / WARP; ++i) sum += sums[i];
    float scale = 1.0f / sqrtf(sum / group + eps);
    for (int i = threadIdx.x; i < group; i += blockDim.x) {
        float y = x[start + i] * scale * (shift + load(gain, gain_start + i, gain_dtype));
        out[start + i] = y;
        if (small) store(small, start + i, small_dtype, y);
    }
}
