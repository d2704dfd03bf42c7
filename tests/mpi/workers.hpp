// SPDX-License-Identifier: MIT
// Programs that end a job in every way a user's program may, by name.
#pragma once

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "lora/core/parameter.hpp"
#include "lora/mpi/mpi.hpp"

namespace lora::testing {

using Worker = std::function<int(const mpi::Communicator&)>;

/// Two tensors whose gradients a reducer exchanges.
struct TwoTensors {
  explicit TwoTensors(Index rows_of_second = 50)
      : second{.value = Matrix<float>::Ones(rows_of_second, 40), .gradient = {}, .moments = {}} {}

  Trainable<float> first{.value = Matrix<float>::Ones(3, 40), .gradient = {}, .moments = {}};
  Trainable<float> second;
  std::vector<Parameter<float>> parameters = {first.parameter("first", ParameterRole::weight),
                                              second.parameter("second", ParameterRole::weight)};
};

/// Rank 1 does as told; the others wait for it in a collective call, for ever if nobody ends them.
inline Worker rank_one(std::function<int()> act) {
  return [act = std::move(act)](const mpi::Communicator& world) {
    if (world.rank() == 1) return act();
    for (int i = 0; i < 1000; ++i) world.barrier();
    return EXIT_SUCCESS;
  };
}

inline int hang() {
  for (;;) ::pause();
}

inline int disagree_on_config(const mpi::Communicator& world) {
  const std::string config = world.rank() == 1 ? R"({"r": 8, "lora_alpha": 16})" : R"({"r": 4, "lora_alpha": 16})";
  mpi::require_agreement(world, {{"seed", "42"}, {"config", config}});
  return EXIT_SUCCESS;
}

inline int disagree_on_shapes(const mpi::Communicator& world) {
  Trainable<float> tensor;
  tensor.value = Matrix<float>::Zero(world.rank() == 1 ? 8 : 4, 5);
  const std::vector<Parameter<float>> parameters = {tensor.parameter("lora_A.weight", ParameterRole::lora_A)};
  const mpi::GradientReducer<float> reducer(world, parameters);
  return EXIT_SUCCESS;
}

inline int throw_in_flight(const mpi::Communicator& world) {
  TwoTensors tensors;
  mpi::GradientReducer<float> reducer(world, tensors.parameters);
  reducer.start(std::span<const Parameter<float>>(tensors.parameters).last(1));
  if (world.rank() == 1) throw StateError("backward", "layer", "a forward pass before", "none");
  reducer.reduce(tensors.parameters, 1);
  return EXIT_SUCCESS;
}

/// Rank 1 starts the first tensor, the others the second, of `rows` rows where the first has 3.
inline Worker start_in_another_order(Index rows) {
  return [rows](const mpi::Communicator& world) {
    TwoTensors tensors(rows);
    mpi::GradientReducer<float> reducer(world, tensors.parameters);
    const std::span<const Parameter<float>> all(tensors.parameters);
    reducer.start(world.rank() == 1 ? all.first(1) : all.last(1));
    reducer.reduce(all, 1);
    return EXIT_SUCCESS;
  };
}

/// Rank 1 sends its gradients and then hangs: the others wait for its weight.
inline int hang_in_flight(const mpi::Communicator& world) {
  TwoTensors tensors;
  mpi::GradientReducer<float> reducer(world, tensors.parameters);
  reducer.start(tensors.parameters);
  if (world.rank() == 1) hang();
  reducer.reduce(tensors.parameters, 1);
  return EXIT_SUCCESS;
}

/// Rank 1 lets the others wait, in the work and at its end.
inline int be_late(const mpi::Communicator& world) {
  constexpr std::chrono::milliseconds late(200);
  if (world.rank() == 1) std::this_thread::sleep_for(late);
  world.barrier();
  if (world.rank() == 1) std::this_thread::sleep_for(late);
  return EXIT_SUCCESS;
}

inline const std::map<std::string, Worker>& workers() {
  static const std::map<std::string, Worker> all = {
      {"succeeds", [](const mpi::Communicator&) { return EXIT_SUCCESS; }},
      {"throws",
       rank_one([]() -> int { throw ConfigError("LoraConfig", "rank", "a number that is not negative", "-1"); })},
      {"throws_a_number", rank_one([]() -> int { throw 7; })},
      {"is_killed", rank_one([] { return ::kill(::getpid(), SIGKILL); })},
      {"exits", rank_one([]() -> int { std::exit(5); })},
      {"returns_3", rank_one([] { return 3; })},
      {"all_return_3", [](const mpi::Communicator&) { return 3; }},
      {"disagrees_on_config", disagree_on_config},
      {"disagrees_on_shapes", disagree_on_shapes},
      {"throws_in_flight", throw_in_flight},
      {"starts_in_another_order", start_in_another_order(3)},
      {"starts_tensors_of_other_sizes", start_in_another_order(50)},
      {"is_late", be_late},
      {"hangs", rank_one(hang)},
      {"hangs_in_flight", hang_in_flight},
      {"hangs_at_the_end", [](const mpi::Communicator& world) { return world.rank() == 1 ? hang() : EXIT_SUCCESS; }},
  };
  return all;
}

/// Those that hang are given three seconds, in which the ranks of a busy machine reach the same call.
inline mpi::Communicator::Timeout timeout_of(const std::string& name) {
  if (name.starts_with("hangs")) return std::chrono::seconds(3);
  if (name == "is_late") return std::chrono::milliseconds::max();
  return std::nullopt;
}

/// Sessions by hand instead of run(): one within another, and one that an exception leaves.
inline int run_by_hand(bool fails, int& argc, char**& argv) {
  try {
    const mpi::Session session(argc, argv);
    const mpi::Session guest(argc, argv);
    const mpi::Communicator world;
    if (fails && world.rank() == 1) throw std::runtime_error("lost");
    world.barrier();
    std::printf("rank %d was here\n", world.rank());
    return session.leave(EXIT_SUCCESS);
  } catch (const std::exception&) {
    return EXIT_SUCCESS;
  }
}

/// A timeout that is not positive is refused before MPI begins, so that nothing is left to finalise.
inline int run_with_refused_timeout(int& argc, char**& argv) {
  const std::chrono::milliseconds zero(0);
  int refused = 0;
  try {
    const mpi::Session session(argc, argv, zero);
  } catch (const ConfigError& error) {
    std::puts(error.what());
    ++refused;
  }
  try {
    mpi::run(
        argc, argv, [](const mpi::Communicator&) { std::puts("ran"); }, zero);
  } catch (const ConfigError&) {
    ++refused;
  }
  int initialized = 0;
  MPI_Initialized(&initialized);
  return refused == 2 && initialized == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

inline int run_worker(const std::string& name, int& argc, char**& argv) {
  if (name == "by_hand") return run_by_hand(false, argc, argv);
  if (name == "by_hand_fails") return run_by_hand(true, argc, argv);
  if (name == "refused_timeout") return run_with_refused_timeout(argc, argv);
  return mpi::run(argc, argv, workers().at(name), timeout_of(name));
}

}  // namespace lora::testing
