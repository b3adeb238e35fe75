/* Stand-in for TensorRT's header of this name; see NvInferRuntime.h beside it. */
#ifndef MAMBAPOSE_STANDIN_NVINFERVERSION_H
#define MAMBAPOSE_STANDIN_NVINFERVERSION_H

#define NV_TENSORRT_MAJOR 11
#define NV_TENSORRT_MINOR 1
#define NV_TENSORRT_PATCH 0
#define NV_TENSORRT_BUILD 106

#endif
