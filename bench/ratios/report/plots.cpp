// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <sstream>
#include <stdexcept>

#include "report/report.hpp"

namespace lora::bench {
namespace {

std::vector<std::string> distinct(const std::vector<SweepPoint>& points, std::string SweepPoint::*member) {
  std::vector<std::string> names;
  for (const auto& point : points) {
    if (std::find(names.begin(), names.end(), point.*member) == names.end()) names.push_back(point.*member);
  }
  return names;
}

std::string quoted(const std::string& text) {
  std::string result = "'";
  for (const char c : text) result += c == '\'' ? std::string("''") : std::string(1, c);
  return result + "'";
}

// One plot: the data as inline blocks, then the commands.
std::string script(const std::string& plot, const std::vector<SweepPoint>& points, const std::string& file) {
  const bool over_n = plot.rfind("time_over_n", 0) == 0;
  const std::string size = plot.substr(plot.rfind('_') + 1);
  const auto lines = distinct(points, &SweepPoint::line);
  std::ostringstream text;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    text << "$line" << i << " << EOD\n";
    for (const auto& point : points) {
      if (point.line == lines[i]) text << point.x << ' ' << point.y << '\n';
    }
    text << "EOD\n";
  }
  text << "set terminal svg size 800,560 dynamic background rgb 'white' font 'sans-serif,13'\n"
       << "set output " << quoted(file) << "\nset grid\nset key outside right top\nset logscale x 2\n"
       << (over_n ? "set logscale y\nset format y '%.0s %cs'\nset xlabel 'N (rows of X)'\nset ylabel 'time of one "
                    "product'\n"
                  : "set xlabel 'r (rank)'\nset ylabel 'time / time of the base product'\n")
       << "set title "
       << quoted((over_n ? "Y = X W^T, d = k = " : "LoRA against its own base product, N = 256, d = k = ") + size)
       << " noenhanced\nplot ";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const bool bound = lines[i] == "roofline" || lines[i].rfind("goal", 0) == 0;
    text << (i > 0 ? ", " : "") << "$line" << i << " using 1:2 with "
         << (bound ? "lines dashtype 2 lw 2" : "linespoints") << " title " << quoted(lines[i]) << " noenhanced";
  }
  text << '\n';
  return text.str();
}

void run_gnuplot(const std::string& commands) {
  std::FILE* const gnuplot = popen("gnuplot", "w");
  if (gnuplot == nullptr) throw std::runtime_error("cannot start gnuplot");
  std::fwrite(commands.data(), 1, commands.size(), gnuplot);
  if (pclose(gnuplot) != 0) throw std::runtime_error("gnuplot failed (Debian: gnuplot-nox)");
}

}  // namespace

void write_plots(const std::string& folder, const Session& session) {
  std::filesystem::create_directories(folder);
  for (const auto& plot : distinct(session.sweep(), &SweepPoint::plot)) {
    std::vector<SweepPoint> points;
    for (const auto& point : session.sweep()) {
      if (point.plot == plot) points.push_back(point);
    }
    run_gnuplot(script(plot, points, (std::filesystem::path(folder) / (plot + ".svg")).string()));
  }
}

}  // namespace lora::bench
