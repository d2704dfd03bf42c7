// SPDX-License-Identifier: MIT
// The weight and bias of NeuralAmpModelerCore's LSTM cells, where they lie. The class keeps both private and offers no
// way to change them after loading. Names in an explicit instantiation are not subject to access checks
// ([temp.spec.general]), so this needs no change to the class, and breaks loudly, at compile time, if they are renamed.
#pragma once

#include <Eigen/Dense>

#include "NAM/lstm.h"

namespace hosts::nam_access {

using Cell = nam::lstm::LSTMCell;

template <auto weight, auto bias>
struct Expose {
  friend Eigen::MatrixXf& weight_of(Cell& cell) { return cell.*weight; }
  friend const Eigen::VectorXf& bias_of(const Cell& cell) { return cell.*bias; }
};
template struct Expose<&Cell::_w, &Cell::_b>;

/// 4 hidden x (input + hidden), column-major; rows are the gates i, f, g, o.
Eigen::MatrixXf& weight_of(Cell& cell);
const Eigen::VectorXf& bias_of(const Cell& cell);

}  // namespace hosts::nam_access
