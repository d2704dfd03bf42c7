// SPDX-License-Identifier: MIT
// The report of a comparison.
#pragma once

#include <string>

#include "common/progress.hpp"
#include "common/report.hpp"
#include "lora/kernels/isa.hpp"
#include "sentence_encoder/figures.hpp"
#include "sentence_encoder/results.hpp"
#include "sentence_encoder/results_json.hpp"
#include "sentence_encoder/traffic_table.hpp"

namespace examples::sentence_encoder {

namespace detail {

inline void add_headline(Report& report, const Results& results) {
  const StepCost& adapter = results.adapter().cost;
  const StepCost& full = results.full().cost;
  const auto share = [](double part, double whole) { return fixed_text(part / whole * 100, 1) + " %"; };
  report.tiles(
      {{fixed_text(macro_f1_over_seeds(results.adapter()).mean * 100, 1) + " %",
        "test macro-F1 with " + results.adapter().method.name() + "; full fine-tuning reaches " +
            fixed_text(macro_f1_over_seeds(results.full()).mean * 100, 1) + " %"},
       {fixed_text(results.frozen.macro_f1 * 100, 1) + " %", "with the frozen encoder and a trained head"},
       {share(static_cast<double>(adapter.trainable_parameters), static_cast<double>(full.trainable_parameters)),
        "of the parameters that full fine-tuning trains"},
       {share(adapter.median_seconds, full.median_seconds), "of its time for a training step"}});
}

[[nodiscard]] inline Table settings_table(const Results& results, const Options& options) {
  const FineTuningOptions training;
  const auto texts = [&](Index count) { return grouped_text(count); };
  return {
      {"setting", "value"},
      {{"model", "Universal Sentence Encoder Lite: two Transformer layers, 512 numbers an embedding"},
       {"data", options.data.filename().string() + ", FNV-1a 64 " + hash_text(results.table_hash) + "; " +
                    texts(results.train_texts) + " texts to train, " + texts(results.validation_texts) +
                    " to validate, " + texts(results.test_texts) + " to test, " +
                    std::to_string(results.classes.size()) + " classes"},
       {"split", "7 : 1 : 2 by a hash of the group (for Debian's packages, the source package)"},
       {"scale", results.scale.name + (results.scale.name == "full" ? "" : ": a subset; --full takes all texts")},
       {"epochs, batch", std::to_string(results.scale.epochs) + ", " + std::to_string(training.batch_size) +
                             " texts packed without padding; validated " +
                             std::to_string(training.evaluations_per_epoch) +
                             " times an epoch, the best kept, stopped after " + std::to_string(training.patience) +
                             " without a better one"},
       {"optimiser", "AdamW, weight decay " + fixed_text(training.weight_decay, 2) + ", gradients clipped to norm " +
                         fixed_text(training.max_gradient_norm, 1) + ", warm-up over " +
                         fixed_text(training.warmup_share * 100, 0) + " % of the steps, then half a cosine to 0"},
       {"start", "every method starts from the head trained on the frozen encoder, so that what it gains is its own"},
       {"adapters",
        "on every linear layer: queries, keys and values (stacked in one kernel, each with factors of its own), "
        "output projections, feed-forward, residual, final "
        "projection; alpha = 2 r (rsLoRA: 16), dropout 0.05; the head trains whole"},
       {"full fine-tuning",
        "every kernel, bias and norm, and the head; the token embeddings stay frozen in all methods"},
       {"seeds", std::to_string(results.scale.seeds) + ", from " + std::to_string(options.seed)},
       {"kernels",
        std::string(lora::isa_name(lora::active_isa())) + ", one thread per run" +
            (results.ranks > 1 ? ", " + std::to_string(results.ranks) + " ranks that share every batch" : "")},
       {"run time", duration_text(results.seconds)}},
      {},
      true};
}

[[nodiscard]] inline Table mistakes_table(const Results& results) {
  Table table{{"text", "label", "answer", "confidence"}, {}, {}, true};
  for (const auto& one : results.mistakes) {
    table.rows.push_back({one.text, one.truth, one.answer, percent_text(one.confidence)});
  }
  return table;
}

}  // namespace detail

/// @throws Interrupted, lora::IoError
[[nodiscard]] inline Report make_report(const Results& results, const Options& options) {
  Report report("Fine-tuning a pretrained Transformer",
                "A sentence encoder told to sort short texts: frozen, with adapters, and fully fine-tuned");
  detail::add_headline(report, results);
  report.paragraph(verdict(results));
  report.heading("Comparison on the test texts").table(main_table(results));
  report.paragraph(
      "Macro-F1 is the mean of the classes' F1, so that small classes count as much as large ones. A step is forward, "
      "loss, backward and optimiser on 32 texts and one thread (for the frozen encoder the head alone, on embeddings "
      "that are there already). Peak memory is that of a process that does nothing but train this way, program, "
      "vocabulary and 26 MB of weights as read included. Frozen is the kernels of the linear layers as the "
      "layers keep them. Stored is the file that holds what was trained.");
  report.heading("Macro-F1 over rank").figure(score_figure(results), "Test macro-F1 over the rank of the adapters");
  if (lora_by_format(results).size() > 1) {
    report.heading("Weights of fewer bits");
    report.paragraph("LoRA at rank " + std::to_string(rank_of_formats) +
                     " over frozen kernels of each format; adapters, biases, norms and token embeddings stay in float. "
                     "Where several weights share a scale nothing can be merged into them, and adapters are served "
                     "unmerged.");
    report.table(format_table(results));
    report.figure(format_figure(results), "Test macro-F1 over the bytes of the frozen weights");
  }
  report.heading("Learning").figure(validation_figure(results), "Validation macro-F1 at the chosen learning rate");
  report.figure(loss_figure(results), "Training loss at the chosen learning rate");
  report.heading("Cost").figure(cost_figure(results), "Cost of each method as a share of full fine-tuning's");
  report.heading("Confusion of " + results.adapter().method.name());
  report.paragraph("Rows are true classes, columns answers, on the test texts.").table(confusion_table(results));
  report.paragraph(percent_text(results.share_with_own_name) +
                   " of the test texts say the name of their own label. On the others alone the macro-F1 is " +
                   fixed_text(results.without_own_name.macro_f1 * 100, 2) +
                   " %. Such texts stay in the data: taking out "
                   "only those whose own label is named would make the name evidence against its label.");
  report.heading("Wrong with confidence").table(detail::mistakes_table(results));
  report.heading("Saving and merging");
  report.paragraph("Checked on all test texts, and where no method is named on " + results.adapter().method.name() +
                   ":");
  report.table(check_table(results));
  if (results.ranks > 1) {
    report.heading("Between the ranks").table(traffic_table(results)).paragraph(traffic_note(results));
  }
  report.heading("Settings").table(detail::settings_table(results, options));
  report.paragraph(
      "Every method was trained at each of these learning rates, and at the best one with all seeds; at another too "
      "where the seeds' mean fell behind it. The one in brackets did best on the validation texts, and is the one "
      "measured on the test texts.");
  report.table(selection_table(results));
  return report;
}

}  // namespace examples::sentence_encoder
