// SPDX-License-Identifier: MIT
// Data parallelism: gradients of several ranks become those of the whole batch, the same bits on every rank.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/finite.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/parameter.hpp"
#include "lora/mpi/communicator.hpp"
#include "lora/mpi/gradient_bucket.hpp"
#include "lora/mpi/parameters.hpp"
#include "lora/optim/moments.hpp"

namespace lora::mpi {

/// Bound on |g - g'| for one element of a gradient, g computed by one process from a batch of `samples` and g' by
/// several ranks from shards of it and GradientReducer, as a factor on the sum over the batch of the magnitudes of the
/// element's terms, S = (1/N) sum_i |t_i|, where each factor of t_i = s (dY_i . B_j) x_ik stands in absolute value:
///
///     |g - g'| <= 2 gamma(samples + inner + 8) S,    gamma(n) = n u / (1 - n u)
///
/// `inner` is the length of the longest inner product within a term: out_features for A, in_features for B. Either side
/// sums at most `samples` terms (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1: each sum
/// of n products is off by at most gamma(n) times the sum of magnitudes, in any order). The 8 are: scaling by s, by 1/N
/// and by alpha; on the ranks' side the rounding of the mean to Scalar, and the p + 3 roundings of factors, products
/// and sums in double, which for float count as one up to 2^28 ranks; for double `ranks` are added.
template <RealScalar Scalar>
[[nodiscard]] double gradient_tolerance(Index samples, Index inner, int ranks) noexcept {
  const double unit = static_cast<double>(std::numeric_limits<Scalar>::epsilon()) / 2;
  const double steps = static_cast<double>(samples + inner + 8) + (sizeof(Scalar) == 8 ? ranks : 0);
  return 2 * steps * unit / (1 - steps * unit);
}

/// Replaces the gradients of a model by their weighted mean over the ranks of a communicator:
///
///     g  <-  sum_r (w_r / W) g_r,    W = sum_r w_r
///
/// With g_r the gradient of the mean loss over a rank's samples and w_r their number, g is the gradient of the mean
/// loss over the whole batch, however unequal the shards. A rank of weight 0 takes part and adds nothing, whatever its
/// gradients hold. Every rank ends with the same bits, the same in every run: GradientBucket says how. NaN and infinity
/// pass on as in any sum. One rank keeps its gradients bit for bit.
///
///     lora::mpi::GradientReducer<float> reducer(world, model);
///     ... model.zero_grad(), forward and backward over this rank's samples
///     reducer.reduce(model, samples);
///     optimizer.step(model);
///
/// All that trains travels in one buffer, r(d + k) scalars for a layer with factors. To overlap with the backward pass,
/// call `start(layer)` as soon as a layer's gradients are complete; `reduce` then takes the rest and
/// finishes. Half of the traffic, the first of two exchanges, may so pass while earlier layers compute, with the same
/// bits. That helps where the network moves data by itself, or within the calls of start() and progress(), and where
/// the layers take longer to compute than their gradients to travel. It costs 2(p - 1) messages a call instead of a
/// step: start several small layers at once. On one machine, where the ranks' copies compete for the cores, it gains
/// nothing.
///
/// Every member is collective: each rank calls the same ones in the same order. One thread at a time. After the first
/// step, steps with the same starts allocate nothing.
template <RealScalar Scalar>
class GradientReducer {
 public:
  /// Takes the layout of `parameters`; what `reduce` gets later must be the same. @throws ConfigError on every rank
  /// when the ranks' names, shapes or scalars differ; MpiError
  GradientReducer(const Communicator& ranks, std::span<const Parameter<Scalar>> parameters)
      : state_(std::make_unique<State>(ranks)) {
    require_agreement(ranks, "parameters", layout_text(parameters));
    for (const auto& parameter : parameters) {
      const auto gradient = gradient_of(parameter);
      state_->numbers.emplace(place_of(gradient), state_->gradients.size());
      state_->gradients.push_back(gradient);
    }
    state_->taken.assign(parameters.size(), false);
  }
  /// The same for a layer (its `parameters()`) or a model (its `trainable_parameters()`).
  template <ParameterSource Source>
    requires(!ParameterRange<Source>)
  GradientReducer(const Communicator& ranks, Source& source)
      : GradientReducer(ranks, lora::detail::span_of(lora::detail::parameter_range(source))) {}
  GradientReducer(GradientReducer&&) noexcept = default;
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;
  GradientReducer& operator=(GradientReducer&&) = delete;
  /// Between start() and reduce() MPI still uses the buffers, which then stay behind: only an exception leads here, and
  /// the job ends with it.
  ~GradientReducer() {
    if (state_ && state_->used > 0) static_cast<void>(state_.release());
  }

