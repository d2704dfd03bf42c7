// SPDX-License-Identifier: MIT
// OpenBLAS: cblas_sgemm on one thread.
#include <cblas.h>

#include <cstddef>
#include <string>
#include <vector>

#include "job.hpp"

namespace {

using Size = blasint;

struct OpenBlasJob final : lora_bench::Job {
  OpenBlasJob(const LoraBenchTask& given, bool transposed) : task(given) {
    const bool forward = task.kind == lora_bench_product;
    inner = forward ? task.k : task.d;
    columns = forward ? task.d : task.k;
    right_is_transposed = forward != transposed;
    if (!transposed) return;
    copy.resize(static_cast<std::size_t>(task.d * task.k));
    cblas_somatcopy(CblasRowMajor, CblasTrans, static_cast<Size>(task.d), static_cast<Size>(task.k), 1.0F, task.w,
                    static_cast<Size>(task.k), copy.data(), static_cast<Size>(task.d));
  }

  void run() override {
    const float* const weight = copy.empty() ? task.w : copy.data();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, right_is_transposed ? CblasTrans : CblasNoTrans, static_cast<Size>(task.n),
                static_cast<Size>(columns), static_cast<Size>(inner), 1.0F, task.in, static_cast<Size>(inner), weight,
                static_cast<Size>(right_is_transposed ? inner : columns), 0.0F, task.out, static_cast<Size>(columns));
  }

  LoraBenchTask task;
  long inner = 0;
  long columns = 0;
  bool right_is_transposed = false;
  std::vector<float> copy;
};

struct OpenBlasPeer {
  static const char* version() { return openblas_get_config(); }
  static const char* kernel() {
    static std::string text;
    text = std::string(openblas_get_corename()) + ", " + std::to_string(openblas_get_num_threads()) + " thread";
    return text.c_str();
  }
  static int layouts(const LoraBenchTask& task) { return lora_bench::is_product(task) ? 2 : 0; }
  static const char* layout_name(const LoraBenchTask& /*task*/, int layout) {
    return layout == 0 ? "W as given" : "W transposed beforehand";
  }
  static std::unique_ptr<lora_bench::Job> prepare(const LoraBenchTask& task, int layout) {
    openblas_set_num_threads(1);
    return std::make_unique<OpenBlasJob>(task, layout == 1);
  }
};

}  // namespace

const LoraBenchPeer* lora_bench_peer() { return lora_bench::peer_interface<OpenBlasPeer>(); }
