// The machine itself: small kernels with known results, known counts and known faults.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>

#include "launch.h"
#include "mutants.h"

using namespace ptx;

namespace {

int failures = 0, checks = 0;

void expect(bool condition, const std::string& what) {
  ++checks;
  if (condition) return;
  if (++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

// ---- kernels ----

// A kernel of two pointers, %rd0 and %rd1, with 1024 bytes of shared memory, `memory`. %r0: the thread's
// number in the grid; %r1: 4 times the thread's number in the block.
std::string source(const std::string& body) {
  return R"(
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 128 .b8 dynamic[];
.visible .entry test(
.param .u64 test_param_0,
.param .u64 test_param_1
)
.maxntid 256, 1, 1
{
.reg .pred %p<8>;
.reg .b16 %rs<16>;
.reg .b32 %r<32>;
.reg .f32 %f<16>;
.reg .b64 %rd<16>;
.reg .f64 %fd<8>;
.shared .align 16 .b8 memory[1024];
ld.param.u64 %rd0, [test_param_0];
ld.param.u64 %rd1, [test_param_1];
mov.u32 %r2, %tid.x;
mov.u32 %r3, %ctaid.x;
mov.u32 %r4, %ntid.x;
mad.lo.s32 %r0, %r3, %r4, %r2;
shl.b32 %r1, %r2, 2;
)" + body +
         "\nret;\n}\n";
}
constexpr int kPrologue = 7;

struct Outcome {
  Counts counts;
  std::string fault;

  // Instructions issued behind the prologue
  uint64_t issued() const {
    uint64_t sum = 0;
    for (size_t i = kPrologue; i < counts.issued.size(); ++i) sum += counts.issued[i];
    return sum;
  }
};

Outcome run(
    const std::string& body, const void* first, const void* second, uint32_t blocks = 1,
    uint32_t threads = 32, uint64_t seed = 1, uint32_t shared_bytes = 0) {
  Outcome outcome;
  try {
    const Kernel kernel = Module("test.ptx", source(body)).kernel("test");
    const Blocks shape{{blocks, 1, 1}, {threads, 1, 1}, shared_bytes, nullptr};
    const Launch launch = prepared(kernel, shape, {{&first, 8}, {&second, 8}});
    outcome.counts = Machine(seed).run(launch, 0, blocks);
  } catch (const Fault& fault) {
    outcome.fault = fault.what();
  }
  return outcome;
}

// ---- single instructions against plain C++ ----

template <class T>
std::vector<T> special_values() {
  if constexpr (std::is_floating_point_v<T>) {
    using Limits = std::numeric_limits<T>;
    std::vector<T> values{
        0,
        1,
        0.5,
        1.5,
        2.5,
        3,
        T(0.1),
        T(65504),
        T(65520),
        T(1e30),
        T(1e-30),
        T(255.5),
        T(32768.5),
        T(2.1e9),
        T(4.2e9),
        T(1e19),
        T(0x1p31),
        T(0x1p32),
        T(0x1p63),
        T(0x1p-24),
        T(0x1p-25),
        T(0x1.8p-25),
        T(1.0009765625),
        T(0x1p127),
        T(0x1.000002p0),
        Limits::min(),
        Limits::denorm_min(),
        Limits::max(),
        Limits::infinity(),
        Limits::quiet_NaN()};
    for (size_t i = 0, n = values.size(); i < n; ++i) values.push_back(-values[i]);
    return values;
  } else {
    using Limits = std::numeric_limits<T>;
    std::vector<T> values{0, 1, 2, 3, 7, 15, 31, 32, 33, 63, 64, 100, 127};
    for (int64_t value :
         {-1ll, -2ll, -7ll, 128ll, 255ll, 256ll, 65535ll, 0x12345678ll, 0xdeadbeefll})
      values.push_back(static_cast<T>(value));
    values.push_back(Limits::min());
    values.push_back(Limits::max());
    values.push_back(static_cast<T>(Limits::max() - 1));
    return values;
  }
}

template <class T>
std::string letter() {
  if (std::is_same_v<T, float>) return "f";
  if (std::is_same_v<T, double>) return "fd";
  return sizeof(T) <= 2 ? "rs" : sizeof(T) == 4 ? "r" : "rd";
}

template <class T>
std::string memory_type() {
  return "b" + std::to_string(8 * sizeof(T));
}

template <class T>
bool same(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    if (a != a || b != b) return a != a && b != b;
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T>
double shown(T value) {
  return static_cast<double>(value);
}

// opcode d, a, b... for all combinations of values; `oracle` says what d is, or nothing where it is undefined.
template <class D, class... Operands, class Oracle>
void test_instruction(
    const std::string& opcode, const Oracle& oracle, const std::string& tail = "") {
  struct Row {
    std::tuple<Operands...> operands;
    D result;
  };
  std::vector<Row> rows{{}};
  const auto extend = [&]<class T, size_t i>(std::integral_constant<size_t, i>, T) {
    std::vector<Row> longer;
    for (const Row& row : rows) {
      for (T value : special_values<T>()) {
        longer.push_back(row);
        std::get<i>(longer.back().operands) = value;
      }
    }
    rows = std::move(longer);
  };
  [&]<size_t... i>(std::index_sequence<i...>) {
    (extend(std::integral_constant<size_t, i>(), Operands{}), ...);
  }(std::index_sequence_for<Operands...>());
  std::erase_if(rows, [&](Row& row) {
    const std::optional<D> result = std::apply(oracle, row.operands);
    if (result) row.result = *result;
    return !result;
  });

  // operand i of all rows lies behind operand i - 1 of all rows
  const size_t padded = (rows.size() + 31) / 32 * 32;
  std::vector<uint64_t> in(sizeof...(Operands) * padded, 1), out(padded, 0);
  for (size_t row = 0; row < rows.size(); ++row) {
    size_t i = 0;
    std::apply(
        [&](auto... values) {
          (std::memcpy(&in[i++ * padded + row], &values, sizeof(values)), ...);
        },
        rows[row].operands);
  }
  std::string body =
      "mul.wide.u32 %rd2, %r0, 8;\nadd.s64 %rd3, %rd1, %rd2;\nadd.s64 %rd4, %rd0, %rd2;\n";
  std::string names;
  size_t i = 0;
  const auto load = [&]<class T>(T) {
    const std::string name =
        "%" + letter<T>() + std::to_string(8 + i % 6 + (letter<T>() == "fd" ? -6 : 0));
    body += "ld.global." + memory_type<T>() + " " + name + ", [%rd3+" +
            std::to_string(8 * padded * i++) + "];\n";
    names += ", " + name;
  };
  (load(Operands{}), ...);
  const bool predicate = opcode.starts_with("setp");
  const std::string target = predicate ? "%p1" : "%" + letter<D>() + "7";
  body += opcode + " " + target + names + tail + ";\n";
  if (predicate) body += "selp.u32 %r7, 1, 0, %p1;\n";
  body += "st.global." + memory_type<D>() + " [%rd4], " + (predicate ? "%r7" : target) + ";\n";
  const Outcome outcome = run(body, out.data(), in.data(), static_cast<uint32_t>(padded / 32));
  expect(outcome.fault.empty(), opcode + ": " + outcome.fault);
  for (size_t row = 0; row < rows.size(); ++row) {
    D got;
    std::memcpy(&got, &out[row], sizeof(D));
    if (same(got, rows[row].result)) {
      ++checks;
      continue;
    }
    std::string what = opcode;
    std::apply(
        [&](auto... v) { ((what += " " + std::to_string(shown(v))), ...); }, rows[row].operands);
    expect(
        false, what + ": " + std::to_string(shown(got)) + ", not " +
                   std::to_string(shown(rows[row].result)));
  }
}

template <class D, class... Operands, class Oracle>
void check(const std::string& opcode, const Oracle& oracle, const std::string& tail = "") {
  test_instruction<D, Operands...>(
      opcode,
      [&](Operands... values) -> std::optional<D> { return static_cast<D>(oracle(values...)); },
      tail);
}

template <class T>
void test_integers(const std::string& type) {
  using U = std::make_unsigned_t<T>;
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  constexpr int kBits = sizeof(T) * 8;
  check<T, T, T>("add." + type, [](T a, T b) { return U(U(a) + U(b)); });
  check<T, T, T>("sub." + type, [](T a, T b) { return U(U(a) - U(b)); });
  check<T, T, T>("mul.lo." + type, [](T a, T b) { return U(Wide(a) * Wide(b)); });
  check<T, T, T>("mul.hi." + type, [](T a, T b) { return T(Wide(a) * Wide(b) >> kBits); });
  check<T, T, T>("min." + type, [](T a, T b) { return std::min(a, b); });
  check<T, T, T>("max." + type, [](T a, T b) { return std::max(a, b); });
  for (bool remainder : {false, true})
    test_instruction<T, T, T>(
        (remainder ? "rem." : "div.") + type, [&](T a, T b) -> std::optional<T> {
          if (b == 0) return std::nullopt;
          return static_cast<T>(remainder ? Wide(a) % Wide(b) : Wide(a) / Wide(b));
        });
  check<uint32_t, T, T>("setp.eq." + type, [](T a, T b) { return a == b; });
  check<uint32_t, T, T>("setp.ne." + type, [](T a, T b) { return a != b; });
  check<uint32_t, T, T>("setp.lt." + type, [](T a, T b) { return a < b; });
  check<uint32_t, T, T>("setp.le." + type, [](T a, T b) { return a <= b; });
  check<uint32_t, T, T>("setp.gt." + type, [](T a, T b) { return a > b; });
  check<uint32_t, T, T>("setp.ge." + type, [](T a, T b) { return a >= b; });
  check<T, T, uint32_t>("shr." + type, [](T a, uint32_t by) {
    T result = a;
    for (uint32_t i = 0; i < std::min(by, 64u); ++i) result = static_cast<T>(result >> 1);
    return result;
  });
  if constexpr (std::is_signed_v<T>) {
    check<T, T>("neg." + type, [](T a) { return U(0) - U(a); });
    check<T, T>("abs." + type, [](T a) { return a < 0 ? U(0) - U(a) : U(a); });
  }
}

template <class T>
void test_bits() {
  const std::string type = memory_type<T>();
  check<T, T, T>("and." + type, [](T a, T b) { return a & b; });
  check<T, T, T>("or." + type, [](T a, T b) { return a | b; });
  check<T, T, T>("xor." + type, [](T a, T b) { return a ^ b; });
  check<T, T>("not." + type, [](T a) { return ~a; });
  check<T, T, uint32_t>("shl." + type, [](T a, uint32_t by) {
    T result = a;
    for (uint32_t i = 0; i < std::min(by, 64u); ++i) result = static_cast<T>(result * 2);
    return result;
  });
}

template <class F>
void test_floats(const std::string& type) {
  check<F, F, F>("add." + type, [](F a, F b) { return a + b; });
  check<F, F, F>("sub." + type, [](F a, F b) { return a - b; });
  check<F, F, F>("mul." + type, [](F a, F b) { return a * b; });
  check<F, F, F>("div.rn." + type, [](F a, F b) { return a / b; });
  check<F, F>("rcp.rn." + type, [](F a) { return 1 / a; });
  check<F, F, F, F>("fma.rn." + type, [](F a, F b, F c) { return std::fma(a, b, c); });
  check<F, F, F>("min." + type, [](F a, F b) {
    return a == 0 && b == 0 ? (std::signbit(a) || std::signbit(b) ? F(-0.0) : F(0))
                            : std::fmin(a, b);
  });
  check<F, F, F>("max." + type, [](F a, F b) {
    return a == 0 && b == 0 ? (std::signbit(a) && std::signbit(b) ? F(-0.0) : F(0))
                            : std::fmax(a, b);
  });
  const auto unordered = [](F a, F b) { return std::isnan(a) || std::isnan(b); };
  struct Comparison {
    const char* name;
    std::function<bool(F, F)> holds;
  };
  for (const Comparison& c : std::initializer_list<Comparison>{
           {"eq", [](F a, F b) { return a == b; }},
           {"ne", [&](F a, F b) { return a != b && !unordered(a, b); }},
           {"lt", [](F a, F b) { return a < b; }},
           {"le", [](F a, F b) { return a <= b; }},
           {"gt", [](F a, F b) { return a > b; }},
           {"ge", [](F a, F b) { return a >= b; }}}) {
    check<uint32_t, F, F>("setp." + (c.name + ("." + type)), c.holds);
    check<uint32_t, F, F>("setp." + (c.name + ("u." + type)), [&](F a, F b) {
      return unordered(a, b) || c.holds(a, b);
    });
  }
  check<uint32_t, F, F>("setp.num." + type, [&](F a, F b) { return !unordered(a, b); });
  check<uint32_t, F, F>("setp.nan." + type, unordered);
}

template <class T, class F>
void test_to_integer(const std::string& types) {
  const auto clamped = [](F whole) -> T {
    if (std::isnan(whole)) return 0;
    const long double low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    return static_cast<T>(std::clamp<long double>(whole, low, high));
  };
  check<T, F>("cvt.rzi." + types, [&](F a) { return clamped(std::trunc(a)); });
  check<T, F>("cvt.rmi." + types, [&](F a) { return clamped(std::floor(a)); });
  check<T, F>("cvt.rpi." + types, [&](F a) { return clamped(std::ceil(a)); });
  check<T, F>("cvt.rni." + types, [&](F a) { return clamped(std::rint(a)); });
}

uint16_t half_bits(float value) {
  const auto half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return std::isnan(value) ? 0x7fff : bits;
}

void test_conversions() {
  check<uint16_t, float>("cvt.rn.f16.f32", half_bits);
  check<uint32_t, float, float>("cvt.rn.f16x2.f32", [](float high, float low) {
    return uint32_t{half_bits(high)} << 16 | half_bits(low);
  });
  check<float, uint16_t>("cvt.f32.f16", [](uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, 2);
    return static_cast<float>(half);
  });
  check<float, uint16_t>(
      "cvt.f32.bf16", [](uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); });
  // the nearest of the two neighbours, the even one of a tie
  check<uint16_t, float>("cvt.rn.bf16.f32", [](float value) -> uint16_t {
    if (std::isnan(value)) return 0x7fff;
    const uint32_t bits = std::bit_cast<uint32_t>(value), low = bits >> 16;
    const uint32_t rest = bits & 0xffff;
    return static_cast<uint16_t>(low + (rest > 0x8000 || (rest == 0x8000 && low % 2)));
  });
  check<float, double>("cvt.rn.f32.f64", [](double a) { return static_cast<float>(a); });
  check<double, float>("cvt.f64.f32", [](float a) { return static_cast<double>(a); });
  check<float, int64_t>("cvt.rn.f32.s64", [](int64_t a) { return static_cast<float>(a); });
  check<float, uint32_t>("cvt.rn.f32.u32", [](uint32_t a) { return static_cast<float>(a); });
  check<float, uint16_t>("cvt.rn.f32.u16", [](uint16_t a) { return static_cast<float>(a); });
  check<double, uint64_t>("cvt.rn.f64.u64", [](uint64_t a) { return static_cast<double>(a); });
  check<float, float>("cvt.sat.f32.f32", [](float a) { return a > 0 ? std::min(a, 1.0f) : 0; });
  check<float, float>("cvt.rni.f32.f32", [](float a) { return std::rint(a); });
  check<float, float>("cvt.rmi.f32.f32", [](float a) { return std::floor(a); });
  test_to_integer<int32_t, float>("s32.f32");
  test_to_integer<uint32_t, float>("u32.f32");
  test_to_integer<int64_t, float>("s64.f32");
  test_to_integer<uint64_t, double>("u64.f64");
  test_to_integer<int32_t, double>("s32.f64");
  check<uint32_t, uint64_t>("cvt.u32.u64", [](uint64_t a) { return static_cast<uint32_t>(a); });
  check<uint64_t, uint32_t>(
      "cvt.s64.s32", [](uint32_t a) { return int64_t{static_cast<int32_t>(a)}; });
  check<uint64_t, uint32_t>("cvt.u64.u32", [](uint32_t a) { return uint64_t{a}; });
  check<uint32_t, uint16_t>(
      "cvt.s32.s8", [](uint16_t a) { return int32_t{static_cast<int8_t>(a)}; });
  check<uint32_t, uint16_t>(
      "cvt.u32.u8", [](uint16_t a) { return uint32_t{static_cast<uint8_t>(a)}; });
}

void test_words() {
  using U = uint32_t;
  check<uint64_t, U, U>("mul.wide.u32", [](U a, U b) { return uint64_t{a} * b; });
  check<uint64_t, int32_t, int32_t>("mul.wide.s32", [](int64_t a, int64_t b) { return a * b; });
  check<uint32_t, int16_t, int16_t>("mul.wide.s16", [](int32_t a, int32_t b) { return a * b; });
  check<U, U, U, U>("mad.lo.s32", [](U a, U b, U c) { return a * b + c; });
  check<U, U, U, U>("mad.hi.u32", [](U a, U b, U c) { return (uint64_t{a} * b >> 32) + c; });
  check<uint64_t, U, U, uint64_t>(
      "mad.wide.u32", [](uint64_t a, uint64_t b, uint64_t c) { return a * b + c; });
  check<U, U, U>("setp.lo.u32", [](U a, U b) { return a < b; });
  check<U, U, U>("setp.hs.u32", [](U a, U b) { return a >= b; });
  check<U, U>("popc.b32", [](U a) { return __builtin_popcount(a); });
  check<U, U>("clz.b32", [](U a) { return a ? __builtin_clz(a) : 32; });
  check<U, U>("brev.b32", [](U a) {
    U result = 0;
    for (; a; a &= a - 1) result |= 0x80000000u >> __builtin_ctz(a);
    return result;
  });
  check<U, U, U, U>("prmt.b32", [](U a, U b, U selectors) {
    uint8_t bytes[8], result[4];
    std::memcpy(bytes, &a, 4), std::memcpy(bytes + 4, &b, 4);
    for (int i = 0; i < 4; ++i) {
      const U s = selectors >> (4 * i) & 15;
      result[i] = s < 8 ? bytes[s] : (bytes[s - 8] >= 128 ? 255 : 0);
    }
    U word;
    std::memcpy(&word, result, 4);
    return word;
  });
  check<U, U, U, U>("lop3.b32", [](U a, U b, U c) { return (a & b) ^ c; }, ", 106");
  check<U, U, U, U>("lop3.b32", [](U a, U b, U c) { return a | b | c; }, ", 254");
  check<U, U, U, U>("shf.l.wrap.b32", [](U a, U b, U n) {
    return n % 32 ? b << n % 32 | a >> (32 - n % 32) : b;
  });
  check<U, U, U, U>("shf.r.wrap.b32", [](U a, U b, U n) {
    return n % 32 ? a >> n % 32 | b << (32 - n % 32) : a;
  });
  check<U, U, U, U>("shf.r.clamp.b32", [](U a, U b, U n) {
    return n >= 32 ? b : n ? a >> n | b << (32 - n) : a;
  });
  // bit by bit, as the manual has it
  check<U, U, U, U>("bfe.u32", [](U a, U first, U length) {
    U result = 0;
    for (U i = 0; i < (length & 255) && i < 32; ++i)
      if ((first & 255) + i < 32) result |= (a >> ((first & 255) + i) & 1) << i;
    return result;
  });
  check<U, U, U, U>("bfe.s32", [](U a, U first, U length) {
    first &= 255, length &= 255;
    const U sign = length ? a >> std::min(first + length - 1, 31u) & 1 : 0;
    U result = 0;
    for (U i = 0; i < 32; ++i)
      result |= (i < length && first + i < 32 ? a >> (first + i) & 1 : sign) << i;
    return result;
  });
  check<U, U, U, U>(
      "bfi.b32",
      [](U a, U b, U first) {
        for (U i = 0; i < 5; ++i)
          if ((first & 255) + i < 32)
            b = (b & ~(1u << ((first & 255) + i))) | (a >> i & 1) << ((first & 255) + i);
        return b;
      },
      ", 5");
}

// What an approximation may be off by: one in the last place
void test_approximations() {
  for (const char* name : {"rcp.approx.f32", "rcp.approx.ftz.f32"}) {
    std::vector<float> in;
    for (int i = 0; i < 32000; ++i) in.push_back(std::ldexp(1 + i / 32000.0f, i % 250 - 125));
    std::vector<float> out(in.size());
    const Outcome outcome =
        run("mul.wide.u32 %rd2, %r0, 4;\nadd.s64 %rd3, %rd1, %rd2;\nadd.s64 %rd4, %rd0, %rd2;\n"
            "ld.global.f32 %f1, [%rd3];\n" +
                std::string(name) + " %f2, %f1;\nst.global.f32 [%rd4], %f2;\n",
            out.data(), in.data(), static_cast<uint32_t>(in.size() / 32));
    expect(outcome.fault.empty(), outcome.fault);
    int off = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      const float exact = 1 / in[i];
      expect(std::fabs(out[i] - exact) <= std::ldexp(std::fabs(exact), -22), name);
      off += out[i] != exact;
    }
    expect(off > 1000 && off < 31000, std::string(name) + " is off, but not always");
  }
  const auto reciprocal = [](float a) -> std::optional<float> {
    if (std::isnan(a) || std::isinf(a) || std::fabs(a) < 0x1p-126f)
      return 1 / (std::isnan(a) || std::isinf(a) ? a : std::copysign(0.0f, a));
    if (std::fabs(a) > 0x1p126f) return std::copysign(0.0f, a);
    return std::nullopt;
  };
  test_instruction<float, float>("rcp.approx.ftz.f32", reciprocal);
}

void test_parts() {
  std::vector<uint32_t> in{0x11112222, 0x33334444}, out(4);
  const Outcome outcome =
      run("ld.global.u64 %rd2, [%rd1];\nmov.b64 {%rs1, %rs2, %rs3, %rs4}, %rd2;\n"
          "mov.b64 {%r5, %r6}, %rd2;\nmov.b32 %r7, {%rs4, %rs1};\nmov.b64 %rd3, {%r7, %r5};\n"
          "setp.ne.s32 %p1, %r2, 0;\n@%p1 ret;\nst.global.u64 [%rd0], %rd3;\n"
          "st.global.u32 [%rd0+8], %r6;\n",
          out.data(), in.data());
  expect(outcome.fault.empty(), outcome.fault);
  expect(out == std::vector<uint32_t>{0x22223333, 0x11112222, 0x33334444, 0}, "parts");
}

// Division by a constant, as compilers write it
void test_divisions_by_constants() {
  std::vector<uint32_t> in, out;
  for (uint32_t i = 0; i < 3200; ++i) in.push_back(i * 1342177 + (i % 3 ? 0 : 0xffffff00u));
  out.resize(in.size());
  const Outcome outcome =
      run("mul.wide.u32 %rd2, %r0, 4;\nadd.s64 %rd3, %rd1, %rd2;\nadd.s64 %rd4, %rd0, %rd2;\n"
          "ld.global.u32 %r5, [%rd3];\n"
          "mul.hi.u32 %r6, %r5, 613566757;\nsub.s32 %r7, %r5, %r6;\nshr.u32 %r8, %r7, 1;\n"
          "add.s32 %r9, %r8, %r6;\nshr.u32 %r10, %r9, 2;\nst.global.u32 [%rd4], %r10;\n",
          out.data(), in.data(), 100);
  expect(outcome.fault.empty(), outcome.fault);
  for (size_t i = 0; i < in.size(); ++i) expect(out[i] == in[i] / 7, "a division by 7");
}

// ---- the flow ----

void test_counts() {
  const auto issued = [](const std::string& body) {
    std::vector<uint32_t> out(256);
    const Outcome outcome = run(body, out.data(), nullptr);
    expect(outcome.fault.empty(), outcome.fault);
    return outcome.issued();
  };
  expect(issued("") == 1, "ret");
  // compare, branch, 2 of one side, 3 of the other, the meeting, ret
  const std::string sides = R"(
    @%p1 bra $SMALL;
    add.s32 %r5, %r2, 1;
    add.s32 %r5, %r5, 1;
    bra.uni $MEET;
    $SMALL:
    add.s32 %r5, %r2, 3;
    add.s32 %r5, %r5, 1;
    $MEET:
    add.s32 %r6, %r5, 1;)";
  expect(issued("setp.lt.s32 %p1, %r2, 8;" + sides) == 1 + 1 + 3 + 2 + 1 + 1, "two sides");
  expect(issued("setp.lt.s32 %p1, %r2, 32;" + sides) == 1 + 1 + 2 + 1 + 1, "one side");
  expect(issued("setp.lt.s32 %p1, %r2, 0;" + sides) == 1 + 1 + 3 + 1 + 1, "the other side");
  // as many turns as the lane with most takes
  expect(
      issued(
          "mov.u32 %r5, 0;\n$LOOP:\nadd.s32 %r5, %r5, 1;\nsetp.le.s32 %p1, %r5, %r2;\n"
          "@%p1 bra $LOOP;\nadd.s32 %r6, %r5, 1;") == 1 + 32 * 3 + 1 + 1,
      "a loop of as many turns as the lane's number");
  // a branch in a loop: both sides in each turn
  expect(
      issued(
          "and.b32 %r7, %r2, 1;\nsetp.eq.s32 %p2, %r7, 0;\nmov.u32 %r5, 0;\n$LOOP:\n"
          "@%p2 bra $EVEN;\nadd.s32 %r6, %r2, 1;\n$EVEN:\nadd.s32 %r5, %r5, 1;\n"
          "setp.lt.s32 %p1, %r5, 4;\n@%p1 bra $LOOP;") == 3 + 4 * 5 + 1,
      "a branch in a loop");
  // lanes that return are not waited for
  expect(
      issued("setp.lt.s32 %p1, %r2, 8;\n@%p1 ret;\nadd.s32 %r5, %r2, 1;") == 4,
      "some lanes return");
  // what a guard leaves out is issued
  expect(issued("setp.lt.s32 %p1, %r2, 0;\n@%p1 add.s32 %r5, %r2, 1;") == 3, "a guard");
}

