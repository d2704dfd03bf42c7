// SPDX-License-Identifier: MIT
// build/bin/ratios: how fast the library is, as ratios with their spread, against the machine and against its peers.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "cases/cases.hpp"
#include "executors.hpp"
#include "machine.hpp"
#include "report/report.hpp"

namespace {

using namespace lora::bench;

struct CommandLine {
  Options options;
  std::size_t cold_mebibytes = 0;
  std::string json;
  std::string plots;
  std::string peers;
};

// The OpenMP runtime reads its environment before main does: the program starts itself anew, once, so that a thread
// that OpenMP has no work for sleeps instead of taking a core from the next contender.
void let_openmp_threads_sleep(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  setenv("OMP_WAIT_POLICY", "passive", 1);
  execv("/proc/self/exe", argv);  // returns only where there is no such file; then all goes on as it was
}

// One thread for every peer, and no hand on the kernels that a peer chooses. Peers read this when they are loaded.
void fix_environment() {
  for (const char* variable : {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"}) unsetenv(variable);
  for (const char* variable : {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}) setenv(variable, "1", 1);
  use_one_openmp_thread();
}

std::string peers_beside_program() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  return (error ? std::filesystem::path("build/bin") : program.parent_path()) / "ratios_peers";
}

void apply_quick(CommandLine& line) {
  Options& options = line.options;
  if (line.cold_mebibytes == 0) line.cold_mebibytes = options.quick ? 512 : 1024;
  options.cold_bytes = line.cold_mebibytes << 20;
  if (!options.quick) return;
  options.timing.minimum_repetitions = 5;
  options.timing.budget_seconds = 0.25;
}

void measure(Session& session, bool with_sweeps) {
  measure_counts(session);
  measure_base(session);
  measure_adapter(session);
  measure_dropout(session);
  measure_dora(session);
  measure_merged(session);
  measure_torch(session);
  measure_full_update(session);
  measure_merging(session);
  measure_decoding(session);
  measure_quantized(session);
  measure_quantized_peer(session);
  measure_threads(session);
  if (!with_sweeps) return;
  sweep_batch_sizes(session);
  sweep_ranks(session);
}

int run(CommandLine line) {
  apply_quick(line);
  fix_environment();
  auto machine = describe_machine();
  Session session(line.options, line.options.list ? std::vector<std::unique_ptr<Peer>>{} : load_peers(line.peers));
  measure(session, !line.plots.empty() && !line.options.list);
  if (line.options.list) {
    for (const auto& name : session.listed()) std::cout << name << '\n';
    return EXIT_SUCCESS;
  }
  if (session.goals().empty() && session.sweep().empty()) throw std::runtime_error("no case matches (see --list)");
  machine.emplace_back("clock", line.options.timing.processor_time ? "processor time of the thread" : "wall");
  print_tables(std::cout, session, machine);
  if (!line.json.empty()) write_json(line.json, session, machine);
  if (!line.plots.empty()) write_plots(line.plots, session);
  print_goals(std::cout, session.goals());
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  let_openmp_threads_sleep(argv);
  CommandLine line;
  line.peers = peers_beside_program();
  CLI::App app{
      "Measures the library against the machine's roofs and against its peers, interleaved in one process, and prints\n"
      "one line for each goal and case:\n"
      "  goal <id> <case> <value> <=|>= <target> ok|short|absent:<peers>\n"
      "Goals that are short do not change the exit code."};
  app.add_flag("--quick", line.options.quick, "at least 5 repetitions instead of 15, without the largest cases");
  app.add_flag("--list", line.options.list, "name goals and cases, and measure nothing");
  app.add_option("--goal", line.options.goals, "only these goals, separated by commas")->delimiter(',');
  app.add_option("--case", line.options.case_filter, "only cases whose name has a match of this regular expression");
  app.add_option("--json", line.json, "write all results to this file");
  app.add_option("--plots", line.plots, "measure the plots' points too, and draw them into this folder");
  app.add_option("--cold-mib", line.cold_mebibytes, "size of the array that is read to find the bandwidth of memory")
      ->check(CLI::Range(std::size_t{1}, std::size_t{1} << 20));
  app.add_flag("--processor-time", line.options.timing.processor_time,
               "time on the processor instead of time on the wall, except with several threads: for a busy machine");
  app.add_option("--peers", line.peers, "folder with the peers' libraries")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    return run(line);
  } catch (const std::exception& error) {
    std::cerr << "ratios: " << error.what() << '\n';
    return EXIT_FAILURE;
  }
}
