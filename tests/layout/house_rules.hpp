// SPDX-License-Identifier: MIT
// The rules of the source tree that a compiler does not enforce, each as a function from a tree to its violations.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace lora::testing {

namespace fs = std::filesystem;

using Violations = std::vector<std::string>;

/// The folders of include/lora from the lowest to the highest. A header includes only its own folder and those before.
inline constexpr std::array<std::string_view, 10> folder_order = {"core",   "format", "kernels", "weight", "adapter",
                                                                  "layers", "model",  "optim",   "io",     "mpi"};

/// A header of the library, or a piece of one that is included several times (.inc): its path below include/,
/// "lora/core/view.hpp", and its text.
struct Header {
  std::string path;
  std::string text;

  /// "core", or empty for the umbrella headers.
  [[nodiscard]] std::string folder() const {
    const auto first = path.find('/');
    const auto last = path.rfind('/');
    return first == last ? std::string() : path.substr(first + 1, path.find('/', first + 1) - first - 1);
  }
};

inline std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

/// All headers below root/include, in the order of their paths.
inline std::vector<Header> headers_of(const fs::path& root) {
  std::vector<Header> headers;
  for (const auto& entry : fs::recursive_directory_iterator(root / "include")) {
    if (!entry.is_regular_file()) continue;
    headers.push_back({fs::relative(entry.path(), root / "include").generic_string(), read_text(entry.path())});
  }
  std::sort(headers.begin(), headers.end(), [](const Header& a, const Header& b) { return a.path < b.path; });
  return headers;
}

/// What the header names in #include lines, without the brackets or quotes.
inline std::vector<std::string> includes_of(const Header& header) {
  static const std::regex line(R"(^[ \t]*#[ \t]*include[ \t]*[<"]([^>"]+)[>"])", std::regex::multiline);
  std::vector<std::string> names;
  for (std::sregex_iterator match(header.text.begin(), header.text.end(), line), end; match != end; ++match) {
    names.push_back((*match)[1]);
  }
  return names;
}

/// Position in folder_order; its size for a folder that is not in it.
inline std::size_t level_of(std::string_view folder) {
  return static_cast<std::size_t>(std::find(folder_order.begin(), folder_order.end(), folder) - folder_order.begin());
}

/// Headers stand in known folders and include only downwards. Only the umbrellas may include umbrellas.
inline Violations upward_includes(const std::vector<Header>& headers) {
  Violations found;
  for (const auto& header : headers) {
    const bool umbrella = header.folder().empty();
    const std::size_t level = umbrella ? folder_order.size() : level_of(header.folder());
    if (!umbrella && level == folder_order.size())
      found.push_back(header.path + ": its folder has no place in the order");
    for (const auto& name : includes_of(header)) {
      if (name.rfind("lora/", 0) != 0) continue;
      const std::string folder = Header{name, {}}.folder();
      if (!umbrella && (folder.empty() || level_of(folder) > level)) {
        found.push_back(header.path + ": includes " + name + ", which stands above it");
      }
    }
  }
  return found;
}

/// No header includes itself by way of others.
inline Violations include_cycles(const std::vector<Header>& headers) {
  std::map<std::string, std::vector<std::string>> edges;
  for (const auto& header : headers) edges[header.path] = includes_of(header);

  Violations found;
  for (const auto& header : headers) {
    std::set<std::string> reached;
    std::vector<std::string> open = edges[header.path];
    while (!open.empty()) {
      const std::string name = open.back();
      open.pop_back();
      if (!edges.contains(name) || !reached.insert(name).second) continue;
      open.insert(open.end(), edges[name].begin(), edges[name].end());
    }
    if (reached.contains(header.path)) found.push_back(header.path + ": includes itself");
  }
  return found;
}

/// Every quoted include of the library names a header that exists.
inline Violations missing_includes(const std::vector<Header>& headers) {
  std::set<std::string> known;
  for (const auto& header : headers) known.insert(header.path);
  Violations found;
  for (const auto& header : headers) {
    for (const auto& name : includes_of(header)) {
      if (name.rfind("lora/", 0) == 0 && !known.contains(name)) {
        found.push_back(header.path + ": includes " + name + ", which does not exist");
      }
    }
  }
  return found;
}

/// Beside Eigen and the standard library, io/ alone includes a JSON parser and mpi/ alone includes MPI.
inline Violations foreign_includes(const std::vector<Header>& headers) {
  static const std::regex foreign("^(nlohmann/|mpi\\.h|gtest/|benchmark/|CLI/|zlib\\.h|rapidcheck)");
  Violations found;
  for (const auto& header : headers) {
    for (const auto& name : includes_of(header)) {
      if (!std::regex_search(name, foreign)) continue;
      const bool allowed =
          (name.rfind("nlohmann/", 0) == 0 && header.folder() == "io") || (name == "mpi.h" && header.folder() == "mpi");
      if (!allowed) found.push_back(header.path + ": includes " + name);
    }
  }
  return found;
}

