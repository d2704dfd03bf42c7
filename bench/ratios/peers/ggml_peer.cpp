// SPDX-License-Identifier: MIT
// ggml's ggml_mul_mat over a quantised weight, on its CPU backend with one thread. ggml rounds the input to 8 bits for
// most formats (to 16 for weights of 16 bits) in every run.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <unistd.h>

#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <vector>

#include "job.hpp"

namespace {

template <auto release>
struct Release {
  template <class Object>
  void operator()(Object* object) const {
    release(object);
  }
};

using Context = std::unique_ptr<ggml_context, Release<ggml_free>>;
using Buffer = std::unique_ptr<ggml_backend_buffer, Release<ggml_backend_buffer_free>>;
using Backend = std::unique_ptr<ggml_backend, Release<ggml_backend_free>>;
using ThreadPool = std::unique_ptr<ggml_threadpool, Release<ggml_threadpool_free>>;

template <class Owner>
Owner owned(typename Owner::pointer object) {
  if (object == nullptr) throw std::runtime_error("ggml has no memory");
  return Owner(object);
}

/// ggml reports every weight that it lays out anew; only warnings and errors are passed on.
void log_problems(ggml_log_level level, const char* text, void* /*data*/) {
  if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

/// For the descriptions of tensors; their numbers live in buffers.
Context context_of(std::size_t tensors) {
  const std::size_t bytes = ggml_tensor_overhead() * tensors + ggml_graph_overhead_custom(tensors, false);
  return owned<Context>(ggml_init({bytes, nullptr, true}));
}

bool same_letters(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::tolower(static_cast<unsigned char>(a[i])) != std::tolower(static_cast<unsigned char>(b[i]))) return false;
  }
  return true;
}

/// GGML_TYPE_COUNT: none of this name, or its rows have another size.
ggml_type type_of(const LoraBenchTask& task) {
  for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
    const auto type = static_cast<ggml_type>(i);
    const char* const name = ggml_type_name(type);
    if (name == nullptr || !same_letters(name, task.format)) continue;
    const auto bytes = static_cast<long>(ggml_row_size(type, task.k)) * task.d;
    return bytes == task.bytes ? type : GGML_TYPE_COUNT;
  }
  return GGML_TYPE_COUNT;
}

/// Whether the weight can be held in memory of this kind, which may lay it out anew.
bool holds(ggml_backend_buffer_type_t kind, const LoraBenchTask& task) {
  const Context context = context_of(8);
  ggml_tensor* const weight = ggml_new_tensor_2d(context.get(), type_of(task), task.k, task.d);
  const Buffer buffer(ggml_backend_buft_alloc_buffer(kind, ggml_backend_buft_get_alloc_size(kind, weight)));
  if (buffer == nullptr) return false;
  ggml_backend_tensor_alloc(buffer.get(), weight, ggml_backend_buffer_get_base(buffer.get()));
  ggml_tensor* const in = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, task.k, task.n);
  return ggml_backend_dev_supports_op(ggml_backend_buft_get_device(kind), ggml_mul_mat(context.get(), weight, in));
}

/// The default memory, where blocks are as given, then those that lay the weight out anew.
std::vector<ggml_backend_buffer_type_t> kinds_of_memory(const LoraBenchTask& task) {
  std::vector<ggml_backend_buffer_type_t> kinds{ggml_backend_cpu_buffer_type()};
  ggml_backend_reg_t const registry = ggml_backend_cpu_reg();
  const auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
      ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts"));
  if (extra == nullptr) return kinds;
  for (auto* kind = extra(ggml_backend_reg_dev_get(registry, 0)); kind != nullptr && *kind != nullptr; ++kind) {
    if (holds(*kind, task)) kinds.push_back(*kind);
  }
  return kinds;
}

/// Large pages for a weight, as our weights have them.
void use_large_pages(ggml_backend_buffer_t buffer) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<std::uintptr_t>(ggml_backend_buffer_get_base(buffer));
  const std::uintptr_t begin = (base + page - 1) / page * page;
  const std::uintptr_t end = (base + ggml_backend_buffer_get_size(buffer)) / page * page;
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