void test_wavefronts() {
  const auto wavefronts = [](const std::string& address, const std::string& load) {
    std::vector<uint32_t> out(32);
    const Outcome outcome =
        run("mov.u32 %r9, memory;\nmov.u32 %r10, dynamic;\n" + address + load, out.data(), nullptr,
            1, 32, 1, 8192);
    expect(outcome.fault.empty(), outcome.fault);
    return outcome.counts.wavefronts;
  };
  const auto stride = [](int bytes) {
    return "mad.lo.s32 %r11, %r2, " + std::to_string(bytes) + ", %r10;\n";
  };
  const std::string word = "ld.shared.u32 %r5, [%r11];\n";
  expect(wavefronts(stride(4), word) == 1, "neighbouring words");
  expect(wavefronts(stride(0), word) == 1, "one word");
  expect(wavefronts(stride(8), word) == 2, "every other word");
  expect(wavefronts(stride(128), word) == 32, "one bank");
  expect(wavefronts(stride(132), word) == 1, "an odd stride");
  expect(wavefronts(stride(2), "ld.shared.u16 %rs5, [%r11];\n") == 1, "halves of words");
  expect(
      wavefronts(stride(16), "ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r11];\n") == 4, "16 bytes");
  expect(wavefronts(stride(8), "ld.shared.u64 %rd5, [%r11];\n") == 2, "8 bytes");
}

