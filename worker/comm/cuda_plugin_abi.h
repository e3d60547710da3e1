#pragma once

#include <stddef.h>
#include <stdint.h>

// What libringmaster_cuda.so offers to the worker, in plain C: the two may be linked against
// different copies of everything else. Strings end with a zero byte. Functions may be called from
// any thread unless a comment says otherwise.

// Rises with every change of this file; the worker refuses a plugin with another number.
#define RINGMASTER_CUDA_ABI_VERSION 2
#define RINGMASTER_CUDA_ENTRY "RingmasterCudaApiOf"

extern "C" {

// `code` is the number of an absl::StatusCode; 0 is OK.
struct RingmasterCudaResult {
  int code;
  char message[508];
};

struct RingmasterCudaDevice {
  char name[256];
  // Of the GPU, among all processes.
  uint64_t total_bytes;
  uint64_t free_bytes;
  int major;
  int minor;
};

// Of this process's caching allocator on one device.
struct RingmasterCudaMemory {
  uint64_t allocated_bytes;
  uint64_t reserved_bytes;
  // Since the last reset.
  uint64_t peak_allocated_bytes;
  uint64_t peak_reserved_bytes;
};

struct RingmasterNcclOptions {
  int64_t generation;
  int rank;
  int world_size;
  int device;
  double hop_deadline_seconds;
};

struct RingmasterNcclMessage {
  int peer;
  void* data;
  uint64_t bytes;
};

// One rank's communicator and its stream. Calls on one ring come from one thread at a time, but for
// Abort and AwaitReleased.
struct RingmasterNcclRing;

struct RingmasterCudaApi {
  int abi_version;

  // No driver and no device are zero devices.
  struct RingmasterCudaResult (*CountDevices)(int* count);
  struct RingmasterCudaResult (*Describe)(int device, struct RingmasterCudaDevice* description);
  // Of the calling thread.
  struct RingmasterCudaResult (*SetDevice)(int device);
  struct RingmasterCudaResult (*Memory)(int device, struct RingmasterCudaMemory* memory);
  struct RingmasterCudaResult (*ResetPeakMemory)(int device);
  struct RingmasterCudaResult (*EmptyCache)(void);

  // Plain device memory of the thread's device, beside the caching allocator. Copy returns when the
  // copy is done.
  struct RingmasterCudaResult (*Allocate)(uint64_t bytes, void** memory);
  void (*Release)(void* memory);
  struct RingmasterCudaResult (*Copy)(void* to, const void* from, uint64_t bytes);

  // "2.28.9", and where it was loaded from. FailedPrecondition when it is not the version that the
  // plugin was compiled for.
  struct RingmasterCudaResult (*NcclVersion)(char version[32], char path[512]);

  struct RingmasterCudaResult (*NcclOpen)(const struct RingmasterNcclOptions* options,
                                          struct RingmasterNcclRing** ring, char address[512]);
  // Addresses are in rank order.
  struct RingmasterCudaResult (*NcclConnect)(struct RingmasterNcclRing* ring,
                                             const char* const* addresses, size_t address_count,
                                             double deadline_seconds);
  struct RingmasterCudaResult (*NcclStart)(struct RingmasterNcclRing* ring,
                                           const struct RingmasterNcclMessage* sends,
                                           size_t send_count,
                                           const struct RingmasterNcclMessage* receives,
                                           size_t receive_count, void* producer_stream,
                                           uint64_t* ticket);
  struct RingmasterCudaResult (*NcclWait)(struct RingmasterNcclRing* ring, uint64_t ticket,
                                          void* consumer_stream);
  struct RingmasterCudaResult (*NcclSettle)(struct RingmasterNcclRing* ring);
  struct RingmasterCudaResult (*NcclClose)(struct RingmasterNcclRing* ring);
  void (*NcclAbort)(struct RingmasterNcclRing* ring, const char* reason);
  struct RingmasterCudaResult (*NcclAwaitReleased)(struct RingmasterNcclRing* ring,
                                                   double deadline_seconds);
  // Aborts when that is still needed. Waits for a bounded time; what hangs is left behind.
  void (*NcclDestroy)(struct RingmasterNcclRing* ring);
};

// The plugin's one exported function, by the name RINGMASTER_CUDA_ENTRY.
typedef const struct RingmasterCudaApi* (*RingmasterCudaEntry)(void);

}  // extern "C"
