// SPDX-License-Identifier: MIT
// The figures of the report.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>

#include "common/plot.hpp"
#include "common/text_table.hpp"
#include "fashion_mnist/results.hpp"

namespace examples {

namespace detail {

inline constexpr std::array<std::string_view, methods.size()> method_colours = {sky,  green,  orange,
                                                                                blue, purple, vermilion};

/// A horizontal line across the plot with a label above its right end.
[[nodiscard]] inline std::string reference_line(double percent, std::string_view colour, const std::string& label) {
  const std::string y = number_text(percent);
  return "set arrow from graph 0, first " + y + " to graph 1, first " + y +
         " nohead dashtype 2 linewidth 2 linecolor rgb '" + std::string(colour) + "'\n" + "set label " +
         gnuplot_string(label) + " at graph 0.01, first " + y + " offset 0,0.6 textcolor rgb '" + std::string(colour) +
         "'\n";
}

}  // namespace detail

[[nodiscard]] inline Figure accuracy_figure(const Results& results) {
  DataBlock data("$accuracy");
  for (std::size_t m = 0; m < methods.size(); ++m) {
    if (methods[m].full()) continue;
    const double percent = results.test_accuracies[m] * 100;
    data.row(fixed_text(percent, 1), {static_cast<double>(methods[m].rank), percent});
  }
  const std::string full_label = "full fine-tuning " + fixed_text(results.full_accuracy() * 100, 1);
  const std::string frozen_label = "frozen " + fixed_text(results.frozen_accuracy * 100, 1);
  return draw(data.text() + detail::reference_line(results.full_accuracy() * 100, vermilion, full_label) +
              detail::reference_line(results.frozen_accuracy * 100, grey, frozen_label) +
              "set logscale x 2\nset xrange [0.8:20]\nset xtics (1, 2, 4, 8, 16)\nset yrange [0:100]\n"
              "set xlabel 'rank'\nset ylabel 'test accuracy, %'\nset key center right\n"
              "plot $accuracy using 2:3 with linespoints linewidth 3 pointtype 7 pointsize 0.9 linecolor rgb '" +
              std::string(blue) +
              "' title 'LoRA', \\\n"
              " $accuracy using 2:3:1 with labels offset 0,-1.1 textcolor rgb '" +
              std::string(blue) + "' notitle\n");
}

[[nodiscard]] inline Figure loss_figure(const Results& results) {
  std::string script;
  std::string plots;
  for (std::size_t m = 0; m < methods.size(); ++m) {
    const std::string name = "$loss" + std::to_string(m);
    DataBlock data(name);
    for (const auto& point : results.candidates[m].best_run().curve) data.row({point.epoch, point.loss});
    script.append(data.text());
    plots.append(plots.empty() ? "plot " : ", \\\n ").append(name);
    plots.append(" using 1:2 with lines linewidth 2.5 linecolor rgb '").append(detail::method_colours.at(m));
    plots.append("' title ").append(gnuplot_string(methods[m].name()));
  }
  return draw(script +
              "set logscale y\nset xlabel 'epoch'\nset ylabel 'training loss (cross-entropy)'\n"
              "set yrange [*:*]\nset ytics add (0.2, 0.3, 0.5, 1, 2, 3, 5)\nset format y '%g'\nset key top right\n" +
              plots + "\n");
}

[[nodiscard]] inline Figure memory_figure(const Results& results) {
  DataBlock data("$memory");
  const auto add = [&](const std::string& name, const MemoryUse& use) {
    const auto megabytes = [](std::size_t bytes) { return static_cast<double>(bytes) * 1e-6; };
    data.row(name, {megabytes(use.weights), megabytes(use.gradients), megabytes(use.optimizer_state),
                    megabytes(use.activations), megabytes(use.scratch)});
  };
  add("frozen", results.frozen_memory);
  for (std::size_t m = 0; m < methods.size(); ++m) {
    add(methods[m].full() ? "full" : "r = " + std::to_string(methods[m].rank), results.costs[m].memory);
  }
  constexpr std::array<std::string_view, 5> parts = {"weights", "gradients", "optimiser state", "activations",
                                                     "scratch of the kernels"};
  constexpr std::array<std::string_view, 5> colours = {blue, orange, vermilion, green, "#C4C9D1"};
  std::string plots;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    plots.append(plots.empty() ? "plot " : ", \\\n ").append("$memory using ").append(std::to_string(p + 2));
    plots.append(p == 0 ? ":xtic(1)" : "").append(" linecolor rgb '").append(colours.at(p)).append("' title ");
    plots.append(gnuplot_string(parts.at(p)));
  }
  return draw(
      data.text() +
          "set style data histograms\nset style histogram rowstacked\nset style fill solid 1 noborder\n"
          "set boxwidth 0.62\nset ylabel 'MB'\nset yrange [0:*]\nset key outside right top reverse Left invert\n" +
          plots + "\n",
      860, 380);
}

}  // namespace examples
