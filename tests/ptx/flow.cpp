#include "program.h"

namespace ptx {

namespace {

// Post-dominators as Cooper, Harvey and Kennedy 2001 find them, of single instructions; `exit` is one more.
class PostDominators {
 public:
  explicit PostDominators(const std::vector<Instruction>& code)
      : exit_(static_cast<int>(code.size())), successors_(exit_ + 1) {
    std::vector<std::vector<int>> predecessors(exit_ + 1);
    for (int i = 0; i < exit_; ++i) {
      const Instruction& at = code[i];
      const bool branch = at.opcode->kind == Opcode::kBranch;
      const bool ends = branch || at.opcode->kind == Opcode::kReturn;
      if (ends) successors_[i].push_back(branch ? at.target : exit_);
      if (!ends || at.guarded) successors_[i].push_back(i + 1);
      for (int to : successors_[i]) predecessors[to].push_back(i);
    }
    number(predecessors);
    solve();
  }

  // exit for what is never reached too
  int operator[](int i) const { return dominator_[i] < 0 ? exit_ : dominator_[i]; }

 private:
  // Numbers in postorder from the exit against the flow; depth first, with a stack of its own.
  void number(const std::vector<std::vector<int>>& predecessors) {
    order_.assign(exit_ + 1, -1);
    std::vector<bool> seen(exit_ + 1);
    std::vector<std::pair<int, size_t>> stack{{exit_, 0}};
    seen[exit_] = true;
    while (!stack.empty()) {
      auto& [node, next] = stack.back();
      if (next < predecessors[node].size()) {
        const int to = predecessors[node][next++];
        if (!seen[to]) {
          seen[to] = true;
          stack.push_back({to, 0});
        }
      } else {
        order_[node] = static_cast<int>(sorted_.size());
        sorted_.push_back(node);
        stack.pop_back();
      }
    }
  }

  void solve() {
    dominator_.assign(exit_ + 1, -1);
    dominator_[exit_] = exit_;
    for (bool changed = true; changed;) {
      changed = false;
      for (auto node = sorted_.rbegin() + 1; node != sorted_.rend(); ++node) {
        int found = -1;
        for (int to : successors_[*node])
          if (order_[to] >= 0 && dominator_[to] >= 0) found = found < 0 ? to : meet(found, to);
        changed |= dominator_[*node] != found;
        dominator_[*node] = found;
      }
    }
  }

  int meet(int a, int b) const {
    while (a != b) {
      while (order_[a] < order_[b]) a = dominator_[a];
      while (order_[b] < order_[a]) b = dominator_[b];
    }
    return a;
  }

  int exit_;
  std::vector<std::vector<int>> successors_;
  std::vector<int> order_, sorted_, dominator_;
};

}  // namespace

void find_reconvergence(std::vector<Instruction>& code) {
  const PostDominators post(code);
  const int exit = static_cast<int>(code.size());
  for (int i = 0; i < exit; ++i)
    if (code[i].guarded && code[i].opcode->kind == Opcode::kBranch)
      code[i].reconverge = post[i] == exit ? kNowhere : post[i];
}

}  // namespace ptx
