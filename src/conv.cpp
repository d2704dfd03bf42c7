// SPDX-License-Identifier: MIT
// See src/README.md.
#include "lora/layers/conv.hpp"

namespace lora {

template class AdapterPasses<ConvKind<float, 1>, ConvPasses<float, 1>>;
template class LayerCore<ConvKind<float, 1>>;
template class AdapterPasses<ConvKind<float, 2>, ConvPasses<float, 2>>;
template class LayerCore<ConvKind<float, 2>>;
template class AdapterPasses<ConvKind<float, 3>, ConvPasses<float, 3>>;
template class LayerCore<ConvKind<float, 3>>;
template class AdapterPasses<ConvKind<double, 1>, ConvPasses<double, 1>>;
template class LayerCore<ConvKind<double, 1>>;
template class AdapterPasses<ConvKind<double, 2>, ConvPasses<double, 2>>;
template class LayerCore<ConvKind<double, 2>>;
template class AdapterPasses<ConvKind<double, 3>, ConvPasses<double, 3>>;
template class LayerCore<ConvKind<double, 3>>;

}  // namespace lora
