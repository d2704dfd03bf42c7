// SPDX-License-Identifier: MIT
// All that a training run must remember to go on with the same bits after it was killed, in one safetensors file.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "lora/core/parameter.hpp"
#include "lora/core/shape.hpp"
#include "lora/io/safetensors.hpp"
#include "lora/optim/adamw.hpp"

namespace examples::sentence_encoder {

using lora::Index;

/// A number at a step.
struct StepValue {
  Index step = 0;  ///< updates done
  double value = 0;
};

/// Where a run stands, beside its parameters and what the optimiser remembers of them. The rate of the schedule and the
/// position in the data follow from `step`.
struct TrainingState {
  Index step = 0;  ///< updates done
  std::uint64_t dropout_step = 0;
  Index best_step = -1;  ///< of the best validation so far; -1 before the first
  double best_score = 0;
  Index stale_evaluations = 0;  ///< since the best
  double window_loss = 0;       ///< sum of the losses that `losses` does not hold yet
  Index window_steps = 0;
  bool finished = false;
  std::vector<StepValue> losses;       ///< of training, mean since the entry before
  std::vector<StepValue> evaluations;  ///< score on validation rows
};

namespace detail {

using Parameters = std::span<const lora::Parameter<float>>;
using DoubleRow = lora::RowVector<double>;

// Every count is far below 2^53, so a double holds it exactly.
[[nodiscard]] inline DoubleRow encoded_state(const TrainingState& state) {
  DoubleRow row(8);
  row << static_cast<double>(state.step), static_cast<double>(state.dropout_step), static_cast<double>(state.best_step),
      state.best_score, static_cast<double>(state.stale_evaluations), state.window_loss,
      static_cast<double>(state.window_steps), state.finished ? 1.0 : 0.0;
  return row;
}

[[nodiscard]] inline lora::Matrix<double> encoded_values(const std::vector<StepValue>& values) {
  lora::Matrix<double> rows(static_cast<Index>(values.size()), 2);
  for (std::size_t i = 0; i < values.size(); ++i) {
    rows.row(static_cast<Index>(i)) << static_cast<double>(values[i].step), values[i].value;
  }
  return rows;
}

/// Reads a checkpoint's tensors, each checked to be of the shape that is needed.
class CheckpointReader {
 public:
  explicit CheckpointReader(const std::filesystem::path& path) : file_(lora::SafetensorsFile::open(path)) {}

  /// @throws lora::ConfigError when the file was written by another run
  void require_run(const std::string& run) const {
    const auto found = file_.metadata().find("run");
    const std::string written = found == file_.metadata().end() ? std::string() : found->second;
    if (written == run) return;
    throw lora::ConfigError("resume", file_.label(), "a checkpoint of the run " + lora::in_quotes(run, 600),
                            written.empty() ? "none of a training run" : "one of " + lora::in_quotes(written, 600));
  }

  /// @throws lora::FormatError
  template <class Scalar>
  [[nodiscard]] lora::Matrix<Scalar> matrix(const std::string& name, Index rows, Index cols) const {
    lora::Matrix<Scalar> values = file_.matrix<Scalar>(name);
    if ((rows >= 0 && values.rows() != rows) || values.cols() != cols) {
      throw lora::FormatError("resume", file_.label() + ", tensor " + lora::in_quotes(name),
                              lora::shape_text(rows, cols), lora::shape_text(values.rows(), values.cols()));
    }
    return values;
  }

  [[nodiscard]] std::vector<StepValue> step_values(const std::string& name) const {
    const auto rows = matrix<double>(name, -1, 2);
    std::vector<StepValue> values;
    for (Index i = 0; i < rows.rows(); ++i) values.push_back({static_cast<Index>(rows(i, 0)), rows(i, 1)});
    return values;
  }

