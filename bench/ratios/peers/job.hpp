// SPDX-License-Identifier: MIT
// The C interface of a peer, made from a class. Standard library only.
#pragma once

#include <exception>
#include <memory>

#include "peer.h"

namespace lora_bench {

/// A task that is ready to run.
struct Job {
  Job() = default;
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  virtual ~Job() = default;
  virtual void run() = 0;
  virtual void fetch() {}
};

/// `Peer` has the static functions version(), kernel(), layouts(task), layout_name(task, layout) and
/// prepare(task, layout), which returns a std::unique_ptr<Job> and may throw.
template <class Peer>
const LoraBenchPeer* peer_interface() {
  static const LoraBenchPeer interface = {
      Peer::version,
      Peer::kernel,
      [](const LoraBenchTask* task) { return Peer::layouts(*task); },
      [](const LoraBenchTask* task, int layout) { return Peer::layout_name(*task, layout); },
      [](const LoraBenchTask* task, int layout) -> void* {
        try {
          return Peer::prepare(*task, layout).release();
        } catch (const std::exception&) {
          return nullptr;
        }
      },
      [](void* job) { static_cast<Job*>(job)->run(); },
      [](void* job) { static_cast<Job*>(job)->fetch(); },
      [](void* job) { delete static_cast<Job*>(job); }};
  return &interface;
}

inline bool is_product(const LoraBenchTask& task) {
  return task.kind == lora_bench_product || task.kind == lora_bench_product_transposed;
}

}  // namespace lora_bench
