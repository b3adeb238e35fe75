# The GPU libraries: `mambapose_cuda`, the kernels behind the C interface of scan_cuda.h, and
# `mambapose_trt`, TensorRT's plugin with the kernels in it. Both are built on the machine that runs
# them, or for named architectures: `make plugin`.

set(MAMBAPOSE_CUDA AUTO CACHE STRING
    "GPU libraries: ON, OFF, or AUTO (where nvcc and an NVIDIA device are)")
set(MAMBAPOSE_TRT AUTO CACHE STRING "TensorRT plugin: ON, OFF, or AUTO (where its headers are)")
set(TENSORRT_ROOT "" CACHE PATH "Folder that holds include/NvInfer.h")
option(MAMBAPOSE_TRT_STATIC_REGISTRATION
       "Register the plugin as the library is opened (Triton, polygraphy); links libnvinfer" OFF)
option(MAMBAPOSE_TRT_DRIVER "Build the program that drives the plugin on a GPU as TensorRT does" OFF)

foreach(choice MAMBAPOSE_CUDA MAMBAPOSE_TRT)
  if(NOT ${choice} MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR " mambapose: ${choice}: AUTO, ON or OFF was wanted, found ${${choice}}")
  endif()
endforeach()
if(MAMBAPOSE_CUDA STREQUAL OFF)
  return()
endif()
include(CudaCompiler)

# AUTO leaves with a line of status, ON with an error: both say why in one sentence.
macro(mambapose_no_gpu reason)
  if(MAMBAPOSE_CUDA STREQUAL ON)
    message(FATAL_ERROR " mambapose: ${reason}")
  endif()
  message(STATUS "mambapose: no GPU libraries: ${reason}")
  return()
endmacro()

mambapose_has_nvidia_device(has_device)
if(MAMBAPOSE_CUDA STREQUAL AUTO AND NOT has_device)
  mambapose_no_gpu("an NVIDIA device was wanted, found none on this machine")
endif()
mambapose_find_nvcc(nvcc reason)
if(NOT nvcc)
  mambapose_no_gpu("${reason}")
endif()
# Headers come before the compiler is tried, which takes seconds.
if(NOT MAMBAPOSE_TRT STREQUAL OFF)
  find_package(TensorRtHeaders)
  if(TensorRtHeaders_FOUND AND MAMBAPOSE_TRT_STATIC_REGISTRATION)
    unset(TensorRt_LIBRARY CACHE)
    find_library(TensorRt_LIBRARY NAMES nvinfer
                 HINTS "${TENSORRT_ROOT}" "${TensorRtHeaders_INCLUDE_DIR}/.." PATH_SUFFIXES lib lib64)
    if(NOT TensorRt_LIBRARY)
      set(TensorRtHeaders_FOUND FALSE)
      set(TensorRtHeaders_REASON "libnvinfer.so was wanted for static registration, found none for \
${TensorRtHeaders_INCLUDE_DIR}; install libnvinfer-dev or turn MAMBAPOSE_TRT_STATIC_REGISTRATION off")
    endif()
  endif()
  if(MAMBAPOSE_TRT STREQUAL ON AND NOT TensorRtHeaders_FOUND)
    message(FATAL_ERROR " mambapose: ${TensorRtHeaders_REASON}")
  endif()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  mambapose_cuda_architectures("${nvcc}" CMAKE_CUDA_ARCHITECTURES)
endif()
set(ENV{CUDACXX} "${nvcc}")
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  mambapose_no_gpu("a working CUDA compiler was wanted, found that ${nvcc} cannot \
compile; it may not know this C++ compiler (name an older one with CUDAHOSTCXX) or the architectures \
${CMAKE_CUDA_ARCHITECTURES}")
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

