// Results that are larger than the caches, written past them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace fastcam::cpu {

// Whether a result of so many bytes is written past the caches. Else memory is read before it is written, which
// takes half as long again; but what fits a cache is read from there by whatever comes next.
inline bool streams(int64_t bytes) {
#if defined(__SSE2__)
  return bytes >= int64_t{16} << 20;
#else
  return false;
#endif
}

// memcpy past the caches where the target is aligned
inline void stream(void* target, const void* source, int64_t bytes) {
  int64_t done = 0;
#if defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(target) % sizeof(__m128i) == 0) {
    const auto* from = static_cast<const __m128i*>(source);
    auto* to = static_cast<__m128i*>(target);
    for (; done + int64_t{sizeof(__m128i)} <= bytes; done += sizeof(__m128i))
      _mm_stream_si128(to++, _mm_loadu_si128(from++));
    _mm_sfence();  // before another thread is told that the result is there
  }
#endif
  std::memcpy(
      static_cast<char*>(target) + done, static_cast<const char*>(source) + done, bytes - done);
}

}  // namespace fastcam::cpu
