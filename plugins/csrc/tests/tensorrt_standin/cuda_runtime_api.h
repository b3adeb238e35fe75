/* Stand-in for CUDA's header of this name: the two types that TensorRT's headers name. For tests
 * on machines without CUDA; never used by the product build. */
#ifndef MAMBAPOSE_STANDIN_CUDA_RUNTIME_API_H
#define MAMBAPOSE_STANDIN_CUDA_RUNTIME_API_H

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;

#endif
