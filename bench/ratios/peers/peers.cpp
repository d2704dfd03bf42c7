// SPDX-License-Identifier: MIT
#include "peers/peers.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <utility>

namespace lora::bench {
namespace {

// Of few samples the smallest says most: whatever disturbs one makes it longer.
double least(const Timings& timings) { return *std::min_element(timings.seconds.begin(), timings.seconds.end()); }

}  // namespace

Peer::Peer(std::string name, const std::string& library) : name_(std::move(name)) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: OpenMP does not survive it
  if (handle == nullptr) throw std::runtime_error("peer " + name_ + ": " + dlerror());
  const auto get = reinterpret_cast<decltype(&lora_bench_peer)>(dlsym(handle, "lora_bench_peer"));
  if (get == nullptr) throw std::runtime_error("peer " + name_ + ": " + library + " has no lora_bench_peer");
  interface_ = get();
}

Contender Peer::in_layout(const LoraBenchTask& task, int layout, const std::function<void()>& check) const {
  const LoraBenchPeer* const peer = interface_;
  const std::shared_ptr<void> job(peer->prepare(&task, layout), [peer](void* made) {
    if (made != nullptr) peer->destroy(made);
  });
  if (job == nullptr) throw std::runtime_error("peer " + name_ + " could not prepare its task");
  peer->run(job.get());
  peer->fetch(job.get());
  check();
  return {name_, [peer, job] { peer->run(job.get()); }};
}

Contender Peer::contender(const LoraBenchTask& task, const std::function<void()>& check) {
  const int count = interface_->layouts(&task);
  std::vector<Contender> layouts;
  for (int layout = 0; layout < count; ++layout) layouts.push_back(in_layout(task, layout, check));
  std::size_t best = 0;
  if (count > 1) {
    const auto timings = time_interleaved(
        layouts, {.minimum_repetitions = 3, .maximum_repetitions = 3, .budget_seconds = 0, .sample_seconds = 1e-3});
    for (std::size_t i = 1; i < timings.size(); ++i) {
      if (least(timings[i]) < least(timings[best])) best = i;
    }
  }
  layouts[best].run();
  kernel_ = std::string(interface_->kernel()) + "; " + interface_->layout_name(&task, static_cast<int>(best));
  return layouts[best];
}

std::vector<std::unique_ptr<Peer>> load_peers(const std::string& folder) {
  std::vector<std::unique_ptr<Peer>> peers;
  for (const auto& name : peer_names) {
    const std::string library = (std::filesystem::path(folder) / ("libratios_peer_" + name + ".so")).string();
    if (std::filesystem::exists(library)) peers.push_back(std::make_unique<Peer>(name, library));
  }
  return peers;
}

}  // namespace lora::bench
