# The kernels of kernels/cuda against the CPU device: test_ops_*.cpp, in every mode where all tests are
# wanted: the sanitizers' builds take minutes.
set(ops_modes plain)
if(SWITCHYARD_FULL_TESTS)
  set(ops_modes ${emulator_modes})
endif()
file(GLOB ops_kernels CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
file(GLOB ops_tests CONFIGURE_DEPENDS test_ops_*.cpp)
foreach(mode ${ops_modes})
  if(emulator_builds)
    add_library(ops_${mode} STATIC ${ops_kernels})
    target_link_libraries(ops_${mode} PUBLIC emulator_${mode} INTERFACE $<LINK_ONLY:kernels>)
    target_compile_options(ops_${mode} PRIVATE ${emulated_flags} -Wshadow ${sanitize_${mode}})
  endif()
  foreach(source ${ops_tests})
    get_filename_component(name ${source} NAME_WE)
    string(REPLACE test_ emulated_ name ${name}_${mode})
    emulated(${name} ${mode} ${source} LINK ops_${mode} device_cuda_none)
    emulated_test(${name} ${mode} ${name} TWO_PASSES=1 clean)
  endforeach()
endforeach()

# FP8 products whose tensor cores keep 14 bits, as Hopper's are said to: one seed, a minute.
if(SWITCHYARD_FULL_TESTS AND TARGET emulated_ops_fp8_gemm_plain)
  add_test(NAME emulated_ops_fp8_gemm_hopper COMMAND emulated_ops_fp8_gemm_plain 3)
  set_tests_properties(emulated_ops_fp8_gemm_hopper PROPERTIES ENVIRONMENT EMU_HOPPER_FP8=1 LABELS emulator TIMEOUT 900)
endif()

# The whole program over the emulated CUDA device: the same C as in `switchyard`, the kernels and the
# CUDA runtime emulated. Its symbols are visible to dlsym, so that libraries looked for at run time are
# found in it (NCCL over MPI); cuBLASLt and cuDNN have no emulation.
if(emulator_builds)
  set(emulated_nccl OFF)
  if(TARGET emulator_nccl_plain)
    set(emulated_nccl ON)
  endif()
  set(emulated_sources ${CUDA_DEVICE_SOURCES} ${CMAKE_SOURCE_DIR}/kernels/cuda/kernel_list_none.c)
  twin(emulated_sources parallel/comm_nccl emulated_nccl)
  twin(emulated_sources kernels/cuda/gemm_cublaslt OFF)
  twin(emulated_sources kernels/cuda/attention_cudnn OFF)
  add_library(device_cuda_emulated OBJECT ${emulated_sources})
  target_include_directories(device_cuda_emulated SYSTEM PRIVATE ${CUDA_INCLUDES})
  target_compile_definitions(device_cuda_emulated PRIVATE CUDA_CODE="emulated" CUDA_LIBRARIES="none")
  target_link_libraries(device_cuda_emulated PRIVATE switchyard_flags PUBLIC ops_plain INTERFACE $<LINK_ONLY:parallel>)
  if(emulated_nccl)
    target_include_directories(device_cuda_emulated SYSTEM PRIVATE ${NCCL_INCLUDE})
    # Nothing calls NCCL by name: dlsym finds what is linked whole.
    target_link_libraries(device_cuda_emulated PUBLIC
      -Wl,--whole-archive,$<TARGET_FILE:emulator_nccl_plain>,--no-whole-archive emulator_nccl_plain)
  endif()
  add_executable(switchyard_emulated ${CMAKE_SOURCE_DIR}/trainer/main.c)
  target_link_libraries(switchyard_emulated PRIVATE trainer device_cuda_emulated)
  set_target_properties(switchyard_emulated PROPERTIES ENABLE_EXPORTS ON LINKER_LANGUAGE CXX
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  emulated(emulated_device plain test_device.cpp LINK device_cuda_emulated)
  add_test(NAME emulated_program COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/program.sh ${CMAKE_SOURCE_DIR}
    $<TARGET_FILE:switchyard_emulated>)
  add_test(NAME emulated_families COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/families.sh ${CMAKE_SOURCE_DIR}
    $<TARGET_FILE:switchyard_emulated>)
  set_tests_properties(emulated_program PROPERTIES LABELS emulator TIMEOUT 600)
  set_tests_properties(emulated_families PROPERTIES LABELS "emulator;full" TIMEOUT 600)
  if(SWITCHYARD_FULL_TESTS)
    foreach(name saving layouts axes offload zero)
      add_test(NAME emulated_${name} COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/${name}.sh ${CMAKE_SOURCE_DIR}
        $<TARGET_FILE:switchyard_emulated>)
    endforeach()
    set_tests_properties(emulated_saving emulated_layouts emulated_axes emulated_offload emulated_zero PROPERTIES LABELS "emulator;full" TIMEOUT 1200)
  endif()
endif()
emulated_test(emulated_device plain emulated_device clean)

# Through the device's table: batch invariance of every op; sums of gradients as integers against the CPU's.
if(emulator_builds)
  foreach(name invariance fixed)
    emulated(emulated_${name} plain test_${name}.c LINK switchyard_flags device_cuda_emulated base)
    target_include_directories(emulated_${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
    if(SWITCHYARD_FULL_TESTS OR name STREQUAL fixed)
      add_test(NAME emulated_${name} COMMAND emulated_${name})
      set_tests_properties(emulated_${name} PROPERTIES ENVIRONMENT EMU_SEED=3 LABELS emulator TIMEOUT 600)
    endif()
  endforeach()
endif()
