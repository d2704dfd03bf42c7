// SPDX-License-Identifier: MIT
// Eigen's matrix product, compiled for this machine (-O3 -march=native). Built once for each Eigen at hand.
#include <Eigen/Core>
#include <string>

#include "job.hpp"

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Input = Eigen::Map<const Matrix>;
using Output = Eigen::Map<Matrix>;

struct EigenJob final : lora_bench::Job {
  EigenJob(const LoraBenchTask& task, bool forward, bool transposed)
      : in(task.in, task.n, forward ? task.k : task.d),
        out(task.out, task.n, forward ? task.d : task.k),
        weight_is_right_factor(forward == transposed) {
    const Input w(task.w, task.d, task.k);
    if (transposed) {
      weight = w.transpose();
    } else {
      weight = w;
    }
  }

  void run() override {
    if (weight_is_right_factor) {
      out.noalias() = in * weight;
    } else {
      out.noalias() = in * weight.transpose();
    }
  }

  Input in;
  Output out;
  Matrix weight;
  bool weight_is_right_factor;
};

#if defined(EIGEN_PATCH_VERSION)
constexpr int eigen_patch = EIGEN_PATCH_VERSION;
#else
constexpr int eigen_patch = 0;
#endif

std::string dotted(int major, int minor, int patch) {
  return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

struct EigenPeer {
  static const char* version() {
    // From 5 on, the world number is no part of the version's name.
    static const std::string text =
        "Eigen " + (EIGEN_MAJOR_VERSION >= 5 ? dotted(EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION, eigen_patch)
                                             : dotted(EIGEN_WORLD_VERSION, EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION));
    return text.c_str();
  }
  static const char* kernel() { return Eigen::SimdInstructionSetsInUse(); }
  static int layouts(const LoraBenchTask& task) { return lora_bench::is_product(task) ? 2 : 0; }
  static const char* layout_name(const LoraBenchTask& /*task*/, int layout) {
    return layout == 0 ? "W as given" : "W transposed beforehand";
  }
  static std::unique_ptr<lora_bench::Job> prepare(const LoraBenchTask& task, int layout) {
    return std::make_unique<EigenJob>(task, task.kind == lora_bench_product, layout == 1);
  }
};

}  // namespace

const LoraBenchPeer* lora_bench_peer() { return lora_bench::peer_interface<EigenPeer>(); }
