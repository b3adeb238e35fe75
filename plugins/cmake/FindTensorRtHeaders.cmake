# Finds TensorRT's C++ headers, release 10.3 or newer: TensorRtHeaders_FOUND,
# TensorRtHeaders_INCLUDE_DIR, TensorRtHeaders_VERSION, and TensorRtHeaders_REASON, one sentence,
# when there are none to build with.
#
# Order: TENSORRT_ROOT (cache variable, then environment), then the places of the packages.

set(TensorRtHeaders_OLDEST 10.3)
set(TensorRtHeaders_FOUND FALSE)
if(NOT TENSORRT_ROOT AND NOT "$ENV{TENSORRT_ROOT}" STREQUAL "")
  set(TENSORRT_ROOT "$ENV{TENSORRT_ROOT}")
endif()

# A number of NvInferVersion.h; since 10.14 it is defined through another macro.
function(tensorrt_version_number folder name result)
  set(value "${name}")
  foreach(step RANGE 3)
    file(STRINGS "${folder}/NvInferVersion.h" line REGEX "^#define ${value}[ \t]" LIMIT_COUNT 1)
    string(REGEX REPLACE "^#define [A-Z0-9_]+[ \t]+([A-Za-z0-9_]+).*" "\\1" value "${line}")
    if(NOT value MATCHES "^[A-Z]")
      break()
    endif()
  endforeach()
  set(${result} "${value}" PARENT_SCOPE)
endfunction()

unset(TensorRtHeaders_INCLUDE_DIR)
unset(TensorRtHeaders_INCLUDE_DIR CACHE)
if(TENSORRT_ROOT)
  find_path(TensorRtHeaders_INCLUDE_DIR NvInferVersion.h NO_DEFAULT_PATH
            PATHS "${TENSORRT_ROOT}" PATH_SUFFIXES include)
  set(TensorRtHeaders_REASON "TENSORRT_ROOT: a folder with include/NvInfer.h was wanted, found \
${TENSORRT_ROOT} without it; name the folder TensorRT was unpacked to")
else()
  find_path(TensorRtHeaders_INCLUDE_DIR NvInferVersion.h
            PATHS /usr/include/aarch64-linux-gnu /usr/include/x86_64-linux-gnu
                  /usr/src/tensorrt/include /usr/local/tensorrt/include)
  set(TensorRtHeaders_REASON "TensorRT's headers (NvInfer.h) were wanted, found none on this system; \
install libnvinfer-headers-dev or set TENSORRT_ROOT to the folder TensorRT was unpacked to")
endif()

if(TensorRtHeaders_INCLUDE_DIR)
  foreach(part MAJOR MINOR PATCH)
    tensorrt_version_number("${TensorRtHeaders_INCLUDE_DIR}" NV_TENSORRT_${part} number_${part})
  endforeach()
  set(TensorRtHeaders_VERSION "${number_MAJOR}.${number_MINOR}.${number_PATCH}")
  if(NOT TensorRtHeaders_VERSION MATCHES "^[0-9]+\\.[0-9]+\\.[0-9]+$")
    set(TensorRtHeaders_REASON "a version in NvInferVersion.h was wanted, found none in \
${TensorRtHeaders_INCLUDE_DIR}; name another folder with TENSORRT_ROOT")
  elseif(TensorRtHeaders_VERSION VERSION_LESS TensorRtHeaders_OLDEST)
    set(TensorRtHeaders_REASON "TensorRT ${TensorRtHeaders_OLDEST} or newer was wanted (JetPack 6.1 \
or newer), found ${TensorRtHeaders_VERSION} in ${TensorRtHeaders_INCLUDE_DIR}; upgrade TensorRT or \
set TENSORRT_ROOT to a newer one")
  elseif(NOT EXISTS "${TensorRtHeaders_INCLUDE_DIR}/NvInfer.h")
    set(TensorRtHeaders_REASON "NvInfer.h was wanted beside NvInferVersion.h, found none in \
${TensorRtHeaders_INCLUDE_DIR}; install libnvinfer-headers-dev or name another folder with TENSORRT_ROOT")
  else()
    set(TensorRtHeaders_FOUND TRUE)
  endif()
endif()
