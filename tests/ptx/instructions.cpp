// The instructions that the machine knows, each by its full name.
#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "arithmetic.h"
#include "machine.h"

namespace ptx {

namespace {

template <class Function>
inline __attribute__((always_inline)) void for_lanes(uint32_t lanes, const Function& f) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kWarp; ++lane) f(lane);
  } else {
    for (; lanes; lanes &= lanes - 1) f(std::countr_zero(lanes));
  }
}

// ---- one result of up to three operands ----

template <class D, class A, auto f>
void unary(Warp& warp, const Instruction& i, uint32_t lanes) {
  D* d = warp.row<D>(i.operands[0]);
  const A* a = warp.row<A>(i.operands[1]);
  for_lanes(lanes, [&](int lane) { d[lane] = static_cast<D>(f(a[lane])); });
}

template <class D, class A, class B, auto f>
void binary(Warp& warp, const Instruction& i, uint32_t lanes) {
  D* d = warp.row<D>(i.operands[0]);
  const A* a = warp.row<A>(i.operands[1]);
  const B* b = warp.row<B>(i.operands[2]);
  for_lanes(lanes, [&](int lane) { d[lane] = static_cast<D>(f(a[lane], b[lane])); });
}

template <class D, class A, class B, class C, auto f>
void ternary(Warp& warp, const Instruction& i, uint32_t lanes) {
  D* d = warp.row<D>(i.operands[0]);
  const A* a = warp.row<A>(i.operands[1]);
  const B* b = warp.row<B>(i.operands[2]);
  const C* c = warp.row<C>(i.operands[3]);
  for_lanes(lanes, [&](int lane) { d[lane] = static_cast<D>(f(a[lane], b[lane], c[lane])); });
}

template <class T, auto f>
void divide(Warp& warp, const Instruction& i, uint32_t lanes) {
  const T* divisor = warp.row<T>(i.operands[2]);
  for_lanes(lanes, [&](int lane) {
    if (divisor[lane] == 0) warp.fail(lane, "an integer is divided by zero");
  });
  binary<T, T, T, f>(warp, i, lanes);
}

// d, a, b, c, table
void look_up_bits(Warp& warp, const Instruction& i, uint32_t lanes) {
  const auto at = [&](int operand) { return warp.row<uint32_t>(i.operands[operand]); };
  for_lanes(lanes, [&](int lane) {
    at(0)[lane] = look_up(at(1)[lane], at(2)[lane], at(3)[lane], at(4)[lane]);
  });
}

template <class T>
void insert_bits(Warp& warp, const Instruction& i, uint32_t lanes) {
  const auto at = [&](int operand) { return warp.row<T>(i.operands[operand]); };
  const uint32_t* first = warp.row<uint32_t>(i.operands[3]);
  const uint32_t* length = warp.row<uint32_t>(i.operands[4]);
  for_lanes(lanes, [&](int lane) {
    at(0)[lane] = insert(at(1)[lane], at(2)[lane], first[lane], length[lane]);
  });
}

// ---- predicates ----

template <class T, auto f>
void compare(Warp& warp, const Instruction& i, uint32_t lanes) {
  const T* a = warp.row<T>(i.operands[1]);
  const T* b = warp.row<T>(i.operands[2]);
  uint32_t found = 0;
  for_lanes(lanes, [&](int lane) { found |= static_cast<uint32_t>(f(a[lane], b[lane])) << lane; });
  uint32_t& d = warp.predicate(i.operands[0]);
  d = (d & ~lanes) | found;
}

template <auto f>
void logic(Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint32_t a = warp.predicate(i.operands[1]);
  const uint32_t b = i.count > 2 ? warp.predicate(i.operands[2]) : 0;
  uint32_t& d = warp.predicate(i.operands[0]);
  d = (d & ~lanes) | (f(a, b) & lanes);
}

template <class T>
void select(Warp& warp, const Instruction& i, uint32_t lanes) {
  T* d = warp.row<T>(i.operands[0]);
  const T* a = warp.row<T>(i.operands[1]);
  const T* b = warp.row<T>(i.operands[2]);
  const uint32_t choice = warp.predicate(i.operands[3]);
  for_lanes(lanes, [&](int lane) { d[lane] = choice >> lane & 1 ? a[lane] : b[lane]; });
}

// ---- registers of any width ----

// The lowest bytes of a register
template <class T>
T get(Warp& warp, const Operand& operand, int lane) {
  T value;
  __builtin_memcpy(&value, warp.row<uint8_t>(operand) + lane * operand.base.width, sizeof(T));
  return value;
}