class GgmlJob final : public lora_bench::Job {
 public:
  GgmlJob(const LoraBenchTask& task, ggml_backend_buffer_type_t kind)
      : task_(task), backend_(owned<Backend>(ggml_backend_cpu_init())) {
    ggml_threadpool_params one_thread = ggml_threadpool_params_default(1);
    threads_ = owned<ThreadPool>(ggml_threadpool_new(&one_thread));
    ggml_backend_cpu_set_n_threads(backend_.get(), 1);
    ggml_backend_cpu_set_threadpool(backend_.get(), threads_.get());
    make_weights(kind);
    make_products();
    run();  // reports a failure here, where it may throw
    if (!succeeded_) throw std::runtime_error("ggml could not compute the product");
  }

  void run() override { succeeded_ = ggml_backend_graph_compute(backend_.get(), graph_) == GGML_STATUS_SUCCESS; }

  void fetch() override { ggml_backend_tensor_get(last_, task_.out, 0, ggml_nbytes(last_)); }

 private:
  [[nodiscard]] std::size_t copies() const { return static_cast<std::size_t>(task_.copies); }

  void make_weights(ggml_backend_buffer_type_t kind) {
    weight_context_ = context_of(copies());
    for (std::size_t i = 0; i < copies(); ++i) {
      weights_.push_back(ggml_new_tensor_2d(weight_context_.get(), type_of(task_), task_.k, task_.d));
    }
    weight_memory_ = owned<Buffer>(ggml_backend_alloc_ctx_tensors_from_buft(weight_context_.get(), kind));
    ggml_backend_buffer_set_usage(weight_memory_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    use_large_pages(weight_memory_.get());
    for (ggml_tensor* const weight : weights_) {
      ggml_backend_tensor_set(weight, task_.blocks, 0, static_cast<std::size_t>(task_.bytes));
    }
  }

  // One graph over all weights, so that the cost of starting it is spread over them.
  void make_products() {
    const std::size_t nodes = copies() + 8;
    context_ = context_of(2 * nodes);
    graph_ = ggml_new_graph_custom(context_.get(), nodes, false);
    ggml_tensor* const in = ggml_new_tensor_2d(context_.get(), GGML_TYPE_F32, task_.k, task_.n);
    for (ggml_tensor* const weight : weights_) {
      last_ = ggml_mul_mat(context_.get(), weight, in);
      ggml_build_forward_expand(graph_, last_);
    }
    memory_ = owned<Buffer>(ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), ggml_backend_cpu_buffer_type()));
    ggml_backend_tensor_set(in, task_.in, 0, ggml_nbytes(in));
  }

  LoraBenchTask task_;
  Backend backend_;
  ThreadPool threads_;
  Context weight_context_;
  Buffer weight_memory_;
  std::vector<ggml_tensor*> weights_;
  Context context_;
  Buffer memory_;
  ggml_cgraph* graph_ = nullptr;
  ggml_tensor* last_ = nullptr;
  bool succeeded_ = false;
};

std::string instruction_set() {
  std::string text = ggml_cpu_has_avx512() != 0 ? "AVX-512" : ggml_cpu_has_avx2() != 0 ? "AVX2" : "other";
  if (ggml_cpu_has_avx512_vnni() != 0) text += ", VNNI";
  if (ggml_cpu_has_avx512_bf16() != 0) text += ", BF16";
  return text;
}

struct GgmlPeer {
  static const char* version() {
    static const std::string text = std::string("ggml ") + ggml_version();
    return text.c_str();
  }
  static const char* kernel() {
    static const std::string text = instruction_set();
    return text.c_str();
  }
  static int layouts(const LoraBenchTask& task) {
    if (task.kind != lora_bench_quantized_product || type_of(task) == GGML_TYPE_COUNT) return 0;
    return static_cast<int>(kinds_of_memory(task).size());
  }
  static const char* layout_name(const LoraBenchTask& task, int layout) {
    return ggml_backend_buft_name(kinds_of_memory(task)[static_cast<std::size_t>(layout)]);
  }
  static std::unique_ptr<lora_bench::Job> prepare(const LoraBenchTask& task, int layout) {
    ggml_log_set(log_problems, nullptr);
    return std::make_unique<GgmlJob>(task, kinds_of_memory(task)[static_cast<std::size_t>(layout)]);
  }
};

}  // namespace

const LoraBenchPeer* lora_bench_peer() { return lora_bench::peer_interface<GgmlPeer>(); }