function(mambapose_gpu_options name)
  target_compile_features(${name} PRIVATE cxx_std_17 cuda_std_17)
  target_compile_options(${name} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra> $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall>)
  target_include_directories(${name} PRIVATE csrc)
  target_include_directories(${name} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  set_target_properties(${name} PROPERTIES
    POSITION_INDEPENDENT_CODE ON CXX_EXTENSIONS OFF CUDA_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
endfunction()

# A library of compiled kernels and, after those, sources of its own; exports as in exports_NAME.map.
function(mambapose_gpu_library name)
  set(exports "${CMAKE_CURRENT_SOURCE_DIR}/csrc/${name}/exports_${name}.map")
  set(library mambapose_${name})
  add_library(${library} MODULE ${ARGN})
  mambapose_gpu_options(${library})
  # The CUDA runtime is inside and hidden, so that it meets no other one in the process.
  set_target_properties(${library} PROPERTIES
    PREFIX lib LINKER_LANGUAGE CUDA CUDA_RUNTIME_LIBRARY Static LINK_DEPENDS "${exports}")
  target_link_options(${library} PRIVATE
    "LINKER:--version-script=${exports}" LINKER:--no-undefined LINKER:-z,noexecstack)
  install(TARGETS ${library} LIBRARY DESTINATION mambapose/plugins)
endfunction()

# Gradients are for training, so the plugin goes without.
file(GLOB sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cu"
     "${CMAKE_CURRENT_SOURCE_DIR}/csrc/cuda/*.cpp")
set(backward ${sources})
list(FILTER backward INCLUDE REGEX "/scan_cuda_backward")
list(FILTER sources EXCLUDE REGEX "/scan_cuda_backward")
add_library(mambapose_cuda_forward OBJECT ${sources} csrc/core/scan_check.cpp)
add_library(mambapose_cuda_backward OBJECT ${backward})
mambapose_gpu_options(mambapose_cuda_forward)
mambapose_gpu_options(mambapose_cuda_backward)
mambapose_gpu_library(
  cuda $<TARGET_OBJECTS:mambapose_cuda_forward> $<TARGET_OBJECTS:mambapose_cuda_backward>)
message(STATUS "mambapose: GPU kernels built by nvcc ${CMAKE_CUDA_COMPILER_VERSION} "
               "for architectures ${CMAKE_CUDA_ARCHITECTURES}")

if(MAMBAPOSE_TRT STREQUAL OFF)
  return()
endif()
if(NOT TensorRtHeaders_FOUND)
  message(STATUS "mambapose: no TensorRT plugin: ${TensorRtHeaders_REASON}")
  return()
endif()
file(GLOB plugin CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/trt/*.cpp")
mambapose_gpu_library(trt $<TARGET_OBJECTS:mambapose_cuda_forward> ${plugin})
target_include_directories(mambapose_trt SYSTEM PRIVATE "${TensorRtHeaders_INCLUDE_DIR}")
# Packages keep the old dates of files, so an upgrade in place would not compile anything again.
target_compile_definitions(
  mambapose_trt PRIVATE "MAMBAPOSE_TENSORRT_HEADERS=\"${TensorRtHeaders_VERSION}\"")
if(MAMBAPOSE_TRT_STATIC_REGISTRATION)
  target_compile_definitions(mambapose_trt PRIVATE MAMBAPOSE_TRT_STATIC_REGISTRATION)
  target_link_libraries(mambapose_trt PRIVATE "${TensorRt_LIBRARY}")
endif()
target_link_libraries(mambapose_trt PRIVATE ${CMAKE_DL_LIBS})
message(STATUS "mambapose: TensorRT plugin built with the headers of ${TensorRtHeaders_VERSION} in "
               "${TensorRtHeaders_INCLUDE_DIR}")

if(MAMBAPOSE_TRT_DRIVER)
  file(GLOB driver CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/trt/driver/*.cpp")
  add_executable(trt_driver ${driver})
  mambapose_gpu_options(trt_driver)
  target_include_directories(trt_driver SYSTEM PRIVATE "${TensorRtHeaders_INCLUDE_DIR}")
  target_compile_definitions(trt_driver PRIVATE WITH_CUDA)
  target_link_libraries(trt_driver PRIVATE CUDA::cudart_static ${CMAKE_DL_LIBS})
endif()
