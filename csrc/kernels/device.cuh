// What kernels ask of the hardware beyond plain CUDA, an instruction a function. Without nvcc,
// tests/kernels/emulator.h has the same functions on a CPU.
#pragma once

#include <cstdint>

// Where bulk copies and clusters can be used: from sm_90 on, and in the emulator.
#if !defined(__CUDACC__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
#define FASTCAM_CLUSTERS
#endif

#if defined(__CUDACC__)

namespace fastcam {

// The block's dynamic shared memory
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// ---- asynchronous copies of a thread (sm_80), complete for it after wait_for_copies ----

// 16 bytes from device memory to shared memory, both aligned to 16
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's groups, but for the latest kPending.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

#if defined(FASTCAM_CLUSTERS)

// ---- bulk copies (sm_90), complete for a thread after wait_barrier ----

// In shared memory. A phase is over when one thread has said how many bytes will come and they have.
using CopyBarrier = uint64_t;

// By one thread, before a barrier of the block
__device__ __forceinline__ void init_barrier(CopyBarrier* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Opens a phase in which `bytes` come, by one thread.
__device__ __forceinline__ void expect_bytes(CopyBarrier* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// `bytes` from device memory to shared memory; all three a multiple of 16
__device__ __forceinline__ void bulk_copy(
    void* shared, const void* global, uint32_t bytes, CopyBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// Waits for the end of a phase: 0 for the first, 1 for the second, 0 for the third...
__device__ __forceinline__ void wait_barrier(CopyBarrier* barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}

// ---- clusters of blocks (sm_90) ----

// A barrier of all threads of the cluster
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The place of `shared` in the shared memory of another block of the cluster
template <class F>
__device__ __forceinline__ const F* peer_memory(const F* shared, unsigned rank) {
  const F* peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(shared), "r"(rank));
  return peer;
}

#endif  // FASTCAM_CLUSTERS

}  // namespace fastcam

#endif  // __CUDACC__
