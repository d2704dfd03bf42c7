// SPDX-License-Identifier: MIT
// Merging and unmerging, cold, against scaling an array of W0's size in place.
#include "cases/cases.hpp"
#include "cases/layer.hpp"

namespace lora::bench {
namespace {

void compare_merging(Session& session, Index d, Index r, const std::string& name) {
  LayerData data(1, d, d);
  data.w0 *= 1.0F / 64;  // a weight's usual size, so that the update is smaller than it
  LoraLinear<float> merges(data.w0, {.rank = r, .alpha = 1, .init_lora_weights = InitLoraWeights::random}, 1);
  LoraLinear<float> unmerges = merges;
  AlignedBuffer buffer;
  auto* const scaled = buffer.reserve<float>(static_cast<std::size_t>(d * d));
  std::copy(data.w0.data(), data.w0.data() + data.w0.size(), scaled);

  const auto timings = session.compare(
      {"merging", name, 0, 8.0 * static_cast<double>(d * d), {}},
      {{"merge", [&] { merges.merge(); },
        [&] {
          merges.unmerge();
          session.evict();
        }},
       {"unmerge", [&] { unmerges.unmerge(); },
        [&] {
          unmerges.merge();
          session.evict();
        }},
       {"scale", [&] { session.roofs().scale(scaled, static_cast<long>(d * d), -1.0F); }, [&] { session.evict(); }}});
  for (std::size_t i = 0; i < 2; ++i) {
    session.add({.id = timings[i].name,
                 .name = name,
                 .relation = Relation::at_most,
                 .target = 1.8,
                 .value = ratio(timings[i], timings[2]),
                 .absent = {}});
  }
}

}  // namespace

void measure_merging(Session& session) {
  for (const Index d : {Index{1024}, Index{4096}}) {
    for (const Index r : {Index{1}, Index{8}, Index{16}}) {
      const std::string name = "d=" + std::to_string(d) + ",k=" + std::to_string(d) + ",r=" + std::to_string(r);
      if (session.wants({"merge", "unmerge"}, name)) compare_merging(session, d, r, name);
    }
  }
}

}  // namespace lora::bench
