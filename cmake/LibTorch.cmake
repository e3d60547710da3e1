# LibTorch from the wheel that deploy/local/setup puts under RINGMASTER_DEPS, as our own imported targets:
#   LibTorch::cpu    libtorch_cpu + libc10: all that a CPU host needs
#   LibTorch::cuda   adds libtorch_cuda + libc10_cuda; only libringmaster_cuda.so links it
# find_package(Torch) is not used: it requires a CUDA toolkit with the wheel we take and brings an old protoc.
set(RINGMASTER_TORCH "${RINGMASTER_DEPS}/site/torch")
if(NOT EXISTS "${RINGMASTER_TORCH}/lib/libtorch_cpu.so")
  message(FATAL_ERROR "LibTorch is not at ${RINGMASTER_TORCH}: run deploy/local/setup first, or set RINGMASTER_DEPS")
endif()

# -idirafter: the wheel carries protobuf 3.13 headers, which must not shadow the system's 3.21.
set(torch_includes
  "SHELL:-idirafter ${RINGMASTER_TORCH}/include"
  "SHELL:-idirafter ${RINGMASTER_TORCH}/include/torch/csrc/api/include")

add_library(LibTorch::c10 SHARED IMPORTED)
set_target_properties(LibTorch::c10 PROPERTIES IMPORTED_LOCATION "${RINGMASTER_TORCH}/lib/libc10.so")
add_library(LibTorch::cpu SHARED IMPORTED)
set_target_properties(LibTorch::cpu PROPERTIES
  IMPORTED_LOCATION "${RINGMASTER_TORCH}/lib/libtorch_cpu.so"
  COMPATIBLE_INTERFACE_BOOL RINGMASTER_LINKS_TORCH
  INTERFACE_RINGMASTER_LINKS_TORCH ON
  INTERFACE_COMPILE_OPTIONS "${torch_includes}"
  INTERFACE_LINK_LIBRARIES LibTorch::c10
  # libcudart and libcupti are the wheel's own needs, found through its RPATH at run time.
  INTERFACE_LINK_OPTIONS "-Wl,--allow-shlib-undefined")

# OpenMP on the threads of LibTorch itself: its own runtime, not the compiler's.
add_library(LibTorch::openmp INTERFACE IMPORTED)
set_target_properties(LibTorch::openmp PROPERTIES
  INTERFACE_COMPILE_OPTIONS -fopenmp
  INTERFACE_LINK_LIBRARIES "${RINGMASTER_TORCH}/lib/libgomp.so.1")

if(RINGMASTER_CUDA)
  enable_language(CUDA)
  find_package(CUDAToolkit 13.0 REQUIRED)
  add_library(LibTorch::c10_cuda SHARED IMPORTED)
  set_target_properties(LibTorch::c10_cuda PROPERTIES IMPORTED_LOCATION "${RINGMASTER_TORCH}/lib/libc10_cuda.so")
  add_library(LibTorch::cuda INTERFACE IMPORTED)
  # --no-as-needed: nothing refers to libtorch_cuda by symbol; its kernels register themselves when it is loaded.
  set_target_properties(LibTorch::cuda PROPERTIES
    INTERFACE_LINK_LIBRARIES "LibTorch::cpu;LibTorch::c10_cuda;CUDA::cudart"
    INTERFACE_LINK_OPTIONS "-Wl,--no-as-needed;${RINGMASTER_TORCH}/lib/libtorch_cuda.so;-Wl,--as-needed;-Wl,--allow-shlib-undefined")
endif()
