# cmake --build build --target bundle: build/bundle, a folder for a node that has a driver and CUDA's libraries
# only (docs/gpu.md). Programs get there by install() of the component "bundle"; bundle.sh adds the rest.
set(bundle_folder ${CMAKE_BINARY_DIR}/bundle)

# DT_RPATH, which also serves the libraries' own needs and dlopen: the bundle's, then where CUDA usually is.
string(JOIN ":" bundle_rpath "$ORIGIN/../lib" /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib
  /opt/cuda/lib64 /usr/lib/x86_64-linux-gnu /usr/lib64)
function(bundle_program target)
  target_link_options(${target} PRIVATE -Wl,--disable-new-dtags)
  set_target_properties(${target} PROPERTIES INSTALL_RPATH "${bundle_rpath}")
  install(TARGETS ${target} DESTINATION bin COMPONENT bundle EXCLUDE_FROM_ALL)
  set_property(GLOBAL APPEND PROPERTY bundle_programs ${target})
endfunction()
bundle_program(switchyard)

# After every bundle_program.
function(bundle_target)
  get_property(programs GLOBAL PROPERTY bundle_programs)
  if(SWITCHYARD_CUDA_QUICK) # configured by ./check: once more, then the target below
    add_custom_target(bundle
      COMMAND ${CMAKE_COMMAND} -DSWITCHYARD_CUDA_QUICK=OFF ${CMAKE_BINARY_DIR}
      COMMAND ${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --target bundle USES_TERMINAL VERBATIM)
    return()
  endif()
  add_custom_target(bundle
    COMMAND ${CMAKE_COMMAND} -E rm -rf ${bundle_folder}
    COMMAND ${CMAKE_COMMAND} --install ${CMAKE_BINARY_DIR} --component bundle --prefix ${bundle_folder}
    COMMAND bash ${CMAKE_SOURCE_DIR}/tests/gpu/bundle.sh ${CMAKE_SOURCE_DIR} ${bundle_folder}
    DEPENDS ${programs} USES_TERMINAL VERBATIM)
endfunction()
