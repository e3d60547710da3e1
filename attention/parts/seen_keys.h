#pragma once

#include <cstdint>
#include <vector>

#include "attention/parts/rank_parts.h"

namespace ringmaster::attention {

// Keys and all queries that see them, whichever head these are of. No row of keys is in two of
// them.
struct SeenKeys {
  // Query i sees key j when j <= i + lead, if causal, else all.
  struct Seeing {
    Run queries;
    int64_t lead = 0;
    bool causal = false;
  };
  Run run;
  std::vector<Seeing> queries;
};

// Turns problems, which say of queries what keys they see, round. Runs of keys that several
// problems have are cut where one of them begins or ends; queries at tokens beside each other are
// put together where all of them see all of a piece.
class KeyPieces {
 public:
  void Add(const Part& part, int64_t group);
  // Rows that are wanted also if nobody sees them.
  void AddUnseen(const Run& keys) { edges_.push_back({keys, {}}); }

  // By first row, then by head.
  std::vector<SeenKeys> Take();

 private:
  struct Edge {
    Run keys;
    SeenKeys::Seeing seeing;  // of no queries: unseen
  };
  std::vector<Edge> edges_;
};

}  // namespace ringmaster::attention
