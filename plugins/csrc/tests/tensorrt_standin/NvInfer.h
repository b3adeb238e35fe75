/* Stand-in for TensorRT's header of this name; see NvInferRuntime.h beside it. */
#include "NvInferRuntime.h"
