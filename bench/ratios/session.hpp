// SPDX-License-Identifier: MIT
// One run of the program: what was asked for, the machine's roofs, the peers, and what has been measured.
#pragma once

#include <functional>
#include <memory>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "goals.hpp"
#include "lora/core/types.hpp"
#include "lora/core/workspace.hpp"
#include "peers/peers.hpp"
#include "roofs.hpp"
#include "timing.hpp"

namespace lora::bench {

struct Options {
  bool quick = false;
  bool list = false;               ///< name the cases, measure nothing
  std::vector<std::string> goals;  ///< ids to measure; empty: all
  std::string case_filter;         ///< a regular expression that a case's name must contain a match of
  std::size_t cold_bytes = std::size_t{1} << 30;
  TimingPolicy timing;
};

/// Everything timed together, for the report.
struct Comparison {
  std::string group;  ///< "base", "step", ...
  std::string name;   ///< of the case
  double flops = 0;   ///< of the group's plain operation; 0 where FLOP/s mean nothing
  double bytes = 0;
  std::vector<Timings> timings;
  bool several_threads = false;  ///< of any use only on the wall's clock
};

/// A value over N or r that only the plots show.
struct SweepPoint {
  std::string plot;
  std::string line;
  double x = 0;
  double y = 0;
};

class Session {
 public:
  Session(Options options, std::vector<std::unique_ptr<Peer>> peers);

  [[nodiscard]] const Options& options() const { return options_; }
  [[nodiscard]] const Roofs& roofs() const { return roofs_; }
  [[nodiscard]] const std::vector<std::unique_ptr<Peer>>& peers() const { return peers_; }
  [[nodiscard]] Peer* peer(const std::string& name) const;

  /// Whether any of these goals is to be measured in the case of this name. With --quick, a `large` case is left out.
  [[nodiscard]] bool wants(const std::vector<std::string>& ids, const std::string& name, bool large = false);

  /// Times the contenders and keeps the result for the report.
  std::vector<Timings> compare(Comparison about, const std::vector<Contender>& contenders);
  /// Keeps the goal, unless it was measured only because another one of its case is wanted.
  void add(Goal goal);

  /// A burst of fused multiply-adds: `peak_flops` operations per run.
  [[nodiscard]] Contender peak() const;
  static constexpr long peak_rounds = 200000;
  [[nodiscard]] double peak_flops() const { return peak_flops_; }
  /// One pass over an array of `cold_bytes` bytes.
  [[nodiscard]] Contender read();
  /// Reads that array, so that nothing else is left in the caches.
  void evict();

  [[nodiscard]] const std::vector<Comparison>& comparisons() const { return comparisons_; }
  [[nodiscard]] const std::vector<Goal>& goals() const { return goals_; }
  /// "base_peak N=2048,d=4096,k=4096": what --quick leaves out.
  [[nodiscard]] const std::vector<std::string>& left_out() const { return left_out_; }
  /// The same for everything that matches, with Options::list.
  [[nodiscard]] const std::vector<std::string>& listed() const { return listed_; }
  std::vector<SweepPoint>& sweep() { return sweep_; }
  [[nodiscard]] const std::vector<SweepPoint>& sweep() const { return sweep_; }

 private:
  [[nodiscard]] bool selected(const std::string& id) const;
  /// Parts of an array that are read side by side, and floats fetched before they are needed.
  struct ReadingWay {
    int streams = 1;
    long ahead = 0;
  };

  void make_cold_array();
  void read_cold_array(const ReadingWay& way);

  Options options_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::regex case_filter_;
  Roofs roofs_;
  double peak_flops_ = 0;
  AlignedBuffer cold_;
  long cold_floats_ = 0;
  ReadingWay reading_;  // the fastest
  std::vector<Comparison> comparisons_;
  std::vector<Goal> goals_;
  std::vector<std::string> left_out_;
  std::vector<std::string> listed_;
  std::vector<SweepPoint> sweep_;
};

/// "N=256,d=768,k=768", with ",r=8" where r > 0.
[[nodiscard]] std::string case_name(Index n, Index d, Index k, Index r = 0);

/// r (d + k) / (d k): the adapter's share of the layer's work.
[[nodiscard]] inline double adapter_share(Index d, Index k, Index r) {
  return static_cast<double>(r) * static_cast<double>(d + k) / (static_cast<double>(d) * static_cast<double>(k));
}

/// The timings of one contender, by name. @throws std::out_of_range
[[nodiscard]] const Timings& timings_of(const std::vector<Timings>& all, const std::string& name);

}  // namespace lora::bench
