// SPDX-License-Identifier: MIT
#include "session.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <sys/mman.h>

namespace lora::bench {

Session::Session(Options options, std::vector<std::unique_ptr<Peer>> peers)
    : options_(std::move(options)),
      peers_(std::move(peers)),
      case_filter_(options_.case_filter),
      roofs_(roofs_of(best_isa())) {
  float sink = 0;
  peak_flops_ = roofs_.multiply_add(peak_rounds, &sink);
}

Peer* Session::peer(const std::string& name) const {
  for (const auto& peer : peers_) {
    if (peer->name() == name) return peer.get();
  }
  return nullptr;
}

bool Session::selected(const std::string& id) const {
  return options_.goals.empty() || std::find(options_.goals.begin(), options_.goals.end(), id) != options_.goals.end();
}

bool Session::wants(const std::vector<std::string>& ids, const std::string& name, bool large) {
  if (!std::regex_search(name, case_filter_)) return false;
  bool any = false;
  for (const auto& id : ids) {
    if (!selected(id)) continue;
    any = true;
    if (options_.list) listed_.push_back(id + " " + name);
    if (options_.quick && large) left_out_.push_back(id + " " + name);
  }
  return any && !options_.list && !(options_.quick && large);
}

std::vector<Timings> Session::compare(Comparison about, const std::vector<Contender>& contenders) {
  std::fprintf(stderr, "  %s %s\n", about.group.c_str(), about.name.c_str());
  TimingPolicy policy = options_.timing;
  if (about.several_threads) policy.processor_time = false;
  about.timings = time_interleaved(contenders, policy);
  comparisons_.push_back(about);
  return about.timings;
}

void Session::add(Goal goal) {
  if (selected(goal.id)) goals_.push_back(std::move(goal));
}

Contender Session::peak() const {
  return {"peak", [this] {
            float sink = 0;
            (void)roofs_.multiply_add(peak_rounds, &sink);
            volatile float keep = sink;
            (void)keep;
          }};
}

void Session::make_cold_array() {
  if (cold_floats_ > 0) return;
  cold_floats_ = static_cast<long>(options_.cold_bytes / sizeof(float)) / 512 * 512;
  auto* const data = cold_.reserve<float>(static_cast<std::size_t>(cold_floats_));
#if defined(MADV_HUGEPAGE)
  // The roof is what the machine can do, with large pages where it has them. madvise takes whole pages; it may refuse.
  constexpr std::uintptr_t page = 4096;
  const std::uintptr_t first = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  (void)madvise(reinterpret_cast<void*>(first), options_.cold_bytes / page * page - page, MADV_HUGEPAGE);
#endif
  std::fill(data, data + cold_floats_, 1.0F);

  std::vector<ReadingWay> ways;
  for (const int streams : {1, 2, 4}) {
    for (const long ahead : {0L, 128L, 512L, 2048L}) ways.push_back({streams, ahead});
  }
  std::vector<Contender> contenders;
  for (const auto& way : ways) contenders.push_back({"", [this, &way] { read_cold_array(way); }});
  const auto timings = time_interleaved(contenders, {.minimum_repetitions = 3, .maximum_repetitions = 3});
  std::size_t best = 0;
  for (std::size_t i = 1; i < timings.size(); ++i) {
    if (timings[i].summary().lower_quartile < timings[best].summary().lower_quartile) best = i;
  }
  reading_ = ways[best];
}

void Session::read_cold_array(const ReadingWay& way) {
  volatile float keep = roofs_.sum(cold_.reserve<float>(0), cold_floats_, way.ahead, way.streams);
  (void)keep;
}

Contender Session::read() {
  make_cold_array();
  return {"read", [this] { evict(); }};
}

void Session::evict() {
  make_cold_array();
  read_cold_array(reading_);
}

std::string case_name(Index n, Index d, Index k, Index r) {
  std::string name = "N=" + std::to_string(n) + ",d=" + std::to_string(d) + ",k=" + std::to_string(k);
  if (r > 0) name += ",r=" + std::to_string(r);
  return name;
}

const Timings& timings_of(const std::vector<Timings>& all, const std::string& name) {
  for (const auto& timings : all) {
    if (timings.name == name) return timings;
  }
  throw std::out_of_range("no contender " + name);
}

}  // namespace lora::bench