// A register that is wider than an integer holds it extended.
template <class T>
void put(Warp& warp, const Operand& operand, int lane, T value) {
  uint8_t* target = warp.row<uint8_t>(operand) + lane * operand.base.width;
  if constexpr (std::is_integral_v<T>) {
    const int64_t wide = static_cast<int64_t>(value);
    __builtin_memcpy(target, &wide, operand.base.width);
  } else {
    __builtin_memcpy(target, &value, sizeof(T));
  }
}

template <class D, class S, auto f>
void convert(Warp& warp, const Instruction& i, uint32_t lanes) {
  for_lanes(lanes, [&](int lane) {
    put<D>(warp, i.operands[0], lane, f(get<S>(warp, i.operands[1], lane)));
  });
}

// One register between equal parts of it, the lowest first: d, a, b... and a, b..., d
template <class T, bool kPack>
void repack(Warp& warp, const Instruction& i, uint32_t lanes) {
  const Operand& whole = i.operands[kPack ? 0 : i.count - 1];
  const Operand* parts = i.operands.data() + kPack;
  const size_t count = i.count - 1, bytes = sizeof(T) / count;
  for (size_t part = 0; part < count; ++part) {
    if (parts[part].base.width != bytes)
      warp.fail(std::countr_zero(lanes), "parts of another width");
    for_lanes(lanes, [&](int lane) {
      uint8_t* in_whole = warp.row<uint8_t>(whole) + lane * sizeof(T) + part * bytes;
      uint8_t* alone = warp.row<uint8_t>(parts[part]) + lane * bytes;
      __builtin_memcpy(kPack ? in_whole : alone, kPack ? alone : in_whole, bytes);
    });
  }
}

// ---- memory ----

enum class Space { kGlobal, kShared, kGeneric };

template <Space space>
bool in_shared(uint64_t address) {
  return space == Space::kShared ||
         (space == Space::kGeneric && address >> 32 == kSharedWindow >> 32);
}

template <class T>
void load_parameter(Warp& warp, const Instruction& i, uint32_t lanes) {
  const Operand& at = i.operands[i.written];
  for_lanes(lanes, [&](int lane) {
    const uint8_t* from = warp.parameter(warp.address(at, lane), sizeof(T) * i.written, lane);
    for (int n = 0; n < i.written; ++n) {
      T value;
      __builtin_memcpy(&value, from + n * sizeof(T), sizeof(T));
      put(warp, i.operands[n], lane, value);
    }
  });
}

template <Space space, class T>
void load(Warp& warp, const Instruction& i, uint32_t lanes) {
  const Operand& at = i.operands[i.written];
  const uint32_t bytes = sizeof(T) * i.written;
  std::array<uint64_t, kWarp> addresses;
  uint32_t shared = 0, undefined = 0;
  for_lanes(lanes, [&](int lane) {
    const uint64_t address = addresses[lane] = warp.address(at, lane);
    const uint8_t* from;
    if (in_shared<space>(address)) {
      bool defined;
      from = warp.read_shared(static_cast<uint32_t>(address), bytes, lane, defined);
      shared |= 1u << lane;
      if (!defined) undefined |= 1u << lane;
    } else {
      from = warp.read_global(address, bytes, lane);
    }
    for (int n = 0; n < i.written; ++n) {
      T value;
      __builtin_memcpy(&value, from + n * sizeof(T), sizeof(T));
      put(warp, i.operands[n], lane, value);
    }
  });
  if (shared) warp.count_wavefronts(addresses, shared, bytes);
  if (undefined)
    for (int n = 0; n < i.written; ++n) warp.set_known(i.operands[n], undefined, 0);
}

template <Space space, class T>
void store(Warp& warp, const Instruction& i, uint32_t lanes) {
  const Operand& at = i.operands[0];
  const uint32_t bytes = sizeof(T) * (i.count - 1);
  std::array<uint64_t, kWarp> addresses;
  uint32_t shared = 0;
  for_lanes(lanes, [&](int lane) {
    const uint64_t address = addresses[lane] = warp.address(at, lane);
    uint8_t* to;
    if (in_shared<space>(address)) {
      to = warp.write_shared(static_cast<uint32_t>(address), bytes, lane);
      shared |= 1u << lane;
    } else {
      to = warp.write_global(address, bytes, lane);
    }
    for (int n = 1; n < i.count; ++n) {
      const T value = get<T>(warp, i.operands[n], lane);
      __builtin_memcpy(to + (n - 1) * sizeof(T), &value, sizeof(T));
    }
  });
  if (shared) warp.count_wavefronts(addresses, shared, bytes);
}

