// SPDX-License-Identifier: MIT
// See src/README.md.
#include "lora/weight/dense.hpp"
#include "lora/weight/matrix_weight.hpp"
#include "lora/weight/merge_stack.hpp"
#include "lora/weight/merge_undo.hpp"
#include "lora/weight/packed.hpp"

namespace lora {

template class PackedWeight<float>;
template class PackedWeight<double>;
template class DenseWeight<float>;
template class DenseWeight<double>;
template class MatrixWeight<float>;
template class MatrixWeight<double>;
template class MergeUndo<float>;
template class MergeUndo<double>;
template class MergeStack<float>;
template class MergeStack<double>;

}  // namespace lora
