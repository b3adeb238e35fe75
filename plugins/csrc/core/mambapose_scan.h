/* C interface of the selective scan: the one seam between the kernels and their callers
 * (ONNX Runtime operator, torch operator through ctypes, TensorRT plugin).
 *
 * Semantics: docs/operator.md, `mambapose::SelectiveScan` version 1. Rows are channels-last;
 * strides are in elements. A null pointer means "absent" for D, z, dtBias, order,
 * initialState and finalState.
 *
 * Sizes: batch B, length L, channels D (per direction), states N, directions K, groups G.
 *
 * Strides may be negative or zero. Outputs lie apart from all inputs and from each other; only
 * finalState may be initialState itself. Calls may overlap in time when they write different memory.
 */
#ifndef MAMBAPOSE_SCAN_H
#define MAMBAPOSE_SCAN_H

#include <stddef.h>
#include <stdint.h>

#define MAMBAPOSE_SCAN_SPEC 1
#define MAMBAPOSE_SCAN_ABI 1

#if defined(_WIN32)
#define MAMBAPOSE_API __declspec(dllexport)
#else
#define MAMBAPOSE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C"
{
#endif

enum MambaposeDtype
{
    MAMBAPOSE_FP32 = 0,
    MAMBAPOSE_FP16 = 1,
    MAMBAPOSE_BF16 = 2, /* GPU kernels only */
};

/* One tensor of rows: element (b, t, c) sits at data[b * batchStride + t * rowStride + c]. */
typedef struct MambaposeRows
{
    void* data;
    int64_t batchStride;
    int64_t rowStride;
} MambaposeRows;

/* Runs body(bodyContext, i) for i in [0, count), in any order, and returns when all are done. */
typedef void (*MambaposeTask)(void* bodyContext, size_t i);
typedef void (*MambaposeParallelFor)(void* poolContext, MambaposeTask body, void* bodyContext, size_t count);

typedef struct MambaposeScanParams
{
    uint32_t structSize; /* sizeof(MambaposeScanParams), checked */
    int32_t dtype;       /* MambaposeDtype of u, dt, z, y and of B, C unless constant */
    int64_t batch, length, channels, states, directions, groups;
    int64_t segment;         /* reset period in scan steps, 0 = none */
    uint64_t reverseMask;    /* bit k: direction k walks its order backwards */
    int32_t deltaSoftplus;   /* 0 or 1 */
    int32_t mergeSum;        /* 1: y is (B, L, D), the sum over directions; 0: (B, L, K*D) */
    int32_t uShared;         /* 1: u is (B, L, D); 0: (B, L, K*D) */
    int32_t bConstant;       /* 1: B is fp32 (K*D, N), rowStride = N; 0: (B, L, K*G*N) of dtype */
    int32_t cConstant;       /* likewise for C */
    int32_t orderRows;       /* rows of order: 1 (shared by all directions) or K */
    MambaposeRows u, dt, B, C, z, y;
    float const* A;          /* (K*D, N), negative */
    float const* D;          /* (K*D) */
    float const* dtBias;     /* (K*D) */
    int32_t const* order;    /* (orderRows, L): token visited at step t */
    float const* initialState; /* (B, K*D, N) */
    float* finalState;         /* (B, K*D, N) */
    MambaposeParallelFor parallelFor; /* null: numThreads own threads */
    void* poolContext;
    int32_t numThreads;      /* used to split the work; 0 = all cores */
} MambaposeScanParams;

/* Gradients of one call, fp32 only, contiguous, overwritten; null = not wanted.
 * dY: (B, L, D or K*D), dFinalState: (B, K*D, N) or null. gA: (K*D, N), gB/gC: like B/C,
 * gD/gDtBias: (K*D), gU: like u, gDt: (B, L, K*D), gZ: like z, gInitialState: (B, K*D, N). */
typedef struct MambaposeScanGrads
{
    uint32_t structSize;
    float const* dY;
    float const* dFinalState;
    float *gU, *gDt, *gA, *gB, *gC, *gD, *gZ, *gDtBias, *gInitialState;
} MambaposeScanGrads;

/* Both return 0, or a negative number after writing a sentence of at most `errorSize` bytes. */
MAMBAPOSE_API int mambapose_scan_cpu(MambaposeScanParams const* params, char* error, size_t errorSize);
MAMBAPOSE_API int mambapose_scan_cpu_backward(
    MambaposeScanParams const* params, MambaposeScanGrads const* grads, char* error, size_t errorSize);

/* Spec and ABI numbers of the built library, the instruction set in use ("avx512", "avx2",
 * "neon", "scalar"), and a way to force one for tests (null = best; returns 0, or -1 if absent). */
MAMBAPOSE_API int mambapose_scan_spec(void);
MAMBAPOSE_API int mambapose_scan_abi(void);
MAMBAPOSE_API char const* mambapose_scan_isa(void);
MAMBAPOSE_API int mambapose_scan_force_isa(char const* name);

#ifdef __cplusplus
}
#endif
#endif