// to, from, bytes[, bytes that are read: the others are 0]
void copy_async(Warp& warp, const Instruction& i, uint32_t lanes) {
  const auto bytes = static_cast<uint32_t>(i.number);
  std::array<uint64_t, kWarp> addresses;
  for_lanes(lanes, [&](int lane) {
    addresses[lane] = static_cast<uint32_t>(warp.address(i.operands[0], lane));
    const uint32_t read =
        i.count > 2 ? std::min(bytes, warp.row<uint32_t>(i.operands[2])[lane]) : bytes;
    warp.copy_async(addresses[lane], warp.address(i.operands[1], lane), bytes, read, lane);
  });
  warp.count_wavefronts(addresses, lanes, bytes);
}

void commit(Warp& warp, const Instruction&, uint32_t lanes) {
  warp.commit_copies(lanes);
}

void wait(Warp& warp, const Instruction& i, uint32_t lanes) {
  warp.wait_for_copies(lanes, static_cast<int>(i.number));
}

void wait_all(Warp& warp, const Instruction&, uint32_t lanes) {
  warp.commit_copies(lanes);
  warp.wait_for_copies(lanes, 0);
}

// ---- meetings ----

void barrier(Warp& warp, const Instruction& i, uint32_t lanes) {
  if (i.number != 0) warp.fail(std::countr_zero(lanes), "another barrier than 0");
  warp.arrive("a barrier");
}

void barrier_and(Warp& warp, const Instruction& i, uint32_t lanes) {
  if (i.number != 0) warp.fail(std::countr_zero(lanes), "another barrier than 0");
  warp.arrive_and_ask(i.operands[0], (warp.predicate(i.operands[1]) & lanes) == kAllLanes);
}

uint32_t mask_of(Warp& warp, const Operand& operand, uint32_t lanes, const char* what) {
  const uint32_t* masks = warp.row<uint32_t>(operand);
  const uint32_t mask = masks[std::countr_zero(lanes)];
  for_lanes(lanes, [&](int lane) {
    if (masks[lane] != mask) warp.fail(lane, std::string(what) + " with different masks");
  });
  warp.require(mask, what);
  return mask;
}

void synchronize_warp(Warp& warp, const Instruction& i, uint32_t lanes) {
  mask_of(warp, i.operands[0], lanes, "a barrier of a warp");
  warp.synchronize();
}

enum class Shuffle { kUp, kDown, kButterfly, kIndex };

// d[|p], a, b, c, mask: the value of lane j, or one's own where j is beyond the segment
template <Shuffle mode>
void shuffle(Warp& warp, const Instruction& i, uint32_t lanes) {
  const Operand* in = i.operands.data() + i.written;
  mask_of(warp, in[3], lanes, "a shuffle");
  const uint32_t *value = warp.row<uint32_t>(in[0]), *by = warp.row<uint32_t>(in[1]),
                 *clamp = warp.row<uint32_t>(in[2]);
  std::array<uint32_t, kWarp> result{};
  uint32_t inside = 0, known = 0;
  for_lanes(lanes, [&](int lane) {
    const int segment = clamp[lane] >> 8 & 31, limit = clamp[lane] & 31, b = by[lane] & 31;
    const int last = (lane & segment) | (limit & ~segment), first = lane & segment;
    int from = lane;
    bool valid = true;
    switch (mode) {
      case Shuffle::kUp:
        from = lane - b, valid = from >= last;
        break;
      case Shuffle::kDown:
        from = lane + b, valid = from <= last;
        break;
      case Shuffle::kButterfly:
        from = lane ^ b, valid = from <= last;
        break;
      case Shuffle::kIndex:
        from = first | (b & ~segment), valid = from <= last;
        break;
    }
    if (!valid) from = lane;
    if (!(lanes >> from & 1)) warp.fail(lane, "a shuffle from an inactive lane");
    result[lane] = value[from];
    inside |= uint32_t{valid} << lane;
    known |= (warp.known(in[0]) >> from & 1) << lane;
  });
  uint32_t* d = warp.row<uint32_t>(i.operands[0]);
  for_lanes(lanes, [&](int lane) { d[lane] = result[lane]; });
  warp.set_known(i.operands[0], lanes, known);
  if (i.written > 1) {
    uint32_t& p = warp.predicate(i.operands[1]);
    p = (p & ~lanes) | inside;
    warp.set_known(i.operands[1], lanes, lanes);
  }
}

