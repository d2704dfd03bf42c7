// SPDX-License-Identifier: MIT
// The peers that were built, loaded from their shared libraries.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "peers/peer.h"
#include "timing.hpp"

namespace lora::bench {

/// One peer. Loaded into a scope of its own, so that no peer sees another's symbols.
class Peer {
 public:
  /// @throws std::runtime_error with the loader's reason
  Peer(std::string name, const std::string& library);

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] std::string version() const { return interface_->version(); }
  /// What the peer said about its kernels after the task of each kind that it ran last, and the layout it won with.
  [[nodiscard]] const std::string& kernel() const { return kernel_; }
  [[nodiscard]] bool supports(const LoraBenchTask& task) const { return interface_->layouts(&task) > 0; }

  /// The task in the peer's fastest layout, found by trying all of them, warm and interleaved. The contender keeps its
  /// memory alive. `check` is called once for each layout after it wrote task.out, and may throw.
  [[nodiscard]] Contender contender(const LoraBenchTask& task, const std::function<void()>& check);

 private:
  [[nodiscard]] Contender in_layout(const LoraBenchTask& task, int layout, const std::function<void()>& check) const;

  std::string name_;
  const LoraBenchPeer* interface_ = nullptr;
  std::string kernel_;
};

/// The names of all peers there can be, in the order of the report.
inline const std::vector<std::string> peer_names{"onednn", "openblas", "eigen34", "eigen5", "torch", "ggml"};

/// The peers whose libraries are in `folder`.
[[nodiscard]] std::vector<std::unique_ptr<Peer>> load_peers(const std::string& folder);

}  // namespace lora::bench