  [[nodiscard]] TrainingState state() const {
    const auto row = matrix<double>("training.state", 1, 8);
    const auto index = [&](Index i) { return static_cast<Index>(row(0, i)); };
    TrainingState state;
    state.step = index(0);
    state.dropout_step = static_cast<std::uint64_t>(index(1));
    state.best_step = index(2);
    state.best_score = row(0, 3);
    state.stale_evaluations = index(4);
    state.window_loss = row(0, 5);
    state.window_steps = index(6);
    state.finished = row(0, 7) != 0;
    state.losses = step_values("training.losses");
    state.evaluations = step_values("training.evaluations");
    return state;
  }

 private:
  lora::SafetensorsFile file_;
};

}  // namespace detail

/// Writes the values of all parameters by their names, all or nothing. @throws lora::IoError
inline void save_values(const std::filesystem::path& path, std::span<const lora::Parameter<float>> parameters) {
  lora::SafetensorsWriter writer;
  for (const auto& parameter : parameters) writer.add_view("value." + parameter.name(), parameter.value());
  writer.write(path);
}

/// Reads what save_values wrote for the same parameters; then sets all of them, or none.
/// @throws lora::IoError, lora::FormatError
inline void load_values(const std::filesystem::path& path, std::span<const lora::Parameter<float>> parameters) {
  const detail::CheckpointReader reader(path);
  std::vector<lora::Matrix<float>> values;
  for (const auto& parameter : parameters) {
    values.push_back(reader.matrix<float>("value." + parameter.name(), parameter.rows(), parameter.cols()));
  }
  for (std::size_t i = 0; i < values.size(); ++i) parameters[i].value() = values[i];
}

/// Writes state, parameters and moments, all or nothing. `run` says which run this is: whatever decides its course.
/// The parameters have taken at least one step of AdamW, or none at all. @throws lora::IoError
inline void save_checkpoint(const std::filesystem::path& path, const std::string& run, const TrainingState& state,
                            std::span<const lora::Parameter<float>> parameters) {
  lora::SafetensorsWriter writer;
  writer.add_metadata("run", run);
  writer.add("training.state", detail::encoded_state(state));
  writer.add("training.losses", detail::encoded_values(state.losses));
  writer.add("training.evaluations", detail::encoded_values(state.evaluations));
  for (const auto& parameter : parameters) {
    const auto& moments = parameter.moments();
    const auto size = static_cast<Index>(moments.first.size());
    using Moments = Eigen::Map<const lora::RowVector<float>>;
    writer.add_view("value." + parameter.name(), parameter.value());
    writer.add_view("first." + parameter.name(), Moments(moments.first.data(), size));
    writer.add_view("second." + parameter.name(), Moments(moments.second.data(), size));
    writer.add("steps." + parameter.name(), detail::DoubleRow::Constant(1, static_cast<double>(moments.steps)));
  }
  writer.write(path);
}

/// Reads what save_checkpoint wrote for the same run and parameters; then sets all of them, or none.
/// @throws lora::ConfigError for a checkpoint of another run, lora::IoError, lora::FormatError
[[nodiscard]] inline TrainingState load_checkpoint(const std::filesystem::path& path, const std::string& run,
                                                   std::span<const lora::Parameter<float>> parameters) {
  const detail::CheckpointReader reader(path);
  reader.require_run(run);
  TrainingState state = reader.state();
  std::vector<lora::Matrix<float>> values;
  std::vector<lora::Moments<float>> moments;
  for (const auto& parameter : parameters) {
    values.push_back(reader.matrix<float>("value." + parameter.name(), parameter.rows(), parameter.cols()));
    auto& restored = moments.emplace_back();
    restored.steps = static_cast<std::int64_t>(reader.matrix<double>("steps." + parameter.name(), 1, 1)(0, 0));
    if (restored.steps == 0) continue;
    restored.owner = lora::AdamW<float>::name;
    const auto first = reader.matrix<float>("first." + parameter.name(), 1, parameter.size());
    const auto second = reader.matrix<float>("second." + parameter.name(), 1, parameter.size());
    restored.first.assign(first.data(), first.data() + first.size());
    restored.second.assign(second.data(), second.data() + second.size());
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    parameters[i].value() = values[i];
    parameters[i].moments() = std::move(moments[i]);
  }
  return state;
}

}  // namespace examples::sentence_encoder