  /// Begins to exchange the gradients of these parameters, which must be complete and stay as they are until reduce().
  /// @throws StateError for a parameter that was not among those of the constructor or is under way already: nothing is
  /// started then; MpiError
  void start(std::span<const Parameter<Scalar>> ready) {
    state_->chosen.clear();
    try {
      for (const auto& parameter : ready) {
        if (parameter.size() > 0) choose(index_to_start(parameter));
      }
    } catch (...) {
      for (const std::size_t i : state_->chosen) state_->taken[i] = false;
      throw;
    }
    send_chosen();
  }
  /// The same for what a layer or a model trains.
  template <ParameterSource Source>
    requires(!ParameterRange<Source>)
  void start(Source& source) { start(lora::detail::span_of(lora::detail::parameter_range(source))); }

  /// Lets MPI work on what start() began; never waits. For long stretches without a start().
  void progress() {
    State& state = *state_;
    for (std::size_t i = state.arrived; i < state.used; ++i) {
      const bool done = state.buckets[i]->progress();
      if (done && i == state.arrived) ++state.arrived;
    }
  }

  /// Exchanges what was not started, waits, and writes the means into the gradients of all. `weight` is this rank's
  /// number of samples, or whatever its gradient counts in the mean.
  /// @throws StateError when `parameters` are not those of the constructor, or, on every rank, when the ranks started
  /// different ones; ConfigError on every rank when a weight is negative or not finite, or all are 0; MpiError. Unless
  /// something was started, nothing has changed then and the reducer can be used again.
  void reduce(std::span<const Parameter<Scalar>> parameters, double weight) {
    require_same(parameters);
    const std::vector<double>& factors = exchange_weights(weight);
    State& state = *state_;
    state.chosen.clear();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      if (!state.taken[i] && parameters[i].size() > 0) choose(i);
    }
    send_chosen();
    for (std::size_t i = 0; i < state.used; ++i) state.buckets[i]->average(state.data, factors);
    for (std::size_t i = 0; i < state.used; ++i) state.buckets[i]->unpack(state.data);
    state.used = 0;
    state.arrived = 0;
    state.order = order_seed;
    state.taken.assign(state.taken.size(), false);
  }
  /// The same for what a layer or a model trains.
  template <ParameterSource Source>
    requires(!ParameterRange<Source>)
  void reduce(Source& source, double weight) {
    reduce(lora::detail::span_of(lora::detail::parameter_range(source)), weight);
  }

  /// Scalars that one reduce() averages.
  [[nodiscard]] Index size() const noexcept {
    Index total = 0;
    for (const auto& gradient : state_->gradients) total += static_cast<Index>(gradient.size());
    return total;
  }

 private:
  static constexpr std::uint64_t order_seed = 0xcbf29ce484222325U;

  [[nodiscard]] static std::span<Scalar> gradient_of(const Parameter<Scalar>& parameter) {
    return {parameter.gradient().data(), static_cast<std::size_t>(parameter.size())};
  }

  // Address and size of a gradient.
  using Place = std::pair<std::uintptr_t, std::size_t>;
  [[nodiscard]] static Place place_of(std::span<const Scalar> gradient) noexcept {
    return {reinterpret_cast<std::uintptr_t>(gradient.data()), gradient.size()};
  }

  // Of its own on the heap: MPI holds addresses in it, and it may have to outlive the reducer.
  struct State {
    explicit State(const Communicator& ranks)
        : data(ranks.handle(), ranks.timeout()), control(ranks.handle(), ranks.timeout()) {}

