// SPDX-License-Identifier: MIT
// See src/README.md.
#include "lora/layers/linear.hpp"

namespace lora {

template class AdapterPasses<LinearKind<float>, LinearPasses<float>>;
template class LayerCore<LinearKind<float>>;
template class AdapterPasses<LinearKind<double>, LinearPasses<double>>;
template class LayerCore<LinearKind<double>>;

}  // namespace lora
