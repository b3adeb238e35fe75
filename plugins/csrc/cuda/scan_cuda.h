/* C interface of the selective scan on CUDA: the one seam between the GPU kernels and their callers
 * (TensorRT plugin, torch operator through ctypes, ONNX Runtime operator).
 *
 * The parameters are those of mambapose_scan.h with device addresses; parallelFor, poolContext and
 * numThreads are not read. dtype may be MAMBAPOSE_BF16. An order is trusted to be a permutation of
 * each row, since reading it back would stop the stream; a token outside [0, L) is skipped.
 *
 * A call is two steps. The plan decides the form of the launch from sizes alone: it reads no device
 * memory and calls no CUDA function, so it also runs on a machine without a GPU; of the pointers it
 * only sees whether they are null. The launch puts kernels on the stream and returns: it never
 * allocates, never waits, gives the same bits every time and may be captured in a CUDA graph.
 */
#ifndef MAMBAPOSE_SCAN_CUDA_H
#define MAMBAPOSE_SCAN_CUDA_H

#include "core/mambapose_scan.h"

#ifdef __cplusplus
extern "C"
{
#endif

enum MambaposeCudaTactic
{
    MAMBAPOSE_CUDA_AUTO = 0,       /* the form expected to be fastest on this many multiprocessors */
    MAMBAPOSE_CUDA_SEQUENTIAL = 1, /* as few lanes per channel as its states allow, the length in one piece */
    MAMBAPOSE_CUDA_LANE_SPLIT = 2, /* more threads per channel, over states or steps, the length in one piece */
    MAMBAPOSE_CUDA_CHUNKED = 3,    /* the length in pieces, in two launches */
};

typedef struct MambaposeCudaPlan
{
    uint32_t structSize;    /* sizeof(MambaposeCudaPlan), checked */
    int32_t tactic;         /* what is planned, never AUTO */
    int32_t lanes;          /* threads that share one channel, by states and by steps: 1 to 512 */
    int32_t statesPerLane;  /* states that each of them holds */
    int32_t threads;        /* per block */
    int32_t tileSteps;      /* scan steps staged in shared memory at a time */
    int32_t fused;          /* 1: a block walks all directions and sums them in shared memory */
    int32_t multiprocessors;
    int64_t chunks;         /* pieces of the length */
    int64_t chunkSteps;     /* steps of a piece; the last may be shorter */
    int64_t sharedBytes;    /* dynamic shared memory of a block */
    int64_t workspaceBytes; /* device memory the launch needs: states at the ends of pieces, and fp32
                             * sums when several directions that are not fused are merged */
} MambaposeCudaPlan;

/* All return 0, or a negative number after writing a sentence of at most `errorSize` bytes.
 * `stream` is a cudaStream_t; `workspace` is aligned to 256 bytes. */
MAMBAPOSE_API int mambapose_scan_cuda_plan(MambaposeScanParams const* params, int32_t tactic, int32_t multiprocessors,
    MambaposeCudaPlan* plan, char* error, size_t errorSize);
MAMBAPOSE_API int mambapose_scan_cuda(MambaposeScanParams const* params, MambaposeCudaPlan const* plan,
    void* workspace, size_t workspaceBytes, void* stream, char* error, size_t errorSize);

/* Gradients, fp32 only. `params` holds the inputs of the forward call; its y and finalState are not
 * used. The size depends on which gradients are wanted. */
MAMBAPOSE_API int mambapose_scan_cuda_backward_workspace(MambaposeScanParams const* params,
    MambaposeScanGrads const* grads, int32_t multiprocessors, int64_t* bytes, char* error, size_t errorSize);
MAMBAPOSE_API int mambapose_scan_cuda_backward(MambaposeScanParams const* params, MambaposeScanGrads const* grads,
    int32_t multiprocessors, void* workspace, size_t workspaceBytes, void* stream, char* error, size_t errorSize);

/* The current device: number of multiprocessors, compute capability as 10 * major + minor. */
MAMBAPOSE_API int mambapose_scan_cuda_device(
    int32_t* multiprocessors, int32_t* computeCapability, char* error, size_t errorSize);

/* Changes with every change of a kernel's results or speed; part of TensorRT's timing-cache key. */
MAMBAPOSE_API char const* mambapose_scan_cuda_version(void);

#ifdef __cplusplus
}
#endif
#endif