/// No conditional depends on NDEBUG, on a BLAS behind Eigen or on the instruction set of the command line: two
/// translation units compiled with different flags would disagree about one inline function. SSE2 is part of x86-64.
inline Violations flag_dependence(const std::vector<Header>& headers) {
  static const std::regex conditional(
      R"(^[ \t]*#[ \t]*(if|ifdef|ifndef|elif)\b.*\b(NDEBUG|EIGEN_USE_\w+|EIGEN_VECTORIZE\w*|__(AVX|SSE3|SSE4|SSSE3|FMA|F16C|BMI)\w*)\b)",
      std::regex::multiline);
  Violations found;
  for (const auto& header : headers) {
    for (std::sregex_iterator match(header.text.begin(), header.text.end(), conditional), end; match != end; ++match) {
      found.push_back(header.path + ": a conditional on " + (*match)[2].str());
    }
  }
  return found;
}

/// Whether a number is finite is asked of its bits (core/finite.hpp): with -ffast-math a compiler need not answer
/// truly.
inline Violations questions_of_fast_math(const std::vector<Header>& headers) {
  static const std::regex question(R"(\b(isfinite|isnan|isinf|isnormal|fpclassify)\()");
  Violations found;
  for (const auto& header : headers) {
    for (std::sregex_iterator match(header.text.begin(), header.text.end(), question), end; match != end; ++match) {
      found.push_back(header.path + ": " + (*match)[1].str());
    }
  }
  return found;
}

/// A wait or a limit must not depend on a clock that someone sets: time comes from steady_clock alone.
inline Violations clocks_that_jump(const std::vector<Header>& headers) {
  static const std::regex clock(
      R"(\b(system_clock|high_resolution_clock|file_clock|gettimeofday|clock_gettime|timespec_get|std::time|time\((nullptr|NULL|0)\)))");
  Violations found;
  for (const auto& header : headers) {
    for (std::sregex_iterator match(header.text.begin(), header.text.end(), clock), end; match != end; ++match) {
      found.push_back(header.path + ": " + (*match)[1].str());
    }
  }
  return found;
}

/// Nothing but headers and their pieces below include/, all of them in the folder lora.
inline Violations strangers_among_headers(const std::vector<Header>& headers) {
  Violations found;
  for (const auto& header : headers) {
    const auto extension = fs::path(header.path).extension();
    if (header.path.rfind("lora/", 0) != 0 || (extension != ".hpp" && extension != ".inc")) {
      found.push_back(header.path + ": not a header of the library");
    }
  }
  return found;
}

/// Declarations of explicit instantiations in a text, `extern template` or `template`, each as "class X<float>": what
/// stands between that keyword and the semicolon, with single blanks.
inline std::set<std::string> instantiations_in(const std::string& text, bool external) {
  static const std::regex statement(R"((?:^|\n)(extern )?template ([^<;][^;{]*);)");
  static const std::regex blanks(R"(\s+)");
  std::set<std::string> found;
  for (std::sregex_iterator match(text.begin(), text.end(), statement), end; match != end; ++match) {
    if ((*match)[1].matched == external) found.insert(std::regex_replace((*match)[2].str(), blanks, " "));
  }
  return found;
}

/// All files with one of the extensions below a folder; none when there is no such folder.
inline std::vector<fs::path> files_below(const fs::path& folder, const std::set<std::string>& extensions) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && extensions.contains(entry.path().extension().string()))
      files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

/// What a header declares `extern template` is instantiated in exactly one source of src/, and nothing else is.
inline Violations uncompiled_templates(const fs::path& root, const std::vector<Header>& headers) {
  std::map<std::string, int> sources;
  for (const auto& path : files_below(root / "src", {".cpp"})) {
    for (const auto& name : instantiations_in(read_text(path), false)) ++sources[name];
  }
  Violations found;
  for (const auto& header : headers) {
    for (const auto& name : instantiations_in(header.text, true)) {
      if (sources[name] == 0) found.push_back(header.path + ": nothing in src/ instantiates " + name);
      if (sources[name] > 1) found.push_back(header.path + ": several sources instantiate " + name);
      sources[name] = -1;
    }
  }
  for (const auto& [name, count] : sources) {
    if (count > 0 && name.find("compiled_for_this_eigen") == std::string::npos) {
      found.push_back("src/: no header declares " + name + " with extern template");
    }
  }
  return found;
}

/// No file of the project names a folder of the machine that it was written on.
inline Violations paths_of_a_machine(const fs::path& root) {
  static const std::regex path(R"((^|[\s"'=(`])/(home|root|work|Users|mnt)/\w[^\s"'`)]*)");
  static const std::set<std::string> extensions = {".hpp", ".inc", ".cpp",  ".cmake", ".in",  ".txt",
                                                   ".sh",  ".md",  ".json", ".yml",   ".toml"};
  Violations found;
  for (const char* folder : {"include", "src", "cmake", "bench", "examples", "docs", "tests"}) {
    for (const auto& file : files_below(root / folder, extensions)) {
      const std::string name = fs::relative(file, root).generic_string();
      if (name.starts_with("tests/golden/") || name.starts_with("tests/layout/")) continue;
      const std::string text = read_text(file);
      std::smatch match;
      if (std::regex_search(text, match, path)) found.push_back(name + ": names " + match.str());
    }
  }
  return found;
}

/// Sources that do not begin with their licence.
inline Violations sources_without_licence(const fs::path& root) {
  Violations found;
  for (const char* folder : {"include", "src", "bench", "examples", "tests"}) {
    for (const auto& file : files_below(root / folder, {".hpp", ".inc", ".cpp"})) {
      if (read_text(file).starts_with("// SPDX-License-Identifier: MIT\n")) continue;
      found.push_back(fs::relative(file, root).generic_string());
    }
  }
  return found;
}

}  // namespace lora::testing
