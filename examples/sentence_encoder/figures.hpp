// SPDX-License-Identifier: MIT
// The figures of the report.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>

#include "common/plot.hpp"
#include "common/text_table.hpp"
#include "sentence_encoder/results.hpp"

namespace examples::sentence_encoder {

namespace detail {

inline constexpr std::array<std::string_view, 7> line_colours = {blue, sky, green, orange, purple, grey, vermilion};

[[nodiscard]] inline std::string_view colour_of(const Results& results, std::size_t method) {
  return results.methods[method].method.full() ? vermilion : line_colours[method % (line_colours.size() - 1)];
}

/// Solid, or dashed where the colour is there for the second time.
[[nodiscard]] inline std::string dash_of(const Results& results, std::size_t method) {
  const bool again = !results.methods[method].method.full() && method >= line_colours.size() - 1;
  return again ? "2" : "1";
}

/// A horizontal line across the plot with a label above its left end.
[[nodiscard]] inline std::string reference_line(double percent, std::string_view colour, const std::string& label) {
  const std::string y = number_text(percent);
  std::string script = "set arrow from graph 0, first " + y + " to graph 1, first " + y;
  script.append(" nohead dashtype 2 linewidth 2 linecolor rgb '").append(colour).append("'\nset label ");
  script.append(gnuplot_string(label)).append(" at graph 0.01, first ").append(y);
  return script.append(" offset 0,0.6 textcolor rgb '").append(colour).append("'\n");
}

/// The least and the greatest of some numbers.
struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};

[[nodiscard]] inline std::string range_text(double low, double high) {
  return "[" + number_text(low) + ":" + number_text(high) + "]";
}

/// One line for every method: what `points` gives of its best run, over epochs.
template <class Points>
[[nodiscard]] std::string lines_script(const Results& results, double factor, const Points& points) {
  std::string script;
  std::string plots;
  for (std::size_t m = 0; m < results.methods.size(); ++m) {
    const RunResult& run = results.methods[m].best_run();
    const std::string name = "$line" + std::to_string(m);
    DataBlock data(name);
    for (const StepValue& point : points(run)) {
      data.row({static_cast<double>(point.step) / static_cast<double>(run.steps_per_epoch), point.value * factor});
    }
    script.append(data.text());
    plots.append(plots.empty() ? "plot " : ", \\\n ").append(name);
    plots.append(" using 1:2 with linespoints pointtype 7 pointsize 0.4 linewidth 2.5 linecolor rgb '");
    plots.append(colour_of(results, m))
        .append("' dashtype ")
        .append(dash_of(results, m))
        .append(" title ")
        .append(gnuplot_string(results.methods[m].method.name()));
  }
  return script + "set xlabel 'epoch'\nset key outside right top\n" + "%SETTINGS%" + plots + "\n";
}

[[nodiscard]] inline std::string with_settings(std::string script, std::string_view settings) {
  constexpr std::string_view mark = "%SETTINGS%";
  return script.replace(script.find(mark), mark.size(), settings);
}

}  // namespace detail

/// Test macro-F1 over the rank, with the frozen encoder and full fine-tuning as lines.
[[nodiscard]] inline Figure score_figure(const Results& results) {
  DataBlock lora_points("$lora");
  DataBlock others("$others");
  for (const auto& one : results.methods) {
    if (one.method.full() || one.method.weights != WeightFormat::scalar) continue;
    const auto score = macro_f1_over_seeds(one);
    const bool plain = one.method.plain_lora();
    (plain ? lora_points : others)
        .row(plain ? fixed_text(score.mean * 100, 1) : one.method.name() + ": " + fixed_text(score.mean * 100, 1),
             {static_cast<double>(one.method.rank), score.mean * 100, score.spread * 100});
  }
  const double full = macro_f1_over_seeds(results.full()).mean * 100;
  const double frozen = results.frozen.macro_f1 * 100;
  return draw(lora_points.text() + others.text() +
                  detail::reference_line(full, vermilion, "full fine-tuning " + fixed_text(full, 1)) +
                  detail::reference_line(frozen, grey, "frozen encoder, linear head " + fixed_text(frozen, 1)) +
                  "set logscale x 2\nset xrange [0.7:48]\nset xtics (1, 2, 4, 8, 16, 32)\nset offsets 0, 0, 3, 3\n"
                  "set xlabel 'rank'\nset ylabel 'test macro-F1, %'\nset key bottom right\n"
                  "plot $lora using 2:3:4 with yerrorbars linewidth 2 pointtype 7 linecolor rgb '" +
                  std::string(blue) +
                  "' notitle, \\\n $lora using 2:3 with linespoints linewidth 3 pointtype 7 linecolor rgb '" +
                  std::string(blue) +
                  "' title 'LoRA', \\\n $lora using 2:3:1 with labels offset 0,1.1 textcolor rgb '" +
                  std::string(blue) + "' notitle" +
                  (others.text().find('"') == std::string::npos
                       ? std::string()
                       : ", \\\n $others using 2:3 with points pointtype 9 pointsize 1.4 linecolor rgb '" +
                             std::string(purple) +
                             "' notitle, \\\n $others using 2:3:1 with labels offset 0,-1.1 textcolor rgb '" +
                             std::string(purple) + "' notitle") +
                  "\n",
              800, 420);
}

