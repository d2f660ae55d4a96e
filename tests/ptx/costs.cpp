// What an instruction of PTX costs as the instructions of a multiprocessor (SASS) that ptxas makes of it.
// calibrate.py holds the sums for whole kernels against what ptxas makes of them for sm_90.
#include "program.h"

namespace ptx {

namespace {

struct Rule {
  const char *start, *end;  // of the name
  Cost cost;  // slots; of which integer unit, special functions and conversions, doubles
};

// The first that fits counts. Fractions are what ptxas saves on average: moves that become names, operands
// that come from constant memory, pairs that become one instruction.
constexpr Rule kRules[] = {
    // addresses and parameters: operands in constant memory
    {"ld.param", "", {0.2, 0, 0, 0}},
    {"cvta", "", {0.2, 0, 0, 0}},
    // moves
    {"mov.", "pred", {0.5, 0.5, 0, 0}},
    {"mov.", "", {0.5, 0, 0, 0}},
    // branches, with the barrier at which a warp that diverges meets again
    {"bra.uni", "", {0.6, 0, 0, 0}},
    {"bra", "", {1.3, 0, 0, 0}},
    {"ret", "", {1, 0, 0, 0}},
    {"exit", "", {1, 0, 0, 0}},
    // doubles
    {"div.rn.f64", "", {18, 2, 1, 10}},
    {"rcp.rn.f64", "", {14, 2, 1, 8}},
    {"sqrt.rn.f64", "", {20, 2, 1, 12}},
    {"setp.", ".f64", {1, 0, 0, 1}},
    {"selp.", ".f64", {2, 2, 0, 0}},
    {"min.f64", "", {4, 3, 0, 1}},
    {"max.f64", "", {4, 3, 0, 1}},
    {"neg.f64", "", {1, 0, 0, 0}},
    {"abs.f64", "", {1, 0, 0, 0}},
    {"copysign.f64", "", {1, 1, 0, 0}},
    {"add.", "f64", {1, 0, 0, 1}},
    {"sub.", "f64", {1, 0, 0, 1}},
    {"mul.", "f64", {1, 0, 0, 1}},
    {"fma.", "f64", {1, 0, 0, 1}},
    // conversions: within integers most are names; to and from 64 bits the special unit converts
    {"cvt.u32.u64", "", {0, 0, 0, 0}},
    {"cvt.u64.u32", "", {0.3, 0, 0, 0}},
    {"cvt.s64.s32", "", {0.7, 0.7, 0, 0}},
    {"cvt.", "64", {1.5, 0, 1, 0}},
    {"cvt.f64", "", {1.5, 0, 1, 0}},
    {"cvt.rn.f64", "", {1.5, 0, 1, 0}},
    {"cvt.rn", "", {1, 0, 0.25, 0}},
    {"cvt.rz", "", {1, 0, 0.25, 0}},
    {"cvt.rm", "", {1, 0, 0.25, 0}},
    {"cvt.rp", "", {1, 0, 0.25, 0}},
    {"cvt.f32", "", {1, 0, 0, 0}},
    {"cvt.sat", "", {1, 0, 0, 0}},
    {"cvt.", "", {0.3, 0.3, 0, 0}},
    // division: a reciprocal and what corrects it; of 64 bits a call
    {"div.rn.f32", "", {12, 1, 1, 0}},
    {"div.approx.f32", "", {3, 0, 1, 0}},
    {"rcp.rn.f32", "", {8, 1, 1, 0}},
    {"sqrt.rn.f32", "", {10, 1, 1, 0}},
    {"rcp.approx.ftz.f32", "", {1, 0, 1, 0}},
    {"rcp.approx.f32", "", {3, 1, 1, 0}},
    {"div.", "64", {70, 20, 2, 0}},
    {"rem.", "64", {70, 20, 2, 0}},
    {"div.", "", {22, 8, 2, 0}},
    {"rem.", "", {22, 8, 2, 0}},
    // memory, with what it takes to form an address
    {"ld.", "", {1.2, 0, 0, 0}},
    {"st.", "", {1.2, 0, 0, 0}},
    {"cp.async.", "group", {1, 0, 0, 0}},
    {"cp.async.", "", {1.2, 0, 0, 0}},
    // 64-bit integers: pairs
    {"mul.wide", "", {1, 0, 0, 0}},
    {"mad.wide", "", {1, 0, 0, 0}},
    {"mul.", "64", {2.8, 0, 0, 0}},
    {"mad.", "64", {3.5, 0, 0, 0}},
    {"setp.", "64", {2.6, 2.6, 0, 0}},
    {"selp.", "64", {1.9, 1.9, 0, 0}},
    {"and.", "64", {1.3, 1.3, 0, 0}},
    {"or.", "64", {1.3, 1.3, 0, 0}},
    {"xor.", "64", {1.3, 1.3, 0, 0}},
    {"not.", "64", {1.3, 1.3, 0, 0}},
    {"shl.", "64", {1.6, 1, 0, 0}},
    {"shr.", "64", {1.6, 1.6, 0, 0}},
    {"min.", "64", {2.5, 2.5, 0, 0}},
    {"max.", "64", {2.5, 2.5, 0, 0}},
    {"add.", "64", {2, 1, 0, 0}},
    {"sub.", "64", {2, 1, 0, 0}},
    {"neg.", "64", {2, 1, 0, 0}},
    {"abs.", "64", {3, 2, 0, 0}},
    {"bfe.", "64", {4, 4, 0, 0}},
    {"bfi.", "64", {6, 6, 0, 0}},
    // predicates: most become part of another instruction
    {"and.pred", "", {0.6, 0.6, 0, 0}},
    {"or.pred", "", {0.6, 0.6, 0, 0}},
    {"xor.pred", "", {0.6, 0.6, 0, 0}},
    {"not.pred", "", {0.2, 0.2, 0, 0}},
    // float arithmetic: any unit
    {"add.", "f32", {1, 0, 0, 0}},
    {"sub.", "f32", {1, 0, 0, 0}},
    {"mul.", "f32", {1, 0, 0, 0}},
    {"fma.", "f32", {1, 0, 0, 0}},
    {"neg.f32", "", {0.2, 0, 0, 0}},
    {"abs.f32", "", {0.2, 0, 0, 0}},
    // integer products go to a unit of floats
    {"mul.hi", "", {1.5, 0, 0, 0}},
    {"mul.", "", {0.8, 0, 0, 0}},
    {"mad.", "", {1, 0, 0, 0}},
    // sums and shifts to either
    {"add.", "", {1, 0.5, 0, 0}},
    {"sub.", "", {1, 0.5, 0, 0}},
    {"neg.", "", {1, 0.5, 0, 0}},
    {"shl.", "", {1, 0.5, 0, 0}},
    // counts of bits: a quarter of the rate
    {"popc.", "", {1, 0, 1, 0}},
    {"brev.", "", {1, 0, 1, 0}},
    {"clz.", "", {2, 1, 1, 0}},
    {"bfe.", "", {2, 2, 0, 0}},
    {"bfi.", "", {2, 2, 0, 0}},
    // compares, selections, logic, what moves bits, extremes: the integer unit
    {"setp.", "", {1, 1, 0, 0}},
    {"selp.", "", {1.1, 1.1, 0, 0}},
    {"and.", "", {1, 1, 0, 0}},
    {"or.", "", {1, 1, 0, 0}},
    {"xor.", "", {1, 1, 0, 0}},
    {"not.", "", {1, 1, 0, 0}},
    {"lop3.", "", {1, 1, 0, 0}},
    {"shr.", "", {1, 1, 0, 0}},
    {"shf.", "", {1, 1, 0, 0}},
    {"prmt.", "", {1, 1, 0, 0}},
    {"min.", "", {1, 1, 0, 0}},
    {"max.", "", {1, 1, 0, 0}},
    {"abs.", "", {1, 1, 0, 0}},
    {"copysign.", "", {1, 1, 0, 0}},
    // meetings
    {"shfl.", "", {1, 0, 0, 0}},
    {"vote.", "", {1, 1, 0, 0}},
    {"bar", "", {1, 0, 0, 0}},
    {"griddepcontrol.", "", {1, 0, 0, 0}},
};

}  // namespace

Cost cost_of(const std::string& opcode) {
  for (const Rule& rule : kRules)
    if (opcode.starts_with(rule.start) && opcode.ends_with(rule.end)) return rule.cost;
  throw Fault("no cost is known of " + opcode);
}

}  // namespace ptx