// What a copy reads is as it was when it was issued or as it is when it is waited for.
void test_copies() {
  bool early = false, late = false;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::vector<uint32_t> data(4, 1);
    std::vector<uint32_t> out(1);
    const Outcome outcome =
        run("setp.ne.s32 %p1, %r2, 0;\n@%p1 bra $END;\nmov.u32 %r5, memory;\n"
            "cp.async.cg.shared.global [%r5], [%rd1], 16;\ncp.async.commit_group;\n"
            "st.global.u32 [%rd1+4], 2;\ncp.async.wait_group 0;\nld.shared.u32 %r6, [memory+4];\n"
            "st.global.u32 [%rd0], %r6;\n$END:\n",
            out.data(), data.data(), 1, 32, seed);
    expect(outcome.fault.empty(), outcome.fault);
    early |= out[0] == 1;
    late |= out[0] == 2;
  }
  expect(early && late, "a copy lands early and late");
}

void test_shuffles() {
  const auto shuffled = [](const std::string& mode, const std::string& operands, auto expected) {
    std::vector<uint32_t> out(64);
    const Outcome outcome =
        run("mul.wide.u32 %rd2, %r0, 4;\nadd.s64 %rd4, %rd0, %rd2;\nadd.s32 %r5, %r2, 100;\n"
            "shfl.sync." +
                mode + ".b32 %r6|%p1, %r5, " + operands +
                ", -1;\nselp.u32 %r7, 1, 0, %p1;\n"
                "st.global.u32 [%rd4], %r6;\nst.global.u32 [%rd4+128], %r7;\n",
            out.data(), nullptr);
    expect(outcome.fault.empty(), outcome.fault);
    for (int lane = 0; lane < 32; ++lane) {
      const int from = expected(lane);
      expect(out[lane] == 100u + (from < 0 ? lane : from), "shuffle " + mode);
      expect(out[32 + lane] == uint32_t{from >= 0}, "predicate of shuffle " + mode);
    }
  };
  shuffled("bfly", "4, 31", [](int lane) { return lane ^ 4; });
  shuffled("down", "5, 31", [](int lane) { return lane + 5 < 32 ? lane + 5 : -1; });
  shuffled("up", "5, 0", [](int lane) { return lane - 5; });
  shuffled("idx", "9, 31", [](int) { return 9; });
  // segments of 8 lanes
  shuffled("idx", "3, 6175", [](int lane) { return lane / 8 * 8 + 3; });
  shuffled("down", "5, 6175", [](int lane) { return lane % 8 + 5 < 8 ? lane + 5 : -1; });
}

