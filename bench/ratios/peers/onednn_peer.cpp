// SPDX-License-Identifier: MIT
// oneDNN: inner_product, or matmul, in f32 with the weight reordered beforehand to the layout the primitive asks for.
#include <dnnl.hpp>
#include <string>
#include <unordered_map>

#include "job.hpp"

namespace {

using dnnl::memory;
using Format = memory::format_tag;

std::string& chosen_kernel() {
  static std::string text;
  return text;
}

memory::desc description(memory::dims dims, Format format) { return {dims, memory::data_type::f32, format}; }

struct OneDnnJob final : lora_bench::Job {
  OneDnnJob(const LoraBenchTask& task, bool as_matmul) : engine(dnnl::engine::kind::cpu, 0), stream(engine) {
    const bool forward = task.kind == lora_bench_product;
    const auto in = description({task.n, forward ? task.k : task.d}, Format::ab);
    const auto out = description({task.n, forward ? task.d : task.k}, Format::ab);
    if (as_matmul) {
      // W as the right factor: k x d forward, d x k in the transposed product.
      set_up_matmul(in, out, forward ? memory::dims{task.k, task.d} : memory::dims{task.d, task.k},
                    forward ? Format::ba : Format::ab, task.w);
    } else {
      set_up_inner_product(in, out, forward, {task.d, task.k}, task.w);
    }
    const bool backward = !as_matmul && !forward;
    arguments = {{backward ? DNNL_ARG_DIFF_DST : DNNL_ARG_SRC, memory(in, engine, const_cast<float*>(task.in))},
                 {DNNL_ARG_WEIGHTS, weight},
                 {backward ? DNNL_ARG_DIFF_SRC : DNNL_ARG_DST, memory(out, engine, task.out)}};
  }

  void run() override {
    primitive.execute(stream, arguments);
    stream.wait();
  }

  void set_up_matmul(const memory::desc& in, const memory::desc& out, const memory::dims& dims, Format given,
                     const float* w) {
    const auto any = description(dims, Format::any);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc chosen(engine, in, any, out);
#else
    const dnnl::matmul::primitive_desc chosen({in, any, out}, engine);
#endif
    finish(chosen, description(dims, given), w);
    primitive = dnnl::matmul(chosen);
  }

  void set_up_inner_product(const memory::desc& in, const memory::desc& out, bool forward, const memory::dims& dims,
                            const float* w) {
    const auto any = description(dims, Format::any);
    const auto& source = forward ? in : out;
    const auto& destination = forward ? out : in;
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::inner_product_forward::primitive_desc ahead(
        engine, forward ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training, source, any,
        destination);
#else
    const dnnl::inner_product_forward::primitive_desc ahead(
        {forward ? dnnl::prop_kind::forward_inference : dnnl::prop_kind::forward_training, source, any, destination},
        engine);
#endif
    if (forward) {
      finish(ahead, description(dims, Format::ab), w);
      primitive = dnnl::inner_product_forward(ahead);
      return;
    }
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::inner_product_backward_data::primitive_desc back(engine, source, any, destination, ahead);
#else
    const dnnl::inner_product_backward_data::primitive_desc back({source, any, destination}, engine, ahead);
#endif
    finish(back, description(dims, Format::ab), w);
    primitive = dnnl::inner_product_backward_data(back);
  }

  template <class Chosen>
  void finish(const Chosen& chosen, const memory::desc& given_layout, const float* w) {
    chosen_kernel() = chosen.impl_info_str();
    memory given(given_layout, engine, const_cast<float*>(w));
    weight = memory(chosen.weights_desc(), engine);
    dnnl::reorder(given, weight).execute(stream, given, weight);
    stream.wait();
  }

  dnnl::engine engine;
  dnnl::stream stream;
  memory weight;
  dnnl::primitive primitive;
  std::unordered_map<int, memory> arguments;
};

struct OneDnnPeer {
  static const char* version() {
    static const std::string text = [] {
      const dnnl_version_t* v = dnnl_version();
      return "oneDNN " + std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
    }();
    return text.c_str();
  }
  static const char* kernel() { return chosen_kernel().c_str(); }
  static int layouts(const LoraBenchTask& task) { return lora_bench::is_product(task) ? 2 : 0; }
  static const char* layout_name(const LoraBenchTask& /*task*/, int layout) {
    return layout == 0 ? "inner_product" : "matmul";
  }
  static std::unique_ptr<lora_bench::Job> prepare(const LoraBenchTask& task, int layout) {
    return std::make_unique<OneDnnJob>(task, layout == 1);
  }
};

}  // namespace

const LoraBenchPeer* lora_bench_peer() { return lora_bench::peer_interface<OneDnnPeer>(); }
