# Finds nvcc and chooses GPU architectures, before the CUDA language is enabled.
#
#   mambapose_find_nvcc(RESULT REASON)     path of nvcc or "", and the sentence for when there is none
#   mambapose_has_nvidia_device(RESULT)    whether this machine has an NVIDIA GPU or Tegra
#   mambapose_cuda_architectures(NVCC RESULT)

function(mambapose_find_nvcc result reason)
  unset(mambapose_nvcc CACHE) # CMake 3.20 has no NO_CACHE
  set(wanted "$ENV{CUDACXX}")
  if(NOT wanted)
    set(wanted "${CMAKE_CUDA_COMPILER}")
  endif()
  if(wanted)
    find_program(mambapose_nvcc NAMES "${wanted}")
    set(why "a CUDA compiler was wanted, found none at ${wanted}; correct CUDACXX or leave it out")
  else()
    # JetPack installs the toolkit without putting it on PATH.
    find_program(mambapose_nvcc NAMES nvcc
                 PATHS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" /usr/local/cuda/bin)
    set(why "a CUDA compiler was wanted, found no nvcc on PATH or in /usr/local/cuda/bin; install the \
CUDA toolkit (JetPack: cuda-toolkit) or name nvcc with CUDACXX")
  endif()
  if(mambapose_nvcc)
    set(${result} "${mambapose_nvcc}" PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
  set(${reason} "${why}" PARENT_SCOPE)
  unset(mambapose_nvcc CACHE)
endfunction()

function(mambapose_has_nvidia_device result)
  set(${result} FALSE PARENT_SCOPE)
  foreach(path /dev/nvidiactl /dev/nvhost-gpu /dev/nvhost-ctrl-gpu /dev/nvgpu /dev/nvmap /dev/dxg)
    if(EXISTS "${path}")
      set(${result} TRUE PARENT_SCOPE)
    endif()
  endforeach()
endfunction()

# The GPU of this machine, without CMake 3.24's "native" (JetPack 6 has 3.22) and without nvidia-smi
# on Jetson; otherwise all that the project is tested for and this nvcc knows, PTX of the last.
function(mambapose_cuda_architectures nvcc result)
  set(found "")
  if(EXISTS /proc/device-tree/compatible)
    file(STRINGS /proc/device-tree/compatible boards)
    if(boards MATCHES "nvidia,tegra234")
      set(found 87) # Orin
    elseif(boards MATCHES "nvidia,tegra264")
      set(found 110) # Thor
    endif()
  endif()
  if(NOT found)
    find_program(mambapose_smi NAMES nvidia-smi)
    if(mambapose_smi)
      execute_process(COMMAND "${mambapose_smi}" --query-gpu=compute_cap --format=csv,noheader
                      OUTPUT_VARIABLE listed ERROR_QUIET)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${listed}")
      list(REMOVE_DUPLICATES capabilities)
      string(REPLACE "." "" found "${capabilities}")
    endif()
  endif()
  if(NOT found)
    execute_process(COMMAND "${nvcc}" --version OUTPUT_VARIABLE banner ERROR_QUIET)
    string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" unused "${banner}")
    set(release "${CMAKE_MATCH_1}")
    set(found 80-real 86-real 87-real 89-real)
    if(release VERSION_GREATER_EQUAL 13.0)
      list(APPEND found 90-real 110-real 120)
    elseif(release VERSION_GREATER_EQUAL 12.8)
      list(APPEND found 90-real 120)
    else()
      list(APPEND found 90)
    endif()
  endif()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()
