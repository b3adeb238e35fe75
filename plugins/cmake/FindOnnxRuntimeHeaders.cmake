# Finds ONNX Runtime's C headers, version 1.20 or newer: OnnxRuntimeHeaders_FOUND,
# OnnxRuntimeHeaders_INCLUDE_DIR, and OnnxRuntimeHeaders_REASON when they are missing.
#
# Order: ONNXRUNTIME_INCLUDE_DIR (cache variable, then environment), the system, and, unless
# MAMBAPOSE_FETCH_HEADERS is off, what onnxruntime_headers.py brings (cached for later builds).

set(OnnxRuntimeHeaders_HEADER onnxruntime_c_api.h)
set(OnnxRuntimeHeaders_OLDEST 20)

if(NOT ONNXRUNTIME_INCLUDE_DIR AND NOT "$ENV{ONNXRUNTIME_INCLUDE_DIR}" STREQUAL "")
  set(ONNXRUNTIME_INCLUDE_DIR "$ENV{ONNXRUNTIME_INCLUDE_DIR}")
endif()

function(onnxruntime_api_version folder result)
  file(STRINGS "${folder}/${OnnxRuntimeHeaders_HEADER}" line REGEX "^#define ORT_API_VERSION ")
  string(REGEX REPLACE ".*ORT_API_VERSION +([0-9]+).*" "\\1" version "${line}")
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

unset(OnnxRuntimeHeaders_INCLUDE_DIR)
unset(OnnxRuntimeHeaders_INCLUDE_DIR CACHE)
if(ONNXRUNTIME_INCLUDE_DIR)
  if(NOT EXISTS "${ONNXRUNTIME_INCLUDE_DIR}/${OnnxRuntimeHeaders_HEADER}")
    message(FATAL_ERROR "ONNXRUNTIME_INCLUDE_DIR: a folder with ${OnnxRuntimeHeaders_HEADER} was "
                        "wanted, found ${ONNXRUNTIME_INCLUDE_DIR}; correct it or leave it out")
  endif()
  set(OnnxRuntimeHeaders_INCLUDE_DIR "${ONNXRUNTIME_INCLUDE_DIR}")
else()
  find_path(OnnxRuntimeHeaders_SYSTEM_DIR ${OnnxRuntimeHeaders_HEADER}
            PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  if(OnnxRuntimeHeaders_SYSTEM_DIR)
    onnxruntime_api_version("${OnnxRuntimeHeaders_SYSTEM_DIR}" version)
    if(version GREATER_EQUAL OnnxRuntimeHeaders_OLDEST)
      set(OnnxRuntimeHeaders_INCLUDE_DIR "${OnnxRuntimeHeaders_SYSTEM_DIR}")
    endif()
  endif()
endif()

set(OnnxRuntimeHeaders_REASON "not on this system, and MAMBAPOSE_FETCH_HEADERS is off")
if(NOT OnnxRuntimeHeaders_INCLUDE_DIR AND MAMBAPOSE_FETCH_HEADERS)
  find_package(Python3 COMPONENTS Interpreter)
  if(Python3_FOUND)
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/onnxruntime_headers.py"
              --build "${CMAKE_BINARY_DIR}"
      RESULT_VARIABLE status OUTPUT_VARIABLE folder ERROR_VARIABLE reason
      OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
    if(status EQUAL 0)
      set(OnnxRuntimeHeaders_INCLUDE_DIR "${folder}")
    else()
      string(REPLACE "\n" "; " OnnxRuntimeHeaders_REASON "${reason}")
    endif()
  else()
    set(OnnxRuntimeHeaders_REASON "not on this system, and no Python to fetch them with")
  endif()
endif()

set(OnnxRuntimeHeaders_FOUND FALSE)
if(OnnxRuntimeHeaders_INCLUDE_DIR)
  onnxruntime_api_version("${OnnxRuntimeHeaders_INCLUDE_DIR}" OnnxRuntimeHeaders_API)
  if(OnnxRuntimeHeaders_API GREATER_EQUAL OnnxRuntimeHeaders_OLDEST)
    set(OnnxRuntimeHeaders_FOUND TRUE)
  else()
    set(OnnxRuntimeHeaders_REASON "those in ${OnnxRuntimeHeaders_INCLUDE_DIR} are version \
${OnnxRuntimeHeaders_API}, ${OnnxRuntimeHeaders_OLDEST} is the oldest that works")
  endif()
endif()
