// SPDX-License-Identifier: MIT
// What is specific to an embedding: ids as inputs, the starts and shapes of its factors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/adapter/adapter.hpp"
#include "lora/core/random.hpp"
#include "lora/layers/adapter_passes.hpp"
#include "lora/layers/embedding_ids.hpp"
#include "lora/layers/embedding_passes.hpp"
#include "lora/layers/linear_kind.hpp"

namespace lora {

/// A table of V embeddings of D numbers. Its weight is the transposed table, D x V, which A (r x V) and B (D x r)
/// update as in a linear layer. A value; const functions are reentrant.
template <RealScalar ScalarType>
class EmbeddingKind {
 public:
  using Scalar = ScalarType;
  using Passes = EmbeddingPasses<Scalar>;
  using Batch = typename Passes::Batch;
  using Adapter = LoraAdapter<Scalar>;
  static constexpr bool has_input_gradient = false;

  /// `padding_idx` is -1 if there is none.
  EmbeddingKind(Index num_embeddings, Index embedding_dim, Index padding_idx)
      : num_embeddings_(num_embeddings), padding_idx_(padding_idx), blocks_(OutputBlocks::all(embedding_dim)) {}

  [[nodiscard]] static constexpr std::string_view name() noexcept { return "LoraEmbedding"; }
  [[nodiscard]] Index padding_idx() const noexcept { return padding_idx_; }
  [[nodiscard]] Index in_features() const noexcept { return num_embeddings_; }
  [[nodiscard]] const OutputBlocks& blocks() const noexcept { return blocks_; }
  [[nodiscard]] static constexpr bool stored_transposed() noexcept { return true; }
  [[nodiscard]] Passes passes(const WeightRef<Scalar>& weight) const noexcept {
    return Passes(weight, blocks_, padding_idx_);
  }

  [[nodiscard]] FactorShape factor_shape(const LoraConfig& config) const noexcept {
    return {config.rank, num_embeddings_, blocks_.outputs, config.rank};
  }

  /// @throws ConfigError for options that this layer does not have.
  void check(std::string_view operation, const LoraConfig& config) const {
    if (config.use_qalora) throw ConfigError(operation, "use_qalora", "false for an embedding", "true");
    if (config.lora_bias) throw ConfigError(operation, "lora_bias", "false for an embedding", "true");
  }

  [[nodiscard]] static constexpr bool takes_start() noexcept { return false; }

  /// A = 0 and B ~ N(0, 1); with InitLoraWeights::random both ~ N(0, 1). The same seed gives the same bits on every
  /// platform. Source: PEFT's reset_lora_parameters. @throws std::bad_alloc
  [[nodiscard]] Adapter make_adapter(std::string_view operation, std::string_view name, const LoraConfig& config,
                                     std::uint64_t seed, const WeightRef<Scalar>& /*weight*/) const {
    auto factors = factor_shape(config).template make<Scalar>();
    std::fill_n(factors.A.data(), factors.A.size(), Scalar(0));
    if (config.init_lora_weights == InitLoraWeights::random) {
      fill_normal(view_of(factors.A), 1.0, RandomStream(seed, detail::stream_of_A));
    }
    fill_normal(view_of(factors.B), 1.0, RandomStream(seed, detail::stream_of_B));
    return Adapter(operation, name, config, seed, std::move(factors));
  }

  /// s B A, of the transposed table.
  [[nodiscard]] WholeUpdate<Scalar> whole_update(const Adapter& adapter, Workspace& workspace) const {
    return {workspace.matrix<Scalar>(0, 0),
            workspace.matrix<Scalar>(0, 0),
            {view_of(adapter.A), view_of(adapter.B), adapter.scaling()}};
  }

  [[nodiscard]] static std::string_view parameter_name(ParameterRole role) noexcept {
    return role == ParameterRole::lora_A   ? "lora_embedding_A"
           : role == ParameterRole::lora_B ? "lora_embedding_B"
                                           : lora::parameter_name(role);
  }

  [[nodiscard]] static bool accepts(const LoraTape<Scalar>& tape) noexcept { return tape.inputs() == 0; }
  void require_batch(const Operation& operation, const Batch& x, const LoraTape<Scalar>& tape) const {
    if (x.count == tape.rows()) return;
    throw ShapeError(operation.text(), "ids", std::to_string(tape.rows()) + " ids", std::to_string(x.count));
  }

  // How users' ids and outputs are read.

  template <class Input>
  static constexpr bool takes = EmbeddingIds<Input>;

  template <class Ids, class Body>
  void with_batch(const Operation& operation, const Ids& ids, Workspace& workspace, const Body& body) const {
    with_ids(ids, [&](const auto& view) {
      check_ids(operation, view, num_embeddings_);
      const auto numbers = workspace.row<Index>(view.size());
      for (Index i = 0; i < view.size(); ++i) numbers.data[i] = static_cast<Index>(view[i]);
      body(Batch{numbers.data, view.size()});
    });
  }
  template <class Ids, class Body>
  void with_tape_batch(const Operation& operation, const Ids& ids, const LoraTape<Scalar>& /*tape*/,
                       Workspace& workspace, const Body& body) const {
    with_batch(operation, ids, workspace, body);
  }
  template <class Ids>
  [[nodiscard]] Matrix<Scalar> make_output(const Operation& /*operation*/, const Ids& ids) const {
    return Matrix<Scalar>(static_cast<Index>(std::size(ids)), blocks_.outputs);
  }
  template <class Output>
  [[nodiscard]] MatrixView<Scalar> output(const Operation& operation, Output& y, const Batch& x) const {
    return output_rows<Scalar>(operation, "y", y, x.count, blocks_.outputs);
  }
  template <class OutputGradient, class Body>
  void with_output_gradient(const Operation& /*operation*/, const OutputGradient& dy, const LoraTape<Scalar>& /*tape*/,
                            const Body& body) const {
    with_rows<Scalar>(dy, body);
  }

  /// The ids of the last forward pass in training mode.
  class Memory {
   public:
    void reserve(const Batch& x) {
      if (ids_.size() < static_cast<std::size_t>(x.count)) ids_.resize(static_cast<std::size_t>(x.count));
    }
    void assign(const Batch& x) noexcept { std::copy_n(x.ids, x.count, ids_.data()); }
    [[nodiscard]] Batch batch(const LoraTape<Scalar>& tape) const noexcept { return {ids_.data(), tape.rows()}; }

   private:
    std::vector<Index> ids_;
  };

 private:
  Index num_embeddings_;
  Index padding_idx_;
  OutputBlocks blocks_;
};

#if defined(LORA_COMPILED)
extern template class AdapterPasses<EmbeddingKind<float>, EmbeddingPasses<float>>;
extern template class AdapterPasses<EmbeddingKind<float>, TiedProjectionPasses<float>>;
extern template class AdapterPasses<EmbeddingKind<double>, EmbeddingPasses<double>>;
extern template class AdapterPasses<EmbeddingKind<double>, TiedProjectionPasses<double>>;
#endif

}  // namespace lora
