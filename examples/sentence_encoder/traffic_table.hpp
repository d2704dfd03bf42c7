// SPDX-License-Identifier: MIT
// What the ranks of a job exchange in a training step, and what that would take on more of them.
#pragma once

#include <string>

#include "common/text_table.hpp"
#include "sentence_encoder/results.hpp"
#include "sentence_encoder/traffic.hpp"

namespace examples::sentence_encoder {

/// Ranks of the larger job that the table looks ahead to.
inline constexpr int many_ranks = 64;

[[nodiscard]] inline Table traffic_table(const Results& results) {
  const auto ranks = results.ranks;
  const auto link = fit_link(results.reductions, ranks);
  const auto at = [](int count) { return " at " + std::to_string(count) + " ranks, "; };
  Table table{
      {"method", "gradients, bytes", "sent by a rank in a step" + at(ranks) + "bytes", "exchange" + at(ranks) + "ms",
       "sent by a rank" + at(many_ranks) + "bytes", "exchange" + at(many_ranks) + "ms"},
      {}};
  for (const MethodResult& one : results.methods) {
    const double bytes = static_cast<double>(one.cost.trainable_parameters) * sizeof(float);
    std::vector<std::string> row{one.method.name(), grouped_text(one.cost.trainable_parameters * Index{sizeof(float)})};
    for (const int count : {ranks, many_ranks}) {
      row.push_back(grouped_text(static_cast<Index>(step_traffic(bytes, count))));
      row.push_back(fixed_text(reduction_seconds(link, bytes, count) * 1e3, 2));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

[[nodiscard]] inline std::string traffic_note(const Results& results) {
  const auto link = fit_link(results.reductions, results.ranks);
  std::string text = "Times are computed from a link of " + fixed_text(link.latency * 1e6, 1) + " us a message and ";
  text += fixed_text(link.bandwidth() * 1e-9, 2) + " GB/s, fitted to reductions measured between the ";
  text +=
      std::to_string(results.ranks) + " ranks of this job, as T = 2 (p - 1) (latency + n/p / bandwidth) for n bytes";
  text += " among p ranks, without overlap. ";
  text += std::to_string(many_ranks) + " ranks are taken to have such links too: those of a slower network multiply ";
  text += "the part of the bandwidth.";
  return text;
}

}  // namespace examples::sentence_encoder
