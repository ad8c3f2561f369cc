# libtorch from the PyPI wheel, unpacked by scripts/bootstrap into ${RETORT_DEPS_DIR}/torch.
#
# Only libtorch_cpu and libc10 are linked; a process that wants the GPU opens libtorch_cuda at start (model/device.h), so one binary
# serves machines with and without one. The wheel's include folder carries old protobuf and fmt headers, so it is searched last.
if(DEFINED ENV{RETORT_DEPS})
  set(_retort_deps_default $ENV{RETORT_DEPS})
else()
  set(_retort_deps_default ${CMAKE_SOURCE_DIR}/.deps)
endif()
set(RETORT_DEPS_DIR ${_retort_deps_default} CACHE PATH "Where scripts/bootstrap puts what apt does not have")
set(RETORT_TORCH_DIR ${RETORT_DEPS_DIR}/torch/torch CACHE PATH "The unpacked torch wheel")
if(NOT EXISTS ${RETORT_TORCH_DIR}/include/ATen/ATen.h)
  message(FATAL_ERROR "No libtorch in ${RETORT_TORCH_DIR}. Run scripts/bootstrap, or pass -DRETORT_WITH_TORCH=OFF.")
endif()
set(RETORT_CUDA_RUNTIME_DIR ${RETORT_TORCH_DIR}/../nvidia/cu13/lib)

function(retort_use_torch target)
  target_compile_options(${target} PUBLIC
    "SHELL:-idirafter ${RETORT_TORCH_DIR}/include"
    "SHELL:-idirafter ${RETORT_TORCH_DIR}/include/torch/csrc/api/include")
  target_compile_definitions(${target} PUBLIC _GLIBCXX_USE_CXX11_ABI=1)
  target_link_libraries(${target} PUBLIC ${RETORT_TORCH_DIR}/lib/libtorch_cpu.so ${RETORT_TORCH_DIR}/lib/libc10.so)
  target_link_options(${target} PUBLIC -Wl,-rpath,${RETORT_TORCH_DIR}/lib -Wl,-rpath,${RETORT_CUDA_RUNTIME_DIR}
    -Wl,-rpath-link,${RETORT_CUDA_RUNTIME_DIR} -Wl,--allow-shlib-undefined)
endfunction()
