#include "tests/cuda_fiber.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include <sys/mman.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
extern "C"
{
    void __asan_unpoison_memory_region(void const volatile* address, size_t size);
    void __sanitizer_start_switch_fiber(void** fakeStack, void const* stack, size_t size);
    void __sanitizer_finish_switch_fiber(void* fakeStack, void const** oldStack, size_t* oldSize);
}
#endif
// This file is itself built without -fsanitize=thread: threads of a block share its data on purpose.
#ifdef MAMBAPOSE_SHIM_THREADS
extern "C"
{
    void* __tsan_get_current_fiber();
    void* __tsan_create_fiber(unsigned flags);
    void __tsan_switch_to_fiber(void* fiber, unsigned flags);
    void __tsan_acquire(void* address);
    void __tsan_release(void* address);
    void __tsan_read_range(void* address, unsigned long size);
    void __tsan_write_range(void* address, unsigned long size);
}
#endif

// Saves what a call must keep on the stack, exchanges stacks and takes it from the other one.
extern "C" void mambaposeSwitchStack(void** from, void* to);
#if defined(__x86_64__)
constexpr int kFRAME = 8, kENTRY = 6; // Words: six registers, where to go on, no return address.
__asm__(R"(
    .text
    .hidden mambaposeSwitchStack
    .globl mambaposeSwitchStack
    .type mambaposeSwitchStack, @function
mambaposeSwitchStack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size mambaposeSwitchStack, .-mambaposeSwitchStack
)");
#elif defined(__aarch64__)
constexpr int kFRAME = 20, kENTRY = 11; // Words: twenty registers, the twelfth says where to go on.
__asm__(R"(
    .text
    .hidden mambaposeSwitchStack
    .globl mambaposeSwitchStack
    .type mambaposeSwitchStack, %function
mambaposeSwitchStack:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size mambaposeSwitchStack, .-mambaposeSwitchStack
)");
#else
#error "the CUDA shim switches stacks on x86-64 and aarch64 only"
#endif

namespace mambapose
{
namespace shim
{
namespace
{

constexpr size_t kSTACK_BYTES = size_t{256} << 10; //!< Of addresses; a page gets memory when it is touched.

//! A stack that ends at a page nobody may touch.
unsigned char* newStack()
{
    auto const page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kSTACK_BYTES + page, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0)
    {
        std::perror("CUDA shim: memory for the stack of a thread was wanted");
        std::abort();
    }
    return static_cast<unsigned char*>(memory) + page;
}

} // namespace

void beginFiber(Fiber& fiber, void (*entry)())
{
    if (fiber.stack == nullptr)
    {
        fiber.stack = newStack();
        fiber.stackSize = kSTACK_BYTES;
    }
#ifdef __SANITIZE_ADDRESS__
    // A fiber given up in the middle leaves the marks of its frames.
    __asan_unpoison_memory_region(fiber.stack, fiber.stackSize);
#endif
#ifdef MAMBAPOSE_SHIM_THREADS
    if (fiber.context == nullptr)
    {
        fiber.context = __tsan_create_fiber(0);
    }
#endif
    uintptr_t* frame = reinterpret_cast<uintptr_t*>(fiber.stack + fiber.stackSize) - kFRAME;
    std::fill_n(frame, kFRAME, 0);
    frame[kENTRY] = reinterpret_cast<uintptr_t>(entry);
    fiber.stackPointer = frame;
}

void switchFiber(Fiber& from, Fiber& to, bool last)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(last ? nullptr : &from.fakeStack, to.stack, to.stackSize);
#endif
#ifdef MAMBAPOSE_SHIM_THREADS
    if (from.context == nullptr)
    {
        from.context = __tsan_get_current_fiber();
    }
    constexpr unsigned kNO_ORDER = 1;
    __tsan_switch_to_fiber(to.context, kNO_ORDER);
#endif
    mambaposeSwitchStack(&from.stackPointer, to.stackPointer);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from.fakeStack, nullptr, nullptr);
#endif
    static_cast<void>(last);
}

void enterFiber(Fiber& from)
{
#ifdef __SANITIZE_ADDRESS__
    void const* stack = nullptr;
    size_t size = 0;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &size);
    if (from.stack == nullptr) // The host's own stack, which the sanitizer knows.
    {
        from.stack = static_cast<unsigned char*>(const_cast<void*>(stack));
        from.stackSize = size;
    }
#endif
    static_cast<void>(from);
}

#ifdef MAMBAPOSE_SHIM_THREADS
void release(void* object)
{
    __tsan_release(object);
}

void acquire(void* object)
{
    __tsan_acquire(object);
}

void noteRead(void const* address, size_t bytes)
{
    __tsan_read_range(const_cast<void*>(address), bytes);
}

void noteWrite(void* address, size_t bytes)
{
    __tsan_write_range(address, bytes);
}
#else
void release(void*) {}
void acquire(void*) {}
void noteRead(void const*, size_t) {}
void noteWrite(void*, size_t) {}
#endif

} // namespace shim
} // namespace mambapose
