// SPDX-License-Identifier: MIT
#include <cstdio>
#include <iomanip>
#include <sstream>

#include "report/report.hpp"

namespace lora::bench {
namespace {

std::string number(double value, int digits = 4) {
  std::ostringstream text;
  text << std::setprecision(digits) << value;
  return text.str();
}

std::string seconds_text(double seconds) {
  if (seconds < 1e-3) return number(seconds * 1e6) + " us";
  if (seconds < 1) return number(seconds * 1e3) + " ms";
  return number(seconds) + " s";
}

// The column of rates: FLOP/s where the comparison has them, else bytes/s.
std::string rate_text(const Session& session, const Comparison& comparison, const Timings& timings) {
  const double seconds = timings.summary().median;
  if (timings.name == "peak") return number(session.peak_flops() / seconds * 1e-9) + " GFLOP/s";
  if (timings.name == "read") {
    return number(static_cast<double>(session.options().cold_bytes) / seconds * 1e-9) + " GB/s";
  }
  if (comparison.flops > 0) return number(comparison.flops / seconds * 1e-9) + " GFLOP/s";
  if (comparison.bytes > 0) return number(comparison.bytes / seconds * 1e-9) + " GB/s";
  return "";
}

void print_comparison(std::ostream& out, const Session& session, const Comparison& comparison) {
  out << '\n' << comparison.group << ' ' << comparison.name << '\n';
  for (const auto& timings : comparison.timings) {
    const Summary s = timings.summary();
    out << "  " << std::left << std::setw(16) << timings.name << std::right << std::setw(12) << seconds_text(s.median)
        << "  [" << seconds_text(s.lower_quartile) << ", " << seconds_text(s.upper_quartile) << "]  n=" << s.count
        << "  " << rate_text(session, comparison, timings);
    if (timings.name != comparison.timings.front().name) {
      const Summary against = ratio(timings, comparison.timings.front());
      out << "  x" << number(against.median) << " [" << number(against.lower_quartile) << ", "
          << number(against.upper_quartile) << ']';
    }
    out << '\n';
  }
}

}  // namespace

void print_tables(std::ostream& out, const Session& session, const Description& machine) {
  for (const auto& [name, value] : machine) out << std::left << std::setw(30) << name << value << '\n';
  for (const auto& name : peer_names) {
    const Peer* const peer = session.peer(name);
    out << std::left << std::setw(30) << ("peer " + name) << (peer == nullptr ? "absent" : peer->version()) << '\n';
    if (peer != nullptr && !peer->kernel().empty()) out << std::setw(30) << "" << peer->kernel() << '\n';
  }
  out << "\nMedian time of one run [quartiles], repetitions, rate of the base product (of the fused multiply-adds for\n"
         "peak, of the bytes for read), and the median of the ratios to the first row [quartiles].\n";
  for (const auto& comparison : session.comparisons()) print_comparison(out, session, comparison);
  if (!session.left_out().empty()) {
    out << "\nLeft out by --quick:\n";
    for (const auto& name : session.left_out()) out << "  " << name << '\n';
  }
  out << "\nQuartiles of the goals' ratios:\n";
  for (const auto& goal : session.goals()) {
    if (goal.value.count < 2) continue;
    out << "  " << std::left << std::setw(19) << goal.id << std::setw(32) << goal.name << number(goal.value.median)
        << " [" << number(goal.value.lower_quartile) << ", " << number(goal.value.upper_quartile)
        << "] n=" << goal.value.count << (goal.against.empty() ? "" : " against " + goal.against) << '\n';
  }
  out << '\n';
}

void print_goals(std::ostream& out, const std::vector<Goal>& goals) {
  for (const auto& goal : goals) {
    out << "goal " << goal.id << ' ' << goal.name << ' '
        << (goal.measured() ? number(goal.value.median, goal.value.count == 1 ? 9 : 4) : "-")
        << (goal.relation == Relation::at_most ? " <= " : " >= ") << number(goal.target, 9) << ' ' << goal.verdict()
        << '\n';
  }
}

}  // namespace lora::bench