enum class Vote { kBallot, kAny, kAll };

template <Vote mode>
void vote(Warp& warp, const Instruction& i, uint32_t lanes) {
  mask_of(warp, i.operands[2], lanes, "a vote");
  const uint32_t ballot = warp.predicate(i.operands[1]) & lanes;
  if (mode == Vote::kBallot) {
    uint32_t* d = warp.row<uint32_t>(i.operands[0]);
    for_lanes(lanes, [&](int lane) { d[lane] = ballot; });
  } else {
    uint32_t& d = warp.predicate(i.operands[0]);
    const bool holds = mode == Vote::kAny ? ballot != 0 : ballot == lanes;
    d = (d & ~lanes) | (holds ? lanes : 0);
  }
}

// What a launch that waits for another one orders does not matter to one that runs after it.
void nothing(Warp&, const Instruction&, uint32_t) {}

// ---- the table ----

class Table {
 public:
  Table() {
    integers<uint16_t>("u16");
    integers<int16_t>("s16");
    integers<uint32_t>("u32");
    integers<int32_t>("s32");
    integers<uint64_t>("u64");
    integers<int64_t>("s64");
    bits<uint16_t>("b16", "u16", "s16");
    bits<uint32_t>("b32", "u32", "s32");
    bits<uint64_t>("b64", "u64", "s64");
    words();
    floats<float>("f32");
    floats<double>("f64");
    single_precision();
    predicates();
    conversions();
    memory();
    meetings();
  }