// ---- faults ----

void test_faults() {
  const auto fails = [](const std::string& body, const std::string& report, uint32_t threads = 64,
                        uint32_t shared_bytes = 0) {
    std::vector<uint32_t> out(64), in(64, 3);
    const Outcome outcome = run(body, out.data(), in.data(), 1, threads, 1, shared_bytes);
    expect(
        outcome.fault.find(report) != std::string::npos,
        "a fault, " + report + ", but: " + (outcome.fault.empty() ? "none" : outcome.fault));
  };
  const auto passes = [](const std::string& body) {
    std::vector<uint32_t> out(64), in(64, 3);
    const Outcome outcome = run(body, out.data(), in.data(), 1, 64);
    expect(outcome.fault.empty(), "no fault, but: " + outcome.fault);
  };
  const std::string shared = "mov.u32 %r9, memory;\nadd.s32 %r10, %r9, %r1;\n";

  // memory
  fails("st.global.u32 [%rd0+2], 1;", "4 bytes is misaligned");
  fails("st.global.v4.u32 [%rd0+8], {%r1, %r1, %r1, %r1};", "16 bytes is misaligned");
  fails("mov.u64 %rd2, 16;\nld.global.u32 %r5, [%rd2];", "outside device memory");
  fails("ld.global.u32 %r5, [%rd1+256];", "outside device memory");
  fails("ld.global.u32 %r5, [%rd1+-4];", "outside device memory");
  fails("ld.param.u64 %rd2, [test_param_1+8];", "outside the parameters");
  fails("st.shared.u32 [memory+2], 1;", "4 bytes is misaligned");
  fails("ld.shared.u32 %r5, [memory+1024];", "outside shared memory");
  fails("mov.u32 %r5, 0;\nld.shared.u32 %r5, [%r5];", "outside shared memory");
  fails("ld.shared.u32 %r5, [dynamic+16];", "outside shared memory", 64, 16);
  fails("", "too much shared memory", 64, 48 * 1024);
  fails("", "a block of 288 threads", 288);
  fails("", "a block of broken warps", 40);

  // asynchronous copies
  const std::string copy =
      shared + "cvt.u64.u32 %rd5, %r2;\nmov.u32 %r11, %tid.x;\nsetp.ne.s32 %p1, %r11, 0;\n";
  const std::string issue =
      "@!%p1 cp.async.cg.shared.global [memory], [%rd1], 16;\ncp.async.commit_group;\n";
  fails(copy + issue, "ends before its copies have landed");
  fails(copy + issue + "ld.shared.u32 %r5, [memory];\ncp.async.wait_group 0;", "on its way", 32);
  fails(copy + issue + "st.shared.u32 [memory+8], 1;\ncp.async.wait_group 0;", "on its way", 32);
  fails(copy + issue + "cp.async.wait_group 1;\nld.shared.u32 %r5, [memory];", "on its way", 32);
  fails(copy + issue + "cp.async.wait_group 0;\nld.shared.u32 %r5, [memory];", "a race");
  passes(copy + issue + "cp.async.wait_group 0;\nbar.sync 0;\nld.shared.u32 %r5, [memory];");
  passes(
      copy + issue +
      "cp.async.commit_group;\ncp.async.wait_group 1;\nbar.sync 0;\nld.shared.u32 %r5, [memory];");
  fails("cp.async.cg.shared.global [memory+8], [%rd1], 16;", "misaligned");
  fails("cp.async.cg.shared.global [memory], [%rd1+8], 16;", "misaligned");

  // races: nothing but barriers orders
  const std::string other =
      "xor.b32 %r11, %r1, 128;\nadd.s32 %r12, %r9, %r11;\n";  // of the other warp
  fails(shared + other + "st.shared.u32 [%r10], %r1;\nld.shared.u32 %r5, [%r12];", "a race");
  fails(
      shared + other + "bar.sync 0;\nst.shared.u32 [%r10], %r1;\nst.shared.u32 [%r12], %r1;",
      "a race");
  fails(
      shared + other +
          "st.shared.u32 [%r10], %r1;\nbar.sync 0;\nld.shared.u32 %r5, [%r12];\nst.shared.u32 "
          "[%r10], %r1;",
      "a race");
  passes(
      shared + other +
      "st.shared.u32 [%r10], %r1;\nbar.sync 0;\nld.shared.u32 %r5, [%r12];\nbar.sync "
      "0;\nst.shared.u32 [%r10], %r1;");
  const std::string neighbour =
      "xor.b32 %r11, %r1, 4;\nadd.s32 %r12, %r9, %r11;\n";  // of the same warp
  fails(shared + neighbour + "st.shared.u32 [%r10], %r1;\nld.shared.u32 %r5, [%r12];", "a race");
  passes(
      shared + neighbour +
      "st.shared.u32 [%r10], %r1;\nbar.warp.sync -1;\nld.shared.u32 %r5, [%r12];");
  fails(
      shared + neighbour +
          "st.shared.u32 [%r10], %r1;\nbar.warp.sync -1;\nld.shared.u32 %r5, [%r12];\n"
          "st.shared.u32 [%r10], %r1;",
      "a race");
  fails("st.shared.u32 [memory], 1;", "a race");  // all lanes to one place

  // barriers, shuffles
  const std::string half = "setp.lt.s32 %p1, %r2, 16;\n";
  fails(half + "@%p1 bra $END;\nbar.sync 0;\n$END:\n", "a barrier with inactive lanes", 32);
  fails(
      "setp.lt.s32 %p1, %r2, 32;\n@%p1 bra $END;\nbar.sync 0;\n$END:\n",
      "which have ended never reach");
  fails("bar.sync 1;", "another barrier than 0");
  fails(
      half + "@%p1 bra $END;\nshfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;\n$END:\n",
      "a shuffle with inactive lanes");
  fails("shfl.sync.bfly.b32 %r5, %r1, 1, 31, 1;", "its mask leaves out");
  fails(
      half + "@%p1 bra $END;\nshfl.sync.bfly.b32 %r5, %r1, 16, 31, -65536;\n$END:\n",
      "a shuffle from an inactive lane", 32);
  fails(half + "vote.sync.any.pred %p2, %p1, 3;", "its mask leaves out");
  fails(half + "@%p1 bra.uni $END;\n$END:\n", "a uniform branch diverges", 32);

  // values
  fails("div.s32 %r5, %r1, 0;", "divided by zero");
  fails("mov.u64 %rd2, 0;\nrem.u64 %rd3, %rd1, %rd2;", "divided by zero");
  fails("st.global.u32 [%rd0], %r20;", "an undefined register is used");
  fails("add.s32 %r5, %r20, 1;\nst.global.u32 [%rd0], %r5;", "an undefined register is used");
  fails("setp.lt.s32 %p1, %r20, 1;\n@%p1 bra $END;\n$END:\n", "an undefined predicate decides");
  fails(
      "ld.shared.u32 %r5, [memory];\nst.global.u32 [%rd0], %r5;", "an undefined register is used");
  passes("setp.ge.s32 %p1, %r2, 0;\nselp.u32 %r5, %r1, %r20, %p1;\nst.global.u32 [%rd0], %r5;");
  fails("$LOOP:\nbra.uni $LOOP;", "does not come to an end", 32);

  // text
  fails("frobnicate.u32 %r1, %r2;", "unknown instruction frobnicate.u32");
  fails("add.s32 %r1, %r2;", "too few operands");
  fails("add.s32 %r1, %r2, %r3, %r4;", "too many operands");
  fails("add.s32 %r1, %r2, %rd3;", "an operand of another width");
  fails("add.s32 %r1, %r2, %nothing;", "unknown operand %nothing");
  fails("bra $NOWHERE;", "unknown label $NOWHERE");
  fails(".local .b8 depot[16];", "unknown directive");
}

