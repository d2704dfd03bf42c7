// SPDX-License-Identifier: MIT
// libtorch: LoRA as PyTorch users write it, F.linear and the two thin products, on one thread.
#include <dlfcn.h>

#include <cstring>
#include <string>
#include <torch/torch.h>
#include <torch/version.h>

#include "job.hpp"

namespace {

at::Tensor tensor_of(const float* data, long rows, long columns) {
  return torch::from_blob(const_cast<float*>(data), {rows, columns}, torch::kFloat32).clone();
}

// y = F.linear(x, W, bias); y += scaling * F.linear(x, A) B^T, in place: one array less than PEFT's own expression.
struct TorchJob final : lora_bench::Job {
  explicit TorchJob(const LoraBenchTask& given)
      : task(given),
        x(tensor_of(given.in, given.n, given.k)),
        w(tensor_of(given.w, given.d, given.k)),
        bias(tensor_of(given.bias, 1, given.d).view({given.d})),
        a(tensor_of(given.a, given.r, given.k)),
        b(tensor_of(given.b, given.d, given.r)) {
    if (task.kind != lora_bench_lora_step) return;
    dy = tensor_of(given.dy, given.n, given.d);
    for (at::Tensor* tensor : {&x, &a, &b}) tensor->requires_grad_(true);
  }

  at::Tensor forward() {
    at::Tensor result = at::linear(x, w, bias);
    result.addmm_(at::linear(x, a), b.t(), 1, task.scaling);
    return result;
  }

  void run() override {
    if (task.kind == lora_bench_lora_forward) {
      const torch::InferenceMode guard;
      y = forward();
      return;
    }
    for (at::Tensor* tensor : {&x, &a, &b}) tensor->mutable_grad() = at::Tensor();  // zero_grad(set_to_none=True)
    y = forward();
    y.backward(dy);
  }

  void fetch() override {
    const at::Tensor result = task.kind == lora_bench_lora_step ? x.grad() : y;
    std::memcpy(task.out, result.contiguous().data_ptr<float>(), static_cast<std::size_t>(result.numel()) * 4);
  }

  LoraBenchTask task;
  at::Tensor x, w, bias, a, b, dy, y;
};

// Which library answers torch's calls of sgemm: the reference BLAS would be no opponent.
std::string blas_in_use() {
  void* const blas = dlopen("libblas.so.3", RTLD_LAZY | RTLD_NOLOAD);
  if (blas == nullptr) return "BLAS not found by name";
  Dl_info info{};
  void* const sgemm = dlsym(blas, "sgemm_");
  std::string text = "sgemm_ of ";
  text += sgemm != nullptr && dladdr(sgemm, &info) != 0 ? info.dli_fname : "?";
  using Name = char* (*)();
  const auto name = reinterpret_cast<Name>(dlsym(blas, "openblas_get_corename"));
  text += name != nullptr ? std::string(" (OpenBLAS, ") + name() + ")" : " (not OpenBLAS)";
  dlclose(blas);
  return text;
}

struct TorchPeer {
  static const char* version() { return "libtorch " TORCH_VERSION; }
  static const char* kernel() {
    static std::string text;
    text = blas_in_use() + "; mkldnn " + (at::globalContext().userEnabledMkldnn() ? "on" : "off") + "; " +
           std::to_string(at::get_num_threads()) + " thread; " + at::show_config();
    for (char& c : text) {
      if (c == '\n') c = ' ';
    }
    return text.c_str();
  }
  static int layouts(const LoraBenchTask& task) { return lora_bench::is_product(task) ? 0 : 1; }
  static const char* layout_name(const LoraBenchTask& /*task*/, int /*layout*/) { return "F.linear, addmm_"; }
  static std::unique_ptr<lora_bench::Job> prepare(const LoraBenchTask& task, int /*layout*/) {
    at::set_num_threads(1);
    return std::make_unique<TorchJob>(task);
  }
};

}  // namespace

const LoraBenchPeer* lora_bench_peer() { return lora_bench::peer_interface<TorchPeer>(); }
