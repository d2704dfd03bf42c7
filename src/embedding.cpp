// SPDX-License-Identifier: MIT
// See src/README.md.
#include "lora/layers/embedding.hpp"

namespace lora {

template class AdapterPasses<EmbeddingKind<float>, EmbeddingPasses<float>>;
template class AdapterPasses<EmbeddingKind<float>, TiedProjectionPasses<float>>;
template class LayerCore<EmbeddingKind<float>>;
template class AdapterPasses<EmbeddingKind<double>, EmbeddingPasses<double>>;
template class AdapterPasses<EmbeddingKind<double>, TiedProjectionPasses<double>>;
template class LayerCore<EmbeddingKind<double>>;

}  // namespace lora
