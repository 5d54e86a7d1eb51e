// A libcuda.so.1 without a GPU: what src/kernels/cuda/driver.rs calls, over host memory and the
// emulated kernels. Calls that NVIDIA's manual does not allow are refused with its error codes: a
// thread without a current context, memory and streams that are not live, copies past an end.
#include "emulator.cpp"

#include <stdlib.h>

#include <map>
#include <mutex>
#include <set>

namespace {
typedef int CUresult;
typedef unsigned long long CUdeviceptr;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101,
       INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500 };

constexpr size_t TOTAL = 256 << 20;
constexpr int DEVICE = 7, LEAST = 0, GREATEST = -5;
char context, module;

std::mutex guard;
std::map<CUdeviceptr, size_t> device_memory;
std::map<void*, size_t> host_memory;
std::set<void*> streams;
std::set<std::string> functions;
size_t used = 0;
bool initialized = false;
thread_local void* current = nullptr;

bool holds(CUdeviceptr at, size_t bytes) {
    auto after = device_memory.upper_bound(at);
    if (after == device_memory.begin()) return false;
    --after;
    return at + bytes <= after->first + after->second;
}
CUresult on(void* stream) {
    if (current != &context) return INVALID_CONTEXT;
    return streams.count(stream) ? OK : INVALID_HANDLE;
}
}

#define LOCK std::lock_guard<std::mutex> lock(guard)
#define NEED(condition, code) do { if (!(condition)) return code; } while (0)
#define NEED_CURRENT NEED(current == &context, INVALID_CONTEXT)
#define NEED_STREAM(stream) do { CUresult found = on(stream); if (found) return found; } while (0)

extern "C" {
CUresult cuInit(unsigned flags) {
    NEED(flags == 0, INVALID_VALUE);
    initialized = true;
    return OK;
}
CUresult cuGetErrorString(CUresult code, const char** text) {
    *text = code == INVALID_DEVICE ? "invalid device ordinal" : "refused";
    return OK;
}
CUresult cuDeviceGet(int* device, int ordinal) {
    NEED(initialized, NOT_INITIALIZED);
    NEED(ordinal == 0, INVALID_DEVICE);
    *device = DEVICE;
    return OK;
}
CUresult cuDeviceGetName(char* name, int length, int device) {
    NEED(device == DEVICE && length > 0, INVALID_DEVICE);
    strncpy(name, "Host GPU", length);
    return OK;
}
CUresult cuDeviceGetAttribute(int* value, int attribute, int device) {
    NEED(device == DEVICE, INVALID_DEVICE);
    NEED(attribute == 75 || attribute == 76, INVALID_VALUE); // compute capability, major and minor
    *value = attribute == 75 ? 9 : 0;
    return OK;
}
CUresult cuDevicePrimaryCtxRetain(void** handle, int device) {
    NEED(device == DEVICE, INVALID_DEVICE);
    *handle = &context;
    return OK;
}
CUresult cuCtxSetCurrent(void* handle) {
    NEED(handle == &context, INVALID_CONTEXT);
    current = handle;
    return OK;
}
CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    NEED_CURRENT;
    *least = LEAST;
    *greatest = GREATEST;
    return OK;
}
CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    LOCK;
    NEED_CURRENT;
    *free_bytes = TOTAL - used;
    *total = TOTAL;
    return OK;
}
CUresult cuMemAlloc_v2(CUdeviceptr* at, size_t bytes) {
    LOCK;
    NEED_CURRENT;
    NEED(bytes > 0, INVALID_VALUE);
    NEED(bytes <= TOTAL - used, OUT_OF_MEMORY);
    void* memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(memory, 0xff, bytes); // NaN
    *at = (CUdeviceptr)memory;
    device_memory[*at] = bytes;
    used += bytes;
    return OK;
}
CUresult cuMemFree_v2(CUdeviceptr at) {
    LOCK;
    NEED_CURRENT;
    NEED(device_memory.count(at), INVALID_VALUE);
    used -= device_memory[at];
    device_memory.erase(at);
    free((void*)at);
    return OK;
}
CUresult cuMemHostAlloc(void** at, size_t bytes, unsigned flags) {
    LOCK;
    NEED_CURRENT;
    NEED(bytes > 0 && flags == 0, INVALID_VALUE);
    *at = malloc(bytes);
    memset(*at, 0xff, bytes);
    host_memory[*at] = bytes;
    return OK;
}
CUresult cuMemFreeHost(void* at) {
    LOCK;
    NEED_CURRENT;
    NEED(host_memory.erase(at), INVALID_VALUE);
    free(at);
    return OK;
}
CUresult cuStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
    LOCK;
    NEED_CURRENT;
    NEED(flags == 1 && GREATEST <= priority && priority <= LEAST, INVALID_VALUE); // non-blocking
    *stream = malloc(1);
    streams.insert(*stream);
    return OK;
}
CUresult cuStreamSynchronize(void* stream) {
    LOCK;
    return on(stream);
}
CUresult cuStreamDestroy_v2(void* stream) {
    LOCK;
    NEED_STREAM(stream);
    streams.erase(stream);
    free(stream);
    return OK;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* stream) {
    LOCK;
    NEED_STREAM(stream);
    NEED(bytes > 0 && holds(to, bytes), INVALID_VALUE);
    memcpy((void*)to, from, bytes);
    return OK;
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* stream) {
    LOCK;
    NEED_STREAM(stream);
    NEED(bytes > 0 && holds(from, bytes), INVALID_VALUE);
    memcpy(to, (const void*)from, bytes);
    return OK;
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream) {
    LOCK;
    NEED_STREAM(stream);
    NEED(holds(to, bytes) && holds(from, bytes), INVALID_VALUE);
    memmove((void*)to, (const void*)from, bytes);
    return OK;
}
CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t bytes, void* stream) {
    LOCK;
    NEED_STREAM(stream);
    NEED(bytes > 0 && holds(at, bytes), INVALID_VALUE);
    memset((void*)at, value, bytes);
    return OK;
}
CUresult cuModuleLoadData(void** handle, const void* image) {
    NEED_CURRENT;
    NEED(strcmp((const char*)image, "kernels") == 0, INVALID_IMAGE);
    *handle = &module;
    return OK;
}
CUresult cuModuleGetFunction(void** function, void* handle, const char* name) {
    LOCK;
    NEED_CURRENT;
    NEED(handle == &module, INVALID_HANDLE);
    NEED(emulator::KERNELS.count(name), NOT_FOUND);
    *function = (void*)functions.insert(name).first->c_str();
    return OK;
}
CUresult cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads,
                        unsigned threads_y, unsigned threads_z, unsigned shared, void* stream,
                        void** arguments, void** extra) {
    {
        LOCK;
        NEED_STREAM(stream);
    }
    const unsigned grid[3] = {x, y, z};
    NEED(x && y && z && threads_y == 1 && threads_z == 1 && !extra, INVALID_VALUE);
    return emulator_launch((const char*)function, grid, threads, shared, arguments, 0);
}
// Buffers, pinned memory and streams that are live.
int driver_in_use() {
    LOCK;
    return (int)(device_memory.size() + host_memory.size() + streams.size());
}
}