// A fault says where it is.
void test_report() {
  std::vector<uint32_t> out(64);
  const Outcome outcome =
      run("setp.eq.s32 %p1, %r0, 69;\n@%p1 div.s32 %r5, %r1, 0;", out.data(), nullptr, 2, 64);
  for (const char* part :
       {"an integer is divided by zero", "test.ptx:27: @%p1 div.s32 %r5, %r1, 0;", "in test",
        "block (1, 0, 0)", "thread (5, 0, 0)"})
    expect(outcome.fault.find(part) != std::string::npos, "a report: " + outcome.fault);
}

void test_costs() {
  for (const std::string& name : opcode_names()) expect(cost_of(name).slots >= 0, name);
}

// Of a kernel in which each thread reads its neighbour's value through shared memory, mutants die; of a
// barrier behind which nothing is accessed there is none.
void test_mutants() {
  const Kernel kernel = Module(
                            "test.ptx", source(
                                            "mov.u32 %r9, memory;\nadd.s32 %r10, %r9, %r1;\n"
                                            "st.shared.u32 [%r10], %r1;\nbar.sync 0;\n"
                                            "ld.shared.u32 %r5, [memory];\nbar.sync 0;\n"))
                            .kernel("test");
  std::string found;
  for (const Mutant& mutant : mutants_of(kernel)) found += mutant.description + "\n";
  const std::string expected = R"(29: bar.sync 0; is taken out
29: bar.sync 0; comes before st.shared.u32 [%r10], %r1;
29: bar.sync 0; comes behind ld.shared.u32 %r5, [memory];
)";
  expect(found == expected, "mutants:\n" + found);
}

}  // namespace

int main() {
  test_integers<int16_t>("s16");
  test_integers<uint16_t>("u16");
  test_integers<int32_t>("s32");
  test_integers<uint32_t>("u32");
  test_integers<int64_t>("s64");
  test_integers<uint64_t>("u64");
  test_bits<uint16_t>();
  test_bits<uint32_t>();
  test_bits<uint64_t>();
  test_words();
  test_floats<float>("f32");
  test_floats<double>("f64");
  test_conversions();
  test_approximations();
  test_parts();
  test_divisions_by_constants();
  test_counts();
  test_wavefronts();
  test_copies();
  test_shuffles();
  test_faults();
  test_report();
  test_costs();
  test_mutants();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