  const Opcode& named(const std::string& name) const {
    const auto found = opcodes_.find(name);
    if (found == opcodes_.end()) throw Fault("unknown instruction " + name);
    return found->second;
  }

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& [name, opcode] : opcodes_) result.push_back(name);
    return result;
  }

 private:
  void add(
      const std::string& name, const std::string& operands, Action action,
      Opcode::Kind kind = Opcode::kPlain) {
    opcodes_[name] = {name, action, operands, kind};
  }

  // "=88": a result of 8 bytes and an operand of 8
  template <class... Widths>
  static std::string widths(Widths... bytes) {
    std::string letters = "=";
    ((letters += static_cast<char>('0' + bytes)), ...);
    return letters;
  }

  template <class T, auto f>
  void compares(const std::string& name) {
    add("setp." + name, "=p" + widths(sizeof(T), sizeof(T)).substr(1), compare<T, f>);
  }

  template <class T>
  void integers(const std::string& type) {
    constexpr int n = sizeof(T);
    using U = std::make_unsigned_t<T>;
    const std::string two = widths(n, n, n), three = widths(n, n, n, n);
    add("add." + type, two, binary<U, U, U, [](U a, U b) { return U(a + b); }>);
    add("sub." + type, two, binary<U, U, U, [](U a, U b) { return U(a - b); }>);
    add("mul.lo." + type, two, binary<U, U, U, [](U a, U b) { return U(uint64_t{a} * b); }>);
    add("mul.hi." + type, two, binary<T, T, T, [](T a, T b) { return multiply_high(a, b); }>);
    add("mad.lo." + type, three,
        ternary<U, U, U, U, [](U a, U b, U c) { return U(uint64_t{a} * b + c); }>);
    add("mad.hi." + type, three,
        ternary<U, T, T, U, [](T a, T b, U c) { return U(U(multiply_high(a, b)) + c); }>);
    add("div." + type, two, divide<T, [](T a, T b) { return quotient(a, b); }>);
    add("rem." + type, two, divide<T, [](T a, T b) { return remainder(a, b); }>);
    add("min." + type, two, binary<T, T, T, [](T a, T b) { return a < b ? a : b; }>);
    add("max." + type, two, binary<T, T, T, [](T a, T b) { return (a > b) ? a : b; }>);
    if constexpr (n < 8) {
      using Sign = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
      using Wide = std::conditional_t<n == 4, uint64_t, uint32_t>;
      add("mul.wide." + type, widths(2 * n, n, n),
          binary<Wide, T, T, [](T a, T b) { return Wide(Sign(a) * Sign(b)); }>);
      add("mad.wide." + type, widths(2 * n, n, n, 2 * n),
          ternary<Wide, T, T, Wide, [](T a, T b, Wide c) { return Wide(Sign(a) * Sign(b) + c); }>);
    }
    if constexpr (std::is_signed_v<T>) {
      add("neg." + type, widths(n, n), unary<U, U, [](U a) { return U(0 - a); }>);
      add("abs." + type, widths(n, n), unary<U, T, [](T a) { return U(a < 0 ? 0 - U(a) : U(a)); }>);
    }
    compares<T, [](T a, T b) { return a == b; }>("eq." + type);
    compares<T, [](T a, T b) { return a != b; }>("ne." + type);
    compares<T, [](T a, T b) { return a < b; }>("lt." + type);
    compares<T, [](T a, T b) { return a <= b; }>("le." + type);
    compares<T, [](T a, T b) { return (a > b); }>("gt." + type);
    compares<T, [](T a, T b) { return (a >= b); }>("ge." + type);
    if constexpr (n > 2) {
      add("bfe." + type, widths(n, n, 4, 4),
          ternary<T, T, uint32_t, uint32_t, [](T a, uint32_t b, uint32_t c) {
            return extract(a, b, c);
          }>);
    }
    add("mov." + type, widths(n, n), unary<U, U, [](U a) { return a; }>);
    add("selp." + type, two + "p", select<U>, Opcode::kSelect);
  }

  template <class U>
  void bits(
      const std::string& type, const std::string& unsigned_type, const std::string& signed_type) {
    constexpr int n = sizeof(U);
    using S = std::make_signed_t<U>;
    const std::string two = widths(n, n, n);
    add("and." + type, two, binary<U, U, U, [](U a, U b) { return U(a & b); }>);
    add("or." + type, two, binary<U, U, U, [](U a, U b) { return U(a | b); }>);
    add("xor." + type, two, binary<U, U, U, [](U a, U b) { return U(a ^ b); }>);
    add("not." + type, widths(n, n), unary<U, U, [](U a) { return U(~a); }>);
    const std::string shift = widths(n, n, 4);
    constexpr auto left = [](U a, uint32_t b) { return shift_left(a, b); };
    constexpr auto right = [](U a, uint32_t b) { return shift_right(a, b); };
    add("shl." + type, shift, binary<U, U, uint32_t, left>);
    add("shr." + type, shift, binary<U, U, uint32_t, right>);
    add("shr." + unsigned_type, shift, binary<U, U, uint32_t, right>);
    add("shr." + signed_type, shift,
        binary<S, S, uint32_t, [](S a, uint32_t b) { return shift_right(a, b); }>);
    add("mov." + type, widths(n, n), unary<U, U, [](U a) { return a; }>);
    add("selp." + type, two + "p", select<U>, Opcode::kSelect);
    compares<U, [](U a, U b) { return a == b; }>("eq." + type);
    compares<U, [](U a, U b) { return a != b; }>("ne." + type);
    if constexpr (n > 2) {
      add("mov." + type + " pack", widths(n) + "R", repack<U, true>);
      add("mov." + type + " unpack", "=R" + widths(n).substr(1), repack<U, false>);
      add("popc." + type, widths(4, n), unary<uint32_t, U, [](U a) { return std::popcount(a); }>);
      add("clz." + type, widths(4, n), unary<uint32_t, U, [](U a) { return std::countl_zero(a); }>);
      add("bfi." + type, widths(n, n, n, 4, 4), insert_bits<U>);
    }
  }

  void words() {
    using U = uint32_t;
    for (const char* type : {"lo", "ls", "hi", "hs"}) {
      unsigned_compares<uint32_t>(type, "u32");
      unsigned_compares<uint64_t>(type, "u64");
    }
    add("prmt.b32", "=4444", ternary<U, U, U, U, [](U a, U b, U c) { return permute(a, b, c); }>);
    add("lop3.b32", "=44444", look_up_bits);
    add("brev.b32", "=44", unary<U, U, [](U a) {
          U result = 0;
          for (int i = 0; i < 32; ++i) result |= (a >> i & 1) << (31 - i);
          return result;
        }>);
    add("shf.l.wrap.b32", "=4444",
        ternary<U, U, U, U, [](U a, U b, U c) { return funnel_left(a, b, c & 31); }>);
    add("shf.r.wrap.b32", "=4444",
        ternary<U, U, U, U, [](U a, U b, U c) { return funnel_right(a, b, c & 31); }>);
    add("shf.l.clamp.b32", "=4444",
        ternary<U, U, U, U, [](U a, U b, U c) { return funnel_left(a, b, c < 32 ? c : 32); }>);
    add("shf.r.clamp.b32", "=4444",
        ternary<U, U, U, U, [](U a, U b, U c) { return funnel_right(a, b, c < 32 ? c : 32); }>);
  }

  template <class U>
  void unsigned_compares(const std::string& name, const std::string& type) {
    if (name == "lo") compares<U, [](U a, U b) { return a < b; }>(name + "." + type);
    if (name == "ls") compares<U, [](U a, U b) { return a <= b; }>(name + "." + type);
    if (name == "hi") compares<U, [](U a, U b) { return (a > b); }>(name + "." + type);
    if (name == "hs") compares<U, [](U a, U b) { return (a >= b); }>(name + "." + type);
  }

  template <class F>
  void floats(const std::string& type) {
    constexpr int n = sizeof(F);
    using U = BitsOf<F>;
    const std::string one = widths(n, n), two = widths(n, n, n), three = widths(n, n, n, n);
    constexpr auto plus = [](F a, F b) { return canonical(a + b); };
    constexpr auto minus = [](F a, F b) { return canonical(a - b); };
    constexpr auto times = [](F a, F b) { return canonical(a * b); };
    constexpr auto over = [](F a, F b) { return canonical(a / b); };
    for (const std::string rounding : {"", "rn."}) {
      add("add." + rounding + type, two, binary<F, F, F, plus>);
      add("sub." + rounding + type, two, binary<F, F, F, minus>);
      add("mul." + rounding + type, two, binary<F, F, F, times>);
    }
    add("div.rn." + type, two, binary<F, F, F, over>);
    add("rcp.rn." + type, one, unary<F, F, [](F a) { return canonical(1 / a); }>);
    add("sqrt.rn." + type, one, unary<F, F, [](F a) { return canonical(std::sqrt(a)); }>);
    add("fma.rn." + type, three,
        ternary<F, F, F, F, [](F a, F b, F c) { return canonical(std::fma(a, b, c)); }>);
    add("min." + type, two, binary<F, F, F, [](F a, F b) { return minimum(a, b); }>);
    add("max." + type, two, binary<F, F, F, [](F a, F b) { return maximum(a, b); }>);
    constexpr U kSign = U(1) << (8 * n - 1);
    add("neg." + type, one, unary<U, U, [](U a) { return a ^ kSign; }>);
    add("abs." + type, one, unary<U, U, [](U a) { return a & ~kSign; }>);
    add("copysign." + type, two,
        binary<U, U, U, [](U a, U b) { return (b & ~kSign) | (a & kSign); }>);
    add("mov." + type, one, unary<U, U, [](U a) { return a; }>);
    add("selp." + type, two + "p", select<U>, Opcode::kSelect);
    compares<F, [](F a, F b) { return a == b; }>("eq." + type);
    compares<F, [](F a, F b) { return (a < b || a > b); }>("ne." + type);
    compares<F, [](F a, F b) { return a < b; }>("lt." + type);
    compares<F, [](F a, F b) { return a <= b; }>("le." + type);
    compares<F, [](F a, F b) { return (a > b); }>("gt." + type);
    compares<F, [](F a, F b) { return (a >= b); }>("ge." + type);
    compares<F, [](F a, F b) { return !(a < b || a > b); }>("equ." + type);
    compares<F, [](F a, F b) { return a != b; }>("neu." + type);
    compares<F, [](F a, F b) { return !(a >= b); }>("ltu." + type);
    compares<F, [](F a, F b) { return !(a > b); }>("leu." + type);
    compares<F, [](F a, F b) { return !(a <= b); }>("gtu." + type);
    compares<F, [](F a, F b) { return !(a < b); }>("geu." + type);
    compares<F, [](F a, F b) { return a == a && b == b; }>("num." + type);
    compares<F, [](F a, F b) { return a != a || b != b; }>("nan." + type);
  }

  void single_precision() {
    using F = float;
    constexpr auto plus = [](F a, F b) { return saturated(a + b); };
    constexpr auto times = [](F a, F b) { return saturated(a * b); };
    constexpr auto fused = [](F a, F b, F c) { return saturated(std::fma(a, b, c)); };
    for (const std::string rounding : {"", "rn."}) {
      add("add." + rounding + "sat.f32", "=444", binary<F, F, F, plus>);
      add("mul." + rounding + "sat.f32", "=444", binary<F, F, F, times>);
    }
    add("fma.rn.sat.f32", "=4444", ternary<F, F, F, F, fused>);
    add("min.NaN.f32", "=444", binary<F, F, F, [](F a, F b) { return minimum_nan(a, b); }>);
    add("max.NaN.f32", "=444", binary<F, F, F, [](F a, F b) { return maximum_nan(a, b); }>);
    add("rcp.approx.f32", "=44", unary<F, F, approximate_reciprocal>);
    add("rcp.approx.ftz.f32", "=44", unary<F, F, approximate_reciprocal_flushed>);
    add("div.approx.f32", "=444", binary<F, F, F, approximate_quotient>);
  }

  void predicates() {
    using U = uint32_t;
    add("and.pred", "=ppp", logic<[](U a, U b) { return a & b; }>);
    add("or.pred", "=ppp", logic<[](U a, U b) { return a | b; }>);
    add("xor.pred", "=ppp", logic<[](U a, U b) { return a ^ b; }>);
    add("not.pred", "=pp", logic<[](U a, U) { return ~a; }>);
    add("mov.pred", "=pp", logic<[](U a, U) { return a; }>);
  }

  template <class D, class S>
  void between_integers(const std::string& to, const std::string& from) {
    add("cvt." + to + "." + from, "=rr", convert<D, S, [](S a) { return static_cast<D>(a); }>);
  }

  template <class S>
  void from_integer(const std::string& from) {
    between_integers<uint8_t, S>("u8", from);
    between_integers<int8_t, S>("s8", from);
    between_integers<uint16_t, S>("u16", from);
    between_integers<int16_t, S>("s16", from);
    between_integers<uint32_t, S>("u32", from);
    between_integers<int32_t, S>("s32", from);
    between_integers<uint64_t, S>("u64", from);
    between_integers<int64_t, S>("s64", from);
    add("cvt.rn.f32." + from, "=rr", convert<float, S, [](S a) { return static_cast<float>(a); }>);
    add("cvt.rn.f64." + from, "=rr",
        convert<double, S, [](S a) { return static_cast<double>(a); }>);
    to_whole<S, float>(from, "f32");
    to_whole<S, double>(from, "f64");
  }

  template <class T, class F>
  void to_whole(const std::string& to, const std::string& from) {
    const std::string types = to + "." + from;
    add("cvt.rzi." + types, "=rr", convert<T, F, [](F a) { return to_integer<T>(std::trunc(a)); }>);
    add("cvt.rmi." + types, "=rr", convert<T, F, [](F a) { return to_integer<T>(std::floor(a)); }>);
    add("cvt.rpi." + types, "=rr", convert<T, F, [](F a) { return to_integer<T>(std::ceil(a)); }>);
    add("cvt.rni." + types, "=rr",
        convert<T, F, [](F a) { return to_integer<T>(std::nearbyint(a)); }>);
  }

  void conversions() {
    from_integer<uint8_t>("u8");
    from_integer<int8_t>("s8");
    from_integer<uint16_t>("u16");
    from_integer<int16_t>("s16");
    from_integer<uint32_t>("u32");
    from_integer<int32_t>("s32");
    from_integer<uint64_t>("u64");
    from_integer<int64_t>("s64");
    using F = float;
    add("cvt.rn.f32.f64", "=48", unary<F, double, [](double a) { return canonical(F(a)); }>);
    add("cvt.f64.f32", "=84", unary<double, F, [](F a) { return canonical(double{a}); }>);
    add("cvt.rzi.f32.f32", "=44", unary<F, F, [](F a) { return std::trunc(a); }>);
    add("cvt.rmi.f32.f32", "=44", unary<F, F, [](F a) { return std::floor(a); }>);
    add("cvt.rpi.f32.f32", "=44", unary<F, F, [](F a) { return std::ceil(a); }>);
    add("cvt.rni.f32.f32", "=44", unary<F, F, [](F a) { return std::nearbyint(a); }>);
    add("cvt.sat.f32.f32", "=44", unary<F, F, saturated<F>>);
    add("cvt.f32.f16", "=42", unary<F, Half, from_half>);
    add("cvt.rn.f16.f32", "=24", unary<Half, F, to_half>);
    add("cvt.f32.bf16", "=42", unary<F, BFloat16, from_bfloat16>);
    add("cvt.rn.bf16.f32", "=24", unary<BFloat16, F, to_bfloat16>);
    add("cvt.rn.f16x2.f32", "=444", binary<uint32_t, F, F, [](F high, F low) {
          return uint32_t{to_half(high).bits} << 16 | to_half(low).bits;
        }>);
    add("cvt.rn.bf16x2.f32", "=444", binary<uint32_t, F, F, [](F high, F low) {
          return uint32_t{to_bfloat16(high).bits} << 16 | to_bfloat16(low).bits;
        }>);
  }

  template <class T>
  void memory_of(const std::string& type) {
    add("ld.param." + type, "=Rm", load_parameter<T>, Opcode::kLoad);
    add("ld.global." + type, "=Rm", load<Space::kGlobal, T>, Opcode::kLoad);
    add("ld.shared." + type, "=Rm", load<Space::kShared, T>, Opcode::kLoad);
    add("ld." + type, "=Rm", load<Space::kGeneric, T>, Opcode::kLoad);
    add("st.global." + type, "mR", store<Space::kGlobal, T>, Opcode::kEffect);
    add("st.shared." + type, "mR", store<Space::kShared, T>, Opcode::kEffect);
    add("st." + type, "mR", store<Space::kGeneric, T>, Opcode::kEffect);
  }

  void memory() {
    memory_of<uint8_t>("u8");
    memory_of<uint8_t>("b8");
    memory_of<int8_t>("s8");
    memory_of<uint16_t>("u16");
    memory_of<uint16_t>("b16");
    memory_of<int16_t>("s16");
    memory_of<uint32_t>("u32");
    memory_of<uint32_t>("b32");
    memory_of<int32_t>("s32");
    memory_of<uint64_t>("u64");
    memory_of<uint64_t>("b64");
    memory_of<int64_t>("s64");
    memory_of<float>("f32");
    memory_of<double>("f64");
    using U = uint64_t;
    constexpr auto same = [](U a) { return a; };
    constexpr auto to_generic = [](U a) { return a | kSharedWindow; };
    constexpr auto to_shared = [](U a) { return a & 0xffffffffu; };
    add("cvta.to.global.u64", "=88", unary<U, U, same>);
    add("cvta.global.u64", "=88", unary<U, U, same>);
    add("cvta.to.shared.u64", "=88", unary<U, U, to_shared>);
    add("cvta.shared.u64", "=88", unary<U, U, to_generic>);
    for (const std::string cached : {"ca", "cg"}) {
      add("cp.async." + cached + ".shared.global", "mmn", copy_async, Opcode::kEffect);
      add("cp.async." + cached + ".shared.global with size", "mmn4", copy_async, Opcode::kEffect);
    }
    add("cp.async.commit_group", "", commit, Opcode::kEffect);
    add("cp.async.wait_group", "n", wait, Opcode::kEffect);
    add("cp.async.wait_all", "", wait_all, Opcode::kEffect);
  }

  void shuffles(const std::string& mode, Action action) {
    add("shfl.sync." + mode + ".b32", "=44444", action);
    add("shfl.sync." + mode + ".b32 with predicate", "=4=p4444", action);
  }

  void meetings() {
    add("bra", "l", nothing, Opcode::kBranch);
    add("bra.uni", "l", nothing, Opcode::kBranch);
    add("ret", "", nothing, Opcode::kReturn);
    add("exit", "", nothing, Opcode::kReturn);
    add("bar.sync", "n", barrier, Opcode::kEffect);
    add("barrier.sync", "n", barrier, Opcode::kEffect);
    add("barrier.sync.aligned", "n", barrier, Opcode::kEffect);
    add("bar.red.and.pred", "=pnp", barrier_and, Opcode::kEffect);
    add("bar.warp.sync", "4", synchronize_warp, Opcode::kEffect);
    shuffles("up", shuffle<Shuffle::kUp>);
    shuffles("down", shuffle<Shuffle::kDown>);
    shuffles("bfly", shuffle<Shuffle::kButterfly>);
    shuffles("idx", shuffle<Shuffle::kIndex>);
    add("vote.sync.ballot.b32", "=4p4", vote<Vote::kBallot>);
    add("vote.sync.any.pred", "=pp4", vote<Vote::kAny>);
    add("vote.sync.all.pred", "=pp4", vote<Vote::kAll>);
    add("griddepcontrol.wait", "", nothing);
    add("griddepcontrol.launch_dependents", "", nothing);
  }

  std::map<std::string, Opcode> opcodes_;
};

const Table& table() {
  static const Table all;
  return all;
}

}  // namespace

const Opcode& opcode_named(const std::string& name) {
  return table().named(name);
}

std::vector<std::string> opcode_names() {
  return table().names();
}

}  // namespace ptx
