# The CUDA device in three variants, of which every executable links one:
#   device_cuda           of `switchyard`: over CUDA where nvcc works, else the same as
#   device_cuda_none      of the tests of the CPU and of sanitized builds: refuses, says how to build it
#   device_cuda_emulated  (tests/emulator): over the emulator
# The first two are object libraries: what they hold and what the rooms hold need each other.
# After cuda.cmake; sets CUDA_BUILT, and CUDA_OBJECTS: the kernels' object files, SASS inside.

# What a device holds besides kernels: C. What needs a library's header has a twin, x_none.c, that refuses.
file(GLOB CUDA_DEVICE_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.c)
list(FILTER CUDA_DEVICE_SOURCES EXCLUDE REGEX "_none\\.c$|/(gemm_cublaslt|attention_cudnn|cudnn_[a-z]+)\\.c$")
file(GLOB CUDA_KERNELS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)

# twin(LIST FILE HAVE): adds FILE.c, and the parts FILE_*.c, where HAVE is true, else FILE_none.c; neither where the
# file is not.
macro(twin list file have)
  if(EXISTS ${CMAKE_SOURCE_DIR}/${file}.c)
    if(${have})
      file(GLOB twin_parts CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/${file}.c ${CMAKE_SOURCE_DIR}/${file}_*.c)
      list(FILTER twin_parts EXCLUDE REGEX "_none\\.c$")
      list(APPEND ${list} ${twin_parts})
    else()
      list(APPEND ${list} ${CMAKE_SOURCE_DIR}/${file}_none.c)
    endif()
  endif()
endmacro()

# sm_80 for Ampere and Ada, sm_90a for Hopper's own instructions; newer GPUs compile the PTX of the first. Quick: other
# GPUs than Hopper compile it too, when they first see it, and where no GPU is it is left out: two fifths of the time.
option(SWITCHYARD_CUDA_QUICK "CUDA code that is made faster: Hopper's, and where a GPU is PTX for the others" OFF)
set(cuda_architectures)
if(NOT SWITCHYARD_CUDA_QUICK)
  set(CUDA_CODE "sm_80, sm_90a")
  set(cuda_architectures -gencode arch=compute_80,code=[sm_80,compute_80])
elseif(EXISTS /dev/nvidiactl OR EXISTS /proc/driver/nvidia/version OR EXISTS /dev/dxg)
  set(CUDA_CODE "compute_80, sm_90a")
  set(cuda_architectures -gencode arch=compute_80,code=compute_80)
else()
  set(CUDA_CODE "sm_90a")
endif()
list(APPEND cuda_architectures -gencode arch=compute_90a,code=sm_90a)
# No exceptions and no guards: nothing of the C++ runtime is needed.
set(cuda_flags -std=c++17 -O3 -lineinfo -Xptxas=-v -I${CMAKE_SOURCE_DIR} ${cuda_architectures}
  -Xcompiler=-fno-exceptions,-fno-rtti,-fno-threadsafe-statics,-Wall,-Wextra)
if(SWITCHYARD_WERROR)
  list(APPEND cuda_flags -Werror all-warnings)
endif()
# A sixth of the bytes; drivers of CUDA 13, which its runtime needs, unpack it.
if(NVCC)
  execute_process(COMMAND ${NVCC} --version OUTPUT_VARIABLE nvcc_version ERROR_QUIET)
  if(NOT SWITCHYARD_CUDA_QUICK AND nvcc_version MATCHES "release ([0-9]+)" AND CMAKE_MATCH_1 GREATER_EQUAL 13)
    list(APPEND cuda_flags --compress-mode=size)
  endif()
endif()
# Registers that do not fit make a matrix product slow: an error, by way of a warning.
set(cuda_flags_gemm -Xptxas=-warn-spills)

