// SPDX-License-Identifier: MIT
#include "machine.hpp"

#include <unistd.h>

#include <Eigen/Core>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <thread>

#include "lora/kernels/isa.hpp"

namespace lora::bench {
namespace {

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string name = "unknown", family, model;
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const auto colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const std::string value = line.substr(colon + 2);
    if (line.rfind("model name", 0) == 0) {
      name = value;
    } else if (line.rfind("model", 0) == 0) {
      model = value;
    } else if (line.rfind("cpu family", 0) == 0) {
      family = value;
    }
  }
  return name + (family.empty() ? "" : " (family " + family + ", model " + model + ")");
}

std::string load_average() {
  double load[1] = {};
  return getloadavg(load, 1) == 1 ? std::to_string(load[0]).substr(0, 4) : "unknown";
}

std::string cache_size(int name) {
  const long bytes = sysconf(name);
  return bytes > 0 ? std::to_string(bytes / 1024) + " KiB" : "unknown";
}

std::string date() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  return std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M UTC", std::gmtime(&now)) > 0 ? text : "unknown";
}

}  // namespace

std::vector<std::pair<std::string, std::string>> describe_machine() {
  return {
    {"date", date()}, {"cpu", cpu_name()}, {"cores", std::to_string(std::thread::hardware_concurrency())},
#if defined(_SC_LEVEL2_CACHE_SIZE)
        {"cache per core (L1, L2)", cache_size(_SC_LEVEL1_DCACHE_SIZE) + ", " + cache_size(_SC_LEVEL2_CACHE_SIZE)},
        {"L3 as the system reports it", cache_size(_SC_LEVEL3_CACHE_SIZE)},
#endif
        {"load average at the start", load_average()},
#if defined(__clang__)
        {"compiler", "clang " __clang_version__},
#else
        {"compiler", "g++ " __VERSION__},
#endif
        {"flags of ours", LORA_RATIOS_FLAGS},
        {"Eigen of ours", std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
                              std::to_string(EIGEN_MINOR_VERSION)},
    {
      "instruction set of ours", std::string(isa_name(active_isa()))
    }
  };
}

}  // namespace lora::bench
