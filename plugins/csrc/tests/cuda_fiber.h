/* Stacks to switch between by hand, known to the sanitizers. One thread of the host at a time. */
#ifndef MAMBAPOSE_CUDA_FIBER_H
#define MAMBAPOSE_CUDA_FIBER_H

#include <cstddef>

namespace mambapose
{
namespace shim
{

struct Fiber
{
    void* stackPointer = nullptr; //!< Where it goes on, while it does not run.
    unsigned char* stack = nullptr;
    size_t stackSize = 0;
    void* fakeStack = nullptr; //!< Of AddressSanitizer.
    void* context = nullptr;   //!< Of ThreadSanitizer.
};

//! Makes the fiber begin with entry, which never returns, at its next switch. Its stack is kept.
void beginFiber(Fiber& fiber, void (*entry)());

//! Leaves `from` and goes on in `to`. last: `from` is never entered again before beginFiber.
void switchFiber(Fiber& from, Fiber& to, bool last = false);

//! First thing that entry does: `from` is the fiber (or host stack) it was entered from.
void enterFiber(Fiber& from);

//! Order of memory accesses for ThreadSanitizer: what came before release comes before acquire.
void release(void* object);
void acquire(void* object);
void noteRead(void const* address, size_t bytes);
void noteWrite(void* address, size_t bytes);

} // namespace shim
} // namespace mambapose
#endif
