// SPDX-License-Identifier: MIT
// The goals, and what was measured for them.
#pragma once

#include <string>
#include <vector>

#include "statistics.hpp"

namespace lora::bench {

enum class Relation { at_most, at_least };

/// One goal in one case.
struct Goal {
  std::string id;    ///< "base_peer"
  std::string name;  ///< of the case: "N=256,d=768,k=768"
  Relation relation = Relation::at_least;
  double target = 0;
  Summary value;                    ///< count 0: nothing could be measured
  std::vector<std::string> absent;  ///< peers that the goal asks for and this run does not have
  std::string against = {};         ///< for goals over several peers: the one that the value belongs to

  [[nodiscard]] bool measured() const { return value.count > 0; }
  [[nodiscard]] bool met() const {
    return measured() && (relation == Relation::at_most ? value.median <= target : value.median >= target);
  }
  /// "ok", "short", or "absent:<peers>" where the goal would be met, or could not be measured, but for absent peers.
  [[nodiscard]] std::string verdict() const {
    if (measured() && !met()) return "short";
    if (absent.empty()) return "ok";
    std::string text = "absent:";
    for (const auto& peer : absent) text += (text.back() == ':' ? "" : ",") + peer;
    return text;
  }
};

}  // namespace lora::bench