    Communicator data;     // gradients, always in the order of start()
    Communicator control;  // weights, and whether that order is the same everywhere
    std::vector<std::span<Scalar>> gradients;
    std::map<Place, std::size_t> numbers;  // the first gradient of each place
    std::vector<bool> taken;               // those that are under way
    std::vector<std::size_t> chosen;       // those of the next bucket
    std::vector<std::span<Scalar>> sent;   // the same as gradients
    std::vector<std::unique_ptr<GradientBucket<Scalar>>> buckets;
    std::size_t used = 0;
    std::size_t arrived = 0;  // the first exchange of these, in order, is over
    std::uint64_t order = order_seed;
    std::vector<std::array<std::uint64_t, 2>> tickets;
    std::vector<double> factors;
  };

  // FNV-1a over the numbers of what was started, in order.
  void note(std::size_t number) noexcept { state_->order = (state_->order ^ number) * 0x100000001b3U; }

  void choose(std::size_t i) {
    state_->chosen.push_back(i);
    state_->taken[i] = true;
  }

  void send_chosen() {
    State& state = *state_;
    if (state.chosen.empty()) return;
    state.sent.clear();
    for (const std::size_t i : state.chosen) {
      note(i);
      state.sent.push_back(state.gradients[i]);
    }
    note(state.gradients.size());  // the bucket ends here
    progress();
    if (state.used == state.buckets.size()) state.buckets.push_back(std::make_unique<GradientBucket<Scalar>>());
    state.buckets[state.used++]->send(state.data, state.sent);
  }

  [[nodiscard]] std::size_t index_to_start(const Parameter<Scalar>& parameter) const {
    constexpr std::string_view operation = "GradientReducer::start";
    const auto found = state_->numbers.find(place_of(gradient_of(parameter)));
    if (found == state_->numbers.end()) {
      throw StateError(operation, parameter.name(), "a parameter that the reducer was made with", "another one");
    }
    const std::size_t index = found->second;
    if (state_->taken[index]) {
      throw StateError(operation, parameter.name(), "a gradient that is not under way", "one that is");
    }
    return index;
  }

  [[nodiscard]] static bool same(std::span<Scalar> known, const Parameter<Scalar>& parameter) {
    const auto gradient = gradient_of(parameter);
    return known.data() == gradient.data() && known.size() == gradient.size();
  }

  void require_same(std::span<const Parameter<Scalar>> parameters) const {
    constexpr std::string_view operation = "GradientReducer::reduce";
    const auto& all = state_->gradients;
    if (parameters.size() != all.size()) {
      throw StateError(operation, "parameters",
                       "the " + std::to_string(all.size()) + " parameters that the reducer was made with",
                       std::to_string(parameters.size()));
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (!same(all[i], parameters[i])) {
        throw StateError(operation, parameters[i].name(), "the parameter that the reducer was made with",
                         "another one in its place");
      }
    }
  }

  // Every rank's w_r / W.
  const std::vector<double>& exchange_weights(double weight) {
    State& state = *state_;
    const std::array<std::uint64_t, 2> mine = {std::bit_cast<std::uint64_t>(weight), state.order};
    state.tickets.resize(static_cast<std::size_t>(state.control.size()));
    state.control.complete("MPI_Iallgather", [&](MPI_Request* request) {
      return MPI_Iallgather(mine.data(), 2, MPI_UINT64_T, state.tickets.data(), 2, MPI_UINT64_T, state.control.handle(),
                            request);
    });
    double total = 0;
    state.factors.clear();
    for (std::size_t rank = 0; rank < state.tickets.size(); ++rank) {
      const double of_rank = std::bit_cast<double>(state.tickets[rank][0]);
      require_weight(of_rank, rank);
      if (state.tickets[rank][1] != state.tickets[0][1]) {
        throw StateError("GradientReducer::reduce", "start()", "the same parameters in the same order as on rank 0",
                         "others on rank " + std::to_string(rank));
      }
      state.factors.push_back(of_rank);
      total += of_rank;
    }
    require_total(total);
    for (double& factor : state.factors) factor /= total;
    return state.factors;
  }

  static void require_weight(double weight, std::size_t rank) {
    if (is_finite(weight) && weight >= 0) return;
    throw ConfigError("GradientReducer::reduce", "weight", "a number that is not negative",
                      lora::detail::number_text(weight) + " on rank " + std::to_string(rank));
  }
  static void require_total(double total) {
    if (is_finite(total) && total > 0) return;
    throw ConfigError("GradientReducer::reduce", "weight", "a positive sum over the ranks",
                      lora::detail::number_text(total));
  }

  std::unique_ptr<State> state_;
};

}  // namespace lora::mpi
