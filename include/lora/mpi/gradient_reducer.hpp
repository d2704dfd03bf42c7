// Data parallelism: turns the gradients of several ranks into those of the whole batch, with the same bits on every
// rank.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/number_text.hpp"
#include "lora/core/parameter.hpp"
#include "lora/mpi/communicator.hpp"
#include "lora/mpi/gradient_bucket.hpp"
#include "lora/mpi/parameters.hpp"

namespace lora::mpi {

/// Bound on |g - g'| for one element of a gradient. One process computes g from a batch of `samples`; several ranks
/// compute g' from shards of it with GradientReducer. The bound is a factor on the sum over the batch of the magnitudes
/// of the element's terms, S = (1/N) sum_i |t_i|, with each factor of t_i = s (dY_i . B_j) x_ik in absolute value:
///
///     |g - g'| <= 2 gamma(samples + inner + 8) S,    gamma(n) = n u / (1 - n u)
///
/// `inner` is the length of the longest inner product within a term: out_features for A, in_features for B. Both sides
/// sum at most `samples` terms (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1: each sum
/// of n products is off by at most gamma(n) times the sum of magnitudes, in any order). The 8 covers scaling by s, by
/// 1/N and by alpha; on the ranks' side, the rounding of the mean to Scalar and the p + 3 roundings of factors,
/// products and sums in double, which for float amount to at most one up to 2^28 ranks; for double, `ranks` is added.
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
/// gradients hold. Every rank ends with the same bits in every run; GradientBucket explains how. NaN and infinity
/// propagate as in any sum. A single rank keeps its gradients bit for bit.
///
///     lora::mpi::GradientReducer<float> reducer(world, model.trainable_parameters());
///     ... model.zero_grad(), forward and backward over this rank's samples
///     reducer.reduce(model.trainable_parameters(), samples);
///     optimizer.step(model.trainable_parameters());
///
/// All gradients travel in one buffer, r(d + k) scalars for a layer with factors. To overlap with the backward pass,
/// call `start(layer.parameters())` as soon as a layer's gradients are complete; `reduce` then sends the rest and
/// finishes. Half of the traffic, the first of two exchanges, can then overlap with the computation of earlier layers,
/// with the same bits. This helps if the network moves data by itself, or within calls of start() and progress(), and
/// if the layers take longer to compute than their gradients take to travel. It costs 2(p - 1) messages per call
/// instead of per step, so start several small layers at once. On one machine, where the ranks' copies compete for the
/// cores, it gains nothing.
///
/// Every member is collective: each rank calls the same ones in the same order. One thread at a time. After the first
/// step, steps with the same starts allocate nothing.
template <RealScalar Scalar>
class GradientReducer {
 public:
  /// Takes the layout of `parameters`; pass the same ones to `reduce`. @throws ConfigError on every rank when the
  /// ranks' names, shapes or scalars differ; MpiError
  GradientReducer(const Communicator& ranks, std::span<const Parameter<Scalar>> parameters)
      : state_(std::make_unique<State>(ranks)) {
    require_agreement(ranks, "parameters", layout_text(parameters));
    for (const auto& parameter : parameters) {
      state_->gradients.push_back(gradient_of(parameter));
    }
    state_->taken.assign(parameters.size(), false);
  }
  GradientReducer(GradientReducer&&) noexcept = default;
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;
  GradientReducer& operator=(GradientReducer&&) = delete;
  /// Between start() and reduce() MPI still uses the buffers, so they are leaked: only an exception leads here, and it
  /// ends the job.
  ~GradientReducer() {
    if (state_ && state_->used > 0) static_cast<void>(state_.release());
  }

  /// Begins to exchange the gradients of these parameters, which must be complete and must not change until reduce().
  /// @throws StateError for a parameter that was not among those of the constructor or is under way already: this step
  /// cannot be finished then; MpiError
  void start(std::span<const Parameter<Scalar>> ready) {
    state_->chosen.clear();
    for (const auto& parameter : ready) {
      if (parameter.size() > 0) choose(index_to_start(parameter));
    }
    send_chosen();
  }

  /// Lets MPI work on what start() began; never waits. Use it in long stretches without a start().
  void progress() {
    for (std::size_t i = 0; i < state_->used; ++i) state_->buckets[i]->progress();
  }

  /// Exchanges what was not started, waits, and writes the means into all gradients. `weight` is this rank's number of
  /// samples, or any other weight of its gradient in the mean.
  /// @throws StateError when `parameters` are not those of the constructor, or, on every rank, when the ranks started
  /// different ones; ConfigError on every rank when a weight is negative or not finite, or all are 0; MpiError. Unless
  /// start() was called in this step, nothing changes then and the reducer can be used again.
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
    for (std::size_t i = 0; i < state.used; ++i) state.buckets[i]->unpack();
    state.used = 0;
    state.order = order_seed;
    state.taken.assign(state.taken.size(), false);
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

  // On the heap, because MPI holds addresses in it, and it may have to outlive the reducer.
  struct State {
    explicit State(const Communicator& ranks) : data(ranks.handle()), control(ranks.handle()) {}

    Communicator data;     // for gradients, always in the order of start()
    Communicator control;  // for weights, and to check that this order is the same on all ranks
    std::vector<std::span<Scalar>> gradients;
    std::vector<bool> taken;                // parameters that are under way
    std::vector<std::span<Scalar>> chosen;  // gradients of the next bucket
    std::vector<std::unique_ptr<GradientBucket<Scalar>>> buckets;
    std::size_t used = 0;
    std::uint64_t order = order_seed;
    std::vector<std::array<std::uint64_t, 2>> tickets;
    std::vector<double> factors;
  };

  // FNV-1a over the numbers of what was started, in order.
  void note(std::size_t number) noexcept { state_->order = (state_->order ^ number) * 0x100000001b3U; }

  void choose(std::size_t i) {
    state_->taken[i] = true;
    state_->chosen.push_back(state_->gradients[i]);
    note(i);
  }

  void send_chosen() {
    State& state = *state_;
    if (state.chosen.empty()) return;
    note(state.gradients.size());  // the bucket ends here
    progress();
    if (state.used == state.buckets.size()) state.buckets.push_back(std::make_unique<GradientBucket<Scalar>>());
    state.buckets[state.used++]->send(state.data, state.chosen);
  }

  [[nodiscard]] std::size_t index_to_start(const Parameter<Scalar>& parameter) const {
    constexpr std::string_view operation = "GradientReducer::start";
    const auto& all = state_->gradients;
    const auto found = std::ranges::find_if(all, [&](const auto& known) { return same(known, parameter); });
    if (found == all.end()) {
      throw StateError(operation, parameter.name(), "a parameter that the reducer was made with", "another one");
    }
    const auto index = static_cast<std::size_t>(found - all.begin());
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
    detail::check("MPI_Allgather", MPI_Allgather(mine.data(), 2, MPI_UINT64_T, state.tickets.data(), 2, MPI_UINT64_T,
                                                 state.control.handle()));
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
    if (std::isfinite(weight) && weight >= 0) return;
    throw ConfigError("GradientReducer::reduce", "weight", "a number that is not negative",
                      lora::detail::number_text(weight) + " on rank " + std::to_string(rank));
  }
  static void require_total(double total) {
    if (std::isfinite(total) && total > 0) return;
    throw ConfigError("GradientReducer::reduce", "weight", "a positive sum over the ranks",
                      lora::detail::number_text(total));
  }

  std::unique_ptr<State> state_;
};

}  // namespace lora::mpi
