#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "common.cuh"
#include "elementwise.cu"
#include "products.cu"
#include "attention.cu"
#include "merge.cu"

namespace emulator {
thread_local dim3 thread_index, block_index, block_size, grid_size;

namespace {
struct Barrier {
    unsigned size, arrived, generation;
};
struct Fiber {
    ucontext_t first;
    jmp_buf here;
    bool begun = false;
    std::unique_ptr<char[]> stack;
};
struct Thread {
    Fiber* fiber;
    Barrier* waits;
    unsigned generation;
    bool done;
};
constexpr size_t STACK = 64 << 10;

// One launch at a time per system thread.
struct Machine {
    void (*kernel)(void**);
    void** arguments;
    std::vector<float> dynamic;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber*> free;
    std::vector<Thread> threads;
    std::vector<Barrier> barriers; // of the warps, then of the block
    std::vector<Exchange> exchanges;
    unsigned running;
    jmp_buf scheduler;
};
thread_local Machine machine;

void wait(Barrier& barrier) {
    Thread& self = machine.threads[machine.running];
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    self.waits = &barrier;
    self.generation = barrier.generation;
    if (_setjmp(self.fiber->here) == 0) _longjmp(machine.scheduler, 1);
}

// A fiber makes one thread after the other; what the scheduler has set says which.
void fiber_main() {
    for (;;) {
        machine.kernel(machine.arguments);
        Thread& self = machine.threads[machine.running];
        self.done = true;
        Fiber* own = self.fiber;
        machine.free.push_back(own);
        if (_setjmp(own->here) == 0) _longjmp(machine.scheduler, 1);
    }
}

void resume(unsigned index) {
    Thread& thread = machine.threads[index];
    machine.running = index;
    thread_index = {index, 0, 0};
    if (!thread.fiber) {
        if (machine.free.empty()) {
            machine.fibers.push_back(std::make_unique<Fiber>());
            machine.free.push_back(machine.fibers.back().get());
        }
        thread.fiber = machine.free.back();
        machine.free.pop_back();
    }
    thread.waits = nullptr;
    if (_setjmp(machine.scheduler)) return;
    Fiber& fiber = *thread.fiber;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack.get();
    fiber.first.uc_stack.ss_size = STACK;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, fiber_main, 0);
    setcontext(&fiber.first);
}

bool run_block(bool descending) {
    unsigned count = block_size.x, left = count;
    machine.threads.assign(count, Thread{nullptr, nullptr, 0, false});
    machine.barriers.assign(count / 32 + 1, Barrier{32, 0, 0});
    machine.barriers.back().size = count;
    while (left > 0) {
        bool moved = false;
        for (unsigned i = 0; i < count; ++i) {
            unsigned index = descending ? count - 1 - i : i;
            const Thread& thread = machine.threads[index];
            if (thread.done || (thread.waits && thread.waits->generation == thread.generation)) continue;
            resume(index);
            moved = true;
            left -= machine.threads[index].done;
        }
        if (!moved) return false; // some wait for what the others have left
    }
    return true;
}

template <class F> struct Call;
template <class... A> struct Call<void (*)(A...)> {
    template <size_t... I>
    static void with(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
        kernel(*(A*)arguments[I]...);
    }
    static void run(void (*kernel)(A...), void** arguments) {
        with(kernel, arguments, std::index_sequence_for<A...>());
    }
};

const std::unordered_map<std::string, void (*)(void**)> KERNELS = {
#define KERNEL(name) {#name, [](void** arguments) { Call<decltype(&name)>::run(&name, arguments); }},
#include "kernels.inc"
};
}

float* dynamic_shared() { return machine.dynamic.data(); }
void block_barrier() { wait(machine.barriers.back()); }
void warp_barrier() { wait(machine.barriers[thread_index.x / 32]); }
Exchange& exchange() { return machine.exchanges[thread_index.x / 32]; }
}

// 0: done; 1: no such kernel; 2: a block that is not made of whole warps; 3: a barrier that some
// threads never reach.
extern "C" int emulator_launch(const char* name, const unsigned* grid, unsigned block, unsigned shared,
                               void** arguments, int descending) {
    using namespace emulator;
    auto kernel = KERNELS.find(name);
    if (kernel == KERNELS.end()) return 1;
    if (block == 0 || block % 32 || block > 1024) return 2;
    machine.kernel = kernel->second;
    machine.arguments = arguments;
    machine.dynamic.assign(shared / 4, NAN);
    machine.exchanges.resize(block / 32);
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block, 1, 1};
    for (unsigned z = 0; z < grid[2]; ++z)
        for (unsigned y = 0; y < grid[1]; ++y)
            for (unsigned x = 0; x < grid[0]; ++x) {
                block_index = {x, y, z};
                if (!run_block(descending)) return 3;
            }
    return 0;
}