# nvcc with its host compiler and libcudart_static.a: tried once.
function(cuda_try)
  set(folder ${CMAKE_BINARY_DIR}/cuda-try)
  file(WRITE ${folder}/try.cu "#include <cuda_bf16.h>\n#include <cuda_runtime.h>\n__global__ void set(float *x) { *x = 1; }\n"
    "extern \"C\" int try_it(float *x) { set<<<1, 1>>>(x); return cudaGetLastError() != cudaSuccess; }\n")
  execute_process(COMMAND ${NVCC} ${cuda_flags} -c ${folder}/try.cu -o ${folder}/try.o
    RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(failed)
    message(STATUS "CUDA device: not built, nvcc fails: ${output}")
  endif()
  if(failed)
    set(CUDA_WORKS OFF CACHE INTERNAL "nvcc compiles")
  else()
    set(CUDA_WORKS ON CACHE INTERNAL "nvcc compiles")
  endif()
endfunction()

# Sets OUT to "NAME MAJOR.MINOR.PATCH" as the header defines them, or to "no NAME": what --version says.
function(header_version out name header)
  set(parts)
  foreach(macro ${ARGN})
    if(EXISTS ${header})
      file(STRINGS ${header} line REGEX "^#define ${macro} +[0-9]+" LIMIT_COUNT 1)
      string(REGEX MATCH "[0-9]+$" number "${line}")
      list(APPEND parts "${number}")
    endif()
  endforeach()
  list(JOIN parts "." version)
  if(version)
    set(${out} "${name} ${version}" PARENT_SCOPE)
  else()
    set(${out} "no ${name}" PARENT_SCOPE)
  endif()
endfunction()

set(CUDA_BUILT OFF)
set(CUDA_OBJECTS)
if(NVCC AND CUDA_INCLUDE AND CUDA_DEVICE_SOURCES AND NOT SWITCHYARD_SANITIZE)
  get_filename_component(cuda_root ${CUDA_INCLUDE} REALPATH)
  find_library(CUDART_STATIC libcudart_static.a HINTS ${cuda_root}/.. ${cuda_root}/../../.. /usr/local/cuda
    PATH_SUFFIXES lib lib64 targets/x86_64-linux/lib)
  if(NOT DEFINED CUDA_WORKS)
    cuda_try()
  endif()
  if(NOT CUDART_STATIC)
    message(STATUS "CUDA device: not built, no libcudart_static.a")
  elseif(CUDA_WORKS)
    set(CUDA_BUILT ON)
  endif()
endif()

set(cuda_none_sources ${CMAKE_SOURCE_DIR}/kernels/cuda/device_none.c
  ${CMAKE_SOURCE_DIR}/kernels/cuda/kernel_list_none.c)
twin(cuda_none_sources parallel/comm_nccl OFF)
add_library(device_cuda_none OBJECT ${cuda_none_sources})
target_link_libraries(device_cuda_none PRIVATE switchyard_flags)

if(CUDA_BUILT)
  foreach(source ${CUDA_KERNELS})
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
    set(flags ${cuda_flags})
    if(name MATCHES "gemm")
      list(APPEND flags ${cuda_flags_gemm})
    endif()
    add_custom_command(OUTPUT ${object}
      COMMAND bash ${CMAKE_SOURCE_DIR}/kernels/cuda/nvcc.sh ${CMAKE_CXX_COMPILER_LAUNCHER} ${NVCC} ${flags}
        -MD -MT ${object} -MF ${object}.d -c ${source} -o ${object}
      BYPRODUCTS ${object}.info
      DEPENDS ${source} ${CMAKE_SOURCE_DIR}/kernels/cuda/nvcc.sh DEPFILE ${object}.d
      COMMENT "nvcc ${name}.cu" VERBATIM)
    list(APPEND CUDA_OBJECTS ${object})
  endforeach()
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda)
  set_source_files_properties(${CUDA_OBJECTS} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  add_library(cuda_kernels STATIC ${CUDA_OBJECTS})
  set_target_properties(cuda_kernels PROPERTIES LINKER_LANGUAGE C)
  find_package(Threads REQUIRED)
  target_link_libraries(cuda_kernels INTERFACE ${CUDART_STATIC} Threads::Threads ${CMAKE_DL_LIBS} rt)
  set(kernel_list ${CMAKE_BINARY_DIR}/cuda/kernel_list.c)
  get_filename_component(disassembler "${NVDISASM}" DIRECTORY)
  add_custom_command(OUTPUT ${kernel_list}
    COMMAND ${CMAKE_COMMAND} -E env "PATH=${disassembler}:$ENV{PATH}"
      bash ${CMAKE_SOURCE_DIR}/kernels/cuda/kernel_list.sh ${kernel_list} ${CUOBJDUMP} ${CUDA_OBJECTS}
    DEPENDS ${CUDA_OBJECTS} ${CMAKE_SOURCE_DIR}/kernels/cuda/kernel_list.sh ${CMAKE_SOURCE_DIR}/kernels/cuda/sass_counts.awk
    COMMENT "kernel_list.c" VERBATIM)
  set(cuda_real_sources ${CUDA_DEVICE_SOURCES} ${kernel_list})
  twin(cuda_real_sources parallel/comm_nccl NCCL_INCLUDE)
  twin(cuda_real_sources kernels/cuda/gemm_cublaslt CUBLASLT_INCLUDE)
  twin(cuda_real_sources kernels/cuda/attention_cudnn CUDNN_INCLUDE)
  if(CUDNN_INCLUDE)
    file(GLOB cudnn_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/cudnn_*.c)
    list(APPEND cuda_real_sources ${cudnn_sources})
  endif()
  add_library(device_cuda OBJECT ${cuda_real_sources})
  target_include_directories(device_cuda SYSTEM PRIVATE ${CUDA_INCLUDES})
  foreach(include ${NCCL_INCLUDE} ${CUBLASLT_INCLUDE} ${CUDNN_INCLUDE})
    if(include)
      target_include_directories(device_cuda SYSTEM PRIVATE ${include})
    endif()
  endforeach()
  target_link_libraries(device_cuda PRIVATE switchyard_flags PUBLIC cuda_kernels)
  header_version(cublaslt "cuBLASLt" "${CUBLASLT_INCLUDE}/cublas_api.h" CUBLAS_VER_MAJOR CUBLAS_VER_MINOR CUBLAS_VER_PATCH)
  header_version(cudnn "cuDNN" "${CUDNN_INCLUDE}/cudnn_version.h" CUDNN_MAJOR CUDNN_MINOR CUDNN_PATCHLEVEL)
  target_compile_definitions(device_cuda PRIVATE CUDA_CODE="${CUDA_CODE}" CUDA_LIBRARIES="${cublaslt}, ${cudnn}")
  if(EXISTS ${CUDA_INCLUDE}/nvtx3/nvToolsExt.h) # ops by name in NVIDIA's profiler
    target_compile_definitions(device_cuda PRIVATE CUDA_NVTX)
  endif()
else()
  add_library(device_cuda ALIAS device_cuda_none)
endif()
