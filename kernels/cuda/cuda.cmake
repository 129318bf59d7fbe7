# Finds what CUDA sources need. Sets
#   CUDA_INCLUDE   folder with cuda_runtime_api.h, or CUDA_INCLUDE-NOTFOUND
#   CUDA_INCLUDES  the same with CCCL's folder, for compilers that are not nvcc
#   NCCL_INCLUDE   folder with nccl.h, or NCCL_INCLUDE-NOTFOUND
#   CUBLASLT_INCLUDE, CUDNN_INCLUDE    the same for cublasLt.h and cudnn.h
#   NVCC           the compiler, or NVCC-NOTFOUND
# SWITCHYARD_CUDA=fetch brings what is missing from PyPI's wheels into the build folder (about 400 MB
# for a moment, of which NCCL's header is kept alone).
set(SWITCHYARD_CUDA auto CACHE STRING "auto: use CUDA headers and nvcc where found; fetch: from PyPI if not; off")
set_property(CACHE SWITCHYARD_CUDA PROPERTY STRINGS auto fetch off)
if(NOT SWITCHYARD_CUDA MATCHES "^(auto|fetch|off)$")
  message(FATAL_ERROR "SWITCHYARD_CUDA=${SWITCHYARD_CUDA}: use auto, fetch or off")
endif()

set(cuda_wheels ${CMAKE_BINARY_DIR}/cuda-wheels)

# One wheel, unpacked; FILES: only these. A failure is said and otherwise ignored.
function(cuda_fetch wheel)
  file(MAKE_DIRECTORY ${cuda_wheels})
  if(EXISTS ${cuda_wheels}/${wheel}.done)
    return()
  endif()
  message(STATUS "fetching ${wheel}")
  execute_process(COMMAND ${cuda_python} -m pip download -q --no-deps --disable-pip-version-check
      --dest ${cuda_wheels} ${wheel}
    RESULT_VARIABLE failed ERROR_VARIABLE why OUTPUT_QUIET TIMEOUT 600)
  file(GLOB files ${cuda_wheels}/*.whl)
  if(failed OR NOT files)
    message(WARNING "SWITCHYARD_CUDA=fetch: could not get ${wheel}: ${why}")
    return()
  endif()
  foreach(file ${files})
    execute_process(COMMAND ${CMAKE_COMMAND} -E tar xf ${file} -- ${ARGN}
      WORKING_DIRECTORY ${cuda_wheels} COMMAND_ERROR_IS_FATAL ANY)
    file(REMOVE ${file})
  endforeach()
  file(TOUCH ${cuda_wheels}/${wheel}.done)
endfunction()

function(cuda_find)
  set(hints ${cuda_wheels}/nvidia/cu13 ENV CUDA_HOME ENV CUDA_PATH)
  find_program(NVCC nvcc HINTS ${hints} PATHS /usr/local/cuda PATH_SUFFIXES bin)
  set(near)
  if(NVCC)
    get_filename_component(near ${NVCC} REALPATH)
    get_filename_component(near ${near}/../.. ABSOLUTE)
  endif()
  # cuda_bf16.h belongs to the same set and is missing from some reduced installations.
  find_path(CUDA_INCLUDE NAMES cuda_bf16.h HINTS ${near} ${hints} PATHS /usr/local/cuda
    PATH_SUFFIXES include targets/x86_64-linux/include)
  find_path(CCCL_INCLUDE NAMES nv/target HINTS ${CUDA_INCLUDE} ${hints} PATHS /usr/local/cuda
    PATH_SUFFIXES cccl include/cccl include)
  find_path(NCCL_INCLUDE NAMES nccl.h HINTS ${near} ${cuda_wheels}/nvidia/nccl ${hints} PATHS /usr/local/cuda
    PATH_SUFFIXES include)
  find_path(CUBLASLT_INCLUDE NAMES cublasLt.h HINTS ${near} ${hints} PATHS /usr/local/cuda PATH_SUFFIXES include)
  find_path(CUDNN_INCLUDE NAMES cudnn.h HINTS ${near} ${cuda_wheels}/nvidia/cudnn ${hints} PATHS /usr/local/cuda
    PATH_SUFFIXES include)
endfunction()

if(SWITCHYARD_CUDA STREQUAL "off")
  set(NVCC NVCC-NOTFOUND)
  set(CUDA_INCLUDE CUDA_INCLUDE-NOTFOUND)
  set(NCCL_INCLUDE NCCL_INCLUDE-NOTFOUND)
  set(CUBLASLT_INCLUDE CUBLASLT_INCLUDE-NOTFOUND)
  set(CUDNN_INCLUDE CUDNN_INCLUDE-NOTFOUND)
else()
  cuda_find()
  if(SWITCHYARD_CUDA STREQUAL "fetch" AND NOT (NVCC AND CUDA_INCLUDE AND CCCL_INCLUDE AND NCCL_INCLUDE))
    find_program(cuda_python python3)
    if(NOT CUDA_INCLUDE OR NOT NVCC)
      cuda_fetch(nvidia-cuda-runtime==13.0.*)
      cuda_fetch(nvidia-cuda-crt==13.0.*)
    endif()
    if(NOT CCCL_INCLUDE)
      cuda_fetch(nvidia-cuda-cccl==13.0.*)
    endif()
    if(NOT NVCC)
      cuda_fetch(nvidia-cuda-nvcc==13.0.*)
      cuda_fetch(nvidia-nvvm==13.0.*)
      file(GLOB tools ${cuda_wheels}/nvidia/cu13/bin/* ${cuda_wheels}/nvidia/cu13/nvvm/bin/*)
      if(tools)
        execute_process(COMMAND chmod +x ${tools})
      endif()
    endif()
    if(NOT NCCL_INCLUDE)
      cuda_fetch(nvidia-nccl-cu13 nvidia/nccl/include/nccl.h)
    endif()
    unset(NVCC CACHE)
    unset(CUDA_INCLUDE CACHE)
    unset(CCCL_INCLUDE CACHE)
    unset(NCCL_INCLUDE CACHE)
    cuda_find()
  endif()
endif()
if(NOT CUDA_INCLUDE OR NOT CCCL_INCLUDE) # the first needs the second
  set(CUDA_INCLUDE CUDA_INCLUDE-NOTFOUND)
endif()
set(CUDA_INCLUDES ${CUDA_INCLUDE} ${CCCL_INCLUDE})
message(STATUS "CUDA headers: ${CUDA_INCLUDE}, NCCL: ${NCCL_INCLUDE}, nvcc: ${NVCC}")
