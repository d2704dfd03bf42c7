// SPDX-License-Identifier: MIT
// What a run prints and writes.
#pragma once

#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "session.hpp"

namespace lora::bench {

using Description = std::vector<std::pair<std::string, std::string>>;

/// Machine, peers, and one row for each contender of each comparison.
void print_tables(std::ostream& out, const Session& session, const Description& machine);

/// `goal <id> <case> <value> <=|>= <target> ok|short|absent:<peers>`, one line for each goal and case.
void print_goals(std::ostream& out, const std::vector<Goal>& goals);

/// @throws std::runtime_error if the file cannot be written
void write_json(const std::string& path, const Session& session, const Description& machine);

/// Draws the sweeps as SVG files into the folder, with gnuplot. @throws std::runtime_error
void write_plots(const std::string& folder, const Session& session);

}  // namespace lora::bench
