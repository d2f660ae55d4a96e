#include <algorithm>
#include <cstring>
#include <deque>
#include <sstream>

#include "program.h"

namespace ptx {

namespace {

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(' ');
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(' ') - first + 1);
}

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string word; stream >> word;) result.push_back(word);
  return result;
}

// Split at the commas that no bracket encloses
std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (char c : text) {
    depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    if (c == ',' && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

uint32_t round_up(uint32_t n, uint32_t to) {
  return (n + to - 1) / to * to;
}

// What `.align 8 .b8 name[16]` and `.u64 name` declare
struct Declaration {
  uint32_t alignment = 0, bytes = 0;
  bool open = false;  // name[]
  std::string name;
};

uint32_t bytes_of_type(const std::string& type) {
  for (const char* known :
       {"b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64",
        "f64"})
    if (type == std::string(".") + known) return std::stoi(type.substr(2)) / 8;
  throw Fault("unknown type " + type);
}

Declaration declared(const std::vector<std::string>& text, size_t first) {
  Declaration found;
  for (size_t i = first; i < text.size(); ++i) {
    if (text[i] == ".align") {
      found.alignment = std::stoi(text[++i]);
    } else if (text[i] == ".ptr" || text[i] == ".global") {
    } else if (text[i][0] == '.') {
      found.bytes = bytes_of_type(text[i]);
      found.alignment = std::max(found.alignment, found.bytes);
    } else {
      found.name = text[i].substr(0, text[i].find('['));
      if (const size_t open = text[i].find('['); open != std::string::npos) {
        found.open = text[i][open + 1] == ']';
        if (!found.open) found.bytes *= std::stoi(text[i].substr(open + 1));
      }
    }
  }
  if (found.name.empty() || found.bytes == 0) throw Fault("a declaration that is not understood");
  return found;
}

std::string without_comment(const std::string& line) {
  return line.substr(0, line.find("//"));
}

}  // namespace

// ---- a file ----

Module::Module(const std::string& file, const std::string& text) : file_(file) {
  std::istringstream stream(text);
  std::string line, name;
  Entry entry;
  int number = 0, depth = 0;
  while (std::getline(stream, line)) {
    ++number;
    std::replace(line.begin(), line.end(), '\t', ' ');
    const std::string bare = trimmed(without_comment(line));
    if (!name.empty()) {
      entry.lines.push_back(trimmed(line));
      depth +=
          std::count(bare.begin(), bare.end(), '{') - std::count(bare.begin(), bare.end(), '}');
      if (depth == 0 && bare == "}") {
        entries_[name] = std::move(entry);
        name.clear();
      }
      continue;
    }
    std::string spaced = bare;
    std::replace(spaced.begin(), spaced.end(), '(', ' ');
    std::replace(spaced.begin(), spaced.end(), ';', ' ');
    const std::vector<std::string> text = words(spaced);
    if (text.empty()) continue;
    const auto is = [&](size_t i, const char* word) { return i < text.size() && text[i] == word; };
    const size_t linkage = is(0, ".visible") || is(0, ".weak") || is(0, ".extern");
    if (is(linkage, ".entry")) {
      name = text[linkage + 1];
      entry = {number, {line}};
      depth = 0;
    } else if (is(linkage, ".shared")) {
      const Declaration found = declared(text, linkage + 1);
      shared_[found.name] = {found.alignment, found.bytes, found.open};
    } else if (
        !is(0, ".version") && !is(0, ".target") && !is(0, ".address_size") &&
        !is(linkage, ".global")) {
      throw Fault(file + ":" + std::to_string(number) + ": unknown directive " + bare);
    }
  }
}

std::vector<std::string> Module::names() const {
  std::vector<std::string> result;
  for (const auto& [name, entry] : entries_) result.push_back(name);
  return result;
}

// ---- an entry ----

class Parser {
 public:
  Parser(const Module& module, const std::string& name) : module_(module) {
    const Module::Entry& entry = module.entries_.at(name);
    kernel_.name = name;
    kernel_.file = module.file_;
    kernel_.text = entry.lines;
    kernel_.first_line = entry.first_line;
    scopes_.emplace_back();
  }

  Kernel parse() {
    std::string statement;
    int line = kernel_.first_line;
    bool head = true;
    for (const std::string& text : kernel_.text) {
      try {
        for (char c : without_comment(text) + " ") {
          if (head) {
            if (c == '{') {
              parse_head(statement);
              head = false;
              statement.clear();
            } else {
              statement += c;
            }
          } else if (take(statement, c, line)) {
            statement.clear();
          }
        }
      } catch (const std::exception& error) {
        throw Fault(
            kernel_.file + ":" + std::to_string(line) + ": " + error.what() + " in " +
            trimmed(text));
      }
      ++line;
    }
    finish();
    return std::move(kernel_);
  }

 private:
  struct Scope {
    int parent = -1;
    std::map<std::string, Register> registers;
    std::map<std::string, int> labels;
  };

  // Whether the statement is over with this character
  bool take(std::string& statement, char c, int line) {
    const std::string before = trimmed(statement);
    if (c == ';') {
      parse_statement(before, line);
      return true;
    }
    if (c == ':' && before.find_first_of(" .[") == std::string::npos) {
      scopes_[scope_].labels[before] = static_cast<int>(kernel_.code.size());
      return true;
    }
    if (c == '{' && before.empty()) {
      scopes_.push_back({scope_, {}, {}});
      scope_ = static_cast<int>(scopes_.size()) - 1;
      return true;
    }
    if (c == '}' && before.empty()) {
      scope_ = scopes_[scope_].parent;
      return true;
    }
    statement += c;
    return false;
  }

  void parse_head(std::string text) {
    const size_t open = text.find('('), close = text.rfind(')');
    for (const std::string& part : split(text.substr(open + 1, close - open - 1))) {
      const std::vector<std::string> parameter = words(part);
      if (parameter.at(0) != ".param") throw Fault("unknown parameter " + part);
      const Declaration found = declared(parameter, 1);
      const uint32_t offset = round_up(kernel_.parameter_bytes, found.alignment);
      kernel_.parameters.push_back({offset, found.bytes});
      kernel_.parameter_bytes = offset + found.bytes;
      symbols_[found.name] = offset;
    }
    const std::vector<std::string> rest = words(text.substr(close + 1));
    for (size_t i = 0; i < rest.size(); ++i) {
      if (rest[i] == ".maxntid" || rest[i] == ".reqntid") {
        kernel_.max_threads = 1;
        do kernel_.max_threads *= std::stoi(rest[++i]);
        while (rest[i].back() == ',');
      } else if (rest[i] == ".minnctapersm") {
        ++i;
      } else {
        throw Fault("unknown directive " + rest[i]);
      }
    }
  }

  void parse_statement(const std::string& statement, int line) {
    if (statement.empty()) return;
    if (statement[0] == '.') return parse_directive(statement);
    Instruction instruction;
    instruction.line = line;
    std::string text = statement;
    if (text[0] == '@') {
      const size_t end = text.find_first_of(" ");
      std::string guard = text.substr(1, end - 1);
      instruction.guarded = true;
      instruction.negated = guard[0] == '!';
      instruction.guard = register_named(guard.substr(instruction.negated));
      text = trimmed(text.substr(end));
    }
    const size_t end = std::min(text.find(' '), text.size());
    const std::vector<std::string> operands = split(text.substr(end));
    instruction.opcode = &opcode_named(canonical(text.substr(0, end), operands));
    parse_operands(operands, instruction);
    kernel_.code.push_back(instruction);
  }

  void parse_directive(const std::string& statement) {
    const std::vector<std::string> text = words(statement);
    if (text[0] == ".pragma") return;
    if (text[0] == ".shared") {
      const Declaration found = declared(text, 1);
      return place_shared(found.name, found.alignment, found.bytes);
    }
    if (text[0] != ".reg") throw Fault("unknown directive");
    const uint8_t width = text.at(1) == ".pred" ? 0 : bytes_of_type(text.at(1));
    for (const std::string& name :
         split(statement.substr(statement.find(text[1]) + text[1].size()))) {
      const size_t open = name.find('<');
      const int count = open == std::string::npos ? 1 : std::stoi(name.substr(open + 1));
      for (int i = 0; i < count; ++i)
        scopes_[scope_].registers
            [name.substr(0, open) + (open == std::string::npos ? "" : std::to_string(i))] =
            new_register(width);
    }
  }

  // The name by which the table has it: without hints to caches and the number of values, and with what
  // the operands' shape tells apart.
  static std::string canonical(
      const std::string& opcode, const std::vector<std::string>& operands) {
    std::string name;
    std::istringstream stream(opcode);
    bool memory = false;
    for (std::string part; std::getline(stream, part, '.');) {
      if (name.empty()) memory = part == "ld" || part == "st";
      if (name.starts_with("cp.async") && part.starts_with("L2::")) continue;
      const bool hint = part == "nc" || part == "ca" || part == "cg" || part == "cs" ||
                        part == "v2" || part == "v4" || part.rfind("L1::", 0) == 0 ||
                        part.rfind("L2::", 0) == 0;
      if (memory && hint) continue;
      name += (name.empty() ? "" : ".") + part;
    }
    if (name.rfind("mov.", 0) == 0 && operands.size() == 2) {
      if (operands[0][0] == '{') name += " unpack";
      if (operands[1][0] == '{') name += " pack";
    }
    if (!operands.empty() && operands[0].find('|') != std::string::npos) name += " with predicate";
    return name;
  }

  void parse_operands(const std::vector<std::string>& texts, Instruction& instruction) {
    std::deque<std::string> left;
    for (const std::string& text : texts) {
      if (text[0] == '{') {
        for (const std::string& part : split(text.substr(1, text.rfind('}') - 1)))
          left.push_back(part);
      } else if (const size_t bar = text.find('|'); bar != std::string::npos) {
        left.push_back(text.substr(0, bar));
        left.push_back(text.substr(bar + 1));
      } else {
        left.push_back(text);
      }
    }
    const std::string& letters = instruction.opcode->operands;
    bool writes = false;
    for (size_t i = 0; i < letters.size(); ++i) {
      if (letters[i] == '=') {
        writes = true;
        continue;
      }
      // R: as many registers as the operands behind it leave
      const size_t behind = letters.size() - i - 1;
      do {
        if (left.empty()) throw Fault("too few operands");
        parse_operand(letters[i], left.front(), instruction);
        if (writes) ++instruction.written;
        left.pop_front();
      } while (letters[i] == 'R' && left.size() > behind);
      writes = false;
    }
    if (!left.empty()) throw Fault("too many operands");
  }

  void parse_operand(char letter, const std::string& text, Instruction& instruction) {
    if (letter == 'l') {
      branches_.push_back({kernel_.code.size(), scope_, text});
      return;
    }
    if (letter == 'n') {
      instruction.number = std::stoll(text, nullptr, 0);
      return;
    }
    if (instruction.count == static_cast<int>(instruction.operands.size()))
      throw Fault("too many operands");
    Operand& operand = instruction.operands[instruction.count++];
    if (letter == 'm') {
      if (text.front() != '[' || text.back() != ']') throw Fault("no address: " + text);
      const std::string inside = text.substr(1, text.size() - 2);
      const size_t plus = inside.find('+');
      if (plus != std::string::npos)
        operand.displacement = std::stoll(inside.substr(plus + 1), nullptr, 0);
      operand.base = value(trimmed(inside.substr(0, plus)), 8);
      return;
    }
    const int width = letter == 'p' ? 0 : letter == 'r' || letter == 'R' ? kAny : letter - '0';
    operand.base = value(text, width);
    if (width != kAny && operand.base.width != width)
      throw Fault("an operand of another width: " + text);
  }

  // A register, or what is constant
  Register value(const std::string& text, int width) {
    static const std::map<std::string, Constant::Source> kSpecial{
        {"%tid", Constant::kThread},
        {"%ntid", Constant::kBlockExtent},
        {"%ctaid", Constant::kBlock},
        {"%nctaid", Constant::kGridExtent}};
    if (text == "%laneid") return constant(Constant::kLane, 0, 0, 4);
    if (text[0] == '%') {
      const size_t dot = text.find('.');
      const auto special = kSpecial.find(text.substr(0, dot));
      if (special == kSpecial.end()) return register_named(text);
      return constant(special->second, text.at(dot + 1) - 'x', 0, 4);
    }
    const bool number = std::isdigit(text[0]) || text[0] == '-';
    if (number && width == kAny) width = 8;  // of which the lowest bytes are taken
    if (text.rfind("0f", 0) == 0 || text.rfind("0d", 0) == 0)
      return constant(Constant::kValue, 0, std::stoull(text.substr(2), nullptr, 16), width);
    if (number) {
      const uint64_t bits =
          text[0] == '-' ? std::stoll(text, nullptr, 0) : std::stoull(text, nullptr, 0);
      return constant(Constant::kValue, 0, width == 0 && bits ? kAllLanes : bits, width);
    }
    if (const auto found = symbols_.find(text); found != symbols_.end())
      return constant(Constant::kValue, 0, found->second, width);
    if (const auto found = module_.shared_.find(text); found != module_.shared_.end()) {
      if (found->second.dynamic) return constant(Constant::kValue, kDynamic, 0, width);
      place_shared(text, found->second.alignment, found->second.bytes);
      return constant(Constant::kValue, 0, symbols_.at(text), width);
    }
    return register_named(text);
  }

  Register register_named(const std::string& name) const {
    for (int scope = scope_; scope >= 0; scope = scopes_[scope].parent) {
      const auto found = scopes_[scope].registers.find(name);
      if (found != scopes_[scope].registers.end()) return found->second;
    }
    throw Fault("unknown operand " + name);
  }

  Register new_register(uint8_t width) {
    const uint32_t row = round_up(kernel_.register_bytes, width ? 32 : 4);
    const Register result{kernel_.registers++, row, width};
    kernel_.register_bytes = row + result.bytes();
    return result;
  }

  Register constant(Constant::Source source, int dimension, uint64_t number, int width) {
    for (const Constant& known : kernel_.constants)
      if (known.source == source && known.dimension == dimension && known.value == number &&
          known.target.width == width)
        return known.target;
    kernel_.constants.push_back(
        {source, dimension, number, new_register(static_cast<uint8_t>(width))});
    return kernel_.constants.back().target;
  }

  // Arrays lie apart, so that an access beyond one does not fall into the next.
  void place_shared(const std::string& name, uint32_t alignment, uint32_t bytes) {
    constexpr uint32_t kApart = 128;
    if (symbols_.count(name)) return;
    const uint32_t end = kernel_.shared.empty()
                             ? 0
                             : kernel_.shared.back().offset + kernel_.shared.back().bytes + kApart;
    const uint32_t offset = round_up(end, std::max(alignment, kApart));
    kernel_.shared.push_back({offset, bytes});
    static_end_ = round_up(static_end_, alignment) + bytes;
    symbols_[name] = kSharedBase + offset;
  }

  void finish() {
    kernel_.static_bytes = static_end_;
    const uint32_t end = kernel_.shared.empty()
                             ? 0
                             : kernel_.shared.back().offset + kernel_.shared.back().bytes + 128;
    kernel_.dynamic_start = round_up(end, 128);
    for (Constant& constant : kernel_.constants)
      if (constant.source == Constant::kValue && constant.dimension == kDynamic)
        constant.value = kSharedBase + kernel_.dynamic_start;
    for (const Branch& branch : branches_) {
      int scope = branch.scope;
      while (scope >= 0 && !scopes_[scope].labels.count(branch.label))
        scope = scopes_[scope].parent;
      if (scope < 0) throw Fault("unknown label " + branch.label);
      kernel_.code[branch.instruction].target = scopes_[scope].labels.at(branch.label);
    }
    if (kernel_.code.empty() || kernel_.code.back().guarded ||
        (kernel_.code.back().opcode->kind != Opcode::kReturn &&
         kernel_.code.back().opcode->kind != Opcode::kBranch))
      throw Fault(kernel_.name + " does not end with ret");
    find_reconvergence(kernel_.code);
    find_shared_unit();
  }

  void find_shared_unit() {
    for (const Instruction& instruction : kernel_.code) {
      const std::string& name = instruction.opcode->name;
      const bool memory = name.rfind("ld.", 0) == 0 || name.rfind("st.", 0) == 0;
      const bool elsewhere = name.rfind(".global.", 2) == 2 || name.rfind(".param.", 2) == 2;
      if (memory && !elsewhere)
        kernel_.shared_unit =
            std::min(kernel_.shared_unit, bytes_of_type(name.substr(name.rfind('.'))));
    }
  }

  static constexpr int kAny = -1, kDynamic = -1;
  struct Branch {
    size_t instruction;
    int scope;
    std::string label;
  };

  const Module& module_;
  Kernel kernel_;
  std::vector<Scope> scopes_;
  int scope_ = 0;
  std::map<std::string, uint32_t> symbols_;  // of parameters and static shared memory
  std::vector<Branch> branches_;
  uint32_t static_end_ = 0;
};

Kernel Module::kernel(const std::string& name) const {
  return Parser(*this, name).parse();
}

}  // namespace ptx
