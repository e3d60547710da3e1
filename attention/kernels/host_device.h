#pragma once

// Before functions that kernels and their host, or a test there, call alike.
#ifdef __CUDACC__
#define RINGMASTER_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define RINGMASTER_HOST_DEVICE inline
#endif