/// Test macro-F1 of LoRA at one rank over the bytes of the frozen weights, a point for each format, with the frozen
/// encoder as a line.
[[nodiscard]] inline Figure format_figure(const Results& results) {
  const double frozen = results.frozen.macro_f1 * 100;
  detail::Range bytes;
  detail::Range scores;
  scores.include(frozen);
  DataBlock points("$formats");
  for (const MethodResult* one : lora_by_format(results)) {
    const double megabytes = static_cast<double>(one->cost.frozen_bytes) * 1e-6;
    const auto score = macro_f1_over_seeds(*one);
    bytes.include(megabytes);
    scores.include((score.mean - score.spread) * 100);
    scores.include((score.mean + score.spread) * 100);
    points.row(std::string(name_of(one->method.weights)) + " " + fixed_text(score.mean * 100, 1),
               {megabytes, score.mean * 100, score.spread * 100});
  }
  const std::string colour(blue);
  return draw(points.text() +
                  detail::reference_line(frozen, grey, "frozen encoder, linear head " + fixed_text(frozen, 1)) +
                  "set logscale x 2\nset xrange " + detail::range_text(bytes.low / 2, bytes.high * 2) +
                  "\nset yrange " + detail::range_text(scores.low - 1, scores.high + 2) +
                  "\nset xlabel 'frozen weights, MB'\nset ylabel 'test macro-F1, %'\n"
                  "plot $formats using 2:3:4 with yerrorbars linewidth 2 pointtype 7 linecolor rgb '" +
                  colour + "' notitle, \\\n $formats using 2:3:1 with labels offset 0,1.1 textcolor rgb '" + colour +
                  "' notitle\n",
              800, 420);
}

[[nodiscard]] inline Figure loss_figure(const Results& results) {
  return draw(
      detail::with_settings(detail::lines_script(results, 1, [](const RunResult& run) { return run.state.losses; }),
                            "set ylabel 'training loss (cross-entropy)'\nset yrange [0:*]\n"),
      860, 400);
}

[[nodiscard]] inline Figure validation_figure(const Results& results) {
  return draw(detail::with_settings(
                  detail::lines_script(results, 100, [](const RunResult& run) { return run.state.evaluations; }),
                  "set ylabel 'validation macro-F1, %'\n"),
              860, 400);
}

/// Trainable parameters, time of a step and peak memory, as shares of full fine-tuning's.
[[nodiscard]] inline Figure cost_figure(const Results& results) {
  DataBlock data("$cost");
  const StepCost& full = results.full().cost;
  for (const auto& one : results.methods) {
    data.row(
        one.method.name(),
        {100.0 * static_cast<double>(one.cost.trainable_parameters) / static_cast<double>(full.trainable_parameters),
         100.0 * one.cost.median_seconds / full.median_seconds,
         100.0 * static_cast<double>(one.cost.peak_bytes) / static_cast<double>(full.peak_bytes)});
  }
  return draw(data.text() +
                  "set style data histograms\nset style histogram clustered gap 1.5\nset style fill solid 1 noborder\n"
                  "set ylabel '% of full fine-tuning'\nset yrange [0:*]\nset key outside right top\n"
                  "set xtics rotate by -20\n"
                  "plot $cost using 2:xtic(1) linecolor rgb '" +
                  std::string(blue) + "' title 'trainable parameters', \\\n $cost using 3 linecolor rgb '" +
                  std::string(orange) + "' title 'time of a step', \\\n $cost using 4 linecolor rgb '" +
                  std::string(green) + "' title 'peak memory'\n",
              860, 400);
}

}  // namespace examples::sentence_encoder
