// SPDX-License-Identifier: MIT
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "report/report.hpp"

namespace lora::bench {
namespace {

using Json = nlohmann::ordered_json;

Json json_of(const Summary& summary) {
  if (summary.count == 0) return nullptr;
  return {{"median", summary.median},
          {"lower_quartile", summary.lower_quartile},
          {"upper_quartile", summary.upper_quartile},
          {"n", summary.count}};
}

Json json_of(const Comparison& comparison) {
  Json contenders = Json::array();
  for (const auto& timings : comparison.timings) {
    Json contender = {{"name", timings.name}, {"seconds", json_of(timings.summary())}};
    contender["ratio_to_first"] = json_of(ratio(timings, comparison.timings.front()));
    contenders.push_back(std::move(contender));
  }
  return {{"group", comparison.group},
          {"case", comparison.name},
          {"flops", comparison.flops},
          {"bytes", comparison.bytes},
          {"contenders", contenders}};
}

Json json_of(const Goal& goal) {
  Json json = {{"id", goal.id},
               {"case", goal.name},
               {"value", json_of(goal.value)},
               {"relation", goal.relation == Relation::at_most ? "<=" : ">="},
               {"target", goal.target},
               {"verdict", goal.verdict()}};
  if (!goal.against.empty()) json["against"] = goal.against;
  return json;
}

Json json_of_peers(const Session& session) {
  Json peers = Json::object();
  for (const auto& name : peer_names) {
    const Peer* const peer = session.peer(name);
    peers[name] = peer == nullptr ? Json(nullptr) : Json{{"version", peer->version()}, {"kernel", peer->kernel()}};
  }
  return peers;
}

}  // namespace

void write_json(const std::string& path, const Session& session, const Description& machine) {
  Json json;
  for (const auto& [name, value] : machine) json["machine"][name] = value;
  json["peers"] = json_of_peers(session);
  json["quick"] = session.options().quick;
  json["cold_bytes"] = session.options().cold_bytes;
  json["peak_flops_per_run"] = session.peak_flops();
  json["comparisons"] = Json::array();
  for (const auto& comparison : session.comparisons()) json["comparisons"].push_back(json_of(comparison));
  json["goals"] = Json::array();
  for (const auto& goal : session.goals()) json["goals"].push_back(json_of(goal));
  json["left_out"] = session.left_out();
  json["sweep"] = Json::array();
  for (const auto& p : session.sweep()) {
    json["sweep"].push_back({{"plot", p.plot}, {"line", p.line}, {"x", p.x}, {"y", p.y}});
  }
  std::ofstream file(path);
  file << json.dump(2) << '\n';
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path);
}

}  // namespace lora::bench
